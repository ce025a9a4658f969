"""Learning from given text and from a teacher's distribution, without ever holding tokens x vocabulary.

Both losses go the same way: positions without loss are left out before any product; of the others some at a time have
logits, and their gradients are formed in the same breath, so that nothing is computed twice.

Axes: N positions, S positions that carry loss, C positions of one chunk, R of one block of a chunk, D the student's
width and V its vocabulary, E the teacher's width and U its vocabulary, K likeliest tokens, O outcomes, M drawn tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alignment.objectives import divergences
from alignment.objectives.divergences import FLOOR, Divergence, Kind

IGNORE = -100
"""The label of a position without loss."""

BLOCK_OF_A_THREAD = 2**18
"""Numbers that one thread of a CPU works on at once: 1 MiB in fp32, so that a chain of small operations stays in its
cache, where it runs four to six times as fast as through the memory."""
BLOCK_OF_A_DEVICE = 2**26
"""The same of an accelerator: few launches, and temporaries of 256 MiB."""
ROWS_OF_A_PRODUCT = 2**12
"""Rows of the vocabulary that are multiplied at once: a product first copies its operands into an order of its own,
which takes no longer in parts, and less memory."""


class TeacherHead(NamedTuple):
    """A teacher in memory: what its last layer gave at the S positions that carry loss, in their order, and its head.

    Where its vocabulary is padded to another size (U ≠ V), the ids that both have are compared.
    """

    hidden_SE: Tensor
    weight_UE: Tensor
    softcap: float | None


class Likeliest(NamedTuple):
    """A teacher whose K < V likeliest tokens are stored, or come from a server.

    ``ids_SK`` are distinct ids, ``logprobs_SK`` theirs and ``tail_S`` the logarithm of what all others share, in nats
    at the temperature of the loss. −inf is a share of 0. They are scaled to sum to 1, which storing rounds.

    ``drawn_SM``, where there are any, are ids drawn from the teacher's distribution over the others at that temperature
    (an id may come again), and ``entropy_S`` is that distribution's entropy in nats.
    """

    ids_SK: Tensor
    logprobs_SK: Tensor
    tail_S: Tensor
    drawn_SM: Tensor | None = None
    entropy_S: Tensor | None = None


class Imitated(NamedTuple):
    """``loss`` is a scalar, differentiable, in fp32 or wider; the others are detached and in nats.

    ``divergence_S`` is without T²; ``nll_S`` is −log p(label) at temperature 1.
    """

    loss: Tensor
    divergence_S: Tensor
    nll_S: Tensor


def chunked_nll(
    hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, *, softcap: float | None, chunk_tokens: int = 1024
) -> Tensor:
    """Sum of −log p(label) over the positions whose label is not −100, in nats: a scalar in fp32.

    p = softmax(softcap · tanh(hidden · weightᵀ / softcap)); without a cap, softmax(hidden · weightᵀ).
    ``labels_N[i]`` is the token that ``hidden_ND[i]`` predicts: the shift by one is the caller's, and so is the
    division by the number of tokens of the global batch.

    ``chunk_tokens`` positions at a time have logits: the largest temporary is ``chunk_tokens`` x V. Works under
    autocast (products in its dtype, the softmax and all sums in fp32). Gradients of gradients are not available.
    """
    positions_S = _positions(hidden_ND, weight_VD, labels_N)
    labels_S = labels_N[positions_S]
    differentiable = _differentiable(hidden_ND, weight_VD)

    def objective(logits_CV: Tensor, rows: slice) -> _Chunk:
        labels_C = labels_S[rows]
        logprobs_CV, tanh_CV = _logprobs(_widened(logits_CV), softcap)
        nll = _nll(logprobs_CV, labels_C).sum()
        if not differentiable:
            return _Chunk(nll, None)
        return _Chunk(nll, _through_cap(_nll_gradient(logprobs_CV, labels_C), tanh_CV).to(logits_CV.dtype))

    return _Chunked.apply(hidden_ND, weight_VD, positions_S, objective, chunk_tokens, differentiable)


def chunked_imitation(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    teacher: TeacherHead | Likeliest,
    *,
    divergence: Kind,
    beta: float,
    temperature: float,
    nll_weight: float,
    softcap: float | None,
    weights_S: Tensor | None = None,
    chunk_tokens: int = 512,
) -> Imitated:
    """Σ_s weights_s · [(1 − nll_weight) · T² · D_s + nll_weight · nll_s] over the S positions whose label is not −100.

    D is the divergence (:func:`alignment.objectives.divergences.divergence`) of the teacher's and the student's
    distributions at temperature T, which divides the capped logits; T² keeps its gradient's size (Hinton et al.,
    arXiv 1503.02531). ``beta`` is that of ``jsd``. No gradient goes to the teacher. Division by the tokens of the
    global batch is the caller's. It is computed as :func:`chunked_nll` is, with two chunks of logits in memory; under
    autocast the teacher's product has its dtype too.

    Of :class:`Likeliest`, D is that of K + 1 outcomes, the last being "any other token": never more than the whole
    divergence (data processing), and equal to it where student and teacher share out their tails alike. An id beyond
    the student's V rows is left out. Forward KL with draws adds what is missing, in expectation over the draws:
    KL(p‖q) = KL of K + 1 outcomes + τ KL(p̃‖q̃), with τ the others' share and p̃, q̃ the distributions among them, and
    KL(p̃‖q̃) ≈ −entropy − mean_m log q̃(drawn_m): value and gradient are without bias (compare sparse logit sampling,
    arXiv 2503.16870). The other divergences are not linear in p, so that draws give no such estimate: they stay at
    K + 1 outcomes.

    Of a :class:`TeacherHead` with U ≠ V, the teacher's distribution is that over the first min(U, V) ids. D compares
    it with the student's over the same ids and adds −log of the student's mass on them: for forward KL that is KL.

    A teacher's values that are not finite are for the caller to refuse: they make ``divergence_S`` not finite.
    """
    assert temperature > 0, "a distribution has a temperature above 0"
    assert 0 <= nll_weight <= 1, "the weight of the negative log-likelihood is a share"
    positions_S = _positions(hidden_ND, weight_VD, labels_N)
    assert len(teacher[0]) == len(positions_S), "the teacher tells of exactly the positions that carry loss"
    labels_S = labels_N[positions_S]
    differentiable = _differentiable(hidden_ND, weight_VD)
    wide = torch.promote_types(_product_dtype(hidden_ND), torch.float32)
    divergence_S, nll_S = (torch.empty(len(labels_S), dtype=wide, device=hidden_ND.device) for _ in range(2))
    scale_S = torch.ones_like(nll_S) if weights_S is None else weights_S.detach().to(wide)
    measure = partial(divergences.divergence, divergence, beta)
    if isinstance(teacher, TeacherHead):
        dtype = _product_dtype(teacher.hidden_SE)
        common_UE = teacher.weight_UE[: len(weight_VD)]
        teacher = TeacherHead(teacher.hidden_SE.to(dtype), common_UE.to(dtype), teacher.softcap)
    elif not (divergence == "forward_kl" or (divergence == "jsd" and beta == 0)):
        teacher = teacher._replace(drawn_SM=None, entropy_S=None)

    def objective(logits_CV: Tensor, rows: slice) -> _Chunk:
        if isinstance(teacher, TeacherHead):
            logits_CU = _logits(teacher.hidden_SE[rows], teacher.weight_UE)
        for block in _blocks(logits_CV):
            place = slice(rows.start + block.start, rows.start + block.stop)
            logprobs_RV, tanh_RV = _logprobs(_widened(logits_CV[block]), softcap)
            nll_S[place] = _nll(logprobs_RV, labels_S[place])
            student_RV = logprobs_RV if temperature == 1 else _logprobs(logprobs_RV / temperature, None)[0]
            if isinstance(teacher, TeacherHead):
                teacher_RU = _logprobs(logits_CU[block].to(wide), teacher.softcap, temperature)[0]
                divergence_S[place], gradient_RV = _with_head(measure, student_RV, teacher_RU)
            else:
                told = Likeliest._make(None if one is None else one[place] for one in teacher)
                divergence_S[place], gradient_RV = _with_likeliest(measure, student_RV, told)
            if differentiable:
                gradient_RV = (
                    gradient_RV.mul_((1 - nll_weight) * temperature) if nll_weight < 1 else gradient_RV.zero_()
                )
                if nll_weight > 0:
                    gradient_RV.add_(_nll_gradient(logprobs_RV, labels_S[place]), alpha=nll_weight)
                logits_CV[block] = _through_cap(gradient_RV.mul_(scale_S[place, None]), tanh_RV)
        loss_C = nll_weight * nll_S[rows]
        if nll_weight < 1:
            loss_C += (1 - nll_weight) * temperature**2 * divergence_S[rows]
        return _Chunk((scale_S[rows] * loss_C).sum(), logits_CV if differentiable else None)

    loss = _Chunked.apply(hidden_ND, weight_VD, positions_S, objective, chunk_tokens, differentiable)
    return Imitated(loss, divergence_S, nll_S)


def _with_head(measure: _Measure, student_RV: Tensor, teacher_RU: Tensor) -> Divergence:
    """Over the ids that both have, of which the teacher's are the first U ≤ V."""
    common = teacher_RU.shape[-1]
    if common == student_RV.shape[-1]:
        return measure(teacher_RU, student_RV)
    student_RU = student_RV[:, :common]
    mass_R1 = student_RU.logsumexp(-1, keepdim=True)
    value_R, gradient_RU = measure(teacher_RU, student_RU - mass_R1)
    # d (−log mass) / d logits is the student's distribution less what it is among the common ids.
    gradient_RV = student_RV.exp()
    gradient_RV[:, :common].sub_((student_RU - mass_R1).exp_()).add_(gradient_RU)
    return Divergence(value_R - mass_R1.squeeze(-1), gradient_RV)


