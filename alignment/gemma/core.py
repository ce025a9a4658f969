"""The one Gemma that every stage shares: built from a shape, loaded from and saved to plain Hugging Face directories.

The modules are transformers' own; nothing of the training forward is written a second time. What is decided here is
which attention a model may use on which device, and what a batch may say about positions and masks.

Axes: B rows, T tokens, D width, V vocabulary (padded).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma2Model,
    GemmaConfig,
    GemmaForCausalLM,
    GemmaModel,
    GenerationConfig,
)
from transformers.utils import logging as transformers_logging

from alignment.errors import UserError, nearest
from alignment.gemma.directory import GemmaAnyConfig, check_tensors, read_config
from alignment.gemma.presets import Shape, TokenIds

# Stages show one progress bar, their own.
transformers_logging.disable_progress_bar()
# PEFT asks for it by its old name.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")

CausalLM = GemmaForCausalLM | Gemma2ForCausalLM

ATTENTIONS = ("auto", "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
MODELS: dict[str, Callable[[Any], CausalLM]] = {"gemma": GemmaForCausalLM, "gemma2": Gemma2ForCausalLM}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class KnowsItsSize(Protocol):
    """What ``check_fits`` needs of a tokenizer."""

    vocab_size: int


def config(shape: Shape, vocab_size: int, ids: TokenIds) -> GemmaAnyConfig:
    """The transformers config of a shape. ``vocab_size`` is the padded vocabulary: the rows of the embedding."""
    if max(ids) >= vocab_size:
        raise UserError(
            f"The control ids {tuple(ids)} do not fit a vocabulary of {vocab_size}.",
            cause="pad, eos and bos must be rows of the embedding.",
            remedy="Give the padded size of the tokenizer's vocabulary.",
        )
    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "intermediate_size": shape.feedforward,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.context,
        "pad_token_id": ids.pad,
        "eos_token_id": ids.eos,
        "bos_token_id": ids.bos,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_theta": 10_000.0, "rope_type": "default"},
    }
    if shape.family == "gemma1":
        return GemmaConfig(**common, hidden_act="gelu_pytorch_tanh")
    return Gemma2Config(
        **common,
        hidden_activation="gelu_pytorch_tanh",
        query_pre_attn_scalar=shape.query_scale,
        sliding_window=shape.window,
        attn_logit_softcapping=shape.attention_cap,
        final_logit_softcapping=shape.final_cap,
    )


def shape_of(config: GemmaAnyConfig) -> Shape:
    """The shape that a config describes: the inverse of :func:`config`."""
    gemma2 = isinstance(config, Gemma2Config)
    return Shape(
        family="gemma2" if gemma2 else "gemma1",
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        feedforward=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        query_scale=config.query_pre_attn_scalar if gemma2 else config.head_dim,
        context=config.max_position_embeddings,
        window=config.sliding_window if gemma2 else None,
        attention_cap=config.attn_logit_softcapping if gemma2 else None,
        final_cap=config.final_logit_softcapping if gemma2 else None,
    )


def attention_for(config: GemmaAnyConfig, device: str | torch.device, asked: str = "auto") -> str:
    """The attention implementation for a model on a device; a choice that would be wrong is refused.

    Gemma 1: ``sdpa``. Gemma 2 caps its attention logits, which sdpa cannot: ``eager`` on CPU, ``flex_attention`` on
    CUDA (or, when asked, a flash kernel, which transformers hands the cap).
    """
    if asked not in ATTENTIONS:
        raise UserError(f"attention={asked!r} is not known.", remedy=nearest(asked, ATTENTIONS))
    kind, gemma2 = torch.device(device).type, isinstance(config, Gemma2Config)
    if asked == "auto":
        return ("flex_attention" if kind == "cuda" else "eager") if gemma2 else "sdpa"
    if gemma2 and asked == "sdpa":
        raise UserError(
            "attention='sdpa' would compute a Gemma 2 wrongly.",
            cause=f"Gemma 2 caps its attention logits (at {config.attn_logit_softcapping}); sdpa cannot.",
            remedy="Leave attention=auto: eager on CPU, flex_attention on CUDA.",
        )
    if kind != "cuda" and asked.startswith(("flex", "flash")):
        raise UserError(
            f"attention={asked!r} does not train on {kind}.",
            cause="flex_attention has no backward pass there, and flash kernels are written for CUDA.",
            remedy="Leave attention=auto.",
        )
    return asked


def build(
    shape: Shape, vocab_size: int, ids: TokenIds, seed: int, *, device: str = "cpu", place: str | None = None
) -> CausalLM:
    """A fresh model in fp32, the same for the same seed; the caller's random state is left as it was.

    A Gemma 2 norms what its blocks put out, to RMS 1. Its embedding is drawn with std 1/√width, so that √width times
    it, which enters the first block, has RMS 1 too: with transformers' 0.02 the blocks drown the tokens of a narrow
    model (``mini``, 134 steps of 2,048 tokens: loss 1.26 against 2.81). At the width of the 2B it is 0.021.

    ``place`` is where the weights lie until they are used on ``device``, if not there; ``"meta"`` leaves them out.
    ``device="meta"`` gives the module without weights and buffers.
    """
    settings = config(shape, vocab_size, ids)
    settings._attn_implementation = attention_for(settings, "cpu" if device == "meta" else device)
    if place == "meta":
        return without_weights(MODELS[settings.model_type], settings)
    # Drawn on the CPU whatever the device, so that a seed means one model everywhere.
    with torch.random.fork_rng(devices=[]), torch.device("meta" if device == "meta" else "cpu"):
        torch.manual_seed(seed)
        model = MODELS[settings.model_type](settings)
        if isinstance(model, Gemma2ForCausalLM):
            nn.init.normal_(model.model.embed_tokens.weight, std=shape.width**-0.5)
    model.eval()
    return model if device == "meta" else _moved(model, place or device)


def load(
    directory: str | Path,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    place: str | None = None,
    attention: str = "auto",
    four_bit: bool = False,
) -> CausalLM:
    """A model from a plain Hugging Face directory, in eval mode.

    Everything is checked before a weight is read: that the config is a Gemma's, that the safetensors hold every tensor
    of the right shape and none besides, that the attention is right for the device. Nothing is ever initialised in
    place of what is missing, and no code of the directory is run. ``four_bit`` quantises the weights as they are
    read, for QLoRA on CUDA. ``place`` is where the weights lie until they are used on ``device``, if not there;
    ``"meta"`` reads none. Raises :class:`UserError`.
    """
    path = Path(directory)
    settings = read_config(path)
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r} is not known.", remedy=nearest(dtype, tuple(DTYPES)))
    implementation = attention_for(settings, device, attention)
    architecture: Any = MODELS[settings.model_type]
    check_tensors(path, architecture, settings)
    quantised = {"quantization_config": _four_bits(device), "device_map": {"": device}} if four_bit else {}
    model: CausalLM = read(
        architecture,
        path,
        settings,
        dtype=DTYPES[dtype],
        attention=implementation,
        place=None if four_bit else place or device,
        **quantised,
    )
    return model


def read(
    architecture: Any,
    path: Path,
    settings: GemmaAnyConfig,
    *,
    dtype: torch.dtype,
    attention: str,
    place: str | None,
    **more: Any,
) -> Any:
    """A model of ``architecture`` in eval mode, its weights at ``place``; on ``"meta"`` it has buffers alone."""
    if place == "meta":
        settings._attn_implementation = attention
        model = without_weights(architecture, settings)
        model.name_or_path = str(path)
        return model
    model = architecture.from_pretrained(
        path,
        config=settings,
        dtype=dtype,
        attn_implementation=attention,
        local_files_only=True,
        use_safetensors=True,
        **more,
    )
    return model.eval() if place is None else _moved(model.eval(), place)


def without_weights(architecture: Any, settings: Any) -> Any:
    """A model of ``architecture`` in eval mode that has its modules and buffers, and weights on ``"meta"``."""
    with init_empty_weights(include_buffers=False):
        model = architecture(settings)
    model.tie_weights()
    return model.eval()


def save(model: nn.Module, directory: str | Path, *, stop_ids: Iterable[int], shard_size: str = "4GB") -> None:
    """Write config.json, safetensors in shards of ``shard_size``, and a generation config that knows all ``stop_ids``.

    A plain model is needed: adapters are merged, or saved as adapters, by who made them. The tied head is not written.
    """
    assert isinstance(model, CausalLM), f"a plain Gemma is saved, not {type(model).__name__}"
    model.save_pretrained(directory, max_shard_size=shard_size)
    settings = model.config
    GenerationConfig(
        bos_token_id=settings.bos_token_id,
        pad_token_id=settings.pad_token_id,
        eos_token_id=sorted(set(stop_ids)),
        do_sample=True,
    ).save_pretrained(directory)


def _four_bits(device: str) -> Any:
    """NF4 with doubly quantised constants, computing in bf16 (QLoRA, arXiv 2305.14314)."""
    from transformers import BitsAndBytesConfig

    if not device.startswith("cuda"):
        raise UserError(
            f"Weights in four bits do not run on {device}.",
            cause="The kernels of bitsandbytes are written for CUDA.",
            remedy="Train all weights or a LoRA on the CPU.",
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _moved(model: CausalLM, device: str) -> CausalLM:
    cast(nn.Module, model).to(device)  # transformers wraps `to` in a signature that type checkers cannot follow
    return model


def trunk(model: nn.Module) -> GemmaModel | Gemma2Model:
    """The layers below whatever head ``model`` has; it may be wrapped by PEFT."""
    base = getattr(model, "get_base_model", lambda: model)()
    assert isinstance(base.model, GemmaModel | Gemma2Model), f"{type(base).__name__} has no Gemma's trunk"
    return base.model


def causal_lm(model: nn.Module) -> CausalLM:
    """The Gemma inside ``model``, which may be wrapped by PEFT; adapters stay where they are, in its layers."""
    base = getattr(model, "get_base_model", lambda: model)()
    assert isinstance(base, CausalLM), f"a Gemma with a language-model head is needed, not {type(base).__name__}"
    return base


def hidden_states(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
) -> Tensor:
    """``hidden_BTD`` after the final norm, ready for :func:`head`; no cache is kept.

    A batch says one of three things about its ``input_ids_BT``, never two:

    - ``attention_mask_BT``: padding, on either side; positions are counted from the mask.
    - ``position_ids_BT``: packed rows. Positions restart at 0 with each example, and no example sees another.
    - neither: every row begins at its first token. Padding on the right is then harmless, being causally invisible.

    Together they are refused: with a mask, transformers ignores that positions restart, and examples leak into each
    other; so they would with a cache.
    """
    assert attention_mask is None or position_ids is None, "packed rows take position ids and no mask"
    if attention_mask is not None:
        position_ids = positions_from_mask(attention_mask)
    outputs = trunk(model)(
        input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
    )
    return outputs.last_hidden_state


def positions_from_mask(attention_mask: Tensor) -> Tensor:
    """``position_ids_BT``: the number of real tokens before each one; 0 on padding to the left."""
    return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)


def head(model: nn.Module) -> tuple[Tensor, float | None]:
    """The output head as ``(weight_VD, softcap)``: logits are softcap · tanh(hidden · weightᵀ / softcap).

    The weight is the embedding's own tensor (they are tied). Gemma 1 has no cap: None.
    """
    base = causal_lm(model)
    output = base.get_output_embeddings()
    assert type(output) is nn.Linear, "the head must be a plain matrix, without an adapter"
    return output.weight, getattr(base.config, "final_logit_softcapping", None)


def check_fits(config: GemmaAnyConfig, tokenizer: KnowsItsSize) -> None:
    """Refuse a tokenizer that can produce ids beyond the model's embedding (padding rows to spare are fine)."""
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"A tokenizer of {tokenizer.vocab_size} pieces does not fit a model of {config.vocab_size}.",
            cause="The ids beyond the embedding's last row have no vector.",
            remedy="Use the tokenizer the model was trained with, or build a model for this one.",
        )
