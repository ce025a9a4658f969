"""The page of a measurement of judges: accuracy by grade, cross table, calibration, thresholds, scores and lengths.

Everything is drawn from ``results.json``, but for the clouds of points, which are drawn from :class:`Points`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from alignment.data.grades import GRADES
from alignment.reporting import plots
from alignment.reporting.judges import LONGER
from alignment.reporting.plots import Histogram, Section, Series

Results = Mapping[str, Any]

CHANCE = 0.5


class Points(NamedTuple):
    """Some pairs of a dataset as one judge sees them: gaps are the chosen answer's value less the rejected one's."""

    ids: Sequence[str]
    length_gaps: Sequence[int]
    score_gaps: Sequence[float]


def page(results: Results, points: Mapping[str, Mapping[str, Points]]) -> str:
    """The whole page; ``points[dataset][judge]`` of the judges that score."""
    sections = [Section(_ABOUT_GRADES, by_grade(results, dataset)) for dataset in results["datasets"]]
    sections += [Section(_ABOUT_CROSS, cross_table(results))]
    for dataset in results["datasets"]:
        if not points.get(dataset):
            continue
        sections.append(Section(_ABOUT_CALIBRATION, calibration(results, dataset)))
        if _with_thresholds(results, dataset):
            sections.append(Section(_ABOUT_THRESHOLDS, thresholds(results, dataset)))
        sections.append(Section(_ABOUT_SCORES, scores(results, dataset)))
        sections.append(Section(_ABOUT_LENGTH, lengths(results, dataset, points[dataset])))
    measured = ", ".join(f"{name} ({one['pairs']:,} pairs)" for name, one in results["datasets"].items())
    text = f"Judges of answers, measured on held-out comparisons: {measured}. Bars are {results['confidence']:.0%} "
    return plots.page("How good the judges are", text + "intervals over prompts.", sections)


def by_grade(results: Results, dataset: str) -> plots.Figure:
    """Accuracy over grades, a series for every judge and one for length."""
    tables = {judge: one["accuracy"] for judge, one in _on(results, dataset).items()}
    tables[LONGER] = results["datasets"][dataset]["longer"]
    graded = next(iter(tables.values()))["grade"]
    values = ["all", *(grade for grade in GRADES if grade in graded)]
    series = [
        Series(judge, values, [merged.get(value) for value in values], [_pairs(merged[value]) for value in values])
        for judge, table in tables.items()
        for merged in ({**table["all"], **table["grade"]},)
    ]
    best, accuracy = _best({judge: table["all"]["all"] for judge, table in tables.items()})
    title = f"On {dataset}, {best} is right most often: {accuracy['estimate']:.0%} of pairs"
    x, y = "how much better the chosen answer is", "share of pairs judged right"
    lowest = min(one["low"] for line in series for one in line.y if isinstance(one, Mapping))
    figure = plots.dots(title, x, y, series, baseline=CHANCE)
    return figure.update_yaxes(range=[min(lowest, CHANCE) - 0.03, 1.03])


def cross_table(results: Results) -> plots.Figure:
    """Judges by datasets."""
    cross = results["cross"]
    best = [
        f"{_best(dict(zip(cross['judges'], column, strict=True)))[0]} on {dataset}"
        for dataset, column in zip(cross["datasets"], zip(*cross["accuracy"], strict=True), strict=True)
    ]
    return plots.heat_map(
        f"Best: {', '.join(best)}",
        "comparisons",
        "judge",
        columns=cross["datasets"],
        rows=cross["judges"],
        values=cross["accuracy"],
        middle=CHANCE,
    )


def calibration(results: Results, dataset: str) -> plots.Figure:
    """How often a judge is right over how sure it is."""
    found = {judge: one["calibration"] for judge, one in _on(results, dataset).items() if one["calibration"]}
    series = [
        Series(
            judge,
            [one["confidence"] for one in table["bins"]],
            [one["accuracy"] for one in table["bins"]],
            [_pairs(one) for one in table["bins"]],
        )
        for judge, table in found.items()
    ]
    least = min(found, key=lambda judge: found[judge]["error"]["estimate"])
    off, by_chance = 100 * found[least]["error"]["estimate"], 100 * found[least]["by_chance"]
    title = f"On {dataset}, {least} comes closest to what it claims: {off:.1f} points off, {by_chance:.1f} by chance"
    figure = plots.curves(title, "σ(gap of the scores): how sure it is", "share judged right", series, diagonal=True)
    return figure.update_xaxes(range=[0.48, 1.02]).update_yaxes(range=[0, 1.02])


def thresholds(results: Results, dataset: str) -> plots.Figure:
    """Recall and precision over the threshold below which an answer counts as unsafe."""
    found = _with_thresholds(results, dataset)
    lines = {"unsafe_recall": "unsafe recall", "unsafe_precision": "unsafe precision", "safe_recall": "safe recall"}
    series = {
        judge: [Series(name, table["curve"]["threshold"], table["curve"][line]) for line, name in lines.items()]
        for judge, table in found.items()
    }
    marks = sorted({at["threshold"] for table in found.values() for at in table["at"]})
    told = [
        f"{judge} finds {_percent(table['at'][0]['unsafe_recall'])} of the unsafe answers"
        for judge, table in found.items()
        if table["at"]
    ]
    title = f"On {dataset}, below {next(iter(found.values()))['at'][0]['threshold']:g}, {'; '.join(told)}"
    figure = plots.families(title, "threshold on the probability that an answer is safe", "share", series, marks=marks)
    return figure.update_yaxes(range=[-0.02, 1.02]).update_xaxes(range=[0, 1])


def scores(results: Results, dataset: str) -> plots.Figure:
    """Raw scores of chosen and of rejected answers, a panel for every judge."""
    found = {judge: one["spread"] for judge, one in _on(results, dataset).items() if one["spread"]}
    panels = [
        Histogram(judge, one["histogram"]["edges"], {side: one["histogram"][side] for side in ("chosen", "rejected")})
        for judge, one in found.items()
    ]
    widest = max(found, key=lambda judge: found[judge]["clear_gaps"]["estimate"])
    share = found[widest]["clear_gaps"]["estimate"]
    title = f"On {dataset}, {widest} separates most clearly: {share:.0%} of its gaps are beyond 2"
    return plots.histograms(title, "raw score", "answers", panels)


def lengths(results: Results, dataset: str, points: Mapping[str, Points]) -> plots.Figure:
    """Gaps of scores over gaps of length, a panel for every judge; what lies above 0 is judged right."""
    found = {judge: _on(results, dataset)[judge]["length"]["gap"]["spearman"] for judge in points}
    panels = [
        Series(f"{judge}: ρ = {_number(found[judge])}", some.length_gaps, some.score_gaps, some.ids)
        for judge, some in points.items()
    ]
    known = {judge: one for judge, one in found.items() if one is not None}
    follows = max(known, key=lambda judge: abs(known[judge]["estimate"]), default=None)
    told = (
        "no judge follows length"
        if follows is None
        else f"{follows} follows length most: ρ = {_number(known[follows])}"
    )
    return plots.clouds(f"On {dataset}, {told}", "chosen less rejected, characters", "gap of raw scores", panels)


_ABOUT_GRADES = (
    "Every judge was asked which of two answers is better; equal scores are half right. The dashed line is what "
    "guessing gives, “(the longer answer)” what preferring the longer one gives."
)
_ABOUT_CROSS = (
    "Accuracy of each judge on each set of comparisons, ± half of the interval. Blue is better than guessing."
)
_ABOUT_CALIBRATION = (
    "On the dashed line a judge is right as often as σ(gap) says. Below it, the judge claims more than it knows, as "
    "training with margins makes it. Its gaps are read in nats: scores of another unit cannot lie on the line. “By "
    "chance” is how far off a perfectly calibrated judge would be on as many pairs."
)
_ABOUT_THRESHOLDS = (
    "Answers whose probability is below the threshold count as unsafe. Recall: of the unsafe answers, how many are "
    "found; precision: of those found, how many are unsafe; safe recall: of the safe ones, how many are left alone."
)
_ABOUT_SCORES = "Raw scores of all answers. Margins push the two sides apart, towards a binary split."
_ABOUT_LENGTH = (
    "Each point is a pair. Above the horizontal line it is judged right. A slope says that the judge's preference "
    "grows with length. Of a large dataset only the first pairs are drawn; ρ is Spearman's, over all of them."
)


def _on(results: Results, dataset: str) -> dict[str, Any]:
    return {judge: measures[dataset] for judge, measures in results["measures"].items()}


def _with_thresholds(results: Results, dataset: str) -> dict[str, Any]:
    return {judge: one["thresholds"] for judge, one in _on(results, dataset).items() if one["thresholds"]}


def _best(estimates: Mapping[str, Mapping[str, Any]]) -> tuple[str, Mapping[str, Any]]:
    name = max(estimates, key=lambda name: estimates[name]["estimate"])
    return name, estimates[name]


def _pairs(one: Mapping[str, Any]) -> str:
    return f"{one['count']:,} pairs"


def _percent(one: Mapping[str, Any] | None) -> str:
    return "none" if one is None else f"{one['estimate']:.0%}"


def _number(one: Mapping[str, Any] | None) -> str:
    return "undefined" if one is None else f"{one['estimate']:+.2f}"
