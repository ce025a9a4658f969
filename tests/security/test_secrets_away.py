"""Planted secrets once more: where Slurm is asked to run something, and where rewards come from a server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny_runs
from local_server import LocalServer
from planting import SECRETS, leaks, planted
from running import Running
from stub_slurm import Stub

from alignment import run
from alignment.chat.types import Messages
from alignment.cluster import ledger
from alignment.scoring.scorer import Scores, sigmoid

__all__ = ["planted"]


class Lengths:
    """Longer answers are better."""

    name, absolute = "lengths", False

    def score(self, dialogues: Sequence[Messages]) -> Scores:
        raw = [len(turns[-1].content) / 10 for turns in dialogues]
        return Scores(raw, raw, [sigmoid(value) for value in raw])


def test_a_submission_tells_no_secret(
    planted: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither a command line, which every user of the cluster can read, nor the record of jobs, nor a refusal."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    stub, store = Stub(folder), tmp_path / "store"
    line = ["stage=pipeline", "pipeline=smoke", f"store={store}", "launcher=slurm"]
    monkeypatch.setenv("STUB_REFUSE", "only=[tokenizer]")
    assert run.door(line) == 2
    monkeypatch.delenv("STUB_REFUSE")
    assert run.door(line) == 0
    assert run.door(["stage=status", f"store={store}"]) == 0
    assert len(ledger.read_all(store)) > 10
    calls = [*stub.calls("sbatch"), *stub.calls("squeue"), *stub.calls("sacct")]
    told = capfd.readouterr()
    assert leaks(store, told.out, told.err, *(argument for call in calls for argument in call)) == []


def test_rewards_from_a_server_tell_no_secret(
    planted: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    given, runs = tiny_runs.given(tmp_path / "given"), tmp_path / "runs"
    token = SECRETS["ALIGNMENT_SERVE_TOKEN"]
    with Running(Lengths(), token=token, most_dialogues=64) as server:
        line = tiny_runs.line("rl", given, runs, f"reward.model=remote:{server.address}", "tracker=offline", steps=2)
        monkeypatch.setenv("ALIGNMENT_SERVE_TOKEN", f"{token}-of-yesterday")
        assert run.door(line) == 2
        monkeypatch.setenv("ALIGNMENT_SERVE_TOKEN", token)
        assert run.door(line) == 0
        assert run.door(["stage=show", "target=latest:rl", f"store={runs}"]) == 0
    told = capfd.readouterr()
    assert "a token is needed here" in told.err
    assert list(runs.rglob("*.wandb"))
    assert leaks(tmp_path, told.out, told.err) == []
