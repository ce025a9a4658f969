"""Loss on text that was held out: summed NLL and tokens for every row.

Axes: B rows, T tokens, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from alignment import ranks
from alignment.gemma import core
from alignment.objectives.imitation import chunked_nll
from alignment.training import team, zero
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
    batches = by_length(rows.lengths)
    own = batches[ranks.rank() :: ranks.world()]
    # Divided weights are read by all processes together: those with less to do read the shortest rows for nothing.
    idle = [batches[0]] * (-(-len(batches) // ranks.world()) - len(own))
    with zero.reading(Reader(model, engine.settings.loss_chunk), engine.device) as reader:
        for number, members in enumerate(own + idle):
            batch = collate([labelled(*rows.row(index)) for index in members])
            ids_BT, labels_BT = batch["input_ids"].to(engine.device), batch["shift_labels"].to(engine.device)
            nll_B = reader(ids_BT, labels_BT)
            if number < len(own):
                nll[members], tokens[members] = nll_B, (labels_BT != IGNORE).sum(1).cpu().numpy()
    shares = team.exchange((nll, tokens))
    return HeldOut(sum(share[0] for share in shares), sum(share[1] for share in shares))


class Reader(nn.Module):
    """A model that is asked for the NLL of rows."""

    def __init__(self, model: nn.Module, chunk_tokens: int) -> None:
        super().__init__()
        self.model, self._chunk = model, chunk_tokens

    def forward(self, ids_BT: Tensor, labels_BT: Tensor) -> list[float]:
        """``nll_B``, in nats."""
        hidden_BTD = core.hidden_states(self.model, ids_BT)
        weight_VD, softcap = core.head(self.model)
        return [
            float(chunked_nll(hidden_TD, weight_VD, labels_T, softcap=softcap, chunk_tokens=self._chunk))
            for hidden_TD, labels_T in zip(hidden_BTD, labels_BT, strict=True)
        ]


def labelled(ids: np.ndarray, trained: np.ndarray) -> dict[str, list[int]]:
    """A row as the collator takes it."""
    return {"input_ids": ids.tolist(), "labels": np.where(trained, ids, IGNORE).tolist()}


def by_length(lengths: np.ndarray) -> list[list[int]]:
    """Batches of at most TOKENS_A_BATCH tokens, padding counted, from the shortest rows on."""
    batches: list[list[int]] = [[]]
    for index in np.argsort(lengths, kind="stable").tolist():
        if batches[-1] and (len(batches[-1]) + 1) * int(lengths[index]) > TOKENS_A_BATCH:
            batches.append([])
        batches[-1].append(index)
    return [batch for batch in batches if batch]
