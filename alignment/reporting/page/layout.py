"""Where the artifacts of a lineage stand when it is drawn: in layers from above, with few crossings (Sugiyama 1981).

Units are widths of a box. What leads past a layer takes a narrow lane there, one for all that comes from the same
artifact. Equal input gives an equal picture.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

SWEEPS, PASSES = 16, 24
BOX, LANE = 1.0, 0.16
PULL = 0.12
"""How strongly everything is drawn to the middle of the picture, which keeps it narrow."""

Key = tuple[str, int]
"""An artifact and a layer: its box in its own layer, its lane in those below."""


class Placed(NamedTuple):
    """``boxes`` are centres, the layer being the height; ``edges`` go from parent to child by way of lanes."""

    boxes: dict[str, tuple[float, int]]
    edges: list[tuple[str, str, list[tuple[float, int]]]]
    width: float
    layers: int


def place(parents: Mapping[str, Sequence[str]]) -> Placed:
    """``parents`` by artifact, each after its own parents."""
    layer = layers(parents)
    above, rows = _lanes(parents, layer)
    _untangle(rows, above)
    x = _spread(rows, above, layer)
    edges = []
    for child, some in parents.items():
        for parent in dict.fromkeys(some):
            lanes = [(x[parent, row], row) for row in range(layer[parent], layer[child])]
            edges.append((parent, child, [*lanes, (x[child, layer[child]], layer[child])]))
    boxes = {name: (x[name, row], row) for name, row in layer.items()}
    width = max((at + _width(key, layer) / 2 for key, at in x.items()), default=0.0)
    return Placed(boxes, edges, width, len(rows))


def layers(parents: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """The layer of each: below all its parents; what has children right above the first of them."""
    layer: dict[str, int] = {}
    for name, some in parents.items():
        layer[name] = 1 + max((layer[parent] for parent in some), default=-1)
    children: dict[str, list[str]] = {name: [] for name in parents}
    for name, some in parents.items():
        for parent in some:
            children[parent].append(name)
    for name in reversed(list(parents)):
        if children[name]:
            layer[name] = min(layer[child] for child in children[name]) - 1
    return layer


def _lanes(
    parents: Mapping[str, Sequence[str]], layer: Mapping[str, int]
) -> tuple[dict[Key, list[Key]], list[list[Key]]]:
    """What stands right above each box or lane, and the rows, still in the order of the lineage."""
    above: dict[Key, list[Key]] = {(name, row): [] for name, row in layer.items()}
    for child, some in parents.items():
        for parent in dict.fromkeys(some):
            for row in range(layer[parent] + 1, layer[child]):
                above.setdefault((parent, row), [(parent, row - 1)])
            above[child, layer[child]].append((parent, layer[child] - 1))
    rows: list[list[Key]] = [[] for _ in range(max(layer.values(), default=-1) + 1)]
    for key in above:
        rows[key[1]].append(key)
    return above, rows


def _below(above: Mapping[Key, Sequence[Key]]) -> dict[Key, list[Key]]:
    below: dict[Key, list[Key]] = {key: [] for key in above}
    for key, some in above.items():
        for other in some:
            below[other].append(key)
    return below


def _untangle(rows: list[list[Key]], above: Mapping[Key, Sequence[Key]]) -> None:
    """Order every row by the means of its neighbours', down and up, and keep the order that crosses least."""
    below = _below(above)
    best, least = [list(row) for row in rows], crossings(rows, above)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for number in range(1, len(rows)) if down else range(len(rows) - 2, -1, -1):
            fixed = {key: place for place, key in enumerate(rows[number - 1 if down else number + 1])}
            _sort(rows[number], above if down else below, fixed)
        crossed = crossings(rows, above)
        if crossed < least:
            best, least = [list(row) for row in rows], crossed
    rows[:] = best


def _sort(row: list[Key], neighbours: Mapping[Key, Sequence[Key]], fixed: Mapping[Key, int]) -> None:
    here = {key: place for place, key in enumerate(row)}

    def middle(key: Key) -> float:
        places = [fixed[other] for other in neighbours[key]]
        return sum(places) / len(places) if places else here[key]

    row.sort(key=middle)


def crossings(rows: Sequence[Sequence[Key]], above: Mapping[Key, Sequence[Key]]) -> int:
    """How many pairs of lines cross between neighbouring rows."""
    crossed = 0
    for upper, lower in itertools.pairwise(rows):
        at = {key: place for place, key in enumerate(upper)}
        ends = [(at[other], place) for place, key in enumerate(lower) for other in above[key]]
        crossed += sum((a - c) * (b - d) < 0 for number, (a, b) in enumerate(ends) for c, d in ends[:number])
    return crossed


def _spread(
    rows: Sequence[Sequence[Key]], above: Mapping[Key, Sequence[Key]], layer: Mapping[str, int]
) -> dict[Key, float]:
    """Centres: each as near the mean of its neighbours as the order and the widths of its row let it."""
    below = _below(above)
    x: dict[Key, float] = {}
    for row in rows:
        x |= dict(zip(row, _apart([0.0] * len(row), [_width(key, layer) for key in row]), strict=True))
    for turn in range(PASSES):
        for row in rows if turn % 2 == 0 else reversed(rows):
            wanted = []
            for key in row:
                near = [*above[key], *below[key]]
                middle = sum(x[other] for other in near) / len(near) if near else x[key]
                wanted.append((1 - PULL) * middle)
            x |= dict(zip(row, _apart(wanted, [_width(key, layer) for key in row]), strict=True))
    left = min((at - _width(key, layer) / 2 for key, at in x.items()), default=0.0)
    return {key: at - left for key, at in x.items()}


def _apart(wanted: Sequence[float], widths: Sequence[float]) -> list[float]:
    """The least squares fit to ``wanted`` in which neighbours do not overlap (pooling adjacent violators)."""
    offsets, offset = [], 0.0
    for place, width in enumerate(widths):
        offset += (widths[place - 1] + width) / 2 if place else 0.0
        offsets.append(offset)
    pools: list[tuple[float, int]] = []
    for want, offset in zip(wanted, offsets, strict=True):
        pools.append((want - offset, 1))
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            (b, m), (a, n) = pools.pop(), pools.pop()
            pools.append(((a * n + b * m) / (n + m), n + m))
    flat = [mean for mean, count in pools for _ in range(count)]
    return [mean + offset for mean, offset in zip(flat, offsets, strict=True)]


def _width(key: Key, layer: Mapping[str, int]) -> float:
    return BOX if layer[key[0]] == key[1] else LANE
