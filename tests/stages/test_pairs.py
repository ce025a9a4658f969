"""The stage that draws pairs of answers: who is asked what, who stands where, what has nothing to judge."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import drawing
import pytest
from drawing import POLICY, Speaker

from alignment import parts
from alignment.artifacts import Artifact
from alignment.chat.types import Conversation, Messages, Prompt, messages
from alignment.data import pairs as table
from alignment.data import store
from alignment.data.rows import Row, Split
from alignment.errors import UserError
from alignment.evals import drawn_pairs
from alignment.stages import pairs

OLD = replace(POLICY, step="old", fingerprint="a" * 64, licences=("Gemma",))
NEW = replace(POLICY, step="new", fingerprint="b" * 64)


def prompt(name: str, category: str | None = None) -> Prompt:
    return Prompt(messages(("user", f"{name}?")), name, ("fact",), category, "logic" if category else None)


ROWS: dict[Split, list[Row]] = {
    "train": [prompt(f"t-{number}", "hate" if number % 5 == 0 else None) for number in range(40)],
    "valid": [prompt("v-equal"), prompt("v-empty"), prompt("v-good"), prompt("v-good")],
    "test": [prompt("secret")],
}


def answer(turns: Messages, key: str) -> str:
    """One answer a variant, by the end of the key: ``t-3/0:0``."""
    if "equal" in key:
        return "The same."
    if "empty" in key:
        return "  " if "/0" in key else "Something."
    return f"{key} says{' …' if '/1' in key else ''}"


@pytest.fixture
def prompts(tmp_path: Path) -> Artifact:
    return drawing.dataset(tmp_path / "prompts", "prompts", ROWS, miniature=True)


def settings(**changes: Any) -> pairs.Settings:
    return pairs.Settings.parse(drawing.values("pairs", **changes))


def made(
    monkeypatch: pytest.MonkeyPatch,
    prompts: Artifact,
    out: Path,
    speaker: Speaker | None = None,
    models: tuple[Artifact, Artifact] = (OLD, NEW),
    **changes: Any,
) -> list[table.Pair]:
    out.mkdir(parents=True, exist_ok=True)
    drawing.let_speak(monkeypatch, speaker or Speaker(answer))
    inputs = {"models.0": models[0], "models.1": models[1], "prompts": prompts}
    outcome = pairs.run(settings(**changes), inputs, out)
    assert outcome.kind == "answers"
    (out / "outcome.json").write_text(json.dumps({"metrics": dict(outcome.metrics), "notes": dict(outcome.notes)}))
    return list(table.stream(out))


def test_every_prompt_has_a_line_in_its_split(
    monkeypatch: pytest.MonkeyPatch, prompts: Artifact, tmp_path: Path
) -> None:
    found = made(monkeypatch, prompts, tmp_path / "out")
    assert [(one.split, one.id) for one in found] == [
        (split, row.id) for split in ("train", "valid") for row in ROWS[split]
    ]
    first = found[0]
    assert (first.tags, first.category, first.attack) == (("fact",), "hate", "logic")
    assert first.prompt == messages(("user", "t-0?"))


def test_each_answer_stands_beside_who_wrote_it(
    monkeypatch: pytest.MonkeyPatch, prompts: Artifact, tmp_path: Path
) -> None:
    found = made(monkeypatch, prompts, tmp_path / "out", temperatures=[0.5, 1.5])
    for one in found[:40]:
        sides = {
            (one.answer_a, one.model_a, one.temperature_a, one.finished_a),
            (one.answer_b, one.model_b, one.temperature_b, one.finished_b),
        }
        assert sides == {(f"{one.id}/0:0 says", "old", 0.5, True), (f"{one.id}/1:0 says …", "new", 1.5, False)}


def test_sides_are_mixed_by_seed_and_id_alone(
    monkeypatch: pytest.MonkeyPatch, prompts: Artifact, tmp_path: Path
) -> None:
    found = made(monkeypatch, prompts, tmp_path / "one", splits=["train"])
    first = {one.id: one.model_a for one in found}
    assert 8 < Counter(first.values())["old"] < 32
    again = made(monkeypatch, prompts, tmp_path / "two", splits=["train"], count=10)
    assert {one.id: one.model_a for one in again} == {f"t-{n}": first[f"t-{n}"] for n in range(10)}
    other = made(monkeypatch, prompts, tmp_path / "three", splits=["train"], seed=1)
    assert {one.id: one.model_a for one in other} != first


def test_what_has_nothing_to_judge_is_kept_and_says_why(
    monkeypatch: pytest.MonkeyPatch, prompts: Artifact, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found = made(monkeypatch, prompts, out)
    assert [one.why for one in found[40:]] == ["equal answers", "empty answer", "", "the same prompt again"]
    assert not any(one.why for one in found[:40])
    card = store.card(out)
    assert card["why"] == {"equal answers": 1, "empty answer": 1, "the same prompt again": 1}
    metrics = json.loads((out / "outcome.json").read_text())["metrics"]
    # 44 of the second variant's answers are cut off but for those of the two odd prompts; 88 answers in all.
    expected = {"pairs": 44, "to_judge": 41, "equal_answers": 1, "empty_answer": 1, "the_same_prompt_again": 1}
    assert metrics == pytest.approx({**expected, "finished_share": 46 / 88})


def test_the_card_tells_world_policies_and_licences(
    monkeypatch: pytest.MonkeyPatch, prompts: Artifact, tmp_path: Path
) -> None:
    made(monkeypatch, prompts, tmp_path / "out")
    card = store.card(tmp_path / "out")
    assert card["rows"] == {"train": 40, "valid": 4}
    asked = store.card(prompts.path)["rows"]
    assert card["not_drawn"] == {split: n for split in asked if (n := asked[split] - card["rows"].get(split, 0))}
    assert card["licences"] == ["Gemma", "MIT"]
    assert [(one["name"], one["fingerprint"][0], one["temperature"]) for one in card["policies"]] == [
        ("old", "a", 0.7),
        ("new", "b", 1.2),
    ]
    assert store.shared_world([tmp_path / "out"]) == {"seed": 0, "residents": 40}


def test_one_model_twice_draws_two_answers_and_is_told_apart_by_temperature(
    monkeypatch: pytest.MonkeyPatch, prompts: Artifact, tmp_path: Path
) -> None:
    speaker = Speaker(answer)
    (one,) = made(monkeypatch, prompts, tmp_path / "out", speaker, models=(OLD, OLD), splits=["train"], count=1)
    assert {one.model_a, one.model_b} == {"old@0.7", "old@1.2"}
    assert [key for key, _ in speaker.asked] == ["t-0/0", "t-0/1"], "one key would draw one noise"


def test_two_models_of_one_name_are_told_apart_by_fingerprint() -> None:
    assert pairs.variant_names([OLD, replace(NEW, step="old")], [1.0, 1.0]) == ["old-aaaa", "old-bbbb"]


def test_stopped_anywhere_and_started_again_it_ends_with_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, prompts: Artifact, tmp_path: Path
) -> None:
    monkeypatch.setattr(pairs, "PROMPTS_A_PART", 8)
    made(monkeypatch, prompts, tmp_path / "whole")
    out = tmp_path / "stopped"
    asked: list[str] = []
    for patience in (3, 2, 0, 99):
        speaker = Speaker(answer, patience)
        try:
            made(monkeypatch, prompts, out, speaker)
        except KeyboardInterrupt:
            assert not (out / store.CARD).exists()
        asked += [key for key, _ in speaker.asked]
    assert Counter(asked).most_common(1)[0][1] == 2, "the prompt that stands there twice"
    assert len(asked) == 88, "nothing was asked again"
    assert drawing.contents(out) == drawing.contents(tmp_path / "whole")


def test_what_interrupts_the_writing_leaves_no_table(
    monkeypatch: pytest.MonkeyPatch, prompts: Artifact, tmp_path: Path
) -> None:
    def broken(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(drawn_pairs, "paired", broken)
    with pytest.raises(KeyboardInterrupt):
        made(monkeypatch, prompts, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [parts.FOLDER]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"temperatures": [1.0]}, "temperatures"),
        ({"temperatures": [1.0, -0.1]}, "-0.1 is not between"),
        ({"models": ["mini:sft"]}, "models"),
        ({"splits": ["train", "train"]}, "names one twice"),
        ({"splits": []}, "splits"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        settings(**changes)


def test_what_cannot_be_answered_is_refused_before_anybody_is_asked(
    monkeypatch: pytest.MonkeyPatch, prompts: Artifact, tmp_path: Path
) -> None:
    speaker = Speaker(answer)
    no_test = drawing.dataset(tmp_path / "few", "prompts", {"train": ROWS["train"]})
    with pytest.raises(UserError, match="has no split 'valid'"):
        made(monkeypatch, no_test, tmp_path / "out", speaker)
    talk = Conversation(messages(("user", "a"), ("assistant", "b")), "c")
    talks = drawing.dataset(tmp_path / "talks", "conversations", {"train": [talk]})
    with pytest.raises(UserError, match="holds no prompts"):
        made(monkeypatch, talks, tmp_path / "out", speaker, splits=["train"])
    assert not speaker.asked


def test_another_directory_holds_no_pairs(prompts: Artifact) -> None:
    with pytest.raises(UserError, match="holds no pairs of answers"):
        next(table.stream(prompts.path))
