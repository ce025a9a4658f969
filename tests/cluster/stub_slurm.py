"""A Slurm that only writes down what it is told, for tests of what is submitted and of the batch scripts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from alignment.cluster import slurm

WRITE_DOWN = """#!/bin/bash
calls=("%(folder)s/%(name)s".*.call)
call=%(folder)s/%(name)s.$(printf %%04d ${#calls[@]}).call
[[ -e ${calls[0]} ]] || call=%(folder)s/%(name)s.0000.call
printf 'argument %%s\\0' "$@" >"$call"
for name in ${!ALIGNMENT_*}; do printf 'variable %%s\\0' "$name=${!name}" >>"$call"; done
"""
SBATCH = """
if [[ -n $STUB_REFUSE && $* == *"$STUB_REFUSE"* ]]; then
  echo 'sbatch: error: Batch job submission failed: Invalid partition name specified' >&2
  exit 1
fi
calls=("%(folder)s/%(name)s".*.call)
echo $((100 + ${#calls[@]}))
"""
PRINT = """
printf '%%s' "$(<"%(folder)s/%(name)s.says")"
"""


class Stub:
    """Programs in ``folder`` that write down how they are called, and print what they were told to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, more in {"sbatch": SBATCH, "squeue": PRINT, "sacct": PRINT, "scancel": ""}.items():
            (folder / f"{name}.says").write_text("")
            path = folder / name
            path.write_text((WRITE_DOWN + more) % {"folder": folder, "name": name})
            path.chmod(0o755)

    def calls(self, name: str) -> list[list[str]]:
        """The arguments of every call of a program."""
        return [self._said(path, "argument ") for path in sorted(self.folder.glob(f"{name}.*.call"))]

    def environments(self, name: str) -> list[dict[str, str]]:
        """What our own variables were in every call of a program."""
        told = [self._said(path, "variable ") for path in sorted(self.folder.glob(f"{name}.*.call"))]
        return [dict(line.split("=", 1) for line in lines) for lines in told]

    @staticmethod
    def _said(path: Path, kind: str) -> list[str]:
        parts = path.read_bytes().decode().split("\0")
        return [part.removeprefix(kind) for part in parts if part.startswith(kind)]

    def queue(self, jobs: Iterable[slurm.Job]) -> None:
        """What squeue shows from now on."""
        rows = [
            (job.id, job.state, str(job.restarts), job.start, job.nodes, job.reason or "None", job.user) for job in jobs
        ]
        text = "".join(slurm.SEPARATOR.join(row) + slurm.SEPARATOR + "\n" for row in rows)
        (self.folder / "squeue.says").write_text(text)

    def forget(self) -> None:
        """Lose what was written down."""
        for path in self.folder.glob("*.call"):
            path.unlink()
