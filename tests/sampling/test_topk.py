"""A teacher's likeliest tokens, of every token that carries loss: against a full softmax in float64."""

from __future__ import annotations

from dataclasses import replace
from itertools import compress

import numpy as np
import pytest
import torch

from alignment.errors import UserError
from alignment.gemma import core
from alignment.gemma.presets import SHAPES, TokenIds
from alignment.sampling import topk
from alignment.sampling.topk import top_k

VOCABULARY = 300
FAMILIES = {
    "gemma1": replace(SHAPES["mini_gemma1"], width=32, feedforward=64, head_dim=8, query_scale=8, context=96),
    "gemma2": replace(
        SHAPES["mini"], width=32, feedforward=64, head_dim=8, query_scale=8, context=96, window=8, final_cap=3.0
    ),
}
N, Y = False, True
SEQUENCES = [
    ([2, 5, 9, 11, 12, 13, 1], [N, N, N, Y, Y, Y, Y]),
    ([2, 7], [N, Y]),
    # Two turns are trained, and what lies between them is not.
    ([2, 3, 4, 20, 21, 5, 6, 7, 8, 9, 22], [N, N, N, Y, Y, N, N, N, N, N, Y]),
    ([2, 4, 5, 1], [N, N, Y, Y]),
]


def teacher_model(family: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    built = core.build(FAMILIES[family], VOCABULARY, TokenIds(), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0.0, 0.25, generator=generator)
    return built.to(dtype)


@torch.no_grad()
def full(model: torch.nn.Module, ids: list[int], mask: list[bool], temperature: float = 1.0) -> np.ndarray:
    """``[T, V]`` log-probabilities of transformers' own forward, in float64, of the tokens under the mask."""
    before = [place - 1 for place, trained in enumerate(mask) if trained]
    logits = model(torch.tensor([ids]), use_cache=False).logits[0, before]
    return (logits.double() / temperature).log_softmax(-1).numpy()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("k", "temperature"), [(1, 1.0), (17, 1.0), (17, 2.5), (17, 0.5), (VOCABULARY - 1, 1.0)])
def test_they_are_those_of_a_full_softmax_in_float64(
    family: str, k: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Batches of few rows and chunks of two positions, so that their seams are crossed.
    monkeypatch.setattr(topk, "TOKENS_A_BATCH", 20)
    monkeypatch.setattr(topk, "LOGITS_A_CHUNK", 2 * VOCABULARY)
    exact = teacher_model(family, torch.float64)
    found = top_k(teacher_model(family), SEQUENCES, k, temperature=temperature, device="cpu")
    for (ids, mask), row in zip(SEQUENCES, found, strict=True):
        logprobs = full(exact, ids, mask, temperature)
        assert row.tokens_T.tolist() == list(compress(ids, mask))
        assert row.ids_TK.shape == row.logprobs_TK.shape == (sum(mask), k)
        np.testing.assert_allclose(row.logprobs_TK, np.sort(logprobs)[:, ::-1][:, :k], atol=2e-5)
        np.testing.assert_allclose(row.logprobs_TK, np.take_along_axis(logprobs, row.ids_TK, -1), atol=2e-5)
        others = logprobs.copy()
        np.put_along_axis(others, row.ids_TK.astype(np.int64), -np.inf, -1)
        np.testing.assert_allclose(row.tail_T, np.log(np.exp(others).sum(-1)), atol=2e-4)


def test_the_soft_cap_is_applied() -> None:
    """With a final cap of 3 no two logits are further apart than 6."""
    for row in top_k(teacher_model("gemma2"), SEQUENCES, VOCABULARY - 1, device="cpu"):
        assert (row.logprobs_TK[:, 0] - row.logprobs_TK[:, -1]).max() <= 6
    plain = top_k(teacher_model("gemma1"), SEQUENCES, VOCABULARY - 1, device="cpu")
    assert max((row.logprobs_TK[:, 0] - row.logprobs_TK[:, -1]).max() for row in plain) > 6


def test_no_more_logits_are_in_memory_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    whole = topk.capped_logits

    def watched(hidden, weight, softcap):
        logits = whole(hidden, weight, softcap)
        seen.append(tuple(logits.shape))
        return logits

    monkeypatch.setattr(topk, "capped_logits", watched)
    monkeypatch.setattr(topk, "LOGITS_A_CHUNK", 3 * VOCABULARY)
    top_k(teacher_model("gemma2"), SEQUENCES, 4, device="cpu")
    # 4 + 1 + 3 + 2 trained tokens, three at a time; no other is among them.
    assert seen == [(3, VOCABULARY)] * 3 + [(1, VOCABULARY)]


@pytest.mark.parametrize("k", [0, VOCABULARY])
def test_a_k_that_leaves_no_tail_is_refused(k: int) -> None:
    with pytest.raises(UserError, match=rf"top_k={k}: 1 to {VOCABULARY - 1}"):
        top_k(teacher_model("gemma1"), SEQUENCES, k, device="cpu")
