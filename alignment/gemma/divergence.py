"""How far a policy has moved from a reference, on answers that the policy drew itself.

Axes: B rows, T tokens, S answer positions of a batch, C positions of one chunk, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from alignment.gemma import core
from alignment.objectives.tokens import exact_kl

TOKENS_A_BATCH = 16_384
LOGITS_A_CHUNK = 2**22
"""Numbers in the logits of one model that are in memory at once."""


@torch.no_grad()
def sequence_kl(
    policy: nn.Module,
    reference: nn.Module,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    device: str,
    temperature: float = 1.0,
) -> np.ndarray:
    """KL(policy ‖ reference) of every answer, in nats: the KL over the vocabulary at ``temperature``, at which answers
    were drawn, summed over their positions.

    This is the Rao–Blackwellised form of Σ log π − log π_ref on the policy's own samples: the same
    expectation, never negative, and less noisy. Returns one number a row.
    """
    totals = np.zeros(len(prompts))
    longest_first = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]) - len(answers[index]))
    while longest_first:
        width = len(prompts[longest_first[0]]) + len(answers[longest_first[0]])
        rows = max(1, TOKENS_A_BATCH // max(width, 1))
        members, longest_first = longest_first[:rows], longest_first[rows:]
        totals[members] = _batch_kl(
            policy, reference, [prompts[i] for i in members], [answers[i] for i in members], width, device, temperature
        )
    return totals


def _batch_kl(
    policy: nn.Module,
    reference: nn.Module,
    prompts: list[Sequence[int]],
    answers: list[Sequence[int]],
    width: int,
    device: str,
    temperature: float,
) -> np.ndarray:
    """One number a row for rows that are padded on the right to ``width``, which causal attention never sees."""
    ids_BT = torch.zeros((len(prompts), width), dtype=torch.long)
    asked_BT = torch.zeros((len(prompts), width), dtype=torch.bool)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        length = len(prompt) + len(answer)
        ids_BT[row, :length] = torch.tensor([*prompt, *answer])
        # A position predicts the token behind it.
        asked_BT[row, len(prompt) - 1 : length - 1] = True
    ids_BT, asked_BT = ids_BT.to(device), asked_BT.to(device)
    hidden_SD, reference_SD = (core.hidden_states(model, ids_BT)[asked_BT] for model in (policy, reference))
    chunk = max(1, LOGITS_A_CHUNK // core.head(policy)[0].shape[0])
    kl_S = torch.cat(
        [
            exact_kl(_logits(policy, hidden_CD) / temperature, _logits(reference, reference_CD) / temperature)
            for hidden_CD, reference_CD in zip(hidden_SD.split(chunk), reference_SD.split(chunk), strict=True)
        ]
    )
    rows_S = asked_BT.nonzero()[:, 0].cpu().numpy()
    return np.bincount(rows_S, weights=kl_S.double().cpu().numpy(), minlength=len(prompts))


def _logits(model: nn.Module, hidden_CD: Tensor) -> Tensor:
    """``logits_CV`` in fp32, the soft cap applied."""
    weight_VD, softcap = core.head(model)
    logits_CV = (hidden_CD @ weight_VD.T).float()
    return logits_CV if softcap is None else softcap * torch.tanh(logits_CV / softcap)
