"""Masked sums, whitening, log-probabilities and KL estimators, each against arithmetic written out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignment.objectives import tokens

NAN = float("nan")


def test_masked_sum_and_mean_ignore_what_lies_outside():
    values = torch.tensor([[1.0, NAN, 3.0], [float("inf"), 5.0, -2.0]])
    mask = torch.tensor([[1, 0, 1], [0, 1, 0]])
    assert tokens.masked_sum(values, mask).item() == 9
    assert tokens.masked_sum(values, mask, dim=1).tolist() == [4, 5]
    assert tokens.masked_mean(values, mask).item() == 3  # 9 / 3, not the mean of row means 2 and 5
    assert tokens.masked_mean(values, mask, dim=1).tolist() == [2, 5]
    assert math.isnan(tokens.masked_mean(values, torch.zeros_like(mask)).item())


def test_masked_sum_has_no_gradient_outside_the_mask():
    values = torch.tensor([1.0, NAN, 3.0], requires_grad=True)
    tokens.masked_sum(values * values, torch.tensor([True, False, True])).backward()
    assert values.grad[[0, 2]].tolist() == [2, 6]


def test_whiten_by_hand():
    # (1, 2, 6): mean 3, population variance (4 + 1 + 9) / 3 = 14/3, deviation 2.160247.
    values, mask = torch.tensor([1.0, 99.0, 2.0, 6.0]), torch.tensor([1, 0, 1, 1])
    centred = torch.tensor([-0.925820, 0.0, -0.462910, 1.388730])
    torch.testing.assert_close(tokens.masked_whiten(values, mask, center=True), centred, atol=1e-6, rtol=0)
    kept = torch.where(mask.bool(), centred + 3, 0)
    torch.testing.assert_close(tokens.masked_whiten(values, mask, center=False), kept, atol=1e-6, rtol=0)


def test_whitening_equal_values_gives_zeros():
    assert tokens.masked_whiten(torch.full((4,), 7.0), torch.ones(4), center=True).tolist() == [0] * 4


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk_tokens", [1, 4, 100])
def test_gather_logprobs_and_their_gradients(softcap, temperature, chunk_tokens):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(11, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(17, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(0, 17, (11,), generator=generator)
    logits = hidden @ weight.T
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    expected = (logits / temperature).log_softmax(-1)[torch.arange(11), ids]
    found = tokens.gather_logprobs(
        hidden, weight, ids, softcap=softcap, temperature=temperature, chunk_tokens=chunk_tokens
    )
    torch.testing.assert_close(found, expected)
    upstream = torch.randn(11, generator=generator, dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad(found, (hidden, weight), upstream),
        torch.autograd.grad(expected, (hidden, weight), upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        again = tokens.gather_logprobs(hidden, weight, ids, softcap=softcap, temperature=temperature, chunk_tokens=3)
    torch.testing.assert_close(again, expected.detach())


def test_exact_kl_by_hand():
    # P = (.7, .2, .1), S = (.1, .3, .6): KL(P‖S) = 1.101868, KL(S‖P) = 1.002104. Logits are free of their constant.
    p, s = torch.tensor([0.7, 0.2, 0.1]).log() + 5, torch.tensor([0.1, 0.3, 0.6]).log() - 2
    assert tokens.exact_kl(p, s).item() == pytest.approx(1.101868, abs=1e-6)
    assert tokens.exact_kl(s, p).item() == pytest.approx(1.002104, abs=1e-6)
    assert tokens.exact_kl(torch.stack([p, s]), torch.stack([s, s])).tolist() == pytest.approx([1.101868, 0], abs=1e-6)


def test_exact_kl_where_p_gives_nothing():
    p, q = torch.tensor([0.0, 0.0, -math.inf]), torch.tensor([0.0, 0.0, -math.inf])
    assert tokens.exact_kl(p, q).item() == 0


@pytest.mark.parametrize("estimator", [tokens.kl_k1, tokens.kl_k3])
def test_estimators_are_unbiased(estimator):
    # The mean over tokens drawn from P, taken exactly: Σ P · estimate = KL(P‖S).
    p, s = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.1, 0.3, 0.6])
    assert (p * estimator(p.log(), s.log())).sum().item() == pytest.approx(1.101868, abs=1e-6)


@given(st.floats(-30, 0), st.floats(-30, 0))
def test_k3_is_never_negative_and_k1_may_be(logprob, reference):
    p, q = torch.tensor([logprob]), torch.tensor([reference])
    assert tokens.kl_k3(p, q).item() >= 0
    assert tokens.kl_k1(p, q).item() == pytest.approx(p.item() - q.item())
