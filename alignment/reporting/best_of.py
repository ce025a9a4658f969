"""Rejection sampling on the terminal: the tables that close ``stage=reject``.

Reads ``results.json`` (``evals/best_of.py`` says what is in it); ± is half of an interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignment import console
from alignment.reporting.numbers import brief, fixed

Results = Mapping[str, Any]


def show(results: Results) -> None:
    """Print every table that there is something for."""
    temperatures(results)
    by_number(results)
    by_tag(results)
    iterations(results)
    if results["equal_answers"] or results["constant_scores"]:
        console.say(
            f"to {results['equal_answers']:.1%} of the prompts all answers were the same, to "
            f"{results['constant_scores']:.1%} all scores: their first answer stands for the best",
            style="dim",
        )


def temperatures(results: Results) -> None:
    """What every temperature gave on the prompts on which it was chosen."""
    if not results["tuning"]:
        return
    gold = "gold" in results["tuning"][0]
    rows = [
        (
            f"{one['temperature']:g}{' ← taken' if one['temperature'] == results['temperature'] else ''}",
            brief(one["maximum"][-1]),
            brief(one["median"][-1]),
            *([brief(one["gold"][-1])] if gold else []),
            f"{one['sound']:.1%}",
            f"{one['tokens']:.1f}",
        )
        for one in results["tuning"]
    ]
    columns = (f"best of {results['samples']}", "median", *(["gold of the best"] if gold else []), "sound", "tokens")
    console.say()
    title = f"temperature, on the first {results['tuning'][0]['prompts']:,} prompts"
    console.table(title, ("temperature", *columns), rows, right=columns)


def by_number(results: Results) -> None:
    """Maximum and median by the number of answers."""
    curves = results["curves"]
    names = {"maximum": "best of them", "median": "median", "gold": "gold of the best"}
    columns = {name: told for name, told in names.items() if name in curves}
    rows = [(f"{size:,}", *(brief(curves[name][size - 1]) for name in columns)) for size in sizes(results["samples"])]
    title = (
        f"the reward of {results['prompts']:,} prompts by the number of answers, at temperature "
        f"{results['temperature']:g}, ± half of the {results['confidence']:.0%} interval"
    )
    console.say()
    console.table(title, ("answers", *columns.values()), rows, right=("answers", *columns.values()))


def by_tag(results: Results) -> None:
    """One answer and the best of all, by the prompts' tags."""
    tags = results["tags"]
    every = next(iter(tags.values()))
    gold = ("gold_one", "gold_best") if "gold_one" in every else ()
    rows = [
        (
            tag,
            f"{one['prompts']:,}",
            f"{one['rows']:,}",
            _share(one["rows"], every["rows"]),
            *(brief(one[name], groups=one["prompts"]) for name in ("one", "best", *gold)),
        )
        for tag, one in tags.items()
    ]
    best = f"best of {results['samples']}"
    columns = ("prompts", "rows", "share", "one answer", best, *(["its gold", f"gold of the {best}"] if gold else []))
    console.say()
    console.table("by tag", ("", *columns), rows, right=columns)


def iterations(results: Results) -> None:
    """What each iteration of a pool brought."""
    pool = results["pool"]
    if len(pool) < 2:
        return
    total = sum(one["rows"] for one in pool)
    rows = [
        (one["iteration"], one["name"], f"{one['stood']:,}", f"{one['rows']:,}", _share(one["rows"], total))
        for one in pool
    ]
    console.say()
    columns = ("prompts", "rows", "share")
    console.table("the pool", ("iteration", "", *columns), rows, right=columns)
    for name, gain in results["gain"]["measures"].items():
        console.say(
            f"mean {name} of the {results['gain']['prompts']:,} prompts to which this iteration has a row as well: "
            f"{fixed(gain['alone'])} of its own, {fixed(gain['pool'])} of the pool's, "
            f"{brief(gain['difference'], '+', groups=results['gain']['prompts'])}",
            style="",
        )


def sizes(samples: int) -> Sequence[int]:
    """1, 2, 4 … and all."""
    doubled = [1 << power for power in range(samples.bit_length())]
    return [*(size for size in doubled if size < samples), samples]


def _share(some: int, every: int) -> str:
    return f"{some / every:.1%}" if every else "–"
