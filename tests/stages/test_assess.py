"""One model on one suite, and models beside each other on several: what is made, kept, refused and shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import drawing
import pyarrow.parquet as pq
import pytest
import yaml

from alignment import run
from alignment.artifacts import Artifact
from alignment.chat.types import Messages, Prompt, messages
from alignment.errors import UserError
from alignment.evals.suites import kept, subject, suite
from alignment.reporting import samples
from alignment.settings import references
from alignment.stages import assess, evaluate

SUITE = {
    "kind": "checkable",
    "prompts": "run:p",
    "split": "test",
    "tags": None,
    "count": None,
    "before": None,
    "check": "exact",
    "decoding": {"samples": 2, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8, "seed": 0},
}
COUNT = 600
Assess = Callable[..., Path]


def right(turns: Messages, key: str) -> str:
    """Every third prompt is answered rightly, and of the others the second sample."""
    number = int(turns[-1].content.split()[-1])
    return f"n{number}" if number % 3 == 0 or key.endswith(":1") else "wrong"


@pytest.fixture
def assessed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Assess:
    """Examine whoever answers by a function; returns the artifact's folder."""
    rows = [
        Prompt(messages(("user", f"Say {number}")), f"p{number}", reference=f"n{number}") for number in range(COUNT)
    ]
    data = drawing.dataset(tmp_path / "data", "prompts", {"test": rows})

    def examine(name: str, speaker: drawing.Speaker, **changes: Any) -> Path:
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        monkeypatch.setattr(subject.Subject, "respondent", speaker)
        values = drawing.values("assess", model="run:m", suite=SUITE | changes)
        model = replace(drawing.POLICY, path=tmp_path, step=name)
        assess.run(assess.Settings.parse(values), {"model": model, "suite.prompts": data}, out)
        return out

    return examine


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / kept.RESULTS).read_text())


def test_planted_answers_have_their_known_scores(assessed: Assess) -> None:
    found = told(assessed("m", drawing.Speaker(right)))["measures"]
    assert found["correct"]["estimate"] == pytest.approx(1 / 3 + 2 / 3 / 2)
    assert found["correct"]["examples"] == COUNT
    table = pq.read_table(assessed("m", drawing.Speaker(right)) / kept.EXAMPLES).to_pylist()
    assert [row["correct"] for row in table[:4]] == [1.0, 0.5, 0.5, 1.0]
    assert json.loads(table[1]["shown"])["answers"] == ["wrong", "n1"]


