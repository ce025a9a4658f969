"""How far a student's distribution is from a teacher's: three divergences, each with its derivative.

Axes: O outcomes of one token (pieces of a vocabulary, or the likeliest of them and "any other"); ``…`` any leading
axes.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Kind = Literal["forward_kl", "reverse_kl", "jsd"]

FLOOR = math.log(torch.finfo(torch.float32).tiny)
"""The least log-probability of a teacher, −87.3 nats. What is below, a zero included, counts as this much: forward KL
and JSD do not notice, and reverse KL, which would be infinite, pushes the student away from it with finite force."""


class Divergence(NamedTuple):
    """``value`` of shape ``[…]`` in nats, and ``gradient`` ``[…, O]`` = d value / d (the student's logits)."""

    value: Tensor
    gradient: Tensor


def divergence(kind: Kind, beta: float, teacher: Tensor, student: Tensor) -> Divergence:
    """The divergence of two distributions over the last axis, given as ``[…, O]`` log-probabilities in nats.

    With P the teacher and Q the student, and both summing to 1:

    - ``forward_kl``: KL(P‖Q) = Σ P (log P − log Q);
    - ``reverse_kl``: KL(Q‖P);
    - ``jsd``: β KL(P‖M) + (1 − β) KL(Q‖M), M = β P + (1 − β) Q (GKD; Agarwal et al., arXiv 2306.13649, eq. 1).

    The last one vanishes as β → 0 or 1, where it is β KL(P‖Q) and (1 − β) KL(Q‖P) to first order. ``beta`` of exactly
    0 or 1 therefore means these limits without the vanishing factor: forward and reverse KL, as GKD and TRL have it.

    A teacher that is nowhere finite gives a value that is not finite either. ``beta`` is that of ``jsd`` alone.
    """
    assert 0 <= beta <= 1, "beta is the teacher's share of the mixture"
    teacher = teacher.clamp(min=FLOOR)
    if kind == "forward_kl" or (kind == "jsd" and beta == 0):
        return _forward_kl(teacher, student)
    if kind == "reverse_kl" or beta == 1:
        return _reverse_kl(teacher, student)
    return _jsd(beta, teacher, student)


def _forward_kl(teacher: Tensor, student: Tensor) -> Divergence:
    p = teacher.exp()
    value = torch.linalg.vecdot(p, teacher - student)
    return Divergence(value, student.exp().sub_(p))


def _reverse_kl(teacher: Tensor, student: Tensor) -> Divergence:
    q, gap = student.exp(), student - teacher
    value = torch.linalg.vecdot(q, gap)
    return Divergence(value, gap.sub_(value[..., None]).mul_(q))


def _jsd(beta: float, teacher: Tensor, student: Tensor) -> Divergence:
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    of_teacher = torch.linalg.vecdot(teacher.exp(), teacher - mixture)
    of_student, gradient = _reverse_kl(mixture, student)
    # d/dQ reaches M too, but adds there only a constant, which the softmax takes away.
    return Divergence(beta * of_teacher + (1 - beta) * of_student, gradient.mul_(1 - beta))
