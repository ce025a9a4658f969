"""KL–reward fronts: what a policy is worth over how far it has moved, of one run, or of arms with several seeds each.

A point is a row of ``front.jsonl``: ``step``, ``kl`` to the start in nats an answer, ``reward``, and ``others``, the
mean of every further scorer by its name. The reward is what was learned from; the others only looked on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from alignment.reporting import panels, plots
from alignment.reporting.panels import Panel
from alignment.reporting.plots import Series

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Point = Mapping[str, Any]

REWARD = "reward"
KL = "KL to the start, nats an answer"
LABELS = 7
"""Points of a line that carry their step; all of them tell it when one points."""


def front(points: Sequence[Point], kept: int) -> Figure:
    """One run: the held-out reward and every further scorer, a panel each, and a star at the step that is kept."""
    names = scorers(points)
    start, end = points[0], next(point for point in points if point["step"] == kept)
    told = ", ".join(f"{name} {value(end, name) - value(start, name):+.3f}" for name in names)
    steps = [f"step {point['step']:,}" for point in points]
    kls = [point["kl"] for point in points]
    grid = [Panel(name, [Series(name, kls, [value(point, name) for point in points], steps)]) for name in names]
    figure = panels.beside(f"Step {kept:,} is kept, at KL {end['kl']:.2f}: {told}", KL, grid)
    for number, name in enumerate(names):
        _label(figure, number, name, points)
        _star(figure, number, end["kl"], value(end, name))
    return figure


def fronts(runs: Mapping[str, Sequence[Sequence[Point]]]) -> Figure:
    """Arms beside each other: a faint line for every seed, a bold one for their mean; a panel for every scorer.

    ``runs[arm]`` holds the points of each seed. The mean is over seeds at equal steps, of KL and score alike, and goes
    as far as all of them do. A scorer that an arm was not measured by has no line of it.
    """
    assert all(runs.values()), "an arm has at least one seed"
    means = {arm: mean_front(seeds) for arm, seeds in runs.items()}
    names = list(dict.fromkeys(name for points in means.values() for name in scorers(points)))
    ends = "; ".join(
        f"{arm} ends at reward {points[-1][REWARD]:.3f}, KL {points[-1]['kl']:.2f}" for arm, points in means.items()
    )
    figure = panels.empty(ends, KL, names)
    for number, name in enumerate(names):
        for place, (arm, seeds) in enumerate(runs.items()):
            if name in scorers(means[arm]):
                first = not any(trace.name == plots.plain(arm) for trace in figure.data)
                for points in seeds if len(seeds) > 1 else ():
                    _line(figure, number, place, arm, points, name, bold=False, listed=False)
                _line(figure, number, place, arm, means[arm], name, bold=True, listed=first)
    return figure


def mean_front(seeds: Sequence[Sequence[Point]]) -> list[Point]:
    """At every step that all seeds have: the means of their KL and scores; of the scorers that all of them have."""
    by_step = [{point["step"]: point for point in points} for points in seeds]
    shared = [name for name in scorers(seeds[0])[1:] if all(name in scorers(points) for points in seeds)]
    return [
        {
            "step": step,
            "kl": fmean(points[step]["kl"] for points in by_step),
            REWARD: fmean(points[step][REWARD] for points in by_step),
            "others": {name: fmean(points[step]["others"][name] for points in by_step) for name in shared},
        }
        for step in by_step[0]
        if all(step in points for points in by_step)
    ]


def scorers(points: Sequence[Point]) -> list[str]:
    """The reward, and whatever else was measured."""
    return [REWARD, *points[0]["others"]]


def value(point: Point, name: str) -> float:
    """What the scorer of this name gives."""
    return float(point[REWARD] if name == REWARD else point["others"][name])


def some(points: Sequence[Point], most: int, *, also: int | None = None) -> list[Point]:
    """At most so many points, evenly, the first and the last among them; and that of the step ``also``."""
    count = min(most, len(points))
    places = {round(place * (len(points) - 1) / max(1, count - 1)) for place in range(count)}
    return [point for place, point in enumerate(points) if place in places or point["step"] == also]


def _label(figure: Figure, number: int, name: str, points: Sequence[Point]) -> None:
    """Steps above points, so far that a star has room."""
    for point in some(points, LABELS):
        figure.add_annotation(
            x=point["kl"],
            y=value(point, name),
            text=f"{point['step']:,}",
            showarrow=False,
            yshift=14,
            font={"color": plots.QUIET, "size": 11},
            **panels.cell(number),
        )


def _star(figure: Figure, number: int, kl: float, height: float) -> None:
    import plotly.graph_objects as go

    star = go.Scatter(
        x=[kl],
        y=[height],
        name="kept",
        legendgroup="kept",
        showlegend=number == 0,
        mode="markers",
        marker={"symbol": "star", "size": 14, "color": panels.colour(1)},
        hoverinfo="skip",
    )
    figure.add_trace(star, **panels.cell(number))


def _line(
    figure: Figure, number: int, place: int, arm: str, points: Sequence[Point], name: str, *, bold: bool, listed: bool
) -> None:
    import plotly.graph_objects as go

    line = go.Scatter(
        x=[point["kl"] for point in points],
        y=[value(point, name) for point in points],
        text=[f"step {point['step']:,}" for point in points],
        name=plots.plain(arm),
        legendgroup=plots.plain(arm),
        showlegend=listed,
        mode="lines+markers" if bold else "lines",
        opacity=1.0 if bold else 0.45,
        line={"color": panels.colour(place), "width": 3 if bold else 1.5},
        marker={"symbol": plots.SYMBOLS[place % len(plots.SYMBOLS)], "size": 7},
        hovertemplate="KL %{x:.3f}: %{y:.3f}<br>%{text}",
    )
    figure.add_trace(line, **panels.cell(number))
