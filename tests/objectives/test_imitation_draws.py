"""Forward KL with draws among the others: against autograd in float64, and without bias for the whole divergence."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from alignment.objectives import imitation
from alignment.objectives.imitation import IGNORE, Likeliest, TeacherHead, chunked_imitation

N, D, E, V, K, M = 17, 9, 11, 37, 5, 4
KINDS = [("forward_kl", 0.5), ("jsd", 0.0)]
OTHERS = [("reverse_kl", 0.5), ("jsd", 0.5), ("jsd", 1.0)]


# --- material --------------------------------------------------------------------------------------------------------


def student(dtype=torch.float64, vocabulary=V):
    """Logits of a few units, so that a cap of 5 bites; every third position carries no loss."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, D, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(0, vocabulary, (N,), generator=generator)
    labels[::3] = IGNORE
    return hidden, weight, labels


def in_memory(labels, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    rows = int((labels != IGNORE).sum())
    hidden, weight = (torch.randn(size, E, generator=generator).to(dtype) for size in (rows, V))
    return TeacherHead(hidden, weight, 4.0)


def teacher_logprobs(head, temperature=1.0):
    logits = head.hidden_SE.double() @ head.weight_UE.double().T
    return (4.0 * torch.tanh(logits / 4.0) / temperature).log_softmax(-1)


def told(head, drawn, temperature=1.0, dtype=torch.float64):
    """K likeliest with these draws, and the others' shares among them; ``drawn`` counts these, in the order of ids."""
    logprobs = teacher_logprobs(head, temperature)
    ids = logprobs.topk(K).indices
    rest = logprobs.scatter(-1, ids, -math.inf)
    tail = rest.logsumexp(-1)
    others = torch.ones_like(rest).scatter(-1, ids, 0.0).nonzero()[:, 1].view(len(ids), -1)
    among = (rest - tail[:, None]).exp().gather(-1, others)
    parts = (logprobs.gather(-1, ids).to(dtype), tail.to(dtype))
    return Likeliest(ids, *parts, others.gather(-1, drawn).int(), torch.special.entr(among).sum(-1).to(dtype)), among


def some(labels, count=M):
    rows = int((labels != IGNORE).sum())
    return torch.randint(0, V - K, (rows, count), generator=torch.Generator().manual_seed(2))


def settings_of(**changed):
    usual = {"divergence": "forward_kl", "beta": 0.5, "temperature": 1.0, "nll_weight": 0.0, "softcap": 5.0}
    return {**usual, **changed}


def found(hidden, weight, labels, teacher, chunk_tokens=4, **settings):
    """Loss, both gradients, divergence_S, nll_S."""
    ours = chunked_imitation(hidden, weight, labels, teacher, chunk_tokens=chunk_tokens, **settings)
    gradients = torch.autograd.grad(ours.loss, (hidden, weight))
    return [ours.loss.detach(), *gradients, ours.divergence_S, ours.nll_S]


def plain(hidden, weight, labels, teacher, *, temperature, nll_weight, softcap, weights_S=None, **_):
    """The same of forward KL by its definition, one token after the other, in float64."""
    kept = labels != IGNORE
    logits = hidden.double()[kept] @ weight.double().T
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    values = []
    for row, one in enumerate((logits / temperature).softmax(-1)):
        ids, drawn = teacher.ids_SK[row].tolist(), teacher.drawn_SM[row].tolist()
        others = [index for index in range(len(one)) if index not in ids]
        rest = one[others].sum()
        p = torch.cat([teacher.logprobs_SK[row], teacher.tail_S[row, None]]).double().exp()
        p = p / p.sum()
        value = sum(share * (share / one[index]).log() for share, index in zip(p[:-1], ids, strict=True))
        value = value + p[-1] * (p[-1] / rest).log()
        crossed = -sum((one[index] / rest).log() for index in drawn) / len(drawn)
        values.append(value + p[-1] * (crossed - teacher.entropy_S[row].double()))
    value, nll = torch.stack(values), functional.cross_entropy(logits, labels[kept], reduction="none")
    weights = torch.ones_like(nll) if weights_S is None else weights_S.double()
    loss = (weights * ((1 - nll_weight) * temperature**2 * value + nll_weight * nll)).sum()
    gradients = torch.autograd.grad(loss, (hidden, weight))
    return [tensor.detach() for tensor in (loss, *gradients, value, nll)]


def assert_same(one, other, relative):
    for ours, theirs in zip(one, other, strict=True):
        assert (ours.double() - theirs.double()).norm() <= relative * theirs.double().norm()


# --- against the definition ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"divergence": "jsd", "beta": 0.0},
        {"softcap": None},
        {"temperature": 2.0},
        {"temperature": 0.5, "nll_weight": 0.3},
        {"chunk_tokens": 1},
        {"chunk_tokens": 100},
        {"weights_S": torch.linspace(0.1, 2.0, 11)},
    ],
)
def test_it_is_the_definitions(changed, monkeypatch):
    # Blocks of two rows, so that their seams are crossed.
    monkeypatch.setattr(imitation, "BLOCK_OF_A_THREAD", 2 * V // torch.get_num_threads())
    hidden, weight, labels = student()
    teacher, _ = told(in_memory(labels), some(labels), changed.get("temperature", 1.0))
    settings = settings_of(**{name: value for name, value in changed.items() if name != "chunk_tokens"})
    expected = plain(hidden, weight, labels, teacher, **settings)
    assert_same(found(hidden, weight, labels, teacher, changed.get("chunk_tokens", 4), **settings), expected, 1e-12)


def test_by_hand():
    # Logits 0, 0, 0, ln 3: q = (1, 1, 1, 3) / 6. The likeliest is the last, with 1/2; the others have 1/2, and two of
    # three draws are the first. KL of two outcomes is 0. KL(p̃‖q̃) ≈ −0.9 + ln 3, halved: 0.099306. The gradient is
    # q − τ counts / 3 at the others: 1/6 − 1/3, 1/6 − 1/6, 1/6.
    hidden, weight = torch.ones(1, 1), torch.tensor([[0.0], [0.0], [0.0], [math.log(3)]], requires_grad=True)
    half = torch.tensor([[0.5]]).log()
    teacher = Likeliest(torch.tensor([[3]]), half, half[0], torch.tensor([[0, 1, 0]]), torch.tensor([0.9]))
    ours = chunked_imitation(hidden, weight, torch.tensor([2]), teacher, **settings_of(softcap=None))
    assert ours.loss.item() == pytest.approx(0.5 * (math.log(3) - 0.9), abs=1e-6)
    assert ours.divergence_S.item() == pytest.approx(0.099306, abs=1e-6)
    (gradient,) = torch.autograd.grad(ours.loss, weight)
    assert gradient.squeeze().tolist() == pytest.approx([-1 / 6, 0.0, 1 / 6, 0.0], abs=1e-6)


@pytest.mark.parametrize(("temperature", "softcap"), [(1.0, None), (1.7, 5.0)])
def test_its_expectation_is_the_whole_divergence(temperature, softcap):
    """One draw, every other in turn, each with its chance: no chance is left in the comparison."""
    hidden, weight, labels = student()
    head = in_memory(labels)
    settings = settings_of(temperature=temperature, softcap=softcap, nll_weight=0.1)
    whole = found(hidden, weight, labels, head, **settings)
    expected = [torch.zeros_like(one) for one in whole]
    for place in range(V - K):
        drawn = torch.full((len(head.hidden_SE), 1), place)
        teacher, among = told(head, drawn, temperature)
        # What weighs a token weighs its whole loss: chances sum to 1 for each.
        one = found(hidden, weight, labels, teacher, weights_S=among[:, place], **settings)
        for total, part, chance in zip(expected, one, (1, 1, 1, among[:, place], among[:, place]), strict=True):
            total += part * chance
    assert_same(expected, whole, 1e-12)
    # It is the draws that tell of it: without them a good part is missing.
    blind = told(head, drawn, temperature)[0]._replace(drawn_SM=None, entropy_S=None)
    assert (found(hidden, weight, labels, blind, **settings)[3] < 0.9 * whole[3]).all()


def test_many_draws_are_the_mean_of_each():
    hidden, weight, labels = student()
    head, drawn = in_memory(labels), some(labels)
    together = found(hidden, weight, labels, told(head, drawn)[0], **settings_of())
    each = [found(hidden, weight, labels, told(head, column)[0], **settings_of()) for column in drawn.split(1, -1)]
    assert_same([sum(parts) / M for parts in zip(*each, strict=True)], together, 1e-12)


def test_of_a_uniform_tail_all_drawn_once_nothing_is_left_open():
    hidden, weight, labels = student()
    rows = int((labels != IGNORE).sum())
    logprobs = torch.zeros(rows, V, dtype=torch.float64)
    logprobs[:, [3, 8, 20, 21, 30]] = torch.linspace(1.0, 3.0, K, dtype=torch.float64)
    # A head that says exactly that: hidden states of one 1, and its logits for weights.
    head = TeacherHead(torch.ones(rows, 1, dtype=torch.float64), logprobs[0][:, None], None)
    logprobs = logprobs.log_softmax(-1)
    ids = logprobs.topk(K).indices
    others = torch.tensor([index for index in range(V) if index not in ids[0].tolist()]).expand(rows, -1)
    tail = logprobs.gather(-1, others).logsumexp(-1)
    entropy = torch.full((rows,), math.log(V - K), dtype=torch.float64)
    teacher = Likeliest(ids, logprobs.gather(-1, ids), tail, others, entropy)
    whole = found(hidden, weight, labels, head, **settings_of(softcap=None))
    assert_same(found(hidden, weight, labels, teacher, **settings_of(softcap=None)), whole, 1e-12)


# --- where draws say nothing, or nothing that can be used ------------------------------------------------------------


@pytest.mark.parametrize(("kind", "beta"), OTHERS)
def test_of_the_other_divergences_draws_tell_nothing(kind, beta):
    hidden, weight, labels = student()
    teacher, _ = told(in_memory(labels), some(labels))
    blind = teacher._replace(drawn_SM=None, entropy_S=None)
    changed = settings_of(divergence=kind, beta=beta)
    for ours, theirs in zip(*(found(hidden, weight, labels, one, **changed) for one in (teacher, blind)), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_others_of_share_zero_are_no_nan(kind, beta):
    hidden, weight, labels = student(torch.float32)
    teacher, _ = told(in_memory(labels), some(labels), dtype=torch.float32)
    none = teacher._replace(
        tail_S=torch.full_like(teacher.tail_S, -math.inf), entropy_S=torch.zeros_like(teacher.tail_S)
    )
    # What was drawn where there was nothing to draw from means nothing, and may be a likeliest id.
    none.drawn_SM[:] = none.ids_SK[:, :M]
    blind = none._replace(drawn_SM=None, entropy_S=None)
    changed = settings_of(divergence=kind, beta=beta)
    for ours, theirs in zip(*(found(hidden, weight, labels, one, **changed) for one in (none, blind)), strict=True):
        assert ours.isfinite().all()
        assert torch.equal(ours, theirs)


def test_draws_beyond_the_students_vocabulary_are_left_out():
    hidden, weight, labels = student()
    teacher, _ = told(in_memory(labels), some(labels))
    padded = teacher._replace(drawn_SM=teacher.drawn_SM.clone())
    padded.drawn_SM[:, 1] = V
    padded.drawn_SM[::2, 3] = V + 1000
    # Every other row knows two of four, the rest three: each as if there had been no others.
    three = teacher._replace(drawn_SM=teacher.drawn_SM[:, [0, 2, 3]])
    two = teacher._replace(drawn_SM=teacher.drawn_SM[:, [0, 2]])
    rows = torch.arange(len(teacher.tail_S)) % 2 == 0
    ours = found(hidden, weight, labels, padded, **settings_of())
    parts = [
        found(hidden, weight, labels, one, weights_S=here.double(), **settings_of())
        for one, here in ((two, rows), (three, ~rows))
    ]
    assert_same(ours[:3], [sum(both) for both in zip(*(part[:3] for part in parts), strict=True)], 1e-12)
    assert_same(ours[3:4], [torch.where(rows, parts[0][3], parts[1][3])], 1e-12)


def test_where_all_draws_are_beyond_it_nothing_is_told_of_the_others():
    hidden, weight, labels = student()
    teacher, _ = told(in_memory(labels), some(labels))
    beyond = teacher._replace(drawn_SM=torch.full_like(teacher.drawn_SM, V))
    blind = teacher._replace(drawn_SM=None, entropy_S=None)
    assert_same(*(found(hidden, weight, labels, one, **settings_of()) for one in (beyond, blind)), 1e-12)


def test_a_likeliest_id_beyond_it_leaves_the_draws_as_they_are():
    hidden, weight, labels = student()
    teacher, _ = told(in_memory(labels), some(labels))
    padded = teacher._replace(ids_SK=teacher.ids_SK.clone(), logprobs_SK=teacher.logprobs_SK.clone())
    padded.ids_SK[:, 2] = V + 5
    fewer = teacher._replace(ids_SK=teacher.ids_SK[:, [0, 1, 3, 4]], logprobs_SK=teacher.logprobs_SK[:, [0, 1, 3, 4]])
    assert_same(*(found(hidden, weight, labels, one, **settings_of()) for one in (padded, fewer)), 1e-12)


def test_rounding_of_what_is_stored_is_scaled_away():
    hidden, weight, labels = student()
    teacher, _ = told(in_memory(labels), some(labels))
    louder = teacher._replace(logprobs_SK=teacher.logprobs_SK + 0.01, tail_S=teacher.tail_S + 0.01)
    assert_same(*(found(hidden, weight, labels, one, **settings_of()) for one in (louder, teacher)), 1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_entropy_that_is_not_finite_shows(bad):
    hidden, weight, labels = student()
    teacher, _ = told(in_memory(labels), some(labels))
    teacher.entropy_S[3] = bad
    ours = chunked_imitation(hidden, weight, labels, teacher, **settings_of())
    assert ours.divergence_S.isfinite().logical_not().nonzero().tolist() == [[3]]


# --- arithmetic ------------------------------------------------------------------------------------------------------


def test_in_fp32_and_under_autocast():
    hidden, weight, labels = student()
    teacher, _ = told(in_memory(labels), some(labels))
    exact = plain(hidden, weight, labels, teacher, **settings_of())
    single = student(torch.float32)
    narrow = teacher._replace(
        logprobs_SK=teacher.logprobs_SK.float(), tail_S=teacher.tail_S.float(), entropy_S=teacher.entropy_S.float()
    )
    ours = found(*single, narrow, **settings_of())
    assert ours[0].dtype == ours[3].dtype == torch.float32
    assert_same(ours, exact, 1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = found(*single, narrow, **settings_of())
    assert half[3].dtype == torch.float32
    # bf16 keeps 8 bits of a product.
    assert_same(half, exact, 2e-2)


def test_without_a_gradient_the_value_is_the_same():
    hidden, weight, labels = student()
    teacher, _ = told(in_memory(labels), some(labels))
    with torch.no_grad():
        silent = chunked_imitation(hidden, weight, labels, teacher, **settings_of())
    assert not silent.loss.requires_grad
    assert_same([silent.divergence_S], [found(hidden, weight, labels, teacher, **settings_of())[3]], 1e-14)
