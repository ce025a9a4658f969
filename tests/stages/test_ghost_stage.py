"""The stage of Ghost Attention: who is asked what, what is kept, what the ledger says, and killing it half-way."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import drawing
import pytest
from drawing import POLICY, Speaker

from alignment.artifacts import Artifact, Outcome
from alignment.chat.types import Conversation, Message, Messages, messages, prompt_key
from alignment.data import store
from alignment.data.ghost import source_of
from alignment.errors import UserError
from alignment.miniature import instructions as world
from alignment.stages import ghost


def dialogue(name: str, turns: int) -> Conversation:
    """A dialogue of so many user turns."""
    spoken: Messages = ()
    for number in range(1, turns + 1):
        spoken += messages(("user", f"{name}, question {number}?"), ("assistant", f"{name}, answer {number}."))
    return Conversation(spoken, name, ("fact",))


def obedient(turns: Messages, key: str) -> str:
    """The answer of one who obeys what the last user message says."""
    told, _ = world.split(turns[-1].content)
    return world.dress(told, f"I answer {key}.", value=None)


def stubborn(turns: Messages, key: str) -> str:
    """The answer of one who never obeys."""
    return f"I answer {key}."


TRAIN = [dialogue(f"t-{number}", 1 + number % 4) for number in range(24)]
VALID = [dialogue(f"v-{number}", 3) for number in range(3)]


@pytest.fixture
def dialogues(tmp_path: Path) -> Artifact:
    return drawing.dataset(tmp_path / "dialogues", "conversations", {"train": TRAIN, "valid": VALID})


@pytest.fixture
def stage(dialogues: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``stage(speaker, key=value …)`` runs the stage in the test's folder and gives its outcome."""

    def run(speaker: Speaker, out: Path = tmp_path / "out", **changes: Any) -> Outcome:
        drawing.let_speak(monkeypatch, speaker)
        settings = ghost.Settings.parse(drawing.values("ghost", **changes))
        out.mkdir(exist_ok=True)
        return ghost.run(settings, {"policy": POLICY, "dialogues": dialogues}, out)

    return run


def fates(out: Path) -> dict[str, tuple[str, str]]:
    return {entry.id: (entry.fate, entry.reason) for entry in store.entries(out)}


def test_rows_ledger_and_metrics(stage: Any, tmp_path: Path) -> None:
    speaker = Speaker(obedient)
    outcome = stage(speaker)
    out = tmp_path / "out"
    rows = {row.id: row for split in ("train", "valid") for row in store.stream(out, split)}
    parents = {row.id: row for row in (*TRAIN, *VALID)}
    assert set(rows) == {name for name, parent in parents.items() if len(parent.messages) >= 4}
    assert [row.id for row in store.read(out, "valid")] == ["v-0", "v-1", "v-2"]
    for name, row in rows.items():
        parent = parents[name]
        assert isinstance(row, Conversation)
        told, rest = world.split(row.messages[0].content)
        assert told
        assert rest == parent.messages[0].content, "the instruction is in the first user turn …"
        assert row.messages[1:-1] == parent.messages[1:-1], "… and nowhere else; earlier answers stay"
        assert all(world.obeys(each, row.messages[-1].content) for each in told)
        assert row.train == "last"
        assert row.tags == ("fact", "ghost", *(each.kind for each in told), f"opening:{prompt_key(parent.messages)}")
    for key, prompt in speaker.asked:
        told = [world.split(turn.content)[0] for turn in prompt if turn.role == "user"]
        assert told[0]
        assert set(told) == {told[0]}, "drawn with the instruction in every user turn"
        name, _, turn = key.partition(":")
        assert int(turn) == len(told) == len(parents[name].messages) // 2
    assert fates(out)["t-0"] == ("not_drawn", "fewer than 2 user turns")
    assert fates(out)["t-1"][0] == "kept"
    assert world.split(f"{fates(out)['t-1'][1]} Hi")[0], "the ledger tells the instruction"
    metrics = outcome.metrics
    assert metrics["consistency"] == 1.0
    assert {key for key in metrics if key.startswith("consistency_")} == {f"consistency_turn_{n}" for n in (2, 3, 4)}
    assert metrics["rows"] == len(rows) == 21
    assert metrics["ledger_not_drawn"] == 6
    card = store.card(out)
    assert card["ghost"]["by_turn"]["4"] == {"drawn": 6, "obeying": 6}
    short = [row for row in rows.values() if row.messages[0].content.startswith(("Figure", "Language", "Hobby"))]
    assert metrics["shortened"] == len(short)
    assert 4 < len(short) < 17


