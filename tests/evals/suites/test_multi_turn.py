"""Dialogues turn by turn: which history, which turns are rated, the lowest rating, and what is invalid or empty."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import suite_support as support
from local_server import LocalServer
from stages import drawing

from alignment.artifacts import Artifact, named
from alignment.chat.types import Conversation, Messages, Prompt, messages, prompt_key
from alignment.data import recipe as recipes
from alignment.data import seen, store
from alignment.errors import UserError
from alignment.evals.suites import subject
from alignment.evals.suites.multi_turn import turns_of
from alignment.run import RECIPES
from alignment.scoring import opening

RUBRICS = [
    {"task": "CM", "ability": "seeing", "rubric": "it remembers", "from_turn": 2, "known": False},
    {"task": "MR", "ability": "doing", "rubric": "it is right", "from_turn": 1, "known": True},
]


def dialogue(name: str, task: str, turns: int) -> Conversation:
    said = [
        turn
        for number in range(1, turns + 1)
        for turn in (("user", f"{name} asks {number}"), ("assistant", f"{name} golden {number}"))
    ]
    return Conversation(messages(*said), name, (task, "other"))  # type: ignore[arg-type]


DIALOGUES = [dialogue("a", "CM", 3), dialogue("b", "MR", 2), dialogue("c", "CM", 2)]


def rating(value: object) -> str:
    return f"REASON: so it seems\nRATING: {value}"


class Judge(drawing.Speaker):
    """Says what a function makes of the answer that is shown, and of the key."""

    def __init__(self, say: Callable[[str, str], str]) -> None:
        super().__init__(lambda turns, key: say(self.shown(turns), key), unfinished="~")

    @staticmethod
    def shown(turns: Messages) -> str:
        found = re.search(r"\[answer \w+\]\n(.*?)\n\[end of", turns[0].content, re.S)
        assert found is not None
        return found[1]


@pytest.fixture(autouse=True)
def chatting(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing.let_chat(monkeypatch)


@pytest.fixture
def data(tmp_path: Path) -> Artifact:
    return drawing.dataset(tmp_path / "data", "conversations", {"test": DIALOGUES})


@pytest.fixture
def examine(monkeypatch: pytest.MonkeyPatch, data: Artifact, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """The examples, where ``speaker`` answers and ``judge`` rates."""

    def run(speaker: drawing.Speaker, judge: Judge, out: str = "out", **changes: Any) -> list[dict[str, Any]]:
        monkeypatch.setattr(subject.Subject, "respondent", speaker)
        monkeypatch.setattr(subject.Subject, "judge", lambda self, artifact, at: judge)
        values = {"dialogues": "run:d", "judge": "endpoint:j", "rubrics": RUBRICS} | changes
        inputs = {"dialogues": data, "judge": named("endpoint", "j")}
        found = support.examined(support.settings("mt_bench_101", **values), inputs, drawing.POLICY, tmp_path / out)
        return support.rows(found, tmp_path / out)

    return run


def echo(turns: Messages, key: str) -> str:
    return f"mine to {turns[-1].content}"


def of(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (row,) = (row for row in rows if row["id"] == name)
    return row


def test_a_dialogue_is_as_good_as_its_worst_answer(examine: Callable[..., list[dict[str, Any]]]) -> None:
    marks = {"a/2": 9, "a/3": 4, "b/1": 10, "b/2": 7, "c/2": 1}
    judge = Judge(lambda answer, key: rating(marks[key.partition(":")[0]]))
    rows = examine(drawing.Speaker(echo), judge)
    assert [row["id"] for row in rows] == ["a/2", "a/3", "a", "b/1", "b/2", "b", "c/2", "c"]
    assert {row["id"]: row["rating"] for row in rows if "rating" in row} == marks
    assert {row["id"]: row["score"] for row in rows if "score" in row} == {"a": 4, "b": 7, "c": 1}
    assert [row["unit"] for row in rows] == ["a"] * 3 + ["b"] * 3 + ["c"] * 2
    assert (of(rows, "a/3")["by_turn"], of(rows, "a/3")["by_task"], of(rows, "a")["by_ability"]) == (
        "3",
        "CM",
        "seeing",
    )
    assert "by_turn" not in of(rows, "a")
    assert json.loads(of(rows, "b/1")["shown"])["reason"] == "so it seems"


def test_the_golden_history_stands_before_every_answer(examine: Callable[..., list[dict[str, Any]]]) -> None:
    speaker, judge = drawing.Speaker(echo), Judge(lambda answer, key: rating(5))
    examine(speaker, judge)
    asked = dict(speaker.asked)
    assert [*asked] == ["a/2", "a/3", "b/1", "b/2", "c/2"], "turns that only lead there are not asked"
    assert asked["a/3"] == DIALOGUES[0].messages[:5]
    told = {key: turns[0].content for key, turns in judge.asked}
    assert "it remembers" in told["a/2"]
    assert "it is right" in told["b/1"]
    assert "b golden 1" in told["b/1"], "the judge is shown what is right"
    assert "a golden 2" not in told["a/2"], "here it is not"
    assert "b golden 1" not in str(asked["b/1"])


def test_with_a_history_of_its_own_a_model_meets_its_earlier_answers(
    examine: Callable[..., list[dict[str, Any]]],
) -> None:
    speaker, judge = drawing.Speaker(echo), Judge(lambda answer, key: rating(6))
    rows = examine(speaker, judge, history="own")
    asked = dict(speaker.asked)
    assert [turn.content for turn in asked["a/3"]] == [
        "a asks 1",
        "mine to a asks 1",
        "a asks 2",
        "mine to a asks 2",
        "a asks 3",
    ]
    assert len(asked) == 7
    assert {key for key, _ in judge.asked} == {"a/2", "a/3", "b/1", "b/2", "c/2"}
    assert {row["id"]: row["score"] for row in rows if "score" in row} == {"a": 6, "b": 6, "c": 6}


def test_an_empty_answer_is_the_worst_and_ends_a_dialogue_of_ones_own(
    examine: Callable[..., list[dict[str, Any]]],
) -> None:
    speaker = drawing.Speaker(lambda turns, key: " " if turns[-1].content in ("a asks 2", "c asks 1") else "Well.")
    judge = Judge(lambda answer, key: rating(8))
    rows = examine(speaker, judge, history="own")
    assert of(rows, "a/2")["rating"] == 1
    assert "invalid" not in of(rows, "a/2"), "nobody was asked"
    assert "rating" not in of(rows, "a/3")
    assert "rating" not in of(rows, "c/2")
    assert {row["id"]: row["score"] for row in rows if "score" in row} == {"a": 1, "b": 8, "c": 1}
    assert [row["id"] for row in rows] == ["a/2", "a/3", "a", "b/1", "b/2", "b", "c/2", "c"], "as for other models"
    golden = examine(drawing.Speaker(speaker.answer), judge, "golden", history="golden")
    assert of(golden, "a/3")["rating"] == 8
    assert of(golden, "a")["score"] == 1


@pytest.mark.parametrize(
    "reply", ["I would say 7.", rating(11), rating(0), rating("7.5"), rating("7 or 8"), f"{rating(7)}\nRATING: 8"]
)
def test_what_is_outside_the_form_is_asked_again_and_then_invalid_and_shown(
    examine: Callable[..., list[dict[str, Any]]], reply: str
) -> None:
    judge = Judge(lambda answer, key: reply if key.startswith("a/3") else rating(5))
    rows = examine(drawing.Speaker(echo), judge)
    assert sum(key == "a/3/again" for key, _ in judge.asked) == 1
    assert sum(key.startswith("a/2") for key, _ in judge.asked) == 1
    assert of(rows, "a/3")["invalid"] == 1.0
    assert "rating" not in of(rows, "a/3")
    assert json.loads(of(rows, "a/3")["shown"])["reason"] == reply
    assert "score" not in of(rows, "a"), "its lowest rating is not known"
    assert of(rows, "b")["score"] == 5
    assert of(rows, "a/2")["invalid"] == 0.0


def test_a_second_reply_that_can_be_read_counts(examine: Callable[..., list[dict[str, Any]]]) -> None:
    judge = Judge(lambda answer, key: rating(3) if "/again" in key else "hm")
    rows = examine(drawing.Speaker(echo), judge)
    assert {row["score"] for row in rows if "score" in row} == {3.0}
    assert len(judge.asked) == 10


def test_one_that_was_killed_asks_the_judge_nothing_twice(
    monkeypatch: pytest.MonkeyPatch, examine: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    monkeypatch.setattr(subject.Subject.in_parts, "__defaults__", (2,))
    whole = examine(drawing.Speaker(echo), Judge(lambda answer, key: rating(4)), "whole")
    first = Judge(lambda answer, key: rating(4))
    first.patience = 2
    with pytest.raises(KeyboardInterrupt):
        examine(drawing.Speaker(echo), first, "killed")
    second, speaker = Judge(lambda answer, key: rating(4)), drawing.Speaker(echo)
    assert examine(speaker, second, "killed") == whole
    assert not speaker.asked
    keys = [key for key, _ in (*first.asked, *second.asked)]
    assert len(keys) == len(set(keys)) == 5


def test_a_paid_judge_is_asked_once_whatever_is_lost(
    monkeypatch: pytest.MonkeyPatch, data: Artifact, tmp_path: Path
) -> None:
    """Not again after a stop, nor where the ratings are lost and the journal is there."""
    monkeypatch.setattr(subject.Subject, "respondent", drawing.Speaker(echo))
    said = support.settings("mt_bench_101", dialogues="run:d", judge="endpoint:j", rubrics=RUBRICS)
    inputs = {"dialogues": data, "judge": named("endpoint", "j")}
    with LocalServer(lambda body: rating(len(body["messages"][0]["content"]) % 10 + 1)) as server:
        server.name_it(monkeypatch)
        out = tmp_path / "out"
        first = support.rows(support.examined(said, inputs, drawing.POLICY, out), out)
        assert len(server.requests) == 5
        assert support.rows(support.examined(said, inputs, drawing.POLICY, out), out) == first
        shutil.rmtree(out / "parts" / "ratings")
        assert support.rows(support.examined(said, inputs, drawing.POLICY, out), out) == first
        assert len(server.requests) == 5
    assert all("rating" in row for row in first if "by_turn" in row)


def test_a_scorer_rates_by_its_probability(monkeypatch: pytest.MonkeyPatch, data: Artifact, tmp_path: Path) -> None:
    judge = drawing.Judge(lambda turns: 0.5 if turns[-1].content.endswith("2") else 1.0)
    drawing.let_speak(monkeypatch, drawing.Speaker(echo), judge)
    monkeypatch.setattr(subject.Subject, "respondent", drawing.Speaker(echo))
    said = support.settings("miniature_multi_turn", dialogues="run:d", tasks=None, turns=3)
    inputs = {"dialogues": data, "judge": named("gold", "overall")}
    rows = support.rows(support.examined(said, inputs, drawing.POLICY, tmp_path / "out"), tmp_path / "out")
    assert [row.get("rating") for row in rows] == [10.0, 5.5, 10.0, None]
    assert rows[-1]["score"] == 5.5
    assert judge.judged[2][:-1] == DIALOGUES[0].messages[:5]
    judge.absolute = False  # type: ignore[misc]
    with pytest.raises(UserError, match="tell answers to one prompt apart"):
        support.examined(said, inputs, drawing.POLICY, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rubrics": RUBRICS[:1]}, "there is none for the task 'MR'"),
        ({"tasks": ["XX"]}, "has no dialogue"),
        ({"turns": 4}, "has no dialogue of 4 turns"),
        ({"split": "valid"}, "valid"),
        ({"decoding": {"samples": 2, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8, "seed": 0}}, "samples=2"),
    ],
)
def test_what_cannot_be_rated_is_refused_before_anybody_is_asked(
    examine: Callable[..., list[dict[str, Any]]], changes: dict[str, Any], said: str
) -> None:
    speaker = drawing.Speaker(echo)
    with pytest.raises(UserError, match=said):
        examine(speaker, Judge(lambda answer, key: rating(1)), **changes)
    assert not speaker.asked


def test_dialogues_that_were_trained_on_and_prompts_are_refused(
    monkeypatch: pytest.MonkeyPatch, data: Artifact, tmp_path: Path
) -> None:
    from dataclasses import replace

    monkeypatch.setattr(opening, "open_respondent", lambda *_, **__: drawing.Speaker(echo))
    said = support.settings("miniature_multi_turn", dialogues="run:d", tasks=None)
    model = replace(drawing.POLICY, path=tmp_path)
    seen.write(tmp_path, [prompt_key(DIALOGUES[1].messages)], [])
    judge = named("gold", "overall")
    with pytest.raises(UserError, match="has been trained on 1 of the 3 prompts"):
        support.examined(said, {"dialogues": data, "judge": judge}, model, tmp_path / "out")
    (tmp_path / "judge").mkdir()
    seen.write(tmp_path / "judge", [prompt_key(one.messages) for one in DIALOGUES[:2]], [])
    trained = Artifact(tmp_path / "judge", "reward", "reward", "j", "2" * 64)
    with pytest.raises(UserError, match="judge has been trained on 2 of the 3 prompts"):
        support.examined(said, {"dialogues": data, "judge": trained}, drawing.POLICY, tmp_path / "out")
    prompts = drawing.dataset(tmp_path / "p", "prompts", {"test": [Prompt(messages(("user", "Hi")), "p")]})
    with pytest.raises(UserError, match="holds no conversations"):
        support.examined(said, {"dialogues": prompts, "judge": judge}, drawing.POLICY, tmp_path / "out")


def test_the_real_dialogues_have_a_rubric_each_and_as_many_turns_as_published(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """4,208 turns, of which the first is not rated in six of the thirteen tasks."""
    recipe = recipes.load(RECIPES / "mt_bench_101.yaml").rooted(shared_data / "mt_bench_101")
    real = support.built(recipe, RECIPES, tmp_path / "real")
    dialogues = store.read(real.path, "test")
    assert sum(len(turns_of(one)) for one in dialogues) in range(4200, 4209)  # type: ignore[arg-type]
    speaker, judge = drawing.Speaker(echo), Judge(lambda answer, key: rating(7))
    monkeypatch.setattr(subject.Subject, "respondent", speaker)
    monkeypatch.setattr(subject.Subject, "judge", lambda self, artifact, at: judge)
    said = support.settings("mt_bench_101", dialogues="run:d")
    inputs = {"dialogues": real, "judge": named("endpoint", "j")}
    told = support.estimates(support.examined(said, inputs, drawing.POLICY, tmp_path / "out"), tmp_path / "out")
    assert told["score"] == 7.0
    assert len(told["groups"]["task"]) == 13
    assert set(told["groups"]["ability"]) == {"perceptivity", "adaptability", "interactivity"}
    skipped = {"FR", "CR", "AR", "SA", "SC", "CM"}
    wanted = sum(len(turns_of(one)) - (one.tags[0] in skipped) for one in dialogues)  # type: ignore[arg-type,union-attr]
    assert len(speaker.asked) == len(judge.asked) == wanted
    shown = [turns[0].content for key, turns in judge.asked]
    known = sum("known to be right, for the judge alone" in text for text in shown)
    assert known == sum(len(turns_of(one)) for one in dialogues if one.tags[0] in ("MR", "GR"))  # type: ignore[arg-type,union-attr]


def test_dialogues_that_end_before_anything_is_rated(examine: Callable[..., list[dict[str, Any]]]) -> None:
    late = [RUBRICS[0] | {"from_turn": 3}, RUBRICS[1] | {"from_turn": 4}]
    judge = Judge(lambda answer, key: rating(5))
    rows = examine(drawing.Speaker(echo), judge, rubrics=late)
    assert [row["id"] for row in rows if "rating" in row] == ["a/3"]
    with pytest.raises(UserError, match="none of 3 has a turn that is rated"):
        examine(drawing.Speaker(echo), judge, rubrics=[one | {"from_turn": 4} for one in RUBRICS])
