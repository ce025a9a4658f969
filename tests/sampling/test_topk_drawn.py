"""Tokens drawn from all others beside the likeliest: whose they are, how often they come, and that they come again."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from alignment.data.topk import TopK
from alignment.gemma import core
from alignment.gemma.presets import SHAPES, TokenIds
from alignment.sampling import topk
from alignment.sampling.noise import streams, uniforms
from alignment.sampling.topk import top_k

VOCABULARY, K, M = 300, 7, 5
N, Y = False, True
SEQUENCES = [
    ([2, 5, 9, 11, 12, 13, 1], [N, N, N, Y, Y, Y, Y]),
    ([2, 7], [N, Y]),
    # Two turns are trained, and what lies between them is not.
    ([2, 3, 4, 20, 21, 5, 6, 7, 8, 9, 22], [N, N, N, Y, Y, N, N, N, N, N, Y]),
]
NAMES = ["a@0", "a@1", "zwölf"]


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    shape = replace(SHAPES["mini"], width=32, feedforward=64, head_dim=8, query_scale=8, context=96, window=8)
    built = core.build(shape, VOCABULARY, TokenIds(), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0.0, 0.12, generator=generator)
    return built


def drawn(model: torch.nn.Module, rows=SEQUENCES, names=NAMES, draws: int = M, temperature: float = 1.0) -> list[TopK]:
    return top_k(model, rows, K, names=names, draws=draws, temperature=temperature, device="cpu")


@torch.no_grad()
def others(model: torch.nn.Module, row: tuple[list[int], list[bool]], found: TopK, temperature: float) -> np.ndarray:
    """``[T, V]`` shares among the others, in float64, by transformers' own forward."""
    before = [place - 1 for place, trained in enumerate(row[1]) if trained]
    logits = model.double()(torch.tensor([row[0]]), use_cache=False).logits[0, before] / temperature
    model.float()
    return logits.scatter(-1, torch.from_numpy(found.ids_TK).long(), -math.inf).softmax(-1).numpy()


