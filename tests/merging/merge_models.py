"""Directories of weights to merge, of any layout, and what their merges are in float64, written apart."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignment.merging import checkpoint, layout, plan
from alignment.merging.checkpoint import Merged
from alignment.merging.plan import Parts, Plan

Weights = dict[str, Tensor]

SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (37, 11),
    "model.layers.0.mlp.up_proj.weight": (13, 11),
    "model.layers.0.norm.weight": (11,),
    "model.layers.10.norm.weight": (11,),
    "model.layers.2.norm.weight": (11,),
    "model.nothing": (0, 3),
    "model.one": (1,),
    "model.scalar": (),
    "score.weight": (1, 11),
}


def drawn(seed: int, dtype: torch.dtype = torch.float32, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def write(directory: Path, weights: Weights, shards: int = 0) -> Path:
    """One file, or an index and so many shards, the names dealt out in turn (so the index matters)."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text('{"model_type": "gemma2"}')
    if not shards:
        save_file(weights, directory / layout.SINGLE, {"format": "pt"})
        return directory
    files = {name: f"model-{place % shards + 1:05}-of-{shards:05}.safetensors" for place, name in enumerate(weights)}
    for file in set(files.values()):
        save_file({name: weights[name] for name in weights if files[name] == file}, directory / file)
    index = {"metadata": {"total_size": 1}, "weight_map": files}
    (directory / layout.INDEX).write_text(json.dumps(index))
    return directory


def read(directory: Path) -> Weights:
    return {name: value for file in directory.glob("*.safetensors") for name, value in load_file(file).items()}


def merge(
    directories: Sequence[Path],
    out: Path,
    weights: Sequence[float] | None = None,
    *,
    memory: int = 64 << 20,
    threads: int = 1,
) -> Merged:
    merge_plan = plan.linear([layout.read(directory) for directory in directories], weights)
    return done(merge_plan, out, memory=memory, threads=threads)


def done(merge_plan: Plan, out: Path, *, memory: int = 64 << 20, threads: int = 1) -> Merged:
    return checkpoint.merge(merge_plan, out, memory=memory, threads=threads, on_progress=lambda done: None)


def spherical(
    directories: Sequence[Path],
    start: Path,
    out: Path,
    weights: Sequence[float] | None = None,
    parts: Parts = "layer",
    *,
    memory: int = 64 << 20,
    threads: int = 1,
) -> Merged:
    layouts = [layout.read(directory) for directory in directories]
    return done(plan.slerp(layouts, weights, layout.read(start), parts), out, memory=memory, threads=threads)


def average(models: Sequence[Weights], weights: Sequence[float]) -> Weights:
    """In float64."""
    return {
        name: sum((model[name].double() * weight for model, weight in zip(models, weights, strict=True)), start=0)
        for name in models[0]
    }  # type: ignore[misc]


def recursion(models: Sequence[Weights], start: Weights, weights: Sequence[float], parts: Parts) -> Weights:
    """WARP's slerp in float64, on the task vectors themselves: slerp(slerp(1 … m − 1), m; w_m / (w_1 + … + w_m))."""
    groups: dict[str, list[str]] = {}
    for name in start:
        pieces = name.split(".")
        whole = ".".join(pieces[:3]) if parts == "layer" and pieces[1] == "layers" else name
        groups.setdefault(whole, []).append(name)
    found: Weights = {}
    for names in groups.values():
        tasks = [
            torch.cat([(model[name].double() - start[name].double()).flatten() for name in names]) for model in models
        ]
        merged, counted = tasks[0], weights[0]
        for task, weight in zip(tasks[1:], weights[1:], strict=True):
            counted += weight
            share = weight / counted
            if not merged.norm() or not task.norm():
                merged = (1 - share) * merged + share * task
                continue
            angle = math.acos(min(1.0, float(merged @ task / (merged.norm() * task.norm()))))
            near, far = math.sin((1 - share) * angle), math.sin(share * angle)
            merged = (near * merged + far * task) / math.sin(angle)
        for name, piece in zip(names, merged.split([start[name].numel() for name in names]), strict=True):
            found[name] = start[name].double() + piece.view(start[name].shape)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a directory but those of unfinished work."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
