"""A measurement of judges on the terminal: the tables that close ``stage=measure``, and that ``stage=show`` repeats.

Reads ``results.json`` (``stages/measure.py`` says what is in it); ± is half of an interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignment import console
from alignment.data.grades import GRADES

LONGER = "(the longer answer)"
"""Stands for a judge that knows nothing but length."""

Results = Mapping[str, Any]


def show(results: Results) -> None:
    """Print every table that there is something for."""
    by_grade(results)
    cross_table(results)
    scores(results)
    arms(results)


def by_grade(results: Results) -> None:
    """Accuracy by grade, for every judge on every dataset, and what length alone would give."""
    rows = [
        (judge, dataset, *_accuracies(one["accuracy"]))
        for judge, measures in results["measures"].items()
        for dataset, one in measures.items()
    ]
    rows += [(LONGER, dataset, *_accuracies(one["longer"])) for dataset, one in results["datasets"].items()]
    console.say()
    console.table(
        f"accuracy by grade, ± half of the {results['confidence']:.0%} interval",
        ("judge", "on", "all", *GRADES),
        rows,
        right=("all", *GRADES),
    )


def cross_table(results: Results) -> None:
    """Accuracy of every judge on every dataset, where there are several of both."""
    cross = results["cross"]
    if len(cross["judges"]) < 2 or len(cross["datasets"]) < 2:
        return
    rows = [(judge, *map(_brief, row)) for judge, row in zip(cross["judges"], cross["accuracy"], strict=True)]
    console.say()
    console.table("accuracy: judges by what they judge", ("judge", *cross["datasets"]), rows, right=cross["datasets"])


def scores(results: Results) -> None:
    """Calibration, length, spread and thresholds of judges that score; why thresholds are not there."""
    limits = sorted({at["threshold"] for one in _all(results) for at in (one["thresholds"] or {"at": []})["at"]})
    heads = tuple(f"unsafe < {limit:g}" for limit in limits)
    columns = ("off by", "gaps > 2", "score~length", "gap~length", *heads)
    rows = [
        (judge, dataset, *_about_scores(one), *(_rule(one["thresholds"], limit) for limit in limits))
        for judge, measures in results["measures"].items()
        for dataset, one in measures.items()
        if one["spread"] is not None
    ]
    if not rows:
        return
    console.say()
    console.table("scores", ("judge", "on", *columns), rows, right=columns)
    console.say(
        "off by: expected calibration error (that of perfect calibration on as many pairs); gaps are of raw scores; "
        "~: Spearman's correlation",
        style="dim",
    )
    if limits:
        console.say(
            "unsafe < t: recall and precision for unsafe answers, recall for safe ones; results.json has all intervals",
            style="dim",
        )
    for why in dict.fromkeys(judge["no_thresholds"] for judge in results["judges"].values() if judge["no_thresholds"]):
        without = [name for name, judge in results["judges"].items() if judge["no_thresholds"] == why]
        console.say(f"no thresholds for {', '.join(without)}: {why}", style="dim")


def arms(results: Results) -> None:
    """The mean over the seeds of every arm and its difference to the first, where an arm has several seeds."""
    compared = results["arms"]
    if not any(len(arm["seeds"]) > 1 for table in compared.values() for arm in table.values()):
        return
    rows = [
        (name, dataset, _brief(arm["accuracy"]["all"]), _listed(arm["seeds"]), *_difference(arm["difference"]))
        for dataset, table in compared.items()
        for name, arm in table.items()
    ]
    first = next(iter(next(iter(compared.values()))))
    columns = ("arm", "on", "all", "each seed", f"less {first}", "each seed's difference")
    console.say()
    console.table("arms: means over seeds, differences by seed and prompt", columns, rows, right=("all", columns[4]))


def _all(results: Results) -> list[Mapping[str, Any]]:
    return [one for measures in results["measures"].values() for one in measures.values()]


def _accuracies(table: Mapping[str, Any]) -> list[str]:
    return [_brief(table["all"]["all"]), *(_brief(table["grade"].get(grade)) for grade in GRADES)]


def _about_scores(one: Mapping[str, Any]) -> list[str]:
    off, by_chance = one["calibration"]["error"]["estimate"], one["calibration"]["by_chance"]
    values = (
        one["spread"]["clear_gaps"],
        one["length"]["score"]["spearman"],
        one["length"]["gap"]["spearman"],
    )
    rest = ["–" if value is None else f"{value['estimate']:.3f}" for value in values]
    return [f"{off:.3f} ({by_chance:.3f})", *rest]


def _rule(thresholds: Mapping[str, Any] | None, limit: float) -> str:
    """``0.90/0.55/0.97``: unsafe recall, unsafe precision, safe recall."""
    at = next((at for at in thresholds["at"] if at["threshold"] == limit), None) if thresholds else None
    if at is None:
        return "–"
    values = (at[name] for name in ("unsafe_recall", "unsafe_precision", "safe_recall"))
    return "/".join("–" if value is None else f"{value['estimate']:.2f}" for value in values)


def _difference(one: Mapping[str, Any] | None) -> tuple[str, str]:
    if one is None:
        return "", ""
    return _brief(one["accuracy"]["all"], "+.3f"), "–" if one["seeds"] is None else _listed(one["seeds"], "+.3f")


def _listed(values: Sequence[float], form: str = ".3f") -> str:
    return " ".join(f"{value:{form}}" for value in values)


def _brief(one: Mapping[str, Any] | None, form: str = ".3f") -> str:
    """``0.712 ±0.020``, or a dash where nothing was measured."""
    if one is None:
        return "–"
    return f"{one['estimate']:{form}} ±{(one['high'] - one['low']) / 2:.3f}"
