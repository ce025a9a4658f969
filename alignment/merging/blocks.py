"""One thread's memory, and what is computed in it block by block. Axes: V vectors (start, models), N numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from alignment.errors import UserError
from alignment.merging import kernels
from alignment.merging.layout import Entry
from alignment.merging.plan import Plan, Tensors

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class Buffers:
    """One thread's memory, used again for every slice: bytes as they are read and written, and a block in fp32."""

    def __init__(self, plan: Plan, slice_: int, block: int, device: str) -> None:
        vectors = len(plan.models) + 1
        self.raw_VN = torch.empty(vectors, slice_ * plan.width, dtype=torch.uint8)
        self.result = torch.empty(slice_ * plan.width, dtype=torch.uint8)
        self._wide_VN = torch.empty(vectors, block, device=device)
        self._merged_N, self._term_N = torch.empty(block, device=device), torch.empty(block, device=device)
        self._rows_VN, self._moved = self._wide_VN, False

    def rows(self, sources: Sequence[Entry]) -> list[Tensor]:
        """What has been read, as numbers: `[V, N]`, or where dtypes differ each vector as `[1, N]`."""
        dtypes = [DTYPES[source.dtype] for source in sources]
        if len(set(dtypes)) == 1:
            return [self.raw_VN.view(dtypes[0])]
        return [raw.view(dtype)[None] for raw, dtype in zip(self.raw_VN, dtypes, strict=True)]

    def load(self, blocks: Sequence[Tensor]) -> None:
        """Take a block of the start and of every model."""
        self._rows_VN, self._moved, place = self._wide_VN[:, : blocks[0].shape[1]], False, 0
        for block in blocks:
            self._rows_VN[place : place + len(block)].copy_(block)
            place += len(block)

    def merge(self, counts: tuple[float, ...], result: Tensor, *, averaged: bool) -> None:
        """Write the block of the result, rounded to its dtype."""
        start_N, *models = self._rows_VN
        merged_N, term_N = self._merged_N[: len(result)], self._term_N[: len(result)]
        moved = [place for place, count in enumerate(counts) if count] or [0]
        if averaged:
            kernels.linear(models, counts, merged_N, term_N)
        elif len(moved) == 1:
            kernels.between(start_N, models[moved[0]], counts[moved[0]], merged_N, term_N)
        else:
            kernels.along(start_N, self._tasks(), counts, merged_N)
        result.copy_(merged_N)

    def measure(self, blocks: Sequence[Tensor], sources: Sequence[Entry], start: int) -> list[float]:
        """The dot products of the start and the task vectors."""
        self._tasks()
        found = kernels.gram(self._rows_VN)
        if not all(map(math.isfinite, found)):
            single = [row for block in blocks for row in block]
            refuse_if_not_finite(single, sources, start)
            wide_VN = torch.stack([row.double() for row in single])
            wide_VN[1:] -= wide_VN[0].clone()
            found = kernels.gram(wide_VN)
        return found

    def _tasks(self) -> Tensor:
        """The task vectors, which take the place of the models."""
        tasks_MN = self._rows_VN[1:]
        if not self._moved:
            torch.sub(tasks_MN, self._rows_VN[0], out=tasks_MN)
            self._moved = True
        return tasks_MN


def refuse_if_not_finite(blocks: Sequence[Tensor], sources: Sequence[Entry], start: int) -> None:
    """Raise :class:`UserError` for the first number that is not; ``start`` is where in the tensors the blocks begin."""
    for block, source in zip(blocks, sources, strict=True):
        wrong = (~torch.isfinite(block)).nonzero()
        if len(wrong):
            raise UserError(
                f"{source.path}: {source.name} holds {float(block[wrong[0]])} (number {start + int(wrong[0]):,})",
                cause="A model whose weights are not finite gives nothing but NaN.",
                remedy="Merge without this model, or take an earlier checkpoint of it.",
            )


def refuse_if_too_large(blocks: Sequence[Tensor], result: Tensor, tensors: Tensors, start: int) -> None:
    """Raise :class:`UserError` for a result that is not finite; where the models are not, for those."""
    refuse_if_not_finite(blocks, tensors.read, start)
    wrong = int((~torch.isfinite(result)).nonzero()[0])
    raise UserError(
        f"{tensors.entry.name} becomes too large for {tensors.entry.dtype} (number {start + wrong:,})",
        cause="Merged task vectors may be longer than those of any model.",
        remedy="Save the models in bf16 or fp32, and merge again.",
    )
