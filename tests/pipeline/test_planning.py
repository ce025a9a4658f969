"""What is found out before anything runs: references that name nothing or the wrong thing, and servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignment import artifacts, pipeline, run
from alignment.artifacts import Artifact
from alignment.errors import UserError
from alignment.plans.step import Step
from alignment.scoring import remote
from alignment.store import Store


def kept(store: Path, kind: Any, step: str) -> Artifact:
    """A finished artifact with nothing in it."""
    folder = Store(store).folder("solo", step, step[0] * 64)
    folder.mkdir(parents=True)
    return artifacts.finish(Artifact(folder, kind, "stage", step, step[0] * 64))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run.door([*arguments]) == 2
    return " ".join(capsys.readouterr().err.split())


# ── references ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("stage=sft", "data=latest:nothing"), "data=latest:nothing: "),
        (("stage=evaluate", "models=[latest:one,latest:nothing]"), "models.1=latest:nothing: "),
        (("stage=rl", "reward.model=mini:nothing"), "reward.model=mini:nothing: the miniature has no such part"),
        (("stage=chat", "model=dir:/nowhere"), "model=dir:/nowhere: There is no such folder."),
        (("stage=show", "target=sft"), "target=sft: 'sft' is not a reference"),
    ],
)
def test_a_reference_that_names_nothing_is_told_with_its_key(
    arguments: tuple[str, ...], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept(tmp_path, "policy", "one")
    assert told in refused(capsys, *arguments, f"store={tmp_path}")


@pytest.mark.parametrize(
    ("stage", "key", "kind"),
    [("rl", "policy", "policy"), ("reject", "prompts", "dataset"), ("label", "pairs", "answers")],
)
@pytest.mark.parametrize("dry", ["true", "false"])
def test_what_is_of_another_kind_is_refused_before_anything_is_made(
    stage: str, key: str, kind: str, dry: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept(tmp_path, "reward", "judge")
    said = refused(capsys, f"stage={stage}", f"store={tmp_path}", f"{key}=latest:judge", f"dry_run={dry}")
    assert f"{key}=latest:judge: " in said
    assert f"a {kind} is needed here, and this is of kind reward" in said
    assert [path.name for path in tmp_path.glob("*/*")] == ["judge-jjjjjjjj"]


def test_of_a_list_every_reference_has_a_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept(tmp_path, "dataset", "pool")
    kept(tmp_path, "reward", "judge")
    pools = "earlier=[latest:pool,latest:judge]"
    said = refused(capsys, "stage=reject", f"store={tmp_path}", "pool=all", pools, "dry_run=true")
    assert "earlier.1=latest:judge: " in said


def test_a_step_that_is_made_already_is_looked_at(tmp_path: Path) -> None:
    maker = pipeline.Maker(Store(tmp_path), run.compose, {})
    step = Step("judge", "reward", {})
    earlier = {"judge": maker.plan("plan", step, {})}
    wrong = Step("ppo", "rl", {"policy": "step:judge"})
    maker.plan("plan", wrong, earlier)  # Nobody knows yet what it will be.
    folder = earlier["judge"].folder
    folder.mkdir(parents=True)
    artifacts.finish(Artifact(folder, "reward", "reward", "judge", earlier["judge"].fingerprint))
    with pytest.raises(UserError, match=r"policy=step:judge: .* a policy is needed"):
        maker.plan("plan", wrong, earlier)


# ── servers ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("patient", "attempts"), [(True, 8), (False, 1)])
def test_a_server_is_asked_once_for_all_steps_and_a_dry_run_does_not_wait(
    patient: bool, attempts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def attempt(self: remote.Remote, *_: Any) -> dict[str, Any]:
        asked.append((self._attempts, self._timeout))
        return {"name": "a", "fingerprint": "b" * 64, "absolute": False, "most_dialogues": 1, "most_bytes": 9}

    monkeypatch.setattr(remote.Remote, "_attempt", attempt)
    maker = pipeline.Maker(Store(tmp_path), run.compose, {}, patient=patient)
    found = [maker.resolve("remote:127.0.0.1:8400", {}) for _ in range(3)]
    assert {one.fingerprint for one in found} == {artifacts.named("remote", "", "b" * 64).fingerprint}
    assert [one for one, _ in asked] == [attempts]
    assert patient or asked[0][1] <= 10


def test_a_dry_run_says_at_once_that_nobody_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("alignment.signals.pause", lambda *_: pytest.fail("a dry run waited"))
    said = refused(capsys, "stage=rl", "reward=remote:127.0.0.1:9", f"store={tmp_path}", "dry_run=true")
    assert "reward.model=remote:127.0.0.1:9: " in said
    assert "no answer in 1 attempt" in said


# ── what is refused leaves nothing behind ────────────────────────────────────────────────────────


@pytest.mark.parametrize("wrote", [False, True])
def test_only_a_folder_with_something_in_it_stays(wrote: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(settings: Any, inputs: Any, out: Path) -> Any:
        if wrote:
            (out / "half.jsonl").write_text("{}")
        raise UserError("no")

    monkeypatch.setattr(pipeline.load_stage("data"), "run", refuse)
    maker = pipeline.Maker(Store(tmp_path), run.compose, {})
    planned = maker.plan("solo", Step("chats", "data", {}), {})
    with pytest.raises(UserError, match="no"):
        maker.make(planned)
    assert planned.folder.is_dir() is wrote


def test_a_sweep_is_checked_to_its_end_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline.Maker, "make", lambda *_, **__: pytest.fail("the first one was made"))
    said = refused(capsys, "stage=sft", "-m", "seed=0,-1", f"store={tmp_path}")
    assert "seed=-1: " in said


# ── what is composed ─────────────────────────────────────────────────────────────────────────────


def test_hydra_composes_a_stage_once_and_nobody_changes_what_others_get() -> None:
    run._composed.cache_clear()
    first = run.compose("sft", {"optimisation.steps": 7})
    first["engine"]["precision"] = "spoiled"
    second = run.compose("sft", {"optimisation.steps": 8})
    assert (first["optimisation"]["steps"], second["optimisation"]["steps"]) == (7, 8)
    assert second["engine"]["precision"] != "spoiled"
    assert run._composed.cache_info().misses == 1
    assert run.compose("sft", {"engine": "gpu"})["engine"] != second["engine"], "another choice is another composition"


def test_one_recipe_does_not_stand_for_another(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text((run.RECIPES / "miniature_text.yaml").read_text().replace("Apache-2.0", "MIT"))
    given = [run.compose("data", more)["recipe"] for more in ({"recipe": "miniature_text"}, {"recipe": str(mine)}, {})]
    assert [one["sources"][0]["licence"] for one in given[:2]] == ["Apache-2.0", "MIT"]
    assert given[2]["kind"] == "conversations", "the stage's own choice, where nobody chooses"
