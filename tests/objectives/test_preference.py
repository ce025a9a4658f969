"""Bradley–Terry with a margin and the safety loss: numbers worked out by hand, gradients by differences."""

from __future__ import annotations

import math
import random

import pytest
import torch

from alignment.objectives.preference import UNKNOWN, bradley_terry, safety_loss


def softplus(x: float) -> float:
    """log(1 + eˣ), for any x: −log σ(−x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


@pytest.mark.parametrize(
    # log(1 + e^(m − 1)) for a gap of 1: Llama 2's small table is 1, 2/3, 1/3, 0, its large one 3, 2, 1, 0.
    ("margin", "loss"),
    [(0.0, 0.3133), (1 / 3, 0.4144), (2 / 3, 0.5403), (1.0, 0.6931), (2.0, 1.3133), (3.0, 2.1269)],
)
def test_the_loss_of_a_gap_of_one_by_margin(margin: float, loss: float) -> None:
    chosen, rejected = torch.tensor([2.5]), torch.tensor([1.5])
    assert bradley_terry(chosen, rejected, margin).item() == pytest.approx(loss, abs=5e-5)
    assert bradley_terry(chosen, rejected, torch.tensor([margin])).item() == pytest.approx(loss, abs=5e-5)


def test_every_pair_has_a_loss_of_its_own_under_its_own_margin() -> None:
    """Against a reference in Python floats, which share nothing with torch."""
    rng = random.Random(0)
    pairs = [(rng.gauss(0, 3), rng.gauss(0, 3), rng.choice((0.0, 1 / 3, 1.0, 3.0))) for _ in range(50)]
    chosen_P, rejected_P, margin_P = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    losses_P = bradley_terry(chosen_P, rejected_P, margin_P)
    assert losses_P.shape == (50,)
    wanted = [softplus(-(chosen - rejected - margin)) for chosen, rejected, margin in pairs]
    assert losses_P.tolist() == pytest.approx(wanted, rel=1e-12)


def test_only_the_gap_counts_and_a_tie_costs_one_bit() -> None:
    chosen_P, rejected_P = torch.tensor([0.3, -2.0]).double(), torch.tensor([0.1, 1.0]).double()
    assert torch.allclose(bradley_terry(chosen_P + 7, rejected_P + 7), bradley_terry(chosen_P, rejected_P))
    assert bradley_terry(chosen_P, chosen_P).tolist() == pytest.approx([math.log(2)] * 2)
    # The margin is a lead that is asked for: with it, the loss is log 2 exactly where the gap reaches it.
    assert bradley_terry(rejected_P + 2, rejected_P, 2.0).tolist() == pytest.approx([math.log(2)] * 2)


def differences(loss, values: torch.Tensor, step: float = 1e-6) -> torch.Tensor:
    """The gradient of a sum of losses by central differences."""
    found = torch.zeros_like(values)
    for place in range(len(values)):
        moved = torch.zeros_like(values)
        moved[place] = step
        found[place] = (loss(values + moved).sum() - loss(values - moved).sum()) / (2 * step)
    return found


def test_gradients_are_those_of_the_formula() -> None:
    generator = torch.Generator().manual_seed(1)
    chosen_P, rejected_P = torch.randn((2, 8), generator=generator, dtype=torch.float64)
    margin_P = torch.tensor([0.0, 1 / 3, 2 / 3, 1.0, 2.0, 3.0, 0.0, 1.0]).double()
    chosen_P.requires_grad_()
    rejected_P.requires_grad_()
    bradley_terry(chosen_P, rejected_P, margin_P).sum().backward()
    wanted = differences(lambda values: bradley_terry(values, rejected_P.detach(), margin_P), chosen_P.detach())
    assert torch.allclose(chosen_P.grad, wanted, atol=1e-8)
    assert torch.allclose(rejected_P.grad, -wanted, atol=1e-8)

    scores_N = torch.randn(6, generator=generator, dtype=torch.float64, requires_grad=True)
    safe_N = torch.tensor([1, 0, UNKNOWN, 1, 0, UNKNOWN])
    safety_loss(scores_N, safe_N).sum().backward()
    wanted = differences(lambda values: safety_loss(values, safe_N), scores_N.detach())
    assert torch.allclose(scores_N.grad, wanted, atol=1e-8)


def test_the_safety_loss_wants_safe_answers_above_zero() -> None:
    # −log σ(2) = 0.126928, −log σ(−2) = 2.126928, −log σ(0) = 0.693147.
    scores_N = torch.tensor([2.0, 2.0, -2.0, -2.0, 0.0, 0.0])
    safe_N = torch.tensor([1, 0, 1, 0, 1, 0])
    wanted = [0.126928, 2.126928, 2.126928, 0.126928, 0.693147, 0.693147]
    assert safety_loss(scores_N, safe_N).tolist() == pytest.approx(wanted, abs=1e-6)


def test_an_answer_without_a_label_costs_nothing_and_teaches_nothing() -> None:
    scores_N = torch.tensor([5.0, -5.0, 1.0], requires_grad=True)
    losses_N = safety_loss(scores_N, torch.tensor([UNKNOWN, UNKNOWN, 1]))
    losses_N.sum().backward()
    assert losses_N[:2].tolist() == [0.0, 0.0]
    assert scores_N.grad[:2].tolist() == [0.0, 0.0]
    # d/dr of −log σ(r) is σ(r) − 1.
    assert scores_N.grad[2].item() == pytest.approx(1 / (1 + math.exp(-1)) - 1, abs=1e-6)


def test_huge_scores_do_not_overflow() -> None:
    big = torch.tensor([1e4, -1e4, 3e38], requires_grad=True)
    losses_P = bradley_terry(big, -big, 3.0)
    assert losses_P[0].item() == 0.0
    assert losses_P[1].item() == pytest.approx(20_003)
    bradley_terry(big[:2], -big[:2], 3.0).sum().backward()
    # The gradient of −log σ(g) is σ(g) − 1 in the chosen score, and both scores move here.
    assert big.grad[:2].tolist() == [0.0, -2.0]
    scores_N = torch.tensor([1e4, 1e4, -1e4, -1e4], requires_grad=True)
    losses_N = safety_loss(scores_N, torch.tensor([1, 0, 1, 0]))
    assert losses_N.tolist() == [0.0, 1e4, 1e4, 0.0]
    losses_N.sum().backward()
    assert scores_N.grad.tolist() == [0.0, 1.0, -1.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_precision_of_the_scores_is_kept(dtype: torch.dtype) -> None:
    scores = torch.zeros(2, dtype=dtype)
    assert bradley_terry(scores, scores, 1.0).dtype == dtype
    assert safety_loss(scores, torch.tensor([1, UNKNOWN])).dtype == dtype
