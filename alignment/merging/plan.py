"""What is merged with what: settled and checked by headers and configs, before a weight is read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from alignment.errors import UserError
from alignment.merging.layout import Entry, Layout, Shard

WIDTHS = {"F32": 4, "BF16": 2, "F16": 2}
"""What weights may be stored as, and the bytes of a number; sums are formed in fp32."""

HEADS = ("score.weight", "lm_head.weight")
"""Tensors that a model may have and its ancestor not, or the other way round."""

NOT_THE_MODEL = {
    "_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "use_cache",
    "initializer_range",
    "attention_dropout",
    "classifier_dropout",
    "problem_type",
    "id2label",
    "label2id",
    "reward",
}
"""Keys of a config in which models may differ: names, and what only their training used."""


Method = Literal["linear", "slerp", "liti"]
Parts = Literal["layer", "tensor"]

PACE = 1.0e9
"""Bytes read and written in a second by one core, as measured (``benchmarks/merge.py``), with the disk keeping up."""


@dataclass(frozen=True)
class Tensors:
    """One tensor of the result: in which of its shard's bytes it goes, and where each model has it.

    ``start`` is where the common ancestor has it; None where that is not read, or has no such tensor (a head).
    ``group`` names what has one angle.
    """

    entry: Entry
    sources: tuple[Entry, ...]
    start: Entry | None
    group: str

    @property
    def read(self) -> tuple[Entry, ...]:
        """Everything that is read for it: the start first, or else the first model once more in its place."""
        return (self.start or self.sources[0], *self.sources)


@dataclass(frozen=True)
class Target:
    """One file of the result, laid out as the first model's."""

    shard: Shard
    tensors: tuple[Tensors, ...]

    @property
    def name(self) -> str:
        """Of the file."""
        return self.shard.path.name


@dataclass(frozen=True)
class Plan:
    """A merge that can be done.

    ``coefficients``: what each task vector counts, from the start on; None where angles decide (slerp). Tensors that
    the start lacks are averaged with ``weights``.
    """

    models: tuple[Layout, ...]
    weights: tuple[float, ...]
    targets: tuple[Target, ...]
    method: Method = "linear"
    coefficients: tuple[float, ...] | None = None
    start: Layout | None = None

    @property
    def bytes_written(self) -> int:
        """The size of the result's weights."""
        return sum(target.shard.size for target in self.targets)

    @property
    def width(self) -> int:
        """Bytes of the widest numbers."""
        return max(WIDTHS[entry.dtype] for target in self.targets for one in target.tensors for entry in one.read)

    @property
    def groups(self) -> dict[str, list[Tensors]]:
        """The tensors that have one angle, in the order in which the files have the groups."""
        found: dict[str, list[Tensors]] = {}
        for target in self.targets:
            for tensors in target.tensors:
                found.setdefault(tensors.group, []).append(tensors)
        return found


class Forecast(NamedTuple):
    """What a merge will take: bytes, and seconds."""

    read: int
    written: int
    seconds: float


def forecast(plan: Plan, threads: int) -> Forecast:
    """Tell before a weight is read what a merge takes. What is read twice comes from the page cache the second time."""
    layouts = plan.models if plan.start is None else (*plan.models, plan.start)
    read = sum(shard.size for layout in layouts for shard in layout.shards)
    return Forecast(read, plan.bytes_written, (read + plan.bytes_written) / (PACE * threads))


def linear(
    models: Sequence[Layout],
    weights: Sequence[float] | None,
    start: Layout | None = None,
    parts: Parts = "layer",
) -> Plan:
    """Σ wᵢ θᵢ over models, with equal weights where none are given; ``start`` only to tell how far they have moved.

    Raises :class:`UserError` where they do not fit.
    """
    assert len(models) >= 2, "an average is of two models at least"
    weights = tuple([1 / len(models)] * len(models) if weights is None else weights)
    check_weights(weights, len(models))
    return Plan(tuple(models), weights, _targets(models, start, parts), "linear", weights, start)


def slerp(models: Sequence[Layout], weights: Sequence[float] | None, start: Layout, parts: Parts) -> Plan:
    """Spherical interpolation of the task vectors from ``start``, with one angle for each layer or each tensor.

    Raises :class:`UserError` where they do not fit.
    """
    average = linear(models, weights, start, parts)
    return Plan(average.models, average.weights, average.targets, "slerp", None, start)


def liti(model: Layout, start: Layout, eta: float, parts: Parts) -> Plan:
    """θ_start + η (θ − θ_start): WARP's linear interpolation towards the start.

    Raises :class:`UserError` where they do not fit.
    """
    targets = _targets([model], start, parts)
    for target in targets:
        for tensors in target.tensors:
            if tensors.start is None:
                raise UserError(
                    f"{start.directory} lacks {tensors.entry.name}",
                    cause=f"{model.directory} has it, and there is nothing to go back to.",
                    remedy="Name a start with init= that has every tensor of the model.",
                )
    return Plan((model,), (1.0,), targets, "liti", (eta,), start)


