"""A reward model on disk and in memory: a trunk with a score head, its tokenizer and its chat schema."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

from alignment.artifacts import Artifact, Tokens
from alignment.chat.tokenizers import Tokenizer
from alignment.errors import UserError
from alignment.gemma import core, heads
from alignment.gemma.heads import Scale
from alignment.training import policies, team
from alignment.training.engine import Engine
from alignment.training.model_settings import AdapterSettings


@dataclass(frozen=True)
class Reward:
    """``model`` is a reward model (or a PEFT model around one) on the engine's device."""

    model: nn.Module
    tokenizer: Tokenizer
    schema: str

    @property
    def tokens(self) -> Tokens:
        """What another model must share with this one."""
        return policies.tokens_of(self.model, self.tokenizer, self.schema)

    @property
    def tokens_limit(self) -> int:
        """The longest sequence that the model can see."""
        return core.trunk(self.model).config.max_position_embeddings


def begin(
    trunk: Artifact,
    engine: Engine,
    *,
    head: Artifact | None,
    head_seed: int,
    shape: str | None = None,
    schema: str = "auto",
    attention: str = "auto",
    four_bit: bool = False,
) -> Reward:
    """A reward model to train: a policy's trunk under a fresh head or that of ``head``, or a reward model as it is.

    Raises :class:`UserError` where the parts do not fit, or where a reward model is to get another's head.
    """
    trunk.need("policy", "reward")
    tokenizer, schema = policies.vocabulary_of(trunk, shape=shape, schema=schema)
    if heads.is_reward(trunk.path):
        if head is not None:
            raise UserError(
                f"head.weights={head.step or head.path}: {trunk.path} is a reward model and has a head",
                remedy="Start from a policy, or leave head.weights=null to go on with the head that is there.",
            )
        if four_bit:
            raise UserError(
                f"adapter.kind=qlora: {trunk.path} is a reward model, whose head would be quantised with it",
                remedy="Start from a policy, or say adapter.kind=lora.",
            )
        ours = trunk.kind == "reward"
        model, scale = heads.load_reward(
            trunk.path, ours=ours, device=engine.device, place=engine.place, attention=attention
        )
        return Reward(model, tokenizer, schema if scale is None else scale.schema)
    policy = core.load(trunk.path, device=engine.device, place=engine.place, attention=attention, four_bit=four_bit)
    fresh = heads.with_head(policy, head_seed)
    if head is not None:
        _take_head(fresh, head)
    return Reward(fresh, tokenizer, schema)


def adapt(reward: Reward, adapter: AdapterSettings) -> Reward:
    """The reward model with a fresh adapter on every projection; the trunk is frozen, the head is trained."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]
        lora_dropout=adapter.dropout,
        target_modules=policies.ADAPTED,
        modules_to_save=["score"],
        task_type="SEQ_CLS",
    )
    return Reward(get_peft_model(cast(Any, reward.model), config), reward.tokenizer, reward.schema)


def merge_adapter(reward: Reward, plain: Reward, out: Path) -> Reward:
    """Write the adapter, head included, to ``out/adapter``; give ``plain`` with W + (alpha / rank) · BA in place of W.

    ``plain`` is the model as it was before :func:`adapt`, in fp32; where it has no weights, rank 0 alone merges.
    """
    from peft import PeftModel

    team.from_main(lambda: policies.save_adapter(reward.model, out / "adapter"))
    if next(plain.model.parameters()).is_meta:
        return plain
    model = PeftModel.from_pretrained(cast(Any, plain.model), out / "adapter")
    return Reward(model.merge_and_unload(), reward.tokenizer, reward.schema)


def freeze_trunk(reward: Reward) -> None:
    """Leave only the head to be trained (linear probing)."""
    for parameter in core.trunk(reward.model).parameters():
        parameter.requires_grad_(False)


def set_dropout(reward: Reward, share: float) -> None:
    """Dropout on attention weights while training, the one place where a Gemma has it.

    Raises :class:`UserError` for an attention kernel that has none.
    """
    trunk = core.trunk(reward.model)
    if share and trunk.config._attn_implementation == "flex_attention":
        raise UserError(
            f"dropout={share:g}: flex_attention has no dropout", remedy="Say model.attention=eager, or dropout=0."
        )
    for layer in trunk.layers:
        cast(Any, layer).self_attn.attention_dropout = share


def save(reward: Reward, out: Path, scale: Scale) -> None:
    """Write a plain Hugging Face directory: weights, tokenizer, template, and what the scores mean."""
    policies.save_tokenizer(reward.tokenizer, reward.schema, out)
    team.from_main(lambda: heads.save_reward(reward.model, out, scale))


def _take_head(model: heads.RewardModel, source: Artifact) -> None:
    taken, _ = heads.load_reward(source.need("reward").path, ours=source.kind == "reward")
    if taken.score.weight.shape != model.score.weight.shape:
        raise UserError(
            f"head.weights={source.step or source.path}: its head is for a width of {taken.score.weight.shape[1]}, "
            f"and the model's is {model.score.weight.shape[1]}",
            remedy="Take the head of a model of the same shape.",
        )
    model.score.weight.data.copy_(taken.score.weight.data)
