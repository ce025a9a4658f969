"""The loop: what has to hold before it learns, what moves the anchor and β, when it ends, what it keeps."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rl_support as support
import torch
from rl_support import Made, made
from safetensors.torch import load_file
from torch import nn

from alignment.errors import UserError
from alignment.gemma.roles import plain_copy
from alignment.rl import loop
from alignment.rl.control import Point
from alignment.rl.held_out import HeldOut
from alignment.rl.learner import Learner
from alignment.rl.state import Beta, Progress
from alignment.sampling.drawer import OwnDrawer
from alignment.sampling.sampler import Answer
from alignment.training.tracking import read_metrics


@dataclass
class Changed:
    """A drawer whose log-probabilities are those of the sampler, but for a change; it keeps what it was asked."""

    inner: OwnDrawer
    by: float = 0.0
    exact: bool = True
    asked: list[tuple[int, list[str]]] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    def draw(self, model: nn.Module, prompts: Any, prompt_ids: Any, *, seed: int, **more: Any) -> list[Answer]:
        self.asked.append((seed, list(prompt_ids)))
        found = self.inner.draw(model, prompts, prompt_ids, seed=seed, **more)
        self.answers += found
        # One token of one answer, as a kernel that is wrong at one place would.
        wrong = replace(found[3], logprobs=[found[3].logprobs[0] + self.by, *found[3].logprobs[1:]])
        return [*found[:3], wrong, *found[4:]]


def changed(run: Made, **how: Any) -> tuple[Made, Changed]:
    assert isinstance(run.course.drawer, OwnDrawer)
    drawer = Changed(run.course.drawer, **how)
    return replace(run, course=replace(run.course, drawer=drawer)), drawer


def rows(out: Path, *names: str) -> list[dict[str, Any]]:
    """Rows of steps, without those of held-out prompts."""
    found = [row for row in read_metrics(out / "metrics.jsonl") if "score/mean" in row]
    return [{name: row[name] for name in names} for row in found] if names else found


ONE = {"updating.steps": 1}


# ── what has to hold ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "changes",
    [
        dict(zip(("estimating.kind", "anchoring.kind", "anchoring.place"), some, strict=True))
        for some in itertools.product(("gae", "rloo", "reinforce"), ("fixed", "ema"), ("reward", "loss"))
    ],
    ids=lambda changes: "-".join(changes.values()),
)
def test_every_estimator_anchor_and_place_begins_at_ratio_1_and_kl_0(tmp_path: Path, changes: dict[str, Any]) -> None:
    run = made(tmp_path, {**changes, "updating.steps": 2, "drawing.temperature": 0.7})
    before = support.weights(run.learner.roles)
    assert run.go().step == 2
    first, second = rows(tmp_path)
    assert first["update/first_ratio"] < 1e-4
    assert second["update/first_ratio"] < 1e-4
    assert abs(first["kl/anchor"]) < 1e-4
    assert 0 <= first["kl/anchor_k3"] < 1e-6
    assert second["kl/anchor_k3"] > 1e-4
    assert all(np.isfinite(value) for row in (first, second) for value in row.values())
    assert support.apart(before, support.weights(run.learner.roles)) > 1e-3
    in_reward = changes["anchoring.place"] == "reward"
    assert (second["reward/with_kl"] != pytest.approx(second["reward/total"], abs=1e-7)) == in_reward
    assert second["reward/with_kl"] == pytest.approx(
        second["reward/total"] - 0.1 * second["kl/anchor"] * in_reward, abs=1e-5
    )


@pytest.mark.parametrize("place", ["reward", "loss"])
def test_the_kl_weighs_once(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the reward or in the loss, never in both."""
    given: list[tuple[float, float]] = []
    targets, update = loop.targets, Learner.update
    betas: list[float] = []

    def watched(*some: Any, beta: float, **more: Any) -> Any:
        betas.append(beta)
        return targets(*some, beta=beta, **more)

    def learned(self: Learner, *some: Any, beta_in_loss: float, **more: Any) -> Any:
        given.append((betas[-1], beta_in_loss))
        return update(self, *some, beta_in_loss=beta_in_loss, **more)

    monkeypatch.setattr(loop, "targets", watched)
    monkeypatch.setattr(Learner, "update", learned)
    made(tmp_path, {**ONE, "anchoring.place": place}).go()
    assert given == [(0.1, 0.0) if place == "reward" else (0.0, 0.1)]


