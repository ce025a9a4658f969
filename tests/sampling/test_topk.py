"""A teacher's likeliest tokens: against a full softmax in float64, and on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from alignment.data import topk as storage
from alignment.data.topk import Store, Teacher, TopK, Writer
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
SEQUENCES = [([2, 5, 9], [11, 12, 13, 1]), ([2], [7]), ([2, 3, 4, 5, 6, 7, 8, 9], [20, 21, 22]), ([2, 4], [5, 1])]


def teacher_model(family: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    built = core.build(FAMILIES[family], VOCABULARY, TokenIds(), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0.0, 0.25, generator=generator)
    return built.to(dtype)


@torch.no_grad()
def full(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> np.ndarray:
    """``[T, V]`` log-probabilities of transformers' own forward, in float64."""
    logits = model(torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.double().log_softmax(-1).numpy()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("k", [1, 17, VOCABULARY - 1])
def test_they_are_those_of_a_full_softmax_in_float64(family: str, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Batches of few rows and chunks of two positions, so that their seams are crossed.
    monkeypatch.setattr(topk, "TOKENS_A_BATCH", 20)
    monkeypatch.setattr(topk, "LOGITS_A_CHUNK", 2 * VOCABULARY)
    exact = teacher_model(family, torch.float64)
    found = top_k(teacher_model(family), SEQUENCES, k, device="cpu")
    for (prompt, answer), row in zip(SEQUENCES, found, strict=True):
        logprobs = full(exact, prompt, answer)
        assert row.tokens_T.tolist() == answer
        assert row.ids_TK.shape == row.logprobs_TK.shape == (len(answer), k)
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
    # 4 + 1 + 3 + 2 answer tokens, three at a time; no prompt token is among them.
    assert seen == [(3, VOCABULARY)] * 3 + [(1, VOCABULARY)]


@pytest.mark.parametrize("k", [0, VOCABULARY])
def test_a_k_that_leaves_no_tail_is_refused(k: int) -> None:
    with pytest.raises(UserError, match=rf"top_k={k}: 1 to {VOCABULARY - 1}"):
        top_k(teacher_model("gemma1"), SEQUENCES, k, device="cpu")


TEACHER = Teacher("t", "digest", "gemma2", vocabulary=256_000, k=3)
NAMES = [["a", "b#0"], ["zwölf"]]


def rows(names: list[str], seed: int, k: int = 3, vocabulary: int = 256_000) -> list[TopK]:
    """Rows of 2 and 3 tokens; the highest id of the vocabulary is among them."""
    rng = np.random.default_rng(seed)
    return [
        TopK(
            np.array([vocabulary - 1, *rng.integers(0, vocabulary, length - 1)]),
            rng.integers(0, vocabulary, (length, k)),
            -rng.exponential(4, (length, k)),
            -rng.exponential(4, length),
        )
        for length in range(2, 2 + len(names))
    ]


def written(directory: Path, teacher: Teacher = TEACHER) -> Path:
    writer = Writer(directory, teacher)
    for number, names in enumerate(NAMES):
        writer.write(names, rows(names, number, teacher.k, teacher.vocabulary))
    assert writer.finish() == {"rows": 3, "tokens": 7}
    return directory


@pytest.mark.parametrize("vocabulary", [65_536, 65_537])
def test_what_is_written_comes_back(tmp_path: Path, vocabulary: int) -> None:
    store = Store.open(written(tmp_path, replace(TEACHER, vocabulary=vocabulary)))
    assert store.teacher == replace(TEACHER, vocabulary=vocabulary)
    assert list(store) == ["a", "b#0", "zwölf"]
    for number, names in enumerate(NAMES):
        for name, row in zip(names, rows(names, number, vocabulary=vocabulary), strict=True):
            found = store.row(name)
            assert found.tokens_T.tolist() == row.tokens_T.tolist()
            assert found.ids_TK.tolist() == row.ids_TK.tolist()
            np.testing.assert_allclose(found.logprobs_TK, row.logprobs_TK, rtol=2**-11)
            np.testing.assert_allclose(found.tail_T, row.tail_T, rtol=2**-11)
    assert "c" not in store
    with pytest.raises(UserError, match="no row 'c'"):
        store.row("c")


@pytest.mark.parametrize(("vocabulary", "wanted"), [(64_000, 260), (256_000, 390)])
def test_bytes_of_a_token(tmp_path: Path, vocabulary: int, wanted: int) -> None:
    """(64 + 1) ids, 64 + 1 halves: 65 · 2 + 65 · 2 = 260 or 65 · 4 + 65 · 2 = 390. The header is beside that."""
    teacher = replace(TEACHER, vocabulary=vocabulary, k=64)
    assert teacher.bytes_a_token == wanted <= 400
    writer = Writer(tmp_path, teacher)
    many = rows(["x"], 0, 64, vocabulary) * 500
    writer.write([f"row-{number}" for number in range(500)], many)
    tokens = writer.finish()["tokens"]
    size = (tmp_path / "topk" / "00000.safetensors").stat().st_size
    assert tokens * wanted < size < tokens * wanted + 500 * 8 + 500 * 20 + 1000


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = (written(tmp_path / name) / "topk" for name in "ab")
    names = sorted(path.name for path in one.iterdir())
    assert names == ["00000.safetensors", "00001.safetensors", "index.json"]
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)


def test_what_an_earlier_start_wrote_is_kept_and_nothing_else(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole") / "topk"
    writer = Writer(tmp_path / "out", TEACHER)
    assert not writer.keep(NAMES[0])
    writer.write(NAMES[0], rows(NAMES[0], 0))
    for stray in ("00001", "00002"):
        (tmp_path / "out" / "topk" / f"{stray}.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match="no top-k"):
        Store.open(tmp_path / "out")

    again = Writer(tmp_path / "out", TEACHER)
    assert again.keep(NAMES[0])
    assert not again.keep(NAMES[1])
    again.write(NAMES[1], rows(NAMES[1], 1))
    again.finish()
    for path in whole.iterdir():
        assert (tmp_path / "out" / "topk" / path.name).read_bytes() == path.read_bytes()
    assert len(list((tmp_path / "out" / "topk").iterdir())) == 3
    # Other rows under the same number are not taken for these.
    other = Writer(tmp_path / "out", TEACHER)
    assert not other.keep(["a"])


@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
def test_damage_is_found(tmp_path: Path, harm: str) -> None:
    path = written(tmp_path) / "topk" / "00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(content if harm == "flip" else content[:-3])
    with pytest.raises(UserError, match=r"00001\.safetensors is damaged"):
        Store.open(tmp_path).row("zwölf")


def test_without_an_index_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no top-k log-probabilities(.|\n)*top_k=64"):
        Store.open(tmp_path)
    index = written(tmp_path) / "topk" / "index.json"
    Writer(tmp_path, TEACHER)
    with pytest.raises(UserError, match="no top-k"):
        Store.open(tmp_path)
    written(tmp_path)
    index.write_text(json.dumps(json.loads(index.read_text()) | {"version": storage.VERSION + 1}))
    with pytest.raises(UserError, match="version 2"):
        Store.open(tmp_path)
