"""Rewards, advantages and clipped losses against definitions written out in float64, answer by answer and by token.

The reference sums what the papers write as sums and takes gradients by central differences; it shares no line with
``objectives/policy.py``. What lies outside of the mask is NaN in every batch here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.objectives.policy import (
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    gae,
    leave_one_out,
    shaped_rewards,
)

NEAR = {"rtol": 1e-6, "atol": 1e-6}
STEP = 1e-6
Floats = list[np.ndarray]
"""One array of float64 for every answer, as long as the answer."""


class Batch(NamedTuple):
    """Ragged numbers of one batch, and their padded form, in which what is outside is NaN."""

    lengths: list[int]
    ragged: dict[str, Floats]

    def padded(self, name: str, *, grad: bool = False) -> torch.Tensor:
        table = np.full((len(self.lengths), max(self.lengths) + 2), np.nan)
        for row, values in enumerate(self.ragged[name]):
            table[row, : len(values)] = values
        return torch.tensor(table, requires_grad=grad)

    @property
    def mask(self) -> torch.Tensor:
        columns = torch.arange(max(self.lengths) + 2)
        return columns[None, :] < torch.tensor(self.lengths)[:, None]


def batch(seed: int) -> Batch:
    """Of one answer or several, with one token or several; ratios and values on both sides of a clip of 0.2."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 9, generator.integers(1, 6)).tolist()

    def drawn(mean: float, spread: float) -> Floats:
        return [generator.normal(mean, spread, length) for length in lengths]

    old, values = drawn(-1.5, 0.7), drawn(0.0, 1.0)
    return Batch(
        lengths,
        {
            "old": old,
            "new": [one + generator.normal(0.0, 0.2, len(one)) for one in old],
            "anchor": [one + generator.normal(0.0, 0.3, len(one)) for one in old],
            "rewards": drawn(0.0, 1.0),
            "advantages": drawn(0.0, 1.0),
            "weights": [np.exp(one) for one in drawn(0.0, 0.2)],
            "values": values,
            "moved": [one + generator.normal(0.0, 0.3, len(one)) for one in values],
            "returns": drawn(0.2, 1.0),
        },
    )


seeds = pytest.mark.parametrize("seed", range(25))


def assert_inside(found: torch.Tensor, expected: Floats, mask: torch.Tensor) -> None:
    """The numbers of each answer, and 0 outside."""
    for row, values in enumerate(expected):
        np.testing.assert_allclose(found[row, : len(values)].detach().numpy(), values, **NEAR)
    assert (found[~mask] == 0).all()


def differences(function: Callable[[Floats], float], at: Floats) -> Floats:
    """Central differences of a function of ragged numbers."""
    slopes = [np.zeros_like(one) for one in at]
    for row, one in enumerate(at):
        for place in range(len(one)):
            ahead, behind = [each.copy() for each in at], [each.copy() for each in at]
            ahead[row][place] += STEP
            behind[row][place] -= STEP
            slopes[row][place] = (function(ahead) - function(behind)) / (2 * STEP)
    return slopes


# ── rewards and advantages ───────────────────────────────────────────────────────────────────────


@seeds
def test_rewards_are_the_penalty_at_each_token_and_the_score_at_the_last(seed: int) -> None:
    one = batch(seed)
    scores, beta = np.random.default_rng(seed).normal(size=len(one.lengths)), 0.05 * seed
    expected = []
    for row, length in enumerate(one.lengths):
        rewards = [-beta * (one.ragged["old"][row][t] - one.ragged["anchor"][row][t]) for t in range(length)]
        rewards[length - 1] += scores[row]
        expected.append(np.array(rewards))
    found = shaped_rewards(torch.tensor(scores), one.padded("old"), one.padded("anchor"), one.mask, beta=beta)
    assert_inside(found, expected, one.mask)


def test_the_score_stands_on_the_terminator_and_not_on_the_padding_behind_it() -> None:
    zeros, mask = torch.zeros(2, 4), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    found = shaped_rewards(torch.tensor([3.0, 5.0]), zeros, zeros, mask, beta=0.1)
    assert found.tolist() == [[0, 0, 3, 0], [0, 0, 0, 5]]


