"""Free the disk of what nothing was made from and nobody needs to resume."""

from __future__ import annotations

import shutil
from pathlib import Path

from alignment import artifacts, console
from alignment.artifacts import Artifact
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution
from alignment.store import Store


class Settings(StrictSettings):
    """``stage=prune``. Without apply=true it only says what it would remove."""

    keep: int = execution(
        "artifacts of every step that are kept although nothing descends from them, newest first", ge=0
    )
    unfinished: bool = execution("also what has not come to its end, whose progress is lost")
    apply: bool = execution("remove; false lists")


def run(settings: Settings, inputs: dict[str, Artifact], store: Store) -> None:
    """List or remove: artifacts without descendants beyond the newest, and unfinished ones if asked."""
    doomed = superseded(store, settings.keep)
    if settings.unfinished:
        doomed += [path for path in store.folders() if not (path / artifacts.RECORD).is_file()]
    freed = 0
    rows = []
    for path in doomed:
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        freed += size
        rows.append((path, f"{size / 2**20:,.1f} MiB"))
        if settings.apply:
            # The record goes first: a removal that is interrupted must not leave something that looks whole.
            (path / artifacts.RECORD).unlink(missing_ok=True)
            shutil.rmtree(path)
            path.with_name(f".{path.name}.lock").unlink(missing_ok=True)
    if not rows:
        console.say("nothing to free")
        return
    console.table("removed" if settings.apply else "would be removed", ("folder", "size"), rows, right=("size",))
    console.say(f"{freed / 2**20:,.1f} MiB " + ("freed" if settings.apply else "would be freed: add apply=true"))


def superseded(store: Store, keep: int) -> list[Path]:
    """Finished artifacts without descendants, but for the newest ``keep`` of every step and pipeline."""
    finished = store.finished()
    needed = {parent.fingerprint for artifact in finished for parent in artifact.parents.values()}
    groups: dict[tuple[str, str], list[Artifact]] = {}
    for artifact in finished:
        groups.setdefault((artifact.path.parent.name, artifact.step), []).append(artifact)
    return [
        artifact.path
        for group in groups.values()
        for artifact in group[: max(0, len(group) - keep)]
        if artifact.fingerprint not in needed
    ]
