"""How a step ends: an artifact that is finished has nothing in it of how it was made, and waits for nobody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignment import artifacts, files, pipeline, run
from alignment.artifacts import Artifact, Outcome
from alignment.plans.planned import Planned
from alignment.plans.step import Step
from alignment.store import Store
from alignment.training import incidents, tracking


def litter(folder: Path) -> None:
    """What a training stage has beside its result."""
    for name in artifacts.SCAFFOLDS:
        if Path(name).suffix:
            (folder / name).write_text("{}")
        else:
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "zero_pp_rank_0.pt").write_bytes(b"a pickle")


@pytest.fixture
def maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pipeline.Maker:
    """It makes, with stage=data, a file and what training leaves."""

    def work(settings: Any, inputs: Any, out: Path) -> Outcome:
        (out / "rows.jsonl").write_text("{}")
        litter(out)
        (out / "energy" / "zero_pp_rank_0.pt").unlink()
        return Outcome("dataset", {"rows": 1.0}, "rows")

    monkeypatch.setattr(pipeline.load_stage("data"), "run", work)
    return pipeline.Maker(Store(tmp_path), run.compose, {})


@pytest.fixture
def planned(maker: pipeline.Maker) -> Planned:
    return maker.plan("solo", Step("chats", "data", {}), {})


def test_what_incidents_are_noted_in_is_scaffolding() -> None:
    assert incidents.FILE in artifacts.SCAFFOLDS


def test_the_scaffolds_go_before_the_run_is_told(
    maker: pipeline.Maker, planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill while W&B is told leaves an artifact without checkpoints."""
    found = []

    def conclude(artifact: Artifact) -> None:
        found.append((artifacts.load(artifact.path).fingerprint, artifacts.scaffolds(artifact.path)))
        raise KeyboardInterrupt

    monkeypatch.setattr(tracking, "conclude", conclude)
    with pytest.raises(KeyboardInterrupt):
        maker.make(planned)
    assert found == [(planned.fingerprint, [])]


def test_who_uses_an_artifact_removes_what_a_kill_has_left(maker: pipeline.Maker, planned: Planned) -> None:
    made = maker.make(planned)
    assert artifacts.scaffolds(made.path) == []
    litter(made.path)
    again = maker.make(planned)
    assert again.created == made.created
    assert artifacts.scaffolds(made.path) == []
    assert again.verify() == []


def test_who_makes_it_anew_keeps_his_checkpoints(
    maker: pipeline.Maker, planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record goes, and checkpoints come, between the look at an artifact and the lock."""
    made = maker.make(planned)
    litter(made.path)
    exclusive = files.exclusive

    def late(folder: Path, *how: Any) -> Any:
        (folder / artifacts.RECORD).unlink()
        return exclusive(folder, *how)

    monkeypatch.setattr(files, "exclusive", late)
    maker.make(planned)
    assert len(artifacts.scaffolds(made.path)) == len(artifacts.SCAFFOLDS)


def test_what_cannot_be_removed_is_told_and_the_artifact_used(
    maker: pipeline.Maker, planned: Planned, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path / "checkpoints"))

    monkeypatch.setattr(artifacts, "clear", refuse)
    made = maker.make(planned)
    assert maker.make(planned).created == made.created
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("is whole; what it was made with cannot be removed: checkpoints, parts, energy, incidents") == 2