@seeds
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (1.0, 1.0), (1.0, 0.0)])
def test_advantages_are_the_sum_of_what_was_better_than_expected(seed: int, gamma: float, lam: float) -> None:
    one = batch(seed)
    expected, returns = [], []
    for rewards, values in zip(one.ragged["rewards"], one.ragged["values"], strict=True):
        after = [*values[1:], 0.0]
        deltas = [r + gamma * then - now for r, then, now in zip(rewards, after, values, strict=True)]
        sums = [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]
        expected.append(np.array(sums))
        returns.append(np.array(sums) + values)
    found = gae(one.padded("rewards"), one.padded("values"), one.mask, gamma=gamma, lam=lam)
    assert_inside(found.advantages_BT, expected, one.mask)
    assert_inside(found.returns_BT, returns, one.mask)


def test_gae_by_hand() -> None:
    # δ = (0 + .2 − .1, 0 + .3 − .2, 1 − .3) = (.1, .1, .7); A₃ = .7, A₂ = .1 + .95 · .7, A₁ = .1 + .95 · .765.
    mask = torch.ones(1, 3)
    found = gae(torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.1, 0.2, 0.3]]), mask, gamma=1.0, lam=0.95)
    torch.testing.assert_close(found.advantages_BT, torch.tensor([[0.82675, 0.765, 0.7]]))
    torch.testing.assert_close(found.returns_BT, torch.tensor([[0.92675, 0.965, 1.0]]))


@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=4), min_size=1, max_size=5))
@settings(deadline=None, max_examples=50)
def test_each_answer_is_compared_with_the_others_to_its_prompt(rows: list[list[float]]) -> None:
    expected = [[row[i] - sum(row[j] for j in range(4) if j != i) / 3 for i in range(4)] for row in rows]
    found = leave_one_out(torch.tensor(rows, dtype=torch.float64))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)


def test_leave_one_out_by_hand() -> None:
    # 1 − (2 + 4 + 5) / 3 = −8/3, and so on.
    found = leave_one_out(torch.tensor([[1.0, 2.0, 4.0, 5.0]]))
    torch.testing.assert_close(found, torch.tensor([[-8 / 3, -4 / 3, 4 / 3, 8 / 3]]))


@pytest.mark.parametrize("value", [0.1, -2.7, 1e8 + 0.3, 1e-30])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_identical_answers_give_exactly_nothing(value: float, count: int) -> None:
    for dtype in (torch.float32, torch.float64):
        assert (leave_one_out(torch.full((2, count), value, dtype=dtype)) == 0).all()


# ── the policy's loss ────────────────────────────────────────────────────────────────────────────


def bounded(ratio: float, advantage: float, clip: float) -> tuple[float, bool]:
    """min(ρ A, clip(ρ) A) by cases, and whether the clip bound."""
    if advantage > 0 and ratio > 1 + clip:
        return (1 + clip) * advantage, True
    if advantage < 0 and ratio < 1 - clip:
        return (1 - clip) * advantage, True
    return ratio * advantage, False


class Expected(NamedTuple):
    """What a loss should return."""

    loss: float
    terms: int
    clipped: int
    drift: float = 0.0


def policy_loss(new: Floats, one: Batch, clip: float, level: str, weighted: bool) -> Expected:
    loss, terms, clipped, drift = 0.0, 0, 0, 0.0
    for row, length in enumerate(one.lengths):
        gaps = [new[row][t] - one.ragged["old"][row][t] for t in range(length)]
        weights = [one.ragged["weights"][row][t] if weighted else 1.0 for t in range(length)]
        advantages = list(one.ragged["advantages"][row])
        if level == "answer":
            gaps, weights, advantages = [sum(gaps)], [math.prod(weights)], advantages[:1]
        for gap, weight, advantage in zip(gaps, weights, advantages, strict=True):
            gain, bound = bounded(math.exp(gap), advantage, clip)
            loss -= weight * gain
            terms, clipped, drift = terms + 1, clipped + bound, drift + math.exp(gap) - 1 - gap
    return Expected(loss, terms, clipped, drift)


