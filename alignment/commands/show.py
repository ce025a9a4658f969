"""Print an artifact: lineage, settings, metrics, and what is inside."""

from __future__ import annotations

from alignment import console
from alignment.artifacts import Artifact
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, reference, text
from alignment.store import Store


class Settings(StrictSettings):
    """``stage=show``."""

    target: str = reference("what to show: latest:sft, run:<path>, dir:<path>, mini:<name> …")
    examples: int = execution("examples of a dataset", ge=0)
    row: str | None = text(
        "a source row of a dataset, <file>:<line> or <source>:<line>: what became of it; null for all"
    )


def run(settings: Settings, inputs: dict[str, Artifact], store: Store) -> None:
    """Print the lineage as a tree, then the record, then what only this kind of artifact has."""
    from alignment.reporting import card, inside, lineage, merges

    target = inputs["target"]
    if settings.row is not None:
        card.fate_of(target.need("dataset"), settings.row)
        return
    console.say()
    console.console().print(lineage.tree(target, store))
    if target.kind == "dataset":
        inside.dataset(target, settings.examples, store)
    if target.kind == "foreign":
        path, digest = console.plain(target.path), target.fingerprint[:16]
        console.say(f"[dim]{path}: not made here, so it has no lineage; digest {digest}[/dim]")
    else:
        lineage.record(target)
    if (target.path / "config.json").is_file():
        inside.model(target)
        if (target.path / merges.RESULTS).is_file():
            merges.show(target.path)
    elif target.kind == "answers":
        inside.answers(target, settings.examples)
    elif target.kind == "evaluation":
        inside.evaluation(target)
    inside.figures(target)
