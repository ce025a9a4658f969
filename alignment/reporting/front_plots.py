"""The page of a measurement of KL–reward fronts: the lines, their differences at equal KL, their course along η.

Everything is drawn from ``fronts.json`` (``stages/front.py`` says what is in it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from alignment.reporting import panels, plots
from alignment.reporting.fronts import KL
from alignment.reporting.panels import Panel
from alignment.reporting.plots import Section, Series

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Results = Mapping[str, Any]

DASHES = {"run": "solid", "sweep": "solid", "points": "dot"}


def page(results: Results) -> str:
    """The whole page."""
    sections = []
    for about, kinds in ((_ABOUT_EVALUATED, ("sweep", "points")), (_ABOUT_RUNS, ("run",))):
        names = [name for name, line in results["lines"].items() if line["kind"] in kinds]
        if names:
            sections.append(Section(about, lines(results, names)))
    sections += [
        Section(about, figure)
        for about, figure in ((_ABOUT_MATCHED, matched(results)), (_ABOUT_ETA, along_eta(results)))
        if figure is not None
    ]
    over = "; ".join(f"{origin}: {told}" for origin, told in results["intervals"].items())
    text = f"{len(results['lines']):,} lines. {results['confidence']:.0%} intervals, {over}."
    return plots.page("Reward over how far a policy has moved", text, sections)


def lines(results: Results, names: Sequence[str]) -> Figure:
    """The fronts of these lines: means bold, seeds faint, a ring around what nothing dominates; a panel a score."""
    shown = {name: results["lines"][name] for name in names}
    scores = [score for score in results["scores"] if any(_has(line, score) for line in shown.values())]
    figure = panels.empty(_best(shown, scores[0]), KL, scores)
    listed: set[str] = set()
    for number, score in enumerate(scores):
        for place, (name, line) in enumerate(shown.items()):
            if _has(line, score):
                for seed in range(line["seeds"] if line["seeds"] > 1 else 0):
                    _faint(figure, number, place, line["points"], score, seed)
                _bold(figure, number, place, name, line, score, listed=name not in listed)
                listed.add(name)
        best = [shown[name]["points"][place] for name, place in results["pareto"][score] if name in shown]
        _ring(figure, number, best, score)
    return figure


def matched(results: Results) -> Figure | None:
    """One line less another at equal KL, a panel a score; None where nothing was compared."""
    found = {
        score: [
            Series(pair, [one["kl"] for one in some], [_bounded(one) for one in some])
            for pair, some in pairs.items()
            if some
        ]
        for score, pairs in results["matched"].items()
    }
    grid = [Panel(score, series) for score, series in found.items() if series]
    if not grid:
        return None
    verdicts = [one["verdict"] for some in results["matched"][grid[0].name].values() for one in some]
    title = (
        f"By {grid[0].name}, the first line is above the second at {verdicts.count('above')} of {len(verdicts)} KLs, "
        f"and below at {verdicts.count('below')}"
    )
    figure = panels.beside(title, KL, grid)
    for number in range(len(grid)):
        figure.add_hline(0, line={"color": plots.QUIET, "width": 1}, **panels.cell(number))
    return figure


def along_eta(results: Results) -> Figure | None:
    """KL and scores of every sweep over η; None without a sweep."""
    sweeps = {name: line for name, line in results["lines"].items() if line["kind"] == "sweep"}
    if not sweeps:
        return None
    grid = [
        Panel(
            told,
            [
                Series(name, [point["eta"] for point in line["points"]], [_of(point, key) for point in line["points"]])
                for name, line in sweeps.items()
                if key == "kl" or _has(line, key)
            ],
        )
        for key, told in (("kl", KL), *((score, score) for score in results["scores"]))
    ]
    shapes = [
        f"{name}: {score} {found[name]['score']['shape']}, KL {found[name]['kl']['shape']}"
        for score, found in results["curvature"].items()
        if score == results["scores"][0]
        for name in found
    ]
    return panels.beside("; ".join(shapes) or "Along η", "η", [panel for panel in grid if panel.series])


# ── parts ────────────────────────────────────────────────────────────────────────────────────────


def _has(line: Mapping[str, Any], score: str) -> bool:
    return score in line["points"][0]["scores"]


def _best(shown: Mapping[str, Any], score: str) -> str:
    told = []
    for name, line in shown.items():
        if _has(line, score):
            best = max(line["points"], key=lambda point: point["scores"][score])
            told.append(f"{name} {best['scores'][score]:.3f} at KL {best['kl']:.2f}")
    return f"Highest {score}: {'; '.join(told)}"


def _of(point: Mapping[str, Any], key: str) -> plots.Estimate | float:
    estimate = point["kl"] if key == "kl" else point["scores"][key]
    return _bounded({"estimate": estimate, "low": point["low"][key], "high": point["high"][key]})


def _bounded(one: plots.Estimate) -> plots.Estimate | float:
    """With error bars where there are bounds."""
    return one if one["low"] is not None else float(one["estimate"])


def _ordered(line: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Points that are no course of anything are drawn by rising KL."""
    points: list[Mapping[str, Any]] = list(line["points"])
    return sorted(points, key=lambda point: point["kl"]) if line["kind"] == "points" else points