@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_a_drawer_with_wrong_log_probabilities_is_found_out(tmp_path: Path, temperature: float, stop: bool) -> None:
    changes = {"drawing.stop": stop, "drawing.temperature": temperature, "updating.minibatch": 8}
    run, _ = changed(made(tmp_path, changes), by=0.01)
    with pytest.raises(UserError, match=r"at step 0 the policy (and its anchor differ|differs)"):
        run.go()
    # Where the anchor is another policy, nobody else would notice.
    run, _ = changed(made(tmp_path / "other", changes, starts_at_anchor=False), by=0.01)
    with pytest.raises(UserError, match=r"at step 0 the policy differs by 0\.01 nats .* from itself when it drew"):
        run.go()
    # Rounding is not refused.
    run, drawer = changed(made(tmp_path / "fine", {**changes, **ONE}), by=0.0005)
    assert run.go().step == 1
    assert all(len(answer.ids) == 9 for answer in drawer.answers) or stop


def test_a_drawer_that_forgets_the_temperature_is_found_out(tmp_path: Path) -> None:
    """It draws at 0.7 and gives log-probabilities at 1 (TRL's issue 4159)."""

    class Forgetful(Changed):
        def draw(self, model: nn.Module, *some: Any, temperature: float, **more: Any) -> list[Answer]:
            return super().draw(model, *some, temperature=1.0, **more)

    run = made(tmp_path, {"drawing.temperature": 0.7}, starts_at_anchor=False)
    assert isinstance(run.course.drawer, OwnDrawer)
    run = replace(run, course=replace(run.course, drawer=Forgetful(run.course.drawer)))
    with pytest.raises(UserError, match="from itself when it drew"):
        run.go()


def test_an_anchor_that_is_not_the_policy_is_found_out(tmp_path: Path) -> None:
    run = made(tmp_path)
    with torch.no_grad():
        next(support.anchor(run.learner).parameters()).add_(0.05)
    with pytest.raises(UserError, match="at step 0 the policy and its anchor differ") as caught:
        run.go()
    assert "attention=eager" in str(caught.value.remedy)
    assert not rows(tmp_path)


def test_an_anchor_that_was_chosen_may_be_another_policy(tmp_path: Path) -> None:
    run = made(tmp_path, ONE, starts_at_anchor=False)
    with torch.no_grad():
        for weight in support.anchor(run.learner).parameters():
            weight.mul_(1.1)
    run.go()
    (row,) = rows(tmp_path)
    assert row["kl/anchor_k3"] > 1e-3


# ── importance weights ───────────────────────────────────────────────────────────────────────────


def test_a_drawer_that_differs_is_weighed_and_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One token was drawn as if it were e² times as likely, another e^-2: the policy's own numbers make the ratio."""
    kept: list[Any] = []
    update = Learner.update

    def learned(self: Learner, episodes: Any, *some: Any, **more: Any) -> Any:
        kept.append(episodes)
        return update(self, episodes, *some, **more)

    monkeypatch.setattr(Learner, "update", learned)
    ends: list[dict[str, torch.Tensor]] = []
    for number, by in enumerate((2.0, -2.0, 0.0)):
        out = tmp_path / str(number)
        run, _ = changed(made(out, {**ONE, "drawing.largest_weight": 1.5}), by=by, exact=False)
        run.go()
        (row,) = rows(out)
        assert row["update/first_ratio"] < 1e-4
        episodes = kept[-1]
        assert float(episodes.weights_BT[3, 0]) == pytest.approx(float(np.exp(-by)), rel=1e-4)
        assert episodes.largest_weight == 1.5
        rest = torch.ones_like(episodes.mask_BT)
        rest[3, 0] = False
        assert torch.allclose(episodes.weights_BT[rest], torch.ones(()), atol=1e-4)
        assert float((episodes.old_BT - episodes.anchor_BT).abs().max()) < 1e-4
        ends.append(support.weights(run.learner.roles))
    assert support.apart(ends[0], ends[2]) > 1e-5, "and the weights reach the loss"


# ── prompts and noise ────────────────────────────────────────────────────────────────────────────


