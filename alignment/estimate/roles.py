"""The memory of one GPU in reinforcement learning: drawing, judging, reading and learning with several models at once.

Policy and critic are trained in one engine, with one backward pass over the sum of their losses; the anchor is fp32,
not trained, and divided by ZeRO 3 alone (``rl/anchor.py``); reward models are whole on every GPU. Answers are drawn by
the project's own sampler (``gemma/decode.py``), whose cache holds every slot of every row in fp32, windows or not, and
which lays the projections that read the same input side by side. As in ``memory.py`` the estimate is the phase that
needs the most.

Every number is bytes. N tokens of a forward pass, D width, F feed-forward width, V vocabulary, C tokens of a chunk, H
heads, T tokens of a line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from alignment.estimate import memory
from alignment.estimate.arithmetic import FP32, Model, projections
from alignment.estimate.memory import (
    ACTIVATIONS,
    ANCHOR,
    BUFFERS,
    CACHE,
    COPIES,
    CRITIC,
    GRADIENTS,
    LOGITS,
    OPTIMISER,
    REWARDS,
    WEIGHTS,
    Parts,
    Pass,
    Phase,
    Way,
    phase,
)

READ_TOKENS = {"cpu": 2_048, "cuda": 65_536}
SCORED_TOKENS = {"cpu": 2_048, "cuda": 16_384}
PREFILL_TOKENS = 4_096
"""Tokens of a pass without gradients, as in ``rl/learner.py``, ``scoring/reward_model.py`` and ``gemma/decode.py``."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A GPU's share of a batch: ``prompts`` of ``prompt`` tokens, each with ``samples`` answers of ``answer`` tokens.

    ``rows`` answers are drawn at once. ``elsewhere``: a server draws them, and nothing of it is here.
    """

    prompts: int
    samples: int
    prompt: int
    answer: int
    rows: int
    elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class Roles:
    """``shared``: all of them on the policy's trunk, which is frozen then; ``half`` holds its projections in bf16.

    ``follows``: the anchor moves. ``start``: the policy as it was is held besides, to measure the KL to it.
    ``judge_here``: the first of ``rewards`` is an adapter on the shared trunk as well.
    """

    policy: Model
    critic: Model | None
    rewards: tuple[Model, ...]
    shared: bool = False
    follows: bool = False
    start: bool = False
    half: bool = False
    judge_here: bool = False

    @property
    def trained(self) -> int:
        """Parameters that the engine trains."""
        return self.policy.trained + (0 if self.critic is None else self.critic.trained)

    @property
    def in_engine(self) -> int:
        """Parameters of policy and critic, a shared trunk once."""
        critic = 0 if self.critic is None else self.critic.adapter if self.shared else self.critic.held
        return self.policy.held + critic


def reinforced(roles: Roles, way: Way, one: Pass, drawing: Drawing) -> list[Phase]:
    """The phases of a step: from prompts to a better policy. ``one`` is a forward pass with gradients."""
    held = _held(roles, way)
    idle = memory.idle(held, way)
    phases = [] if drawing.elsewhere else [_drawn("draw", roles, way, drawing, idle)]
    if drawing.elsewhere and way.zero == 3:
        phases.append(phase("hand over", idle, {WEIGHTS: _gathered(roles, way)}))
    if way.zero == 3 and not roles.shared:
        # On held-out prompts, which are always answered here, the anchor is whole as well.
        looked = phase("", idle, {ANCHOR: FP32 * replace(roles.policy, rank=None).held}).parts
        phases.append(_drawn("look", roles, way, drawing, looked))
    if roles.rewards:
        judge = max(roles.rewards, key=lambda model: model.held)
        lines = _lines(SCORED_TOKENS[way.device], one, drawing)
        phases.append(phase("judge", _kept_whole(roles, way, idle), forward(judge, way, lines, one.tokens)))
    lines = _lines(READ_TOKENS[way.device], one, drawing)
    return [*phases, _read(roles, way, one, lines, idle), *_learned(roles, way, one, held)]


def _lines(tokens: int, one: Pass, drawing: Drawing) -> int:
    """Prompts with their answers that go forward together where there are no gradients."""
    return min(max(1, tokens // one.tokens), drawing.prompts)


def _held(roles: Roles, way: Way) -> Parts:
    """Between steps."""
    policy, critic = roles.policy, roles.critic
    plain = FP32 * replace(policy, rank=None).held
    parts: Parts = {
        OPTIMISER: memory.moments(policy, way),
        BUFFERS: memory.buffers(roles.trained, roles.in_engine, way),
    }
    if roles.shared:
        trunk = plain - ((FP32 - 2) * policy.matrices if roles.half else 0)
        divided = way.gpus if way.zero == 3 else 1
        parts[WEIGHTS] = (trunk + FP32 * policy.adapter) / divided
        parts[ANCHOR] = FP32 * policy.matrices if roles.follows else 0.0
        own = 0 if critic is None else FP32 * (critic.adapter + 2 * policy.shape.width)
        parts[CRITIC] = own / divided
    else:
        parts[WEIGHTS] = memory.weights(policy, way)
        parts[ANCHOR] = plain / (way.gpus if way.zero == 3 else 1) + (plain if roles.start else 0.0)
        parts[CRITIC] = 0.0 if critic is None else memory.weights(critic, way)
    if critic is not None:
        parts[CRITIC] += memory.moments(critic, way)
    judges = roles.rewards[1:] if roles.judge_here else roles.rewards
    parts[REWARDS] = sum(FP32 * judge.held for judge in judges)
    if roles.judge_here:
        parts[REWARDS] += FP32 * (roles.rewards[0].adapter + 2 * policy.shape.width)
    return parts


def gathered(roles: Roles, way: Way, one: Pass, drawing: Drawing) -> float:
    """Bytes of weights that ZeRO 3 gathers for a batch of answers: once to draw them, and for every pass that reads
    them: a divided anchor, and where nothing is kept whole meanwhile (``gather``) all that the engine has."""
    passes = -(-drawing.prompts // _lines(READ_TOKENS[way.device], one, drawing))
    anchor = 0 if roles.shared else replace(roles.policy, rank=None).held
    read = way.arithmetic.casts or roles.critic is not None or roles.shared
    engine = roles.in_engine if read and not way.gather else 0
    return FP32 * (roles.in_engine + passes * (anchor + engine))


def _gathered(roles: Roles, way: Way) -> float:
    """Whole weights of all that the engine has, where ZeRO 3 has divided them: nothing is drawn from parts."""
    return FP32 * roles.in_engine if way.zero == 3 else 0.0


def _kept_whole(roles: Roles, way: Way, held: Parts) -> Parts:
    """What is held while answers are judged and read: of roles on one trunk all is whole, of others if ``gather``."""
    more = _gathered(roles, way) if way.gather or roles.shared else 0.0
    return {**held, WEIGHTS: held[WEIGHTS] + more}


def _drawn(name: str, roles: Roles, way: Way, drawing: Drawing, held: Mapping[str, float]) -> Phase:
    return phase(name, held, {WEIGHTS: _gathered(roles, way)}, sampled(drawing, roles.policy))


def sampled(drawing: Drawing, *models: Model) -> Parts:
    """What the sampler adds: caches, projections that are laid side by side, and either the prompts' activations or the
    rows' logits. ``models`` are one, or several that draw together and read the prompts one after the other.

    Of logits there are themselves, their log-softmax, its exponential, and that and its running sum in fp64. Those of
    two models are mixed before, in as much.
    """
    slots, cache, beside, prefill = drawing.rows * (drawing.prompt + drawing.answer), 0.0, 0.0, 0.0
    for model in models:
        shape = model.shape
        cache += 2 * FP32 * shape.layers * slots * shape.kv_heads * shape.head_dim
        (_, queries), (_, keys), _, _, (_, inner), *_ = projections(shape)
        beside += FP32 * shape.layers * shape.width * (queries + 2 * keys + 2 * inner) if model.rank is None else 0
        some = max(1, min(-(-drawing.rows // drawing.samples), PREFILL_TOKENS // drawing.prompt))
        N = some * drawing.prompt
        scores = 2 * FP32 * some * shape.heads * drawing.prompt**2
        prefill = max(prefill, FP32 * N * (4 * shape.width + max(3 * (queries + 2 * keys), 4 * inner)) + scores)
    logits = (3 * FP32 + 2 * 8) * drawing.rows * models[0].vocabulary
    more = {LOGITS: logits} if logits > prefill else {ACTIVATIONS: prefill}
    return {WEIGHTS: beside, CACHE: cache, **more}


def _read(roles: Roles, way: Way, one: Pass, lines: int, held: Parts) -> Phase:
    """Log-probabilities and values of a batch, without gradients."""
    learned, several = lines * one.learned // one.lines, 1 if roles.critic is None else 2
    more = logprobs(roles.policy, way, lines, one.tokens, learned, several=several)
    return phase("read", _kept_whole(roles, way, held), more)


def logprobs(model: Model, way: Way, lines: int, tokens: int, learned: int, *, several: int = 1) -> Parts:
    """What the log-probabilities of ``learned`` tokens among ``lines`` x ``tokens`` need, without gradients; with
    ``several`` models of one shape read at once."""
    logits = 3 * FP32 * min(way.loss_chunk, learned) * model.vocabulary + FP32 * lines * tokens * model.shape.width
    kept = way.arithmetic.casts and model.rank is None and way.zero < 3
    copies = 2.0 * several * model.matrices if kept else 0.0
    return dict(phase("", {COPIES: copies, LOGITS: logits}, forward(model, way, lines, tokens)).parts)


def forward(model: Model, way: Way, lines: int, tokens: int) -> Parts:
    """What a forward pass without gradients over ``lines`` x ``tokens`` needs at the most.

    Of the residual stream three copies; then either of the logits of attention two, with masks, beside queries, keys
    and values, or three tensors of the MLP.
    """
    shape, p = model.shape, way.arithmetic.products
    N = lines * tokens
    (_, queries), (_, keys), *_ = projections(shape)
    attention = N * (3 * p * queries + FP32 * (queries + 2 * keys))
    if way.attention == "eager":
        attention += lines * tokens**2 * (2 * FP32 * shape.heads + 2 * FP32)
    widest = max(attention, 3 * p * N * shape.feedforward)
    cast = memory.widest(model) if way.arithmetic.casts else 0.0
    return {ACTIVATIONS: 3 * FP32 * N * shape.width + widest, COPIES: cast}


def _learned(roles: Roles, way: Way, one: Pass, held: Parts) -> list[Phase]:
    """Both go forward; then the critic, which was the last to do so, goes back, and then the policy."""
    policy = memory.run(roles.policy, way, one, "logprobs", acts=True, within=way.zero == 0, half=roles.half)
    earlier = memory.gradients(roles.policy, way) if one.more else 0.0
    if roles.critic is None:
        phases = [phase("loss", held, policy.loss, {GRADIENTS: earlier}), *memory.backward(policy, held, earlier)]
        critics = 0.0
    else:
        critic = memory.run(roles.critic, way, one, "score", acts=True, within=way.zero == 0, half=roles.half)
        critics = memory.gradients(roles.critic, way)
        theirs = critics if one.more else 0.0
        before = {GRADIENTS: earlier, CRITIC: theirs}
        after = {CRITIC: critics}
        phases = [
            phase("loss", held, policy.loss, critic.left, before),
            phase("critic's backward begins", held, policy.left, critic.begins, before),
            phase(
                "critic's backward ends",
                held,
                policy.left,
                critic.ends,
                {GRADIENTS: earlier, CRITIC: max(theirs, critic.coming)},
            ),
            phase("critic's embedding", held, policy.left, {GRADIENTS: earlier, CRITIC: critics + critic.embedding}),
            *memory.backward(policy, phase("", held, after, {COPIES: critic.left[COPIES]}).parts, earlier),
        ]
    whole = {GRADIENTS: memory.gradients(roles.policy, way), CRITIC: critics}
    return [*phases, memory.update(held, whole, roles.trained, way)]