@seeds
@pytest.mark.parametrize("level", ["token", "answer"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_policys_loss_and_its_gradient(seed: int, level: Any, weighted: bool) -> None:
    one = batch(seed)
    new = one.padded("new", grad=True)
    found = clipped_policy_loss(
        new,
        one.padded("old"),
        one.padded("advantages"),
        one.mask,
        clip=0.2,
        level=level,
        weights_BT=one.padded("weights") if weighted else None,
    )
    expected = policy_loss(one.ragged["new"], one, 0.2, level, weighted)
    np.testing.assert_allclose([each.item() for each in found], expected, **NEAR)
    (slopes,) = torch.autograd.grad(found.loss, new)
    by_hand = differences(lambda at: policy_loss(at, one, 0.2, level, weighted).loss, one.ragged["new"])
    assert_inside(slopes, by_hand, one.mask)


def test_the_batches_clip_on_both_sides() -> None:
    """Else the tests above would say nothing of the clip."""
    for level in ("token", "answer"):
        found = [policy_loss(one.ragged["new"], one, 0.2, level, False) for one in map(batch, range(25))]
        assert 20 < sum(each.clipped for each in found) < 0.5 * sum(each.terms for each in found)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        # Beyond the clip in the direction of the advantage nothing more is to be had; against it, all of it counts.
        (1.5, 2.0, -2.4, 0.0),
        (1.5, -2.0, 3.0, 3.0),
        (0.5, 2.0, -1.0, -1.0),
        (0.5, -2.0, 1.6, 0.0),
        (1.1, 2.0, -2.2, -2.2),
    ],
)
def test_the_clip_by_hand(ratio: float, advantage: float, loss: float, slope: float) -> None:
    logprob = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1)
    for level in ("token", "answer"):
        found = clipped_policy_loss(logprob, zero, torch.full_like(zero, advantage), one, clip=0.2, level=level)  # type: ignore[arg-type]
        assert found.loss.item() == pytest.approx(loss, rel=1e-12)
        assert float(torch.autograd.grad(found.loss, logprob)[0]) == pytest.approx(slope, rel=1e-12)
        assert int(found.clipped) == (slope == 0.0)


@seeds
@pytest.mark.parametrize("level", ["token", "answer"])
def test_before_the_first_step_the_gradient_is_that_of_reinforce(seed: int, level: Any) -> None:
    one = batch(seed)
    new = one.padded("old", grad=True)
    found = clipped_policy_loss(new, one.padded("old"), one.padded("advantages"), one.mask, clip=0.2, level=level)
    (slopes,) = torch.autograd.grad(found.loss, new)
    # d/d log π of −A log π: at every token its own advantage, or that of the answer.
    expected = [-(a if level == "token" else np.full_like(a, a[0])) for a in one.ragged["advantages"]]
    assert_inside(slopes, expected, one.mask)
    assert (int(found.clipped), float(found.drift)) == (0, 0.0)


# ── the critic's loss ────────────────────────────────────────────────────────────────────────────


def value_loss(values: Floats, one: Batch, clip: float | None) -> Expected:
    loss, terms, clipped = 0.0, 0, 0
    for row, length in enumerate(one.lengths):
        for t in range(length):
            value, old, goal = values[row][t], one.ragged["values"][row][t], one.ragged["returns"][row][t]
            worst = (value - goal) ** 2
            if clip is not None and abs(value - old) > clip:
                held = (old + math.copysign(clip, value - old) - goal) ** 2
                clipped, worst = clipped + (held > worst), max(held, worst)
            loss, terms = loss + worst / 2, terms + 1
    return Expected(loss, terms, clipped)


