"""Tables, figures and the report's section on losses: every number in its place, and nothing where there is none."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from report_support import HOSTILE, Making

from alignment.reporting import perplexities, perplexity_plots
from alignment.reporting.page import curves, models, report, tables
from alignment.reporting.page.figures import Hues
from alignment.reporting.page.gather import Lineage, gather
from alignment.stages import report as stage


def told(value: float, half: float | None = 0.5, seeds: int = 3) -> dict[str, Any]:
    bounds = {"low": None, "high": None} if half is None else {"low": value - half, "high": value + half}
    return {"estimate": value, **bounds, "seeds": [value - 0.25, value, value + 0.25][:seeds]}


def arm(value: float, **more: Any) -> dict[str, Any]:
    return {"loss": told(value / 10), "perplexity": told(value), "kl": told(0.125), **more}


RESULTS: dict[str, Any] = {
    "confidence": 0.95,
    "split": "test",
    "intervals": "Student's, over 3 seeds",
    "lines": {"scratch": ["scratch tiny", "scratch small"], "distilled": ["distilled tiny"]},
    "parameters": {"scratch small": 345_152, "scratch tiny": 111_136, "distilled tiny": 111_136},
    "datasets": {"books": {"rows": 40, "tokens": 5000}, "wiki": {"rows": 20, "tokens": 2000}},
    "arms": {
        "books": {"scratch small": arm(7.0), "scratch tiny": arm(9.0), "distilled tiny": arm(8.0)},
        "wiki": {"scratch small": arm(17.0), "scratch tiny": arm(19.0), "distilled tiny": arm(18.0)},
    },
    "differences": {
        "books": {"distilled tiny - scratch tiny": told(-0.1, 0.02) | {"verdict": "below"}},
        "wiki": {"distilled tiny - scratch tiny": told(-0.3, 0.4) | {"verdict": "within noise"}},
    },
    "shares": {
        "books": [{"part": "distilled tiny", "whole": "live tiny", "base": "scratch tiny", **told(0.97, 0.01)}],
        "wiki": [
            {"part": "distilled tiny", "whole": "live tiny", "base": "scratch tiny"}
            | dict.fromkeys(("estimate", "low", "high", "seeds"))
        ],
    },
    "teacher": {
        "name": "teacher",
        "parameters": 1_181_824,
        "measures": {
            name: {"loss": told(one / 10, None, 1), "perplexity": told(one, None, 1)}
            for name, one in (("books", 5.0), ("wiki", 15.0))
        },
    },
    "models": {},
}


def without_teacher() -> dict[str, Any]:
    found = copy.deepcopy(RESULTS) | {"teacher": None}
    for arms in found["arms"].values():
        for one in arms.values():
            del one["kl"]
    return found


# ── tables ───────────────────────────────────────────────────────────────────────────────────────


def test_arms_stand_by_size_and_the_teacher_behind_them() -> None:
    sheet = perplexities.arms(RESULTS)
    books = [row for row in sheet.rows if row[2] == "books"]
    assert [row[0] for row in books] == ["scratch tiny", "distilled tiny", "scratch small", "the teacher"]
    assert books[0] == (
        *("scratch tiny", "0.11 M", "books", "9.000 (8.500 … 9.500)", "0.900 (0.400 … 1.400)"),
        *("0.125 (-0.375 … 0.625)", "8.750 9.000 9.250"),
    )
    assert books[-1] == ("the teacher", "1.18 M", "books", "5.000", "0.500", "–", "")
    assert len(sheet.columns) == len(books[0])
    assert set(sheet.numbers) < set(sheet.columns)


def test_without_a_teacher_there_is_no_column_for_it() -> None:
    sheet = perplexities.arms(without_teacher())
    assert not any("KL" in column for column in sheet.columns)
    assert {len(row) for row in sheet.rows} == {len(sheet.columns)}
    assert not [row for row in sheet.rows if row[0] == "the teacher"]


def test_differences_carry_their_sign_and_shares_a_dash_where_there_is_no_gain() -> None:
    books, wiki = perplexities.differences(RESULTS).rows
    assert books[2:] == ("-0.100 (-0.120 … -0.080)", "-0.350 -0.100 +0.150", "below")
    assert wiki[-1] == "within noise"
    kept, none = perplexities.shares(RESULTS).rows
    assert kept[:4] == ("distilled tiny", "live tiny over scratch tiny", "books", "0.970 (0.960 … 0.980)")
    assert none[3:] == ("–", "")


def test_what_is_empty_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    few = RESULTS | {"differences": {"books": {}}, "shares": {"books": []}}
    perplexities.show(few)
    printed = capsys.readouterr().out
    assert "scratch tiny" in printed
    assert "share of a gain" not in printed
    assert "less that of another" not in printed


# ── figures ──────────────────────────────────────────────────────────────────────────────────────


def test_a_panel_for_every_dataset_a_line_for_every_way_and_the_teachers_level() -> None:
    figure = perplexity_plots.by_size(RESULTS)
    scratch = [trace for trace in figure.data if trace.name == "scratch"]
    assert len(scratch) == 2
    assert list(scratch[0].x) == [111_136, 345_152]
    assert list(scratch[0].y) == [9.0, 7.0]
    assert list(scratch[1].y) == [19.0, 17.0]
    assert list(scratch[0].error_y.array) == [0.5, 0.5]
    assert {axis.type for axis in figure.select_xaxes()} == {"log"}
    assert [line.y0 for line in figure.layout.shapes] == [5.0, 15.0]
    assert "distilled tiny - scratch tiny" in figure.layout.title.text
    assert not perplexity_plots.by_size(without_teacher()).layout.shapes


def test_the_page_counts_what_lies_beyond_chance() -> None:
    assert "1 of 2 differences lie below 0" in perplexity_plots.differences(RESULTS).layout.title.text
    page = perplexity_plots.page(RESULTS)
    assert "books (40 rows, 5,000 tokens), wiki (20 rows, 2,000 tokens)" in page
    assert "beside each other" in page
    assert "beside each other" not in perplexity_plots.page(RESULTS | {"differences": {"books": {}}})


# ── the report ───────────────────────────────────────────────────────────────────────────────────


def made(root: Path, results: dict[str, Any]) -> Making:
    making = Making(root / "runs", "distillation")
    making.add("books", "data", "dataset")
    making.add("tiny", "pretrain", "policy", {"data": "books"})
    parents = {"models.0": "tiny", "data.0": "books", "teacher": "tiny"}
    said = {"split": "test", "count": 1000, "confidence": 0.95}
    making.add(
        "losses",
        "perplexity",
        "evaluation",
        parents,
        {"results.json": results},
        settings=said,
        notes={"rows": {"books": 40}, "device": "cpu"},
    )
    return making


@pytest.fixture
def lineage(tmp_path: Path) -> Lineage:
    return gather([made(tmp_path, RESULTS).made["losses"]])


def test_the_report_draws_perplexity_by_size(lineage: Lineage) -> None:
    group = curves.perplexity(lineage, Hues())
    books, wiki = group.panels
    assert (books.title, books.level, wiki.level) == ("books (losses)", 5.0, 15.0)
    scratch, distilled = books.traces
    assert (scratch["x"], scratch["y"]) == (["0.11 M", "0.35 M"], [9.0, 7.0])
    assert (distilled["x"], distilled["bars"]) == (["0.11 M"], [[0.5, 0.5]])
    assert scratch["hue"] != distilled["hue"]


def test_the_report_has_the_tables_and_says_how_it_was_measured(lineage: Lineage) -> None:
    page = report.page(lineage, "title", 0)
    assert page.count("<td>9.000 (8.500 … 9.500)</td>") == 1
    assert "<td>-0.100 (-0.120 … -0.080)</td>" in page
    assert "No perplexity was measured" not in page
    row = next(line for line in tables.protocol(models.measured(lineage), lineage).split("<tr>") if "losses" in line)
    assert "<td>books</td><td>40</td><td>test</td><td>1000</td>" in row
    assert "<td>tiny</td>" in row, "the KL is from the teacher"


def test_without_it_the_report_says_so_and_names_are_no_markup(tmp_path: Path) -> None:
    only = Making(tmp_path / "runs").add("sft", "sft", "policy")
    assert "No perplexity was measured" in report.page(gather([only]), "title", 0)
    hostile = copy.deepcopy(RESULTS)
    hostile["parameters"][HOSTILE] = 1
    hostile["arms"]["books"][HOSTILE] = arm(3.0)
    page = report.page(gather([made(tmp_path / "other", hostile).made["losses"]]), "title", 0)
    assert "<img src=x" not in page


def test_a_report_of_losses_alone_prints_no_empty_ranking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    losses = made(tmp_path, RESULTS).made["losses"]
    tracker = {"wandb": "off", "project": "test", "every": 1, "upload": "none"}
    said = {"artifacts": ["step:losses"], "title": None, "samples": 0, "tracker": tracker}
    stage.run(stage.Settings.parse(said), {"artifacts.0": losses}, tmp_path)
    assert "no model was evaluated" not in capsys.readouterr().out
