"""Everything that a model comes from, of whatever kind: the records of its parents, followed to where they end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from alignment import artifacts, files
from alignment.artifacts import NO_FOLDER, Artifact, Parent
from alignment.merging import ancestors
from alignment.store import Store

TRUNK = re.compile(f"model|{ancestors.TRUNK.pattern}")
"""The inputs whose weights a model continues, an export's own included. Teachers, judges and data are none."""
MEASURED = re.compile(r"evaluations\.\d+")
"""The inputs that only tell of a model and are no part of it."""


@dataclass(frozen=True)
class Use:
    """Who read a thing, and as what: ``sft`` its ``model.weights``. Nobody read the model itself."""

    step: str
    key: str


@dataclass(frozen=True)
class Node:
    """One thing in a lineage. ``gone``: neither its folder nor its record can be found, so its parents are hidden."""

    artifact: Artifact
    reference: str
    uses: tuple[Use, ...]
    gone: bool = False

    @property
    def ours(self) -> bool:
        """Whether a stage of ours made it and its record is there."""
        return not self.gone and bool(self.artifact.stage)

    @property
    def name(self) -> str:
        """What people call it; never a path."""
        return self.artifact.step if self.ours else shown(self.reference)

    @property
    def label(self) -> str:
        """Its name with the beginning of its fingerprint."""
        return f"{self.name} ({self.artifact.fingerprint[:8]})" if self.ours or self.gone else self.name


def shown(reference: str) -> str:
    """A reference as strangers may read it: without the folders and addresses of this machine."""
    scheme, _, name = reference.partition(":")
    if scheme in ("dir", "run"):
        return f"{scheme}:{Path(name).name}"
    return "remote:a served scorer" if scheme == "remote" else reference


def lineage(model: Artifact, reference: str, store: Store) -> tuple[Node, ...]:
    """The model and all that it was made from, parents before what they made; the model is the last.

    A ``dir:`` that is an artifact of ours, unchanged, is followed like any other. What has moved is looked for in
    ``store`` by its fingerprint.
    """
    nodes: dict[str, Node] = {}
    uses: dict[str, list[Use]] = {}
    _visit(_node(model, reference), nodes, uses, store)
    return tuple(replace(node, uses=tuple(uses.get(name, ()))) for name, node in nodes.items())


def trunk(nodes: tuple[Node, ...]) -> Iterator[Node]:
    """Of a lineage, the models whose weights the last one continues, the nearest first."""
    wanted = {nodes[-1].artifact.fingerprint}
    for node in reversed(nodes):
        if node.artifact.fingerprint in wanted:
            wanted |= {parent.fingerprint for key, parent in node.artifact.parents.items() if TRUNK.fullmatch(key)}
            if node is not nodes[-1]:
                yield node


def _visit(node: Node, nodes: dict[str, Node], uses: dict[str, list[Use]], store: Store) -> None:
    for key, parent in node.artifact.parents.items():
        if MEASURED.fullmatch(key):
            continue
        uses.setdefault(parent.fingerprint, []).append(Use(node.artifact.step, key))
        if parent.fingerprint not in nodes:
            _visit(_found(parent, store), nodes, uses, store)
    nodes[node.artifact.fingerprint] = node


def _found(parent: Parent, store: Store) -> Node:
    """What a parent is now."""
    scheme = parent.reference.partition(":")[0]
    path = Path(parent.path)
    if scheme in NO_FOLDER:
        served = _served(parent, store) if scheme == "remote" else None
        plain = Artifact(Path(), scheme, "", parent.reference, parent.fingerprint)  # type: ignore[arg-type]
        return Node(plain if served is None else replace(served, fingerprint=parent.fingerprint), parent.reference, ())
    if (path / artifacts.RECORD).is_file() and scheme != "dir":
        record = artifacts.load(path)
        if record.fingerprint == parent.fingerprint:
            return Node(record, parent.reference, ())
    moved = store.find(parent.fingerprint)
    if moved is not None:
        return Node(moved, parent.reference, ())
    foreign = Artifact(path, "foreign", "", parent.reference, parent.fingerprint)
    return _node(foreign, parent.reference, gone=not _unchanged(foreign))


def _node(artifact: Artifact, reference: str, *, gone: bool = False) -> Node:
    """A node; a foreign folder that is ours after all becomes what its record says."""
    record = None if gone or artifact.kind != "foreign" else record_of(artifact.path)
    if record is not None:
        artifact = replace(record, fingerprint=artifact.fingerprint)
    return Node(artifact, reference, (), gone)


def record_of(folder: Path) -> Artifact | None:
    """The record of a foreign folder that is an artifact of ours, or its release, with the bytes that were recorded."""
    for home, inside in ((folder, ""), (folder.parent, f"{folder.name}/")):
        if (home / artifacts.RECORD).is_file():
            record = artifacts.load(home)
            wanted = {name: digest for name, digest in record.files.items() if name.startswith(inside)}
            if wanted and all(_is(home / name, digest) for name, digest in wanted.items()):
                return record
    return None


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and files.digest_file(path) == digest


def _unchanged(foreign: Artifact) -> bool:
    """Whether a folder without a record is still the one that was read; the hub names a snapshot by its commit."""
    if not foreign.path.is_dir() or not foreign.step.startswith(("dir:", "hf:")):
        return False
    return foreign.step.startswith("hf:") or (
        artifacts.foreign(foreign.path, foreign.step).fingerprint == foreign.fingerprint
    )


def _served(parent: Parent, store: Store) -> Artifact | None:
    """The scorer that was served, where the store holds it."""
    named = (one for one in store.finished() if one.kind == "reward")
    return next(
        (one for one in named if artifacts.named("remote", "", one.fingerprint).fingerprint == parent.fingerprint), None
    )
