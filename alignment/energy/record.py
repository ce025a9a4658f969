"""What a record tells of energy, and sums of it over a lineage, in the units that people read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Stated:
    """What the user says: watts of a device that does not tell, and kg CO₂eq per kWh of the electricity."""

    watts: float | None = None
    grid: float | None = None


NOTHING_STATED = Stated()


@dataclass(frozen=True)
class Energy:
    """What an artifact took. None is what is not known; ``how`` tells what kWh stand on, or why there are none."""

    device: str
    devices: int
    """How many of them worked at a time, in the last session."""
    device_hours: float
    kwh: float | None
    how: str
    kg_co2eq: float | None
    grid_kg_per_kwh: float | None
    excludes: str
    sessions: int
    """Starts that it took; one that was killed within its first minute has left no word."""

    @property
    def text(self) -> str:
        """``12.3 Wh, 5.63 g CO₂eq (measured); 0.31 h of 8 × NVIDIA H200, in 2 starts``."""
        told = self.how if self.kwh is None else f"{amounts(self.kwh, self.kg_co2eq)} ({self.how})"
        starts = f", in {self.sessions} starts" if self.sessions > 1 else ""
        return f"{told}; {self.device_hours:.3g} h of {self.hardware}{starts}"

    @property
    def hardware(self) -> str:
        """``8 × NVIDIA H200``."""
        return f"{self.devices} × {self.device}" if self.devices > 1 else self.device


@dataclass(frozen=True)
class Total:
    """What several artifacts took together: the sums of what is known, and how many there are of which it is not."""

    device_hours: dict[str, float]
    """By device."""
    kwh: float
    kg_co2eq: float | None
    """None where one of them has kWh and no grid."""
    known: int
    """Artifacts whose kWh are known."""
    unknown: int
    """The others, those without a record of it included."""
    excludes: tuple[str, ...]
    """What no number here holds, by kind of device."""

    @property
    def text(self) -> str:
        """``12.3 Wh, 5.63 g CO₂eq (4 artifacts); 2 artifacts whose kWh are not known; 0.31 h of NVIDIA H200``."""
        parts = []
        if self.known:
            parts.append(f"{amounts(self.kwh, self.kg_co2eq)} ({_counted(self.known)})")
        if self.unknown:
            parts.append(f"{_counted(self.unknown)} whose kWh are not known")
        return "; ".join([*parts, *(f"{hours:.3g} h of {device}" for device, hours in self.device_hours.items())])


def total(some: Iterable[Energy | None]) -> Total:
    """The sum over artifacts, each of which stands in ``some`` once; None for one whose record tells nothing."""
    found = [*some]
    there = [one for one in found if one is not None]
    known = [one for one in there if one.kwh is not None]
    hours: dict[str, float] = {}
    for one in there:
        hours[one.device] = hours.get(one.device, 0.0) + one.device_hours
    return Total(
        device_hours=hours,
        kwh=sum_of_known([one.kwh for one in known]) or 0.0,
        kg_co2eq=sum_of_known([one.kg_co2eq for one in known]),
        known=len(known),
        unknown=len(found) - len(known),
        excludes=tuple(dict.fromkeys(one.excludes for one in there)),
    )


def amounts(kwh: float, kg: float | None) -> str:
    """``1.5 kWh, 0.687 kg CO₂eq``; in Wh and g where there is little of it."""
    energy = f"{_plain(kwh)} kWh" if kwh >= 0.1 else f"{_plain(1000 * kwh)} Wh"
    if kg is None:
        return energy
    return f"{energy}, " + (f"{_plain(kg)} kg CO₂eq" if kg >= 0.1 else f"{_plain(1000 * kg)} g CO₂eq")


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _counted(number: int) -> str:
    return "1 artifact" if number == 1 else f"{number:,} artifacts"


def sum_of_known(values: Sequence[float | None]) -> float | None:
    """Their sum; None where one of them is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
