"""Runs of Weights & Biases: their group and kind, artifacts of ours as artifacts there, and what a kill must not lose.

An offline run is one file, and syncing it writes the run's history from its first row: a second file of the same run
would take the place of the first. So a run that goes on tells what stands on disk again, and then removes the files
it supersedes; whatever is synced is whole. Online the server keeps what it was told, and only the rest is told.

A W&B artifact holds the digest of every file, and the files themselves only where the settings upload them. Its
version is found by those digests: the run that made something and the runs that read it name the same version,
whichever is synced first.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from alignment.artifacts import Artifact, contained
from alignment.errors import PASSWORD, UserError
from alignment.settings import Settings, execution

TABLES = "wandb/tables.jsonl"
"""The tables that W&B was told, to be told again after a kill; like its own files, no part of an artifact."""
MODELS = ("policy", "reward")
LONGEST_NAME = 128


class TrackerSettings(Settings):
    """``conf/tracker/*.yaml``."""

    wandb: Literal["auto", "online", "offline", "off"] = execution(
        "Weights & Biases; auto is online for a logged-in user and offline otherwise; nobody is ever asked"
    )
    project: str = execution("the W&B project")
    every: int = execution("steps between two rows of metrics", ge=1)
    upload: Literal["none", "models"] = execution(
        "what of an artifact goes to W&B besides digests and facts: models sends policies and reward models",
        default="none",
    )


class Run:
    """One run. ``told`` is the last step that W&B had been told of before this process; −1 where it knows nothing."""

    def __init__(
        self,
        settings: TrackerSettings,
        *,
        folder: Path,
        place: Path,
        stage: str,
        config: Mapping[str, Any],
        quiet: bool = False,
    ) -> None:
        """``folder`` takes W&B's files; ``place``, ``<pipeline>/<step>-<fp8>``, is where what the run makes lies.

        ``quiet``: leave out the terminal's lines and the machine's load. Raises :class:`UserError` where W&B refuses.
        """
        self.folder, self.upload = folder, settings.upload
        self.id = f"{place.parent.name}-{place.name}"
        self._run = _init(settings, self.id, folder, place, stage, config, quiet)
        self.told = float(self._run.summary.get("step", -1)) if self._run.resumed else -1.0

    def over_steps(self) -> None:
        """Draw everything over ``step``, an axis of ours: W&B's own refuses a step that comes again after a resume."""
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, values: Mapping[str, Any]) -> None:
        """Numbers, figures or pages, as one row of the history."""
        with self._staging():
            self._run.log(dict(values))

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int | None = None) -> None:
        """A table with a column for every key of any row."""
        import wandb

        columns: list[Any] = list(dict.fromkeys(key for row in rows for key in row))
        data = [[row.get(column) for column in columns] for row in rows]
        table = wandb.Table(columns=columns, data=data, allow_mixed_types=True)
        self.log(({} if step is None else {"step": step}) | {name: table})

    def take(self, artifact: Artifact) -> None:
        """Say that the run reads ``artifact``."""
        # What use_artifact does with an artifact that is not on the server yet, without waiting for the server:
        # use_artifact refuses to work offline, the record it would write does not.
        with self._staging():
            self._run._log_artifact(
                wandb_artifact(artifact, self.upload),
                aliases=[_alias(artifact)],
                is_user_created=True,
                use_after_commit=True,
            )

    def give(self, artifact: Artifact) -> None:
        """Say that the run made ``artifact``."""
        with self._staging():
            made = wandb_artifact(artifact, self.upload)
            self._run.log_artifact(made, aliases=["latest", _alias(artifact)])

    def give_file(self, name: str, kind: str, path: Path) -> None:
        """Hand over one file, whole, whatever the settings upload."""
        import wandb

        with self._staging():
            made = wandb.Artifact(_allowed(name), type=kind)
            made.add_file(str(path), name=path.name)
            self._run.log_artifact(made)

    def summarise(self, summary: Mapping[str, float]) -> None:
        """Set the run's closing numbers."""
        self._run.summary.update({name: number(value) for name, value in summary.items()})

    def supersede(self) -> None:
        """Remove the offline files of earlier starts; everything in them has been told again."""
        own = Path(self._run.dir).resolve().parent
        for record in (self.folder / "wandb").glob(f"offline-run-*/run-{self.id}.wandb"):
            if record.resolve().parent != own:
                # W&B's process of a killed run may still be writing there; without its record nothing is synced.
                record.unlink()
                shutil.rmtree(record.parent, ignore_errors=True)

    def finish(self) -> None:
        """Close the run; online, once everything has arrived."""
        self._run.finish()

    def fail(self, why: str) -> None:
        """Close the run, as one that was stopped."""
        self._run.summary["stopped"] = why
        self._run.finish(exit_code=1)

    @contextlib.contextmanager
    def _staging(self) -> Iterator[None]:
        """Keep beside the run what W&B would stage in the user's home until it is synced."""
        before = os.environ.get("WANDB_DATA_DIR")
        if before is None:
            os.environ["WANDB_DATA_DIR"] = str(self.folder / "wandb")
        try:
            yield
        finally:
            if before is None:
                del os.environ["WANDB_DATA_DIR"]


