"""Near duplicates: what is alike is found whatever the batches, and nothing else."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.chat.types import Comparison, messages
from alignment.data.filters.bands import Band
from alignment.data.filters.near import (
    COMPARED,
    RECALL,
    SAME_KEY,
    Index,
    NearOptions,
    band_keys,
    banding,
    fingerprint_text,
    shingles,
    similarity,
)

WORDS = [f"{first}{second}{number}" for first in "bdfgklmn" for second in "aeiou" for number in range(50)]


def options(**changes: Any) -> NearOptions:
    parsed: NearOptions = NearOptions.parse({"jaccard": 0.8, "shingle_words": 5, "across": True} | changes, "near")
    return parsed


def index(path: Path, rows: list[str], batch: int = 64, sources: list[str] | None = None, **changes: Any) -> list:  # type: ignore[type-arg]
    chosen = options(**changes)
    made = Index(chosen, path / "spool")
    answers: list[str | None] = []
    for start in range(0, len(rows), batch):
        texts = rows[start : start + batch]
        ids = [str(start + place) for place in range(len(texts))]
        of = sources[start : start + batch] if sources else ["s"] * len(texts)
        answers += made.add(band_keys(texts, chosen), texts, ids, of)
    assert len(made) == answers.count(None)
    made.close()
    assert not list(path.iterdir())
    return answers


def pairs(low: float, high: float, count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Pairs of texts of 20 to 150 words with a Jaccard similarity between two bounds, by words changed or added."""
    rng = random.Random(seed)
    made = 0
    while made < count:
        first = rng.choices(WORDS, k=rng.choice((20, 60, 150)))
        second = list(first)
        for _ in range(rng.randint(0, 1 + int(len(first) * (1 - low) / 5))):
            second[rng.randrange(len(second))] = rng.choice(WORDS)
        second += rng.choices(WORDS, k=rng.randint(0, int(len(first) * (1 - low))))
        one, other = " ".join(first), " ".join(second)
        if low <= similarity(shingles(one, 5), shingles(other, 5)) < high:
            made += 1
            yield one, other.upper().replace(" ", ", ")


def test_planted_pairs_are_found(tmp_path: Path) -> None:
    alike = list(pairs(0.8, 1.01, 300, seed=0))
    rows = [one for one, _ in alike] + [other for _, other in alike]
    answers = index(tmp_path, rows)
    assert answers[:300] == [None] * 300
    found = sum(answer == str(place) for place, answer in enumerate(answers[300:]))
    assert found / 300 >= 0.97
    assert found + answers[300:].count(None) == 300


def test_pairs_that_differ_are_kept(tmp_path: Path) -> None:
    apart = list(pairs(0.3, 0.6, 300, seed=1))
    assert index(tmp_path, [text for pair in apart for text in pair]) == [None] * 600


def test_just_below_the_threshold_is_kept(tmp_path: Path) -> None:
    # 24 words have 20 shingles of 5. Words added at the end add as many: 20 of 25 are 0.8, 20 of 26 are less.
    words = WORDS[:24]
    rows = [" ".join(words), " ".join(words + WORDS[100:105]), " ".join(words + WORDS[200:206])]
    assert index(tmp_path, rows) == [None, "0", None]


def test_of_two_originals_the_nearer_is_named(tmp_path: Path) -> None:
    # 64 words have 60 shingles. The third shares 55 of 65 with the first (0.85) and 59 of 61 with the second (0.97);
    # these two share 54 of 66, which is 0.82.
    words = WORDS[:64]
    rows = [" ".join(words[5:] + WORDS[100:105]), " ".join(words[:63] + WORDS[200:201]), " ".join(words)]
    assert index(tmp_path, rows, jaccard=0.83) == [None, None, "1"]


def test_the_result_does_not_depend_on_the_batches(tmp_path: Path) -> None:
    rng = random.Random(2)
    rows = []
    for _ in range(60):
        base = rng.choices(WORDS, k=30)
        rows += [" ".join(base[: rng.randint(22, 30)]) for _ in range(rng.randint(1, 8))]
    # Many rows that share their boilerplate, so that the bounds come into play.
    boilerplate = " ".join(rng.choices(WORDS, k=40))
    rows += [f"{boilerplate} {' '.join(rng.choices(WORDS, k=rng.randint(5, 14)))}" for _ in range(200)]
    rng.shuffle(rows)
    expected = index(tmp_path, rows, batch=1)
    assert 60 < expected.count(None) < len(rows) - 60
    assert expected == index(tmp_path, rows, batch=17) == index(tmp_path, rows, batch=len(rows))


