"""What a teacher tells, from its columns to a batch: every token's numbers stand where the token stands."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from alignment.data.topk import TopK
from alignment.objectives.imitation import Likeliest
from alignment.training.lessons import Row, collated
from alignment.training.rows import Collator
from alignment.training.teachers import columns, taught_by

N, Y = False, True
ROWS = [
    Row("a", np.array([2, 5, 6]), np.array([N, N, Y])),
    Row("b", np.array([2, 7, 8, 9, 10]), np.array([N, Y, N, Y, Y])),
    Row("c", np.array([2, 11]), np.array([N, Y])),
]


def told(row: Row, draws: bool = True) -> TopK:
    """Every number of a token begins with its id."""
    ids_T = row.targets
    rest = (ids_T[:, None] * 100 + np.arange(3), ids_T / 32) if draws else ()
    return TopK(ids_T, ids_T[:, None] * 10 + np.arange(2), -ids_T[:, None] / np.array([2.0, 4.0]), -ids_T / 8, *rest)


def batch(draws: bool, packed: bool) -> tuple[Likeliest, torch.Tensor]:
    found = columns([told(row, draws) for row in ROWS])
    ends = np.cumsum([0, *(int(row.trained.sum()) for row in ROWS)])
    rows = [
        replace(row, told={name: values[begin:end] for name, values in found.items()})
        for row, begin, end in zip(ROWS, ends[:-1], ends[1:], strict=True)
    ]
    made, _ = collated(rows, Collator(0, packed, one_line=packed))
    teacher = taught_by(made, None)
    assert isinstance(teacher, Likeliest)
    labels = made["shift_labels"]
    return teacher, labels[labels != -100]


@pytest.mark.parametrize("packed", [False, True])
def test_numbers_stand_with_their_tokens(packed: bool) -> None:
    teacher, targets_S = batch(draws=True, packed=packed)
    assert sorted(targets_S.tolist()) == [6, 7, 9, 10, 11]
    assert teacher.drawn_SM is not None
    assert teacher.entropy_S is not None
    assert torch.equal(teacher.ids_SK, targets_S[:, None] * 10 + torch.arange(2))
    assert torch.equal(teacher.drawn_SM, targets_S[:, None] * 100 + torch.arange(3))
    assert torch.equal(teacher.tail_S, -targets_S / 8)
    assert torch.equal(teacher.entropy_S, targets_S / 32)
    assert (teacher.drawn_SM.dtype, teacher.entropy_S.dtype) == (torch.int64, torch.float32)


def test_a_teacher_that_draws_none_tells_of_none() -> None:
    teacher, targets_S = batch(draws=False, packed=False)
    assert teacher.drawn_SM is teacher.entropy_S is None
    assert torch.equal(teacher.tail_S, -targets_S / 8)


def test_one_teacher_draws_for_all_rows_or_for_none() -> None:
    with pytest.raises(AssertionError, match="for all rows or for none"):
        columns([told(ROWS[0]), told(ROWS[1], draws=False)])
