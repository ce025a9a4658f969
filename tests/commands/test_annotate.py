"""The command that writes what annotators fill in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pairs_support import artifact_of, pair

from alignment.commands import annotate
from alignment.data import annotations, guidelines, spreadsheet
from alignment.errors import UserError
from alignment.store import Store

PAIRS = [pair("p1"), pair("p2", "Red.", "Blue."), pair("p3", "", "x", why="empty answer")]


def settings(**changes: Any) -> annotate.Settings:
    plain = {"pairs": "latest:pairs", "out": "pairs.csv", "count": None, "seed": 0, "guideline": "helpfulness"}
    return annotate.Settings.parse({**plain, **changes})


def run(folder: Path, out: Path, **changes: Any) -> None:
    inputs = {"pairs": artifact_of(folder / "pairs", PAIRS)}
    annotate.run(settings(out=str(out), **changes), inputs, Store(folder / "runs"))


def test_the_file_the_guideline_and_what_to_type_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "for people" / "pairs.csv"
    run(tmp_path, out)
    assert {row["id"] for _, row in spreadsheet.read_rows(out, annotations.COLUMNS)} == {"p1", "p2"}
    told = (out.parent / "pairs.guideline.txt").read_text()
    assert told.startswith("Which answer helps more?")
    for column in ("preferred", "grade", "a_safe", "b_safe", "comment", "annotator"):
        assert f"\n{column} " in told
    said = capsys.readouterr().out
    assert "2 pairs:" in said
    assert f"judge=null annotations='{out}'" in " ".join(said.split())


def test_what_somebody_may_have_filled_in_is_never_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "pairs.jsonl"
    out.write_text("precious")
    with pytest.raises(UserError, match=r"pairs\.jsonl: is there already"):
        run(tmp_path, out)
    assert out.read_text() == "precious"
    out.unlink()
    (tmp_path / "pairs.guideline.txt").write_text("ours")
    with pytest.raises(UserError, match=r"guideline\.txt: is there already"):
        run(tmp_path, out)
    assert not out.exists()


def test_a_guideline_of_ones_own_comes_with_the_columns(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("Prefer the shorter one.\n")
    run(tmp_path, tmp_path / "pairs.csv", guideline=str(own))
    told = (tmp_path / "pairs.guideline.txt").read_text()
    assert told.startswith("Prefer the shorter one.\n\n")
    assert "significantly" in told


def test_an_unknown_guideline_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"guideline=safty.*\n.*Did you mean 'safety'"):
        run(tmp_path, tmp_path / "pairs.csv", guideline="safty")
    assert not (tmp_path / "pairs.csv").exists()
    assert guidelines.guideline("safety") != guidelines.guideline("helpfulness")


def test_cells_that_a_spreadsheet_would_cut_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = {"pairs": artifact_of(tmp_path / "pairs", [pair("p1", "a" * (spreadsheet.CELL_LIMIT + 1))])}
    for suffix, told in ((".csv", True), (".jsonl", False)):
        annotate.run(settings(out=str(tmp_path / suffix[1:] / f"pairs{suffix}")), inputs, Store(tmp_path))
        assert ("use .jsonl" in capsys.readouterr().out) is told


def test_pairs_without_anything_to_judge_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no pair to judge"):
        annotations.export(tmp_path / "pairs.csv", PAIRS[2:], None)
    assert not (tmp_path / "pairs.csv").exists()


def test_only_pairs_are_exported(tmp_path: Path) -> None:
    other = replace(artifact_of(tmp_path / "pairs", PAIRS), kind="policy")
    with pytest.raises(UserError, match="answers is needed"):
        annotate.run(settings(out=str(tmp_path / "pairs.csv")), {"pairs": other}, Store(tmp_path))
    assert not (tmp_path / "pairs.csv").exists()
