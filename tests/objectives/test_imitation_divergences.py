"""Chunked imitation against autograd over whole distributions in float64; divergences against numbers and bounds."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from alignment.objectives import imitation
from alignment.objectives.divergences import FLOOR, divergence
from alignment.objectives.imitation import IGNORE, Likeliest, TeacherHead, chunked_imitation, chunked_nll

N, D, E, V, K = 29, 10, 14, 43, 6
KINDS = [("forward_kl", 0.5), ("reverse_kl", 0.5), ("jsd", 0.1), ("jsd", 0.5), ("jsd", 0.9), ("jsd", 0.0), ("jsd", 1.0)]


# --- a reference that knows no chunks, no blocks and no derivative --------------------------------------------------


def plain_divergence(kind, beta, p, q):
    """Of probabilities: 0 log 0 = 0, and a teacher's probability is never below that of the floor."""
    p = p.clamp(min=math.exp(FLOOR))

    def kl(a, b):
        return torch.where(a > 0, a * (a / b).log(), 0.0).sum(-1)

    if kind == "forward_kl" or (kind == "jsd" and beta == 0):
        return kl(p, q)
    if kind == "reverse_kl" or beta == 1:
        return kl(q, p)
    mixture = beta * p + (1 - beta) * q
    return beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)


def capped(hidden, weight, softcap):
    logits = hidden.double() @ weight.double().T
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def grouped(q, ids):
    """Probabilities of the likeliest, and of any other token."""
    others = torch.ones_like(q).scatter(-1, ids, 0.0)
    return torch.cat([q.gather(-1, ids), (q * others).sum(-1, keepdim=True)], -1)


def plain(hidden, weight, labels, teacher, *, divergence, beta, temperature, nll_weight, softcap, weights_S=None):
    """(loss, divergence_S, nll_S) in float64, differentiable."""
    kept = labels != IGNORE
    logits = capped(hidden[kept], weight, softcap)
    q = (logits / temperature).softmax(-1)
    mass = torch.ones_like(q[:, 0])
    if isinstance(teacher, Likeliest):
        q = grouped(q, teacher.ids_SK.long())
        p = torch.cat([teacher.logprobs_SK, teacher.tail_S[:, None]], -1).double().exp()
        p = p / p.sum(-1, keepdim=True)
    else:
        common = min(len(teacher.weight_UE), len(weight))
        told = capped(teacher.hidden_SE, teacher.weight_UE, teacher.softcap)[:, :common]
        p, mass = (told / temperature).softmax(-1), q[:, :common].sum(-1)
        q = q[:, :common] / mass[:, None]
    value = plain_divergence(divergence, beta, p.detach(), q) - mass.log()
    nll = functional.cross_entropy(logits, labels[kept], reduction="none")
    weights = torch.ones_like(nll) if weights_S is None else weights_S.double()
    return (weights * ((1 - nll_weight) * temperature**2 * value + nll_weight * nll)).sum(), value, nll


# --- material --------------------------------------------------------------------------------------------------------


def student(dtype=torch.float64, seed=0, vocabulary=V):
    """Logits of a few units, so that a cap of 5 bites; every third position carries no loss."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, D, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(0, vocabulary, (N,), generator=generator)
    labels[::3] = IGNORE
    return hidden, weight, labels


def in_memory(labels, dtype=torch.float64, vocabulary=V, softcap=4.0, seed=1):
    generator = torch.Generator().manual_seed(seed)
    rows = int((labels != IGNORE).sum())
    hidden, weight = (torch.randn(size, E, generator=generator).to(dtype) for size in (rows, vocabulary))
    return TeacherHead(hidden, weight, softcap)


def stored(head, temperature=1.0, k=K):
    logits = capped(head.hidden_SE, head.weight_UE, head.softcap) / temperature
    logprobs, ids = logits.log_softmax(-1).topk(k)
    tail = logits.log_softmax(-1).scatter(-1, ids, -math.inf).logsumexp(-1)
    return Likeliest(ids.to(torch.int32), logprobs.to(head.hidden_SE.dtype), tail.to(head.hidden_SE.dtype))


def settings_of(**changed):
    usual = {"divergence": "forward_kl", "beta": 0.5, "temperature": 1.0, "nll_weight": 0.0, "softcap": 5.0}
    return {**usual, **changed}


def both(hidden, weight, labels, teacher, chunk_tokens=7, **settings):
    """(ours, reference), each: loss, gradients for hidden and weight, divergence_S, nll_S."""
    ours = chunked_imitation(hidden, weight, labels, teacher, chunk_tokens=chunk_tokens, **settings)
    loss, value, nll = plain(hidden, weight, labels, teacher, **settings)
    found = [ours.loss.detach(), *torch.autograd.grad(ours.loss, (hidden, weight)), ours.divergence_S, ours.nll_S]
    expected = [loss, *torch.autograd.grad(loss, (hidden, weight)), value, nll]
    return found, [tensor.detach() for tensor in expected]


def assert_same(found, expected, relative):
    """Relative to the size of the whole tensor: a gradient's small entries are differences of large ones."""
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert (ours.double() - theirs.double()).norm() <= relative * theirs.double().norm()


