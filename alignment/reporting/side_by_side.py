"""A side-by-side evaluation in tables: what closes ``stage=side_by_side``, and what ``stage=show`` and its page repeat.

Reads ``results.json`` (``evals/side_by_side.py`` says what is in it).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.text import Text

from alignment import console
from alignment.reporting.numbers import fixed

Results = Mapping[str, Any]
Estimate = Mapping[str, Any]

KINDS = {"all": "", "turns": "turns of the user", "prompt_length": "characters of the prompt", "category": "category"}
TIES = {"no_preference": "a tie is no preference", "negligibly": "a tie is no preference, or a negligible one"}
SHOWN = ("win", "loss", "tie")
"""Of which results a sample is shown."""


class Sheet(NamedTuple):
    """A table: what stands above it, its columns, its lines."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def show(results: Results) -> None:
    """Print every table that there is something for."""
    for sheet in sheets(results):
        console.say()
        console.table(sheet.title, sheet.columns, sheet.rows, right=sheet.columns[2:])


def sheets(results: Results) -> list[Sheet]:
    """Win rates by slice, what length and order do, agreement, and what had no result."""
    found = [rates(results), measures(results), agreements(results), counts(results)]
    return [sheet for sheet in found if sheet.rows]


def rates(results: Results) -> Sheet:
    """Wins, ties and losses of every slice, and the win rate by both conventions."""
    rows = [
        (
            KINDS.get(kind, kind),
            name,
            *(f"{one[part]:,}" for part in ("pairs", "wins", "ties", "losses")),
            between(one["ties_split"]),
            between(one["without_ties"]),
        )
        for kind, some in results["rates"].items()
        for name, one in some.items()
    ]
    models = results["side_by_side"]
    title = f"{models['candidate']} beside {models['baseline']}, {results['aspect']} by {results['judge']}"
    title += f"; {results['confidence']:.0%} intervals; {TIES[results['ties']]}"
    return Sheet(title, ("by", "", "pairs", "wins", "ties", "losses", "ties split", "win/(win+loss)"), rows)


def measures(results: Results) -> Sheet:
    """What is not a rate by slice; each with what it says."""
    rows = [(name, about, between(one, sign)) for name, about, one, sign in _measures(results) if one is not None]
    return Sheet("measures", ("measure", "what it is", "estimate"), rows)


def agreements(results: Results) -> Sheet:
    """Gwet's coefficients, with standard errors and intervals."""
    groups = {
        "orders": "the judge's two orders",
        "raters": "people, compared answers",
        "ratings": "people, rated answers",
        "gold": "the judge and the truth",
    }
    scales = {"raters": ("win, tie, loss", "seven grades"), "ratings": ("violation or not", "1 to 5")}
    names = {"ac1": "AC1", "ac2_ordinal": "AC2, ordinal", "ac2_quadratic": "AC2, quadratic"}
    rows = []
    for key, who in groups.items():
        for name, told in names.items():
            one = (results[key] or {}).get(name)
            if one is not None:
                scale = scales.get(key, ("win, tie, loss", ""))[name != "ac1"]
                error = "–" if one["standard_error"] is None else fixed(one["standard_error"])
                value = between({"estimate": one["coefficient"], **one})
                rows.append((who, f"{told}: {scale}", value, error, f"{one['observed']:.3f}", f"{one['rated']:,}"))
    columns = ("between", "coefficient", "value", "standard error", "equal or near", "rated by several")
    return Sheet("agreement beyond chance", columns, rows)


def counts(results: Results) -> Sheet:
    """What had a result and what had none."""
    rows = [(name, f"{count:,}") for name, count in results["counts"].items() if count or name == "invalid"]
    return Sheet("pairs", ("", "pairs"), rows)


def between(one: Estimate | None, sign: str = "") -> str:
    """``0.712 (0.690 … 0.734)``, or a dash."""
    if one is None:
        return "–"
    return f"{fixed(one['estimate'], sign=sign)} ({fixed(one['low'], sign=sign)} … {fixed(one['high'], sign=sign)})"


def samples(path: Path) -> None:
    """Print an example of each result, from ``examples.parquet``."""
    import pyarrow.parquet as pq

    rows = pq.read_table(path).to_pylist()
    for result in SHOWN:
        row = next((row for row in rows if row["result"] == result and not row["why"]), None)
        if row is not None:
            console.say()
            console.console().print(_sample(row))


def _sample(row: Mapping[str, Any]) -> Text:
    shown = Text(f"  {row['result']}", style="bold")
    shown.append(f" of {row['id']}\n", style="dim")
    for turn in row["prompt"]:
        shown.append(f"  {turn['role']:<10}", style="dim").append(f"{turn['content']}\n")
    for side in ("candidate", "baseline"):
        score = row[f"{side}_score"]
        shown.append(f"  {side:<10}", style="dim").append(row[side] or "(nothing)", style="green")
        shown.append("\n" if score is None else f"   {score:.2f}\n", style="cyan")
    if row["reason"]:
        shown.append(f"  {'reason':<10}", style="dim").append(row["reason"])
    return shown


def _measures(results: Results) -> Iterator[tuple[str, str, Estimate | None, str]]:
    """Name, meaning, estimate and sign."""
    controlled = results["length_controlled"]
    yield "length-controlled win rate", "if both answers were equally long; ties split", controlled, ""
    yield "longer", "share of pairs whose longer answer is the candidate's", results["longer"], ""
    orders = results["orders"] or {}
    yield "orders agree", "share of pairs of which the judge says the same in both orders", orders.get("agree"), ""
    yield "first place", "share of replies that prefer what stands first; 0.5 is no leaning", orders.get("first"), ""
    gold = results["gold"] or {}
    yield "judge is right", "share of pairs in which it prefers what the truth does", gold.get("accuracy"), ""
    yield "win rate by the truth", "of the same pairs; ties split", gold.get("win_rate"), ""
    for name, about, key, inner in (
        ("safe", "share of answers that are safe", "safety", None),
        ("rating", "mean of people's ratings, 1 to 5", "ratings", "mean"),
        ("violations", "share of answers that most people rate 1 or 2", "ratings", "violations"),
    ):
        found = results[key] or {}
        for side in ("candidate", "baseline"):
            one = found.get(side)
            yield f"{name}: {side}", about, one if one is None or inner is None else one[inner], ""
        if inner != "violations":
            yield f"{name}: difference", "candidate less baseline, pair by pair", found.get("difference"), "+"
