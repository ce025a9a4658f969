"""Records of artifacts with nothing in them, and foreign folders: lineages of any form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alignment import artifacts
from alignment.artifacts import Artifact, Kind, Parent
from alignment.release import descent, provenance
from alignment.release.descent import Node
from alignment.release.provenance import Provenance
from alignment.store import Store

TERMS = (
    "Gemma Terms of Use\n\nSection 3: DISTRIBUTION AND RESTRICTIONS\n3.1 Distribution … 3.2 Use Restrictions: "
    "the Gemma Prohibited Use Policy …\n" + "And so on, as the terms go on. " * 100
)


def made(
    store: Path, step: str, stage: str, kind: Kind, parents: dict[str, tuple[str, Artifact]] | None = None, **told: Any
) -> Artifact:
    """A finished artifact. ``parents``: by key the reference and what it named."""
    fingerprint = artifacts.fingerprint(stage, 1, {"step": step}, {}, {})
    path = store / "lab" / f"{step}-{fingerprint[:8]}"
    path.mkdir(parents=True)
    (path / "something.txt").write_text(step)
    inputs = {key: Parent(said, one.fingerprint, str(one.path)) for key, (said, one) in (parents or {}).items()}
    return artifacts.finish(Artifact(path, kind, stage, step, fingerprint, inputs, **told))


def rows(store: Path, step: str = "rows", licence: str = "MIT", **source: Any) -> Artifact:
    """A dataset as stage=data makes it, of one source."""
    declared = {"name": f"{step}_source", "licence": licence, "dataset": None, "hub": None, **source}
    return made(store, step, "data", "dataset", settings={"recipe": {"sources": [declared]}}, licences=(licence,))


def foreign(folder: Path, model_type: str | None = "gemma2") -> Artifact:
    """A folder that is not ours, with a config where it is a model."""
    folder.mkdir(parents=True)
    (folder / "weights.bin").write_text("1")
    if model_type is not None:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return artifacts.foreign(folder, f"dir:{folder}")


def lineage(store: Path, model: Artifact, reference: str = "latest:model") -> tuple[Node, ...]:
    return descent.lineage(model, reference, Store(store))


def traced(store: Path, model: Artifact, *origins: str, reference: str = "latest:model") -> Provenance:
    return provenance.trace(lineage(store, model, reference), provenance.told(origins))
