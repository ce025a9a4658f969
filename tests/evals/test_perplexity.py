"""Losses by arm: sums over tokens and not means of rows, Student's interval over seeds, shares of a gain, KL."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from alignment.evals import perplexity
from alignment.evals.perplexity import Asked, HeldOutRows, Losses, Measured, Share
from alignment.gemma import core
from alignment.gemma.presets import Shape, TokenIds
from alignment.training.engine import Engine, EngineSettings
from alignment.training.rows import TokenRows

CONF = Path(__file__).parents[2] / "conf"
ROWS = HeldOutRows(["a@0", "a@7", "b@0"], ["a", "a", "b"], np.array([2, 8, 10]))
ASKED = Asked([("small", "base")], [Share("small", "large", "base")], 0.95, 0)
Table = Mapping[str, Sequence[Sequence[float]]]


def results(losses: Table, *, asked: Asked = ASKED, kl: Table | None = None, teacher: Any = None) -> dict[str, Any]:
    """``losses[arm]`` holds nats by row of every seed; sizes are 1 million, 2 million … in their order."""
    measured = [
        Measured(
            f"{arm}#{seed}",
            arm,
            size * 10**6,
            {"text": Losses(np.array(nll_R), None if kl is None else np.array(kl[arm][seed]))},
        )
        for size, (arm, seeds) in enumerate(losses.items(), 1)
        for seed, nll_R in enumerate(seeds)
    ]
    return perplexity.results(measured, teacher, {"text": ROWS}, asked)


# Nats a token of three seeds: 3.0, 3.1, 3.5 from scratch; 2.0, 2.3, 2.2; 1.0, 1.1, 1.5.
THREE = {
    "base": [[10, 20, 30], [6, 20, 36], [20, 20, 30]],
    "small": [[10, 20, 10], [16, 20, 10], [4, 20, 20]],
    "large": [[5, 5, 10], [2, 10, 10], [10, 10, 10]],
}


def test_a_loss_is_nats_over_tokens_and_not_a_mean_of_rows() -> None:
    arm = results(THREE)["arms"]["text"]["base"]
    assert arm["loss"]["seeds"] == pytest.approx([60 / 20, 62 / 20, 70 / 20])
    assert arm["loss"]["estimate"] == pytest.approx(3.2)
    assert np.mean([10 / 2, 20 / 8, 30 / 10]) != pytest.approx(3.0)


def test_perplexity_and_its_bounds_are_the_losses_exponential() -> None:
    loss, found = (results(THREE)["arms"]["text"]["small"][name] for name in ("loss", "perplexity"))
    # Mean 13/6, standard deviation √(0.07/3) = 0.15275; t(0.95, 2) = 4.3027; half = 4.3027 · 0.15275 / √3.
    half = 4.30265 * math.sqrt(0.07 / 3) / math.sqrt(3)
    assert (loss["low"], loss["high"]) == pytest.approx((6.5 / 3 - half, 6.5 / 3 + half), rel=1e-4)
    for key in ("estimate", "low", "high"):
        assert found[key] == pytest.approx(math.exp(loss[key]))
    assert found["seeds"] == pytest.approx([math.exp(2.0), math.exp(2.3), math.exp(2.2)])


def test_a_difference_is_taken_seed_by_seed() -> None:
    difference = results(THREE)["differences"]["text"]["small - base"]
    # 2.0 − 3.0, 2.3 − 3.1, 2.2 − 3.5: their standard deviation is 0.2517, that of unpaired means would be another.
    assert difference["seeds"] == pytest.approx([-1.0, -0.8, -1.3])
    half = 4.30265 * float(np.std([-1.0, -0.8, -1.3], ddof=1)) / math.sqrt(3)
    assert (difference["low"], difference["high"]) == pytest.approx((-3.1 / 3 - half, -3.1 / 3 + half), rel=1e-4)
    assert difference["verdict"] == "below"


def test_a_share_is_of_the_gain_over_the_base() -> None:
    (share,) = results(THREE)["shares"]["text"]
    # (3.0 − 2.0) / (3.0 − 1.0), (3.1 − 2.3) / (3.1 − 1.1), (3.5 − 2.2) / (3.5 − 1.5)
    assert share["seeds"] == pytest.approx([0.5, 0.4, 0.65])
    assert share["estimate"] == pytest.approx(1.55 / 3)
    assert (share["part"], share["whole"], share["base"]) == ("small", "large", "base")


def test_a_share_of_no_gain_is_undefined() -> None:
    same = {"base": [[1, 2, 3]] * 3, "small": [[1, 1, 1]] * 3, "large": [[1, 2, 3]] * 3}
    (share,) = results(same)["shares"]["text"]
    assert (share["estimate"], share["low"], share["seeds"]) == (None, None, None)
    assert not [name for name in perplexity.metrics(results(same)) if name.endswith("share")]


def test_one_seed_has_the_interval_of_chance_among_documents() -> None:
    one = {arm: seeds[:1] for arm, seeds in THREE.items()}
    found = results(one)
    loss = found["arms"]["text"]["base"]["loss"]
    # Two documents, 30 nats of 10 tokens each: every resample has exactly 3 nats a token. Rows alone would scatter.
    assert (loss["low"], loss["high"]) == pytest.approx((3.0, 3.0))
    difference = found["differences"]["text"]["small - base"]
    # Document a: 30 − 30 of 10 tokens, b: 10 − 30 of 10. Both twice a, a and b, or twice b: 0, −1, −2.
    assert (difference["low"], difference["high"]) == pytest.approx((-2.0, 0.0))
    assert difference["seeds"] == pytest.approx([-1.0])


def test_kl_stands_beside_the_loss_and_the_teacher_apart() -> None:
    teacher = Measured("teacher", "teacher", 9 * 10**6, {"text": Losses(np.array([2.0, 8.0, 10.0]), np.zeros(3))})
    kl = {arm: [[1.0, 4.0, 5.0], [1.0, 4.0, 7.0], [1.0, 4.0, 9.0]] for arm in THREE}
    found = results(THREE, kl=kl, teacher=teacher)
    assert found["arms"]["text"]["base"]["kl"]["seeds"] == pytest.approx([0.5, 0.6, 0.7])
    assert found["teacher"]["measures"]["text"]["perplexity"]["estimate"] == pytest.approx(math.e)
    assert found["models"]["base#0"]["KL from the teacher on text"]["estimate"] == pytest.approx(0.5)
    assert set(found["models"]["base#0"]["perplexity on text"]) == {"estimate", "low", "high"}
    assert perplexity.metrics(found)["teacher/text/perplexity"] == pytest.approx(math.e)
    assert results(THREE)["teacher"] is None
    assert "kl" not in results(THREE)["arms"]["text"]["base"]


# ── reading ──────────────────────────────────────────────────────────────────────────────────────

SHAPE = Shape(
    "gemma2", 24, 2, 40, 4, 2, head_dim=8, query_scale=5, context=64, window=5, attention_cap=3.0, final_cap=2.0
)
VOCABULARY = 48


def model(seed: int, vocabulary: int = VOCABULARY) -> core.CausalLM:
    built = core.build(SHAPE, vocabulary, TokenIds(), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in built.parameters():
            weight.normal_(0.0, 0.3, generator=generator)
    return built


def token_rows() -> TokenRows:
    rng = np.random.default_rng(0)
    lengths = [9, 17, 5, 12]
    # Loss on two stretches of a row, as in a conversation of several answers.
    masks = [np.isin(np.arange(length) % 5, [2, 3]) for length in lengths]
    return TokenRows.gather(
        (rng.integers(3, VOCABULARY, length), mask) for length, mask in zip(lengths, masks, strict=True)
    )


def engine() -> Engine:
    values = yaml.safe_load((CONF / "engine" / "single.yaml").read_text())
    settings = EngineSettings.parse(values | {"device": "cpu", "precision": "fp32", "loss_chunk": 16})
    return Engine("cpu", False, False, 1, settings)


def logprobs(found: core.CausalLM, ids_T: np.ndarray, common: int) -> np.ndarray:
    """``[T, V]`` in float64 by transformers' own forward pass, of the whole vocabulary, cut to ``common``."""
    with torch.no_grad():
        logits_TV = found.double()(torch.from_numpy(ids_T.astype(np.int64))[None]).logits[0].numpy()
    logprobs_TV = logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True))
    return logprobs_TV[:, :common]