def _with_likeliest(measure: _Measure, student_RV: Tensor, told: Likeliest) -> Divergence:
    """Over K + 1 outcomes: the likeliest, and any other token. The student's share of the others is summed over them,
    because 1 − Σ has no digits left where it is small. With draws, over the others too."""
    assert told.ids_SK.shape[-1] < student_RV.shape[-1], "there are other tokens than the likeliest"
    ids_RK, known_RK = told.ids_SK.long(), told.ids_SK < student_RV.shape[-1]
    # An outcome that the student lacks is one of share 0 for both, in the place of an id that stands there already.
    ids_RK = torch.where(known_RK, ids_RK, ids_RK.gather(-1, known_RK.int().argmax(-1, keepdim=True)))
    others_R1 = student_RV.scatter(-1, ids_RK, -torch.inf).logsumexp(-1, keepdim=True)
    student_RO = torch.cat([torch.where(known_RK, student_RV.gather(-1, ids_RK), FLOOR), others_R1], -1)
    teacher_RO = torch.cat([torch.where(known_RK, told.logprobs_SK, -torch.inf), told.tail_S[:, None]], -1)
    teacher_RO = teacher_RO.to(student_RV.dtype).log_softmax(-1)
    value_R, gradient_RO = measure(teacher_RO, student_RO)
    # Each of the others has its part of their common derivative.
    gradient_RV = (student_RV - others_R1).exp_()
    if told.drawn_SM is None or told.entropy_S is None:
        gradient_RV.mul_(gradient_RO[:, -1:])
    else:
        drawn_RM, known_RM = told.drawn_SM.long(), told.drawn_SM < student_RV.shape[-1]
        drawn_RM = drawn_RM.where(known_RM, 0)
        # The draws that the student knows share τ; where it knows none, it is told nothing of the others.
        part_RM = known_RM * teacher_RO[:, -1:].exp() / known_RM.sum(-1, keepdim=True).clamp(min=1)
        share_R = part_RM.sum(-1)
        value_R -= share_R * told.entropy_S + (part_RM * (student_RV.gather(-1, drawn_RM) - others_R1)).sum(-1)
        gradient_RV.mul_(gradient_RO[:, -1:] + share_R[:, None]).scatter_add_(-1, drawn_RM, -part_RM)
    gradient_RV.scatter_(-1, ids_RK, 0.0).scatter_add_(-1, ids_RK, gradient_RO[:, :-1])
    return Divergence(value_R, gradient_RV)


