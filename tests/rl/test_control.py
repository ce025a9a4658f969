"""β, when to end, which policy to keep: each rule by hand."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
import rl_support as support

from alignment.errors import UserError
from alignment.rl.control import Beta, Judgement, Point
from alignment.rl.settings import Anchoring, Watching, check


def anchoring(**changes: Any) -> Anchoring:
    return support.numbers({f"anchoring.{name}": value for name, value in changes.items()})["anchoring"]


def watching(**changes: Any) -> Watching:
    return support.numbers({f"watching.{name}": value for name, value in changes.items()})["watching"]


# ── β ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (6.0, 1.0),
        (6.6, 1 + 0.1 * 128 / 1000),
        (5.4, 1 - 0.1 * 128 / 1000),
        (600.0, 1 + 0.2 * 128 / 1000),
        (0.0, 1 - 0.2 * 128 / 1000),
        (-4.0, 1 - 0.2 * 128 / 1000),
    ],
)
def test_beta_is_steered_toward_the_target_by_a_fifth_at_most(kl: float, factor: float) -> None:
    beta = Beta(0.05)
    beta.steer(kl, 128, anchoring(target=6.0, horizon=1000.0))
    assert beta.value == pytest.approx(0.05 * factor, rel=1e-12)
    beta.steer(kl, 128, anchoring(target=6.0, horizon=1000.0))
    assert beta.value == pytest.approx(0.05 * factor**2, rel=1e-12)


def test_without_a_target_beta_stays() -> None:
    beta = Beta(0.05)
    beta.steer(50.0, 128, anchoring(target=None))
    assert beta.value == 0.05


# ── when to end, which to keep ───────────────────────────────────────────────────────────────────


def judged(rewards: list[float], numbers: Watching, *, kl: list[float] | None = None, guard: list[float] | None = None):
    """The judgement after these points, every second step, and the steps that were the best so far."""
    judgement, best = Judgement(), []
    for place, reward in enumerate(rewards):
        others = {} if guard is None else {"truth": guard[place]}
        point = Point(2 * place, 0.0 if kl is None else kl[place], reward, others)
        if judgement.take(point, numbers, None if guard is None else "truth"):
            best.append(point.step)
        if judgement.ended:
            break
    return judgement, best


def test_the_best_reward_is_kept_and_a_draw_changes_nothing() -> None:
    judgement, best = judged([0.1, 0.3, 0.2, 0.3, 0.31, 0.0], watching())
    assert best == [0, 2, 8]
    assert (judgement.best_step, judgement.best, judgement.ended) == (8, 0.31, "")


def test_a_run_ends_when_the_reward_has_not_risen_for_so_long() -> None:
    judgement, _ = judged([0.1, 0.3, 0.2, 0.3, 0.1, 9.0], watching(patience=3))
    assert "not risen for 3" in judgement.ended
    assert judgement.best_step == 2
    assert judged([0.1, 0.3, 0.2, 0.3, 0.4, 0.1, 0.2], watching(patience=3))[0].ended == ""
    assert judged([0.3, 0.2], watching(patience=1))[0].stale == 1


def test_a_run_ends_past_the_kl_bound_and_that_policy_is_not_the_best() -> None:
    judgement, best = judged([0.1, 0.2, 0.9, 1.0], watching(kl_bound=5.0), kl=[0.0, 5.0, 5.01, 6.0])
    assert "5.01 nats" in judgement.ended
    assert "watching.kl_bound=5" in judgement.ended
    assert best == [0, 2], "at the bound it is still within"
    assert judgement.best_step == 2


def test_the_guard_ends_a_run_whose_reward_rises_while_it_falls() -> None:
    judgement, best = judged([0.1, 0.2, 0.3, 0.4], watching(guard_drop=0.05), guard=[0.5, 0.6, 0.56, 0.54])
    assert "over-optimisation" in judgement.ended
    assert "truth has fallen from 0.600 to 0.540" in judgement.ended
    assert best == [0, 2], "the guard decides, not the reward"


def test_a_guard_that_falls_together_with_the_reward_ends_nothing() -> None:
    assert judged([0.3, 0.1, 0.2], watching(guard_drop=0.0), guard=[0.5, 0.1, 0.1])[0].ended == ""
    assert judged([0.1, 0.2], watching(guard_drop=0.1), guard=[0.5, 0.4001])[0].ended == "", "a fall that is allowed"


def test_the_guard_decides_which_policy_is_kept() -> None:
    judgement, best = judged([0.9, 0.1, 0.2], watching(guard_drop=1.0), guard=[0.5, 0.7, 0.6])
    assert best == [0, 2]
    assert (judgement.best_step, judgement.best_reward, judgement.best_guard) == (2, 0.9, 0.7)


def test_what_is_judged_goes_through_json() -> None:
    """A checkpoint before anything was measured included: −∞ is no number of JSON's, and Python reads its own."""
    for judgement in (Judgement(), judged([0.1, 1 / 3], watching(), guard=[0.1, 0.2])[0]):
        assert Judgement(**json.loads(json.dumps(asdict(judgement)))) == judgement
    assert Point(**json.loads(json.dumps(Point(3, 0.1, 1 / 3, {"a": 2 / 3}).row()))) == Point(
        3, 0.1, 1 / 3, {"a": 2 / 3}
    )


