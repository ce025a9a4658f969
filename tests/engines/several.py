"""Command lines of several processes: a program that goes through the door again and again, and what starts it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port() -> str:
    """A port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def torchrun(processes: int, *program: str) -> list[str]:
    """What starts ``program`` in so many processes."""
    module = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    return [*module, f"--master_port={free_port()}", *program]


def environment(**more: str) -> dict[str, str]:
    """Without what a launcher or Slurm may have said to the tests themselves."""
    said = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "TORCHELASTIC"))}
    plain = {"CI": "true", "COLUMNS": "160", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    return said | plain | more


def together(
    processes: int, lines: Sequence[Sequence[str]], folder: Path, *, keep: bool = False, timeout: float = 1_500
) -> list[int]:
    """The exit codes of command lines that one group of processes goes through, one after the other.

    ``keep``: copies of all checkpoints stay beside the artifacts, in ``<artifact>-kept/``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lines.json").write_text(json.dumps([list(line) for line in lines]))
    (folder / "codes.json").unlink(missing_ok=True)
    done = subprocess.run(
        torchrun(processes, __file__, str(folder)),
        env=environment(**({"KEEP_CHECKPOINTS": "1"} if keep else {})),
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
    )
    said = done.stdout + done.stderr
    assert (folder / "codes.json").is_file(), said
    codes: list[int] = json.loads((folder / "codes.json").read_text())
    assert len(codes) == len(lines), said
    (folder / "said.txt").write_text(said)
    print(said)  # Shown where the test fails.
    return codes


def keep_checkpoints() -> None:
    """Copy each checkpoint once it is whole."""
    from alignment.training import checkpoints

    commit = checkpoints.commit

    def kept(beside: Path, final: Path) -> None:
        commit(beside, final)
        artifact = final.parents[1]
        shutil.copytree(final, artifact.with_name(f"{artifact.name}-kept") / final.name)

    checkpoints.commit = kept


def set_back(store: Path, step: int) -> None:
    """Every artifact as a kill behind its checkpoint of ``step`` leaves it: no record, and the checkpoint."""
    for kept in store.glob("solo/*-kept"):
        artifact = kept.with_name(kept.name.removesuffix("-kept"))
        for path in [artifact / "artifact.json", *artifact.glob("*.safetensors")]:
            path.unlink()
        name = f"checkpoint-{step}"
        shutil.copytree(kept / name, artifact / "checkpoints" / name)
        shutil.rmtree(kept)


def work(arguments: list[str]) -> int:
    """The door, as rank 0 goes through it for every line."""
    from alignment import run

    folder = Path(arguments[0])
    codes = []
    for line in json.loads((folder / "lines.json").read_text()):
        codes.append(run.door(line))
        (folder / "codes.json").write_text(json.dumps(codes))
    return max(codes)


if __name__ == "__main__":
    from alignment.plans.together import enter

    if "KEEP_CHECKPOINTS" in os.environ:
        keep_checkpoints()
    sys.exit(enter(work, sys.argv[1:]))
