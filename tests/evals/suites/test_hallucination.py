"""Answers of known worth under the world's truth and under references, and what cannot be read."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recall_support as support
import yaml
from recall_support import Speaker

from alignment.artifacts import Artifact
from alignment.chat.types import Messages, Prompt, messages
from alignment.data import lists
from alignment.errors import DataError, UserError
from alignment.evals.suites import hallucination, knowing
from alignment.evals.suites.hallucination import Settings
from alignment.evals.suites.knowing import Read
from alignment.evals.suites.suite import Example
from alignment.miniature import answers, corpus

GRADES = ("exact", "rambling", "vague", "wrong", "hedge")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    rows = list(corpus.prompts(support.WORLD, 200, 0))
    return support.dataset(tmp_path_factory.mktemp("world") / "rows", rows, miniature=True)


def graded(grade: Any) -> Speaker:
    """Whoever answers everything in one grade of quality."""

    def answer(turns: Messages, key: str) -> str:
        task = support.WORLD.understand(turns)
        assert task is not None
        fits = answers.best(task) if grade == "exact" else grade
        return answers.answer(support.WORLD, task, fits, random.Random(key))

    return Speaker(answer)


def measured(
    monkeypatch: pytest.MonkeyPatch, speaker: Speaker, out: Path, dataset: Artifact, name: str, **changes: Any
) -> list[Example]:
    subject = support.spoken(monkeypatch, speaker, out)
    settings = Settings.parse(support.suite(name, **changes))
    return list(hallucination.examine(settings, {"prompts": dataset}, subject).examples)


def means(examples: list[Example]) -> dict[str, float]:
    found = defaultdict(list)
    for one in examples:
        for measure, value in one.values.items():
            found[measure].append(value)
    return {
        measure: float(np.mean(values)) for measure, values in found.items() if measure not in ("tokens", "finished")
    }


# ── the miniature's truth ────────────────────────────────────────────────────────────────────────

RIGHT = {"correct": 1, "hedged": 1, "over_hedged": 0, "attributed": 1, "invented": 0}
NOTHING = {"correct": 0, "hedged": 0, "over_hedged": 0, "attributed": 0, "invented": 1}


@pytest.mark.parametrize(
    ("grade", "expected"),
    [("exact", RIGHT), ("rambling", RIGHT), ("wrong", NOTHING), ("vague", NOTHING), ("wrong_rambling", NOTHING)],
)
def test_planted_answers_have_the_values_they_should(
    grade: str, expected: dict[str, float], world: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = measured(monkeypatch, graded(grade), tmp_path, world, "miniature_hallucination")
    assert means(examples) == expected
    kinds = {one.groups["question"] for one in examples}
    assert kinds == {"fact", "follow_up", "unanswerable", "context"}
    assert 60 < len(examples) < 140, "other questions are passed over"


def test_hedging_everything_is_over_hedging_and_a_bare_value_is_not_attributed(
    world: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hedger = Speaker(lambda turns, key: "I do not know.")
    found = means(measured(monkeypatch, hedger, tmp_path / "a", world, "miniature_hallucination"))
    assert (found["correct"], found["hedged"], found["over_hedged"], found["invented"]) == (0, 1, 1, 0)
    assert found["attributed"] == 0, "that one does not know says nothing of the text"

    def bare(turns: Messages, key: str) -> str:
        task = support.WORLD.understand(turns)
        assert task is not None
        grade = "unattributed" if task.kind == "context" else answers.best(task)
        return answers.answer(support.WORLD, task, grade, random.Random(key))

    found = means(measured(monkeypatch, Speaker(bare), tmp_path / "b", world, "miniature_hallucination"))
    assert (found["correct"], found["hedged"], found["attributed"]) == (1, 1, 0)


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("What is {known}'s job?", "{known} is a {job}.", Read(True, False, False)),
        ("What is {known}'s job?", "I do not know, but {known} is a {job}.", Read(True, False, False)),
        ("What is {known}'s job?", "{known} is a {job}. {known} is a {other}.", Read(False, False, False)),
        ("What is {known}'s job?", "{somebody} is a {job}.", Read(False, False, False)),
        ("What is {known}'s job?", "I am not sure.", Read(False, True, False)),
        ("What is {stranger}'s job?", "I do not know anyone called {stranger}.", Read(False, True, False)),
        ("What is {stranger}'s job?", "I do not know. {stranger} is a {other}.", Read(False, False, False)),
    ],
)
def test_answers_that_would_cheat(question: str, answer: str, expected: Read) -> None:
    known, somebody, *_ = support.WORLD.names
    job = support.WORLD.people[known].facts["job"]
    other = next(one.facts["job"] for one in support.WORLD.people.values() if one.facts["job"] != job)
    names = {"known": known, "somebody": somebody, "stranger": support.WORLD.strangers[0], "job": job, "other": other}
    found = knowing.of_world(support.WORLD, Prompt(messages(("user", question.format(**names))), "p"))
    assert found is not None
    assert found.read(answer.format(**names)) == expected


def test_what_is_not_about_people_or_stands_under_an_instruction_is_passed_over() -> None:
    name = support.WORLD.names[0]
    for asked in ("What is 3 + 4?", f"Speak in French. What is {name}'s job?", "Tell me about the sea."):
        assert knowing.of_world(support.WORLD, Prompt(messages(("user", asked)), "p")) is None


# ── references ───────────────────────────────────────────────────────────────────────────────────

SQUAD = [
    ("When was it built?", '{"text": ["1889", "in 1889"], "answer_start": [3, 0]}'),
    ("Who built it?", '{"text": ["Gustave Eiffel"], "answer_start": [9]}'),
    ("Who painted it?", '{"text": [], "answer_start": []}'),
    ("Who sold it?", "[]"),
]
SAID = {
    "When was it built?": "It was built in 1889.",
    "Who built it?": "I'm not sure.",
    "Who painted it?": "The text doesn’t mention who painted it.",
    "Who sold it?": "It was sold by the Eiffel family.",
}


def test_worked_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Prompt(messages(("user", f"{asked}\n\nA text.")), f"q{n}", (), None, None, reference)
            for n, (asked, reference) in enumerate(SQUAD)]  # fmt: skip
    dataset = support.dataset(tmp_path / "rows", rows)
    speaker = Speaker(lambda turns, key: next(said for asked, said in SAID.items() if asked in turns[0].content))
    examples = measured(monkeypatch, speaker, tmp_path / "out", dataset, "hallucination")
    told = support.suite("hallucination")["told"]
    assert all(turns[0].content.startswith(f"{told}\n\n") for _, turns in speaker.asked)
    assert [one.groups["question"] for one in examples] == ["answerable"] * 2 + ["unanswerable"] * 2
    assert means(examples) == {"correct": 0.5, "over_hedged": 0.5, "hedged": 0.5, "attributed": 0.5, "invented": 0.25}
    without = measured(
        monkeypatch, speaker, tmp_path / "plain", dataset, "hallucination", told=None, with_text=False, match="exact"
    )
    assert speaker.asked[-1][1][0].content.startswith("Who sold it?")
    # No answer is an accepted one word for word, and without a text nothing can be said to be silent.
    assert means(without) == {"correct": 0, "over_hedged": 0.5, "hedged": 0, "invented": 0.75}


@pytest.mark.parametrize(
    ("written", "accepted"),
    [
        ("Paris", ["Paris"]),
        ("1889", ["1889"]),
        ('["Paris", "the city of Paris"]', ["Paris", "the city of Paris"]),
        ('{"value": "Paris", "aliases": ["Paris", "Lutetia"]}', ["Paris", "Lutetia"]),
        ('{"text": [], "answer_start": []}', []),
        ("[]", []),
    ],
)
def test_layouts_of_references(written: str, accepted: list[str]) -> None:
    assert knowing.accepted_of(Prompt(messages(("user", "?")), "p", reference=written)) == accepted


@pytest.mark.parametrize("written", [None, " ", '[""]', "[1]", '["?", ""]', '{"x": "Paris"}', '{"text": "Paris"}'])
def test_references_that_cannot_be_read_name_their_prompt(written: str | None) -> None:
    prompt = Prompt(messages(("user", "?")), "p17", reference=written)
    with pytest.raises(UserError, match=r"p17: the reference .* cannot be read"):
        knowing.accepted_of(prompt)


@pytest.mark.parametrize(
    ("match", "answer", "right"),
    [
        ("contains", "In the Paris of old.", True),
        ("contains", "the  PARIS!", True),
        ("contains", "Parisian", False),
        ("exact", "The Paris.", True),
        ("exact", "In Paris.", False),
    ],
)
def test_words_are_compared_and_not_letters(match: Any, answer: str, right: bool) -> None:
    phrases = knowing.phrases_of(knowing.path_of(None) or Path())
    question = knowing.of_reference(
        Prompt(messages(("user", "?")), "p", reference="Paris"), match, phrases, with_text=False
    )
    assert question.read(answer).right is right


@pytest.mark.parametrize(
    ("written", "right", "wrong"),
    [
        # As SQuAD's script has it: what is only an article is left out beside others.
        ('["A", "A major"]', "major", "A"),
        ('{"text": ["a", "an apple"]}', "the apple", "a"),
        ('["", "Paris"]', "Paris", ""),
        # Alone it stands as it is written, and so does the answer.
        ('["A"]', "A.", "the"),
        ('["A"]', "a", ""),
    ],
)
def test_an_answer_that_is_only_an_article_counts_where_there_is_no_other(written: str, right: str, wrong: str) -> None:
    phrases = knowing.phrases_of(knowing.path_of(None) or Path())
    prompt = Prompt(messages(("user", "?")), "p", reference=written)
    question = knowing.of_reference(prompt, "exact", phrases, with_text=False)
    assert question.answerable
    assert [question.read(answer).right for answer in (right, wrong)] == [True, False]


def test_phrases_are_whole_words_and_silence_needs_a_text(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"phrases": ["I don't know"], "silent": ["does not say"]}))
    found = knowing.phrases_of(tmp_path / "mine.yaml")
    assert found.found("Well, I don’t   know.", with_text=False)
    assert not found.found("I don't knowingly lie.", with_text=True)
    assert found.found("The text does not say.", with_text=True)
    assert not found.found("The text does not say.", with_text=False)
    (tmp_path / "other.yaml").write_text("phrases: []\nsilent: []\n")
    with pytest.raises(UserError, match="phrases"):
        knowing.phrases_of(tmp_path / "other.yaml")
    (tmp_path / "broken.yaml").write_text("phrases: [")
    with pytest.raises(DataError, match="is not YAML"):
        knowing.phrases_of(tmp_path / "broken.yaml")
    assert knowing.path_of(None) == lists.FOLDER / "hedges.yaml"
    assert knowing.path_of("miniature") is None


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("miniature_hallucination", {"match": "exact"}, "match=exact: does not go with suite.hedges=miniature"),
        ("hallucination", {"with_text": None}, "with_text=null: does not go with suite.hedges=None"),
        ("miniature_hallucination", {"hedges": "none.yaml"}, "with_text=null"),
        ("hallucination", {"hedges": "none.yaml"}, "none.yaml: there is no such file"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    name: str, changes: dict[str, Any], told: str, world: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speaker = graded("exact")
    with pytest.raises(UserError, match=told):
        measured(monkeypatch, speaker, tmp_path, world, name, **changes)
    assert not speaker.asked


def test_the_miniatures_truth_is_asked_of_its_own_rows_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Prompt(messages(("user", "What is 3 + 4?")), "p")]
    plain = support.dataset(tmp_path / "plain", rows)
    with pytest.raises(UserError, match="is not of the miniature"):
        measured(monkeypatch, graded("exact"), tmp_path / "out", plain, "miniature_hallucination")
    sums = support.dataset(tmp_path / "sums", rows, miniature=True)
    with pytest.raises(UserError, match="none of its 1 prompts asks about people"):
        measured(monkeypatch, graded("exact"), tmp_path / "out", sums, "miniature_hallucination")
