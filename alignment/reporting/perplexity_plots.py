"""The page of ``stage=perplexity``: perplexity by size, a panel for each dataset, and differences between arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignment.reporting import panels, plots
from alignment.reporting.panels import Panel
from alignment.reporting.perplexities import between
from alignment.reporting.plots import Section, Series

Results = Mapping[str, Any]

SIZE = "parameters"


def page(results: Results) -> str:
    """The whole page."""
    sections = [Section(_ABOUT_SIZES, by_size(results))]
    if any(results["differences"].values()):
        sections.append(Section(_ABOUT_DIFFERENCES, differences(results)))
    measured = ", ".join(
        f"{name} ({one['rows']:,} rows, {one['tokens']:,} tokens)" for name, one in results["datasets"].items()
    )
    text = f"Held-out rows ({results['split']}): {measured}. Bars are {results['confidence']:.0%} intervals: "
    return plots.page("Perplexity", f"{text}{results['intervals']}.", sections)


def by_size(results: Results) -> plots.Figure:
    """Perplexity over size, a line for each way of training, a panel for each dataset; the teacher's is dashed."""
    grid = [Panel(dataset, _lines(results, dataset)) for dataset in results["datasets"]]
    figure = panels.beside(_title(results), SIZE, grid).update_xaxes(type="log")
    if results["teacher"] is not None:
        line = {"color": plots.QUIET, "width": 1.5, "dash": "dash"}
        for number, dataset in enumerate(results["datasets"]):
            level = results["teacher"]["measures"][dataset]["perplexity"]["estimate"]
            told = f"the teacher: {level:.2f}"
            figure.add_hline(
                level, line=line, annotation_text=told, annotation_position="bottom left", **panels.cell(number)
            )
    return figure


def differences(results: Results) -> plots.Figure:
    """The loss of each pair's first arm less that of its second, a series for every dataset."""
    series = [
        Series(dataset, [*found], [_bar(one) for one in found.values()])
        for dataset, found in results["differences"].items()
        if found
    ]
    told = [one["verdict"] for found in results["differences"].values() for one in found.values()]
    title = f"{told.count('below')} of {len(told)} differences lie below 0 with their whole interval"
    return plots.dots(title, "", "nats a token", series, baseline=0.0)


_ABOUT_SIZES = (
    "Each point is the mean over an arm's seeds (of the loss; perplexity is its exponential) on rows that no model was "
    "trained on. The dashed line is the teacher's."
)
_ABOUT_DIFFERENCES = (
    "The loss of the first arm less that of the second, seed by seed: both began with the same weights and read the "
    "same rows in the same order, so a difference is surer than two intervals beside each other suggest. Below 0 the "
    "first is the better one."
)


def _title(results: Results) -> str:
    """What came of the comparisons, where there are any."""
    for dataset, found in results["differences"].items():
        if found:
            best = min(found, key=lambda pair: found[pair]["estimate"])
            return f"On {dataset}, {best}: {between(found[best], '+')} nats a token"
    return "Perplexity by size"


def _lines(results: Results, dataset: str) -> Sequence[Series]:
    found, sizes = results["arms"][dataset], results["parameters"]
    return [
        Series(name, [sizes[arm] for arm in arms], [_bar(found[arm]["perplexity"]) for arm in arms], arms)
        for name, arms in results["lines"].items()
    ]


def _bar(one: Mapping[str, Any]) -> Any:
    """With its interval where something tells it."""
    return one["estimate"] if one["low"] is None else one
