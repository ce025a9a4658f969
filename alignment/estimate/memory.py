"""The memory of one GPU, phase by phase: what a stage holds all the time, and what each part of a step adds to it.

What is held follows ZeRO (arXiv 1910.02054, §3) as this project runs it (``training/zero.py``): fp32 weights, which are
their own masters and of which autocast makes bf16 copies for the products; fp32 gradients; AdamW's two fp32 moments.
What a step adds is followed in the order of the code: the forward pass through the layers (``arithmetic.layer``), the
loss over the vocabulary, which exists for a chunk of tokens at a time (``objectives/imitation.py`` and ``tokens.py``),
the backward pass, in which gradients come as activations go, and the update. The estimate is the phase that needs most.

Every number is bytes. N tokens of a forward pass, D width, F feed-forward width, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from alignment.estimate.arithmetic import FP32, Arithmetic, Attention, Model, layer, projections

Loss = Literal["nll", "logprobs", "score"]
Parts = dict[str, float]

WEIGHTS, GRADIENTS, OPTIMISER = "weights", "gradients", "optimiser states"
COPIES, ACTIVATIONS, LOGITS, BUFFERS = "bf16 copies of weights", "activations", "logits and loss", "buffers"
CACHE, ANCHOR, CRITIC, REWARDS = "KV cache", "anchor", "critic", "reward models"
TEACHER = "teacher"
PARTS = (
    WEIGHTS, GRADIENTS, OPTIMISER, COPIES, ACTIVATIONS, LOGITS, CACHE, ANCHOR, CRITIC, REWARDS, TEACHER, BUFFERS
)  # fmt: skip

KEPT_LOGITS = 2**24
"""As ``objectives/tokens.py``: so many logits are kept for the backward pass instead of being computed again."""
BUCKET, LIVE, SUBGROUP = 500_000_000, 1_000_000_000, 1_000_000_000
"""DeepSpeed's ``reduce_bucket_size``, ``stage3_max_live_parameters`` and ``sub_group_size``, which stay as they are."""


class Phase(NamedTuple):
    """A moment of a step, and what is held then by part."""

    name: str
    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        """All parts."""
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True)
class Way:
    """What of an engine bears on memory. ``gpus`` share what ``zero`` divides."""

    arithmetic: Arithmetic
    attention: Attention
    checkpointing: bool
    loss_chunk: int
    device: Literal["cpu", "cuda"] = "cuda"
    gpus: int = 1
    zero: int = 0
    offload: bool = False
    gather: bool = True


@dataclass(frozen=True, slots=True)
class Pass:
    """A forward pass: ``lines`` of ``tokens``, of which ``learned`` carry loss; ``trees`` have masks of their own.

    ``more``: a step has several of them, so that gradients are there when one begins.
    """

    lines: int
    tokens: int
    learned: int
    trees: bool = False
    more: bool = False


# ── what is held all the time ────────────────────────────────────────────────────────────────────


def weights(model: Model, way: Way) -> float:
    """fp32 weights: whole on every GPU but under ZeRO 3, which divides them."""
    whole = FP32 * model.held
    if way.zero < 3:
        return whole
    return 0.0 if way.offload else whole / way.gpus


def moments(model: Model, way: Way) -> float:
    """AdamW's two; ZeRO 1 and 2 update a copy of their part of the weights besides."""
    if way.zero and way.offload:
        return 0.0
    size = 2 * FP32 * model.trained
    if not way.zero:
        return size
    return (size + (FP32 * model.trained if way.zero < 3 else 0)) / way.gpus


def gradients(model: Model, way: Way) -> float:
    """fp32, at the end of a backward pass."""
    size = FP32 * model.trained
    if way.zero < 2:
        return size
    return 0.0 if way.offload else size / way.gpus


def buffers(trained: int, held: int, way: Way) -> float:
    """What collectives are gathered in.

    DDP's buckets hold a second copy of all gradients. DeepSpeed's hold ``BUCKET`` numbers: two of them where
    communication overlaps (CUDA), and a third that is sent; ZeRO 3 has one, what is sent, and up to ``LIVE`` numbers of
    gathered weights.
    """
    if not way.zero:
        return FP32 * trained if way.gpus > 1 else 0.0
    sent = FP32 * min(BUCKET, trained)
    if way.zero < 3:
        return FP32 * BUCKET * (2 if way.device == "cuda" else 1) + sent
    return FP32 * BUCKET + sent + FP32 * min(LIVE, held)


