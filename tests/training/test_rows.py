"""Batches are a pure function of lengths and seed; collating loses and leaks nothing."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.training.rows import IGNORE, MULTIPLE, Collator, PlannedBatches, TokenRows, plan_steps

LENGTHS = np.random.default_rng(0).integers(4, 60, 203)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 80),
    batch=st.integers(1, 16),
    steps=st.integers(1, 30),
    seed=st.integers(0, 9),
    window=st.integers(1, 9),
)
def test_every_epoch_sees_every_row_before_the_next_begins(
    rows: int, batch: int, steps: int, seed: int, window: int
) -> None:
    lengths = np.random.default_rng(seed).integers(2, 40, rows)
    planned = list(plan_steps(lengths, batch, steps, seed, window))
    assert len(planned) == steps
    assert {len(step) for step in planned} == {batch}
    counts = np.bincount(np.concatenate(planned), minlength=rows)
    assert counts.sum() == steps * batch
    assert counts.max() - counts.min() <= 1


def test_the_order_depends_on_the_seed_and_on_nothing_else() -> None:
    first, again, other = (list(plan_steps(LENGTHS, 16, 20, seed, 4)) for seed in (0, 0, 1))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


def test_a_window_of_lengths_saves_padding_and_one_keeps_the_order_drawn() -> None:
    def padding(window: int) -> int:
        return sum(16 * LENGTHS[step].max() - LENGTHS[step].sum() for step in plan_steps(LENGTHS, 16, 24, 0, window))

    assert padding(8) < 0.4 * padding(1)
    drawn = np.random.default_rng([0, 0]).permutation(len(LENGTHS))[:16]
    assert sorted(next(plan_steps(LENGTHS, 16, 24, 0, 1))) == sorted(drawn)


@pytest.mark.parametrize("micro", [4, 8, 16])
def test_micro_batches_cut_the_same_steps(micro: int) -> None:
    batches = PlannedBatches(LENGTHS, 16, 5, 0, 4, micro)
    steps = list(plan_steps(LENGTHS, 16, 5, 0, 4))
    cut = list(batches)
    assert len(cut) == len(batches) == 5 * 16 // micro
    flat = [row for part in islice(cut, 16 // micro) for row in part]
    assert flat == steps[0].tolist()


def rows_of(*lengths: int) -> list[dict[str, list[int]]]:
    made, start = [], 10
    for length in lengths:
        ids = list(range(start, start + length))
        made.append({"input_ids": ids, "labels": [IGNORE, *ids[1:]]})
        start += length
    return made


def test_labels_are_what_each_position_predicts_and_padding_predicts_nothing() -> None:
    batch = Collator(pad_id=0)(rows_of(3, 2))
    assert batch["input_ids"].shape == batch["shift_labels"].shape == (2, MULTIPLE)
    assert batch["input_ids"][:, :3].tolist() == [[10, 11, 12], [13, 14, 0]]
    assert batch["shift_labels"][:, :3].tolist() == [[11, 12, IGNORE], [14, IGNORE, IGNORE]]
    assert batch["input_ids"][:, 3:].eq(0).all()
    assert batch["shift_labels"][:, 3:].eq(IGNORE).all()
    assert Collator(pad_id=0)(rows_of(MULTIPLE))["input_ids"].shape == (1, MULTIPLE)
    assert "position_ids" not in batch


def test_packing_keeps_rows_apart_and_positions_restart() -> None:
    batch = Collator(pad_id=0, packed=True)(rows_of(2, 5, 3))
    assert batch["input_ids"].shape == (2, 5)
    assert batch["input_ids"].tolist() == [[12, 13, 14, 15, 16], [17, 18, 19, 10, 11]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 0, 1]]
    # The last token of a row does not predict the first of the next.
    assert batch["shift_labels"].tolist() == [[13, 14, 15, 16, IGNORE], [18, 19, IGNORE, 11, IGNORE]]


def test_packed_and_padded_batches_hold_the_same_targets() -> None:
    rows = rows_of(*LENGTHS[:20].tolist())
    padded, packed = Collator(0)(rows), Collator(0, packed=True)(rows)
    for batch in (padded, packed):
        batch["targets"] = batch["shift_labels"][batch["shift_labels"] != IGNORE].sort().values
    assert torch.equal(padded["targets"], packed["targets"])
    assert packed["input_ids"].numel() < 0.8 * padded["input_ids"].numel()


def test_rows_become_a_dataset_without_a_change() -> None:
    rows = TokenRows.gather([([2, 5, 6], [False, True, True]), ([2, 7], [False, True])])
    assert list(rows.dataset()) == [
        {"input_ids": [2, 5, 6], "labels": [IGNORE, 5, 6]},
        {"input_ids": [2, 7], "labels": [IGNORE, 7]},
    ]
    assert rows.trained_tokens == 3
    assert rows.lengths.tolist() == [3, 2]


def test_a_row_with_nothing_to_learn_is_refused() -> None:
    with pytest.raises(AssertionError, match="train on nothing"):
        TokenRows.gather([([2, 5], [False, False])])
    with pytest.raises(AssertionError, match="train on nothing"):
        # The first token is never predicted, so loss on it alone is none.
        TokenRows.gather([([2, 5], [True, False])])


def test_flash_kernels_get_all_packed_rows_in_one_line() -> None:
    rows = [{"input_ids": list(range(1, n + 1)), "labels": list(range(1, n + 1))} for n in (5, 9, 3)]
    batch = Collator(0, packed=True, one_line=True)(rows)
    assert batch["input_ids"].shape == (1, 17)
    assert batch["position_ids"][0].tolist() == [*range(9), *range(5), *range(3)]
    assert len(Collator(0, packed=True)(rows)["input_ids"]) > 1, "other kernels take several lines"