def test_answers_that_do_not_obey_are_dropped_or_kept_as_asked(stage: Any, tmp_path: Path) -> None:
    def sometimes(turns: Messages, key: str) -> str:
        return (obedient if key.startswith("v-1") else stubborn)(turns, key)

    outcome = stage(Speaker(sometimes))
    assert [row.id for row in store.read(tmp_path / "out", "valid")] == ["v-1"]
    assert outcome.metrics["consistency"] == pytest.approx(1 / 21)
    assert outcome.metrics["ledger_dropped"] == 20
    fate, reason = fates(tmp_path / "out")["v-0"]
    assert fate == "dropped"
    assert reason.startswith("answer does not obey ")
    kept = stage(Speaker(sometimes), tmp_path / "all", keep="all")
    assert kept.metrics["rows"] == 21
    assert kept.metrics["consistency"] == pytest.approx(1 / 21)


def test_answers_that_are_empty_or_cut_off_are_dropped(stage: Any, tmp_path: Path) -> None:
    def broken(turns: Messages, key: str) -> str:
        return {"v-0": " \n", "v-1": obedient(turns, key) + " and …"}.get(key[:3], obedient(turns, key))

    stage(Speaker(broken), keep="all")
    told = fates(tmp_path / "out")
    assert told["v-0"] == ("dropped", "empty answer in turn 3")
    assert told["v-1"] == ("dropped", "unfinished answer in turn 3")
    assert told["v-2"][0] == "kept"


def test_of_several_samples_the_first_sound_one_that_obeys_is_taken(stage: Any, tmp_path: Path) -> None:
    def third(turns: Messages, key: str) -> str:
        sample = int(key[-1])
        return (" ", stubborn(turns, key), obedient(turns, key), obedient(turns, key))[sample]

    outcome = stage(Speaker(third), decoding__samples=4)
    assert all("I answer" in row.messages[-1].content for row in store.stream(tmp_path / "out", "train"))
    assert all(":2." in row.messages[-1].content for row in store.stream(tmp_path / "out", "train"))
    assert outcome.metrics["consistency"] == 0.5, "all samples that were drawn are counted"

    def cut_off(turns: Messages, key: str) -> str:
        return stubborn(turns, key) if key.endswith("1") else f"{obedient(turns, key)} and …"

    stage(Speaker(cut_off), tmp_path / "cut", decoding__samples=2, keep="all")
    assert {row.messages[-1].content for row in store.stream(tmp_path / "cut", "valid")} == {
        f"I answer v-{number}:3:1." for number in range(3)
    }, "what was cut off is not learned, though it obeys"


def test_every_answer_can_be_drawn_turn_by_turn(stage: Any, tmp_path: Path) -> None:
    speaker = Speaker(obedient)
    outcome = stage(speaker, answers="all", splits=["valid"])
    assert [key for key, _ in speaker.asked] == [f"v-{n}:{turn}" for turn in (1, 2, 3) for n in (0, 1, 2)]
    for row in store.stream(tmp_path / "out", "valid"):
        told, _ = world.split(row.messages[0].content)
        answers = [turn.content for turn in row.messages if turn.role == "assistant"]
        assert all(world.obeys(each, answer) for each in told for answer in answers)
        assert [f"I answer {row.id}:{turn}:0." in answers[turn - 1] for turn in (1, 2, 3)] == [True] * 3
        assert not any(world.split(turn.content)[0] for turn in row.messages[1:])
    later = dict(speaker.asked)["v-0:3"]
    assert "I answer v-0:2:0." in later[3].content, "earlier answers are those that were drawn"
    assert outcome.metrics["consistency_turn_1"] == 1.0


def test_mixed_draws_all_answers_of_some_dialogues_and_the_last_of_others(stage: Any, tmp_path: Path) -> None:
    speaker = Speaker(obedient)
    stage(speaker, answers="mixed")
    asked = Counter(key.partition(":")[0] for key, _ in speaker.asked)
    rows = [row for split in ("train", "valid") for row in store.stream(tmp_path / "out", split)]
    assert len(rows) == len(asked)
    for row in rows:
        told, _ = world.split(row.messages[0].content)
        answers = [turn.content for turn in row.messages if turn.role == "assistant"]
        assert asked[row.id] in (1, len(answers))
        *earlier, last = [all(world.obeys(one, answer) for one in told) for answer in answers]
        assert last
        assert earlier == [asked[row.id] > 1] * len(earlier), "where the last alone is drawn they are as they were"
    every = sum(count > 1 for count in asked.values())
    assert 0 < every < len(asked)


def test_a_dialogue_with_a_broken_answer_does_not_go_on(stage: Any, tmp_path: Path) -> None:
    speaker = Speaker(lambda turns, key: "" if key.startswith("v-1:2") else obedient(turns, key))
    stage(speaker, answers="all", splits=["valid"])
    assert fates(tmp_path / "out")["v-1"] == ("dropped", "empty answer in turn 2")
    assert "v-1:3" not in dict(speaker.asked)


