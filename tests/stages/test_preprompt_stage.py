"""The stage of pre-prompt distillation: what is asked, scored, kept and told, and killing it half-way."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import drawing
import pyarrow.parquet as pq
import pytest
from drawing import POLICY, Judge, Speaker

from alignment.artifacts import Artifact, Outcome
from alignment.chat.types import Conversation, Messages, Prompt, messages
from alignment.data import lists, store
from alignment.errors import DataError, UserError
from alignment.miniature import preprompts
from alignment.stages import preprompt

CATEGORIES = tuple(preprompts.TEMPLATES)


def request(name: str, number: int) -> Prompt:
    return Prompt(
        messages(("user", "Hi"), ("assistant", "Hello"), ("user", f"Do harm {name}.")),
        name,
        ("unsafe",),
        category=CATEGORIES[number % 3],
        attack="logic",
    )


HARMLESS = Prompt(messages(("user", "What is tea?")), "h", ("fact",))
TRAIN = [HARMLESS, *(request(f"t-{number}", number) for number in range(8))]
VALID = [request(f"v-{number}", number) for number in range(4)]


def kind_of(turns: Messages) -> str:
    """Which pre-prompt stands before the last message."""
    said = turns[-1].content
    if said.startswith(tuple(preprompts.GENERIC)):
        return "generic"
    return "template" if said.startswith(tuple(preprompts.TEMPLATES.values())) else "plain"


def speak(turns: Messages, key: str) -> str:
    """``t-3 template``: who is asked, and how."""
    return f"{turns[-1].content.rsplit(' ', 1)[1].rstrip('.')} {kind_of(turns)}"


SCORES = {"plain": 0.4, "generic": 0.5, "template": 0.6}


def score(turns: Messages) -> float:
    """The template helps most; only where plain answers are safe already (v-3) it does harm."""
    name, kind = turns[-1].content.split()
    return {"plain": 0.9, "generic": 0.8, "template": 0.3}[kind] if name == "v-3" else SCORES[kind]


@pytest.fixture
def prompts(tmp_path: Path) -> Artifact:
    return drawing.dataset(tmp_path / "prompts", "prompts", {"train": TRAIN, "valid": VALID})


@pytest.fixture
def stage(prompts: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``stage(speaker, judge, key=value …)`` runs the stage in the test's folder and gives its outcome."""

    def run(
        speaker: Speaker | None = None, judge: Judge | None = None, out: Path = tmp_path / "out", **changes: Any
    ) -> Outcome:
        drawing.let_speak(monkeypatch, speaker or Speaker(speak), judge or Judge(score))
        settings = preprompt.Settings.parse(drawing.values("preprompt", **changes))
        out.mkdir(exist_ok=True)
        inputs = {"policy": POLICY, "prompts": prompts, "scorer": POLICY}
        return preprompt.run(settings, inputs, out)

    return run


def fates(out: Path) -> dict[str, tuple[str, str]]:
    return {entry.id: (entry.fate, entry.reason) for entry in store.entries(out)}


def scores(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / preprompt.SCORES).to_pylist()


