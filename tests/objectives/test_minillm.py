"""MiniLLM's pieces by hand, and its gradient against that of the reverse KL over all answers there are."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from alignment.objectives.imitation import TeacherHead, chunked_imitation
from alignment.objectives.minillm import future_rewards, importance_weights, long_term_loss, mixed_logprobs

MASK = torch.tensor([[True, True, True, True], [True, True, False, False], [True, False, False, False]])
STUDENT = torch.tensor([[-1.0, -2.0, -0.5, -1.5], [-0.1, -3.0, math.nan, 0.0], [-1.0, 9.0, math.nan, 0.0]])
TEACHER = torch.tensor([[-2.0, -1.0, -1.0, -3.5], [-0.6, -1.0, 0.0, math.nan], [-7.0, 9.0, math.nan, 0.0]])


def test_future_rewards_by_hand():
    # log p − log q: (−1, 1, −.5, −2), (−.5, 2), (−6); summed over the later tokens, the last having none.
    sums = future_rewards(TEACHER - STUDENT, MASK, normalised=False)
    torch.testing.assert_close(sums, torch.tensor([[-1.5, -2.5, -2.0, 0.0], [2.0, 0.0, 0.0, 0.0], [0.0] * 4]))
    means = future_rewards(TEACHER - STUDENT, MASK, normalised=True)
    torch.testing.assert_close(means, torch.tensor([[-0.5, -1.25, -2.0, 0.0], [2.0, 0.0, 0.0, 0.0], [0.0] * 4]))


def test_rewards_with_the_tokens_own_by_hand():
    sums = future_rewards(TEACHER - STUDENT, MASK, normalised=False, own=True)
    torch.testing.assert_close(sums, torch.tensor([[-2.5, -1.5, -2.5, -2.0], [1.5, 2.0, 0, 0], [-6.0, 0, 0, 0]]))
    means = future_rewards(TEACHER - STUDENT, MASK, normalised=True, own=True)
    torch.testing.assert_close(means, torch.tensor([[-0.625, -0.5, -1.25, -2.0], [0.75, 2.0, 0, 0], [-6.0, 0, 0, 0]]))


def test_mixture_and_weights_by_hand():
    q, p = torch.tensor([[0.5, 0.1, 0.9]]), torch.tensor([[0.5, 0.9, 0.0]])
    # .2 p + .8 q = .5, .26, .72
    drawn = mixed_logprobs(q.log(), p.log(), teacher_share=0.2)
    torch.testing.assert_close(drawn.exp(), torch.tensor([[0.5, 0.26, 0.72]]))
    weights = importance_weights(q.log(), drawn, torch.tensor([[True, True, True]]))
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0.1 / 0.26, 1.25]]))
    assert torch.equal(mixed_logprobs(q.log(), p.log(), teacher_share=0.0), q.log())
    inside = importance_weights(STUDENT, STUDENT, MASK)
    assert torch.equal(inside, MASK.float())


def test_the_ratio_is_to_what_drew_and_it_is_clipped():
    now = torch.tensor([[0.3, 0.6, 0.3]]).log().requires_grad_()
    drawn, futures = torch.tensor([[0.25, 0.3, 0.3]]).log(), torch.tensor([[2.0, 1.0, -1.0]])
    found = long_term_loss(now, drawn, futures, torch.tensor([[True, True, False]]), clip=0.2)
    # ρ = 1.2 (not beyond), 2 (held at 1.2): −(1.2 · 2 + 1.2 · 1); the gradient is −ρ R where it is free, else 0.
    assert found.loss.item() == pytest.approx(-3.6)
    assert (int(found.terms), int(found.clipped)) == (2, 1)
    (gradient,) = torch.autograd.grad(found.loss, now)
    torch.testing.assert_close(gradient[:, 1:], torch.zeros(1, 2))


# --- all answers of three tokens over three pieces, by tables of logits for every beginning --------------------------

PIECES, LENGTH = 3, 3
ANSWERS = torch.tensor(list(itertools.product(range(PIECES), repeat=LENGTH)))
BEGINNINGS = {beginning: n for n, beginning in enumerate(
    beginning for length in range(LENGTH) for beginning in itertools.product(range(PIECES), repeat=length)
)}  # fmt: skip
STATES = torch.tensor([[BEGINNINGS[tuple(one[:t])] for t in range(LENGTH)] for one in ANSWERS.tolist()])


def tables():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(len(BEGINNINGS), PIECES, generator=generator).double() for _ in range(2))
    return student.requires_grad_(), teacher


def logprobs_of(table):
    """``logprobs_BT`` of every answer."""
    return table.log_softmax(-1)[STATES].gather(-1, ANSWERS[..., None]).squeeze(-1)


def gradient_of(student, teacher, *, exact_first, share=0.0, length=LENGTH):
    """The expected gradient of MiniLLM, over all answers with the probability that each is drawn with."""
    answers_q, answers_p = logprobs_of(student)[:, :length], logprobs_of(teacher)[:, :length]
    drawn = mixed_logprobs(answers_q, answers_p, teacher_share=share).detach()
    mask = torch.ones_like(drawn, dtype=torch.bool)
    chance = drawn.sum(-1).exp() * PIECES ** (length - LENGTH)
    futures = future_rewards(answers_p - answers_q, mask, normalised=False, own=not exact_first)
    loss = long_term_loss(answers_q, drawn, futures * chance[:, None], mask, clip=0.9).loss
    if exact_first:
        weights = importance_weights(answers_q, drawn, mask) * chance[:, None]
        states = STATES[:, :length].flatten()
        head = TeacherHead(teacher[states], torch.eye(PIECES, dtype=torch.float64), None)
        loss = loss + chunked_imitation(
            student[states],
            torch.eye(PIECES, dtype=torch.float64),
            ANSWERS[:, :length].flatten(),
            head,
            divergence="reverse_kl",
            beta=0.5,
            temperature=1.0,
            nll_weight=0.0,
            softcap=None,
            weights_S=weights.flatten(),
        ).loss  # fmt: skip
    return torch.autograd.grad(loss, student)[0]


def test_its_expected_gradient_is_that_of_the_reverse_kl_of_whole_answers():
    student, teacher = tables()
    q, p = (logprobs_of(table).sum(-1) for table in (student, teacher))
    (expected,) = torch.autograd.grad((q.exp() * (q - p)).sum(), student)
    assert expected.norm() > 0.1
    for exact_first in (True, False):
        found = gradient_of(student, teacher, exact_first=exact_first)
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


def test_drawn_with_the_teachers_help_a_single_token_has_the_same_gradient():
    student, teacher = tables()
    first = [table[0].log_softmax(-1) for table in (student, teacher)]
    (expected,) = torch.autograd.grad((first[0].exp() * (first[0] - first[1])).sum(), student)
    for exact_first in (True, False):
        found = gradient_of(student, teacher, exact_first=exact_first, share=0.3, length=1)
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
