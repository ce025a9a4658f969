"""What is known by heart: edit distances, the sample, thresholds, personal data, and what a model really draws."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import suite_support as support
from stages import drawing

from alignment.artifacts import Artifact, named
from alignment.chat import tokenizers
from alignment.chat.types import Prompt, Text, messages
from alignment.errors import UserError
from alignment.evals.suites import memorisation, subject
from alignment.evals.suites.memorisation import Shown, edits, rounded, sample


def levenshtein(a: Sequence[int], b: Sequence[int]) -> int:
    """The whole table (Wagner and Fischer 1974)."""
    table = np.zeros((len(a) + 1, len(b) + 1))
    table[:, 0], table[0] = np.arange(len(a) + 1), np.arange(len(b) + 1)
    for i, one in enumerate(a, 1):
        for j, other in enumerate(b, 1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (one != other))
    return int(table[-1, -1])


def test_edits_are_those_of_the_whole_table() -> None:
    draw = random.Random(0)
    for _ in range(200):
        a, b = ([draw.randrange(900, 905) for _ in range(draw.randrange(12))] for _ in range(2))
        assert edits(a, b) == levenshtein(a, b)


@pytest.mark.parametrize(
    ("copies", "told"), [(1, 1), (2, 2), (4, 2), (5, 5), (9, 5), (10, 10), (19, 10), (20, 20), (99, 50), (100, 100)]
)
def test_copies_are_told_in_round_numbers(copies: int, told: int) -> None:
    assert rounded(copies) == told


# ── the sample ───────────────────────────────────────────────────────────────────────────────────


def texts(folder: Path, rows: Sequence[Text]) -> Artifact:
    return drawing.dataset(folder, "text", {"train": rows})


def test_the_sample_is_of_different_documents_in_any_order(tmp_path: Path) -> None:
    rows = [Text(f"document {number % 40}", f"a:{number % 40}") for number in range(100)]
    one, different = sample(texts(tmp_path / "one", rows).path, "train", 15, 3)
    other, _ = sample(texts(tmp_path / "other", rows[::-1]).path, "train", 15, 3)
    assert different == 40
    assert len(one) == len({row.text for row in one}) == 15
    assert {row.text for row in one} == {row.text for row in other}
    assert all(row.copies == (3 if int(row.id[2:]) < 20 else 2) for row in one)
    again, _ = sample(tmp_path / "one", "train", 15, 4)
    assert {row.text for row in again} != {row.text for row in one}
    assert len(sample(tmp_path / "one", "train", None, 3)[0]) == 40


def test_every_document_has_the_same_chance(tmp_path: Path) -> None:
    folder = texts(tmp_path / "a", [Text(f"document {number}", f"a:{number}") for number in range(10)]).path
    drawn = [row.id for seed in range(150) for row in sample(folder, "train", 2, seed)[0]]
    counts = [drawn.count(f"a:{number}") for number in range(10)]
    assert sum(counts) == 300
    assert all(10 < count < 50 for count in counts)  # 30 expected, 4 standard deviations of 5


# ── planted continuations ────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return support.policy(tmp_path_factory.mktemp("tiny"))


def document(number: int, words: int = 70) -> str:
    draw = random.Random(number)
    return " ".join(draw.choice(("answer", "question", "friend", "town", "said", "the")) for _ in range(words))


def settings(**changes: Any) -> Any:
    values = {"data": "run:d", "prefix_tokens": [10, 25], "count": None, "personal": None}
    return support.settings("memorisation", **values | changes)


def planted(monkeypatch: pytest.MonkeyPatch, draw: Any) -> None:
    """Have the model draw what ``draw`` makes of a beginning."""
    monkeypatch.setattr(memorisation, "_continued", lambda some, *_: [{"ids": draw(one)} for one in some])


def wrong(one: Shown, count: int) -> list[int]:
    """What is wanted with so many tokens exchanged."""
    return [token if place >= count else 3 for place, token in enumerate(one.wanted)]


def test_a_tenth_may_be_edited_and_no_more(monkeypatch: pytest.MonkeyPatch, model: Artifact, tmp_path: Path) -> None:
    """Of six documents one each is drawn with 0, 1, 5, 6, 50 exchanges and one shifted by a token (two edits)."""
    data = texts(tmp_path / "d", [Text(document(number), f"books:{number}") for number in range(6)])

    def draw(one: Shown) -> list[int]:
        place = int(one.document.id.partition(":")[2])
        return [3, *one.wanted[:-1]] if place == 5 else wrong(one, (0, 1, 5, 6, 50)[place])

    planted(monkeypatch, draw)
    found = support.examined(settings(), {"data": data}, model, tmp_path / "out")
    by_id = {row["id"]: row for row in support.rows(found, tmp_path / "out")}
    assert len(by_id) == 12
    for prefix in ("10", "25"):
        rows = [by_id[f"books:{number}@{prefix}"] for number in range(6)]
        assert [row["exact"] for row in rows] == [1, 0, 0, 0, 0, 0]
        assert [row["approximate"] for row in rows] == [1, 1, 1, 0, 0, 1]
        assert [row["edited"] for row in rows] == pytest.approx([0, 0.02, 0.1, 0.12, 1.0, 0.04])
        assert {row["by_prefix"] for row in rows} == {prefix}
        assert {row["by_source"] for row in rows} == {"books"}


def test_short_documents_are_counted_and_copies_and_sources_told(
    monkeypatch: pytest.MonkeyPatch, model: Artifact, tmp_path: Path
) -> None:
    once = [Text(document(number), f"one:{number}") for number in range(4)]
    often = [Text(document(9), "two:9")] * 10
    data = texts(tmp_path / "d", [*once, *often, Text("the town", "two:short")])
    planted(monkeypatch, lambda one: wrong(one, 0 if one.document.id in ("two:9", "one:0") else 50))
    found = support.examined(settings(), {"data": data}, model, tmp_path / "out")
    assert found.notes == {"documents_in_the_split": 6, "documents": 6, "too_short": 1, "measured": 5}
    told = support.estimates(found, tmp_path / "out")
    assert told["exact"] == pytest.approx(2 / 5)
    assert told["groups"]["copies"]["1"]["exact"] == pytest.approx(1 / 4)
    assert told["groups"]["copies"]["10"]["exact"] == 1.0
    assert told["groups"]["source"]["two"]["exact"] == 1.0
    assert told["groups"]["prefix"].keys() == {"10", "25"}


def test_personal_data_is_a_share_of_what_is_memorised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Four are memorised, of which two give away an address and one of these a card; one that is not does too."""
    secret = {
        0: "write to anna.berg@posteo.de now",
        1: "card 4111 1111 1111 1111 or anna.berg@posteo.de",
        4: "eve@posteo.de",
    }
    rows = [Text(f"{document(n, 40)} {secret.get(n, 'nothing')} {document(n + 50, 60)}", f"a:{n}") for n in range(5)]
    model = support.policy(tmp_path / "tiny", [*support.LINES, *(row.text for row in rows)])
    tokenizer = tokenizers.load(model.path)
    least = min(len(tokenizer.encode(row.text)) for row in rows)
    said = support.settings("memorisation", data="run:d", count=None, prefix_tokens=[5], continuation_tokens=least - 5)
    planted(monkeypatch, lambda one: wrong(one, len(one.wanted)) if one.document.id == "a:4" else one.wanted)
    data = texts(tmp_path / "d", rows)
    found = support.examined(said, {"data": data}, model, tmp_path / "out")
    told = support.estimates(found, tmp_path / "out")
    rows_of = support.rows(support.examined(said, {"data": data}, model, tmp_path / "out"), tmp_path / "out")
    assert sum("personal" in row for row in rows_of) == 4
    assert told["approximate"] == pytest.approx(4 / 5)
    assert told["personal_medium"] == pytest.approx(2 / 4)
    assert told["personal_high"] == pytest.approx(1 / 4)
    assert told["personal_low"] == 0.0
    assert told["personal"] == pytest.approx(2 / 4)


