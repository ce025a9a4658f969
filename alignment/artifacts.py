"""What a stage leaves behind: a directory whose ``artifact.json`` is written last.

The record says what the artifact is, what it was made from, with which settings, on which machine,
and the digest of every file. Its *fingerprint* is over the identity settings, the parents'
fingerprints, the digests of local sources and the stage's algorithm version: what has the same
fingerprint is the same thing and is never computed twice.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from alignment import files, parts
from alignment.energy import meter
from alignment.energy.record import Energy
from alignment.errors import UserError

SCHEMA_VERSION = 1
RECORD = "artifact.json"
SNAPSHOTS = "snapshots"
"""The folder of the models that a run has left along its way."""
SCAFFOLDS = ("checkpoints", parts.FOLDER, meter.FOLDER, "incidents.jsonl")
"""What stands in an artifact's folder only while it is made: states to go on from, DeepSpeed's pickles among them."""
REMEMBERED = ("seen.npy",)
"""What a run knows of itself that holds for its snapshots as well."""
MOVE_AWAY = "Move the folder away and run the stage again."

Kind = Literal[
    "dataset",
    "answers",
    "tokenizer",
    "policy",
    "reward",
    "evaluation",
    "foreign",
    "gold",
    "raters",
    "check",
    "endpoint",
    "remote",
]
NO_FOLDER: dict[str, str] = {
    "gold": "the miniature's truth",
    "raters": "the miniature's people",
    "check": "checked by a program",
    "endpoint": "behind a server",
    "remote": "served",
}
"""Kinds that are no directories, and what they are; their references are their names."""


@dataclass(frozen=True)
class Parent:
    """One input: how it was asked for, and what that turned out to be."""

    reference: str
    fingerprint: str
    path: str


@dataclass(frozen=True)
class Tokens:
    """What two models must share before one may score, anchor, teach or merge with the other."""

    digest: str
    vocabulary: int
    padded: int
    schema: str


@dataclass(frozen=True)
class Outcome:
    """What a stage says of what it wrote; the pipeline adds the rest and writes the record."""

    kind: Kind
    metrics: Mapping[str, float]
    headline: str
    """The name of the metric to show where there is room for one."""
    tokens: Tokens | None = None
    licences: tuple[str, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Facts a person would ask for that are not numbers (device, precision, what was resumed …)."""