def test_every_prompt_is_drawn_once_an_epoch_with_noise_of_its_own(tmp_path: Path) -> None:
    run, drawer = changed(made(tmp_path, {"updating.steps": 6}, count=8))
    run.go()
    asked = [name for _, names in drawer.asked for name in names]
    for start in (0, 8, 16):
        assert sorted(asked[start : start + 8]) == [f"q-{number}" for number in range(8)]
    assert len({seed for seed, _ in drawer.asked}) == 6
    assert len(drawer.answers) == 6 * 8


def test_a_prompt_that_comes_twice_in_a_step_gets_other_answers(tmp_path: Path) -> None:
    """At the end of an epoch and at the beginning of the next, or where there are few prompts."""
    run, drawer = changed(made(tmp_path, {**ONE, "updating.batch": 16}, count=3))
    run.go()
    answers = {tuple(answer.ids) for answer in drawer.answers}
    assert len(drawer.answers) == 16
    assert len(answers) > 10


# ── anchors and β ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("lora", [0, 2])
@pytest.mark.parametrize("kind", ["fixed", "ema"])
def test_a_moving_anchor_goes_a_fifth_of_the_way_after_every_step(tmp_path: Path, kind: str, lora: int) -> None:
    run = made(tmp_path, {"anchoring.kind": kind}, lora=lora)
    wanted = {name: weight.double() for name, weight in support.weights(support.anchor(run.learner)).items()}
    start = {name: weight.float() for name, weight in wanted.items()}
    one_step, path = loop.one_step, []

    def watched(*some: Any) -> Any:
        row = one_step(*some)
        now = support.weights(plain_copy(run.learner.roles.policy))  # type: ignore[arg-type]
        for name in wanted:
            wanted[name] = 0.8 * wanted[name] + 0.2 * now[name] if kind == "ema" else wanted[name]
        path.append(now)
        return row

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "one_step", watched)
        run.go()
    found = support.weights(support.anchor(run.learner))
    assert len(path) == 4
    assert support.apart(path[0], path[3]) > 1e-3
    assert support.apart(found, {name: weight.float() for name, weight in wanted.items()}) < 1e-5
    assert support.same(found, start) == (kind == "fixed")


def test_beta_is_steered_by_the_kl_that_was_measured(tmp_path: Path) -> None:
    run = made(tmp_path, {"anchoring.target": 0.05, "anchoring.horizon": 40.0})
    run.go()
    beta = 0.1
    for row in rows(tmp_path):
        assert row["kl/beta"] == pytest.approx(beta, rel=1e-9), "what was used in this step"
        beta *= 1 + min(max(row["kl/anchor"] / 0.05 - 1, -0.2), 0.2) * 8 / 40
    assert beta > 0.1


# ── ending, keeping ──────────────────────────────────────────────────────────────────────────────


class Scripted:
    """In the place of :meth:`HeldOut.measure`: what a run finds, by step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, points: dict[int, tuple[float, float, float]]) -> None:
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

        def measure(_: HeldOut, model: nn.Module, step: int, out: Path) -> tuple[Point, list[Any]]:
            self.weights[step] = support.weights(model)
            reward, kl, short = points[step]
            return Point(step, kl, reward, {"short": short}), [{"step": step, "prompt": "", "answer": ""}]

        monkeypatch.setattr(HeldOut, "measure", measure)


def test_every_process_judges_by_what_rank_0_has_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1, which rounds otherwise, would end here; waited for by rank 0, which goes on."""
    Scripted(monkeypatch, {0: (0.0, 0.0, 0.0), 2: (0.0, 0.0, 0.0)})
    run, progress = made(tmp_path, {"watching.patience": 1}), Progress(0, Beta(0.1))
    seen = iter([Point(0, 0.0, 0.0, {"short": 0.0}), Point(2, 0.1, 1e-9, {"short": 0.0})])
    monkeypatch.setattr(loop.team, "from_main", lambda work: next(seen))
    for step in (0, 2):
        progress.step = step
        loop.look(run.course, run.learner, progress, run.records)
    assert not progress.judgement.ended
    assert (progress.judgement.best_step, progress.judgement.best) == (2, 1e-9)


RISING = {0: (0.0, 0.0, 0.5), 2: (0.4, 1.0, 0.9), 4: (0.3, 3.0, 0.8), 6: (0.9, 9.0, 0.1)}


