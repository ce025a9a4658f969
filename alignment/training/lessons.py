"""What a step of distillation learns from: rows that are given, or answers that are drawn to their prompts.

Which rows a step takes is a function of the step and the seed. What a data loader brings are numbers of rows alone;
the rows, and what the teacher says of them, are put together when a step begins, because some answers are not there
before the student has drawn them.

Axes: B rows, T tokens, S tokens that carry loss: those of all rows, row after row or, in a batch, line after line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

from alignment.training.rows import IGNORE, Collator, TokenRows, plan_steps

Plan = Callable[[], Iterator[np.ndarray]]
"""The numbers of the rows of every step, in order."""


@dataclass(frozen=True)
class Row:
    """``ids`` and which of them carry loss (never the first); ``told`` holds numbers for each one that does.

    ``drawn``: its answer is nothing that was given, but what a student has said.
    """

    name: str
    ids: np.ndarray
    trained: np.ndarray
    told: Mapping[str, np.ndarray] = field(default_factory=dict)
    drawn: bool = False

    @property
    def targets(self) -> np.ndarray:
        """The ids that carry loss."""
        return self.ids[self.trained]


@dataclass(frozen=True)
class Matter:
    """What there is to learn from: rows that are written, and the prompts that answers are drawn to.

    ``prompts`` is empty for text. Where nothing but prompts is there, they are the rows, without loss.
    """

    names: Sequence[str]
    rows: TokenRows
    prompts: Sequence[Sequence[int]]

    def __len__(self) -> int:
        return len(self.names)

    def row(self, place: int) -> Row:
        """What is written there."""
        return Row(self.names[place], *self.rows.row(place))


def answered(name: str, prompt: Sequence[int], answer: Sequence[int]) -> Row:
    """A prompt with an answer that was drawn to it; every token of the answer carries loss."""
    trained = np.zeros(len(prompt) + len(answer), dtype=bool)
    trained[len(prompt) :] = True
    return Row(name, np.asarray([*prompt, *answer], dtype=np.int32), trained, drawn=True)


Acting = Callable[[], AbstractContextManager[nn.Module]]
"""The student, whole in every process while the block lasts."""


class Source(Protocol):
    """Where the rows of a run come from; all processes come here together."""

    @property
    def count(self) -> int:
        """How many rows a plan may number."""
        ...

    def rows(self, step: int, groups: Sequence[Sequence[int]], acting: Acting) -> list[list[Row]]:
        """The rows with these numbers (:class:`NumberedBatches`), by micro-batches of this process."""
        ...

    def save(self, step: int, folder: Path) -> None:
        """Write into the checkpoint behind ``step`` what later steps need besides; done by the main process alone."""
        ...

    def load(self, folder: Path) -> None:
        """Take it back from a checkpoint that is whole."""
        ...


# ── the order ────────────────────────────────────────────────────────────────────────────────────


def by_rows(lengths: np.ndarray, batch: int, steps: int, seed: int, window: int) -> Plan:
    """Every step takes the next rows, those of like length together."""
    return lambda: plan_steps(lengths, batch, steps, seed, window)


def phase_rows(phase: int, *, count: int, rollouts: int, seed: int) -> list[int]:
    """The rows to whose prompts phase ``phase`` (from 0) draws: epoch after epoch, each in an order of its own."""
    first = phase * rollouts
    places = range(first, first + rollouts)
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(count) for epoch in {p // count for p in places}}
    return [int(orders[place // count][place % count]) for place in places]


def by_phases(rollouts: int, batch: int, epochs: int, steps: int, seed: int) -> Plan:
    """Steps over the ``rollouts`` answers of a phase, ``epochs`` times; numbers count within the phase."""

    def plan() -> Iterator[np.ndarray]:
        for step in range(steps):
            phase, within = divmod(step, epochs * rollouts // batch)
            epoch, place = divmod(within, rollouts // batch)
            order = np.random.default_rng([seed, phase, epoch, 2]).permutation(rollouts)
            yield order[place * batch : (place + 1) * batch]

    return plan


class Places(Dataset[int]):
    """What a data loader loads: numbers of rows."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> int:
        return number


class NumberedBatches(Sampler[list[int]]):
    """A batch sampler over a whole run, in micro-batches.

    A row that comes to a step a second time is numbered ``count`` higher, so that its prompt gets another answer.
    """

    def __init__(self, plan: Plan, *, count: int, batch: int, steps: int, micro: int) -> None:
        assert batch % micro == 0, "engine.batch_arithmetic has made sure of this"
        self._plan, self._count, self._batch, self._steps, self._micro = plan, count, batch, steps, micro
        self.batch_size = micro
        self.drop_last = False

    def __len__(self) -> int:
        return self._steps * (self._batch // self._micro)

    def __iter__(self) -> Iterator[list[int]]:
        for rows in self._plan():
            seen: Counter[int] = Counter()
            numbers = []
            for place in rows.tolist():
                numbers.append(place + self._count * seen[place])
                seen[place] += 1
            for start in range(0, self._batch, self._micro):
                yield numbers[start : start + self._micro]


# ── a batch ──────────────────────────────────────────────────────────────────────────────────────


def collated(rows: Sequence[Row], collate: Collator) -> tuple[dict[str, Tensor], np.ndarray]:
    """The batch that a student reads, and ``order_S``: which of the rows' S tokens, row after row, stands where in it.

    What is known of each token, row after row, is in the batch's order as ``values[order_S]``.
    """
    numbers, first = [], 0
    for row in rows:
        here = np.full(len(row.ids), IGNORE)
        here[row.trained] = np.arange(first, first + int(row.trained.sum()))
        numbers.append(here)
        first += int(row.trained.sum())
    batch = collate([_labelled(row.ids, np.where(row.trained, row.ids, IGNORE)) for row in rows])
    placed = collate([_labelled(row.ids, here) for row, here in zip(rows, numbers, strict=True)])["shift_labels"]
    order_S = placed[placed != IGNORE].numpy()
    assert len(order_S) == first, "the first token of a row is predicted by nothing and carries no loss"
    names = rows[0].told.keys()
    told = {name: np.concatenate([row.told[name] for row in rows])[order_S] for name in names}
    return batch | {name: torch.from_numpy(values) for name, values in told.items()}, order_S


def _labelled(ids: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    return {"input_ids": ids.tolist(), "labels": labels.tolist()}
