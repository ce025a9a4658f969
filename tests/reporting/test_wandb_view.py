"""The workspace of a pipeline: its definition, and what the package of W&B makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Artifact
from alignment.errors import UserError
from alignment.reporting import wandb_view


@pytest.fixture
def trained(tmp_path: Path) -> list[Artifact]:
    rows = {
        "sft": [{"step": 1, "loss": 1.0}, {"step": 2, "held_out_loss": 0.5}],
        "rl": [
            {"step": 1, "reward": 0.0},
            {"step": 1, "held_out/kl": 0.0, "held_out/reward": 1.0, "held_out/gold": 1.0},
        ],
        "merge": [],
    }
    made = []
    for stage, told in rows.items():
        folder = tmp_path / stage
        folder.mkdir()
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
        made.append(Artifact(folder, "policy", stage, stage, "f" * 64))
    return made


def test_every_metric_has_a_panel_and_no_panel_is_empty(trained: list[Artifact]) -> None:
    view = wandb_view.definition("alignment", "mini", trained, ["comparison", "front"])
    assert {section["name"]: section["panels"] for section in view["sections"]} == {
        "comparison": [{"kind": "media", "keys": ["comparison", "front"]}],
        "KL and reward where each run ended": [
            {"kind": "scatter", "x": "held_out/kl", "y": "held_out/gold"},
            {"kind": "scatter", "x": "held_out/kl", "y": "held_out/reward"},
        ],
        "stage sft": [{"kind": "line", "y": ["loss"]}, {"kind": "line", "y": ["held_out_loss"]}],
        "stage rl": [
            {"kind": "line", "y": [name]} for name in ("reward", "held_out/kl", "held_out/reward", "held_out/gold")
        ],
    }


def test_without_reinforcement_learning_there_is_no_front(trained: list[Artifact]) -> None:
    view = wandb_view.definition("alignment", "mini", trained[:1], ["comparison"])
    assert [section["name"] for section in view["sections"]] == ["comparison", "stage sft"]


def test_what_is_no_definition_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "view.json"
    for content in (None, "{", "[]", '{"sections": 3}'):
        if content is not None:
            path.write_text(content)
        with pytest.raises(UserError, match="holds no definition"):
            wandb_view.create(path)


def test_without_the_package_the_user_is_told_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "view.json"
    path.write_text('{"sections": []}')
    monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces.workspaces", None)
    monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces", None)
    with pytest.raises(UserError, match="wandb-workspaces") as refused:
        wandb_view.create(path)
    assert "pip install wandb-workspaces" in refused.value.remedy


@pytest.fixture
def package() -> Any:
    return pytest.importorskip("wandb_workspaces.workspaces.internal", reason="wandb-workspaces is not installed")


def written(tmp_path: Path, trained: list[Artifact]) -> Path:
    path = tmp_path / "view.json"
    path.write_text(json.dumps(wandb_view.definition("alignment", "mini", trained, ["comparison"])))
    return path


def test_nobody_logged_in_is_told_so(
    package: Any, tmp_path: Path, trained: list[Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wandb.login", lambda **_: False)
    with pytest.raises(UserError, match="nobody is logged in"):
        wandb_view.create(written(tmp_path, trained), "me")


def test_the_package_makes_the_workspace(
    package: Any, tmp_path: Path, trained: list[Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its real classes; only the call to the server is not made."""
    sent: list[Any] = []

    def receive(view: Any) -> dict[str, Any]:
        sent.append(view)
        return {"upsertView": {"view": {"name": "nw-abc-v", "id": "1"}}}

    monkeypatch.setattr("wandb.login", lambda **_: True)
    monkeypatch.setattr(package, "upsert_view2", receive)
    monkeypatch.setattr("wandb_workspaces.workspaces.interface.get_app_url", lambda _: "https://wandb.ai")
    monkeypatch.setattr("wandb.Api", lambda: None)
    address = wandb_view.create(written(tmp_path, trained), "me")
    assert address == "https://wandb.ai/me/alignment?nw=abc"
    [view] = sent
    assert (view.entity, view.project, view.display_name) == ("me", "alignment", "pipeline mini")
    section = view.spec.section
    assert [one.name for one in section.panel_bank_config.sections][:2] == [
        "comparison",
        "KL and reward where each run ended",
    ]
    panels = [panel for one in section.panel_bank_config.sections for panel in one.panels]
    kinds = [panel.view_type for panel in panels]
    assert [kinds.count(kind) for kind in ("Media Browser", "Scatter Plot", "Run History Line Plot")] == [1, 2, 6]
    [runs] = section.run_sets
    assert [key.name for key in runs.grouping] == ["jobType"]
    [only] = runs.filters["filters"]
    assert (only["key"], only["op"], only["value"]) == ({"section": "run", "name": "group"}, "=", "mini")
