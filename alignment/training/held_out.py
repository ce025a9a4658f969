"""Loss on text that was held out: summed NLL and tokens for every row.

Axes: B rows, T tokens, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from alignment import ranks
from alignment.gemma import core
from alignment.objectives.imitation import chunked_nll
from alignment.training import team
from alignment.training.engine import Engine
from alignment.training.rows import IGNORE, Collator, TokenRows

TOKENS_A_BATCH = 16_384


class HeldOut(NamedTuple):
    """Per row: NLL summed over its trained tokens, in nats, and how many those are."""

    nll: np.ndarray
    tokens: np.ndarray

    @property
    def mean(self) -> float:
        """NLL per token over all rows."""
        return float(self.nll.sum() / self.tokens.sum())


@torch.no_grad()
def held_out(model: nn.Module, rows: TokenRows, *, pad_id: int, engine: Engine) -> HeldOut:
    """NLL of every row in fp32, rows of like length together; each process does its share, and all get all."""
    collate = Collator(pad_id)
    nll, tokens = np.zeros(len(rows)), np.zeros(len(rows), dtype=np.int64)
    weight_VD, softcap = core.head(model)
    was_training = model.training
    model.eval()
    for members in _by_length(rows.lengths)[ranks.rank() :: ranks.world()]:
        batch = collate([_labelled(*rows.row(index)) for index in members])
        ids_BT, labels_BT = batch["input_ids"].to(engine.device), batch["shift_labels"].to(engine.device)
        hidden_BTD = core.hidden_states(model, ids_BT)
        for place, index in enumerate(members):
            labels_T = labels_BT[place]
            tokens[index] = int((labels_T != IGNORE).sum())
            nll[index] = float(
                chunked_nll(
                    hidden_BTD[place], weight_VD, labels_T, softcap=softcap, chunk_tokens=engine.settings.loss_chunk
                )
            )
    model.train(was_training)
    shares = team.exchange((nll, tokens))
    return HeldOut(sum(share[0] for share in shares), sum(share[1] for share in shares))


def _labelled(ids: np.ndarray, trained: np.ndarray) -> dict[str, list[int]]:
    return {"input_ids": ids.tolist(), "labels": np.where(trained, ids, IGNORE).tolist()}


def _by_length(lengths: np.ndarray) -> list[list[int]]:
    """Batches of at most TOKENS_A_BATCH tokens, padding counted, from the shortest rows on."""
    batches: list[list[int]] = [[]]
    for index in np.argsort(lengths, kind="stable").tolist():
        if batches[-1] and (len(batches[-1]) + 1) * int(lengths[index]) > TOKENS_A_BATCH:
            batches.append([])
        batches[-1].append(index)
    return [batch for batch in batches if batch]
