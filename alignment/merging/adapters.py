"""Adapters as the models that they make of their trunk: W + s · BA in fp32, never one factor with another's.

The mean of two adapters' factors is not the mean of what they do: (B₁ + B₂)(A₁ + A₂)/4 has products of strangers in it.
An adapter is a directory as PEFT writes it; only plain low-rank factors are taken.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from alignment import files
from alignment.errors import UserError
from alignment.merging import checkpoint
from alignment.merging.blocks import DTYPES
from alignment.merging.layout import COPY_AGAIN, PREFIX, Entry, Layout, Shard, read_shard
from alignment.merging.plan import WIDTHS, check_dtypes

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ROWS = 1 << 20
"""Numbers of a matrix that are computed at once, in whole rows."""
BEFORE, DOWN, UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "trainable_token_indices": (None, []),
    "init_lora_weights": (True, False, None, "gaussian"),
    "layer_replication": (None,),
}
"""What a config may say; anything else is more than W + s · BA with one s: PiSSA, for one, changes the trunk itself."""


@dataclass(frozen=True)
class Adapter:
    """``scale`` is s; ``factors`` names the matrices that it changes, with the names of A and B in its file."""

    directory: Path
    trunk: str
    """Where its config says that its trunk lies."""
    scale: float
    factors: dict[str, tuple[str, str]]
    shapes: dict[str, tuple[int, ...]]


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter and no model."""
    return (directory / CONFIG).is_file() and not (directory / "config.json").is_file()


def read(directory: Path) -> Adapter:
    """An adapter by its config and header. Raises :class:`UserError` for what is more than low-rank factors."""
    config = _config(directory)
    for key, plain in PLAIN.items():
        if config.get(key) not in plain:
            raise UserError(
                f"{directory}: {key} is {config.get(key)!r}",
                cause="Merged are adapters that add low-rank products to a policy's matrices, and nothing else.",
                remedy="Merge the whole model; a run of ours has it beside its adapter.",
            )
    shapes = {entry.name: entry.shape for entry in read_shard(directory / WEIGHTS).entries}
    downs = {name.removeprefix(BEFORE).removesuffix(DOWN): name for name in shapes if name.endswith(DOWN)}
    factors = {f"{name}.weight": (down, down.removesuffix(DOWN) + UP) for name, down in sorted(downs.items())}
    strange = shapes.keys() - {factor for pair in factors.values() for factor in pair}
    if strange or not factors:
        raise UserError(
            f"{directory / WEIGHTS} holds {min(strange)}" if strange else f"{directory / WEIGHTS} holds no factors",
            remedy="Merge the whole model.",
        )
    for down, up in factors.values():
        ranks = {shapes[down][0], config["r"], shapes[up][1] if up in shapes else None}
        if len(ranks) > 1:
            raise UserError(
                f"{directory / WEIGHTS}: {down} and its counterpart do not have the rank {config['r']}",
                cause=f"{CONFIG} says r={config['r']}; the first has {shapes[down][0]}, the second "
                f"{shapes[up][1] if up in shapes else 'is missing'}.",
                remedy=COPY_AGAIN,
            )
    rank = math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]
    return Adapter(directory, str(config.get("base_model_name_or_path")), config["lora_alpha"] / rank, factors, shapes)


