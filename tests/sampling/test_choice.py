"""A token from logits and one number."""

from __future__ import annotations

import pytest
import torch

from alignment.sampling.choice import choose, nucleus

P = torch.tensor([0.1, 0.0, 0.4, 0.2, 0.3])
U = torch.tensor([0.0, 0.09, 0.11, 0.49, 0.51, 0.69, 0.71, 0.999], dtype=torch.float64)


def chosen(u=U, temperature=1.0, top_p=1.0, p=P):
    return choose(p.log().expand(len(u), -1), u, temperature=temperature, top_p=top_p)


def test_inverse_distribution_function_by_hand():
    # Cumulated: .1 .1 .5 .7 1; token 1 has no probability and is never drawn.
    assert chosen().ids_B.tolist() == [0, 0, 2, 2, 3, 3, 4, 4]
    torch.testing.assert_close(chosen().logprobs_B.exp(), P[[0, 0, 2, 2, 3, 3, 4, 4]])


def test_the_last_number_below_one_draws_a_possible_token():
    nearly_one = torch.tensor([1 - 2.0**-53], dtype=torch.float64)
    assert chosen(nearly_one, p=torch.tensor([0.3, 0.7, 0.0])).ids_B.tolist() == [1]
    assert chosen(torch.zeros(1, dtype=torch.float64), p=torch.tensor([0.0, 0.7, 0.3])).ids_B.tolist() == [1]


def test_temperature_by_hand():
    # p^(1/½) = (.01, 0, .16, .04, .09) / .30: cumulated .033 .033 .567 .7 1.
    assert chosen(temperature=0.5).ids_B.tolist() == [0, 2, 2, 2, 2, 3, 4, 4]
    assert chosen(temperature=0.5).logprobs_B[-1].exp().item() == pytest.approx(0.3)


def test_greedy_has_the_log_probability_at_one():
    assert chosen(temperature=0).ids_B.tolist() == [2] * 8
    assert chosen(temperature=0).logprobs_B.exp().tolist() == pytest.approx([0.4] * 8)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.3, [2]), (0.4, [2]), (0.41, [2, 4]), (0.75, [2, 3, 4]), (1.0, [0, 2, 3, 4])]
)
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(top_p, kept):
    assert nucleus(P[None], top_p)[0].nonzero().squeeze(-1).tolist() == kept


def test_top_p_draws_from_the_nucleus_and_reports_the_whole():
    # Tokens 2 and 4 remain, .4 and .3: the first up to 4/7 = .571.
    found = chosen(top_p=0.6)
    assert found.ids_B.tolist() == [2, 2, 2, 2, 2, 4, 4, 4]
    assert found.logprobs_B.exp().tolist() == pytest.approx([0.4] * 5 + [0.3] * 3)


def test_a_small_share_after_a_large_one_keeps_its_place():
    """Cumulated in float32, .5 + 1e-8 is .5 again, and the token between two equal halves could never be drawn."""
    assert chosen(torch.tensor([0.5], dtype=torch.float64), p=torch.tensor([0.5, 1e-8, 0.5])).ids_B.tolist() == [1]


def test_a_large_vocabulary_is_reached_to_its_end():
    vocabulary = 1 << 18
    u = torch.tensor([0.25, 0.5, 0.75, 1 - 1e-7], dtype=torch.float64)
    found = choose(torch.zeros(4, vocabulary), u, temperature=1.0, top_p=1.0)
    assert (found.ids_B - (u * vocabulary)).abs().max() < 2
