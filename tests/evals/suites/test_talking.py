"""Prompts in a chat and as text, behind worked questions or not: base models beside chat models on one suite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import suite_support as support
from stages import drawing

from alignment.artifacts import Artifact, named
from alignment.chat import template
from alignment.chat.types import Messages, Prompt, messages
from alignment.errors import UserError
from alignment.evals.suites import subject, talking
from alignment.sampling.decoding import Decoding, Reply
from alignment.sampling.model_respondent import ModelRespondent
from alignment.sampling.text_respondent import TextRespondent

WORKED = talking.Worked(questions=None, shots=6, seed=0)


def chats(monkeypatch: pytest.MonkeyPatch, answer: bool) -> None:
    monkeypatch.setattr(template, "has_chat_template", lambda folder: answer)


def one(tmp_path: Path, artifact: Artifact = drawing.POLICY) -> subject.Subject:
    return subject.Subject(artifact, None, support.ENDPOINT, tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompting", "has_format", "in_a_chat"),
    [(None, True, True), ("chat", True, True), ("auto", True, True), ("auto", False, False), ("raw", True, False)],
)
def test_models_are_asked_as_they_can_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prompting: Any, has_format: bool, in_a_chat: bool
) -> None:
    chats(monkeypatch, has_format)
    assert talking.asked(one(tmp_path), prompting, talking.QUESTIONS).chats is in_a_chat


def test_a_base_model_is_not_asked_in_a_chat_and_a_server_not_outside_of_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chats(monkeypatch, False)
    with pytest.raises(UserError, match="has no chat template") as error:
        talking.asked(one(tmp_path), "chat", talking.QUESTIONS)
    assert "suite.prompting=auto" in str(error.value.remedy)
    served = one(tmp_path, named("endpoint", "m"))
    assert talking.asked(served, "auto", talking.QUESTIONS) is served
    with pytest.raises(UserError, match="is behind a server"):
        talking.asked(served, "raw", talking.QUESTIONS)


def test_worked_questions_are_the_same_for_all_and_others_by_another_seed() -> None:
    turns = talking.before(WORKED)
    assert [turn.role for turn in turns] == ["user", "assistant"] * 6
    assert len({turn.content for turn in turns if turn.role == "user"}) == 6
    assert talking.before(WORKED) == turns != talking.before(WORKED.model_copy(update={"seed": 1}))
    assert talking.before(None) == ()


def test_a_file_of_ones_own_has_to_have_as_many_as_are_wanted(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("questions:\n  - {question: 'Who?', answer: I.}\n")
    own = WORKED.model_copy(update={"questions": str(path)})
    with pytest.raises(UserError, match=r"suite\.worked\.shots=6: .*mine\.yaml has 1 questions"):
        talking.before(own)
    assert talking.before(own.model_copy(update={"shots": 1})) == messages(("user", "Who?"), ("assistant", "I."))
    with pytest.raises(UserError, match=r"suite\.worked\.questions=.*gone\.yaml: there is no such file"):
        talking.sources(WORKED.model_copy(update={"questions": str(tmp_path / "gone.yaml")}))


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ({"prompting": "few_shot", "worked": None}, "there are no worked questions"),
        ({"prompting": "raw"}, "asks without worked questions"),
    ],
)
def test_what_does_not_fit_together_is_refused(said: dict[str, Any], cause: str) -> None:
    with pytest.raises(UserError, match=cause):
        support.settings("truthfulqa_informative", **said)


# ── suites ───────────────────────────────────────────────────────────────────────────────────────

ANSWERS = {"correct_answers": ["Yes."], "incorrect_answers": ["No."]}


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What the model is given, as text and in a chat; the answer is always the same."""
    found: dict[str, list[Any]] = {"text": [], "chat": []}

    def reply(kind: str) -> Callable[..., list[list[Reply]]]:
        def say(self: Any, prompts: Any, keys: Any, decoding: Decoding, on_progress: Any = None) -> Any:
            written = getattr(self, "transcript", None)
            found[kind] += [written.written(turns) if written else turns for turns in prompts]
            return [[Reply("It is so.", 4, True)] for _ in prompts]

        return say

    monkeypatch.setattr(TextRespondent, "reply", reply("text"))
    monkeypatch.setattr(ModelRespondent, "reply", reply("chat"))
    return found


