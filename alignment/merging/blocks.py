"""One thread's memory, and what is computed in it. Axes: B blocks, V vectors (start, models), N numbers."""

from __future__ import annotations

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
        self._wide_VN, self._two_N = torch.empty(vectors, block, device=device), torch.empty(2, block, device=device)
        self._pairs = torch.triu_indices(vectors, vectors).tolist()

    def rows(self, sources: Sequence[Entry]) -> list[Tensor]:
        """What has been read, as numbers: `[V, N]`, or where dtypes differ each vector as `[1, N]`."""
        dtypes = [DTYPES[source.dtype] for source in sources]
        if len(set(dtypes)) == 1:
            return [self.raw_VN.view(dtypes[0])]
        return [raw.view(dtype)[None] for raw, dtype in zip(self.raw_VN, dtypes, strict=True)]

    def merge(self, rows: list[Tensor], counts: Sequence[float], result: Tensor, *, averaged: bool) -> None:
        """Write the slice of the result, rounded to its dtype."""
        kernels.combine(rows, list(counts), averaged, result, self._wide_VN, self._two_N)

    def measure(self, rows: list[Tensor], sources: Sequence[Entry], numbers: int, start: int) -> list[list[float]]:
        """The dot products of the start and the task vectors, of every block, each pair once: (0, 0), (0, 1) … (1, 1) …

        Raises :class:`UserError` for a number that is not finite; ``start`` is where in the tensors the slice begins.
        """
        dots_BVV = torch.stack(kernels.measure(rows, numbers, self._wide_VN)).double().cpu()
        block = self._wide_VN.shape[1]
        for place in (~torch.isfinite(dots_BVV).all(dim=(1, 2))).nonzero().flatten().tolist():
            begin = place * block
            single = [row[begin : min(begin + block, numbers)] for several in rows for row in several]
            refuse_if_not_finite(single, sources, start + begin)
            # Their squares were too large for fp32.
            wide_VN = torch.stack([row.double() for row in single])
            wide_VN[1:] -= wide_VN[0].clone()
            dots_BVV[place] = wide_VN @ wide_VN.T
        one, other = self._pairs
        return dots_BVV[:, one, other].tolist()


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
