"""The numbers of a reinforcement learning run. Importable without torch."""

from __future__ import annotations

from typing import Literal

from alignment.errors import UserError
from alignment.settings import Settings, execution, identity, reference


class Drawing(Settings):
    """How answers are drawn. Never from a nucleus: its ratios would compare distributions that are cut differently."""

    samples: int = identity("answers to every prompt, next to each other in a batch; rloo needs 2 or more", ge=1)
    temperature: float = identity("at which answers are drawn, and all log-probabilities are taken", gt=0, le=5)
    max_new_tokens: int = identity("length of an answer at most", ge=1)
    largest_weight: float = identity(
        "importance weights are cut off here, where a server draws whose log-probabilities differ from the policy's "
        "(truncated importance sampling; Ionides 2008)",
        ge=1,
    )
    stop: bool = identity("end answers at the stop ids; false draws all tokens always, for measuring speed")


class Estimating(Settings):
    """From rewards to advantages."""

    kind: Literal["gae", "rloo", "reinforce"] = identity(
        "gae: PPO's, with a critic; rloo: against the other answers to the prompt; reinforce: against a baseline"
    )
    gamma: float = identity("gae: discount of later rewards", ge=0, le=1)
    lam: float = identity("gae: λ, 1 trusts returns alone, 0 the critic alone", ge=0, le=1)
    baseline: Literal["mean", "running", "none"] = identity(
        "reinforce: the mean of the batch's other answers, a running mean of all batches before, or nothing"
    )
    whiten_rewards: bool = identity("gae: scale token rewards to variance 1 over the batch, their mean kept")
    whiten_advantages: bool = identity("shift and scale advantages to mean 0 and variance 1 over the batch")


class Anchoring(Settings):
    """What the policy is held to, and how."""

    kind: Literal["fixed", "ema"] = identity("fixed: the anchor stays; ema: it follows the policy (WARP)")
    weights: str | None = reference("the policy to anchor to; null is the one that training starts from")
    rate: float = identity("ema: μ, how far the anchor moves toward the policy after every step", ge=0, le=1)
    beta: float = identity("weight of the KL divergence from the anchor; 0 leaves it out", ge=0, le=10)
    place: Literal["reward", "loss"] = identity(
        "reward: −β (log π − log π_anchor) is part of the reward; loss: β times the k3 estimate is part of the loss"
    )
    target: float | None = identity(
        "KL of an answer, in nats, that β is steered to (Ziegler et al., arXiv 1909.08593); null keeps β", gt=0
    )
    horizon: float = identity("answers over which β is steered", gt=0)


class Critic(Settings):
    """gae: the critic."""

    init: Literal["reward", "policy"] = identity("reward: trunk and head of the reward model; policy: trunk, head of 0")
    weights: str | None = reference("init=reward: the reward model; null takes reward.model")
    learning_rate: float = identity("of the critic", gt=0, le=1)
    warmup: int = identity("steps in which only the critic learns", ge=0)
    coefficient: float = identity("weight of its loss beside the policy's", ge=0)
    clip: float | None = identity("values move by this at most between two steps; null does not clip", gt=0)


class Updating(Settings):
    """AdamW, and how a batch is gone through."""

    steps: int = identity("batches of answers in all", ge=1)
    batch: int = identity("answers a step, over all processes", ge=1)
    minibatch: int = identity("answers an optimiser step, over all processes", ge=1)
    epochs: int = identity("passes over a batch", ge=1)
    clip: float = identity("ε: ratios beyond 1 ± ε gain nothing", gt=0, lt=1)
    learning_rate: float = identity("of the policy", gt=0, le=1)
    schedule: Literal["constant", "linear"] = identity("constant, or linear to 0 over all steps")
    warmup_steps: int = identity("steps in which the learning rate rises linearly", ge=0)
    weight_decay: float = identity("AdamW's weight decay, not on norms", ge=0)
    beta1: float = identity("AdamW's first decay", ge=0, lt=1)
    beta2: float = identity("AdamW's second decay", ge=0, lt=1)
    epsilon: float = identity("AdamW's ε", gt=0)
    clip_norm: float = identity("largest norm of the gradient", gt=0)
    snapshots: int | None = identity("steps between policies that are kept for averages; null keeps none", ge=1)
    checkpoint_steps: int = execution("steps between two checkpoints", ge=1)

    @property
    def per_step(self) -> int:
        """Optimiser steps in one step."""
        return self.epochs * self.batch // self.minibatch


