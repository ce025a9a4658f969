"""What fuzzing has found once, each as small as it was found: refused in words, and not with a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignment import artifacts, run
from alignment.errors import UserError
from alignment.merging import ancestors
from alignment.settings import Settings, identity
from alignment.store import parse_reference

COMMAND_LINES = {
    "more digits than Python reads": ["stage=sft", "seed=" + "9" * 5000],
    "more brackets than anything reads": ["stage=sft", "seed=" + "[" * 2000],
    "a place that is no number": ["stage=evaluate", "models=[a,b]", "models.x=c"],
    "a place that is not there": ["stage=evaluate", "models.7=c"],
    "endless runs": ["stage=sft", "-m", "seed=range(0,1000000000000)"],
    "many runs": ["stage=sft", "-m", "seed=range(0,100)", "optimisation.batch=range(1,100)"],
    "bytes that are no text": ["stage=sft", "name=\udcff"],
    "the home of nobody": ["stage=data", "recipe=~nobody-of-that-name/x.yaml"],
    "an endless number": ["stage=sft", "optimisation.learning_rate=inf"],
}


@pytest.mark.parametrize("case", COMMAND_LINES)
def test_command_lines_are_refused_in_words(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.door([*COMMAND_LINES[case], f"store={tmp_path}/runs", "dry_run=true"]) == 2
    assert capsys.readouterr().err.strip()
    assert not list(tmp_path.iterdir())


def test_numbers_in_settings_are_finite() -> None:
    class Numbers(Settings):
        rate: float = identity("x", ge=0)

    for value in (float("inf"), float("nan")):
        with pytest.raises(UserError, match="rate="):
            Numbers.parse({"rate": value})


def test_a_reference_has_no_end_of_text_in_it() -> None:
    with pytest.raises(UserError, match="not a reference"):
        parse_reference("run:\0")


def test_a_hub_repository_that_can_be_none_is_told() -> None:
    from alignment import pipeline
    from alignment.store import Store

    for named in ("hf:../..", "hf:a b/c", "hf:/"):
        with pytest.raises(UserError, match="cannot be fetched"):
            pipeline.Maker(Store(Path("nowhere")), lambda *_: {}, {}).resolve(named, {})


@pytest.mark.parametrize(
    "change",
    [{"metrics": {"x": "much"}}, {"metrics": {"x": 1e999}}, {"parents": {"a": {}}}, {"files": []}, {"seconds": None}],
)
def test_records_have_the_types_that_they_promise(tmp_path: Path, change: dict[str, object]) -> None:
    made = artifacts.finish(artifacts.Artifact(tmp_path, "policy", "sft", "sft", "f" * 64))
    path = made.path / artifacts.RECORD
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"artifact\.json"):
        artifacts.load(made.path)


def test_a_record_that_descends_from_itself_is_told(tmp_path: Path) -> None:
    own = {"model": artifacts.Parent("run:x", "f" * 64, str(tmp_path))}
    made = artifacts.finish(artifacts.Artifact(tmp_path, "policy", "sft", "sft", "f" * 64, parents=own))
    with pytest.raises(UserError, match="descends from itself"):
        ancestors.descent(made)