@pytest.mark.parametrize("kept", [None, 0])
@pytest.mark.parametrize(("student", "teacher"), [(VOCABULARY, VOCABULARY), (VOCABULARY, 64), (64, VOCABULARY)])
def test_losses_and_divergences_of_rows_are_those_of_a_plain_float64_reference(
    student: int, teacher: int, kept: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, beside = token_rows(), perplexity.Teaching(model(2, teacher))
    if kept is not None:
        monkeypatch.setattr(beside, "_free", kept)
    first = perplexity.read(model(3, student), rows, pad_id=0, engine=engine(), teacher=beside)
    found = perplexity.read(model(1, student), rows, pad_id=0, engine=engine(), teacher=beside)
    assert first.kl_R is not None
    assert found.kl_R is not None
    assert (first.kl_R != found.kl_R).all(), "what is kept is the teacher's and not a student's"
    reader, teaching = model(1, student), model(2, teacher)
    common = min(student, teacher)
    for place in range(len(rows)):
        ids_T, trained_T = rows.row(place)
        asked = np.flatnonzero(trained_T)
        q, p = logprobs(reader, ids_T, common)[asked - 1], logprobs(teaching, ids_T, common)[asked - 1]
        p = p - np.log(np.exp(p).sum(-1, keepdims=True))
        assert found.nll_R[place] == pytest.approx(-q[np.arange(len(asked)), ids_T[asked]].sum(), rel=1e-4)
        assert found.kl_R[place] == pytest.approx((np.exp(p) * (p - q)).sum(), rel=1e-3)


def test_without_a_teacher_there_is_no_divergence_and_json_holds_what_was_read() -> None:
    found = perplexity.read(model(1), token_rows(), pad_id=0, engine=engine(), teacher=None)
    assert found.kl_R is None
    again = Losses.of(**found.columns())
    assert again.nll_R.tolist() == found.nll_R.tolist()
    assert again.kl_R is None