# --- divergences -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "beta", "expected"),
    [
        # Σ p log(p / q) with p = (.7, .2, .1), q = (.1, .3, .6): .7 ln 7 + .2 ln(2/3) + .1 ln(1/6) = 1.101868.
        ("forward_kl", 0.5, 1.101868),
        # .1 ln(1/7) + .3 ln(3/2) + .6 ln 6 = 1.002104.
        ("reverse_kl", 0.5, 1.002104),
        ("jsd", 0.1, 0.092674),
        ("jsd", 0.5, 0.230645),
        ("jsd", 0.9, 0.086497),
        ("jsd", 0.0, 1.101868),
        ("jsd", 1.0, 1.002104),
    ],
)
def test_numbers(kind, beta, expected):
    teacher, learner = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.1, 0.3, 0.6]).log()
    assert divergence(kind, beta, teacher, learner).value.item() == pytest.approx(expected, abs=1e-6)


distributions = st.lists(st.floats(-8, 8), min_size=5, max_size=5).map(
    lambda logits: torch.tensor(logits, dtype=torch.float64).log_softmax(-1)
)


@given(teacher=distributions, learner=distributions, beta=st.floats(0.01, 0.99))
@settings(max_examples=60, deadline=None)
def test_the_jsd_lies_between_zero_and_the_entropy_of_its_mixture(teacher, learner, beta):
    value, gradient = divergence("jsd", beta, teacher, learner)
    # JSD_β is the information of a coin with P(teacher) = β about the token: at most the coin's entropy.
    assert -1e-12 <= value <= -beta * math.log(beta) - (1 - beta) * math.log1p(-beta) + 1e-12
    assert gradient.sum().abs() < 1e-12
    # Swapping the two and β with 1 − β changes nothing.
    assert divergence("jsd", 1 - beta, learner, teacher).value.item() == pytest.approx(value.item(), abs=1e-12)


