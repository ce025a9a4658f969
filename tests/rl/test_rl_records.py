"""What a run leaves for people, and takes back when it goes on from an earlier step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.rl import records
from alignment.rl.control import Point
from alignment.rl.records import Records
from alignment.training.tracking import Tracker, TrackerSettings, read_metrics


def fresh(out: Path, every: int = 1) -> Records:
    return Records(Tracker(TrackerSettings(wandb="off", project="test", every=every, upload="none"), out, {}), out)


def said(step: int, count: int = 2, answer: str = "Grüß Gott\n…") -> list[dict[str, Any]]:
    return [{"step": step, "prompt": f"{place}?", "answer": answer, "reward": 0.5} for place in range(count)]


def tell(some: Records, *steps: int) -> None:
    for step in steps:
        some.point(Point(step, 0.1 * step, 1 / 3, {"truth": -2.5}), said(step))
        some.step(step, {"score/mean": float(step)})


def test_points_and_samples_are_told_as_they_come(tmp_path: Path) -> None:
    tell(fresh(tmp_path), 0, 10)
    front = records.read(tmp_path / records.FRONT)
    assert front == [
        {"step": 0, "kl": 0.0, "reward": 1 / 3, "others": {"truth": -2.5}},
        {"step": 10, "kl": 1.0, "reward": 1 / 3, "others": {"truth": -2.5}},
    ]
    assert records.read(tmp_path / records.SAMPLES) == said(0) + said(10)
    held_out = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "held_out/reward" in row]
    assert held_out[1] == {"step": 10, "held_out/kl": 1.0, "held_out/reward": 1 / 3, "held_out/truth": -2.5}


def test_of_many_held_out_prompts_the_first_are_shown(tmp_path: Path) -> None:
    fresh(tmp_path).point(Point(0, 0.0, 0.0, {}), said(0, 100))
    assert records.read(tmp_path / records.SAMPLES) == said(0, records.SHOWN)


def test_every_step_is_told_however_seldom_the_tracker_wants_rows(tmp_path: Path) -> None:
    """A step is a whole batch of answers: a spike in one of ten is not to be missed."""
    some = fresh(tmp_path, 10)
    for step in range(1, 6):
        some.step(step, {"score/mean": 0.0})
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("step", "left"), [(-1, []), (0, [0]), (10, [0, 10]), (15, [0, 10]), (20, [0, 10, 20])])
def test_a_run_that_goes_on_takes_back_what_lies_past_its_step(tmp_path: Path, step: int, left: list[int]) -> None:
    tell(fresh(tmp_path), 0, 10, 20)
    before = {name: (tmp_path / name).read_bytes() for name in (records.FRONT, records.SAMPLES)}
    fresh(tmp_path).rewind(step)
    for name in before:
        found = records.read(tmp_path / name)
        assert list(dict.fromkeys(row["step"] for row in found)) == left
        assert before[name].startswith((tmp_path / name).read_bytes()), "what stays keeps its bytes"
    assert list(dict.fromkeys(row["step"] for row in read_metrics(tmp_path / "metrics.jsonl"))) == left


@pytest.mark.parametrize("cut", [2, 7, 30])
def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path: Path, cut: int) -> None:
    tell(fresh(tmp_path), 0, 10)
    for name in (records.FRONT, records.SAMPLES):
        path = tmp_path / name
        whole = records.read(path)
        path.write_bytes(path.read_bytes()[:-cut])
        assert records.read(path) == whole[:-1]
    some = fresh(tmp_path)
    some.rewind(10)
    tell(some, 20)
    for name in (records.FRONT, records.SAMPLES):
        lines = (tmp_path / name).read_text(encoding="utf-8").split("\n")
        assert [json.loads(line)["step"] for line in lines[:-1]][-1] == 20


def test_a_last_line_without_its_end_is_whole(tmp_path: Path) -> None:
    tell(fresh(tmp_path), 0)
    path = tmp_path / records.FRONT
    path.write_bytes(path.read_bytes()[:-1])
    some = fresh(tmp_path)
    some.rewind(0)
    tell(some, 10)
    assert [row["step"] for row in records.read(path)] == [0, 10]


@pytest.mark.parametrize("end", ["\x85", "\u2028", "\u2029"])
def test_what_a_policy_says_may_hold_any_end_of_a_line(tmp_path: Path, end: str) -> None:
    """A tokenizer of bytes can spell them, and JSON does not escape them: no row behind one is lost."""
    some = fresh(tmp_path)
    rows = said(0, answer=f"One{end}two")
    some.point(Point(0, 0.0, 0.0, {}), rows)
    some.rewind(0)
    assert records.read(tmp_path / records.SAMPLES) == rows


def test_nothing_is_told_by_the_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    tell(fresh(tmp_path), 0)
    assert not list(tmp_path.iterdir())


def test_there_may_be_nothing_to_take_back(tmp_path: Path) -> None:
    fresh(tmp_path).rewind(-1)
    assert records.read(tmp_path / records.FRONT) == []
