"""Gather the lineage of evaluations, fronts and models into one HTML file that people look at: report.html."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alignment import console, files
from alignment.artifacts import Artifact, Outcome
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, reference, text
from alignment.training.tracking import TrackerSettings

if TYPE_CHECKING:
    from alignment.reporting.page.gather import Lineage
    from alignment.reporting.page.models import Measured

ALGORITHM_VERSION = 2
REPORT = "report.html"


class Settings(StrictSettings):
    """``stage=report``."""

    artifacts: list[str] = reference(
        "evaluations, fronts, measurements, models …, [a,b,…]: they and all they descend from are shown", min_length=1
    )
    title: str | None = text("of the page; null takes the pipeline's name")
    samples: int = identity("prompts at most whose answers are shown side by side", ge=0)
    tracker: TrackerSettings = execution("where comparison, figures, page and lineage go beside")


def run(settings: Settings, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """Write the page, print the ranking, and say where the page is."""
    from alignment.reporting.page import models, report
    from alignment.reporting.page.gather import gather

    asked = [inputs[f"artifacts.{place}"] for place in range(len(settings.artifacts))]
    lineage = gather(asked)
    page = report.page(lineage, settings.title or _title(asked), settings.samples)
    files.write_atomic(out / REPORT, page)
    rows = models.measured(lineage)
    if rows or not lineage.of_stage("perplexity"):
        models.show(rows, lineage)
    _publish(settings, inputs, out, lineage, rows)
    console.say(f"look at {out / REPORT}", style="")
    metrics = {"models": float(len(rows)), "artifacts": float(len(lineage.nodes)), "gone": float(len(lineage.gone))}
    best = next((row for row in rows if "gold" in row.measures), None)
    if best is None:
        return Outcome("evaluation", metrics, "models")
    return Outcome(
        "evaluation", {"gold": best.measures["gold"]["estimate"], **metrics}, "gold", notes={"best": best.name}
    )


def _publish(
    settings: Settings, inputs: dict[str, Artifact], out: Path, lineage: Lineage, rows: Sequence[Measured]
) -> None:
    """Tell W&B what the page tells."""
    from alignment.reporting import fronts, suites, wandb_report
    from alignment.reporting.page.models import RESULTS

    told = [
        {"model": row.name, "stage": row.stage, **{name: one["estimate"] for name, one in row.measures.items()}}
        for row in rows
    ]
    runs = {lineage.name(run.fingerprint): [run.rows("front.jsonl")] for run in lineage.of_stage("rl")}
    runs = {name: seeds for name, seeds in runs.items() if seeds[0]}
    wandb_report.publish(
        settings.tracker,
        out=out,
        config=settings.model_dump(mode="json"),
        inputs=inputs,
        artifacts=[node.artifact for node in lineage.nodes.values() if node.artifact is not None],
        rows=told,
        figures={"fronts": fronts.fronts(runs)} if runs else {},
        tables={node.fingerprint: suites.tables(node.json(RESULTS) or {}) for node in lineage.of_stage("evaluate")},
        page=out / REPORT,
    )


def _title(asked: list[Artifact]) -> str:
    """By the pipeline in whose folder the first artifact of ours lies."""
    ours = next((one for one in asked if one.stage), None)
    return (
        f"{ours.path.resolve().parent.name}: models, rewards, lineage"
        if ours is not None
        else "Models, rewards, lineage"
    )
