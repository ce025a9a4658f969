"""Figures as plain values, which the page's script hands to plotly: panels of lines and points, in groups.

A model or run has one hue and one symbol wherever it stands on the page; hues are numbers, whose colours the page's
light and dark styles give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from alignment.reporting.plots import SYMBOLS, plain

DIGITS = 6
"""Significant ones that a figure keeps of a number."""
LONGEST = 400
"""Points of a line at most; of more, every second, third … is drawn, the first and the last among them."""
HUES = 8

Value = float | Mapping[str, Any] | None
"""A number, one with its interval (``estimate``, ``low``, ``high``), or a gap."""


class Panel(NamedTuple):
    """One pair of axes. ``level`` is a line to compare with; ``named`` says that x are names, not numbers."""

    title: str
    x: str
    traces: Sequence[Mapping[str, Any]]
    named: bool = False
    level: float | None = None


class Group(NamedTuple):
    """Panels that belong together and share one legend, with what to know when looking at them."""

    title: str
    text: str
    panels: Sequence[Panel]


class Hues:
    """Looks of names, in the order in which they are first asked for; ``first`` have the earliest ones."""

    def __init__(self, first: Sequence[str] = ()) -> None:
        self._places = {name: place for place, name in enumerate(dict.fromkeys(first))}

    def look(self, name: str) -> dict[str, Any]:
        """``hue`` and ``symbol`` of a name: all pairs are used before one comes again."""
        place = self._places.setdefault(name, len(self._places))
        return {"hue": place % HUES, "symbol": SYMBOLS[(place + place // HUES) % len(SYMBOLS)]}


def trace(
    name: str,
    x: Sequence[Any],
    y: Sequence[Value],
    look: Mapping[str, Any],
    *,
    told: Sequence[str] = (),
    marks: Sequence[str] = (),
    spread: Sequence[Value] = (),
    mode: str = "lines+markers",
    dash: str = "solid",
    size: int = 7,
) -> dict[str, Any]:
    """A line or a row of points: ``told`` is said when one points, ``marks`` stands beside, ``spread`` is x's interval.

    What is said is no markup: plotly is given it escaped.
    """
    kept = range(len(x)) if len(x) <= LONGEST else _thinned(len(x))
    values = [y[place] for place in kept]
    found: dict[str, Any] = {
        "name": plain(name),
        **look,
        "mode": mode,
        "dash": dash,
        "size": size,
        "x": [_rounded(x[place]) for place in kept],
        "y": [_rounded(one["estimate"] if isinstance(one, Mapping) else one) for one in values],
    }
    if any(isinstance(one, Mapping) for one in values):
        found["bars"] = _bars(values)
    if any(isinstance(one, Mapping) for one in spread):
        found["sideways"] = _bars([spread[place] for place in kept])
    if told:
        found["told"] = [plain(told[place]).replace("\n", "<br>") for place in kept]
    if marks:
        found["marks"] = [plain(marks[place]) for place in kept]
    return found


def group(found: Group) -> dict[str, Any]:
    """A group as the page's script reads it; panels without a trace are left out."""
    panels = [
        {
            "title": panel.title,
            "x": panel.x,
            "named": panel.named,
            "level": panel.level,
            "traces": list(panel.traces),
        }
        for panel in found.panels
        if panel.traces
    ]
    return {"title": found.title, "text": found.text, "panels": panels}


def _bars(values: Sequence[Value]) -> list[list[float] | None]:
    """How far below and above an estimate its interval reaches."""
    return [
        [_rounded(max(0.0, one["estimate"] - one["low"])), _rounded(max(0.0, one["high"] - one["estimate"]))]
        if isinstance(one, Mapping)
        else None
        for one in values
    ]


def _thinned(count: int) -> list[int]:
    step = -(-count // LONGEST)
    kept = list(range(0, count, step))
    return kept if kept[-1] == count - 1 else [*kept, count - 1]


def _rounded(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