def test_sources_are_kept_apart_on_request(tmp_path: Path) -> None:
    rows, sources = ["one and the same text of words"] * 4, ["a", "b", "a", "b"]
    assert index(tmp_path, rows, sources=sources) == [None, "0", "0", "0"]
    assert index(tmp_path, rows, sources=sources, across=False) == [None, None, "0", "1"]


def test_short_and_wordless_texts(tmp_path: Path) -> None:
    rows = ["Thank you!", "thank  you", "Thank him!", "👍", "👍", "👎", "", "ｔｈａｎｋ you", "\ud800", "\ud800"]
    assert index(tmp_path, rows) == [None, "0", None, None, "3", None, None, "0", None, "8"]
    assert shingles("a b c d e", 5) == ["a b c d e"]
    assert shingles("a b c d e f", 5) == ["a b c d e", "b c d e f"]


def test_the_work_under_one_key_is_bounded(tmp_path: Path) -> None:
    """Rows that all have the same keys but different texts: each meets SAME_KEY earlier ones, whatever their number."""
    chosen, made = options(), Index(options(), tmp_path / "spool")
    texts = [f"text number {number}" for number in range(400)]
    keys = np.full((len(texts), banding(0.8)[0]), 7, np.uint64)
    read: list[int] = []
    original = made._spool.read
    made._spool.read = lambda row: (read.append(row), original(row))[1]  # type: ignore[method-assign, func-returns-value]
    assert made.add(keys, texts, [str(n) for n in range(400)], ["s"] * 400) == [None] * 400
    assert made.add(keys[:1], ["text number 3"], ["x"], ["s"]) == ["3"]
    # Beyond the first of them a repetition is met no more: the rule's price.
    assert made.add(keys[:1], ["text number 300"], ["y"], ["s"]) == [None]
    assert set(read) == set(range(SAME_KEY))
    assert len(read) <= 402 * min(SAME_KEY, COMPARED)
    assert chosen.jaccard == 0.8
    made.close()


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 1.0])
def test_banding_keeps_its_promise(threshold: float) -> None:
    bands, rows = banding(threshold)
    assert bands <= 14
    assert 1 - (1 - threshold**rows) ** bands >= RECALL
    # One more row in each of as many bands as there may be would break it.
    assert 1 - (1 - min(threshold, 0.99) ** (rows + 1)) ** 14 < RECALL
    assert (banding(0.8)) == (14, 6)


def test_keys_are_the_same_in_every_process() -> None:
    texts = ["The cat sat on the mat, and the dog sat on the cat.", "Grüße, 世界!", ""]
    code = (
        "import sys; from alignment.data.filters.near import NearOptions, band_keys; "
        "options = NearOptions.parse({'jaccard': 0.8, 'shingle_words': 5, 'across': True}); "
        f"print(band_keys({texts!r}, options).tolist())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    keys = band_keys(texts, options())
    assert printed == {f"{keys.tolist()}\n"}
    assert keys.dtype == np.uint64
    assert keys.shape == (3, 14)
    # Pinned, so that another version of the library cannot change datasets unnoticed.
    assert keys[0, 0] == 14934468505710627392
    assert [band_keys([text], options()).tolist()[0] for text in texts] == keys.tolist()


def test_a_row_is_compared_by_all_its_texts() -> None:
    row = Comparison(messages(("user", "a"), ("assistant", "b"), ("user", "c")), "d", "e", "better", "s", "x")
    assert fingerprint_text(row) == "a\nb\nc\nd\ne"


def test_a_table_holds_what_was_entered() -> None:
    rng = np.random.default_rng(0)
    band, expected = Band(bits=2), {}  # type: ignore[var-annotated]
    for start in range(0, 5000, 500):
        # The highest keys, so that the searches wrap around, and each key several times.
        keys = (rng.integers(0, 900, 500) + 2**32 - 900).astype(np.uint32)
        rows = np.arange(start, start + 500)
        band.enter(keys, rows)
        for key, row in zip(keys.tolist(), rows.tolist(), strict=True):
            expected.setdefault(key, set()).add(row)
    asked = (np.arange(1000) + 2**32 - 1000).astype(np.uint32)
    places, rows = band.find(asked)
    found: dict[int, set[int]] = {}
    for place, row in zip(places.tolist(), rows.tolist(), strict=True):
        found.setdefault(int(asked[place]), set()).add(row)
    assert len(rows) == 5000
    assert found == expected
    assert 13 <= band.nbytes / 5000 <= 27
