"""Comparisons as rows of ids: nothing is lost on the way into a table, lines hold the answers in pairs, and held-out
pairs are scored in their order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gemma import tiny

from alignment.gemma import branches, heads
from alignment.objectives.preference import UNKNOWN
from alignment.training import held_out_pairs
from alignment.training.held_out_pairs import SideScores, side_scores
from alignment.training.pair_rows import PairCollator, PairRow, PairRows

ROWS = [
    PairRow([2, 10, 11, 12], [20, 1], [30, 31, 1], 2 / 3, 1, 0),
    PairRow([2, 13], [21, 22, 23, 1], [32, 1], 0.0),
    PairRow([2, 14, 15], [24, 1], [33, 34, 1], 3.0, 1, UNKNOWN),
]


def test_rows_become_a_table_without_a_change() -> None:
    rows = PairRows.gather(iter(ROWS))
    assert len(rows) == 3
    # A line holds the prompt once: 4 + 2 + 3, 2 + 4 + 2, 3 + 2 + 3.
    assert rows.lengths.tolist() == [9, 8, 8]
    assert rows.lengths.tolist() == [row.tree.tokens for row in ROWS]
    found = list(rows.dataset)
    assert [row.pop("margin") for row in found] == pytest.approx([2 / 3, 0.0, 3.0])
    assert found == [
        {"prompt_ids": [2, 10, 11, 12], "chosen_ids": [20, 1], "rejected_ids": [30, 31, 1],
         "chosen_safe": 1, "rejected_safe": 0},
        {"prompt_ids": [2, 13], "chosen_ids": [21, 22, 23, 1], "rejected_ids": [32, 1],
         "chosen_safe": -1, "rejected_safe": -1},
        {"prompt_ids": [2, 14, 15], "chosen_ids": [24, 1], "rejected_ids": [33, 34, 1],
         "chosen_safe": 1, "rejected_safe": -1},
    ]  # fmt: skip


def test_no_pairs_are_an_empty_table() -> None:
    rows = PairRows.gather([])
    assert len(rows) == 0
    assert rows.dataset.num_rows == 0


@pytest.mark.parametrize("share", [True, False])
def test_answers_come_out_chosen_first_with_margins_and_labels_in_order(share: bool) -> None:
    lines = PairCollator(pad_id=0, share=share)(list(PairRows.gather(ROWS).dataset))
    width = lines["input_ids"].shape[1]
    ends = (lines["line"] * width + lines["column"]).tolist()
    flat = lines["input_ids"].flatten()
    # The token before the last tells whose answer it is; 20 to 24 were chosen, 30 to 34 rejected.
    assert [flat[end - 1].item() for end in ends] == [20, 31, 23, 32, 24, 34]
    assert [flat[end].item() for end in ends] == [1] * 6
    assert torch.allclose(lines["margin"], torch.tensor([2 / 3, 0.0, 3.0]))
    assert lines["margin"].dtype == torch.float32
    assert lines["safe"].tolist() == [1, 0, -1, -1, 1, -1]
    assert ("tree" in lines) == share
    # The first prompt is there once where it is shared, and once for each answer where it is not.
    assert (flat == 10).sum() == (1 if share else 2)
    trees = [row.tree for row in ROWS]
    assert lines["input_ids"].ne(0).sum() == round((1 - branches.padding(lines, trees)) * flat.numel())


@torch.no_grad()
def test_held_out_scores_are_the_vanilla_logits_in_the_pairs_order(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rng = heads.with_head(tiny.model(tiny.GEMMA2), 0), np.random.default_rng(0)

    def ids(most: int) -> list[int]:
        return rng.integers(3, tiny.VOCABULARY, rng.integers(1, most)).tolist()

    rows = [PairRow(ids(20), ids(9), ids(9), 0.0) for _ in range(25)]
    wanted = [
        [model(input_ids=torch.tensor([[*row.prompt, *answer]])).logits.item() for answer in (row.chosen, row.rejected)]
        for row in rows
    ]
    for tokens in (8_192, 100, 1):
        monkeypatch.setattr(held_out_pairs, "TOKENS_A_BATCH", tokens)
        found = side_scores(model, rows, pad_id=0, device="cpu")
        assert np.abs(np.stack(found, axis=1) - np.array(wanted)).max() < 1e-5
    assert found.right.tolist() == [float(chosen > rejected) for chosen, rejected in wanted]
    assert 5 < found.right.sum() < 20
    assert len(side_scores(model, [], pad_id=0, device="cpu").right) == 0


def test_equal_scores_are_half_right() -> None:
    assert SideScores(np.array([1.0, 2.0, 0.0]), np.array([1.0, 0.0, 3.0])).right.tolist() == [0.5, 1.0, 0.0]