def forget_process() -> None:
    """Let go of a process of W&B's that has died, so that the next run starts another."""
    import wandb

    # It says goodbye to the process, which is not there.
    with contextlib.suppress(ConnectionError):
        wandb.teardown()


def wandb_artifact(artifact: Artifact, upload: Literal["none", "models"]) -> Any:
    """A draft of the W&B artifact that stands for ``artifact``: name, kind, facts, and an entry for every file."""
    import wandb

    made = wandb.Artifact(_allowed(f"{artifact.step}.{artifact.kind}"), type=artifact.kind, metadata=facts(artifact))
    whole = _is_sent(artifact, upload)
    if whole:
        contained(artifact)
    for name, digest in artifact.files.items():
        if whole:
            made.add_file(str(artifact.path / name), name=name, policy="immutable", skip_cache=True)
        else:
            made.add_reference(f"sha256:{digest}", name=name)
    if not artifact.files:
        made.add_reference(f"fingerprint:{artifact.fingerprint}", name="fingerprint")
    return made


def bytes_sent(artifact: Artifact, upload: Literal["none", "models"]) -> int:
    """The bytes of the files of ``artifact`` that are themselves sent to W&B."""
    return sum((artifact.path / name).stat().st_size for name in artifact.files) if _is_sent(artifact, upload) else 0


def _is_sent(artifact: Artifact, upload: Literal["none", "models"]) -> bool:
    return upload == "models" and artifact.kind in MODELS and artifact.path.is_dir()


def facts(artifact: Artifact) -> dict[str, Any]:
    """What W&B is told of an artifact; its settings are the configuration of its run."""
    return {
        "fingerprint": artifact.fingerprint,
        "stage": artifact.stage,
        "step": artifact.step,
        "path": str(artifact.path),
        "parents": {key: asdict(parent) for key, parent in artifact.parents.items()},
        "files": artifact.files,
        "licences": list(artifact.licences),
        "tokens": asdict(artifact.tokens) if artifact.tokens else None,
        "metrics": {name: number(value) for name, value in artifact.metrics.items()},
        "headline": artifact.headline,
        "notes": artifact.notes,
        "versions": artifact.versions,
        "created": artifact.created,
        "seconds": artifact.seconds,
        "energy": asdict(artifact.energy) if artifact.energy else None,
    }


def number(value: float) -> float | None:
    """A number, or None for one that is not finite: JSON has no word for it."""
    return value if math.isfinite(value) else None


def whole_rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a file of JSON lines; a last line cut short by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else []:
        if not line:
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def without_passwords(value: Any) -> Any:
    """Settings as they may leave the machine: no address keeps the name and password that stand in it."""
    if isinstance(value, str):
        return PASSWORD.sub("://", value)
    if isinstance(value, Mapping):
        return {key: without_passwords(inner) for key, inner in value.items()}
    return [without_passwords(inner) for inner in value] if isinstance(value, list) else value


def _init(
    settings: TrackerSettings,
    name: str,
    folder: Path,
    place: Path,
    stage: str,
    config: Mapping[str, Any],
    quiet: bool,
) -> Any:
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    step = place.name.rpartition("-")[0] or place.name
    try:
        online = settings.wandb == "online" or (settings.wandb == "auto" and wandb.login(prompt=False, verify=False))
        return wandb.init(
            project=settings.project,
            id=name,
            name=place.name,
            group=place.parent.name,
            job_type=stage or None,
            tags=sorted({tag for tag in (stage, step) if tag}),
            dir=folder,
            config=without_passwords(dict(config)),
            mode="online" if online else "offline",
            resume="allow" if online else None,
            # A stage that failed has left its run open, and the next one is not to be written into it.
            reinit="finish_previous",
            settings=wandb.Settings(console="off", x_disable_stats=True) if quiet else None,
        )
    except (wandb.errors.Error, ValueError) as error:  # the second for a key that can be none
        raise UserError(
            f"tracker.wandb={settings.wandb}: {error}", remedy="Say tracker=offline, or tracker=off."
        ) from None


def _alias(artifact: Artifact) -> str:
    return artifact.fingerprint[:8]


def _allowed(name: str) -> str:
    """A name as W&B takes it; the end, which tells most, is kept where it is too long."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)[-LONGEST_NAME:]
