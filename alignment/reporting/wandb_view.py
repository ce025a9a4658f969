"""What a W&B workspace of a pipeline shows: a definition made from the metrics on disk, and the workspace made from it.

The definition is a plain mapping that is kept as JSON, for W&B makes a workspace online only::

    {"project", "pipeline", "name",
     "sections": [{"name", "panels": [{"kind": "line", "y": [metrics]}
                                      | {"kind": "scatter", "x": metric, "y": metric}
                                      | {"kind": "media", "keys": [names]}]}]}

Lines are over ``step``; a scatter has a point for every run, where the run ended.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment.artifacts import Artifact
from alignment.errors import UserError
from alignment.training.tracking import METRICS, read_metrics

VIEW = "wandb_workspace.json"
KL, GOALS = "held_out/kl", "held_out/"

View = Mapping[str, Any]


def definition(project: str, pipeline: str, artifacts: Sequence[Artifact], media: Sequence[str]) -> dict[str, Any]:
    """The report's own media first, then the front, then a section for every stage that left metrics."""
    by_stage: dict[str, dict[str, None]] = {}
    for artifact in artifacts:
        names = by_stage.setdefault(artifact.stage, {})
        for row in read_metrics(artifact.path / METRICS):
            names.update(dict.fromkeys(name for name in row if name != "step"))
    sections: list[dict[str, Any]] = [{"name": "comparison", "panels": [{"kind": "media", "keys": list(media)}]}]
    goals = sorted({name for names in by_stage.values() for name in names if name.startswith(GOALS)} - {KL})
    if goals and any(KL in names for names in by_stage.values()):
        scatters = [{"kind": "scatter", "x": KL, "y": goal} for goal in goals]
        sections.append({"name": "KL and reward where each run ended", "panels": scatters})
    for stage, names in by_stage.items():
        if names:
            lines = [{"kind": "line", "y": [name]} for name in names]
            sections.append({"name": f"stage {stage}", "panels": lines})
    return {"project": project, "pipeline": pipeline, "name": f"pipeline {pipeline}", "sections": sections}


def create(path: Path, entity: str | None = None) -> str:
    """Make the workspace that a definition on disk describes, for a user or team; its address.

    Raises :class:`UserError` without the package wandb-workspaces, without a login, or where the server refuses.
    """
    view = _read(path)
    try:
        import wandb_workspaces.workspaces as workspaces
    except ModuleNotFoundError:
        raise UserError(
            f"{path}: a workspace is made by the package wandb-workspaces, which is not installed",
            remedy="`pip install wandb-workspaces`, or add the panels by hand: the file says which.",
        ) from None
    import wandb

    if not wandb.login(prompt=False, verify=False):
        raise UserError(
            f"{path}: W&B makes workspaces online, and nobody is logged in",
            remedy="`wandb login`, then `wandb sync` for the offline runs, then this again.",
        )
    owner = entity or wandb.Api().default_entity
    if not owner:
        raise UserError(f"{path}: whose workspace is it?", remedy="Name a W&B user or team.")
    try:
        saved = workspaces.Workspace(**_workspace(view, owner)).save()
    except (wandb.errors.Error, ValueError, OSError) as error:
        raise UserError(f"{path}: W&B refuses the workspace", cause=str(error).splitlines()[0]) from None
    return str(saved.url)


def _read(path: Path) -> View:
    try:
        view = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(view["sections"], list)
    except (OSError, json.JSONDecodeError, KeyError, TypeError, AssertionError) as error:
        raise UserError(
            f"{path}: holds no definition of a workspace",
            cause=f"{type(error).__name__}: {error}",
            remedy=f"stage=report writes one, {VIEW}, where its tracker is on.",
        ) from None
    return view


def _workspace(view: View, entity: str) -> dict[str, Any]:
    """The arguments of wandb_workspaces' ``Workspace``: runs of the pipeline's group, grouped by stage."""
    import wandb_workspaces.workspaces as workspaces

    return {
        "entity": entity,
        "project": view["project"],
        "name": view["name"],
        "sections": [
            workspaces.Section(name=section["name"], panels=[_panel(one) for one in section["panels"]], is_open=True)
            for section in view["sections"]
        ],
        "settings": workspaces.WorkspaceSettings(x_axis="step"),
        "runset_settings": workspaces.RunsetSettings(
            filters=[workspaces.Metric("Group") == view["pipeline"]],
            groupby=[workspaces.Metric("JobType")],
        ),
    }


def _panel(one: Mapping[str, Any]) -> Any:
    import wandb_workspaces.reports.v2 as panels

    if one["kind"] == "line":
        return panels.LinePlot(title=", ".join(one["y"]), x="step", y=list(one["y"]))
    if one["kind"] == "scatter":
        x, y = panels.SummaryMetric(one["x"]), panels.SummaryMetric(one["y"])
        return panels.ScatterPlot(title=f"{one['y']} over {one['x']}", x=x, y=y)
    assert one["kind"] == "media", one["kind"]
    return panels.MediaBrowser(media_keys=list(one["keys"]))
