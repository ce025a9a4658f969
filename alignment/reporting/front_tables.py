"""KL–reward fronts on the terminal: the tables that close ``stage=front``.

Reads ``fronts.json`` (``stages/front.py`` says what is in it); ± is half of an interval, and missing where nothing
tells it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignment import console

Results = Mapping[str, Any]

ORIGINS = {"runs": "looks of runs", "evaluations": "evaluated models"}


def show(results: Results) -> None:
    """Print every table that there is something for, and what the stopping rules say."""
    console.say()
    for origin, over in results["intervals"].items():
        worst = results["worst"][origin]
        told = ", ".join(f"{score} {value:.3f}" for score, value in worst["scores"].items())
        console.say(
            f"{ORIGINS[origin]}: {results['confidence']:.0%} intervals: {over}; hypervolume against KL "
            f"{worst['kl']:.3f}, {told}",
            style="dim",
        )
    _lines(results)
    _matched(results)
    _curvature(results)
    _claims(results)
    _rules(results)


def _lines(results: Results) -> None:
    scores = results["scores"]
    rows = []
    for name, line in results["lines"].items():
        cells = []
        for score in scores:
            scored = [point for point in line["points"] if score in point["scores"]]
            best = max(scored, key=lambda point: point["scores"][score], default=None)
            cells += [
                "–" if best is None else f"{best['scores'][score]:.3f} at {best['kl']:.2f}",
                brief(results["hypervolume"][score].get(name)),
            ]
        reach = max(point["kl"] for point in line["points"])
        rows.append((name, line["seeds"], len(line["points"]), f"{reach:.2f}", *cells))
    columns = (
        "line",
        "seeds",
        "points",
        "KL to",
        *(f"{what} {score}" for score in scores for what in ("best", "area")),
    )
    console.say()
    console.table("lines: the best point at its KL, and the area it dominates", columns, rows, right=columns[1:])


def _matched(results: Results) -> None:
    """At the first, the middle and the last KL; the file has all."""
    rows = []
    for score in results["scores"]:
        for pair, found in results["matched"][score].items():
            if found:
                shown = [found[place] for place in sorted({0, len(found) // 2, len(found) - 1})]
                cells = [f"{brief(one, '+')} at {one['kl']:.2f}" for one in shown]
                rows.append((pair, score, *cells, *[""] * (3 - len(cells)), _counted(found)))
            else:
                rows.append((pair, score, "no KL that both reach", "", "", ""))
    if rows:
        console.say()
        console.table("one line less another, at equal KL", ("lines", "score", "", "", "", ""), rows)


def _counted(found: Sequence[Mapping[str, Any]]) -> str:
    verdicts = [one["verdict"] for one in found]
    if "unknown" in verdicts:
        return f"higher {sum(one['estimate'] > 0 for one in found)}/{len(found)}"
    return f"above {verdicts.count('above')}/{len(found)}, below {verdicts.count('below')}/{len(found)}"


def _curvature(results: Results) -> None:
    rows, told = [], set()
    for score in results["scores"]:
        for line, found in results["curvature"][score].items():
            for what, one in ((score, found["score"]), ("KL", found["kl"])):
                if (line, what) not in told:
                    told.add((line, what))
                    rows.append((line, what, brief(one["bulge"], "+"), one["shape"]))
    if rows:
        console.say()
        console.table(
            "along η: mean height above the chord from start to end",
            ("line", "of", "height", ""),
            rows,
            right=("height",),
        )


def _claims(results: Results) -> None:
    rows = [
        (one["model"], ", ".join(one["than"]), score, brief(one, "+"), brief(one["kl"], "+"), one["verdict"])
        for score in results["scores"]
        for one in results["claims"][score]
    ]
    if rows:
        console.say()
        columns = ("model", "less the best of", "score", "difference", "KL", "")
        console.table("models by themselves", columns, rows, right=("difference", "KL"))


def _rules(results: Results) -> None:
    rules = results["rules"]
    if rules["kl_bound"] is not None:
        ends = [f"{line} at {label}" for line, label in rules["stops"].items() if label]
        console.say()
        console.say(f"beyond KL {rules['kl_bound']:g}: {'; '.join(ends) or 'no line'}", style="")
    iterations = rules["iterations"]
    for score, count in rules["worth"].items():
        gains = ", ".join(brief(results["hypervolume_differences"][score][name], "+") for name in rules["gains"])
        enough = "all improve" if count == len(iterations) else f"{iterations[count]} does not beyond chance"
        console.say(f"iterations by {score}: area gained {gains}; {enough}", style="")


def brief(one: Mapping[str, Any] | None, sign: str = "") -> str:
    """``0.712 ±0.020``; without ± where there is no interval, a dash where nothing was measured."""
    if one is None:
        return "–"
    half = "" if one["low"] is None else f" ±{(one['high'] - one['low']) / 2:.3f}"
    return f"{one['estimate']:{sign}.3f}{half}"