@pytest.mark.parametrize("temperature", [1.0, 2.5, 0.5])
def test_they_stand_where_the_others_cumulative_share_passes_the_tokens_points(
    model: torch.nn.Module, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Batches of few rows and chunks of two positions, so that their seams are crossed.
    monkeypatch.setattr(topk, "TOKENS_A_BATCH", 12)
    monkeypatch.setattr(topk, "LOGITS_A_CHUNK", 2 * VOCABULARY)
    for name, row, found in zip(NAMES, SEQUENCES, drawn(model, temperature=temperature), strict=True):
        shares_TV = others(model, row, found, temperature)
        assert found.drawn_TM is not None
        assert found.drawn_TM.shape == (sum(row[1]), M)
        noise_T = uniforms(streams(topk.SEED, [name], [0]), sum(row[1]))[0]
        for u, shares_V, drawn_M in zip(noise_T, shares_TV, found.drawn_TM, strict=True):
            points_M = (u + np.arange(M)) / M
            sums_V = shares_V.cumsum()
            # fp32 logits move a bound a little.
            assert (sums_V[drawn_M] > points_M - 1e-5).all()
            assert (sums_V[drawn_M] - shares_V[drawn_M] < points_M + 1e-5).all()
            assert (shares_V[drawn_M] > 0).all()
        np.testing.assert_allclose(
            found.entropy_T, -np.where(shares_TV > 0, shares_TV * np.log(shares_TV + 1e-300), 0.0).sum(-1), rtol=2e-5
        )


def test_each_comes_as_often_as_its_share_says(model: torch.nn.Module) -> None:
    """4,000 rows that differ in their names alone: bias of 1 part in 50 would show in the commonest ids."""
    count, row = 4_000, ([2, 5, 9], [N, Y, Y])
    found = drawn(model, [row] * count, [f"row-{number}" for number in range(count)])
    shares_TV = others(model, row, found[0], 1.0)
    ids_RTM = np.stack([one.drawn_TM for one in found])  # type: ignore[arg-type]
    for token, shares_V in enumerate(shares_TV):
        assert not np.isin(ids_RTM[:, token], found[0].ids_TK[token]).any()
        counts_V = np.bincount(ids_RTM[:, token].ravel(), minlength=VOCABULARY)
        expected_V = count * M * shares_V
        # Of a row an id comes ⌊Mp⌋ or ⌈Mp⌉ times: its count has the variance of that coin.
        part_V = M * shares_V % 1
        seen_V = count * part_V * (1 - part_V) > 5
        z_V = (counts_V - expected_V)[seen_V] / np.sqrt(count * part_V * (1 - part_V))[seen_V]
        assert seen_V.sum() > 50
        assert np.abs(z_V).max() < 4.5
        # Neighbours exclude one another, so that the statistic is below that of independent ones.
        assert 0.5 < (z_V**2).mean() < 1.5
    # Tokens of a row have noise of their own.
    first, second = (np.array([uniform(one, token, shares_TV[token]) for one in found]) for token in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.06


def uniform(row: TopK, token: int, shares_V: np.ndarray) -> float:
    """About the number that a token's ids were drawn with, from the first of them."""
    assert row.drawn_TM is not None
    first = row.drawn_TM[token, 0]
    return float(M * (shares_V.cumsum()[first] - shares_V[first] / 2))


def test_they_go_by_the_rows_name_and_by_nothing_else(model: torch.nn.Module) -> None:
    whole = drawn(model)
    back = drawn(model, SEQUENCES[::-1], NAMES[::-1])[::-1]
    for one, other in zip(whole, back, strict=True):
        np.testing.assert_array_equal(one.drawn_TM, other.drawn_TM)  # type: ignore[arg-type]
    renamed = drawn(model, names=["b@0", "b@1", "elf"])
    assert any((one.drawn_TM != other.drawn_TM).any() for one, other in zip(whole, renamed, strict=True))  # type: ignore[union-attr]
    for one, other, plain in zip(whole, renamed, top_k(model, SEQUENCES, K, device="cpu"), strict=True):
        assert plain.drawn_TM is plain.entropy_T is None
        for part in ("tokens_T", "ids_TK", "logprobs_TK", "tail_T"):
            np.testing.assert_array_equal(getattr(one, part), getattr(plain, part))
            np.testing.assert_array_equal(getattr(one, part), getattr(other, part))
        np.testing.assert_array_equal(one.entropy_T, other.entropy_T)  # type: ignore[arg-type]


def test_more_draws_than_ids_leave_none_out(model: torch.nn.Module) -> None:
    """Of 293 others, those of a share above 1 / 20,000 all come."""
    (found,) = drawn(model, [([2, 7], [N, Y])], ["x"], draws=20_000)
    shares_V = others(model, ([2, 7], [N, Y]), found, 1.0)[0]
    assert found.drawn_TM is not None
    counts_V = np.bincount(found.drawn_TM[0], minlength=VOCABULARY)
    # Half a draw for rounding in fp32 of shares that sum over hundreds of ids.
    assert (np.abs(counts_V - 20_000 * shares_V) < 1.5).all()


LEAST, MOST = 0.0, 1 - 2.0**-53


@pytest.mark.parametrize(("noise", "wanted"), [(LEAST, [2, 4]), (MOST, [2, 5])])
def test_the_ends_are_ids_that_have_a_share(noise: float, wanted: list[int]) -> None:
    """Ids 0, 1, 6 and 7 have none; 2 has exactly a half, the first half, and points lie at u / 2 and (u + 1) / 2."""
    shares = torch.tensor([[0.0, 0.0, 0.5, 0.0, 0.25, 0.25, 0.0, 0.0]])
    found, entropy = topk._drawn(shares.log(), torch.tensor([noise], dtype=torch.float64), 2)
    assert found.tolist() == [wanted]
    assert entropy.item() == pytest.approx(1.5 * math.log(2), rel=1e-6)


def test_no_point_lies_behind_the_last_share() -> None:
    """(u + j) / M · whole rounds up to the whole for the greatest u: of shares whose sum is no power of two, often."""
    shares = torch.rand(500, 40, generator=torch.Generator().manual_seed(0))
    shares[:, -5:] = 0.0
    noise = torch.full((500,), MOST, dtype=torch.float64)
    found, _ = topk._drawn((shares / shares.sum(-1, keepdim=True)).log(), noise, 16)
    assert found[:, -1].unique().tolist() == [34]


def test_small_shares_behind_a_large_one_keep_their_own() -> None:
    """One id of nearly all, then 100,000 of 1e-9 each. In fp32 sums near 1 go on by 6e-8: by sixty of them at once."""
    shares = torch.full((1, 100_001), 1e-9)
    shares[:, 0] = 1.0
    steps = torch.arange(50, dtype=torch.float64)
    found, _ = topk._drawn(shares.log().expand(50, -1).clone(), (1.00002 + 1e-8 * steps) / 1.0001, 1)
    assert set(found.squeeze().diff().tolist()) <= {9, 10, 11}


def test_others_without_any_probability_are_no_nan() -> None:
    logits = torch.full((3, 10), -math.inf)
    logits[:, [4, 7]] = torch.tensor([1.0, 2.0])
    ids, _, tail, found, entropy = topk._chunk(logits, torch.full((3,), 0.5, dtype=torch.float64), 2, M)
    assert ids.tolist() == [[7, 4]] * 3
    assert tail.tolist() == [-math.inf] * 3
    assert entropy.tolist() == [0.0] * 3
    assert ((found >= 0) & (found < 10)).all()


def test_names_are_needed(model: torch.nn.Module) -> None:
    with pytest.raises(AssertionError, match="names of rows"):
        top_k(model, SEQUENCES, K, draws=M, device="cpu")