# ── a step of one model ──────────────────────────────────────────────────────────────────────────


def supervised(model: Model, way: Way, one: Pass, loss: Loss) -> list[Phase]:
    """The phases of an optimiser step of pretraining, fine-tuning, reward training or DPO."""
    held = between_steps(model, way)
    # Otherwise nobody has to have it whole (``training/zero.py``); DPO asks its policy before and after training.
    asked = [phase("asked", held, {WEIGHTS: FP32 * model.held})] if way.zero == 3 and loss == "logprobs" else []
    return [*learned(model, way, run(model, way, one, loss), held, more=one.more), *asked]


def between_steps(model: Model, way: Way) -> Parts:
    """What a model in training holds all the time."""
    return {
        WEIGHTS: weights(model, way),
        OPTIMISER: moments(model, way),
        BUFFERS: buffers(model.trained, model.held, way),
    }


def idle(held: Parts, way: Way) -> Parts:
    """What of it is there while nothing is learned: DeepSpeed lets go of ZeRO 1's and 2's buckets after a step."""
    return held if way.zero in (0, 3) else {**held, BUFFERS: 0.0}


def learned(model: Model, way: Way, ran: Run, held: Mapping[str, float], *, more: bool) -> list[Phase]:
    """From the loss to the update; ``more``: other passes of the step have left gradients."""
    earlier = gradients(model, way) if more else 0.0
    return [
        phase("loss", held, ran.loss, {GRADIENTS: earlier}),
        *backward(ran, held, earlier),
        update(held, {GRADIENTS: gradients(model, way)}, model.trained, way),
    ]


class Run(NamedTuple):
    """What one model adds at each moment of its way through a forward and a backward pass, gradients left out.

    ``left`` stays while another model computes its backward pass; ``pending`` is the gradient of the head, which waits
    for the embedding's; ``coming`` and ``finished`` are gradients when the first layer is reached, and at the end.
    """

    loss: Parts
    left: Parts
    loss_backward: Parts
    begins: Parts
    ends: Parts
    pending: float
    coming: float
    embedding: float
    finished: float


def run(
    model: Model,
    way: Way,
    one: Pass,
    loss: Loss | Head,
    *,
    acts: bool = False,
    within: bool = False,
    half: bool = False,
) -> Run:
    """``loss`` over the vocabulary may be one that others have counted. ``acts``: a role of reinforcement learning,
    whose head computes in fp32 (``gemma/roles.py``). ``within``: the backward pass runs within autocast too, whose
    copies of weights then stay to its end (``rl/learner.py``). ``half``: the projections are bf16 as they are."""
    each = layer(model, way.arithmetic, way.attention, lines=one.lines, tokens=one.tokens, trees=one.trees)
    layers, whole = model.shape.layers, model.rank is None
    stream = way.arithmetic.residual * one.lines * one.tokens * model.shape.width
    saved = layers * (stream if way.checkpointing else each.saved) + _outside(model, way, one)
    copies = 2.0 * model.matrices if way.arithmetic.casts and not half else 0.0
    of_a_layer = copies / layers
    if way.zero == 3 and copies:
        # DeepSpeed's own linear layer keeps the weight itself: a product makes a copy, and lets go of it.
        copies = of_a_layer = widest(model)
    # Autocast remembers what it has made of trained weights; of frozen ones each product has a copy of its own.
    forward = copies if whole or not way.checkpointing else of_a_layer
    backward = copies if not way.checkpointing or (within and whole) else of_a_layer
    head = loss if isinstance(loss, Head) else head_of(model, one, loss, way, casts=way.arithmetic.casts and not acts)
    embedding = FP32 * model.embedding if whole else 0.0
    finished = gradients(model, way)
    return Run(
        loss={COPIES: forward, ACTIVATIONS: saved, LOGITS: head.forward},
        left={COPIES: backward, ACTIVATIONS: saved, LOGITS: head.left},
        loss_backward={COPIES: backward, ACTIVATIONS: saved, LOGITS: head.backward},
        begins={
            COPIES: backward,
            ACTIVATIONS: saved + each.peak - (0.0 if way.checkpointing else each.saved),
            LOGITS: 0.0 if loss == "score" else embedding,
        },
        ends={
            COPIES: backward if within else of_a_layer,
            ACTIVATIONS: each.peak + (stream if way.checkpointing else 0.0),
        },
        pending=0.0 if loss == "score" else embedding,
        coming=finished * (1 - (2 * model.matrices / layers + (model.embedding if loss == "score" else 0)) / model.held)
        if whole
        else finished,
        embedding=embedding,
        finished=finished,
    )


