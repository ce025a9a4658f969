"""Everything that some artifacts descend from, by their records: what is there, what has no folder, what is gone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment import artifacts
from alignment.artifacts import NO_FOLDER, Artifact, Parent
from alignment.energy.record import Total, total
from alignment.store import Store

GONE = "gone"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Node:
    """One artifact of a lineage. ``artifact`` is None for what is no longer there: only its name is known."""

    fingerprint: str
    name: str
    stage: str
    kind: str
    parents: Mapping[str, str]
    """Fingerprints by input name."""
    artifact: Artifact | None

    @property
    def folder(self) -> str:
        """The folder's name; empty for what has none."""
        return "" if self.artifact is None or self.kind in NO_FOLDER else self.artifact.path.name

    def parts(self, name: str) -> list[str]:
        """Fingerprints of the inputs ``name.0``, ``name.1`` …, in their order."""
        numbered = [(int(key.rpartition(".")[2]), of) for key, of in self.parents.items() if _is_part(key, name)]
        return [of for _, of in sorted(numbered)]

    def json(self, name: str) -> dict[str, Any] | None:
        """What a file of the folder holds; None where there is no such file."""
        path = self.file(name)
        if path is None:
            return None
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def rows(self, name: str, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The rows of a file of lines or columns; none where there is no such file.

        Of columns only those that are named and there, where they are named: others are not read.
        """
        path = self.file(name)
        if path is None:
            return []
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            there = None if columns is None else [one for one in pq.read_schema(path).names if one in columns]
            rows: list[dict[str, Any]] = pq.read_table(path, columns=there).to_pylist()
            return rows
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]

    def file(self, name: str) -> Path | None:
        """The path of a file of the folder; None where there is none."""
        found = self.artifact is not None and bool(self.folder) and (self.artifact.path / name).is_file()
        return self.artifact.path / name if found and self.artifact is not None else None


@dataclass(frozen=True)
class Lineage:
    """Artifacts by fingerprint, parents before their children."""

    nodes: Mapping[str, Node]

    def of_stage(self, stage: str) -> list[Node]:
        """Those that a stage wrote and that are there."""
        return [node for node in self.nodes.values() if node.stage == stage and node.artifact is not None]

    @property
    def gone(self) -> list[Node]:
        """What only its children's records tell of."""
        return [node for node in self.nodes.values() if node.kind == GONE]

    @property
    def energy(self) -> Total:
        """What all of them took to make; what came from elsewhere is not in it."""
        made = [node for node in self.nodes.values() if node.stage or node.kind == GONE]
        return total(None if node.artifact is None else node.artifact.energy for node in made)

    def name(self, fingerprint: str) -> str:
        """What an artifact is called; told apart by its fingerprint where several have the name."""
        name = self.nodes[fingerprint].name
        twins = sum(node.name == name for node in self.nodes.values())
        return name if twins == 1 else f"{name}-{fingerprint[:4]}"


def gather(asked: Sequence[Artifact]) -> Lineage:
    """``asked`` and all their ancestors.

    A parent is looked for where the record says, then by its fingerprint in the stores in which artifacts were found:
    a store that was moved is still whole.
    """
    nodes: dict[str, Node] = {}
    stores: dict[Path, Store] = {}

    def visit(artifact: Artifact) -> None:
        if artifact.fingerprint in nodes:
            return
        if artifact.stage:
            root = artifact.path.resolve().parents[1]
            stores.setdefault(root, Store(root))
        for parent in artifact.parents.values():
            found = _found(parent, stores.values())
            if found is not None:
                visit(found)
            elif parent.fingerprint not in nodes:
                nodes[parent.fingerprint] = _gone(parent)
        nodes[artifact.fingerprint] = _node(artifact)

    for artifact in asked:
        visit(artifact)
    return Lineage(nodes)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings as lines: dotted keys and what a person reads."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for place, item in enumerate(value):
                yield from flat(item, f"{prefix}{key}.{place}.")
        elif isinstance(value, list):
            yield prefix + key, ", ".join(map(str, value)) or "none"
        else:
            yield prefix + key, _plainly(value)


def _plainly(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _found(parent: Parent, stores: Any) -> Artifact | None:
    path = Path(parent.path)
    scheme = parent.reference.partition(":")[0]
    if scheme in NO_FOLDER:
        return Artifact(path, scheme, "", parent.reference, parent.fingerprint)  # type: ignore[arg-type]
    if (path / artifacts.RECORD).is_file():
        found = artifacts.load(path)
        if found.fingerprint == parent.fingerprint:
            return found
    elif scheme in ("dir", "hf") and path.is_dir():
        return Artifact(path, "foreign", "", parent.reference, parent.fingerprint)
    return next(filter(None, (store.find(parent.fingerprint) for store in stores)), None)


def _node(artifact: Artifact) -> Node:
    parents = {key: parent.fingerprint for key, parent in artifact.parents.items()}
    name = artifact.step or artifact.path.name
    return Node(artifact.fingerprint, name, artifact.stage, artifact.kind, parents, artifact)


def _gone(parent: Parent) -> Node:
    return Node(parent.fingerprint, parent.reference.partition(":")[2] or parent.path, "", GONE, {}, None)


def _is_part(key: str, name: str) -> bool:
    group, _, place = key.rpartition(".")
    return group == name and place.isdecimal()