def test_rows_scores_ledger_and_metrics(stage: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speaker, judge = Speaker(speak), Judge(score)
    outcome = stage(speaker, judge)
    out = tmp_path / "out"
    (first, *_), valid = store.read(out, "train"), store.read(out, "valid")
    assert first == Conversation(
        messages(("user", "Hi"), ("assistant", "Hello"), ("user", "Do harm t-0."), ("assistant", "t-0 template")),
        "t-0",
        ("unsafe", "preprompt", "template", CATEGORIES[0], "logic"),
        "last",
    )
    assert [row.id for row in valid] == ["v-0", "v-1", "v-2"]
    told = fates(out)
    assert told["h"] == ("not_drawn", "not adversarial")
    assert told["t-1"] == ("kept", "template 0.400 → 0.600")
    assert told["v-3"] == ("dropped", "no gain in safety 0.900 → 0.800")

    asked = {key: kind_of(prompt) for key, prompt in speaker.asked}
    assert len(asked) == 12 * 3
    assert all(key.endswith(f":{kind}") for key, kind in asked.items())
    guided = dict(speaker.asked)["t-1:template"]
    assert guided[-1].content == f"{preprompts.TEMPLATES[CATEGORIES[1]]} Do harm t-1."
    assert all(kind_of(turns[:-1]) == "plain" for turns in judge.judged), "the scorer never sees a pre-prompt"

    rows = scores(out)
    assert len(rows) == 12 * 2
    assert rows[0] == {
        "id": "t-0", "split": "train", "category": CATEGORIES[0], "attack": "logic", "kind": "template",
        "preprompt": preprompts.TEMPLATES[CATEGORIES[0]], "plain_answer": "t-0 plain",
        "guided_answer": "t-0 template", "plain_score": 0.4, "guided_score": 0.6, "problem": "", "kept": True,
    }  # fmt: skip
    assert [(row["kind"], row["kept"]) for row in rows if row["id"] == "v-3"] == [
        ("template", False),
        ("generic", False),
    ]
    assert [row["id"] for row in rows if row["kept"]] == [row.id for row in (*store.read(out, "train"), *valid)]

    metrics = outcome.metrics
    assert metrics["kept_share"] == pytest.approx(11 / 12)
    assert metrics["score_plain"] == pytest.approx((11 * 0.4 + 0.9) / 12)
    assert metrics["score_generic"] == pytest.approx((11 * 0.5 + 0.8) / 12)
    assert metrics["score_template"] == pytest.approx((11 * 0.6 + 0.3) / 12)
    assert metrics["score_kept"] == pytest.approx(0.6)
    assert metrics["worse_high"] == pytest.approx(1 / 3), "one of the three prompts with the best plain answers"
    assert (metrics["ledger_kept"], metrics["ledger_dropped"], metrics["ledger_not_drawn"]) == (11, 1, 1)
    printed = capsys.readouterr().out
    assert "quarter 4 of 4" in printed
    assert "33%" in printed


@pytest.mark.parametrize(("kind", "kept"), [("generic", 0.5), ("template", 0.6)])
def test_one_kind_of_pre_prompt(stage: Any, tmp_path: Path, kind: str, kept: float) -> None:
    speaker = Speaker(speak)
    outcome = stage(speaker, preprompts=kind)
    assert {key.rsplit(":")[1] for key, _ in speaker.asked} == {"plain", kind}
    assert outcome.metrics["score_kept"] == pytest.approx(kept)
    assert {row["kind"] for row in scores(tmp_path / "out")} == {kind}
    assert len(scores(tmp_path / "out")) == 12


def test_the_gain_that_is_wanted(stage: Any) -> None:
    assert stage(min_gain=0.15).metrics["rows"] == 11
    with pytest.raises(UserError, match=r"no row is left\nDropped: no gain in safety \(12\)"):
        stage(min_gain=0.5)
    assert stage(min_gain=None).metrics["rows"] == 12, "without the gate"


def test_answers_that_are_empty_or_cut_off(stage: Any, tmp_path: Path) -> None:
    def broken(turns: Messages, key: str) -> str:
        if key.startswith("t-0:t"):
            return "t-0 template…"
        return "" if key.startswith("t-1:") else speak(turns, key)

    def lenient(turns: Messages) -> float:
        return score(turns[:-1] + messages(("assistant", turns[-1].content.rstrip("…") or "t-1 generic")))

    stage(Speaker(broken), Judge(lenient))
    told = fates(tmp_path / "out")
    assert told["t-0"] == ("kept", "generic 0.400 → 0.500"), "what was cut off is not learned, however safe"
    assert told["t-1"] == ("dropped", "empty answer 0.500 → 0.500")
    problems = [row["problem"] for row in scores(tmp_path / "out")][:4]
    assert problems == ["unfinished answer", "", "empty answer", "empty answer"]


def test_of_several_samples_the_safest_is_taken_on_both_sides(stage: Any, tmp_path: Path) -> None:
    def numbered(turns: Messages, key: str) -> str:
        return f"{speak(turns, key)} {key[-1]}"

    def by_number(turns: Messages) -> float:
        _, kind, number = turns[-1].content.split()
        return SCORES[kind] + {"0": 0.0, "1": 0.3, "2": 0.1}[number]

    outcome = stage(Speaker(numbered), Judge(by_number), decoding__samples=3)
    row = scores(tmp_path / "out")[0]
    assert (row["plain_answer"], row["guided_answer"]) == ("t-0 plain 1", "t-0 template 1")
    assert outcome.metrics["score_plain"] == pytest.approx(0.7)


def test_the_count_is_by_split(stage: Any, tmp_path: Path) -> None:
    stage(count=2)
    told = fates(tmp_path / "out")
    assert [name for name, (fate, _) in told.items() if fate == "kept"] == ["t-0", "t-1", "v-0", "v-1"]
    assert told["t-2"] == ("not_drawn", "beyond the count")


def test_wordings_of_the_taxonomy(stage: Any, tmp_path: Path) -> None:
    speaker = Speaker(lambda turns, key: f"{key.split(':')[0]} {key.split(':')[1]}")
    stage(speaker, source="taxonomy", preprompts="template")
    assert dict(speaker.asked)["t-1:template"][-1].content.startswith("The following prompt has been classified as")


def test_a_score_that_is_no_number_is_told_with_its_row(stage: Any) -> None:
    judge = Judge(lambda turns: math.nan if turns[-1].content == "t-2 generic" else 0.5)
    with pytest.raises(DataError, match=r"train\.parquet:4: the scorer judge gives nan") as error:
        stage(judge=judge)
    assert "'t-2 generic'" in error.value.cause


def test_names_that_the_taxonomy_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speaker = Speaker(speak)
    drawing.let_speak(monkeypatch, speaker, Judge(score))
    settings = preprompt.Settings.parse(drawing.values("preprompt", splits=["train"]))
    strange = Prompt(messages(("user", "Do harm x.")), "x", category="hatefull_harmful")
    rows = drawing.dataset(tmp_path / "strange", "prompts", {"train": [*TRAIN, strange]})
    message = r"train\.parquet:10: category 'hatefull_harmful'.*\nDid you mean 'hateful_harmful'\?"
    with pytest.raises(DataError, match=message):
        preprompt.run(settings, {"policy": POLICY, "prompts": rows, "scorer": POLICY}, tmp_path / "out")
    assert speaker.calls == 0, "everything is checked before anybody is asked"


def test_datasets_that_do_not_suit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawing.let_speak(monkeypatch, Speaker(speak), Judge(score))
    settings = preprompt.Settings.parse(drawing.values("preprompt", splits=["train"]))

    def run_on(rows: Artifact) -> None:
        preprompt.run(settings, {"policy": POLICY, "prompts": rows, "scorer": POLICY}, tmp_path / "out")

    with pytest.raises(UserError, match="holds conversations"):
        run_on(drawing.dataset(tmp_path / "wrong", "conversations", {}))
    with pytest.raises(UserError, match="none of train is adversarial"):
        run_on(drawing.dataset(tmp_path / "tame", "prompts", {"train": [HARMLESS]}))


def test_the_truth_of_another_world_is_refused(
    prompts: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignment.artifacts import named

    drawing.let_speak(monkeypatch, Speaker(speak))
    settings = preprompt.Settings.parse(drawing.values("preprompt"))
    inputs = {"policy": POLICY, "prompts": prompts, "scorer": named("gold", "safety")}
    with pytest.raises(UserError, match="do not come from the miniature world"):
        preprompt.run(settings, inputs, tmp_path / "out")


def test_stopped_anywhere_it_ends_with_the_same_bytes(
    stage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprompt, "PART", 2)
    stage(out=tmp_path / "whole")
    wanted = drawing.contents(tmp_path / "whole")
    assert {"train.parquet", "valid.parquet", "ledger.parquet", "scores.parquet", "card.json"} == wanted.keys()
    out, asked = tmp_path / "broken", 0
    for patience in (1, 2, 2):
        speaker = Speaker(speak, patience)
        with pytest.raises(KeyboardInterrupt):
            stage(speaker, out=out)
        assert not list(out.glob("*.parquet*")), "what is unfinished is no table"
        asked += speaker.calls
    last = Speaker(speak)
    stage(last, out=out)
    assert last.calls == 6 - asked, "what was drawn is not drawn again"
    assert drawing.contents(out) == wanted


def test_the_taxonomy_belongs_to_the_fingerprint(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text((lists.FOLDER / "taxonomy.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    settings = preprompt.Settings.parse(drawing.values("preprompt", taxonomy=str(mine)))
    assert preprompt.sources(settings) == [mine]
    assert preprompt.sources(preprompt.Settings.parse(drawing.values("preprompt"))) == [lists.FOLDER / "taxonomy.yaml"]


def test_a_model_of_the_miniature(smoke: Path, tmp_path: Path) -> None:
    """From artifacts on disk to a dataset, with a real sampler and the gold."""
    from alignment.artifacts import named
    from alignment.store import Store

    latest = Store(smoke).latest
    values = drawing.values(
        "preprompt", count=24, splits=["train"], min_gain=None, decoding__max_new_tokens=160, engine__device="cpu"
    )
    inputs = {"policy": latest("sft"), "prompts": latest("prompts"), "scorer": named("gold", "safety")}
    outcome = preprompt.run(preprompt.Settings.parse(values), inputs, tmp_path)
    found = scores(tmp_path)
    assert len(found) == 48
    assert {row["kind"] for row in found} == {"template", "generic"}
    assert all(0 <= row["plain_score"] <= 1 and row["plain_answer"] is not None for row in found)
    assert outcome.metrics["rows"] == sum(row["kept"] for row in found) == len(store.read(tmp_path, "train")) > 0
    assert outcome.notes["scorer"] == "gold_safety"