def test_share_and_count(stage: Any, tmp_path: Path) -> None:
    stage(Speaker(obedient), count=2)
    assert [row.id for row in store.read(tmp_path / "out", "train")] == ["t-1", "t-2"]
    assert [row.id for row in store.read(tmp_path / "out", "valid")] == ["v-0", "v-1"]
    assert fates(tmp_path / "out")["v-2"] == ("not_drawn", "beyond the count")
    stage(Speaker(obedient), tmp_path / "half", share=0.5)
    half = {name for name, (fate, _) in fates(tmp_path / "half").items() if fate == "kept"}
    assert 4 < len(half) < 17
    assert fates(tmp_path / "half")[next(iter({"v-0", "v-1", "v-2", "t-1", "t-2", "t-3"} - half))] == (
        "not_drawn",
        "outside of the share",
    )


def test_shipped_lists_are_not_verifiable(stage: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="keep=obedient: instructions=None are not verifiable"):
        stage(Speaker(stubborn), instructions=None)
    outcome = stage(Speaker(stubborn), instructions=None, keep="all")
    assert outcome.metrics["rows"] == 21
    assert not any(key.startswith("consistency") for key in outcome.metrics)
    assert "not verifiable" in capsys.readouterr().out
    first = next(iter(store.stream(tmp_path / "out", "valid")))
    assert first.messages[0].content.endswith("v-0, question 1?")
    assert source_of(None).obeys is None


def test_what_cannot_work_is_refused_before_anybody_is_asked(
    dialogues: Artifact, stage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speaker = Speaker(obedient)
    with pytest.raises(UserError, match=r"none is suitable\nLeft out: fewer than 9 user turns \(27\)"):
        stage(speaker, min_turns=9)
    with pytest.raises(UserError, match="min_turns=5 is more than max_turns=4"):
        stage(speaker, min_turns=5, max_turns=4)
    with pytest.raises(UserError, match="no split 'test'"):
        stage(speaker, splits=["test"])
    shutil.copy(dialogues.path / "train.parquet", tmp_path)
    wrong = drawing.dataset(tmp_path / "wrong", "prompts", {})
    settings = ghost.Settings.parse(drawing.values("ghost"))
    with pytest.raises(UserError, match="holds prompts"):
        ghost.run(settings, {"policy": POLICY, "dialogues": wrong}, tmp_path / "x")
    assert speaker.calls == 0


@pytest.mark.parametrize("answers", ["last", "all", "mixed"])
def test_stopped_anywhere_it_ends_with_the_same_bytes(
    stage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: str
) -> None:
    monkeypatch.setattr(ghost, "PART", 4)
    whole = Speaker(obedient)
    stage(whole, tmp_path / "whole", answers=answers)
    wanted = drawing.contents(tmp_path / "whole")
    assert {"train.parquet", "valid.parquet", "ledger.parquet", "card.json"} == wanted.keys()
    out, done, starts = tmp_path / "broken", 0, 0
    while True:
        speaker = Speaker(obedient, patience=3 if answers == "last" else 6)
        starts += 1
        try:
            stage(speaker, out, answers=answers)
            break
        except KeyboardInterrupt:
            assert not list(out.glob("*.parquet")), "what is unfinished is no table"
            parts = len(list(out.glob("parts/answers/*.jsonl")))
            assert parts > done, "every start goes on where the last one stopped"
            done = parts
    assert starts > 1
    assert drawing.contents(out) == wanted


def test_the_file_of_instructions_belongs_to_the_fingerprint(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("parts: [1]\nkinds: {}\nfree: [{full: Hum., short: Hum}]\n")
    settings = ghost.Settings.parse(drawing.values("ghost", instructions=str(mine)))
    assert ghost.sources(settings) == [mine]
    (shipped,) = ghost.sources(ghost.Settings.parse(drawing.values("ghost", instructions=None)))
    assert shipped.name == "instructions.yaml"
    assert ghost.sources(ghost.Settings.parse(drawing.values("ghost"))) == []


def test_a_model_of_the_miniature(smoke: Path, tmp_path: Path) -> None:
    """From artifacts on disk to a dataset, with a real sampler."""
    from alignment.store import Store

    latest = Store(smoke).latest
    values = drawing.values(
        "ghost", keep="all", count=24, splits=["train"], decoding__max_new_tokens=160, engine__device="cpu"
    )
    inputs = {"policy": latest("sft"), "dialogues": latest("conversations")}
    outcome = ghost.run(ghost.Settings.parse(values), inputs, tmp_path)
    rows = store.read(tmp_path, "train")
    assert outcome.kind == "dataset"
    assert outcome.metrics["rows"] == len(rows) > 0
    fates = (outcome.metrics[f"ledger_{fate}"] for fate in ("kept", "dropped", "not_drawn"))
    assert sum(fates) == sum(store.card(inputs["dialogues"].path)["rows"].values()), "every row of every split"
    assert all(isinstance(row.messages[-1], Message) and row.train == "last" for row in rows)