def _config(directory: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        if not (config["r"] >= 1 and math.isfinite(config["lora_alpha"])):
            raise ValueError(f"r={config['r']}, lora_alpha={config['lora_alpha']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{directory / CONFIG} cannot be read", cause=f"{type(error).__name__}: {error}", remedy=COPY_AGAIN
        ) from None
    return config


def need_finite(adapter: Adapter) -> None:
    """Refuse factors that hold a number that is not finite, before anything is written."""
    with safe_open(adapter.directory / WEIGHTS, framework="pt") as held:
        for name in sorted(adapter.shapes):
            if not bool(torch.isfinite(held.get_tensor(name)).all()):
                raise UserError(
                    f"{adapter.directory / WEIGHTS}: {name} holds a number that is not finite",
                    cause="A model whose weights are not finite gives nothing but NaN.",
                    remedy="Merge without this adapter, or take an earlier checkpoint of it.",
                )


def layout_over(adapter: Adapter, trunk: Layout, folder: Path) -> Layout:
    """Where the tensors of the whole model will lie in ``folder``: the trunk's files, in fp32; nothing is written.

    Raises :class:`UserError` where the trunk does not have the matrices that the adapter changes.
    """
    check_dtypes(trunk)
    for name, (down, up) in adapter.factors.items():
        shape = (adapter.shapes[up][0], adapter.shapes[down][1])
        if name not in trunk.entries or trunk.entries[name].shape != shape:
            found = [*trunk.entries[name].shape] if name in trunk.entries else "not there"
            raise UserError(
                f"{adapter.directory} was not trained on {trunk.directory}",
                cause=f"It changes {name} of the shape {[*shape]}, which is {found} in that trunk.",
                remedy="Name with init= the model that the adapter was trained on.",
            )
    shards = tuple(_widened(shard, folder) for shard in trunk.shards)
    return Layout(folder, shards, None if trunk.index is None else folder / trunk.index.name)


def write(adapter: Adapter, trunk: Layout, whole: Layout) -> None:
    """Write the whole model's weights as :func:`layout_over` promised; files of an earlier start are kept."""
    files.make_folder(whole.directory)
    missing = [shard for shard in whole.shards if not shard.path.is_file()]
    files.need_space(whole.directory, sum(shard.size for shard in missing))
    sources = {shard.path.name: shard for shard in trunk.shards}
    with safe_open(adapter.directory / WEIGHTS, framework="pt") as held:
        for shard in missing:
            beside = shard.path.with_name(shard.path.name + files.TEMPORARY)
            with open(sources[shard.path.name].path, "rb") as source, open(beside, "wb") as target:
                target.write(shard.head)
                for entry in shard.entries:
                    factors = adapter.factors.get(entry.name)
                    pair = None if factors is None else tuple(held.get_tensor(name).float() for name in factors)
                    _write_tensor(source, trunk.entries[entry.name], target, pair, adapter.scale)
                target.flush()
                os.fsync(target.fileno())
            os.replace(beside, shard.path)
            files.sync_folder(whole.directory)
    _write_rest(trunk, whole)


def _write_rest(trunk: Layout, whole: Layout) -> None:
    """The trunk's other files, which now say fp32 and its size."""
    checkpoint.carry(trunk.directory, whole.directory)
    config = json.loads((trunk.directory / "config.json").read_text(encoding="utf-8"))
    names = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
    files.write_json(whole.directory / "config.json", config | dict.fromkeys(names, "float32"))
    if trunk.index is not None and whole.index is not None:
        index = json.loads(trunk.index.read_text(encoding="utf-8"))
        size = sum(4 * entry.count for entry in whole.entries.values())
        files.write_json(whole.index, index | {"metadata": index.get("metadata", {}) | {"total_size": size}})


def _write_tensor(source: Any, entry: Entry, target: Any, pair: tuple[Tensor, ...] | None, scale: float) -> None:
    width, columns = WIDTHS[entry.dtype], entry.shape[-1] if entry.shape else 1
    step = max(ROWS // max(columns, 1), 1) * columns
    source.seek(entry.start)
    for start in range(0, entry.count, step):
        numbers = min(step, entry.count - start)
        weights = torch.frombuffer(bytearray(source.read(numbers * width)), dtype=DTYPES[entry.dtype]).float()
        if pair is not None:
            down_RI, up_OR = pair
            rows = slice(start // columns, (start + numbers) // columns)
            weights = weights.view(-1, columns).addmm(up_OR[rows], down_RI, alpha=scale)
        target.write(weights.contiguous().numpy().data)


def _widened(shard: Shard, folder: Path) -> Shard:
    """The file with the same tensors in fp32, one behind the other."""
    held = json.loads(shard.head[PREFIX:])
    header = {"__metadata__": held["__metadata__"]} if "__metadata__" in held else {}
    offset = 0
    for entry in shard.entries:
        size = 4 * entry.count
        header[entry.name] = {"dtype": "F32", "shape": [*entry.shape], "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(PREFIX, "little") + text
    path = folder / shard.path.name
    entries = tuple(
        replace(entry, dtype="F32", path=path, start=len(head) + header[entry.name]["data_offsets"][0])
        for entry in shard.entries
    )
    return Shard(path, head, len(head) + offset, entries)