class _Chunk(NamedTuple):
    """Of one chunk: its summed loss, and d loss / d (hidden · weightᵀ), of the products' dtype."""

    loss: Tensor
    gradient_CV: Tensor | None


_Objective = Callable[[Tensor, slice], _Chunk]
"""Of a chunk's ``logits_CV`` (before the cap; they are overwritten) and its rows among the S."""
_Measure = Callable[[Tensor, Tensor], Divergence]
"""Of the teacher's and the student's log-probabilities."""


def _positions(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> Tensor:
    """``positions_S``: where there is loss."""
    assert labels_N.shape == hidden_ND.shape[:1], "rows and tokens must be one axis, labels beside them"
    assert weight_VD.shape[1] == hidden_ND.shape[1], "hidden and weight differ in width"
    return (labels_N != IGNORE).nonzero().squeeze(-1)


def _differentiable(hidden_ND: Tensor, weight_VD: Tensor) -> bool:
    return torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad)


def _product_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _widened(logits: Tensor) -> Tensor:
    """In fp32 or wider: the very tensor where it is that already."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _logprobs(logits: Tensor, softcap: float | None, temperature: float = 1.0) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities, and tanh(logits / softcap) where there is a cap. ``logits`` are overwritten."""
    tanh = None
    if softcap is not None:
        tanh = logits.div_(softcap).tanh_()
        logits = tanh * softcap
    if temperature != 1:
        logits = logits.div_(temperature)
    return logits.sub_(logits.logsumexp(-1, keepdim=True)), tanh