@seeds
@pytest.mark.parametrize("clip", [None, 0.2])
def test_the_critics_loss_and_its_gradient(seed: int, clip: float | None) -> None:
    one = batch(seed)
    values = one.padded("moved", grad=True)
    found = clipped_value_loss(values, one.padded("values"), one.padded("returns"), one.mask, clip=clip)
    expected = value_loss(one.ragged["moved"], one, clip)
    np.testing.assert_allclose([each.item() for each in found], expected[:3], **NEAR)
    (slopes,) = torch.autograd.grad(found.loss, values)
    by_hand = differences(lambda at: value_loss(at, one, clip).loss, one.ragged["moved"])
    assert_inside(slopes, by_hand, one.mask)


def test_a_critic_that_has_not_moved_is_not_clipped() -> None:
    one = batch(3)
    found = clipped_value_loss(one.padded("values"), one.padded("values"), one.padded("returns"), one.mask, clip=0.2)
    assert int(found.clipped) == 0


@pytest.mark.parametrize(
    ("value", "loss", "slope"),
    [
        # Old 0, return 1, clip 0.2. Past the clip towards the return the clipped error, 0.8, is the worse one.
        (0.5, 0.32, 0.0),
        (0.1, 0.405, -0.9),
        (-0.5, 1.125, -1.5),
    ],
)
def test_the_value_clip_by_hand(value: float, loss: float, slope: float) -> None:
    moved = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    found = clipped_value_loss(moved, zero, zero + 1, torch.ones(1, 1), clip=0.2)
    assert found.loss.item() == pytest.approx(loss, rel=1e-12)
    assert float(torch.autograd.grad(found.loss, moved)[0]) == pytest.approx(slope, rel=1e-12)


@seeds
def test_explained_variance_is_that_of_all_tokens_together(seed: int) -> None:
    one = batch(seed)
    returns, values = np.concatenate(one.ragged["returns"]), np.concatenate(one.ragged["moved"])
    expected = 1 - np.var(returns - values) / np.var(returns) if len(returns) > 1 else 0.0
    found = explained_variance(one.padded("moved"), one.padded("returns"), one.mask)
    np.testing.assert_allclose(float(found), expected, **NEAR)


# ── micro-batches ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("level", ["token", "answer"])
def test_sums_over_parts_of_a_batch_are_those_of_the_batch(level: Any) -> None:
    one = batch(2)
    assert len(one.lengths) > 1
    tables = [one.padded(name) for name in ("new", "old", "advantages")]
    whole = clipped_policy_loss(*tables, one.mask, clip=0.2, level=level)
    parts = [
        clipped_policy_loss(*(table[row : row + 1] for table in tables), one.mask[row : row + 1], clip=0.2, level=level)
        for row in range(len(one.lengths))
    ]
    for found, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        np.testing.assert_allclose(float(found), sum(map(float, pieces)), rtol=1e-12)


def test_rounding_is_not_taken_for_clipping() -> None:
    drawn = torch.Generator().manual_seed(0)
    values_BT, old_BT = (0.03 * torch.randn(1, 100_000, generator=drawn) for _ in range(2))
    returns_BT = torch.randn(1, 100_000, generator=drawn)
    mask_BT = torch.ones(1, 100_000)
    assert (values_BT - old_BT).abs().max() < 0.2
    assert clipped_value_loss(values_BT, old_BT, returns_BT, mask_BT, clip=0.2).clipped == 0
    assert clipped_value_loss(values_BT, old_BT, returns_BT, mask_BT, clip=0.01).clipped > 0


@pytest.mark.parametrize("level", ["token", "answer"])
def test_importance_weights_are_cut_off_where_they_are_used(level: Any) -> None:
    """Those of an answer multiply first: of 48 tokens at 2 each no product of cut-off weights is left."""
    zeros_BT, mask_BT = torch.zeros(2, 48), torch.ones(2, 48)
    weights_BT = torch.cat([torch.full((1, 48), 2.0), torch.full((1, 48), 0.5)])
    found = clipped_policy_loss(
        zeros_BT, zeros_BT, mask_BT, mask_BT, clip=0.2, level=level, weights_BT=weights_BT, largest_weight=1.5
    )
    wanted = -(1.5 + 0.5**48) if level == "answer" else -48 * (1.5 + 0.5)
    assert float(found.loss) == pytest.approx(wanted)
