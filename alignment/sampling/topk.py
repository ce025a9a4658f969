"""The likeliest tokens of a model in memory at every token that carries loss, with their log-probabilities.

Axes: B rows, T tokens, S trained positions of a batch, C positions of one chunk, K likeliest, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from alignment.data.topk import Masked, TopK, trained_ids
from alignment.errors import UserError
from alignment.gemma import core
from alignment.objectives.tokens import capped_logits

TOKENS_A_BATCH = 4_096
"""Tokens in one forward pass, padding counted. Four times as many leave a CPU's cache, at half the speed."""
LOGITS_A_CHUNK = 2**22
"""Numbers in the logits that are in memory at once."""


@torch.inference_mode()
def top_k(
    model: nn.Module, sequences: Sequence[Masked], k: int, *, temperature: float = 1.0, device: str
) -> list[TopK]:
    """For each (ids, mask) the ``k`` likeliest ids at every token under the mask, which never holds the first.

    Log-probabilities are in nats, in fp32, over the whole vocabulary, after Gemma 2's final soft cap; ``temperature``
    divides the capped logits. Ids of equal logits stand in any order. ``tail_T`` is the logarithm of the probability of
    all others. Raises :class:`UserError` where the vocabulary has no others.
    """
    vocabulary = core.head(model)[0].shape[0]
    if not 1 <= k < vocabulary:
        raise UserError(
            f"top_k={k}: 1 to {vocabulary - 1} are possible", cause=f"The vocabulary has {vocabulary} pieces."
        )
    assert temperature > 0, "greedy choices have no distribution"
    assert all(any(mask) and not mask[0] for _, mask in sequences), "a trained token stands behind another one"
    training = model.training
    model.eval()
    found: dict[int, TopK] = {}
    longest_first = sorted(range(len(sequences)), key=lambda index: -len(sequences[index][0]))
    while longest_first:
        rows = max(1, TOKENS_A_BATCH // len(sequences[longest_first[0]][0]))
        members, longest_first = longest_first[:rows], longest_first[rows:]
        batch = _batch(model, [sequences[index] for index in members], k, temperature, device)
        found |= zip(members, batch, strict=True)
    model.train(training)
    return [found[index] for index in range(len(sequences))]


def _batch(model: nn.Module, sequences: Sequence[Masked], k: int, temperature: float, device: str) -> list[TopK]:
    """Rows are padded on the right, which causal attention never sees."""
    width = max(len(ids) for ids, _ in sequences)
    ids_BT = torch.zeros((len(sequences), width), dtype=torch.long)
    asked_BT = torch.zeros((len(sequences), width), dtype=torch.bool)
    for row, (ids, mask) in enumerate(sequences):
        ids_BT[row, : len(ids)] = torch.as_tensor(ids)
        # A position predicts the token behind it.
        asked_BT[row, : len(ids) - 1] = torch.as_tensor(mask, dtype=torch.bool)[1:]
    hidden_SD = core.hidden_states(model, ids_BT.to(device))[asked_BT.to(device)]
    weight_VD, softcap = core.head(model)
    chunk = max(1, LOGITS_A_CHUNK // weight_VD.shape[0])
    parts = [
        _chunk(capped_logits(hidden_CD, weight_VD, softcap) / temperature, k) for hidden_CD in hidden_SD.split(chunk)
    ]
    ids_SK, logprobs_SK, tail_S = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
    bounds = np.cumsum([0, *(sum(mask) for _, mask in sequences)])
    return [
        TopK(trained_ids(row), ids_SK[begin:end], logprobs_SK[begin:end], tail_S[begin:end])
        for row, begin, end in zip(sequences, bounds[:-1], bounds[1:], strict=True)
    ]


def _chunk(logits_CV: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """``ids_CK``, ``logprobs_CK`` and ``tail_C``, whose own sum keeps its digits where the others are few."""
    total_C1 = logits_CV.logsumexp(-1, keepdim=True)
    best_CK, ids_CK = logits_CV.topk(k, sorted=True)
    others_CV = logits_CV.scatter(-1, ids_CK, float("-inf"))
    return ids_CK.int(), best_CK - total_C1, others_CV.logsumexp(-1) - total_C1.squeeze(-1)