def group_of(tensor: str, parts: Parts = "layer") -> str:
    """``model.layers.3.mlp.up_proj.weight`` → ``layers.3``, by tensor ``layers.3.mlp.up_proj``.

    Embedding, final norm and head are no layers: each stands for itself.
    """
    found = re.search(r"(?:^|\.)(layers\.\d+)\.", tensor) if parts == "layer" else None
    return found[1] if found else tensor.removeprefix("model.").removesuffix(".weight")


def _targets(models: Sequence[Layout], start: Layout | None, parts: Parts) -> tuple[Target, ...]:
    """The files of the result, with everything checked that headers can tell."""
    first, *others = models
    if not first.entries:
        raise UserError(f"{first.directory} holds no tensor", remedy="Name a directory with a model's weights.")
    check_dtypes(first)
    for other in others:
        check_same_tensors(other, first)
    begun: Mapping[str, Entry] = {}
    if start is not None:
        check_ancestor(start, first)
        check_dtypes(start)
        begun = start.entries
    return tuple(
        Target(
            shard,
            tuple(
                Tensors(
                    entry,
                    tuple(model.entries[entry.name] for model in models),
                    begun.get(entry.name),
                    group_of(entry.name, parts),
                )
                for entry in shard.entries
            ),
        )
        for shard in first.shards
    )


def check_weights(weights: Sequence[float], count: int) -> None:
    """Refuse what are not the weights of an average of ``count`` models."""
    if len(weights) != count:
        cause = f"There are {len(weights)} weights for {count} models."
    elif not all(weight >= 0 for weight in weights):
        cause = "An average has no negative weight."
    elif not math.isclose(sum(weights), 1, abs_tol=1e-6):
        cause = f"They sum to {sum(weights):g}, and those of an average sum to 1."
    else:
        return
    raise UserError(f"weights={[*weights]}", cause=cause, remedy="Leave weights=null for equal ones.")


def check_dtypes(model: Layout) -> None:
    """Refuse numbers that cannot be averaged in fp32."""
    for entry in model.entries.values():
        if entry.dtype not in WIDTHS:
            raise UserError(
                f"{entry.path}: {entry.name} is stored as {entry.dtype}",
                cause=f"What is merged is {', '.join(WIDTHS)}.",
                remedy="Save the model again in one of these.",
            )


def check_same_tensors(model: Layout, first: Layout) -> None:
    """Refuse a model whose tensors do not have the names, shapes and dtypes of the first one's."""
    where = f"As {first.directory} has it. Merged models are of one kind, tensor by tensor."
    if lacking := sorted(first.entries.keys() - model.entries.keys()):
        raise UserError(f"{model.directory} lacks {_some(lacking)}", cause=where)
    if more := sorted(model.entries.keys() - first.entries.keys()):
        raise UserError(f"{model.directory} has a superfluous {_some(more)}", cause=where.replace("has it", "lacks it"))
    for name, entry in model.entries.items():
        wanted = first.entries[name]
        if entry.shape != wanted.shape:
            raise UserError(f"{entry.path}: {name} has the shape {[*entry.shape]}, not {[*wanted.shape]}", cause=where)
        if entry.dtype != wanted.dtype:
            raise UserError(
                f"{entry.path}: {name} is stored as {entry.dtype}, not {wanted.dtype}",
                cause=where,
                remedy="Save one of the models again in the other's dtype; better in fp32, where both have it.",
            )


def check_ancestor(init: Layout, model: Layout) -> None:
    """Refuse an ancestor without the names and shapes of the model's trunk; heads come and go."""
    trunks = [
        {name: entry.shape for name, entry in layout.entries.items() if name not in HEADS} for layout in (init, model)
    ]
    wrong = sorted(name for name in trunks[0].keys() | trunks[1].keys() if trunks[0].get(name) != trunks[1].get(name))
    if wrong:
        shapes = [[*trunk[wrong[0]]] if wrong[0] in trunk else "not there" for trunk in trunks]
        raise UserError(
            f"{init.directory} is not the ancestor of {model.directory}: it differs in {_some(wrong)}",
            cause=f"{wrong[0]} is {shapes[0]} in the first and {shapes[1]} in the second.",
            remedy="Name with init= the model that all of them were trained from.",
        )


def check_configs(configs: Mapping[Path, Mapping[str, Any]]) -> None:
    """Refuse models whose configs, by directory and with all defaults, differ in anything that makes the model."""
    (first, wanted), *others = configs.items()
    for directory, found in others:
        for key in sorted((wanted.keys() | found.keys()) - NOT_THE_MODEL):
            if found.get(key) != wanted.get(key):
                raise UserError(
                    f"{directory}: {key} is {found.get(key)!r}, not {wanted.get(key)!r}",
                    cause=f"Merged models have one config but for names, and {first} has another.",
                    remedy="Merge models of one shape that were trained from one ancestor.",
                )


def _some(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