def _bold(
    figure: Figure, number: int, place: int, name: str, line: Mapping[str, Any], score: str, *, listed: bool
) -> None:
    import plotly.graph_objects as go

    points = _ordered(line)
    trace = go.Scatter(
        x=[point["kl"] for point in points],
        y=[point["scores"][score] for point in points],
        text=[plots.plain(_told(point, score)) for point in points],
        name=plots.plain(name),
        legendgroup=plots.plain(name),
        showlegend=listed,
        mode="lines+markers",
        line={"color": panels.colour(place), "width": 2.5, "dash": DASHES[line["kind"]]},
        marker={"symbol": plots.SYMBOLS[place % len(plots.SYMBOLS)], "size": 8},
        hovertemplate="%{text}",
    )
    figure.add_trace(trace, **panels.cell(number))


def _told(point: Mapping[str, Any], score: str) -> str:
    """What one reads when pointing at it."""
    eta = "" if point["eta"] is None else f", η {point['eta']:g}"
    low, high = point["low"][score], point["high"][score]
    bounds = "" if low is None else f" ({low:.3f} … {high:.3f})"
    return f"{point['label']}{eta}: {score} {point['scores'][score]:.3f}{bounds} at KL {point['kl']:.3f}"


def _faint(figure: Figure, number: int, place: int, points: Sequence[Mapping[str, Any]], score: str, seed: int) -> None:
    import plotly.graph_objects as go

    whole = [point for point in points if len(point["seeds"]["kl"]) > seed and len(point["seeds"][score]) > seed]
    trace = go.Scatter(
        x=[point["seeds"]["kl"][seed] for point in whole],
        y=[point["seeds"][score][seed] for point in whole],
        showlegend=False,
        mode="lines",
        opacity=0.35,
        line={"color": panels.colour(place), "width": 1},
        hoverinfo="skip",
    )
    figure.add_trace(trace, **panels.cell(number))


def _ring(figure: Figure, number: int, points: Sequence[Mapping[str, Any]], score: str) -> None:
    import plotly.graph_objects as go

    ring = go.Scatter(
        x=[point["kl"] for point in points],
        y=[point["scores"][score] for point in points],
        name="dominated by nothing",
        legendgroup="dominated by nothing",
        showlegend=number == 0,
        mode="markers",
        marker={"symbol": "circle-open", "size": 15, "color": plots.QUIET, "line": {"width": 1.5}},
        hoverinfo="skip",
    )
    figure.add_trace(ring, **panels.cell(number))


_ABOUT_EVALUATED = (
    "Every point is a model, measured on the same prompts with the same noise. Bold lines are means over seeds, faint "
    "ones single seeds; dotted lines join models that are no course of anything, by rising KL. Rings: no other point "
    "has less KL and a higher score. The proxy was learned from; where gold falls while it rises, it is over-optimised."
)
_ABOUT_RUNS = (
    "Every point is a look of a run at its held-out prompts, which are not those of the evaluations: the levels of the "
    "two figures are not to be compared."
)
_ABOUT_MATCHED = (
    "Scores on straight lines between neighbouring points, one line less the other at the same KL, at KLs that both "
    "reach in every seed. Where a bar does not touch 0, one line is above the other beyond chance. Each bar is about "
    "its own KL: of twenty, one misses by chance."
)
_ABOUT_ETA = (
    "From the start (η = 0) to the merged model (η = 1). WARP finds that the reward is concave and the KL convex: then "
    "a point between has more reward at its KL than a mixture of both ends."
)