@pytest.mark.parametrize(
    ("changes", "guard", "steps", "told", "best"),
    [
        ({}, None, 6, "", 6),
        ({"watching.kl_bound": 2.0}, None, 4, "past watching.kl_bound=2", 2),
        ({"watching.patience": 1}, None, 4, "not risen for 1", 2),
        ({"watching.guard_drop": 0.3}, "short", 6, "over-optimisation", 2),
    ],
)
@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_run_ends_when_it_should_and_keeps_the_policy_that_it_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], guard: str | None, steps: int,
    told: str, best: int, keep: str,
) -> None:  # fmt: skip
    scripted = Scripted(monkeypatch, RISING)
    changes = {"updating.steps": 6, "watching.keep": keep, "updating.checkpoint_steps": 100, **changes}
    run = made(tmp_path, changes, guard=guard)
    progress = run.go()
    assert progress.step == steps == max(scripted.weights)
    assert told in progress.judgement.ended if told else not progress.judgement.ended
    assert progress.judgement.best_step == best
    kept = support.weights(run.learner.roles.policy)  # type: ignore[arg-type]
    assert support.same(kept, scripted.weights[best if keep == "best" else steps])
    # Started again, it finds that it is at its end: nothing more is learned.
    again = made(tmp_path, changes, guard=guard)
    monkeypatch.setattr(loop, "one_step", None)
    assert again.go().step == steps
    assert support.same(support.weights(again.learner.roles.policy), kept)  # type: ignore[arg-type]


def test_the_best_policy_may_be_the_one_it_started_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Scripted(monkeypatch, {0: (1.0, 0.0, 0.0), 2: (0.5, 0.1, 0.0), 4: (0.4, 0.1, 0.0)})
    run = made(tmp_path, {"watching.keep": "best"})
    before = support.weights(run.learner.roles)
    run.go()
    assert support.same(support.weights(run.learner.roles), before)


def test_points_are_measured_at_step_0_every_so_often_and_at_the_end(tmp_path: Path) -> None:
    made(tmp_path, {"updating.steps": 5}).go()
    front = [json.loads(line) for line in (tmp_path / "front.jsonl").read_text().splitlines()]
    assert [point["step"] for point in front] == [0, 2, 4, 5]
    assert front[0]["kl"] < 1e-9
    assert all(point["kl"] > 1e-4 for point in front[1:])
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5]


# ── degenerate rewards ───────────────────────────────────────────────────────────────────────────


class Constant:
    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, prompts: Any, dialogues: Any) -> tuple[np.ndarray, dict[str, Any]]:
        return np.full(len(prompts), self.value), {}


@pytest.mark.parametrize("whiten", ["none", "batch", "running"])
@pytest.mark.parametrize("kind", ["gae", "rloo", "reinforce"])
def test_equal_scores_are_counted_and_teach_nothing(tmp_path: Path, kind: str, whiten: str) -> None:
    changes = {
        "estimating.kind": kind, "estimating.whiten_advantages": kind != "gae", "anchoring.beta": 0.0,
        "updating.weight_decay": 0.0, "updating.steps": 2,
    }  # fmt: skip
    run = made(tmp_path, changes, whiten=whiten, unfinished=None, rule=Constant(2.5))
    run.course.reward._length_penalty = 0.0
    before = support.weights(run.learner.roles)
    run.go()
    for row in rows(tmp_path):
        assert row["reward/constant"] == 1
        assert all(np.isfinite(value) for value in row.values())
        if kind == "rloo":
            assert row["advantage/idle"] == 1
        if kind != "gae":
            assert row["advantage/size"] == 0
    now = support.weights(run.learner.roles)
    if kind != "gae":
        assert support.same(now, before)
    assert all(bool(torch.isfinite(weight).all()) for weight in now.values())


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path)
    one_step = loop.one_step

    def spoil(course: Any, learner: Learner, progress: Any) -> Any:
        row = one_step(course, learner, progress)
        if progress.step == 3:
            with torch.no_grad():
                next(learner.roles.parameters())[0, 0] = torch.inf
        return row

    monkeypatch.setattr(loop, "one_step", spoil)
    monkeypatch.setattr(loop, "look", lambda *_: None)
    with pytest.raises(UserError, match="is not finite after step 4") as refused:
        run.go()
    batch = tmp_path / "parts" / "not_a_number_0.safetensors"
    assert f"the batch is in {batch}" in refused.value.remedy
    saved = load_file(batch)
    assert saved.keys() == run.learner.learned_from[0].keys()
    for name, value in run.learner.learned_from[0].items():
        assert torch.equal(saved[name], value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-2"]
