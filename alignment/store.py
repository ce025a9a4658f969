"""The folder of artifacts, and the references by which people and plans name what is in it.

``runs/<pipeline>/<step>-<fp8>/`` holds one artifact. A reference is one of

============================ ========================================================
``step:sft``                  an earlier step of this pipeline
``latest:sft``                the newest finished artifact of the step of that name, or else of that stage
``run:<path>``                an artifact of ours, wherever it lies
``dir:<path>``                a directory in Hugging Face's layout, without lineage
``hf:<org>/<name>[@<rev>]``   a hub repository
``mini:<name>``               a part of the miniature pipeline, made on demand
``gold:<aspect>``             the truth of the miniature world, as a scorer: overall, helpfulness, safety
``raters:<aspect>``           the miniature's people, as a scorer: they err, and like to be chatted to
``check:<name>``              what a program finds, by each prompt's reference: exact, gsm8k, ifeval
``endpoint:<model>``          a model behind an OpenAI-compatible server (OPENAI_BASE_URL, OPENAI_API_KEY)
``remote:<host>:<port>``      a reward model that ``stage=serve`` serves there; https:// may stand before the host
============================ ========================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from alignment import artifacts
from alignment.artifacts import Artifact
from alignment.errors import UserError, nearest

Scheme = Literal["step", "latest", "run", "dir", "hf", "mini", "gold", "raters", "check", "endpoint", "remote"]

GOLD = ("overall", "helpfulness", "safety")
CHECKS = ("exact", "gsm8k", "ifeval")
NAME = re.compile(r"[^\x00-\x1f\x7f/\\.\-][^\x00-\x1f\x7f/\\]{0,99}")
"""What may name a folder: neither a way to another one, nor what a program would take for a flag."""
ADDRESS = re.compile(r"(?:https?://)?(?:[\w.-]+|\[[0-9a-fA-F:]+\]):([0-9]{1,5})/?")
"""Where a scorer is served; the group is its port."""


@dataclass(frozen=True)
class Reference:
    """A parsed reference; ``str()`` gives the spelling back."""

    scheme: Scheme
    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.scheme}:{self.name}" + (f"@{self.revision}" if self.revision else "")


def parse_reference(spelling: str) -> Reference:
    """``"hf:google/gemma-2-2b@main"`` → its parts. Raises :class:`UserError` on anything else."""
    scheme, colon, name = spelling.partition(":")
    if not colon or scheme not in get_args(Scheme) or not name or "\0" in name:
        raise UserError(
            f"{spelling!r} is not a reference",
            cause="A reference names what a stage reads: step:<step>, latest:<stage>, run:<path>, dir:<path>, "
            "hf:<org>/<name>[@<revision>], mini:<name>, gold:<aspect>, raters:<aspect>, check:<name>, "
            "endpoint:<model> or remote:<host>:<port>.",
            remedy="A folder of your own is dir:<path>; the newest result of a stage is latest:<stage>.",
        )
    if scheme == "hf":
        name, _, revision = name.partition("@")
        if name.count("/") != 1:
            raise UserError(f"{spelling!r}: a hub repository is named hf:<org>/<name>[@<revision>]")
        return Reference("hf", name, revision or None)
    if scheme in ("gold", "raters") and name not in GOLD:
        known = {"gold": "there is no such truth", "raters": "nobody rates that"}[scheme]
        raise UserError(f"{spelling!r}: {known}", remedy=nearest(name, GOLD))
    if scheme == "check" and name not in CHECKS:
        raise UserError(f"{spelling!r}: there is no such check", remedy=nearest(name, CHECKS))
    if scheme == "remote":
        address = ADDRESS.fullmatch(name)
        if address is None or not 1 <= int(address[1]) <= 65535:
            raise UserError(
                f"{spelling!r}: a served reward model is named remote:<host>:<port>",
                cause="" if address is None else "A port is a number from 1 to 65535.",
                remedy="`stage=serve` prints the address that it listens at.",
            )
    return Reference(scheme, name)  # type: ignore[arg-type]


class Store:
    """The artifacts below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, pipeline: str, step: str, fingerprint: str) -> Path:
        """Where the artifact of this fingerprint lies, or will lie. Raises :class:`UserError` for no folder's name."""
        for name in (pipeline, step):
            if not NAME.fullmatch(name) or not name.isprintable():
                raise UserError(
                    f"name={name!r} cannot be a folder's name",
                    cause="It has 1 to 100 printable characters, no slash, and begins with neither a dot nor a dash.",
                )
        return self.root / pipeline / f"{step}-{fingerprint[:8]}"

    def folders(self) -> Iterator[Path]:
        """Every artifact folder, finished or not."""
        if self.root.is_dir():
            yield from sorted(path for path in self.root.glob("*/*-????????") if path.is_dir())

    def finished(self) -> list[Artifact]:
        """Every finished artifact, oldest first."""
        found = [artifacts.load(path) for path in self.folders() if (path / artifacts.RECORD).is_file()]
        return sorted(found, key=lambda artifact: (artifact.created, artifact.path))

    def find(self, fingerprint: str) -> Artifact | None:
        """The finished artifact with this fingerprint, whichever pipeline made it."""
        for path in self.root.glob(f"*/*-{fingerprint[:8]}"):
            found = artifacts.load(path) if (path / artifacts.RECORD).is_file() else None
            if found is not None and found.fingerprint == fingerprint:
                return found
        return None

    def latest(self, name: str) -> Artifact:
        """The newest finished artifact of the step ``name``; where no step is called so, of the stage.

        A step's own name goes first: in the miniature, steps of other names are of stage sft as well.
        """
        finished = self.finished()
        matching = [artifact for artifact in finished if artifact.step == name]
        matching = matching or [artifact for artifact in finished if artifact.stage == name]
        if not matching:
            known = {artifact.stage for artifact in finished} | {artifact.step for artifact in finished}
            raise UserError(
                f"latest:{name}: {self.root}/ holds no finished artifact of that stage or step",
                remedy=nearest(name, sorted(known)) + f" `stage={name}` makes one where that is a stage, "
                f"`stage=data recipe={name} name={name}` where that is a recipe.",
            )
        return matching[-1]

    def children(self, artifact: Artifact) -> list[Artifact]:
        """The finished artifacts that were made from this one."""
        return [
            other
            for other in self.finished()
            if any(parent.fingerprint == artifact.fingerprint for parent in other.parents.values())
        ]
