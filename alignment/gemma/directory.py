"""A model directory, looked at before a weight is read: its config, and the headers of its safetensors.

It may come from anybody. What it says is checked here, no code of it is run, and its index names no file elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import Gemma2Config, GemmaConfig

from alignment.errors import UserError, nearest

GemmaAnyConfig = GemmaConfig | Gemma2Config

CONFIGS: dict[str, type[GemmaAnyConfig]] = {"gemma": GemmaConfig, "gemma2": Gemma2Config}
INDEX = "model.safetensors.index.json"
LISTED = ("num_hidden_layers", "num_labels", "num_layers", "n_layers", "n_layer")
MOST_LISTED = 100_000
SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)


def read_config(path: Path) -> GemmaAnyConfig:
    """The config of a model directory. Raises :class:`UserError` where it is none or no Gemma's."""
    file = path / "config.json"
    if not file.is_file():
        raise UserError(
            f"{path} is not a model directory.",
            cause="It has no config.json.",
            remedy="Name a directory with config.json and *.safetensors, as Hugging Face lays them out.",
        )
    if (path / "adapter_config.json").is_file():
        raise UserError(
            f"{path} holds a model and an adapter.",
            cause="transformers would load both, and only the model has been looked at.",
            remedy="Move adapter_config.json and its weights to a folder of their own.",
        )
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        kind = told["model_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file} cannot be read.", cause=f"{type(error).__name__}: {error}") from error
    if not isinstance(kind, str) or kind not in CONFIGS:
        raise UserError(
            f"{path} holds a model of type {kind!r}.",
            cause="This project trains models of the shape of Gemma 1 and Gemma 2.",
            remedy=nearest(str(kind), tuple(CONFIGS)),
        )
    need_bounded(told, file)
    try:
        settings = CONFIGS[kind].from_pretrained(path, local_files_only=True)
    except Exception as error:  # whatever a value of the wrong type leads to inside the library
        raise UserError(f"{file} cannot be read.", cause=f"{type(error).__name__}: {_line(error)}") from None
    _need_sizes(file, settings)
    if not settings.tie_word_embeddings:
        raise UserError(
            f"{file} says tie_word_embeddings=false.",
            cause="A Gemma's head is its embedding; there is no second matrix.",
        )
    return settings


def need_bounded(config: Mapping[str, Any], file: Path) -> None:
    """Refuse numbers of which transformers makes a list as long while it reads the config."""
    for name in LISTED:
        count = config.get(name)
        if isinstance(count, int) and count > MOST_LISTED:
            raise UserError(f"{file} says {name}={count:,}.", cause=f"No model has more than {MOST_LISTED:,}.")


def _need_sizes(file: Path, settings: GemmaAnyConfig) -> None:
    """Refuse a config whose numbers are of no model; transformers takes them as they are."""
    names = [*SIZES, "sliding_window"] if isinstance(settings, Gemma2Config) else [*SIZES]
    for name in names:
        if type(getattr(settings, name)) is not int or getattr(settings, name) < 1:
            raise UserError(f"{file} says {name}={getattr(settings, name)!r}.", cause="It counts something.")
    if settings.num_attention_heads % settings.num_key_value_heads:
        raise UserError(
            f"{file} has {settings.num_attention_heads} heads for {settings.num_key_value_heads} of keys and values.",
            cause="Each of these serves the same number of those.",
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def check_tensors(path: Path, architecture: Callable[[Any], nn.Module], settings: GemmaAnyConfig) -> None:
    """Refuse a directory whose safetensors do not hold exactly the tensors of its architecture (a tied head apart)."""
    found = _stored_shapes(path)
    if settings.num_hidden_layers > len(found):
        # Before they are built: a config may say any number.
        raise UserError(
            f"{path} has {len(found)} tensors, and config.json says {settings.num_hidden_layers:,} layers.",
            remedy="Copy or convert the model again.",
        )
    try:
        with torch.device("meta"):
            needed = {name: tuple(tensor.shape) for name, tensor in architecture(settings).state_dict().items()}
    except Exception as error:  # whatever numbers lead to of which no model can be built
        raise UserError(f"{path / 'config.json'} describes no model.", cause=_line(error)) from None
    needed.pop("lm_head.weight", None)
    problems = (
        ("lacks", sorted(needed.keys() - found.keys())),
        ("has a superfluous", sorted(found.keys() - needed.keys())),
        ("has another shape of", sorted(name for name in needed.keys() & found.keys() if needed[name] != found[name])),
    )
    for what, names in problems:
        if names:
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(
                f"{path} {what} {names[0]}{others}.",
                cause="The weights are not those of the model that config.json describes.",
                remedy="Copy or convert the model again; nothing is initialised in place of what is missing.",
            )


def _stored_shapes(path: Path) -> Mapping[str, tuple[int, ...]]:
    """Names and shapes in the headers of a directory's safetensors; of the index's files where there is an index."""
    index = path / INDEX
    if index.is_file():
        files = sorted({path / name for name in weight_map(index).values()})
    else:
        files = [path / "model.safetensors"]
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        if not file.is_file():
            raise UserError(
                f"{path} has no {file.name}.", cause="Weights are read from safetensors alone.", remedy="Copy it there."
            )
        try:
            with safe_open(file, framework="pt") as tensors:
                shapes.update({name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()})  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(
                f"{file} is damaged.", cause=str(error), remedy="It was probably cut short: copy it again."
            ) from error
    return shapes


def weight_map(index: Path) -> dict[str, str]:
    """The file of every tensor. Raises :class:`UserError` for an index that names what does not lie beside it."""
    try:
        read = json.loads(index.read_text(encoding="utf-8"))
        told, _ = dict(read["weight_map"]), dict(read["metadata"])  # transformers reads both
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{index} cannot be read.", cause=f"{type(error).__name__}: {error}") from None
    for file in told.values():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise UserError(
                f"{index} names {file!r}.",
                cause="The weights are read from safetensors files that lie beside the index.",
                remedy="Copy the model again.",
            )
    return told
