"""Scores of comparisons that were held out: one number for each side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from alignment import ranks
from alignment.gemma import branches
from alignment.gemma.branches import Lines
from alignment.training import team, zero
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
    share = branches.shares_prompts(model)
    found = np.zeros((len(rows), 2))
    own = _by_length(rows, range(ranks.rank(), len(rows), ranks.world()))
    # Divided weights are read by all processes together: those with less to do read a pair for nothing.
    idle = [[0]] * (max(team.exchange(len(own))) - len(own))
    with zero.reading(Reader(model), device) as reader:
        for number, places in enumerate(own + idle):
            lines = branches.lay_out([rows[place].tree for place in places], pad_id=pad_id, share=share)
            scores_N = reader({name: tensor.to(device) for name, tensor in lines.items()})
            if number < len(own):
                found[places] = scores_N.view(-1, 2).cpu().numpy()
    found = sum(team.exchange(found))
    return SideScores(found[:, 0], found[:, 1])


class Reader(nn.Module):
    """A reward model that is asked for scores."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, lines: Lines) -> Tensor:
        """``scores_N``."""
        return branches.scores(self.model, lines)


def _by_length(rows: Sequence[PairRow], places: Sequence[int]) -> list[list[int]]:
    """Batches of at most TOKENS_A_BATCH tokens, padding counted, from the longest pairs on."""
    waiting = sorted(places, key=lambda place: rows[place].tree.tokens)
    batches: list[list[int]] = []
    while waiting:
        many = max(1, TOKENS_A_BATCH // rows[waiting[-1]].tree.tokens)
        batches.append(waiting[-many:])
        waiting = waiting[:-many]
    return batches
