"""Cut at any point and begun again, a run ends with the same bits, and has drawn every prompt as often as it should."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rl_support as support
import torch
from rl_support import Made, made
from safetensors.torch import load_file

from alignment.rl import loop, state
from alignment.rl.learner import Learner
from alignment.rl.records import Records
from alignment.sampling.drawer import OwnDrawer
from alignment.training import checkpoints
from alignment.training.tracking import read_metrics

KINDS: dict[str, dict[str, Any]] = {
    "gae": {"estimating.kind": "gae", "estimating.whiten_advantages": True, "updating.epochs": 2, "critic.warmup": 1},
    "rloo": {"anchoring.place": "loss", "updating.schedule": "linear", "updating.weight_decay": 0.1},
    "reinforce": {"estimating.kind": "reinforce", "estimating.baseline": "running"},
}
COMMON = {
    "updating.steps": 6,
    "anchoring.kind": "ema",
    "anchoring.target": 0.05,
    "anchoring.horizon": 40.0,
    "watching.keep": "best",
}
TIMED = ("seconds/", "tokens_per_second/", "episodes_per_second")


class Stop(Exception):
    """In the place of a kill."""


def begun(out: Path, kind: str) -> Made:
    # Another run in this process must not lend its random state.
    torch.manual_seed(99)
    return made(out, {**COMMON, **KINDS[kind]}, whiten="running", count=7)


def left_behind(out: Path, run: Made) -> dict[str, Any]:
    """Everything that a run leaves, without what is a time."""
    last = checkpoints.last_whole(run.course.folder)
    assert last is not None
    metrics = [
        {name: value for name, value in row.items() if not name.startswith(TIMED)}
        for row in read_metrics(out / "metrics.jsonl")
    ]
    optimiser = torch.load(last / state.OPTIMISER)
    return {
        "weights": support.weights(run.learner.roles),
        "anchor": support.weights(support.anchor(run.learner)),
        "saved": load_file(last / state.TRAINED),
        "optimiser": {
            f"{number}.{name}": value for number, one in optimiser["state"].items() for name, value in one.items()
        },
        "rates": [group["lr"] for group in optimiser["param_groups"]],
        "state": json.loads((last / state.STATE).read_text()),
        "metrics": metrics,
        "front": (out / "front.jsonl").read_bytes(),
        "samples": (out / "samples.jsonl").read_bytes(),
    }


@pytest.fixture(
    scope="module", params=[pytest.param(kind, marks=() if kind == "gae" else pytest.mark.slow) for kind in KINDS]
)
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    out = tmp_path_factory.mktemp(request.param)
    run = begun(out, request.param)
    run.go()
    return request.param, left_behind(out, run)


def need_the_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, one in wanted.items():
        if name in ("weights", "anchor", "saved", "optimiser"):
            assert one, name
            assert support.same(found[name], one), name
        else:
            assert found[name] == one, name


def cut(patched: pytest.MonkeyPatch, owner: Any, name: str, time: int, *, before: bool) -> None:
    """Stop at the ``time``-th call."""
    inner: Callable[..., Any] = getattr(owner, name)
    calls: list[int] = []

    def instead(*some: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == time and before:
            raise Stop
        result = inner(*some, **more)
        if len(calls) == time:
            raise Stop
        return result

    patched.setattr(owner, name, instead)


POINTS: dict[str, tuple[Any, str, int, bool]] = {
    "at step 0, measured and not learned": (Records, "point", 1, False),
    "in the first step": (Learner, "update", 1, False),
    "drawn and not judged": (OwnDrawer, "draw", 4, False),
    "learned and the anchor not moved": (Learner, "update", 5, False),
    "between two optimiser steps": (Learner, "_step", 7, False),
    "the best is written and nothing told": (state, "write_whole", 2, False),
    "a point is told and no step": (Records, "point", 3, False),
    "a step is told and not saved": (Records, "step", 4, False),
    "while a checkpoint is written": (checkpoints, "commit", 2, True),
    "behind a checkpoint": (checkpoints, "commit", 2, False),
    "behind the last checkpoint": (checkpoints, "commit", 3, False),
    "in the middle of what becomes of the best": (loop, "take_best", 1, True),
}


@pytest.mark.parametrize("point", POINTS)
def test_cut_and_begun_again_it_ends_with_the_same_bits(
    point: str, undisturbed: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    kind, wanted = undisturbed
    with pytest.MonkeyPatch.context() as patched:
        owner, name, time, before = POINTS[point]
        cut(patched, owner, name, time, before=before)
        with pytest.raises(Stop):
            begun(tmp_path, kind).go()
    run = begun(tmp_path, kind)
    run.go()
    need_the_same(left_behind(tmp_path, run), wanted)


def test_cut_again_and_again(undisturbed: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    """Once in every step, once while saving: no prompt is lost, none is learned from twice."""
    kind, wanted = undisturbed
    drawn: dict[int, list[str]] = {}
    draw = OwnDrawer.draw

    def watched(self: OwnDrawer, model: Any, prompts: Any, names: Any, *, seed: int, **more: Any) -> Any:
        step = seed - support.SEED * 1_000_003
        assert drawn.setdefault(step, list(names)) == list(names), "a step that comes again has the same prompts"
        return draw(self, model, prompts, names, seed=seed, **more)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(OwnDrawer, "draw", watched)
        for name, time in (("draw", 2), ("point", 2), ("commit", 1), ("draw", 1), ("update", 2), ("step", 2)):
            owner = {"draw": OwnDrawer, "point": Records, "commit": checkpoints, "update": Learner, "step": Records}[
                name
            ]
            with pytest.MonkeyPatch.context() as inner:
                cut(inner, owner, name, time, before=name == "commit")
                with pytest.raises(Stop):
                    begun(tmp_path, kind).go()
        run = begun(tmp_path, kind)
        run.go()
    need_the_same(left_behind(tmp_path, run), wanted)
    assert sorted(drawn) == list(range(6))
    asked = [name for step in range(6) for name in drawn[step]]
    # 24 prompts of 7: three epochs, and three of a fourth.
    for start in (0, 7, 14):
        assert sorted(asked[start : start + 7]) == [f"q-{number}" for number in range(7)]
    steps = [row["step"] for row in wanted["metrics"] if "score/mean" in row]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    undisturbed: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    kind, wanted = undisturbed
    with pytest.MonkeyPatch.context() as patched:
        cut(patched, Records, "step", 5, before=False)
        with pytest.raises(Stop):
            begun(tmp_path, kind).go()
    damaged = tmp_path / "checkpoints" / "checkpoint-4" / state.TRAINED
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"\0\0\0\1")
    run = begun(tmp_path, kind)
    run.go()
    need_the_same(left_behind(tmp_path, run), wanted)


def test_two_undisturbed_runs_are_the_same(undisturbed: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    """And the state holds what steers: without any of it the rest would differ."""
    kind, wanted = undisturbed
    run = begun(tmp_path, kind)
    run.go()
    need_the_same(left_behind(tmp_path, run), wanted)
    kept = wanted["state"]
    assert kept["step"] == 6
    assert kept["beta"]["value"] != 0.1
    assert kept["reward"]["count"] > 20
    assert (kept["baseline"]["count"] == 48) == (kind == "reinforce")
    assert support.apart(wanted["anchor"], support.weights(support.model())) > 1e-3


def test_only_two_checkpoints_are_kept_and_one_best_policy(tmp_path: Path) -> None:
    run = begun(tmp_path, "rloo")
    progress = run.go()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["checkpoint-4", "checkpoint-6"]
    (best,) = (tmp_path / "parts").iterdir()
    assert best.name == f"best-{progress.judgement.best_step}.safetensors"


def test_an_adapter_comes_back_too(tmp_path: Path) -> None:
    def fresh(name: str) -> Made:
        torch.manual_seed(99)
        return made(tmp_path / name, {"estimating.kind": "gae", "anchoring.kind": "ema"}, lora=2)

    whole = fresh("whole")
    whole.go()
    with pytest.MonkeyPatch.context() as patched:
        cut(patched, Learner, "update", 4, before=False)
        with pytest.raises(Stop):
            fresh("cut").go()
    again = fresh("cut")
    again.go()
    need_the_same(left_behind(tmp_path / "cut", again), left_behind(tmp_path / "whole", whole))


def test_what_an_interrupted_conversion_has_left_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed takes every fragment that it finds."""
    stale = tmp_path / "parts" / "universal" / state.TAG / "tmp" / "a fragment"
    stale.parent.mkdir(parents=True)
    stale.touch()
    found: list[bool] = []
    monkeypatch.setattr(state.universal, "convert", lambda source, target: found.append(stale.exists()))
    state._make_universal(tmp_path / "checkpoints" / "checkpoint-2" / state.ENGINE, stale.parents[2])
    assert found == [False]
