"""Self-BLEU and distinct n-grams against known values, and prompts of two kinds over temperatures."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import suite_support as support
from stages import drawing

from alignment.artifacts import Artifact
from alignment.chat.types import Messages, Prompt, messages
from alignment.errors import UserError
from alignment.evals.suites import subject
from alignment.evals.suites.diversity import measured
from alignment.evals.suites.repetition import distinct, self_bleu, words
from alignment.sampling.decoding import Reply

# Means over the answers of sacrebleu 2.6.0's sentence_score: smooth_method floor, smooth_value 0.1, effective_order.
SACREBLEU = [
    (["The cat sat on the mat.", "The cat sat on a mat.", "A dog lay on the mat."], 0.5651091227008238),
    (["Yes.", "Yes.", "No."], 0.74120226591666),
    (
        [
            "It is Paris, the capital of France.",
            "Paris is the capital of France.",
            "The capital is Paris.",
            "I think that it is Lyon!",
        ],
        0.3264226627985231,
    ),
    (["one two three four five six seven", "seven six five four three two one"], 0.0537284965911771),
    (["a b c d e f", "a b c", "a b c d e f g h i j"], 0.6282841983762045),
    (["", "a b", "a b"], 2 / 3),
]


@pytest.mark.parametrize(("answers", "wanted"), SACREBLEU)
def test_self_bleu_is_that_of_a_reference_library(answers: list[str], wanted: float) -> None:
    assert self_bleu([words(one) for one in answers]) == pytest.approx(wanted, abs=1e-12)


def bleu(answer: list[str], references: list[list[str]]) -> float:
    """Written apart: every n-gram counted in every reference."""
    if not answer:
        return 0.0
    logs = []
    for n in range(1, min(4, len(answer)) + 1):
        own = Counter(tuple(answer[place : place + n]) for place in range(len(answer) - n + 1))
        others = [Counter(tuple(one[place : place + n]) for place in range(len(one) - n + 1)) for one in references]
        matched = sum(min(times, max(other[gram] for other in others)) for gram, times in own.items())
        if n == 1 and not matched:
            return 0.0
        logs.append(math.log((matched or 0.1) / sum(own.values())))
    near = sorted((abs(len(one) - len(answer)), len(one)) for one in references)[0][1]
    return math.exp(sum(logs) / len(logs)) * (1.0 if len(answer) > near else math.exp(1 - near / len(answer)))


def test_self_bleu_is_the_mean_of_bleu_with_all_others() -> None:
    draw = random.Random(0)
    for _ in range(150):
        some = [[draw.choice("abcdef") for _ in range(draw.randrange(13))] for _ in range(draw.randrange(2, 7))]
        wanted = sum(bleu(one, some[:place] + some[place + 1 :]) for place, one in enumerate(some)) / len(some)
        assert self_bleu(some) == pytest.approx(wanted, abs=1e-12)


def test_the_same_answers_are_one_and_strange_ones_nought() -> None:
    assert self_bleu([words("It is a mill.")] * 5) == pytest.approx(1.0)
    assert self_bleu([["a", "b"], ["c", "d"], ["e"]]) == 0.0


def test_distinct_n_grams_are_counted_over_all_answers() -> None:
    answers = [words("a b a b"), words("a b c")]
    assert distinct(answers, 1) == pytest.approx(3 / 7)
    assert distinct(answers, 2) == pytest.approx(3 / 5)  # ab ba ab, ab bc
    assert distinct(answers, 3) == pytest.approx(3 / 3)
    assert distinct([["a"], []], 2) is None


def test_lengths_are_told_with_their_spread() -> None:
    found = measured([Reply("one two three", 4, True), Reply("one", 2, False), Reply("one two", 3, True)])
    assert found["words"] == pytest.approx(2.0)
    assert found["words_deviation"] == pytest.approx(1.0)
    assert found["tokens"] == pytest.approx(3.0)
    assert found["finished"] == pytest.approx(2 / 3)
    assert found["different"] == 1.0


# ── over temperatures ────────────────────────────────────────────────────────────────────────────

KINDS = [
    {"name": "creative", "tags": ["poem", "story"], "count": 3},
    {"name": "factual", "tags": ["fact"], "count": 2},
]


def say(turns: Messages, key: str, temperature: float) -> str:
    """A fact is always the same; a poem is so only when cold."""
    sample = key.rpartition(":")[2]
    if "poem" in turns[-1].content and temperature > 0.5:
        return f"word{sample} other{sample} third{sample}"
    return "always the same"


@pytest.fixture
def prompts(tmp_path: Path) -> Artifact:
    rows = [Prompt(messages(("user", f"a fact, number {n}")), f"f{n}", ("short", "fact")) for n in range(4)]
    rows += [Prompt(messages(("user", f"a poem, number {n}")), f"p{n}", ("poem",)) for n in range(4)]
    return drawing.dataset(tmp_path / "data", "prompts", {"test": rows})


def settings(**changes: Any) -> Any:
    values = {"prompts": "run:p", "kinds": KINDS, "temperatures": [0.2, 1.0], "samples": 4, "split": "test"}
    return support.settings("diversity", **values | changes)


def test_every_kind_of_prompt_has_its_curve_over_temperature(
    monkeypatch: pytest.MonkeyPatch, prompts: Artifact, tmp_path: Path
) -> None:
    monkeypatch.setattr(subject.Subject, "respondent", support.ByTemperature(say))
    found = support.examined(settings(), {"prompts": prompts}, drawing.POLICY, tmp_path / "out")
    assert found.notes == {"prompts": {"creative": 3, "factual": 2}}
    rows = support.rows(found, tmp_path / "out")
    assert [row["id"] for row in rows[:4]] == ["p0@0.2", "p0@1", "f0@0.2", "f0@1"]
    assert len(rows) == 2 * 5
    found = support.examined(settings(), {"prompts": prompts}, drawing.POLICY, tmp_path / "out")
    groups = support.estimates(found, tmp_path / "out")["groups"]
    assert groups["creative_temperature"]["0.2"]["self_bleu"] == pytest.approx(1.0)
    assert groups["creative_temperature"]["1"]["self_bleu"] == 0.0
    assert groups["factual_temperature"]["1"]["self_bleu"] == pytest.approx(1.0)
    assert groups["temperature"]["1"]["self_bleu"] == pytest.approx(2 / 5)
    assert groups["kind"]["creative"]["different"] == pytest.approx((1 / 4 + 1) / 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kinds": [*KINDS, {"name": "code", "tags": ["code"], "count": 1}]}, "no prompt of the kind 'code'"),
        ({"kinds": [KINDS[0], KINDS[0]]}, "two of them have the same name"),
        ({"temperatures": [9.0]}, "temperature"),
    ],
)
def test_kinds_and_temperatures_that_cannot_be_are_refused_before_anybody_is_asked(
    monkeypatch: pytest.MonkeyPatch, prompts: Artifact, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    speaker = support.ByTemperature(say)
    monkeypatch.setattr(subject.Subject, "respondent", speaker)
    with pytest.raises(UserError, match=said):
        support.examined(settings(**changes), {"prompts": prompts}, drawing.POLICY, tmp_path / "out")
    assert not speaker.asked
