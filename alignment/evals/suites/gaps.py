"""How far apart groups are: the largest gap between the means of two groups of a domain.

The gap is a mean over examples too, so that models, seeds and intervals treat it like any other measure. With N
examples in a domain, of which n_h are in the group with the highest mean m_h and n_l in that with the lowest, an
example counts for

    gap + N/n_h · (x − m_h)  in the highest,    gap − N/n_l · (x − m_l)  in the lowest,    gap  in others.

That holds fixed which two groups they are: an interval of first order. The largest of many gaps is above 0 by chance
alone, the more so the smaller the groups are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from alignment.evals.suites.suite import Example, Measure


class Gap(NamedTuple):
    """The two groups of a domain that are furthest apart, and their means."""

    highest: str
    high: float
    lowest: str
    low: float


def measure(name: str, inner: str) -> Measure:
    """What :func:`examples` adds to the measure ``name``."""
    doc = f"{name} by {inner}, where it is highest less where it is lowest; of the whole the mean over prompts"
    return Measure(name_of(name), "lower", doc)


def name_of(measure: str) -> str:
    """What the gap in a measure is called."""
    return f"{measure}_gap"


def examples(
    scored: Sequence[Example], names: Sequence[str], outer: str | None, inner: str, least: int
) -> tuple[list[Example], dict[str, dict[str, Any]]]:
    """An example for each of ``scored`` in a domain with a gap, and the gaps themselves by domain and measure.

    ``inner`` is the group that divides a domain, ``outer`` the one whose labels are the domains; without it there is
    one. Groups of fewer than ``least`` examples take no part, and a domain needs two.
    """
    domains: dict[str, list[Example]] = {}
    for one in scored:
        if inner in one.groups and (outer is None or outer in one.groups):
            domains.setdefault(one.groups[outer] if outer else "all", []).append(one)
    made: list[Example] = []
    told: dict[str, dict[str, Any]] = {}
    for domain, of in domains.items():
        members: dict[str, list[Example]] = {}
        for one in of:
            members.setdefault(one.groups[inner], []).append(one)
        large = {label: some for label, some in members.items() if len(some) >= least}
        if len(large) < 2:
            continue
        found = {name: widest(large, name) for name in names}
        told[domain] = {name: gap._asdict() for name, gap in found.items()}
        for one in of:
            label = one.groups[inner]
            values = {
                name_of(name): _share(one.values[name], label, gap, len(members[label]), len(of))
                for name, gap in found.items()
            }
            made.append(Example(f"{one.id}|gap", one.unit, values, {outer: domain} if outer else {}))
    return made, told


def widest(members: Mapping[str, Sequence[Example]], name: str) -> Gap:
    """The groups with the highest and the lowest mean of a measure."""
    means = {label: sum(one.values[name] for one in some) / len(some) for label, some in members.items()}
    highest, lowest = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    return Gap(highest, means[highest], lowest, means[lowest])


def _share(value: float, label: str, gap: Gap, size: int, count: int) -> float:
    """What an example of a group of ``size`` counts for, of ``count`` in its domain."""
    whole = gap.high - gap.low
    if label == gap.highest:
        whole += (value - gap.high) * count / size
    if label == gap.lowest:
        whole -= (value - gap.low) * count / size
    return whole
