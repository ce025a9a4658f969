"""Token rows on their way into a trainer: stored flat, planned into batches, collated into tensors.

The order of a whole run is a pure function of (lengths, batch, seed): a resumed run therefore sees
exactly what an undisturbed one would have seen, and no state of a data loader has to be kept.

Axes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch.utils.data import Sampler

from alignment.gemma.branches import first_fit

IGNORE = -100


@dataclass(frozen=True)
class TokenRows:
    """Rows of ids and loss masks, end to end; row ``i`` is ``ids[offsets[i]:offsets[i + 1]]``."""

    ids: np.ndarray
    trained: np.ndarray
    offsets: np.ndarray

    @classmethod
    def gather(cls, rows: Iterable[tuple[Sequence[int], Sequence[bool]]]) -> TokenRows:
        """Collect ``(ids, mask)`` pairs. A row none of whose tokens carries loss is a mistake upstream."""
        ids, trained, lengths = [], [], []
        for row_ids, row_mask in rows:
            assert any(row_mask[1:]), "a row without a token to learn would train on nothing"
            ids.append(np.asarray(row_ids, dtype=np.int32))
            trained.append(np.asarray(row_mask, dtype=bool))
            lengths.append(len(row_ids))
        empty = np.zeros(0, np.int32)
        return cls(
            np.concatenate(ids or [empty]),
            np.concatenate(trained or [empty.astype(bool)]),
            np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row."""
        return np.diff(self.offsets)

    @property
    def trained_tokens(self) -> int:
        """How many tokens of all rows carry loss."""
        return int(self.trained.sum())

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """``(ids, mask)`` of one row."""
        span = slice(self.offsets[index], self.offsets[index + 1])
        return self.ids[span], self.trained[span]

    def dataset(self) -> Dataset:
        """As a ``datasets.Dataset`` with ``input_ids`` and ``labels``, sharing this memory."""
        offsets = pa.array(self.offsets, pa.int64())
        labels = np.where(self.trained, self.ids, IGNORE).astype(np.int32)
        columns = {
            "input_ids": pa.LargeListArray.from_arrays(offsets, pa.array(self.ids)),
            "labels": pa.LargeListArray.from_arrays(offsets, pa.array(labels)),
        }
        return Dataset(pa.table(columns))


def plan_steps(lengths: np.ndarray, batch: int, steps: int, seed: int, window: int) -> Iterator[np.ndarray]:
    """The rows of every optimiser step: ``steps`` arrays of ``batch`` indices, those of like length together.

    Every epoch is a fresh permutation, and the epochs follow each other without a gap. Within a
    window of ``window`` batches rows are sorted by length and cut into batches, whose order is then
    shuffled: little padding, and a length that does not drift during training.
    """

    def stream() -> Iterator[int]:
        epoch = 0
        while True:
            yield from np.random.default_rng([seed, epoch]).permutation(len(lengths))
            epoch += 1

    rows, planned, number = stream(), 0, 0
    while planned < steps:
        width = min(window, steps - planned)
        drawn = np.fromiter(islice(rows, width * batch), dtype=np.int64, count=width * batch)
        ordered = drawn[np.argsort(lengths[drawn], kind="stable")].reshape(width, batch)
        yield from ordered[np.random.default_rng([seed, number, 1]).permutation(width)]
        planned, number = planned + width, number + 1


def planned_tokens(lengths: np.ndarray, batch: int, steps: int, seed: int, window: int) -> int:
    """Tokens of all rows of all steps: what a run processes, however often it is stopped and by how many processes."""
    return int(sum(lengths[rows].sum() for rows in plan_steps(lengths, batch, steps, seed, window)))


class PlannedBatches(Sampler[list[int]]):
    """A batch sampler over a whole run: every step's rows, by length, cut into micro-batches.

    The run is one epoch of the data loader, so that resuming means skipping lists of integers.
    """

    def __init__(self, lengths: np.ndarray, batch: int, steps: int, seed: int, window: int, micro: int) -> None:
        assert batch % micro == 0, "engine.batch_arithmetic has made sure of this"
        self._lengths, self._batch, self._steps = lengths, batch, steps
        self._seed, self._window, self._micro = seed, window, micro
        self.batch_size = micro
        self.drop_last = False

    def __len__(self) -> int:
        return self._steps * (self._batch // self._micro)

    def __iter__(self) -> Iterator[list[int]]:
        for rows in plan_steps(self._lengths, self._batch, self._steps, self._seed, self._window):
            for start in range(0, self._batch, self._micro):
                yield rows[start : start + self._micro].tolist()


MULTIPLE = 16
"""Padded lines are as long as a multiple of it."""


@dataclass(frozen=True)
class Collator:
    """Rows → ``input_ids_BT`` and ``shift_labels_BT`` (the token that each position predicts, or −100).

    ``packed=False`` pads on the right, which causal attention never sees. ``packed=True`` lays rows
    end to end in as few lines as the longest row allows; positions restart with each row, which is
    what tells the attention where one ends (``gemma.core.hidden_states``). ``one_line=True`` packs all rows
    into a single line: flash kernels tell packed rows apart in a batch of one line alone.
    """

    pad_id: int
    packed: bool = False
    one_line: bool = False

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in rows)
        if not self.packed:  # vector units want whole lines: about a tenth faster on a CPU
            width = -(-width // MULTIPLE) * MULTIPLE
        lengths = [len(row["input_ids"]) for row in rows]
        if self.packed and self.one_line:
            width = sum(lengths)
        places = first_fit(lengths, width) if self.packed else [[place] for place in range(len(rows))]
        lines = [[rows[place] for place in line] for line in places]
        shape = (len(lines), width)
        ids_BT, labels_BT = np.full(shape, self.pad_id, np.int64), np.full(shape, IGNORE, np.int64)
        positions_BT = np.tile(np.arange(width), (len(lines), 1))
        for line, members in enumerate(lines):
            start = 0
            for row in members:
                end = start + len(row["input_ids"])
                ids_BT[line, start:end] = row["input_ids"]
                labels_BT[line, start : end - 1] = row["labels"][1:]
                positions_BT[line, start:end] = np.arange(end - start)
                start = end
            positions_BT[line, start:] = np.arange(width - start)
        batch = {"input_ids": torch.from_numpy(ids_BT), "shift_labels": torch.from_numpy(labels_BT)}
        return batch | ({"position_ids": torch.from_numpy(positions_BT)} if self.packed else {})
