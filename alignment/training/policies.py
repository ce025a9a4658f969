"""A policy on disk and in memory: the model, its tokenizer and its chat schema, which belong together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

from alignment import files, ranks
from alignment.artifacts import Artifact, Tokens
from alignment.chat import render, template, tokenizers
from alignment.chat.tokenizers import Tokenizer
from alignment.errors import UserError
from alignment.gemma import core
from alignment.gemma.presets import Shape, TokenIds, shape_named
from alignment.training import team
from alignment.training.engine import Engine
from alignment.training.model_settings import AdapterSettings

ADAPTED = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Policy:
    """``model`` is a Gemma (or a PEFT model around one) on the engine's device."""

    model: nn.Module
    tokenizer: Tokenizer
    schema: str

    @property
    def tokens(self) -> Tokens:
        """What another model must share with this one."""
        return tokens_of(self.model, self.tokenizer, self.schema)

    @property
    def tokens_limit(self) -> int:
        """The longest sequence that the model can see."""
        return core.causal_lm(self.model).config.max_position_embeddings

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        return render.stop_ids(self.tokenizer)


def tokens_of(model: nn.Module, tokenizer: Tokenizer, schema: str) -> Tokens:
    """What a record says of a model's vocabulary and chat."""
    return Tokens(tokenizer.digest, tokenizer.vocab_size, core.trunk(model).config.vocab_size, schema)


def open_policy(
    artifact: Artifact,
    engine: Engine,
    *,
    shape: str | None = None,
    schema: str = "auto",
    attention: str = "auto",
    four_bit: bool = False,
) -> Policy:
    """Load a policy, ours or a foreign directory. Raises :class:`UserError` where its parts do not fit."""
    artifact.need("policy")
    tokenizer, schema = vocabulary_of(artifact, shape=shape, schema=schema)
    model = core.load(artifact.path, device=engine.device, place=engine.place, attention=attention, four_bit=four_bit)
    return Policy(model, tokenizer, schema)


def fresh(folder: Path, shape: str, schema: str, seed: int, engine: Engine) -> Policy:
    """A policy from scratch, of a shape by preset, with the tokenizer of a folder."""
    tokenizer = tokenizers.load(folder)
    padded = tokenizers.padded_vocab(tokenizer.vocab_size)
    ids = TokenIds(tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id)
    named = shape_named(shape)
    model = core.build(named, padded, ids, seed, device=engine.device, place=engine.place)
    return Policy(model, tokenizer, named.family if schema == "auto" else schema)


def vocabulary_of(artifact: Artifact, *, shape: str | None, schema: str) -> tuple[Tokenizer, str]:
    """The tokenizer and the chat schema of a model; no weight is read.

    Raises :class:`UserError` where its parts do not fit.
    """
    found = core.read_config(artifact.path)
    if shape is not None:
        _check_shape(artifact.path, core.shape_of(found), shape)
    tokenizer = tokenizers.load(artifact.path)
    core.check_fits(found, tokenizer)
    own = artifact.tokens.schema if artifact.tokens else _family_schema(found.model_type)
    if artifact.tokens and schema not in ("auto", own):
        raise UserError(
            f"model.chat_schema={schema}, and {artifact.path} was trained with {own}",
            cause="A model knows one way of opening and closing turns.",
            remedy="Leave model.chat_schema=auto.",
        )
    return tokenizer, own if schema == "auto" else schema


def need_same_tokens(model: Artifact, reference: Artifact, at: str, otherwise: str) -> None:
    """Raise :class:`UserError` where the two have different tokenizers; ``at`` names the second. No weight is read."""
    (own, _), (other, _) = (vocabulary_of(one, shape=None, schema="auto") for one in (model, reference))
    sizes = {core.read_config(one.path).vocab_size for one in (model, reference)}
    if own.digest != other.digest or len(sizes) > 1:
        raise UserError(
            f"{at}: has another tokenizer than the model",
            cause="A KL compares two distributions over the same pieces.",
            remedy=f"Choose a reference from the same family, or {otherwise}.",
        )


