"""What a step learns from: the order of its rows, the numbers of those that come twice, and what stands where."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from alignment.training.lessons import (
    NumberedBatches,
    Row,
    answered,
    by_phases,
    by_rows,
    collated,
    phase_rows,
)
from alignment.training.rows import IGNORE, Collator, plan_steps


def row(name: str, prompt: int, answer: int, first: int) -> Row:
    """Ids count up from ``first``; what is told of each trained one is its id times ten."""
    ids = np.arange(first, first + prompt + answer, dtype=np.int32)
    trained = np.arange(prompt + answer) >= prompt
    return Row(name, ids, trained, {"tens": ids[trained] * 10.0, "pairs": np.stack([ids[trained]] * 2, 1)})


@pytest.mark.parametrize("collate", [Collator(0), Collator(0, packed=True), Collator(0, packed=True, one_line=True)])
def test_what_is_told_of_a_token_stands_with_it_however_rows_are_laid_out(collate: Collator) -> None:
    rows = [row("a", 3, 4, 100), row("b", 1, 9, 200), row("c", 5, 2, 300), row("d", 2, 3, 400)]
    batch, order_S = collated(rows, collate)
    labels_S = batch["shift_labels"][batch["shift_labels"] != IGNORE]
    assert len(labels_S) == 18
    assert batch["tens"].tolist() == (labels_S * 10.0).tolist()
    assert batch["pairs"].tolist() == [[label, label] for label in labels_S.tolist()]
    assert np.concatenate([one.targets for one in rows])[order_S].tolist() == labels_S.tolist()


def test_rows_of_several_trained_turns_keep_their_tokens_in_order() -> None:
    trained = np.array([False, True, True, False, False, True])
    one = Row("a", np.arange(10, 16, dtype=np.int32), trained, {"tens": np.array([110.0, 120.0, 150.0])})
    batch, _ = collated([one], Collator(0))
    assert batch["tens"].tolist() == [110.0, 120.0, 150.0]
    assert one.targets.tolist() == [11, 12, 15]


def test_an_answer_carries_loss_and_its_prompt_does_not() -> None:
    one = answered("a", [2, 5, 6], [7, 1])
    assert (one.ids.tolist(), one.targets.tolist(), one.drawn) == ([2, 5, 6, 7, 1], [7, 1], True)


def test_a_row_that_comes_to_a_step_twice_has_another_number() -> None:
    lengths = np.array([5, 5, 5])
    plan = by_rows(lengths, batch=4, steps=6, seed=1, window=3)
    batches = NumberedBatches(plan, count=3, batch=4, steps=6, micro=2)
    numbers = list(batches)
    assert len(numbers) == len(batches) == 12
    steps = [numbers[start] + numbers[start + 1] for start in range(0, 12, 2)]
    for step, planned in zip(steps, plan_steps(lengths, 4, 6, 1, 3), strict=True):
        assert len(set(step)) == 4
        assert [number % 3 for number in step] == planned.tolist()
        # Three rows for four places: one of them comes twice, and once under a number of its own.
        assert sum(number >= 3 for number in step) >= 1
        assert max(step) < 3 * 4


def test_a_phase_is_gone_through_as_often_as_is_said() -> None:
    steps = list(by_phases(rollouts=12, batch=4, epochs=3, steps=20, seed=5)())
    assert len(steps) == 20
    for phase in range(2):
        inside = steps[9 * phase : 9 * phase + 9]
        for epoch in range(3):
            assert sorted(np.concatenate(inside[3 * epoch : 3 * epoch + 3]).tolist()) == list(range(12))
        assert inside[0].tolist() != inside[3].tolist(), "each time in another order"
    again = list(islice(by_phases(rollouts=12, batch=4, epochs=3, steps=99, seed=5)(), 20))
    assert [one.tolist() for one in again] == [one.tolist() for one in steps], "however long the run is"


def test_phases_take_every_row_before_one_comes_again() -> None:
    taken = [place for phase in range(5) for place in phase_rows(phase, count=10, rollouts=4, seed=2)]
    assert Counter(taken) == Counter(dict.fromkeys(range(10), 2))
    assert sorted(taken[:10]) == sorted(taken[10:]) == list(range(10))
    assert taken[:10] != taken[10:]
