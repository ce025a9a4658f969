"""The lineage as a drawing (SVG), and what its boxes tell when one is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignment import console
from alignment.artifacts import NO_FOLDER
from alignment.reporting.page import layout
from alignment.reporting.page.gather import GONE, Lineage, Node, flat
from alignment.reporting.plots import plain

WIDTH, HEIGHT = 138, 44
"""Of a box, in pixels."""
ACROSS, DOWN, MARGIN = 150, 84, 10
"""From one box to the next, and around all."""
LETTERS = 16
"""Of a name, that a box has room for."""
SMALLEST = 0.8
"""A picture that is wider than the page is scaled so far down, and is moved from there on."""

KINDS = {
    "dataset": "data",
    "answers": "data",
    "policy": "policy",
    "reward": "reward model",
    "evaluation": "evaluation",
    GONE: "no longer there",
}
"""What the legend tells; everything else is called other."""


def drawing(lineage: Lineage) -> str:
    """The graph; boxes are buttons that carry their artifact's fingerprint."""
    placed = layout.place({of: list(node.parents.values()) for of, node in lineage.nodes.items()})
    width = round(placed.width * ACROSS) + 2 * MARGIN
    height = (placed.layers - 1) * DOWN + HEIGHT + 2 * MARGIN
    edges = "\n".join(
        f'<path data-from="{parent[:16]}" data-to="{child[:16]}" d="{_curve(points)}"/>'
        for parent, child, points in placed.edges
    )
    boxes = "\n".join(_box(lineage, node, *placed.boxes[of]) for of, node in lineage.nodes.items())
    size = f'viewBox="0 0 {width} {height}" style="max-width: {width}px; min-width: {round(SMALLEST * width)}px"'
    label = f"{len(lineage.nodes)} artifacts, each below what it was made from"
    return (
        f'<svg id="graph" {size} role="group" aria-label="{label}">\n<g class="edges">\n{edges}\n</g>\n{boxes}\n</svg>'
    )


def legend(lineage: Lineage) -> str:
    """The kinds that there are."""
    present = dict.fromkeys(KINDS.get(node.kind, "other") for node in lineage.nodes.values())
    order = [*dict.fromkeys(KINDS.values()), "other"]
    marks = [f'<li class="{_class(told)}"><i></i>{told}</li>' for told in order if told in present]
    return f'<ul class="kinds">{"".join(marks)}</ul>'


def details(lineage: Lineage) -> dict[str, Any]:
    """By the fingerprint's first 16 digits: what is told of an artifact."""
    return {of[:16]: _details(node, lineage) for of, node in lineage.nodes.items()}


def _box(lineage: Lineage, node: Node, x: float, layer: int) -> str:
    left, top = round(x * ACROSS - WIDTH / 2) + MARGIN, layer * DOWN + MARGIN
    told, name = KINDS.get(node.kind, "other"), lineage.name(node.fingerprint)
    second = node.stage or (told if node.kind == GONE else NO_FOLDER.get(node.kind, node.kind))
    said = plain(f"{name}, {second}, {told}").replace('"', "&quot;")
    button = f'tabindex="0" role="button" aria-pressed="false" aria-label="{said}" data-of="{node.fingerprint[:16]}"'
    return (
        f'<g class="box {_class(told)}" transform="translate({left} {top})" {button}>'
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="5"/><rect class="stripe" width="4" height="{HEIGHT}" rx="2"/>'
        f'<text x="13" y="18">{plain(_fitted(name))}</text>'
        f'<text class="second" x="13" y="34">{plain(_fitted(second, 5))}</text></g>'
    )


def _curve(points: Sequence[tuple[float, int]]) -> str:
    """From the foot of a box, down lanes, to the head of another."""
    (x, layer), *rest = points
    at = round(x * ACROSS) + MARGIN
    path, foot = f"M{at} {layer * DOWN + HEIGHT + MARGIN}", layer * DOWN + HEIGHT + MARGIN
    for place, (x, layer) in enumerate(rest):
        to, head = round(x * ACROSS) + MARGIN, layer * DOWN + MARGIN
        bend = (foot + head) // 2
        path += f"C{at} {bend} {to} {bend} {to} {head}"
        if place < len(rest) - 1:
            path += f"V{head + HEIGHT}"
        at, foot = to, head + HEIGHT
    return path


def _details(node: Node, lineage: Lineage) -> dict[str, Any]:
    facts: list[tuple[str, str]] = [("fingerprint", node.fingerprint[:16])]
    found = node.artifact
    told: dict[str, Any] = {"name": lineage.name(node.fingerprint), "stage": node.stage, "kind": node.kind}
    parents = [[key, lineage.name(of), of[:16]] for key, of in node.parents.items()]
    if found is None:
        facts.append(("", "It is no longer there: only the records of its children tell of it."))
        return told | {"facts": facts, "metrics": [], "settings": [], "parents": parents}
    if node.folder:
        facts.append(("folder", node.folder))
    if found.created:
        facts.append(("made", f"{found.created} in {console.duration(found.seconds)}"))
        facts.append(("licences", ", ".join(found.licences) or "none inherited"))
        facts += [("energy", found.energy.text)] if found.energy is not None else []
        facts += [(name, str(value)) for name, value in found.notes.items() if value is not None]
    metrics = [[name, f"{value:,.5g}"] for name, value in found.metrics.items()]
    return told | {
        "facts": facts,
        "metrics": metrics,
        "settings": [list(one) for one in flat(found.settings)],
        "parents": parents,
    }


def _fitted(text: str, more: int = 0) -> str:
    return text if len(text) <= LETTERS + more else text[: LETTERS + more - 1] + "…"


def _class(told: str) -> str:
    return "is-" + told.split()[0]