def read_here(policy_model: nn.Module, engine: Engine) -> None:
    """Have a policy that was opened and not trained whole on this device, without asking the other processes.

    What rank 0 alone has (``Engine.place``) the others read for themselves.
    """
    model = core.causal_lm(policy_model)
    if next(model.parameters()).is_meta:
        assert model is policy_model, "weights are read into a policy as it was opened"
        attention = str(model.config._attn_implementation)
        assert model.name_or_path is not None, "a policy that was read has a folder"
        again = core.load(model.name_or_path, device=engine.device, attention=attention)
        model.load_state_dict(again.state_dict(), strict=False, assign=True)
        model.tie_weights()
    cast(nn.Module, model).to(engine.device)


def adapt(policy: Policy, adapter: AdapterSettings) -> Policy:
    """The policy with a fresh adapter on every projection, the trunk frozen."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]
        lora_dropout=adapter.dropout,
        target_modules=ADAPTED,
        task_type="CAUSAL_LM",
    )
    return Policy(get_peft_model(policy.model, config), policy.tokenizer, policy.schema)


def merge_adapter(policy: Policy, trunk: Artifact, out: Path) -> Policy:
    """Write the adapter to ``out/adapter`` and return the policy with W + (alpha / rank) · BA in place of W.

    The sum is formed on the trunk's weights in fp32, read again where the adapter was trained on 4-bit ones.
    """
    from peft import PeftModel

    if not ranks.is_main():
        return policy  # Nothing more is done with it: what is written is written by the main process.
    save_adapter(policy.model, out / "adapter")
    model = PeftModel.from_pretrained(core.load(trunk.path), out / "adapter")
    return Policy(model.merge_and_unload(), policy.tokenizer, policy.schema)


def save_adapter(model: Any, folder: Path) -> None:
    """Write a PEFT adapter: the same bytes for the same one, wherever it lies.

    PEFT writes where its trunk lies here, in a card that is empty otherwise too, and lists sets as they happen to come.
    """
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    lists = {name: sorted(set(told[name])) for name in ("target_modules", "modules_to_save") if told[name] is not None}
    trunk = Path(told["base_model_name_or_path"] or "")
    named = {"base_model_name_or_path": trunk.name} if trunk.is_absolute() else {}
    files.write_json(path, told | lists | named)


def trained(policy: Policy) -> dict[str, nn.Parameter]:
    """What is trained, by name."""
    return {name: weight for name, weight in policy.model.named_parameters() if weight.requires_grad}


def save_policy(policy: Policy, out: Path) -> None:
    """Write a plain Hugging Face directory: weights, tokenizer, template, generation config."""
    save_tokenizer(policy.tokenizer, policy.schema, out)
    if ranks.is_main():
        core.save(policy.model, out, stop_ids=policy.stop_ids)


def save_tokenizer(tokenizer: Tokenizer, schema: str, out: Path) -> None:
    """Write the tokenizer and the chat template that renders as we do; once, whoever reads them afterwards.

    It comes before the model: a config.json that lies there is of an attempt that was cut off, and goes, since
    ``AutoTokenizer`` reads it, and may find half of one.
    """

    def write() -> None:
        (out / "config.json").unlink(missing_ok=True)
        template.write(out, tokenizer, schema)

    team.from_main(write)


def parameters(config: Any) -> Mapping[str, int]:
    """Trainable numbers of a model by part, without reading a weight."""
    from alignment.gemma.presets import parameter_counts

    counts = parameter_counts(core.shape_of(config), config.vocab_size)
    return {"embedding": counts.embedding, "non_embedding": counts.non_embedding}


def _family_schema(model_type: str) -> str:
    return {"gemma": "gemma1", "gemma2": "gemma2"}[model_type]


def _check_shape(path: Path, found: Shape, name: str) -> None:
    wanted = shape_named(name)
    different = [key for key in Shape.__dataclass_fields__ if getattr(found, key) != getattr(wanted, key)]
    if different:
        key = different[0]
        raise UserError(
            f"{path} is not of the shape {name}: its {key} is {getattr(found, key)}, not {getattr(wanted, key)}",
            remedy="Choose the model preset that fits the weights, or model.shape=null.",
        )