def test_while_only_the_critic_learns_nothing_is_stale() -> None:
    judgement = Judgement()
    for step in range(4):
        judgement.take(Point(step, 0.0, 0.3, {}), watching(patience=2), None, waits=True)
    assert (judgement.stale, judgement.ended) == (0, "")
    for step in range(4, 6):
        judgement.take(Point(step, 0.0, 0.3, {}), watching(patience=2), None)
    assert "has not risen" in judgement.ended


def test_the_guard_ends_a_run_on_a_plateau() -> None:
    """The reward is no new best, and no worse than where the guard was at its best."""
    rewards, guard = [0.0, 1.0, 2.0, 2.0, 1.99, 1.98], [0.0, 1.0, 1.5, 1.4, 0.2, -5.0]
    assert judged(rewards[:3], watching(guard_drop=0.5), guard=guard[:3])[0].ended == ""
    assert judged(rewards, watching(guard_drop=0.5), guard=guard)[0].ended == ""
    assert (
        "over-optimisation" in judged([0.0, 1.0, 2.0, 2.0], watching(guard_drop=0.5), guard=[0, 1, 1.5, 0.9])[0].ended
    )


# ── numbers that do not go together ──────────────────────────────────────────────────────────────


def checked(changes: dict[str, Any]) -> None:
    some = support.numbers(changes)
    check(some["drawing"], some["estimating"], some["anchoring"], some["critic"], some["updating"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"drawing.samples": 1, "estimating.kind": "rloo"}, "drawing.samples=1"),
        ({"drawing.samples": 3}, "updating.batch=8"),
        ({"drawing.samples": 4, "updating.minibatch": 2}, "updating.minibatch=2"),
        ({"updating.batch": 12, "updating.minibatch": 8}, "updating.batch=12"),
        ({"updating.minibatch": 16}, "updating.batch=8"),
        (
            {"drawing.samples": 1, "updating.batch": 1, "updating.minibatch": 1, "estimating.kind": "reinforce"},
            "updating.batch=1",
        ),
        ({"anchoring.kind": "ema", "anchoring.rate": 0.0}, "anchoring.rate=0"),
        ({"anchoring.target": 6.0, "anchoring.horizon": 8.0}, "anchoring.horizon=8"),
        ({"anchoring.target": 6.0, "anchoring.beta": 0.0}, "anchoring.target=6"),
        ({"estimating.kind": "gae", "critic.warmup": 4, "updating.steps": 4}, "critic.warmup=4"),
        ({"estimating.whiten_rewards": True, "estimating.kind": "rloo"}, "estimating.whiten_rewards=true"),
    ],
)
def test_numbers_that_do_not_go_together_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        checked(changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"drawing.samples": 1, "estimating.kind": "gae"},
        {"drawing.samples": 1, "updating.batch": 1, "updating.minibatch": 1, "estimating.kind": "gae"},
        {"anchoring.kind": "fixed", "anchoring.rate": 0.0},
        {"drawing.samples": 8, "updating.minibatch": 8},
    ],
)
def test_numbers_that_do_are_not(changes: dict[str, Any]) -> None:
    checked(changes)


def test_optimiser_steps_a_step() -> None:
    some = support.numbers({"updating.epochs": 3, "updating.batch": 16, "updating.minibatch": 4})
    assert some["updating"].per_step == 12
