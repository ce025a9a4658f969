"""The page and the table of a merge: how far each model has gone from the start, at which angles, layer by layer.

Everything is drawn from ``merge.json``. Where no ancestor's weights were read there are no angles: then it is how far
the models are from their merge.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment import console
from alignment.reporting import plots
from alignment.reporting.plots import Section, Series

Told = Mapping[str, Any]

RESULTS = "merge.json"
GROUP = "embedding, layers, final norm"


def page(told: Told) -> str:
    """The whole page."""
    sections = [Section(_ABOUT_DISTANCES, distances(told))]
    if told["geometry"] is not None:
        sections = [Section(_ABOUT_NORMS, norms(told))]
        if told["geometry"]["whole"]["angles"]:
            sections.insert(0, Section(_ABOUT_ANGLES, angles(told)))
    models = ", ".join(_weighed(one) for one in told["models"])
    text = f"{_method(told)} of {models}; their common ancestor is {told['ancestor']['name']}."
    return plots.page("What was merged, and how far apart it was", text, sections)


def angles(told: Told) -> plots.Figure:
    """Between every two task vectors, by group."""
    groups, whole = told["geometry"]["groups"], told["geometry"]["whole"]["angles"]
    series = [Series(_pair(told, key), [*groups], [group["angles"][key] for group in groups.values()]) for key in whole]
    known = [angle for angle in whole.values() if angle is not None]
    title = f"{min(known):.0f}°" if known else "no angle"
    title += f" to {max(known):.0f}°" if len(known) > 1 else ""
    return plots.curves(f"Angles between task vectors: {title} over the whole model", GROUP, "degrees", series)


def norms(told: Told) -> plots.Figure:
    """Of each task vector and of what they became, relative to the start's weights, by group."""
    groups = told["geometry"]["groups"]

    def series(name: str, values: Sequence[float]) -> Series:
        starts = [group["start_norm"] for group in groups.values()]
        relative = [value / start if start else None for value, start in zip(values, starts, strict=True)]
        return Series(name, [*groups], relative)

    drawn = [
        series(one["model"], [group["task_norms"][place] for group in groups.values()])
        for place, one in enumerate(told["models"])
    ]
    drawn.append(series("merged", [group["result_norm"] for group in groups.values()]))
    whole = told["geometry"]["whole"]
    longest = max(whole["task_norms"])
    kept = f"{whole['result_norm'] / longest:.0%} of the longest" if longest else "nothing has moved"
    title = f"Lengths of task vectors: of the merged one {kept}"
    return plots.curves(title, GROUP, "‖δ‖ / ‖θ_start‖", drawn)


def distances(told: Told) -> plots.Figure:
    """Of each model from the merged one, relative to its weights, by layer."""
    layers = told["layers"]
    series = [
        Series(
            one["model"],
            [*layers],
            [layer["distances"][place] / layer["norm"] if layer["norm"] else None for layer in layers.values()],
        )
        for place, one in enumerate(told["models"])
    ]
    return plots.curves(
        f"Distance from the merged model: {told['spread']:.2g} of its length", GROUP, "‖θ_m − θ‖ / ‖θ‖", series
    )


def show(folder: Path) -> None:
    """Print the table of a merge, by group."""
    told = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    console.say()
    console.say(f"{_method(told)} of {', '.join(_weighed(one) for one in told['models'])}", style="")
    if told.get("rounding") is not None:
        share, of = told["rounding"]["share"], told["rounding"]["of"]
        console.say(f"rounding of what was read: {share:.1%} of what {of} has learned", style="dim")
    geometry = told.get("geometry")
    if geometry is None:
        rows = [
            (name, f"{layer['norm']:.4g}", *(f"{distance:.3g}" for distance in layer["distances"]))
            for name, layer in [("whole", told["whole"]), *told["layers"].items()]
        ]
        columns = ("layer", "‖merged‖", *(f"to {one['model']}" for one in told["models"]))
        console.table("distances from the merged model", columns, rows, right=columns[1:])
        return
    pairs = [*geometry["whole"]["angles"]]
    columns = (
        "group",
        "‖start‖",
        *(f"‖δ {one['model']}‖" for one in told["models"]),
        *(_pair(told, key) for key in pairs),
        "‖δ merged‖",
    )
    rows = [
        (
            name,
            f"{group['start_norm']:.4g}",
            *(f"{norm:.3g}" for norm in group["task_norms"]),
            *("–" if group["angles"][key] is None else f"{group['angles'][key]:.1f}°" for key in pairs),
            f"{group['result_norm']:.3g}",
        )
        for name, group in [("whole", geometry["whole"]), *geometry["groups"].items()]
    ]
    console.table("what was learned since the start, and the angles between it", columns, rows, right=columns[1:])


def _method(told: Told) -> str:
    if told["method"] == "liti":
        return f"{told['eta']:g} of the way from {told['ancestor']['name']}: liti"
    if told["method"] == "ema":
        return f"moving average at rate {told['rate']:g}"
    return f"{told['method']} (one angle a {told['groups']})" if told["method"] == "slerp" else "average"


def _weighed(one: Mapping[str, Any]) -> str:
    return f"{one['model']} ({one['weight']:.3g})"


def _pair(told: Told, key: str) -> str:
    one, other = (told["models"][int(place)]["model"] for place in key.split(","))
    return f"{one} ∠ {other}"


_ABOUT_ANGLES = (
    "A task vector is what a model has learned: its weights less those of the start. Runs that learned the same "
    "have small angles; at 90° they have nothing in common, and an average of two is shorter than each by a factor of "
    "0.71, which slerp makes up for. Rounding of what is stored in 16 bits looks like a right angle."
)
_ABOUT_NORMS = (
    "How far each model has gone, relative to the length of what it started from. Slerp keeps the length of what it "
    "merges; an average shortens it, the more the wider the angle; liti shortens it to the part that was asked for."
)
_ABOUT_DISTANCES = (
    "How far each model is from the merged one. The weights of their common ancestor were not there to be read, so "
    "that no angle is known."
)
