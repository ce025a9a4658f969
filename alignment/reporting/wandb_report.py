"""What ``stage=report`` tells W&B: the comparison, the figures, the page, and how everything came from everything.

W&B draws lineage from runs: what a run read, what it made. Stages that train have runs of their own; every other
artifact gets a small one here, in the group of its pipeline, under the stage that made it. That of an evaluation
has a table for every suite: each model's measures with their intervals.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from alignment import console, files
from alignment.artifacts import NO_FOLDER, Artifact, Kind, Parent
from alignment.reporting import wandb_view
from alignment.training import tracking
from alignment.training.tracking import TrackerSettings
from alignment.training.wandb_runs import Run

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

TABLE, PAGE = "comparison", "report"
Tables = Mapping[str, Sequence[Mapping[str, Any]]]
"""Rows by the name of a table."""


def publish(
    settings: TrackerSettings,
    *,
    out: Path,
    config: Mapping[str, Any],
    inputs: Mapping[str, Artifact],
    artifacts: Sequence[Artifact],
    rows: Sequence[Mapping[str, Any]],
    figures: Mapping[str, Figure],
    tables: Mapping[str, Tables],
    page: Path,
) -> None:
    """Tell W&B; nothing where the tracker is off.

    ``artifacts`` is the whole lineage, ``inputs`` what the report itself was given; ``rows`` are the models that are
    compared, with whatever columns they have; ``tables`` are those that the run of an artifact shows besides its
    numbers, by its fingerprint and their names; ``page`` is the HTML file. Writes the definition of a workspace beside
    it. The run stays open until :func:`tracking.conclude` gives it the report as its artifact.
    """
    if settings.wandb == "off" or not console.is_main_process():
        return
    _forget(out)
    known = {artifact.fingerprint: artifact for artifact in artifacts}
    shown = dict.fromkeys(name for some in tables.values() for name in some)
    view = wandb_view.definition(settings.project, out.parent.name, artifacts, [TABLE, *figures, *shown, PAGE])
    files.write_json(out / wandb_view.VIEW, view)
    for artifact in artifacts:
        if not artifact.stage or _has_own_run(artifact):
            continue
        if not _tell(settings, artifact, known, out, tables.get(artifact.fingerprint, {})):
            # W&B takes nothing now, and would have the next run wait for this one.
            return
    run = Run(settings, folder=out, place=out, stage="report", config=config)
    for artifact in inputs.values():
        run.take(artifact)
    _show(run, rows, figures, page)
    run.give_file(f"{out.name}.workspace", "workspace", out / wandb_view.VIEW)
    tracking.leave_open(out, run)


def _show(run: Run, rows: Sequence[Mapping[str, Any]], figures: Mapping[str, Figure], page: Path) -> None:
    import wandb

    if rows:
        run.table(TABLE, rows)
    for name, figure in figures.items():
        run.log({name: wandb.Plotly(figure)})
    run.log({PAGE: wandb.Html(str(page), inject=False)})
    run.give_file(f"{page.stem}.page", "page", page)


def _tell(
    settings: TrackerSettings, artifact: Artifact, known: Mapping[str, Artifact], out: Path, tables: Tables
) -> bool:
    """A run that read the artifact's parents and made it, with its tables. Returns whether it has come to its end."""
    run = Run(settings, folder=out, place=artifact.path, stage=artifact.stage, config=artifact.settings, quiet=True)
    for parent in artifact.parents.values():
        run.take(known.get(parent.fingerprint) or _stand_in(parent))
    run.summarise(artifact.metrics)
    for name, rows in tables.items():
        run.table(name, rows)
    run.give(artifact)
    return tracking.part(out, tracking.PATIENCE, run.finish)


def _has_own_run(artifact: Artifact) -> bool:
    """Whether its stage told W&B itself, by the settings in its record."""
    return artifact.settings.get("tracker", {}).get("wandb", "off") != "off"


def _stand_in(parent: Parent) -> Artifact:
    """A parent that is no directory of ours, as far as its child's record tells."""
    scheme = parent.reference.partition(":")[0]
    kind: Kind = scheme if scheme in NO_FOLDER and scheme in get_args(Kind) else "foreign"  # type: ignore[assignment]
    return Artifact(Path(parent.path), kind, "", parent.reference, parent.fingerprint)


def _forget(out: Path) -> None:
    """Remove the offline runs of a report that was interrupted: they are all told again."""
    for folder in (out / "wandb").glob("offline-run-*"):
        shutil.rmtree(folder)