def widest(model: Model) -> float:
    """Bytes of a projection in bf16, the largest."""
    return 2.0 * max(wide * high for wide, high in projections(model.shape))


def backward(run: Run, held: Mapping[str, float], earlier: float) -> list[Phase]:
    """From the loss to the embedding, whose gradient comes last and is added to the head's: they are one weight.

    ``earlier`` gradients, of the step's other passes, are added to in place.
    """
    waiting = run.pending if earlier else 0.0
    return [
        phase("loss, backward", held, run.loss_backward, {GRADIENTS: earlier}),
        phase("backward begins", held, run.begins, {GRADIENTS: earlier}),
        phase("backward ends", held, run.ends, {GRADIENTS: max(earlier, run.coming), LOGITS: waiting}),
        phase("embedding", held, {GRADIENTS: run.finished, LOGITS: run.embedding + waiting}),
    ]


def update(held: Mapping[str, float], more: Mapping[str, float], trained: int, way: Way) -> Phase:
    """ZeRO 1 and 2 lay their part of the gradients end to end; ZeRO 3 does so a group of parameters at a time."""
    beside = 0.0
    if way.zero and not way.offload:
        part = trained / way.gpus
        beside = FP32 * (part if way.zero < 3 else min(part, SUBGROUP))
    return phase("update", held, more, {BUFFERS: beside})


def phase(name: str, *some: Mapping[str, float]) -> Phase:
    parts: Parts = {}
    for one in some:
        for part, size in one.items():
            parts[part] = parts.get(part, 0.0) + size
    return Phase(name, parts)


def _outside(model: Model, way: Way, one: Pass) -> float:
    """Saved outside of the layers: the final norm, rotary tables, ids, and masks where attention takes tensors."""
    N, D = one.lines * one.tokens, model.shape.width
    norm = N * D * (2 * FP32 if model.rank is None else FP32)
    lines = one.lines if one.trees else 1
    rotary = 2 * way.arithmetic.residual * lines * one.tokens * model.shape.head_dim
    masks = 2 * FP32 * lines * one.tokens**2 if way.attention == "eager" else 0
    return norm + rotary + masks + 16 * N


class Head(NamedTuple):
    """Bytes of the loss over the vocabulary: at the end of the forward pass, between the passes, and when the backward
    pass begins."""

    forward: float
    left: float
    backward: float


def head_of(model: Model, one: Pass, loss: Loss, way: Way, *, casts: bool) -> Head:
    """``nll`` forms its gradients in the forward pass: of the head in fp32, of the states, and of a chunk's logits.

    Those are there three times (capped, their tanh, and what logsumexp exponentiates; without a cap twice), beside the
    gradient of the chunk before. ``logprobs`` are ordinary operations: logits and tanh are kept where they are few
    (``KEPT_LOGITS``), and otherwise computed again a chunk at a time. Its backward pass goes chunk by chunk too: the
    gradient of the softmax takes three tensors of a chunk's logits, and then these are gone.
    """
    N, D, V = one.lines * one.tokens, model.shape.width, model.vocabulary
    p = way.arithmetic.products
    states, C = FP32 * N * D, min(way.loss_chunk, one.learned)
    gradient = FP32 * V * D if model.rank is None else 0
    copy = p * V * D if casts else 0
    capped = model.shape.final_cap is not None
    if loss == "score":
        return Head(states, states, states)
    if loss == "nll":
        chunk = (12 if capped else 8) * C * V + (p * C * V if one.learned > C else 0)
        product = p * C * V + (p * V * D if casts and gradient else 0)
        formed = 2 * states + gradient
        return Head(formed + copy + max(chunk, product), formed, formed + gradient)
    kept = (8 if capped else 4) * C * V
    few = one.learned * V <= KEPT_LOGITS
    every = kept * one.learned / C if few else 0
    left = 2 * states + copy + every
    # The first chunk; the next, beside the head's gradient so far; and the last's, beside that of all others.
    softmax = 12 * C * V + (0 if few else kept)
    if one.learned > C:
        backward = max(every + softmax, every - (kept if few else 0) + softmax + gradient, 2 * gradient + FP32 * C * V)
    else:
        backward = max(every + softmax, gradient + FP32 * C * V)
    return Head(left + 12 * C * V, left, 2 * states + copy + backward)
