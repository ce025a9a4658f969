"""The memory of one GPU in distillation: a teacher beside its student, and answers that the student draws.

The student is trained as in fine-tuning (``memory.py``). A teacher in memory is fp32 and not trained; ZeRO 3 divides
it, and keeps its head whole as well (``training/teachers.py``). Of one that is elsewhere there is what it told: its
likeliest tokens. The loss (``objectives/imitation.py``) has a chunk of logits of both, and works on a block of rows at
a time. Answers are drawn when a step begins (``distillation/sources.py``), by reinforcement learning's sampler.

Every number is bytes. N tokens of a forward pass, of which S carry loss, D the student's width and V its vocabulary, E
the teacher's width and U what both vocabularies share, C tokens of a chunk, R of a block, K likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from alignment.estimate import memory
from alignment.estimate.arithmetic import FP32, Model
from alignment.estimate.memory import BUFFERS, GRADIENTS, TEACHER, WEIGHTS, Head, Parts, Pass, Phase, Way, phase
from alignment.estimate.roles import Drawing, forward, logprobs, sampled

BLOCK = {"cpu": 2**18, "cuda": 2**26}
"""Numbers of a block, of one thread on a CPU, as in ``objectives/imitation.py``."""
BLOCKS, BLOCKS_TOLD = 7, 4
"""Blocks in fp32 at the same time: both distributions, their caps, and what the divergence makes of them; or the
student's alone, beside the likeliest tokens that are stored."""
SAMPLER_ROWS = 256
WEIGHED_TOKENS = 8_192
"""Answers that are drawn at once, and tokens whose weights are computed at once, as in ``sampling/sampler.py`` and
``distillation/sources.py``."""


@dataclass(frozen=True, slots=True)
class Teaching:
    """``teacher`` is in memory; or None, and has told ``top_k`` likeliest tokens at each, and ``tail_draws`` others.

    ``drawing``: the student answers itself. ``together``: its teacher draws with it, and what an answer leads to is
    learned by policy gradient (MiniLLM).
    """

    teacher: Model | None
    top_k: int = 0
    tail_draws: int = 0
    drawing: Drawing | None = None
    together: bool = False

    def gathered(self, student: Model) -> float:
        """Bytes of weights that ZeRO 3 gathers to draw a batch of answers."""
        others = self.teacher.held if self.together and self.teacher is not None else 0
        return 0.0 if self.drawing is None else FP32 * (student.held + others)

    @property
    def read(self) -> float:
        """Bytes of weights that ZeRO 3 gathers besides for every forward pass."""
        return 0.0 if self.teacher is None else FP32 * self.teacher.held


def distilled(student: Model, way: Way, one: Pass, teaching: Teaching) -> list[Phase]:
    """The phases of a step: what is drawn, what the teacher says of a pass, and learning from it."""
    teacher, held = teaching.teacher, memory.between_steps(student, way)
    phases: list[Phase] = []
    if teacher is not None:
        held[TEACHER] = _standing(teacher, way)
    if teaching.drawing is not None:
        phases += _drawn(student, way, teaching, teaching.drawing, memory.idle(held, way))
    if teacher is not None:
        earlier = memory.gradients(student, way) if one.more else 0.0
        # What is gathered for a product is the teacher's now.
        around = {**held, BUFFERS: memory.buffers(student.trained, teacher.held, way)}
        phases.append(phase("teacher", around, {GRADIENTS: earlier}, forward(teacher, way, one.lines, one.tokens)))
    ran = memory.run(student, way, one, _head(student, way, one, teaching))
    told = {TEACHER: _told(student, way, one, teaching)}
    ran = ran._replace(loss=dict(phase("", ran.loss, told).parts))
    return [*phases, *memory.learned(student, way, ran, held, more=one.more)]


def _standing(teacher: Model, way: Way) -> float:
    """A teacher in memory, between steps."""
    if way.zero < 3:
        return FP32 * teacher.held
    return FP32 * teacher.embedding + (0.0 if way.offload else FP32 * teacher.held / way.gpus)


def _told(student: Model, way: Way, one: Pass, teaching: Teaching) -> float:
    """What the teacher has told of a pass: its states, with copies of these and of its head for the product; or ids of
    eight bytes, log-probabilities and tail, and with draws their entropy."""
    teacher, S = teaching.teacher, one.learned
    if teacher is None:
        K, M = teaching.top_k, teaching.tail_draws
        return S * (K * (8 + FP32) + FP32 + (M * 8 + FP32 if M else 0))
    U = min(student.vocabulary, teacher.vocabulary)
    copies = way.arithmetic.products * (S + U) * teacher.shape.width if way.arithmetic.casts else 0
    return FP32 * S * teacher.shape.width + copies


def _head(student: Model, way: Way, one: Pass, teaching: Teaching) -> Head:
    """Gradients of head and states are formed in the forward pass, as those of NLL are.

    Of the logits there are the teacher's, the student's, into which their gradient is written, and the gradient of the
    chunk before. MiniLLM has the log-probabilities of its policy gradient besides: they come after, and go back first.
    """
    V, p = student.vocabulary, way.arithmetic.products
    S, C = one.learned, min(way.loss_chunk, one.learned)
    plain = memory.head_of(student, one, "nll", way, casts=way.arithmetic.casts)
    copy = p * V * student.shape.width if way.arithmetic.casts else 0
    theirs = 0 if teaching.teacher is None else min(V, teaching.teacher.vocabulary)
    chunks = p * C * (V + theirs + (V if S > C else 0))
    block = FP32 * V * min(C, max(1, BLOCK[way.device] // V))
    most = plain.left + copy + chunks + block * (BLOCKS_TOLD if teaching.teacher is None else BLOCKS)
    if not teaching.together:
        return Head(most, plain.left, plain.backward)
    policy = memory.head_of(student, one, "logprobs", way, casts=way.arithmetic.casts)
    pending = FP32 * V * student.shape.width if student.rank is None else 0
    return Head(
        forward=max(most, plain.left + policy.forward),
        left=plain.left + policy.left,
        backward=max(plain.left + policy.backward, pending + plain.backward),
    )


def _drawn(student: Model, way: Way, teaching: Teaching, drawing: Drawing, held: Mapping[str, float]) -> list[Phase]:
    """The student is whole meanwhile, and so is a teacher that draws with it; what they drew is then weighed."""
    whole: Parts = {WEIGHTS: FP32 * student.held if way.zero == 3 else 0.0}
    if drawing.elsewhere:
        return [phase("hand over", held, whole)] if way.zero == 3 else []
    if not teaching.together or teaching.teacher is None:
        return [phase("draw", held, whole, sampled(drawing, student))]
    teacher = teaching.teacher
    whole[TEACHER] = FP32 * teacher.held if way.zero == 3 else 0.0
    tokens = drawing.prompt + drawing.answer
    lines = min(max(1, WEIGHED_TOKENS // tokens), drawing.prompts)
    weighed = [
        phase("weigh", held, whole, logprobs(model, way, lines, tokens, lines * drawing.answer))
        for model in (student, teacher)
    ]
    drawn = phase("draw", held, whole, sampled(drawing, student, teacher))
    return [drawn, max(weighed, key=lambda one: one.total)]