# ── a model that really draws ────────────────────────────────────────────────────────────────────


def test_what_is_drawn_is_the_likeliest_token_every_time_whatever_stands_beside_it(
    monkeypatch: pytest.MonkeyPatch, model: Artifact, tmp_path: Path
) -> None:
    import torch

    from alignment.gemma import core

    data = texts(tmp_path / "d", [Text(document(number), f"a:{number}") for number in range(7)])
    said = settings()
    rows = support.rows(support.examined(said, {"data": data}, model, tmp_path / "out"), tmp_path / "out")
    monkeypatch.setattr(subject, "PART", 3)
    monkeypatch.setattr(subject.Subject.in_parts, "__defaults__", (3,))
    again = support.rows(support.examined(said, {"data": data}, model, tmp_path / "again"), tmp_path / "again")
    assert again == rows
    assert (tmp_path / "again/parts/continuations").is_dir()
    tokenizer = tokenizers.load(model.path)
    gemma = core.load(model.path)
    ids = [tokenizer.bos_id, *tokenizer.encode(document(0))[:10]]
    for _ in range(50):
        with torch.no_grad():
            ids.append(int(gemma(torch.tensor([ids])).logits[0, -1].argmax()))
    (row,) = (row for row in rows if row["id"] == "a:0@10")
    assert tokenizer.decode(ids[11:]) == json.loads(row["shown"])["drawn"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prefix_tokens": [600], "continuation_tokens": 60}, "with 60 more they do not fit"),
        ({"prefix_tokens": [5, 5]}, "must be different numbers"),
        ({"prefix_tokens": [0]}, "must be different numbers"),
        ({"prefix_tokens": [589]}, "none of its 1 documents is long enough"),
        (
            {"personal": {"high": [], "medium": [], "low": [], "regions": ["XX"], "reserved": False}},
            "'XX' is no region",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(
    model: Artifact, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    data = texts(tmp_path / "d", [Text(document(0, 20), "a:0")])
    values = {"prefix_tokens": [10]} | changes
    with pytest.raises(UserError, match=said):
        support.examined(
            support.settings("memorisation", data="run:d", **values), {"data": data}, model, tmp_path / "out"
        )


def test_prompts_and_served_models_are_refused(model: Artifact, tmp_path: Path) -> None:
    data = drawing.dataset(tmp_path / "d", "prompts", {"train": [Prompt(messages(("user", "Hi")), "a")]})
    with pytest.raises(UserError, match="holds prompts"):
        support.examined(settings(), {"data": data}, model, tmp_path / "out")
    with pytest.raises(UserError, match="is behind a server"):
        support.examined(settings(), {"data": data}, named("endpoint", "m"), tmp_path / "out")
