"""Scores of comparisons that were held out: one number for each side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from alignment.gemma import branches
from alignment.training import team
from alignment.training.pair_rows import PairRow

TOKENS_A_BATCH = 8_192


class SideScores(NamedTuple):
    """Raw scores of the chosen and the rejected answers, in the pairs' order."""

    chosen: np.ndarray
    rejected: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """1 where the chosen answer scores higher, 0 where the rejected one does, ½ for equal scores."""
        return (self.chosen > self.rejected) + 0.5 * (self.chosen == self.rejected)


@torch.no_grad()
def side_scores(model: nn.Module, rows: Sequence[PairRow], *, pad_id: int, device: str) -> SideScores:
    """Scores in fp32, pairs of like length together; each process does its share, and all get all."""
    found = team.divided(rows, lambda some: _scores(model, some, pad_id, device))
    return SideScores(found[:, 0], found[:, 1])


def _scores(model: nn.Module, rows: Sequence[PairRow], pad_id: int, device: str) -> np.ndarray:
    found = np.zeros((len(rows), 2))
    share, was_training = branches.shares_prompts(model), model.training
    model.eval()
    by_length = sorted(range(len(rows)), key=lambda place: rows[place].tree.tokens)
    while by_length:
        many = max(1, TOKENS_A_BATCH // rows[by_length[-1]].tree.tokens)
        some, by_length = by_length[-many:], by_length[:-many]
        lines = branches.lay_out([rows[place].tree for place in some], pad_id=pad_id, share=share)
        scores = branches.scores(model, {name: tensor.to(device) for name, tensor in lines.items()})
        found[some] = scores.view(-1, 2).cpu().numpy()
    model.train(was_training)
    return found