class Yes:
    """Says yes to whatever it is asked, in the form that it is held to."""

    name = "judge"

    def __init__(self) -> None:
        self.shown: list[str] = []

    def reply(self, prompts: list[Messages], keys: Any, decoding: Any, on_progress: Any = None) -> list[list[Reply]]:
        self.shown += [turns[0].content for turns in prompts]
        forms = ["INFORMATIVE" if "INFORMATIVE:" in turns[0].content else "TRUTHFUL" for turns in prompts]
        return [[Reply(f"REASON: because\n{form}: yes", 5, True)] for form in forms]


def test_truthfulqa_measures_a_base_model_behind_six_questions(
    monkeypatch: pytest.MonkeyPatch, heard: dict[str, list[Any]], tmp_path: Path
) -> None:
    import json

    model, judge = support.policy(tmp_path / "m"), Yes()
    (model.path / "chat_template.jinja").unlink()
    monkeypatch.setattr(subject.Subject, "judge", lambda self, artifact, at: judge)
    rows = [Prompt(messages(("user", "Is it so?")), "q", ("a", "b"), reference=json.dumps(ANSWERS))]
    inputs = {"prompts": drawing.dataset(tmp_path / "q", "prompts", {"test": rows})}
    inputs |= {f"{name}.by": named("endpoint", "j") for name in ("truthful", "informative")}
    said = support.settings("truthfulqa_informative", prompts="run:q")
    found = support.examined(said, inputs, model, tmp_path / "out")
    assert support.estimates(found, tmp_path / "out")["true_and_informative"] == 1.0
    assert found.notes["in_a_chat"] is False
    (text,) = heard["text"]
    assert text.count("Question:") == 7
    assert text.endswith("Question: Is it so?\nAnswer:")
    assert talking.before(WORKED)[0].content in text
    assert not any(talking.before(WORKED)[0].content in one for one in judge.shown), "worked questions are not judged"


def test_a_chat_model_has_the_same_questions_as_turns(
    monkeypatch: pytest.MonkeyPatch, heard: dict[str, list[Any]], tmp_path: Path
) -> None:
    import json

    model = support.policy(tmp_path / "m")
    monkeypatch.setattr(subject.Subject, "judge", lambda self, artifact, at: Yes())
    rows = [Prompt(messages(("user", "Is it so?")), "q", ("a", "b"), reference=json.dumps(ANSWERS))]
    inputs = {"prompts": drawing.dataset(tmp_path / "q", "prompts", {"test": rows})}
    inputs |= {f"{name}.by": named("endpoint", "j") for name in ("truthful", "informative")}
    support.examined(support.settings("truthfulqa_informative", prompts="run:q"), inputs, model, tmp_path / "out")
    assert heard["chat"] == [(*talking.before(WORKED), *messages(("user", "Is it so?")))]


def test_base_models_take_part_in_dialogues(
    monkeypatch: pytest.MonkeyPatch, heard: dict[str, list[Any]], tmp_path: Path
) -> None:
    from alignment.chat.types import Conversation

    model = support.policy(tmp_path / "m")
    (model.path / "chat_template.jinja").unlink()
    turns = messages(("user", "Hi"), ("assistant", "Hello."), ("user", "Well?"), ("assistant", "Well."))
    data = drawing.dataset(tmp_path / "d", "conversations", {"test": [Conversation(turns, "d", ("PI",))]})
    monkeypatch.setattr(
        subject.Subject,
        "judge",
        lambda self, artifact, at: drawing.Speaker(lambda turns, key: "REASON: so\nRATING: 7"),
    )
    decoding = support.settings("mt_bench_101").decoding.model_dump() | {"max_new_tokens": 64}
    said = support.settings("mt_bench_101", dialogues="run:d", judge="endpoint:j", decoding=decoding)
    inputs = {"dialogues": data, "judge": named("endpoint", "j")}
    found = support.examined(said, inputs, model, tmp_path / "out")
    assert support.estimates(found, tmp_path / "out")["score"] == 7.0
    assert found.notes["in_a_chat"] is False
    assert heard["text"][-1] == "User: Hi\nAssistant: Hello.\n\nUser: Well?\nAssistant:"
