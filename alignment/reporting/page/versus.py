"""A side-by-side evaluation as one page without a network, and its win rates as a figure of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignment.reporting import side_by_side
from alignment.reporting.llm_comparator import label
from alignment.reporting.page import document, figures
from alignment.reporting.page.document import Section
from alignment.reporting.page.figures import Group, Hues, Panel, trace
from alignment.reporting.page.gather import Lineage
from alignment.reporting.page.models import RESULTS
from alignment.reporting.page.tables import table
from alignment.reporting.plots import plain

Row = Mapping[str, Any]
Results = Mapping[str, Any]

SCRIPTS = ("page.js", "figures.js", "versus.js")
MOST = 2_000
"""Examples on the page; ``examples.parquet`` has all."""
EVEN = 0.5
CONVENTIONS = {"ties_split": "ties split", "without_ties": "win/(win+loss)"}
SHORT = {"turns": "turns: {}", "prompt_length": "prompt: {}"}
ABOUT = (
    "The share of pairs that the candidate wins, by turns of the user, by characters of the prompt, and by category; "
    "on the dashed line neither is better. Ties count half, or not at all: a number that needs one of the two "
    "conventions to look good says little."
)


def page(rows: Sequence[Row], results: Results) -> str:
    """The whole page, from rows of ``examples.parquet`` and ``results.json``."""
    there = [row for row in rows if row["result"] != "again"]
    models, whole = results["side_by_side"], results["rates"]["all"]["all"]
    rates = Group("Win rates", ABOUT, [_panel("", results, Hues())])
    sections = [
        Section("rates", "win rates", rates.title, rates.text, '<div class="figures" id="figures-rates"></div>'),
        Section("numbers", "numbers", "In numbers", "", _tables(results)),
        Section("examples", "answers", "What they said", _about(len(there)), _CONTROLS),
    ]
    values = {
        "drawn": {"rates": figures.group(rates)},
        "examples": {"names": models, "rows": [_example(row) for row in there[:MOST]]},
    }
    lead = (
        f"{models['candidate']} wins {whole['wins']:,} of {whole['pairs']:,} pairs, ties {whole['ties']:,} and loses "
    )
    lead += f"{whole['losses']:,}: {side_by_side.between(whole['ties_split'])} with ties split, by {results['judge']}."
    title = f"{models['candidate']} beside {models['baseline']}: {results['aspect']}"
    return document.render(title, lead, sections, values, SCRIPTS)


def group(lineage: Lineage) -> Group:
    """The win rates of every side-by-side evaluation of a lineage."""
    hues, panels = Hues(), []
    for node in lineage.of_stage("side_by_side"):
        results = node.json(RESULTS)
        if results is not None:
            models = results["side_by_side"]
            title = f"{models['candidate']} beside {models['baseline']}: {results['aspect']} by {results['judge']}"
            panels.append(_panel(f"{title} ({lineage.name(node.fingerprint)})", results, hues))
    return Group("Side by side", ABOUT, panels)


def _panel(title: str, results: Results, hues: Hues) -> Panel:
    """Both conventions beside each other, slice by slice."""
    slices = [
        ("all" if kind == "all" else SHORT.get(kind, "{}").format(name), one)
        for kind, some in results["rates"].items()
        for name, one in some.items()
    ]
    names = [name for name, _ in slices]
    told = [f"{one['wins']:,} wins, {one['ties']:,} ties, {one['losses']:,} losses" for _, one in slices]
    traces = [
        trace(name, names, [one[key] for _, one in slices], hues.look(name), told=told, mode="markers")
        for key, name in CONVENTIONS.items()
    ]
    return Panel(title, "", traces, named=True, level=EVEN)


def _tables(results: Results) -> str:
    return "".join(
        f"<h3>{plain(sheet.title)}</h3>{table(sheet.columns, sheet.rows)}" for sheet in side_by_side.sheets(results)
    )


def _about(count: int) -> str:
    first = f" These are the first {MOST:,} of {count:,} pairs." if count > MOST else ""
    return f"Both answers to each prompt, and what was said of them.{first}"


def _example(row: Row) -> dict[str, Any]:
    return {
        "turns": [[turn["role"], turn["content"]] for turn in row["prompt"]],
        "tags": [*filter(None, [row["category"], row["attack"]]), *row["tags"]],
        "result": row["result"],
        "why": row["why"],
        "grade": row["grade"] or "",
        **{side: {"text": row[side], "scores": _scores(row, side)} for side in ("candidate", "baseline")},
        "voices": [*map(_voice, row["voices"])]
        or ([["reason", row["result"], row["reason"]]] if row["reason"] else []),
    }


def _scores(row: Row, side: str) -> list[list[Any]]:
    found = [[name, row[f"{side}_{key}"]] for name, key in (("score", "score"), ("gold", "gold"))]
    told = [[name, round(value, 3)] for name, value in found if value is not None]
    safe = row[f"{side}_safe"]
    told += [] if safe is None else [["safe", "yes" if safe else "no"]]
    return told if row[f"{side}_finished"] else [*told, ["did not", "end"]]


def _voice(said: Row) -> list[str]:
    """Who, what, why."""
    words = "cannot be read" if said["score"] is None else label(said["score"])
    told = words.replace("A is", "candidate").replace("B is", "baseline")
    ratings = (said["candidate_rating"], said["baseline_rating"])
    if None not in ratings:
        told += f", {ratings[0]} and {ratings[1]} of 5"
    shown = ", candidate shown second" if said["turned"] else ""
    return [f"{said['who'] or 'rater'}{shown}", told, said["reason"]]


_CONTROLS = (
    '<div class="controls"><label>Result <select id="result"></select></label>'
    '<label>Tag <select id="tag"></select></label>'
    '<label>Search <input id="search" type="search" autocomplete="off"></label>'
    '<output id="found" aria-live="polite"></output></div><div id="said"></div>'
    '<button type="button" id="more" hidden>Show more</button>'
)
