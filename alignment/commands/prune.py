"""Free the disk of what nothing was made from and nobody needs to resume."""

from __future__ import annotations

import shutil
from pathlib import Path

from alignment import artifacts, console, files
from alignment.artifacts import Artifact, scaffolds
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


class HeldError(Exception):
    """Another process is at work in a folder; the text says which."""


def run(settings: Settings, inputs: dict[str, Artifact], store: Store) -> None:
    """List or remove: artifacts without descendants beyond the newest, what a kill has left beside the records of
    others, and unfinished ones if asked."""
    doomed = superseded(store, settings.keep)
    left = [path for artifact in store.finished() if artifact.path not in doomed for path in scaffolds(artifact.path)]
    if settings.unfinished:
        doomed += [path for path in store.folders() if not (path / artifacts.RECORD).is_file()]
    freed, rows = 0, []
    for path in [*doomed, *left]:
        size = sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
        try:
            if settings.apply:
                _remove(path, whole=path in doomed)
        except HeldError as held:
            rows.append((path, f"in use by {held}"))
            continue
        freed += size
        rows.append((path, f"{size / 2**20:,.1f} MiB"))
    if not rows:
        console.say("nothing to free")
        return
    console.table("removed" if settings.apply else "would be removed", ("folder", "size"), rows, right=("size",))
    console.say(f"{freed / 2**20:,.1f} MiB " + ("freed" if settings.apply else "would be freed: add apply=true"))


def _remove(path: Path, *, whole: bool) -> None:
    """Remove an artifact, or what is left in one; raises :class:`HeldError` where somebody is at work there."""

    def held(by: str) -> None:
        raise HeldError(by)

    folder = path if whole else path.parent
    with files.exclusive(folder, held):
        if whole:
            # The record goes first: a removal that is interrupted must not leave something that looks whole.
            (path / artifacts.RECORD).unlink(missing_ok=True)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if whole:
        path.with_name(f".{path.name}.lock").unlink(missing_ok=True)


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
