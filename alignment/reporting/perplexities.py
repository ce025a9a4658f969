"""Losses of models on held-out rows, on the terminal: the tables that close ``stage=perplexity``.

Reads ``results.json`` (``stages/perplexity.py`` says what is in it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from alignment import console
from alignment.reporting.numbers import fixed

Results = Mapping[str, Any]

MILLION = 1e6


class Sheet(NamedTuple):
    """A table: what stands above it, its columns, its lines, and which of the columns hold numbers."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    numbers: tuple[str, ...]


def show(results: Results) -> None:
    """Print every table that there is something for."""
    for sheet in (arms(results), differences(results), shares(results)):
        if sheet.rows:
            console.say()
            console.table(
                sheet.title, sheet.columns, sheet.rows, right=sheet.numbers, whole=[sheet.columns[0], *sheet.numbers]
            )


def arms(results: Results) -> Sheet:
    """Every arm on every dataset, smaller ones first, and the teacher last."""
    teacher, sizes = results["teacher"], results["parameters"]
    rows: list[tuple[str, ...]] = []
    for dataset, found in results["arms"].items():
        rows += [
            (arm, millions(sizes[arm]), dataset, *_measures(found[arm], teacher))
            for arm in sorted(found, key=lambda arm: sizes[arm])
        ]
        if teacher is not None:
            told = _measures(teacher["measures"][dataset], teacher)
            rows.append(("the teacher", millions(teacher["parameters"]), dataset, *told))
    numbers = ("parameters", "perplexity", "nats a token", *(("KL from the teacher",) if teacher is not None else ()))
    title = f"held-out rows ({results['split']}), {results['confidence']:.0%} intervals: {results['intervals']}"
    return Sheet(title, ("arm", "parameters", "on", *numbers[1:], "each seed's perplexity"), rows, numbers)


def differences(results: Results) -> Sheet:
    """The loss of one arm less that of another, seed by seed."""
    rows = [
        (pair, dataset, between(one, "+"), _listed(one["seeds"], "+"), one["verdict"])
        for dataset, found in results["differences"].items()
        for pair, one in found.items()
    ]
    title = "the loss of one arm less that of another, nats a token"
    return Sheet(title, ("arms", "on", "difference", "each seed's", "0 is"), rows, ("difference",))


def shares(results: Results) -> Sheet:
    """What share of a gain another arm keeps."""
    rows = [
        (one["part"], f"{one['whole']} over {one['base']}", dataset, between(one), _listed(one["seeds"]))
        for dataset, found in results["shares"].items()
        for one in found
    ]
    title = "the share of a gain that another arm keeps"
    return Sheet(title, ("arm", "of the gain of", "on", "share", "each seed's"), rows, ("share",))


def millions(parameters: int) -> str:
    """``0.11 M``."""
    return f"{parameters / MILLION:.2f} M"


def between(one: Mapping[str, Any], sign: str = "") -> str:
    """``0.712 (0.690 … 0.734)``; without bounds the estimate alone, and a dash where there is none."""
    if one["estimate"] is None:
        return "–"
    estimate = _number(one["estimate"], sign)
    if one["low"] is None:
        return estimate
    return f"{estimate} ({_number(one['low'], sign)} … {_number(one['high'], sign)})"


def _number(value: float, sign: str = "") -> str:
    """Three places; two and one where it is large."""
    return fixed(value, 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1, sign)


def _measures(told: Mapping[str, Any], teacher: Mapping[str, Any] | None) -> list[str]:
    perplexity, kl = told["perplexity"], told.get("kl")
    cells = [between(perplexity), between(told["loss"])]
    if teacher is not None:
        cells.append("–" if kl is None else between(kl))
    return [*cells, _listed(perplexity["seeds"]) if len(perplexity["seeds"]) > 1 else ""]


def _listed(values: Sequence[float] | None, sign: str = "") -> str:
    return " ".join(_number(value, sign) for value in values or [])