class Watching(Settings):
    """Held-out prompts along the way: what is measured, when training ends early, and which policy is kept."""

    every: int = identity("steps between two measurements on held-out prompts; step 0 and the last are measured", ge=1)
    prompts: int = identity("prompts of the validation split", ge=1)
    rewards: list[str] | None = reference("further scorers to measure by, [a,b,…]: nothing is learned from them")
    guard: str | None = reference("a more general scorer: training ends when it falls while the reward rises")
    guard_drop: float = identity("how far the guard may fall below its best, in its own units", ge=0)
    patience: int | None = identity(
        "measurements without a better reward after which training ends; null: no end", ge=1
    )
    reference: str | None = reference(
        "the policy to which the KL is measured, such as the very first one of several runs in a row; null: the one "
        "that training starts from",
        kinds=("policy",),
    )
    kl_bound: float | None = identity("that KL, in nats an answer, beyond which training ends; null: none", gt=0)
    keep: Literal["last", "best"] = identity(
        "which policy is the result; best has the highest guard, or where there is none the highest reward"
    )


def check(drawing: Drawing, estimating: Estimating, anchoring: Anchoring, critic: Critic, updating: Updating) -> None:
    """Raise :class:`UserError` for numbers that do not go together."""
    K = drawing.samples
    if estimating.kind == "rloo" and K < 2:
        raise UserError(
            f"drawing.samples={K}: rloo compares an answer with the others to its prompt",
            remedy="Say drawing.samples=2 or more, or estimating.kind=reinforce.",
        )
    for name, count in (("batch", updating.batch), ("minibatch", updating.minibatch)):
        if count % K:
            raise UserError(
                f"updating.{name}={count}: does not divide into groups of drawing.samples={K}",
                remedy=f"Choose a multiple of {K}, such as {max(1, count // K) * K}.",
            )
    if updating.batch % updating.minibatch:
        raise UserError(
            f"updating.batch={updating.batch}: is no multiple of updating.minibatch={updating.minibatch}",
            remedy="Every answer of a batch is to be learned from as often as any other.",
        )
    if estimating.kind == "reinforce" and estimating.baseline == "mean" and updating.batch < 2:
        raise UserError("updating.batch=1: there is no other answer whose mean could be the baseline")
    if estimating.whiten_rewards and estimating.kind != "gae":
        raise UserError(
            f"estimating.whiten_rewards=true: {estimating.kind} has no rewards of single tokens",
            remedy="Say false, or estimating.kind=gae.",
        )
    if estimating.kind == "gae" and critic.warmup >= updating.steps:
        raise UserError(
            f"critic.warmup={critic.warmup}: the policy would never learn in updating.steps={updating.steps}",
            remedy="Choose fewer steps of warm-up.",
        )
    _check_target(anchoring, updating)
    if anchoring.kind == "ema" and anchoring.rate == 0:
        raise UserError(
            "anchoring.rate=0: an anchor that follows the policy at rate 0 stays where it is",
            remedy="Say anchoring.kind=fixed, or a rate such as 0.01.",
        )


def _check_target(anchoring: Anchoring, updating: Updating) -> None:
    """β is steered by factors that stay above 0."""
    if anchoring.target is None:
        return
    if anchoring.beta == 0:
        raise UserError(
            f"anchoring.target={anchoring.target:g}: β is 0, and times any factor stays 0",
            remedy="Give anchoring.beta a value to begin with.",
        )
    if anchoring.horizon <= updating.batch:
        raise UserError(
            f"anchoring.horizon={anchoring.horizon:g}: is within one batch of {updating.batch} answers",
            cause="β would leap, and could change its sign.",
            remedy="Say 10,000 or so (Ziegler et al.).",
        )
