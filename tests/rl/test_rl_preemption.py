"""Asked to stop, a run ends between two steps or drops what it has drawn, and goes on to the same bits and rows."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rl_support as support
import torch
from rl_support import Made, made

from alignment import signals
from alignment.errors import UserError
from alignment.rl import loop, state
from alignment.rl.held_out import HeldOut
from alignment.rl.learner import Learner
from alignment.sampling.drawer import OwnDrawer
from alignment.training import checkpoints
from alignment.training.tracking import read_metrics

STEPS = 5
KIND = {
    "updating.steps": STEPS,
    "updating.checkpoint_steps": 3,
    "estimating.kind": "reinforce",
    "estimating.baseline": "running",
    "anchoring.kind": "ema",
    "watching.keep": "best",
}
TIMED = ("seconds/", "tokens_per_second/", "episodes_per_second")


def begun(out: Path, **more: Any) -> Made:
    torch.manual_seed(99)
    return made(out, KIND, whiten="running", count=7, **more)


def left(out: Path, run: Made) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """The kept policy, and every row without times."""
    rows = [
        {name: value for name, value in row.items() if not name.startswith(TIMED)}
        for row in read_metrics(out / "metrics.jsonl")
    ]
    return support.weights(run.learner.roles), [rows, (out / "front.jsonl").read_text()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], list[Any]]:
    out = tmp_path_factory.mktemp("undisturbed")
    run = begun(out)
    run.go()
    return left(out, run)


@pytest.fixture
def listening() -> Iterator[None]:
    signals.listen()
    yield
    signals.restore()


def told_in(patched: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> list[int]:
    """USR1 comes in the ``call``-th call, TERM right behind it. Gives a list as long as there were calls."""
    inner, calls = getattr(owner, name), list[int]()

    def instead(*some: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
        return inner(*some, **more)

    patched.setattr(owner, name, instead)
    return calls


@pytest.mark.parametrize(
    ("owner", "name", "call", "kept", "where"),
    [
        (Learner, "update", 2, 2, "after step 2 of 5"),
        # Two steps are done, and neither is in a checkpoint yet.
        (OwnDrawer, "draw", 3, 2, "after step 2; what was drawn since is dropped"),
        (OwnDrawer, "draw", 1, None, "after step 0; what was drawn since is dropped"),
        # While the checkpoint of step 3 is written: the next rollout is dropped, and no checkpoint written again.
        (checkpoints, "commit", 1, 3, "after step 3; what was drawn since is dropped"),
    ],
)
def test_what_is_drawn_is_learned_from_or_dropped_whole(
    owner: Any,
    name: str,
    call: int,
    kept: int | None,
    where: str,
    undisturbed: tuple[dict[str, torch.Tensor], list[Any]],
    tmp_path: Path,
    listening: None,
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        updates, commits = told_in(patched, Learner, "update", 0), told_in(patched, checkpoints, "commit", 0)
        told_in(patched, owner, name, call)
        with pytest.raises(signals.Preempted, match=f"SIGUSR1: stopped {where}"):
            begun(tmp_path).go()
        assert (len(updates), len(commits)) == (kept or 0, min(1, kept or 0))
    need_the_same_after(kept, undisturbed, tmp_path)


def need_the_same_after(kept: int | None, undisturbed: tuple[dict[str, torch.Tensor], list[Any]], out: Path) -> None:
    """The last checkpoint is that of step ``kept``, and started again the run ends as one that nobody stopped."""
    last = checkpoints.last_whole(out / "checkpoints")
    assert (None if last is None else checkpoints.step_of(last)) == kept
    signals.restore()
    run = begun(out)
    run.go()
    weights, rows = left(out, run)
    assert support.same(weights, undisturbed[0])
    assert rows == undisturbed[1]


class Away(support.Letters):
    """A served reward: stopped while it is asked for the ``call``-th time, when its server does not answer."""

    def __init__(self, call: int) -> None:
        self.call = call

    def __call__(self, *some: Any) -> Any:
        self.call -= 1
        if self.call == 0:
            os.kill(os.getpid(), signal.SIGUSR1)
            signals.pause(9.0, "while it did not answer")
        return super().__call__(*some)


@pytest.mark.parametrize(
    ("call", "kept"),
    [(1, None), (4, None), (7, 3), (9, 3)],
    ids=["the look at step 0", "that at step 2", "that at step 4, behind a checkpoint", "the last"],
)
def test_stopped_during_a_look_it_keeps_no_step_that_is_not_told(
    call: int,
    kept: int | None,
    undisturbed: tuple[dict[str, torch.Tensor], list[Any]],
    tmp_path: Path,
    listening: None,
) -> None:
    with pytest.raises(signals.Preempted, match="SIGUSR1: stopped while it did not answer"):
        begun(tmp_path, rule=Away(call)).go()
    need_the_same_after(kept, undisturbed, tmp_path)


@pytest.mark.parametrize(("owner", "name", "call"), [(Learner, "update", STEPS), (checkpoints, "commit", 2)])
def test_when_the_last_step_is_done_nothing_stops_it(
    owner: Any,
    name: str,
    call: int,
    undisturbed: tuple[dict[str, torch.Tensor], list[Any]],
    tmp_path: Path,
    listening: None,
) -> None:
    run = begun(tmp_path)
    with pytest.MonkeyPatch.context() as patched:
        told_in(patched, owner, name, call)
        run.go()
    assert signals.asked() == signal.SIGUSR1
    weights, rows = left(tmp_path, run)
    assert support.same(weights, undisturbed[0])
    assert rows == undisturbed[1]


@pytest.mark.parametrize("damaged", ["trained.safetensors", "best.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_passed_over_with_the_best_policy_that_it_knew(
    damaged: str,
    undisturbed: tuple[dict[str, torch.Tensor], list[Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The run is cut off behind its last checkpoint, of which a byte is then another."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "take_best", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            begun(tmp_path).go()
    path = tmp_path / "checkpoints" / "checkpoint-5" / damaged
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    run = begun(tmp_path)
    run.go()
    assert "checkpoint-5 is passed over" in capsys.readouterr().out.replace("\n", "")
    weights, rows = left(tmp_path, run)
    assert support.same(weights, undisturbed[0])
    assert rows == undisturbed[1]


def test_one_damaged_byte_of_the_best_policy_costs_one_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best is that of step 0, in all checkpoints, whose files are their own."""
    measure = HeldOut.measure

    def falling(self: HeldOut, model: Any, step: int, out: Path) -> Any:
        point, rows = measure(self, model, step, out)
        return replace(point, reward=-float(step)), rows

    monkeypatch.setattr(HeldOut, "measure", falling)
    begun(tmp_path).go()
    newest, before = checkpoints.newest_first(tmp_path / "checkpoints")
    for checkpoint in (newest, before):
        assert state.BEST in json.loads((checkpoint / checkpoints.MARK).read_text())
    with open(newest / state.BEST, "r+b") as file:
        last = file.seek(-1, os.SEEK_END)
        byte = file.read(1)[0] ^ 1
        file.seek(last)
        file.write(bytes([byte]))
    assert checkpoints.last_whole(tmp_path / "checkpoints") == before
    (best,) = (tmp_path / "parts").glob("best-*")
    assert best.read_bytes() == (before / state.BEST).read_bytes()
    # What is taken out of a checkpoint is a file of its own too.
    state.take_out_best(before, best)
    assert not os.path.samefile(best, before / state.BEST)


def test_where_the_last_policy_is_the_result_no_other_takes_room(tmp_path: Path) -> None:
    made(tmp_path, KIND | {"watching.keep": "last"}).go()
    assert not list(tmp_path.rglob("best*"))


def test_answers_whose_score_is_no_number_are_saved(tmp_path: Path) -> None:
    """The second batch gets a score that is not finite."""
    asked = list[int]()

    class Broken:
        def __call__(self, prompts: Any, dialogues: Any) -> Any:
            asked.append(len(prompts))
            if len(asked) == 3:
                raise UserError("letters: gives the score nan to an answer", remedy="Look at it.")
            score_N = np.array([float(len(turns[-1].content)) for turns in dialogues])
            return score_N, {"letters": score_N}

    with pytest.raises(UserError, match="gives the score nan") as refused:
        begun(tmp_path, rule=Broken()).go()
    path = tmp_path / "parts" / "not_judged_0.jsonl"
    assert f"Look at it. The answers are in {path}." in refused.value.remedy
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == asked[-1] == 8
    assert all(row.keys() == {"prompt", "answer"} for row in rows)