@given(teacher=distributions, learner=distributions)
@settings(max_examples=30, deadline=None)
def test_the_jsd_near_its_limits_is_the_kl_times_what_vanishes(teacher, learner):
    teacher, learner = ((one / 3).log_softmax(-1) for one in (teacher, learner))
    forward, reverse = (divergence(kind, 0.5, teacher, learner) for kind in ("forward_kl", "reverse_kl"))
    for beta, limit in ((1e-7, forward), (1 - 1e-7, reverse)):
        near = divergence("jsd", beta, teacher, learner)
        assert near.value.item() / 1e-7 == pytest.approx(limit.value.item(), rel=1e-2, abs=1e-6)
        assert (near.gradient / 1e-7 - limit.gradient).norm() < 1e-2 * limit.gradient.norm() + 1e-6


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_a_teachers_zero_is_finite_and_right(kind, beta):
    probabilities = torch.tensor([[0.6, 0.4, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    logits = torch.tensor([[0.3, -1.0, 0.5], [2.0, 0.1, -3.0]], dtype=torch.float64, requires_grad=True)
    expected = plain_divergence(kind, beta, probabilities, logits.softmax(-1))
    (gradient,) = torch.autograd.grad(expected.sum(), logits)
    found = divergence(kind, beta, probabilities.log(), logits.detach().log_softmax(-1))
    torch.testing.assert_close(found.value, expected.detach(), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(found.gradient, gradient, atol=1e-9, rtol=1e-9)


# --- chunked imitation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "beta"), KINDS)
@pytest.mark.parametrize("kept", ["head", "likeliest"])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("nll_weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_the_reference(kind, beta, kept, softcap, temperature, nll_weight, weighted):
    for dtype, relative in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        hidden, weight, labels = student(dtype)
        teacher = in_memory(labels, dtype)
        teacher = teacher if kept == "head" else stored(teacher, temperature)
        weights = torch.linspace(0, 2, int((labels != IGNORE).sum())) if weighted else None
        found, expected = both(
            hidden,
            weight,
            labels,
            teacher,
            divergence=kind,
            beta=beta,
            temperature=temperature,
            nll_weight=nll_weight,
            softcap=softcap,
            weights_S=weights,
        )
        assert_same(found, expected, relative)
        assert found[1][labels == IGNORE].count_nonzero() == 0


@pytest.mark.parametrize(("kind", "beta"), KINDS[:4])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("vocabulary", [V - 11, V + 11])
def test_another_padded_vocabulary(kind, beta, temperature, vocabulary):
    hidden, weight, labels = student()
    teacher = in_memory(labels, vocabulary=vocabulary)
    changed = {"divergence": kind, "beta": beta, "temperature": temperature, "nll_weight": 0.3}
    found, expected = both(hidden, weight, labels, teacher, **settings_of(**changed))
    assert_same(found, expected, 1e-11)
    if kind == "forward_kl" and vocabulary < V:
        # The whole KL divergence, the teacher giving nothing to what it lacks.
        told = capped(teacher.hidden_SE, teacher.weight_UE, teacher.softcap) / temperature
        p = functional.pad(told.softmax(-1), (0, V - vocabulary))
        q = (capped(hidden[labels != IGNORE], weight, 5.0) / temperature).softmax(-1)
        assert_same([found[3]], [torch.where(p > 0, p * (p / q).log(), 0.0).sum(-1)], 1e-11)


def test_chunks_and_blocks_change_nothing(monkeypatch):
    hidden, weight, labels = student()
    for teacher in (in_memory(labels), stored(in_memory(labels))):
        whole = both(hidden, weight, labels, teacher, chunk_tokens=1000, **settings_of(nll_weight=0.3))[0]
        for chunk, block in itertools.product((1, 5, 19), (1, 3 * V)):
            monkeypatch.setattr(imitation, "BLOCK_OF_A_THREAD", block)
            found = both(hidden, weight, labels, teacher, chunk_tokens=chunk, **settings_of(nll_weight=0.3))[0]
            assert_same(found, whole, 1e-13)
        monkeypatch.undo()


def test_gradients_by_finite_differences():
    hidden, weight, _ = student()
    labels = torch.tensor([3, IGNORE, 8, 0])
    few = [tensor.detach()[:rows].requires_grad_() for tensor, rows in ((hidden, 4), (weight, 9))]
    for teacher in (in_memory(labels, vocabulary=7), stored(in_memory(labels, vocabulary=9), k=3)):
        for kind, beta in KINDS[:3]:
            changed = settings_of(divergence=kind, beta=beta, temperature=1.5, nll_weight=0.4, softcap=2.0)
            assert torch.autograd.gradcheck(
                lambda h, w, t=teacher, c=changed: chunked_imitation(h, w, labels, t, chunk_tokens=2, **c).loss, few
            )


def test_nll_alone_is_chunked_nll_and_a_teacher_of_ones_own_opinion_pulls_nowhere():
    hidden, weight, labels = student()
    alone = chunked_nll(hidden, weight, labels, softcap=5.0)
    spoilt = in_memory(labels)._replace(hidden_SE=torch.full((19, E), torch.nan, dtype=torch.float64))
    mixed = chunked_imitation(hidden, weight, labels, spoilt, **settings_of(nll_weight=1.0))
    for ours, theirs in zip(
        *(torch.autograd.grad(loss, (hidden, weight)) for loss in (mixed.loss, alone)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    assert mixed.loss.item() == pytest.approx(alone.item())
    assert mixed.nll_S.sum().item() == pytest.approx(alone.item())
    assert mixed.divergence_S.isnan().all()

    same = TeacherHead(hidden.detach()[labels != IGNORE], weight.detach(), 5.0)
    for teacher, (kind, beta) in itertools.product((same, stored(same)), KINDS):
        agreed = chunked_imitation(hidden, weight, labels, teacher, **settings_of(divergence=kind, beta=beta))
        assert agreed.divergence_S.abs().max() < 1e-13
        assert all(gradient.norm() < 1e-12 for gradient in torch.autograd.grad(agreed.loss, (hidden, weight)))


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_of_the_likeliest_it_is_a_lower_bound_that_grows_with_their_number(kind, beta):
    hidden, weight, labels = student()
    head, changed = in_memory(labels), settings_of(divergence=kind, beta=beta)
    whole = chunked_imitation(hidden, weight, labels, head, **changed).divergence_S
    last = torch.zeros_like(whole)
    for k in (1, 2, 5, 12, 30, V - 1):
        found = chunked_imitation(hidden, weight, labels, stored(head, k=k), **changed).divergence_S
        assert (found >= last - 1e-12).all()
        assert (found <= whole + 1e-12).all()
        last = found
    # V − 1 likeliest and one other are all of them.
    torch.testing.assert_close(last, whole)


def test_a_tail_shaped_like_the_students_loses_nothing():
    hidden, weight, labels = student()
    kept = labels != IGNORE
    q = capped(hidden.detach()[kept], weight.detach(), 5.0).log_softmax(-1)
    ids = q.topk(K).indices
    # The teacher moves mass among the likeliest, and between them and the rest: there it is the student, scaled.
    moved = (q + torch.zeros_like(q).scatter(-1, ids, torch.linspace(-2, 2, K, dtype=q.dtype).expand(19, K))).softmax(
        -1
    )
    rest = torch.log1p(-moved.gather(-1, ids).sum(-1))
    told = Likeliest(ids, moved.gather(-1, ids).log(), rest)
    for kind, beta in KINDS:
        found = chunked_imitation(hidden, weight, labels, told, **settings_of(divergence=kind, beta=beta))
        expected = plain_divergence(kind, beta, moved, q.exp())
        torch.testing.assert_close(found.divergence_S, expected, atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_shares_of_zero_are_no_nan(kind, beta):
    hidden, weight, labels = student(torch.float32)
    told = stored(in_memory(labels, torch.float32))
    zeros = told._replace(tail_S=torch.full_like(told.tail_S, -math.inf))
    zeros.logprobs_SK[:, -2:] = -math.inf
    found, expected = both(hidden, weight, labels, zeros, **settings_of(divergence=kind, beta=beta))
    assert all(tensor.isfinite().all() for tensor in found)
    assert_same(found, expected, 2e-5)


def test_a_students_tail_keeps_its_digits_where_it_is_too_small_for_one_minus_the_sum():
    # Logits 40, 0, 0, −1: the others of the first share e^−40 (2 + e^−1), which 1 − Σ rounds to 0 in fp32.
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[40.0], [0.0], [0.0], [-1.0]], requires_grad=True)
    told = Likeliest(torch.tensor([[0]]), torch.tensor([[0.25]]).log(), torch.tensor([0.75]).log())
    found, expected = both(hidden, weight, torch.tensor([2]), told, **settings_of(softcap=None))
    # .25 ln .25 + .75 (ln .75 + 40 − ln(2 + e^−1)) = 28.791
    assert found[3].item() == pytest.approx(28.791, abs=1e-3)
    assert_same(found, expected, 1e-6)
    # Ten times as far, e^−400 is nothing to fp32, nor to float64's 1 − Σ; its logarithm and its derivative are whole.
    wide = (weight.detach() * 10).requires_grad_()
    ours = chunked_imitation(hidden, wide, torch.tensor([2]), told, **settings_of(softcap=None))
    # .25 ln .25 + .75 (ln .75 + 400 − ln 2): each of the two zeros has half of the others' derivative, −.75.
    assert ours.loss.item() == pytest.approx(298.9178, abs=1e-3)
    (gradient,) = torch.autograd.grad(ours.loss, wide)
    assert gradient.squeeze().tolist() == pytest.approx([0.75, -0.375, -0.375, 0.0], abs=1e-4)


def test_an_id_beyond_the_students_vocabulary_is_left_out():
    hidden, weight, labels = student()
    told = stored(in_memory(labels), k=4)
    shares = told.logprobs_SK.exp()
    # The third likeliest is a row that the student lacks: the others keep their proportions.
    padded = told._replace(ids_SK=told.ids_SK.clone())
    padded.ids_SK[:, 2] = V + 5
    fewer = Likeliest(*(one[:, [0, 1, 3]] for one in told[:2]), told.tail_S)
    assert shares[:, 2].min() > 1e-3
    for kind, beta in KINDS:
        changed = settings_of(divergence=kind, beta=beta, nll_weight=0.2)
        found = chunked_imitation(hidden, weight, labels, padded, **changed)
        expected = chunked_imitation(hidden, weight, labels, fewer, **changed)
        torch.testing.assert_close(found.divergence_S, expected.divergence_S)
        for ours, theirs in zip(
            *(torch.autograd.grad(one.loss, (hidden, weight)) for one in (found, expected)), strict=True
        ):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_what_is_not_finite_shows(bad, kind, beta):
    hidden, weight, labels = student()
    head = in_memory(labels)
    head.hidden_SE[3, 2] = bad
    changed = settings_of(divergence=kind, beta=beta)
    uncapped = head._replace(softcap=None)
    told = stored(in_memory(labels))
    told.logprobs_SK[3, 2] = bad
    tail = stored(in_memory(labels))
    tail.tail_S[3] = bad
    for teacher in (uncapped, told, tail):
        found = chunked_imitation(hidden, weight, labels, teacher, **changed)
        assert not found.loss.isfinite()
        assert found.divergence_S.isfinite().logical_not().nonzero().tolist() == [[3]]
        assert found.nll_S.isfinite().all()


def test_rounding_of_what_is_stored_is_scaled_away():
    hidden, weight, labels = student()
    told = stored(in_memory(labels))
    louder = Likeliest(told.ids_SK, told.logprobs_SK + 0.01, told.tail_S + 0.01)
    for kind, beta in KINDS:
        changed = settings_of(divergence=kind, beta=beta)
        one, other = (chunked_imitation(hidden, weight, labels, teacher, **changed) for teacher in (told, louder))
        torch.testing.assert_close(one.divergence_S, other.divergence_S)


def test_one_side_alone_needs_a_gradient():
    hidden, weight, labels = student()
    teacher, changed = in_memory(labels), settings_of(nll_weight=0.2)
    expected = both(hidden, weight, labels, teacher, **changed)[1]
    fixed_head = chunked_imitation(hidden, weight.detach(), labels, teacher, **changed)
    fixed_trunk = chunked_imitation(hidden.detach(), weight, labels, teacher, **changed)
    found = [*torch.autograd.grad(fixed_head.loss, hidden), *torch.autograd.grad(fixed_trunk.loss, weight)]
    assert_same(found, expected[1:3], 1e-12)
    with torch.no_grad():
        silent = chunked_imitation(hidden, weight, labels, teacher, **changed)
    assert not silent.loss.requires_grad
    assert_same([silent.loss, silent.divergence_S], [expected[0], expected[3]], 1e-12)


def test_no_gradient_goes_to_the_teacher_or_to_the_figures():
    hidden, weight, labels = student()
    head = TeacherHead(*(one.requires_grad_() for one in in_memory(labels)[:2]), 4.0)
    weights = torch.ones(19, requires_grad=True)
    found = chunked_imitation(hidden, weight, labels, head, weights_S=weights, **settings_of())
    found.loss.backward()
    assert head.hidden_SE.grad is head.weight_UE.grad is weights.grad is None
    assert not found.divergence_S.requires_grad
    assert not found.nll_S.requires_grad


def test_upstream_scales_and_may_come_twice():
    hidden, weight, labels = student()
    once = both(hidden, weight, labels, in_memory(labels), **settings_of())[0]
    scaled = chunked_imitation(hidden, weight, labels, in_memory(labels), **settings_of()).loss / 4
    for _ in range(2):
        again = torch.autograd.grad(scaled, (hidden, weight), retain_graph=True)
        assert_same([*again], [gradient / 4 for gradient in once[1:3]], 1e-14)


@pytest.mark.parametrize("kept", ["head", "likeliest"])
def test_without_any_position_the_loss_is_zero(kept):
    hidden, weight, labels = student()
    labels = torch.full_like(labels, IGNORE)
    teacher = in_memory(labels)
    teacher = teacher if kept == "head" else stored(teacher)
    found = chunked_imitation(hidden, weight, labels, teacher, **settings_of(nll_weight=0.5))
    assert found.loss.item() == 0
    assert found.divergence_S.shape == found.nll_S.shape == (0,)
    assert all(gradient.count_nonzero() == 0 for gradient in torch.autograd.grad(found.loss, (hidden, weight)))


def test_positions_without_loss_have_no_influence_even_as_nan():
    hidden, weight, labels = student()
    spoilt = torch.where((labels == IGNORE)[:, None], torch.nan, hidden.detach()).requires_grad_()
    expected = both(hidden, weight, labels, in_memory(labels), **settings_of())[0]
    ours = chunked_imitation(spoilt, weight, labels, in_memory(labels), chunk_tokens=7, **settings_of())
    found = [ours.loss.detach(), *torch.autograd.grad(ours.loss, (spoilt, weight))]
    assert all(torch.equal(one, other) for one, other in zip(found, expected[:3], strict=True))


@pytest.mark.parametrize("kept", ["head", "likeliest"])
def test_in_bf16_and_under_autocast_the_softmax_is_fp32(kept, monkeypatch):
    # Several pieces of the weight's sum, which is wider than the products.
    monkeypatch.setattr(imitation, "ROWS_OF_A_PRODUCT", 10)
    hidden, weight, labels = student(torch.float32)
    head = in_memory(labels, torch.float32)
    teacher = head if kept == "head" else stored(head)
    changed = settings_of(divergence="jsd", beta=0.3, nll_weight=0.2)
    _, expected = both(hidden, weight, labels, teacher, **changed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = chunked_imitation(hidden, weight, labels, teacher, chunk_tokens=7, **changed)
    under = [ours.loss.detach(), *torch.autograd.grad(ours.loss, (hidden, weight)), *ours[1:]]
    assert {tensor.dtype for tensor in under} == {torch.float32}

    narrow = [tensor.detach().bfloat16().requires_grad_() for tensor in (hidden, weight)]
    told = TeacherHead(head.hidden_SE.bfloat16(), head.weight_UE.bfloat16(), 4.0) if kept == "head" else teacher
    ours = chunked_imitation(*narrow, labels, told, chunk_tokens=7, **changed)
    # Halved on its way, which rounds nothing.
    gradients = [gradient * 2 for gradient in torch.autograd.grad(ours.loss / 2, narrow)]
    assert [tensor.dtype for tensor in (ours.loss, *gradients)] == [torch.float32, torch.bfloat16, torch.bfloat16]
    for found in (under, [ours.loss.detach(), *gradients, *ours[1:]]):
        # bf16 keeps 8 bits: a product is right to 2^-8 of its size; over ten of them and logits of ±5 it adds up.
        assert_same(found, expected, 0.03)


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that any operation returns, and how many matrix products there are."""

    elements = products = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.products += function._overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_)
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("kept", ["head", "likeliest"])
def test_no_temporary_is_tokens_times_vocabulary_and_no_product_is_made_twice(kept):
    hidden, weight = torch.randn(96, 8, requires_grad=True), torch.randn(64, 8, requires_grad=True)
    teacher = TeacherHead(torch.randn(96, 8), torch.randn(64, 8), 5.0)
    told = teacher if kept == "head" else stored(teacher)
    with Largest() as mode:
        chunked_imitation(hidden, weight, torch.arange(96) % 64, told, chunk_tokens=16, **settings_of()).loss.backward()
    assert mode.elements == 16 * 64
    # Six chunks: the student's logits, its two gradients, and the teacher's logits where it is in memory.
    assert mode.products == 6 * (4 if kept == "head" else 3)
