"""Comparisons on their way into a trainer: stored flat as ids, collated into lines that share the prompt.

Axes: P pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset

from alignment.gemma.branches import Lines, Tree, lay_out
from alignment.objectives.preference import UNKNOWN


class PairRow(NamedTuple):
    """One comparison as ids: the prompt, and each answer with what closes it. Labels: 1 safe, 0 unsafe, −1 unknown."""

    prompt: Sequence[int]
    chosen: Sequence[int]
    rejected: Sequence[int]
    margin: float
    chosen_safe: int = UNKNOWN
    rejected_safe: int = UNKNOWN

    @property
    def tree(self) -> Tree:
        """Its place in a line: the prompt once, then both answers."""
        return Tree(self.prompt, (self.chosen, self.rejected))


@dataclass(frozen=True)
class PairRows:
    """Rows for the trainer, and how long each one is in a line."""

    dataset: Dataset
    lengths: np.ndarray

    @classmethod
    def gather(cls, rows: Iterable[PairRow]) -> PairRows:
        """Collect rows into an Arrow table."""
        columns: dict[str, list[Any]] = {name: [] for name in PairRow._fields}
        for row in rows:
            for name, value in row._asdict().items():
                columns[name].append(value)
        ids = {name: pa.array(columns[name], pa.large_list(pa.int32())) for name in ("prompt", "chosen", "rejected")}
        # `chosen_ids` and `rejected_ids` tell TRL that nothing is left to tokenise.
        table = {f"{name}_ids": values for name, values in ids.items()}
        table["margin"] = pa.array(columns["margin"], pa.float32())
        table |= {name: pa.array(columns[name], pa.int8()) for name in ("chosen_safe", "rejected_safe")}
        lengths = sum(np.array([len(one) for one in columns[name]], np.int64) for name in ids)
        return cls(Dataset(pa.table(table)), np.asarray(lengths))

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True)
class PairCollator:
    """Rows → lines (``gemma/branches.py``), whose answers are chosen₁, rejected₁, chosen₂ …

    Beside them ``margin_P`` and ``safe_N``.
    """

    pad_id: int
    share: bool

    def __call__(self, rows: list[Mapping[str, Any]]) -> Lines:
        trees = [Tree(row["prompt_ids"], (row["chosen_ids"], row["rejected_ids"])) for row in rows]
        lines = lay_out(trees, pad_id=self.pad_id, share=self.share)
        lines["margin"] = torch.tensor([row["margin"] for row in rows], dtype=torch.float32)
        safe = [label for row in rows for label in (row["chosen_safe"], row["rejected_safe"])]
        lines["safe"] = torch.tensor(safe, dtype=torch.long)
        return lines
