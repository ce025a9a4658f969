"""From logits and one uniform number to a token: temperature, nucleus, inverse distribution function.

Axes: B rows, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from alignment.errors import UserError
from alignment.objectives.minillm import mixed_logprobs


class Choice(NamedTuple):
    """``ids_B`` and their ``logprobs_B`` in nats."""

    ids_B: Tensor
    logprobs_B: Tensor


def choose(logits_BV: Tensor, uniform_B: Tensor, *, temperature: float, top_p: float) -> Choice:
    """One token for each row: the first whose cumulated probability exceeds the row's number in [0, 1).

    Log-probabilities are those of the whole vocabulary at ``temperature``, before the nucleus is cut out, which is
    what a policy ratio compares. At temperature 0 the likeliest token is taken and its log-probability is that at 1.
    """
    if temperature == 0:
        ids_B = logits_BV.argmax(-1)
        return Choice(ids_B, _pick(logits_BV.log_softmax(-1), ids_B))
    logprobs_BV = (logits_BV / temperature if temperature != 1 else logits_BV).log_softmax(-1)
    weights_BV = logprobs_BV.exp()
    if top_p < 1:
        weights_BV = nucleus(weights_BV, top_p)
    # In float64, so that the sum over a large vocabulary does not swallow its small terms.
    cumulated_BV = weights_BV.cumsum(-1, dtype=torch.float64)
    if not cumulated_BV[:, -1].isfinite().all():
        raise UserError(
            "the model's logits are not numbers",
            cause="Its weights hold NaN or infinity, or its activations overflow.",
            remedy="Look at the run that trained it: `stage=show` names it, metrics.jsonl has its loss.",
        )
    threshold_B1 = uniform_B[:, None] * cumulated_BV[:, -1:]
    ids_B = torch.searchsorted(cumulated_BV, threshold_B1, right=True).squeeze(-1)
    return Choice(ids_B, _pick(logprobs_BV, ids_B))


def together(logits_BV: Tensor, others_BU: Tensor, share: float, temperature: float) -> Tensor:
    """``logprobs_BV`` of share · softmax(others / temperature) + (1 − share) · softmax(logits / temperature), in nats.

    Of vocabularies padded to different sizes the others' probability is taken over the ids that both have.
    """
    own_BV = (logits_BV / temperature).log_softmax(-1)
    theirs_BV = torch.full_like(own_BV, float("-inf"))
    common = min(logits_BV.shape[-1], others_BU.shape[-1])
    theirs_BV[:, :common] = (others_BU[:, :common] / temperature).log_softmax(-1)
    return mixed_logprobs(own_BV, theirs_BV, teacher_share=share)


def nucleus(probabilities_BV: Tensor, top_p: float) -> Tensor:
    """Zero outside the smallest set of likeliest tokens whose probability reaches ``top_p``; not renormalised."""
    ordered_BV, order_BV = probabilities_BV.sort(dim=-1, descending=True, stable=True)
    before_BV = ordered_BV.cumsum(-1, dtype=torch.float64) - ordered_BV
    kept_BV = torch.where(before_BV < top_p, ordered_BV, torch.zeros_like(ordered_BV))
    return torch.zeros_like(probabilities_BV).scatter_(-1, order_BV, kept_BV)


def _pick(values_BV: Tensor, ids_B: Tensor) -> Tensor:
    return values_BV.gather(-1, ids_B[:, None]).squeeze(-1)
