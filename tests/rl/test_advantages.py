"""From rewards to advantages: each estimator as its formula says, each switch by itself, the same in two processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import rl_support as support
import torch
from torch import Tensor

from alignment.objectives import policy
from alignment.objectives.tokens import masked_whiten
from alignment.rl.advantages import RunningMean, Targets, targets
from alignment.rl.episodes import Episodes
from alignment.rl.settings import Estimating
from alignment.scoring.combine import Judged

BETA = 0.3
SCORES = [1.0, -2.0, 0.5, 4.0, 0.25, 0.25, -1.0, 3.0]


def estimating(kind: str, **changes: Any) -> Estimating:
    values = {"kind": kind, "gamma": 0.9, "lam": 0.8} | changes
    return support.numbers({f"estimating.{name}": value for name, value in values.items()})["estimating"]


def scored(scores: list[float] = SCORES, samples: int = 2, **changes: Any) -> Episodes:
    """Invented episodes with these scores; what is optimised differs from the score that is shown."""
    total = np.array(scores)
    return replace(support.episodes(samples=samples), judged=Judged(total, total * 7 + 1, {}), **changes)


def found(kind: str, one: Episodes | None = None, beta: float = BETA, **changes: Any) -> Targets:
    return targets(one or scored(), estimating(kind, **changes), beta=beta, baseline=RunningMean())


def penalised(one: Episodes, beta: float) -> list[float]:
    """Scores less β (log π − log π_anchor) of the tokens of each answer, in Python floats."""
    assert one.anchor_BT is not None
    assert one.judged is not None
    return [
        float(one.judged.total[row])
        - beta * sum(float(one.old_BT[row, step]) - float(one.anchor_BT[row, step]) for step in range(length))
        for row, length in enumerate(one.lengths)
    ]


def padding_is_zero(one: Episodes, values_BT: Tensor) -> bool:
    return not bool(values_BT[~one.mask_BT].any())


# ── gae ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("beta", [0.0, BETA])
@pytest.mark.parametrize("rewards", [False, True])
@pytest.mark.parametrize("advantages", [False, True])
def test_gae_is_the_objectives_functions_composed(beta: float, rewards: bool, advantages: bool) -> None:
    one = scored()
    target = found("gae", one, beta, whiten_rewards=rewards, whiten_advantages=advantages)
    rewards_BT = policy.shaped_rewards(
        torch.tensor(SCORES),
        one.old_BT,
        one.anchor_BT,
        one.mask_BT,
        beta=beta,  # type: ignore[arg-type]
    )
    if rewards:
        rewards_BT = masked_whiten(rewards_BT, one.mask_BT, center=False)
    wanted = policy.gae(rewards_BT, one.values_BT, one.mask_BT, gamma=0.9, lam=0.8)  # type: ignore[arg-type]
    advantages_BT = wanted.advantages_BT
    if advantages:
        advantages_BT = masked_whiten(advantages_BT, one.mask_BT, center=True)
    torch.testing.assert_close(target.advantages_BT, advantages_BT)
    torch.testing.assert_close(target.returns_BT, wanted.returns_BT)
    assert (target.level, target.idle) == ("token", 0)
    assert target.rewards_B.tolist() == pytest.approx(penalised(one, beta), abs=1e-5)
    assert padding_is_zero(one, target.advantages_BT)


def test_gae_in_python_floats() -> None:
    """Every answer by itself, from the last token to the first."""
    one = scored()
    target = found("gae", one)
    assert one.anchor_BT is not None
    assert one.values_BT is not None
    assert target.returns_BT is not None
    for row, length in enumerate(one.lengths):
        running = following = 0.0
        for step in reversed(range(length)):
            reward = -BETA * float(one.old_BT[row, step] - one.anchor_BT[row, step])
            reward += SCORES[row] if step == length - 1 else 0.0
            value = float(one.values_BT[row, step])
            running = reward + 0.9 * following - value + 0.9 * 0.8 * running
            following = value
            assert float(target.advantages_BT[row, step]) == pytest.approx(running, abs=1e-5)
            assert float(target.returns_BT[row, step]) == pytest.approx(running + value, abs=1e-5)


def test_each_whitening_changes_what_it_says_and_nothing_else() -> None:
    one = scored()
    plain = found("gae", one)
    rewards, advantages = found("gae", one, whiten_rewards=True), found("gae", one, whiten_advantages=True)
    assert torch.equal(advantages.returns_BT, plain.returns_BT)  # type: ignore[arg-type]
    assert not torch.allclose(rewards.returns_BT, plain.returns_BT)  # type: ignore[arg-type]
    assert torch.equal(rewards.rewards_B, plain.rewards_B), "what is shown as the reward is not whitened"
    inside = advantages.advantages_BT[one.mask_BT]
    assert float(inside.mean()) == pytest.approx(0, abs=1e-6)
    assert float(inside.square().mean()) == pytest.approx(1, abs=1e-5)
    assert abs(float(plain.advantages_BT[one.mask_BT].mean())) > 0.05
    # Whitened rewards keep their mean: with γ = λ = 1 and a critic that says 0 they add up to it.
    silent = replace(one, values_BT=torch.zeros_like(one.old_BT))
    sums = [
        found("gae", silent, gamma=1.0, lam=1.0, whiten_rewards=switch).advantages_BT[:, 0] for switch in (False, True)
    ]
    assert float(sums[1].sum()) == pytest.approx(float(sums[0].sum()), abs=1e-4)
    assert not torch.allclose(*sums)


# ── an answer as one action ──────────────────────────────────────────────────────────────────────


def of_answers(one: Episodes, target: Targets) -> list[float]:
    """The advantage of each answer, which all of its tokens have."""
    first_B1 = target.advantages_BT[:, :1]
    assert torch.equal(target.advantages_BT, torch.where(one.mask_BT, first_B1, torch.zeros_like(one.old_BT)))
    assert target.level == "answer"
    assert target.returns_BT is None
    return first_B1[:, 0].tolist()


@pytest.mark.parametrize("beta", [0.0, BETA])
@pytest.mark.parametrize("samples", [2, 4])
def test_rloo_compares_with_the_other_answers_to_the_prompt(samples: int, beta: float) -> None:
    one = scored(samples=samples)
    returns, wanted = penalised(one, beta), []
    for row in range(8):
        first = row // samples * samples
        others = [returns[other] for other in range(first, first + samples) if other != row]
        wanted.append(returns[row] - sum(others) / len(others))
    target = found("rloo", one, beta)
    assert of_answers(one, target) == pytest.approx(wanted, abs=1e-5)
    assert target.rewards_B.tolist() == pytest.approx(returns, abs=1e-5)


def test_groups_of_equal_returns_are_counted_and_teach_nothing() -> None:
    one = scored([0.1, 0.1, 0.1, 0.1, 0.3, 0.3, 0.3, 0.4], samples=4)
    target = found("rloo", one, 0.0)
    assert target.idle == 4
    assert of_answers(one, target)[:4] == [0.0] * 4
    assert all(of_answers(one, target)[4:])
    idle = found("rloo", scored([0.1] * 8), 0.0, whiten_advantages=True)
    assert idle.idle == 8
    assert not idle.advantages_BT.any(), "and whitened they are 0 and not NaN"
    assert found("rloo", scored([0.1] * 8), BETA).idle == 0, "with a KL penalty they differ"


def test_reinforce_against_the_mean_of_all_other_answers() -> None:
    one = scored()
    returns = penalised(one, BETA)
    wanted = [value - (sum(returns) - value) / 7 for value in returns]
    assert of_answers(one, found("reinforce", one, baseline="mean")) == pytest.approx(wanted, abs=1e-5)


def test_reinforce_without_a_baseline() -> None:
    one = scored()
    assert of_answers(one, found("reinforce", one, baseline="none")) == pytest.approx(penalised(one, BETA), abs=1e-5)


def test_a_running_baseline_is_the_mean_of_the_batches_before() -> None:
    numbers, baseline = estimating("reinforce", baseline="running"), RunningMean()
    seen: list[float] = []
    for scores in (SCORES, [3.0, 1.0], [0.0, -9.0, 0.5, 2.0]):
        one = replace(
            support.episodes(support.LENGTHS[: len(scores)]), judged=Judged(np.array(scores), np.zeros(8), {})
        )
        target = targets(one, numbers, beta=BETA, baseline=baseline)
        returns = penalised(one, BETA)
        before = sum(seen) / len(seen) if seen else 0.0
        assert of_answers(one, target) == pytest.approx([value - before for value in returns], abs=1e-5)
        seen += returns
    assert baseline.count == 14
    assert baseline.mean == pytest.approx(sum(seen) / 14, abs=1e-6)


@pytest.mark.parametrize("kind", ["rloo", "reinforce"])
def test_advantages_of_answers_are_whitened_over_answers(kind: str) -> None:
    """Not over their tokens: a long answer has no more say than a short one."""
    one = scored()
    plain = np.array(of_answers(one, found(kind, one)))
    whitened = of_answers(one, found(kind, one, whiten_advantages=True))
    assert whitened == pytest.approx((plain - plain.mean()) / plain.std(), abs=1e-5)


def test_what_lies_behind_an_answers_end_has_no_influence() -> None:
    one = scored()
    behind = torch.where(one.mask_BT, 0.0, torch.nan)
    names = ("old_BT", "anchor_BT", "values_BT")
    other = replace(one, **{name: getattr(one, name) + behind for name in names})
    for kind in ("gae", "rloo", "reinforce"):
        switches = {"whiten_rewards": True, "whiten_advantages": True}
        plain, disturbed = found(kind, one, **switches), found(kind, other, **switches)
        assert torch.equal(plain.advantages_BT, disturbed.advantages_BT)
        assert torch.equal(plain.rewards_B, disturbed.rewards_B)


# ── two processes ────────────────────────────────────────────────────────────────────────────────


def half(one: Episodes, rows: slice) -> Episodes:
    """The answers that one process holds."""
    groups = slice(rows.start // one.samples, rows.stop // one.samples)
    tensors = {name: getattr(one, name)[rows] for name in ("mask_BT", "old_BT", "anchor_BT", "values_BT", "drawn_BT")}
    assert one.judged is not None
    judged = Judged(one.judged.total[rows], one.judged.score[rows], {})
    return replace(
        one, prompts=one.prompts[groups], prompt_ids=one.prompt_ids[groups], answers=one.answers[rows], judged=judged,
        **tensors,
    )  # fmt: skip


class Processes:
    """Two that sum what each of them gives, as a reduction over processes does: all at once, in the same order."""

    def __init__(self) -> None:
        self._meeting = threading.Barrier(2, timeout=20)
        self._given: list[Tensor] = [torch.tensor(0.0)] * 2

    def total(self, rank: int) -> Callable[[Tensor], Tensor]:
        def summed(value: Tensor) -> Tensor:
            self._given[rank] = value
            self._meeting.wait()
            result = self._given[0] + self._given[1]
            self._meeting.wait()
            return result

        return summed


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gae", {"whiten_rewards": True, "whiten_advantages": True}),
        ("rloo", {"whiten_advantages": True}),
        ("reinforce", {"baseline": "mean"}),
        ("reinforce", {"baseline": "running", "whiten_advantages": True}),
    ],
)
def test_two_processes_find_what_one_with_all_answers_finds(kind: str, changes: dict[str, Any]) -> None:
    """The second batch meets a running mean that the first has left."""
    whole, numbers = scored(), estimating(kind, **changes)
    alone, running = RunningMean(), [RunningMean(), RunningMean()]
    processes = Processes()
    rows = (slice(0, 4), slice(4, 8))

    def work(rank: int) -> Targets:
        mine = half(whole, rows[rank])
        return targets(mine, numbers, beta=BETA, baseline=running[rank], total=processes.total(rank))

    for _ in range(2):
        wanted = targets(whole, numbers, beta=BETA, baseline=alone)
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(work, range(2)))
        for rank, mine in enumerate(both):
            torch.testing.assert_close(mine.advantages_BT, wanted.advantages_BT[rows[rank]], atol=1e-5, rtol=1e-5)
            assert running[rank].mean == pytest.approx(alone.mean, abs=1e-6)
            assert running[rank].count == alone.count


def test_equal_answers_teach_nothing_even_where_rounding_tells_them_apart() -> None:
    """One answer scored in several rows, or at several places of a line, differs in its last bits."""
    one = scored([0.1, 0.1 + 1e-7, 0.5, 0.9, 0.3, 0.3 - 1e-7, 0.2, 0.4])
    one.answers[0] = one.answers[1]
    one.answers[4] = one.answers[5]
    for whitened in (False, True):
        target = found("rloo", one, BETA, whiten_advantages=whitened)
        assert target.idle == 4
        for row in (0, 1, 4, 5):
            assert not target.advantages_BT[row].any()
        assert target.advantages_BT[2].any()
