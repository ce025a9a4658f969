"""The likeliest tokens of a model in memory at every token that carries loss, with their log-probabilities.

And some of the others, drawn from the model's distribution over them, by which a student is told without bias how they
share the rest. The M ids of a token stand where the others' cumulative share passes (u + j) / M, for j < M and one
uniform number u (systematic sampling): an id comes as often as its share says, rounded down or up.

Axes: B rows, T tokens, S trained positions of a batch, C positions of one chunk, K likeliest, M drawn, D width, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alignment.data.topk import Masked, TopK, trained_ids
from alignment.errors import UserError
from alignment.gemma import core
from alignment.objectives.divergences import FLOOR
from alignment.objectives.tokens import capped_logits
from alignment.sampling.noise import streams, uniforms

TOKENS_A_BATCH = 4_096
"""Tokens in one forward pass, padding counted. Four times as many leave a CPU's cache, at half the speed."""
LOGITS_A_CHUNK = 2**22
"""Numbers in the logits that are in memory at once."""
SEED = -1
"""Of the draws; answers are drawn with other ones."""


@torch.inference_mode()
def top_k(
    model: nn.Module,
    sequences: Sequence[Masked],
    k: int,
    *,
    names: Sequence[str] = (),
    draws: int = 0,
    temperature: float = 1.0,
    device: str,
) -> list[TopK]:
    """For each (ids, mask) the ``k`` likeliest ids at every token under the mask, which never holds the first.

    Log-probabilities are in nats, in fp32, over the whole vocabulary, after Gemma 2's final soft cap; ``temperature``
    divides the capped logits. Ids of equal logits stand in any order. ``tail_T`` is the logarithm of the probability of
    all others. Raises :class:`UserError` where the vocabulary has no others.

    With ``draws``, ``drawn_TM`` are so many ids from the distribution over the others, and ``entropy_T`` is its entropy
    in nats. They are functions of that distribution, of the row's name among ``names``, and of the token's number among
    the row's trained ones. Where the others have no probability at all, the ids mean nothing.
    """
    vocabulary = core.head(model)[0].shape[0]
    if not 1 <= k < vocabulary:
        raise UserError(
            f"top_k={k}: 1 to {vocabulary - 1} are possible", cause=f"The vocabulary has {vocabulary} pieces."
        )
    assert temperature > 0, "greedy choices have no distribution"
    assert not draws or len(names) == len(sequences), "draws go by the names of rows"
    assert all(any(mask) and not mask[0] for _, mask in sequences), "a trained token stands behind another one"
    training = model.training
    model.eval()
    noise = _noise(names, sequences) if draws else [np.zeros(sum(mask)) for _, mask in sequences]
    found: dict[int, TopK] = {}
    longest_first = sorted(range(len(sequences)), key=lambda index: -len(sequences[index][0]))
    while longest_first:
        rows = max(1, TOKENS_A_BATCH // len(sequences[longest_first[0]][0]))
        members, longest_first = longest_first[:rows], longest_first[rows:]
        some, noise_S = [sequences[index] for index in members], np.concatenate([noise[index] for index in members])
        batch = _batch(model, some, noise_S, k, draws, temperature, device)
        found |= zip(members, batch, strict=True)
    model.train(training)
    return [found[index] for index in range(len(sequences))]


def _noise(names: Sequence[str], sequences: Sequence[Masked]) -> list[NDArray[np.float64]]:
    """One uniform number of every trained token, row by row."""
    lengths = [sum(mask) for _, mask in sequences]
    noise_BT = uniforms(streams(SEED, names, [0] * len(names)), max(lengths))
    return [row_T[:length] for row_T, length in zip(noise_BT, lengths, strict=True)]


def _batch(
    model: nn.Module,
    sequences: Sequence[Masked],
    noise_S: NDArray[np.float64],
    k: int,
    draws: int,
    temperature: float,
    device: str,
) -> list[TopK]:
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
    noise = torch.from_numpy(noise_S).to(device).split(chunk)
    parts = [
        _chunk(capped_logits(hidden_CD, weight_VD, softcap) / temperature, noise_C, k, draws)
        for hidden_CD, noise_C in zip(hidden_SD.split(chunk), noise, strict=True)
    ]
    columns = [torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True)]
    bounds = np.cumsum([0, *(sum(mask) for _, mask in sequences)])
    return [
        TopK(trained_ids(row), *(column[begin:end] for column in columns))
        for row, begin, end in zip(sequences, bounds[:-1], bounds[1:], strict=True)
    ]


def _chunk(logits_CV: Tensor, noise_C: Tensor, k: int, draws: int) -> tuple[Tensor, ...]:
    """``ids_CK``, ``logprobs_CK`` and ``tail_C``, whose own sum keeps its digits where the others are few; with draws
    ``drawn_CM`` and ``entropy_C`` too."""
    total_C1 = logits_CV.logsumexp(-1, keepdim=True)
    best_CK, ids_CK = logits_CV.topk(k, sorted=True)
    others_CV = logits_CV.scatter(-1, ids_CK, float("-inf"))
    mass_C1 = others_CV.logsumexp(-1, keepdim=True)
    likeliest = ids_CK.int(), best_CK - total_C1, (mass_C1 - total_C1).squeeze(-1)
    if not draws:
        return likeliest
    # Without the bound, others without any probability would be no numbers.
    return *likeliest, *_drawn(others_CV.sub_(mass_C1.clamp(min=torch.finfo(mass_C1.dtype).min)), noise_C, draws)


def _drawn(logprobs_CV: Tensor, noise_C: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """``drawn_CM`` and ``entropy_C`` of distributions, whose ``logprobs_CV`` are overwritten."""
    shares_CV = logprobs_CV.exp()
    entropy_C = -torch.linalg.vecdot(shares_CV, logprobs_CV.clamp_(min=FLOOR))
    sums_CV = shares_CV.cumsum(-1, dtype=torch.float64)
    whole_C1 = sums_CV[:, -1:]
    steps_M = torch.arange(draws, dtype=torch.float64, device=noise_C.device)
    points_CM = (noise_C[:, None] + steps_M) / draws * whole_C1
    # Rounding may bring a point up to the whole: the id behind the last one that has a share.
    points_CM = points_CM.minimum(whole_C1.nextafter(torch.zeros_like(whole_C1)))
    drawn_CM = torch.searchsorted(sums_CV, points_CM, right=True)
    return drawn_CM.clamp_(max=logprobs_CV.shape[-1] - 1).int(), entropy_C
