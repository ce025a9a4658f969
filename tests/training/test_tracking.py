"""Metrics: one row a call, none twice after a resume, and W&B without a question."""

from __future__ import annotations

import math
from pathlib import Path

from alignment.training.tracking import Tracker, TrackerSettings, read_metrics

OFF = TrackerSettings(wandb="off", project="test", every=1, upload="none")


def test_rows_past_the_checkpoint_are_taken_back(tmp_path: Path) -> None:
    tracker = Tracker(OFF, tmp_path, {})
    for step in (0, 10, 20, 30):
        tracker.log(step, {"loss": float(step)})
    again = Tracker(OFF, tmp_path, {})
    again.rewind(20)
    again.log(30, {"loss": 31.0})
    assert [(row["step"], row["loss"]) for row in read_metrics(again.path)] == [(0, 0), (10, 10), (20, 20), (30, 31)]


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    tracker = Tracker(OFF, tmp_path, {})
    tracker.log(1, {"loss": 1.0})
    with open(tracker.path, "a") as file:
        file.write('{"step": 2, "lo')
    assert [row["step"] for row in read_metrics(tracker.path)] == [1]
    tracker.rewind(2)
    tracker.log(2, {"loss": 2.0})
    assert [row["step"] for row in read_metrics(tracker.path)] == [1, 2]


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    tracker = Tracker(OFF, tmp_path, {})
    tracker.log(1, {"loss": math.nan, "grad_norm": math.inf, "rate": 0.5})
    assert read_metrics(tracker.path) == [{"step": 1, "loss": None, "grad_norm": None, "rate": 0.5}]


def test_a_resumed_stage_continues_the_same_wandb_run(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Nobody is asked, and there is one run with one file, however often it was started."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    out = tmp_path / "mini" / "sft-12345678"
    out.mkdir(parents=True)
    auto = TrackerSettings(wandb="auto", project="test", every=1, upload="none")
    for first in (1, 2):
        tracker = Tracker(auto, out, {"seed": 0})
        tracker.log(first, {"loss": 1.0})
        tracker.finish({"loss": 1.0})
    # The folder's name is not the run's: two starts within a second get "-1" appended to it.
    recorded = [path.name for path in (out / "wandb").glob("offline-run-*/run-*.wandb")]
    assert recorded == ["run-mini-sft-12345678.wandb"]