@dataclass(frozen=True)
class Artifact:
    """A finished artifact, as its record tells. ``path`` is where it lies now."""

    path: Path
    kind: Kind
    stage: str
    step: str
    fingerprint: str
    parents: dict[str, Parent] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    tokens: Tokens | None = None
    licences: tuple[str, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    headline: str = ""
    notes: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    created: str = ""
    seconds: float = 0.0
    energy: Energy | None = None
    """None in records from before it was counted, and of what was not made here."""

    def need(self, *kinds: Kind) -> Artifact:
        """Itself, if it is of one of ``kinds``; a :class:`UserError` otherwise. Foreign ones pass."""
        if self.kind in kinds or self.kind == "foreign":
            return self
        called = self.step if self.kind in NO_FOLDER else str(self.path)
        raise UserError(
            f"{called}: a {' or '.join(kinds)} is needed here, and this is of kind {self.kind}",
            remedy="`stage=show target=run:<path>` says what an artifact is.",
        )

    @property
    def headline_text(self) -> str:
        """The headline metric as ``gold 0.52``."""
        value = self.metrics.get(self.headline)
        if value is None:
            return ""
        return f"{self.headline} {value:,.0f}" if value == int(value) else f"{self.headline} {value:.4g}"

    @property
    def tokens_per_kwh(self) -> float | None:
        """Tokens that training has processed, or drawn from what it trains, for each kilowatt hour; None: not known."""
        tokens = self.notes.get("tokens_processed", self.notes.get("tokens_drawn"))
        return tokens / self.energy.kwh if tokens and self.energy is not None and self.energy.kwh else None

    def verify(self) -> list[str]:
        """The names of files that are missing or whose bytes are not those that were recorded."""
        return [
            name
            for name, digest in self.files.items()
            if not (self.path / name).is_file() or files.digest_file(self.path / name) != digest
        ]


def fingerprint(
    stage: str,
    algorithm_version: int,
    identity: Mapping[str, Any],
    parents: Mapping[str, str],
    sources: Mapping[str, str],
) -> str:
    """64 hexadecimal digits that name a result before it is computed.

    ``identity`` are the settings that change the result, ``parents`` fingerprints by input name,
    ``sources`` digests of local files by name. What JSON cannot hold raises ``TypeError``.
    """
    return files.digest_json(
        {
            "stage": stage,
            "algorithm": algorithm_version,
            "settings": dict(identity),
            "parents": dict(parents),
            "sources": dict(sources),
        }
    )


def finish(artifact: Artifact) -> Artifact:
    """Digest what lies in the artifact's folder and write its record, last and atomically."""
    digests = files.digest_folder(artifact.path, keep=lambda name: not _volatile(name))
    files.sync_tree(artifact.path)
    finished = Artifact(
        **{
            **_fields(artifact),
            "files": digests,
            "versions": versions(),
            "machine": {**machine(), **artifact.machine},
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
    )
    record = {"schema_version": SCHEMA_VERSION, **asdict(finished)}
    record.pop("path")
    files.write_json(artifact.path / RECORD, record)
    return finished


def finish_snapshots(artifact: Artifact) -> None:
    """Write a record for every model that a run has left along its way; its parents are the run's."""
    for folder in sorted((artifact.path / SNAPSHOTS).glob("step-*")):
        # What a model has seen on half of the way is counted as all of it.
        for name in REMEMBERED:
            if (artifact.path / name).is_file():
                shutil.copyfile(artifact.path / name, folder / name)
        finish(
            replace(
                artifact,
                path=folder,
                step=f"{artifact.step}, step {folder.name.partition('-')[2]}",
                fingerprint=files.digest_json([artifact.fingerprint, folder.name]),
                metrics={},
                headline="",
                notes={},
                energy=None,
            )
        )


def scaffolds(path: Path) -> list[Path]:
    """What is left in an artifact's folder of how it was made."""
    return [path / name for name in SCAFFOLDS if (path / name).exists()]


def clear(path: Path) -> None:
    """Remove what is left in a finished artifact's folder of how it was made."""
    for left in scaffolds(path):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def load(path: Path) -> Artifact:
    """Read a finished artifact. Raises :class:`UserError` where there is none or it is of another age."""
    try:
        record = json.loads((path / RECORD).read_text())
    except FileNotFoundError:
        unfinished = path.is_dir() and any(path.iterdir())
        raise UserError(
            f"{path}: no finished artifact is here",
            cause="The stage that writes it has not come to its end." if unfinished else "",
            remedy="Run its command again; it goes on where it stopped."
            if unfinished
            else "`stage=show target=latest:<stage>` finds the newest of a stage.",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path / RECORD}: {error}", remedy=MOVE_AWAY) from None
    version = record.pop("schema_version", None) if isinstance(record, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path / RECORD}: schema version {version}, and this program reads {SCHEMA_VERSION}",
            remedy="Use the version of the program that wrote it, or run the stage again.",
        )
    try:
        found: Artifact = _reader().validate_python({**record, "path": path})
    except ValueError as error:
        wrong: list[Any] = getattr(error, "errors", list)()
        said = f"{'.'.join(map(str, wrong[0]['loc']))}: {wrong[0]['msg']}" if wrong else str(error)
        raise UserError(f"{path / RECORD} is not the record of an artifact", cause=said, remedy=MOVE_AWAY) from None
    outside = [name for name in found.files if not is_inside(name)]
    endless = [name for name, value in found.metrics.items() if not math.isfinite(value)]
    if outside or endless:
        raise UserError(
            f"{path / RECORD} names {(outside or endless)[0]!r}",
            cause="A record tells of files below its folder, and of finite numbers.",
            remedy=MOVE_AWAY,
        )
    return found


@cache
def _reader() -> Any:
    """Checks every field's type: a record may have come from elsewhere."""
    from pydantic import TypeAdapter

    return TypeAdapter(Artifact)


def is_inside(name: str) -> bool:
    """Whether a relative name, as records and indices give it, leads nowhere but further in."""
    return "\0" not in name and name not in ("", ".") and not name.startswith("/") and ".." not in name.split("/")


def foreign(path: Path, reference: str) -> Artifact:
    """A directory that none of our stages wrote: it has a digest and no lineage."""
    digests = files.digest_folder(path, keep=lambda name: not name.startswith("."))
    return contained(
        Artifact(
            path=path, kind="foreign", stage="", step=reference, fingerprint=files.digest_json(digests), files=digests
        )
    )


def contained(artifact: Artifact) -> Artifact:
    """Itself. Raises :class:`UserError` where one of its files is a link that leads out of its folder.

    What is copied, merged or sent would else be any file of this machine. The hub's cache links its blobs.
    """
    folder = artifact.path.resolve()
    homes = [folder, folder.parent.parent / "blobs"] if folder.parent.name == "snapshots" else [folder]
    for name in artifact.files:
        if not any((folder / name).resolve().is_relative_to(home) for home in homes):
            raise UserError(
                f"{artifact.path / name} leads out of its folder",
                cause="It is a link, or lies below one, to a file that belongs to something else.",
                remedy="Put the file itself there: `cp -L` copies what links lead to.",
            )
    return artifact


def named(
    kind: Literal["gold", "raters", "check", "endpoint", "remote"], name: str, fingerprint: str | None = None
) -> Artifact:
    """What a reference names that is no directory: its name is fingerprinted, and a model's server with it.

    A scorer that is served is what its server says it is (``fingerprint``), wherever that stands; it is fingerprinted
    apart from the same one here, so that no result over a server stands for a local one.
    """
    if fingerprint is not None:
        return Artifact(Path(), kind, "", f"{kind}:{name}", files.digest_json({kind: fingerprint}))
    server = {"server": _server()} if kind == "endpoint" else {}
    return Artifact(Path(), kind, "", f"{kind}:{name}", files.digest_json({"kind": kind, "name": name} | server))


def _server() -> str:
    """Where the environment says that models are asked, without a name or password that stands in the address."""
    address = urlsplit(os.environ.get("OPENAI_BASE_URL", "").strip())
    return f"{address.scheme}://{address.hostname}:{address.port}{address.path.rstrip('/')}"


def _fields(artifact: Artifact) -> dict[str, Any]:
    return {name: getattr(artifact, name) for name in artifact.__dataclass_fields__}


def _volatile(name: str) -> bool:
    """What is resume state or a log: useful to a person, but not part of what was made."""
    folders = (*SCAFFOLDS, "wandb")
    return name.partition("/")[0] in folders or Path(name).name in (RECORD, "metrics.jsonl")


@cache
def versions() -> dict[str, str]:
    """The versions of the libraries that numbers depend on."""
    names = (
        "alignment",
        "torch",
        "transformers",
        "trl",
        "accelerate",
        "peft",
        "datasets",
        "sentencepiece",
        "deepspeed",
    )
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def machine() -> dict[str, Any]:
    """The machine's kind and thread count: bit-identity after resume is promised for the same ones."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    return {"cpu": model, "cores": os.cpu_count(), "threads": len(os.sched_getaffinity(0)), "system": platform.system()}
