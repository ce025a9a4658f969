"""Read sources by a recipe into rows, splits and a ledger of what happened to every row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignment import console
from alignment.artifacts import Artifact, Outcome
from alignment.data.recipe import Recipe, local_files
from alignment.settings import Settings as StrictSettings
from alignment.settings import identity

ALGORITHM_VERSION = 1


class Settings(StrictSettings):
    """``stage=data``. ``recipe=<name>`` takes one of data_recipes/, ``recipe=<file>.yaml`` one of your own."""

    recipe: Recipe = identity("the recipe")

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "settings") -> Settings:
        """Validate, the recipe's own rules between its keys included."""
        settings: Settings = super().parse(values, where)
        Recipe.parse(values["recipe"], "recipe")
        return settings


def sources(settings: Settings) -> list[Path]:
    """The files that the recipe reads."""
    return local_files(settings.recipe, Path.cwd())


def run(settings: Settings, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """Write a table per split, the ledger and the card."""
    from alignment.data import build

    with console.progress("data", 0, "rows") as progress:

        def seen(source: str, rows: int, expected: int | None) -> None:
            progress.total = max(expected or 0, rows)
            progress.done = 0
            progress.advance(rows, source)

        summary = build.build(settings.recipe, out, base=Path.cwd(), progress=seen)
    metrics = {"rows": float(sum(summary.rows.values())), "dropped_share": summary.dropped_share}
    metrics |= {f"rows_{split}": float(rows) for split, rows in summary.rows.items()}
    metrics |= {f"ledger_{fate}": float(count) for fate, count in summary.fates.items()}
    return Outcome("dataset", metrics, "rows", licences=summary.licences, notes={"kind": summary.kind})