def test_one_that_was_killed_goes_on_where_it_was_and_ends_alike(assessed: Assess, tmp_path: Path) -> None:
    whole = assessed("whole", drawing.Speaker(right))
    with pytest.raises(KeyboardInterrupt):
        assessed("killed", drawing.Speaker(right, patience=1))
    again = drawing.Speaker(right)
    killed = assessed("killed", again)
    assert len(again.asked) == COUNT - subject.PART
    for name in (kept.EXAMPLES, kept.RESULTS):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_a_model_that_has_seen_a_prompt_is_refused_before_it_is_asked(assessed: Assess, tmp_path: Path) -> None:
    from alignment.chat.types import prompt_key
    from alignment.data import seen

    seen.write(tmp_path, [prompt_key(messages(("user", "say  7")))], [])
    speaker = drawing.Speaker(right)
    with pytest.raises(UserError, match="has been trained on 1 of the 600 prompts"):
        assessed("m", speaker)
    assert not speaker.asked


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "tests"}, "suite.kind=tests: there is no such kind of suite"),
        ({"bla": 1}, "bla: there is no such key"),
        ({"split": "valid"}, "valid"),
        ({"count": 0}, "count"),
    ],
)
def test_a_suite_that_cannot_be_is_refused(assessed: Assess, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        assessed("m", drawing.Speaker(right), **changes)


def test_a_suite_keeps_its_settings_through_the_record() -> None:
    values = drawing.values("assess", model="run:m", suite=SUITE)
    settings = assess.Settings.parse(values)
    assert assess.Settings.parse(settings.model_dump(mode="json")) == settings
    assert settings.model_dump(mode="json")["suite"] == SUITE


@pytest.mark.parametrize("name", run.options("suite"))
def test_every_suite_that_comes_with_the_program_can_be_read(name: str) -> None:
    settings = assess.Settings.parse(run.compose("assess", {"suite": name})).suite
    assert references(settings) or settings.kind == "lm_eval", "a suite reads something"
    assert (suite.load(settings.kind).__doc__ or "").strip(), "the kind says what it is"


def test_what_a_suite_reads_from_files_is_part_of_what_it_was_made_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Phrases that were edited in between: the gate compares only what was made alike."""
    rows = [Prompt(messages(("user", f"Say {number}")), f"p{number}", ("safe",)) for number in range(3)]
    data = drawing.dataset(tmp_path / "data", "prompts", {"test": rows})
    monkeypatch.setattr(subject.Subject, "respondent", drawing.Speaker(lambda turns, key: "I will not."))
    phrases = tmp_path / "mine.yaml"
    said = drawing.CONF / "suite" / "xstest.yaml"
    values = yaml.safe_load(said.read_text()) | {"prompts": "run:p", "phrases": str(phrases), "safe": ["safe"]}
    settings = assess.Settings.parse(drawing.values("assess", model="run:m", suite=values))
    found = []
    for name, refusal in (("one", "i will not"), ("two", "i will not"), ("three", "never")):
        phrases.write_text(f"opening: 20\nphrases: [{refusal}]\n")
        (tmp_path / name).mkdir()
        model = replace(drawing.POLICY, path=tmp_path, step=name)
        assess.run(settings, {"model": model, "suite.prompts": data}, tmp_path / name)
        found.append(told(tmp_path / name)["made_of"])
    assert found[0] == found[1] != found[2]


# ── beside each other ────────────────────────────────────────────────────────────────────────────


def evaluated(tmp_path: Path, folders: list[Path], names: list[str] | None = None) -> dict[str, Any]:
    """``stage=evaluate`` of suites alone, from what was assessed."""
    values = drawing.values(
        "evaluate",
        models=["run:m"] * len(folders),
        names=names,
        suites=["./checks.yaml"],
        prompts=None,
        conversations=None,
        reference=None,
    )
    inputs: dict[str, Artifact] = {}
    for place, folder in enumerate(folders):
        inputs[f"models.{place}"] = replace(
            drawing.POLICY, path=tmp_path, step=folder.name, fingerprint=f"{place}" * 64
        )
        inputs[f"suites.checks.{place}"] = Artifact(folder, "evaluation", "assess", f"checks-{place}", "0" * 64)
    out = tmp_path / "evaluated"
    out.mkdir(exist_ok=True)
    outcome = evaluate.run(evaluate.Settings.parse(values), inputs, out)
    assert outcome.kind == "evaluation"
    return told(out) | {"metrics": outcome.metrics}


def test_two_models_are_compared_example_by_example(assessed: Assess, tmp_path: Path) -> None:
    first = assessed("first", drawing.Speaker(right))
    second = assessed("second", drawing.Speaker(lambda turns, key: f"n{turns[-1].content.split()[-1]}"))
    found = evaluated(tmp_path, [first, second])
    assert found["models"]["second"]["checks/correct"]["estimate"] == 1.0
    assert found["metrics"]["second/checks/correct"] == 1.0
    less = found["differences"]["second"]
    assert less["from"] == "first"
    assert less["measures"]["checks/correct"]["estimate"] == pytest.approx(1 / 3)
    assert (
        found["suites"]["checks"]["differences"]["second"]["measures"]["correct"] == less["measures"]["checks/correct"]
    )
    table = pq.read_table(tmp_path / "evaluated" / evaluate.EXAMPLES)
    assert table.num_rows == 2 * COUNT
    assert set(table["model"].to_pylist()) == {"first", "second"}


def test_models_of_one_name_are_the_seeds_of_an_arm(assessed: Assess, tmp_path: Path) -> None:
    one = assessed("one", drawing.Speaker(right))
    two = assessed("two", drawing.Speaker(lambda turns, key: f"n{turns[-1].content.split()[-1]}"))
    three = assessed("three", drawing.Speaker(lambda turns, key: "wrong"))
    found = evaluated(tmp_path, [one, two, three], ["good", "good", "bad"])
    assert found["arms"]["good"]["checks/correct"]["estimate"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["differences"]["bad"]["measures"]["checks/correct"]["estimate"] == pytest.approx(-5 / 6)


def test_every_suite_of_every_model_is_asked_for_once() -> None:
    values = drawing.values("evaluate", models=["mini:sft", "latest:rl"], suites=["miniature", "./mine.yaml"])
    asked = evaluate.asks(evaluate.Settings.parse(values))
    suites = [key for key in asked if key.startswith("suites.")]
    assert suites == ["suites.miniature.0", "suites.miniature.1", "suites.mine.0", "suites.mine.1"]
    stage, _, said = asked["suites.mine.1"]
    assert (stage, said["model"], said["suite"]) == ("assess", "latest:rl", "./mine.yaml")


def test_a_suite_that_is_named_twice_is_refused() -> None:
    values = drawing.values("evaluate", models=["mini:sft"], suites=["mine", "./mine.yaml"])
    with pytest.raises(UserError, match="suites: mine is there twice"):
        evaluate.asks(evaluate.Settings.parse(values))


def test_nothing_to_measure_is_refused() -> None:
    values = drawing.values("evaluate", models=["mini:sft"], prompts=None, conversations=None, reference=None)
    with pytest.raises(UserError, match=r"prompts=null suites=\[\]: there is nothing to measure"):
        evaluate.asks(evaluate.Settings.parse(values))


def test_an_evaluation_of_suites_alone_has_no_samples_to_show(
    assessed: Assess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated(tmp_path, [assessed("one", drawing.Speaker(right))])
    capsys.readouterr()
    samples.show([Artifact(tmp_path / "evaluated", "evaluation", "evaluate", "suites", "0" * 64)])
    assert not capsys.readouterr().out