def _nll(logprobs_CV: Tensor, labels_C: Tensor) -> Tensor:
    return -logprobs_CV.gather(-1, labels_C[:, None]).squeeze(-1)


def _nll_gradient(logprobs_CV: Tensor, labels_C: Tensor) -> Tensor:
    """d nll / d capped logits = p − 1 at the label, in the place of ``logprobs_CV``."""
    gradient_CV = logprobs_CV.exp_()
    return gradient_CV.scatter_add_(-1, labels_C[:, None], gradient_CV.new_full((len(labels_C), 1), -1.0))


def _through_cap(gradient: Tensor, tanh: Tensor | None) -> Tensor:
    """d loss / d logits from that for the capped ones, in its place: d (c · tanh(z / c)) / dz = 1 − tanh²(z / c)."""
    return gradient if tanh is None else gradient.mul_(tanh.square_().neg_().add_(1.0))


def _blocks(logits_CV: Tensor) -> Iterator[slice]:
    """The rows of a chunk that are worked on at once."""
    rows, vocabulary = logits_CV.shape
    numbers = BLOCK_OF_A_THREAD * torch.get_num_threads() if logits_CV.device.type == "cpu" else BLOCK_OF_A_DEVICE
    step = max(1, numbers // vocabulary)
    return (slice(begin, min(begin + step, rows)) for begin in range(0, rows, step))


class _Chunked(torch.autograd.Function):
    """The sum of an objective's chunks, with the gradients that it forms for each."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        positions_S: Tensor,
        objective: _Objective,
        chunk_tokens: int,
        differentiable: bool,
    ) -> Tensor:
        assert chunk_tokens > 0, "a chunk holds at least one token"
        dtype = _product_dtype(hidden_ND)
        wide = torch.promote_types(dtype, torch.float32)
        for_hidden, for_weight = (differentiable and needed for needed in ctx.needs_input_grad[:2])

        gradient_hidden_ND = torch.zeros_like(hidden_ND) if for_hidden else None
        gradient_weight = _zeros(weight_VD, wide) if for_weight else None
        total = torch.zeros((), dtype=wide, device=hidden_ND.device)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            weight = weight_VD.to(dtype)
            for begin in range(0, len(positions_S), chunk_tokens):
                positions_C = positions_S[begin : begin + chunk_tokens]
                hidden_CD = hidden_ND.index_select(0, positions_C).to(dtype)
                loss, gradient_CV = objective(_logits(hidden_CD, weight), slice(begin, begin + len(positions_C)))
                total += loss
                if gradient_hidden_ND is not None and gradient_CV is not None:
                    gradient_CD = torch.zeros_like(hidden_CD, dtype=wide)
                    for part in _parts(weight):
                        _add_product(gradient_CD, gradient_CV[:, part], weight[part])
                    gradient_hidden_ND[positions_C] = gradient_CD.to(hidden_ND.dtype)
                if gradient_weight is not None and gradient_CV is not None:
                    for sum_PD, part in zip(gradient_weight.parts_PD, _parts(weight), strict=True):
                        _add_product(sum_PD, gradient_CV[:, part].T, hidden_CD)
        ctx.save_for_backward(gradient_hidden_ND)
        ctx.gradient_weight = gradient_weight
        ctx.weight_dtype = weight_VD.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_hidden_ND,) = ctx.saved_tensors
        gradient_weight, scaled_hidden_ND, scaled_weight_VD = ctx.gradient_weight, None, None
        # Where the graph is not kept, nobody reads the gradients again: they are scaled where they are, and let go.
        kept = torch._C._autograd._get_current_graph_task_keep_graph()
        ctx.gradient_weight = gradient_weight if kept else None
        if gradient_hidden_ND is not None:
            scaled_hidden_ND = gradient_hidden_ND * upstream if kept else gradient_hidden_ND.mul_(upstream)
        if gradient_weight is not None:
            scaled_weight_VD = _scaled(gradient_weight, upstream, ctx.weight_dtype, kept)
        return scaled_hidden_ND, scaled_weight_VD, None, None, None, None


class _Sum(NamedTuple):
    """The gradient for the weight, while it is summed: in parts of P rows, and whole where it leaves in that dtype."""

    parts_PD: list[Tensor]
    whole_VD: Tensor | None


def _zeros(weight_VD: Tensor, dtype: torch.dtype) -> _Sum:
    if weight_VD.dtype == dtype:
        whole_VD = torch.zeros_like(weight_VD)
        return _Sum([whole_VD[part] for part in _parts(weight_VD)], whole_VD)
    return _Sum([torch.zeros_like(weight_VD[part], dtype=dtype) for part in _parts(weight_VD)], None)


def _scaled(total: _Sum, factor: Tensor, dtype: torch.dtype, kept: bool) -> Tensor:
    """``(total * factor).to(dtype)``. Where ``total`` need not be kept, it is never in memory beside the result."""
    if total.whole_VD is not None:
        return total.whole_VD * factor if kept else total.whole_VD.mul_(factor)
    parts_PD = [*total.parts_PD] if kept else total.parts_PD
    scaled_VD = factor.new_empty(sum(map(len, parts_PD)), parts_PD[0].shape[-1], dtype=dtype)
    for part in reversed([*_parts(scaled_VD)]):
        scaled_VD[part] = parts_PD.pop() * factor
    return scaled_VD


def _logits(hidden_CD: Tensor, weight_VD: Tensor) -> Tensor:
    """``hidden @ weightᵀ``."""
    logits_CV = hidden_CD.new_empty(len(hidden_CD), len(weight_VD))
    for part in _parts(weight_VD):
        logits_CV[:, part] = hidden_CD @ weight_VD[part].T
    return logits_CV


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``, without a temporary where the dtypes allow it."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _parts(rows: Tensor) -> Iterator[slice]:
    return (slice(begin, begin + ROWS_OF_A_PRODUCT) for begin in range(0, len(rows), ROWS_OF_A_PRODUCT))
