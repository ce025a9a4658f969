"""The roles of reinforcement learning, from what references named: policy, anchor and critic, which fit together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

from torch import nn

from alignment.artifacts import Artifact, Tokens
from alignment.errors import UserError
from alignment.gemma import core, heads
from alignment.gemma.roles import Roles, Separate, critic_from_policy
from alignment.training import policies, rewards, zero
from alignment.training.engine import Engine
from alignment.training.model_settings import AdapterSettings
from alignment.training.policies import Policy

Init = Literal["reward", "policy"]


def open_roles(
    policy: Policy,
    inputs: Mapping[str, Artifact],
    engine: Engine,
    *,
    kind: Literal["separate", "shared"],
    adapter: AdapterSettings,
    critic: Init | None,
    moves: bool,
    half: bool,
    attention: str,
) -> Roles:
    """Policy and anchor, and a critic where ``critic`` says from what it starts.

    ``inputs`` may hold ``anchoring.weights`` and ``critic.weights``, and ``reward.model`` in its place. Raises
    :class:`UserError` where two models that read the same ids do not share a vocabulary and a chat schema.
    """
    if kind == "shared":
        return _shared(policy, inputs, engine, adapter=adapter, critic=critic, moves=moves, half=half)
    anchor = inputs.get("anchoring.weights")
    if anchor is not None:
        need_same_tokens(anchor.need("policy"), "anchoring.weights", policy)
        if moves:
            _need_same_shape(anchor, policy)
    held = None if anchor is None else policies.open_policy(anchor, engine, attention=attention).model
    # Read before the policy gets its adapter: a critic that begins as the policy begins as it is now.
    judge = None if critic is None else _critic(policy, inputs, engine, critic, adapter, attention)
    trained = policy if adapter.kind == "none" else policies.adapt(policy, adapter)
    roles = Separate(
        trained.model,
        judge,
        cast("core.CausalLM | None", held),
        moves=moves,
        chunk_tokens=engine.settings.loss_chunk,
    )
    return _ready(roles, engine)


def _shared(
    policy: Policy,
    inputs: Mapping[str, Artifact],
    engine: Engine,
    *,
    adapter: AdapterSettings,
    critic: Init | None,
    moves: bool,
    half: bool,
) -> Roles:
    """Adapters on the policy's own weights; a critic that begins as the reward model takes that model's adapter."""
    from alignment.gemma.shared_roles import Shared, reward_adapter

    if "anchoring.weights" in inputs:
        raise UserError(
            "anchoring.weights: roles that share a trunk are anchored to it",
            remedy="Say anchoring.weights=null, or roles=separate.",
        )
    # All roles hold these very weights, within an engine and without.
    zero.everywhere(policy.model, engine.device)
    if half and not (engine.bf16 and not engine.settings.zero):
        raise UserError(
            "half_trunk=true: the arithmetic here is fp32, which a trunk in bf16 would change",
            remedy="Say half_trunk=false, or engine.precision=bf16 (and no ZeRO).",
        )
    # The reward model that the critic begins as, which has to stand on this trunk; or the one that judges, if it does.
    judge = inputs["critic.weights" if "critic.weights" in inputs else "reward.model"]
    stands = judge.parents.get("model.weights")
    here = stands is not None and stands.fingerprint == inputs["policy"].fingerprint
    needed = critic == "reward" or (here and (judge.path / "adapter").is_dir())
    folder = reward_adapter(judge, inputs["policy"]) if needed else None
    roles = Shared(
        core.causal_lm(policy.model),
        rank=adapter.rank,
        alpha=adapter.alpha,
        critic=critic,
        reward=folder,
        moves=moves,
        half=half,
        chunk_tokens=engine.settings.loss_chunk,
    )
    return _ready(roles, engine)


def _ready(roles: Roles, engine: Engine) -> Roles:
    """Without dropout, which a foreign model's config may ask for: a policy that learns is the one that drew."""
    for model in roles.children():
        trunk = core.trunk(model)
        trunk.config.attention_dropout = 0.0
        for module in trunk.modules():
            if hasattr(module, "attention_dropout"):
                setattr(module, "attention_dropout", 0.0)  # noqa: B010
        if engine.settings.gradient_checkpointing:
            reentrant = zero.needs_reentrance(model, engine)
            trunk.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            if reentrant:
                trunk.enable_input_require_grads()
    return roles


def _critic(
    policy: Policy, inputs: Mapping[str, Artifact], engine: Engine, init: Init, adapter: AdapterSettings, attention: str
) -> nn.Module:
    if init == "policy":
        critic = rewards.Reward(critic_from_policy(core.causal_lm(policy.model)), policy.tokenizer, policy.schema)
    else:
        key = "critic.weights" if "critic.weights" in inputs else "reward.model"
        artifact = inputs[key]
        if artifact.kind not in ("reward", "foreign") or not heads.is_reward(artifact.path):
            raise UserError(
                f"critic.init=reward: {key} ({artifact.step or artifact.path}) is no reward model with weights here",
                remedy="Name one in critic.weights, or say critic.init=policy.",
            )
        need_same_tokens(artifact, key, policy)
        critic = rewards.begin(artifact, engine, head=None, head_seed=0, attention=attention)
    return critic.model if adapter.kind == "none" else rewards.adapt(critic, adapter).model


def need_same_tokens(artifact: Artifact, key: str, policy: Policy) -> None:
    """A model that reads the policy's ids has its pieces and its way of opening and closing turns."""
    tokenizer, schema = policies.vocabulary_of(artifact, shape=None, schema="auto")
    own = policy.tokens
    found = Tokens(tokenizer.digest, tokenizer.vocab_size, core.read_config(artifact.path).vocab_size, schema)
    for name, theirs, ours in (
        ("tokenizer", found.digest, own.digest),
        ("chat schema", found.schema, own.schema),
        ("padded vocabulary", found.padded, own.padded),
    ):
        if theirs != ours:
            shown = "" if name == "tokenizer" else f" ({theirs}, the policy's is {ours})"
            raise UserError(
                f"{key}: {artifact.step or artifact.path} has another {name} than the policy{shown}",
                cause="It reads the very ids that the policy draws.",
                remedy="Choose one of the same family, trained from the same ancestor.",
            )


def _need_same_shape(anchor: Artifact, policy: Policy) -> None:
    """An anchor that follows the policy has its shape."""
    theirs, ours = core.shape_of(core.read_config(anchor.path)), core.shape_of(core.trunk(policy.model).config)
    if theirs != ours:
        raise UserError(
            f"anchoring.weights: {anchor.step or anchor.path} has another shape than the policy",
            cause="anchoring.kind=ema moves its weights toward the policy's.",
            remedy="Choose one of the policy's shape, or anchoring.kind=fixed.",
        )
