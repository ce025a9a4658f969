"""An artifact's descent as a tree, and its record as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.tree import Tree

from alignment import artifacts, console
from alignment.artifacts import NO_FOLDER, Artifact, Parent
from alignment.reporting.page.gather import gather
from alignment.store import Store


def tree(artifact: Artifact, store: Store) -> Tree:
    """The artifact at the root, what it was made from below it; a thing named twice is drawn in full once."""
    root = Tree(_label("", artifact))
    _grow(root, artifact, store, set())
    return root


def record(artifact: Artifact) -> None:
    """Print metrics, settings, and where and when it was made."""
    facts = {
        "fingerprint": artifact.fingerprint[:16],
        "made": f"{artifact.created} in {console.duration(artifact.seconds)}",
        "machine": f"{artifact.machine.get('cpu', '?')}, {artifact.machine.get('threads', '?')} threads",
        "versions": ", ".join(f"{name} {version}" for name, version in artifact.versions.items()),
        "licences": ", ".join(artifact.licences) or "none inherited",
        "energy": artifact.energy.text if artifact.energy is not None else "not recorded",
        "with its descent": gather([artifact]).energy.text,
        **{name: value for name, value in artifact.notes.items() if value is not None},
    }
    if artifact.tokens_per_kwh is not None:
        facts["tokens_per_kwh"] = f"{artifact.tokens_per_kwh:,.0f}"
    if artifact.tokens is not None:
        tokens = artifact.tokens
        facts["tokens"] = (
            f"{tokens.vocabulary:,} pieces (padded to {tokens.padded:,}), schema {tokens.schema}, {tokens.digest[:12]}"
        )
    console.say()
    console.table("record", ("", ""), facts.items())
    if artifact.metrics:
        console.say()
        console.table("metrics", ("", ""), ((name, f"{value:,.5g}") for name, value in artifact.metrics.items()))
    if artifact.settings:
        console.say()
        console.table("settings", ("key", "value"), _flat(artifact.settings))


def _grow(branch: Tree, artifact: Artifact, store: Store, drawn: set[str]) -> None:
    for key, parent in artifact.parents.items():
        found = _load(parent, store)
        if found is None:
            reference, path = console.plain(parent.reference), console.plain(parent.path)
            branch.add(f"[dim]{console.plain(key)}:[/dim] {reference} [yellow](no longer at {path})[/yellow]")
        elif found.fingerprint in drawn:
            branch.add(f"{_label(key, found)} [dim](above)[/dim]")
        else:
            drawn.add(found.fingerprint)
            _grow(branch.add(_label(key, found)), found, store, drawn)


def _load(parent: Parent, store: Store) -> Artifact | None:
    path = Path(parent.path)
    if parent.reference.startswith(tuple(f"{kind}:" for kind in NO_FOLDER)):
        kind = parent.reference.partition(":")[0]
        return Artifact(path, kind, "", parent.reference, parent.fingerprint)  # type: ignore[arg-type]
    if (path / artifacts.RECORD).is_file():
        return artifacts.load(path)
    found = store.find(parent.fingerprint)
    if found is None and path.is_dir():
        return Artifact(path, "foreign", "", parent.reference, parent.fingerprint)
    return found


def _label(key: str, artifact: Artifact) -> str:
    name = f"[dim]{console.plain(key)}:[/dim] " if key else ""
    step = console.plain(artifact.step)
    if artifact.kind in NO_FOLDER:
        return f"{name}[bold]{step}[/bold] ({NO_FOLDER[artifact.kind]})"
    kind = artifact.kind if artifact.kind != "foreign" else "foreign, no lineage"
    headline = f"  [cyan]{console.plain(artifact.headline_text)}[/cyan]" if artifact.headline_text else ""
    return f"{name}[bold]{step}[/bold] ({kind})  {console.plain(artifact.path)}{headline}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for place, item in enumerate(value):
                yield from _flat(item, f"{prefix}{key}.{place}.")
        else:
            yield prefix + key, "null" if value is None else str(value)
