"""The faults, one by one: what is done to a stage, and what has to come of it."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stage_runs import STAGES, outcome, own, prepare

from alignment.artifacts import RECORD, SCAFFOLDS, load, scaffolds
from alignment.training.tracking import read_metrics

ROOT = Path(__file__).parents[2]
TIMED = ("seconds/", "tokens_per_second/", "episodes_per_second")
KEPT = r"/checkpoint-\d+$"
PART = r"/parts/.*\.(jsonl|zst)$"
SEALING = rf"/solo/[^/]+/{re.escape(RECORD)}\."
WITH_CHECKPOINTS = ("pretrain", "sft", "lora", "distill", "offline", "gkd", "minillm", "reward", "dpo", "rl")
WITH_PARTS = (
    *("data", "teach", "ghost", "preprompt", "reject", "pairs", "label", "dpo", "side_by_side"),
    *("perplexity", "answer", "assess", "redteam"),
)
WITH_WEIGHTS = (
    *("sft", "distill", "gkd", "reward", "dpo", "rl", "merge", "slerp"),
    *("answer", "evaluate", "measure", "side_by_side", "export", "teach", "told", "perplexity", "assess", "redteam"),
)
DISK = 320 << 20
LONGEST = 180.0


@dataclass
class Result:
    """What came of one case. ``bad`` is empty where everything is as it should be."""

    case: str
    stage: str
    struck: bool = False
    named: str = ""
    """How the program told of what was wrong."""
    bad: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Undisturbed:
    """What a stage makes when nobody disturbs it, in how long, with how many changes to the disk."""

    files: dict[str, str]
    rows: list[str]
    seconds: float
    changes: int


class Struck(Exception):
    """What should not have come of a case."""


class Room:
    """One worker: a process to fork from, and a store for every stage."""

    def __init__(self, folder: Path, smoke: Path) -> None:
        self.folder, self.smoke = folder, smoke
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "log.txt"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CI": "true", "COLUMNS": "160"}
        environment["PYTHONPATH"] = str(ROOT)
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forking.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def close(self) -> None:
        """Let the process go."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()

    def store(self, stage: str, parent: Path | None = None) -> Path:
        """A store with the stage's inputs, and nothing of its own."""
        store = (parent or self.folder) / stage
        if not (store / "ready").is_file():
            shutil.rmtree(store, ignore_errors=True)
            for path in self.smoke.glob("smoke/*"):
                if path.is_dir() and path.name.rsplit("-", 1)[0] in STAGES[stage][0]:
                    shutil.copytree(path, store / "smoke" / path.name)
            (store / "smoke").mkdir(parents=True, exist_ok=True)
            prepare(stage, store)
            (store / "ready").touch()
        shutil.rmtree(store / "solo", ignore_errors=True)
        return store

    def start(self, stage: str, store: Path, *, kill_after: float | None = None, **how: Any) -> tuple[int, str]:
        """Give the stage's command; its status, and what it said."""
        self.log.unlink(missing_ok=True)
        arguments = [f"store={store}", *STAGES[stage][1]]
        if "after" in how.get("fault", {}):
            # What other processes write is not seen from inside this one.
            arguments = [one.replace("workers=2", "workers=1") for one in arguments]
        request = {"arguments": arguments, "log": str(self.log), "root": str(store), **how}
        assert self._server.stdin is not None
        print(json.dumps(request), file=self._server.stdin, flush=True)
        process = self._said()["process"]
        timer = threading.Timer(LONGEST if kill_after is None else kill_after, _kill, (process,))
        timer.start()
        status = self._said()["status"]
        timer.cancel()
        return status, self.log.read_text() if self.log.exists() else ""

    def _said(self) -> dict[str, int]:
        assert self._server.stdout is not None
        return json.loads(self._server.stdout.readline())


def _kill(process: int) -> None:
    try:
        os.kill(process, 9)
    except ProcessLookupError:
        return


# ── the cases ────────────────────────────────────────────────────────────────────────────────────


def kill(room: Room, stage: str, plain: Undisturbed, rng: random.Random, result: Result) -> None:
    """SIGKILL at a moment of time, or at a change to the disk."""
    store = room.store(stage)
    if rng.random() < 0.5:
        status, _ = room.start(stage, store, kill_after=rng.uniform(0.0, plain.seconds))
    else:
        delay = rng.choice((0.0, 0.0, rng.uniform(0.0, 0.01)))
        status, _ = room.start(stage, store, fault={"at": rng.randint(1, plain.changes), "delay": delay})
    result.struck = status == -9
    need(status in (0, -9), f"ended with {status}")
    _again(room, stage, store, plain)


def full(room: Room, stage: str, plain: Undisturbed, rng: random.Random, result: Result) -> None:
    """The disk is filled by somebody else on the way, and emptied before the next start."""
    disk = room.folder / "disk"
    with mounted(disk):
        store, filler = room.store(stage, disk), disk / "filler"
        fault = {"at": rng.randint(1, plain.changes), "fill": str(filler), "left": rng.randint(0, 1 << 14)}
        status, told = room.start(stage, store, fault=fault)
        result.struck = status != 0
        result.named = _named(told, r"disk is full|No space left|MiB are needed")
        need(status in (0, 2), f"a full disk ended it with {status}: {_last(told)}")
        need(status == 0 or bool(result.named), f"a full disk was not named: {_last(told)}")
        filler.unlink(missing_ok=True)
        _again(room, stage, store, plain)


def byte(room: Room, stage: str, plain: Undisturbed, rng: random.Random, result: Result) -> None:
    """Another byte in the newest checkpoint."""
    store = room.store(stage)
    room.start(stage, store, fault={"after": KEPT, "times": rng.randint(1, 3)})
    path = _one_of(rng, _newest_checkpoint(store))
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= rng.randint(1, 255)
    path.write_bytes(content)
    result.struck = True
    told = _again(room, stage, store, plain)
    result.named = _named(told, r"is passed over.*")
    need(bool(result.named), f"a byte of {path.name} was not missed")


def shard(room: Room, stage: str, plain: Undisturbed, rng: random.Random, result: Result) -> None:
    """A file that is cut off: of a part, or of the newest checkpoint, or of the weights of a finished input."""
    store, cut = room.store(stage), result.case.split("/")[0].removeprefix("cut ")
    if cut == "weights":
        path = _one_of(rng, sorted(store.glob("smoke/*/model*.safetensors")))
        content = path.read_bytes()
        path.write_bytes(content[: rng.randrange(len(content))])
        status, told = room.start(stage, store)
        path.write_bytes(content)
        used = any(f"{path.parent.name}" in line for line in told.splitlines())
        result.struck, result.named = status != 0, _named(told, rf"{path.parent.name}.*")
        need(status in (0, 2), f"weights that were cut off ended it with {status}: {_last(told)}")
        need(status == 0 or used, f"weights that were cut off were not named: {_last(told)}")
        if status == 0:
            # It does not read these weights, or not from this input; then it is as if nothing had been done.
            same(store, plain)
    else:
        times, after = (rng.randint(1, 3), KEPT) if cut == "checkpoint" else (1, PART)
        room.start(stage, store, fault={"after": after, "times": times})
        found = _newest_checkpoint(store) if cut == "checkpoint" else _files(store, PART)
        if found:
            path = _one_of(rng, found)
            path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])
            result.struck = True
    told = _again(room, stage, store, plain)
    if cut != "weights" and result.struck:
        result.named = _named(told, r"is (passed over|made again).*")
        need(bool(result.named), f"{path.name} was cut off and not missed")


def unsealed(room: Room, stage: str, plain: Undisturbed, rng: random.Random, result: Result) -> None:
    """All that was written, cut off anywhere, of a stage that was killed before its record.

    Rows are left alone where there are checkpoints, which promise them: they were durable before.
    """
    store = room.store(stage)
    status, _ = room.start(stage, store, fault={"before": SEALING})
    need(status == -9, f"it was to be killed before its record, and ended with {status}")
    for path in _files(store / "solo", r"/solo/[^/]+/"):
        promised = stage in WITH_CHECKPOINTS and path.suffix == ".jsonl"
        if path.relative_to(store / "solo").parts[1] not in SCAFFOLDS and not promised:
            os.truncate(path, rng.randrange(max(1, path.stat().st_size)))
            result.struck = True
    _again(room, stage, store, plain)


def _again(room: Room, stage: str, store: Path, plain: Undisturbed) -> str:
    """What lies there is whole or no artifact; the same command finishes it, to the same bits."""
    for record in store.glob(f"solo/*/{RECORD}"):
        need(load(record.parent).verify() == [], "a record stands beside what it does not describe")
    status, told = room.start(stage, store)
    need(status == 0, f"the restart ended with {status}: {_last(told)}")
    same(store, plain)
    return told


def same(store: Path, plain: Undisturbed) -> None:
    files, found = outcome(store), set(rows(store))
    other = sorted(name for name in plain.files.keys() | files.keys() if plain.files.get(name) != files.get(name))
    need(not other, f"differs in {', '.join(other)}")
    lost = [row for row in plain.rows if row not in found]
    need(not lost, f"{len(lost)} rows are lost: {lost[:2]}")
    need(len(rows(store)) == len(plain.rows), "there are rows twice")
    left = [path.name for path in store.rglob("*.partial")]
    left += [path.name for record in store.glob(f"solo/*/{RECORD}") for path in scaffolds(record.parent)]
    need(not left, f"left behind: {left}")


def rows(store: Path) -> list[str]:
    """The rows of metrics of what lies in a store, without times."""
    folder = own(store)
    found = []
    for row in read_metrics(folder / "metrics.jsonl"):
        found.append(json.dumps({name: value for name, value in row.items() if not name.startswith(TIMED)}))
    return found


def _newest_checkpoint(store: Path) -> list[Path]:
    found = sorted(store.glob("solo/*/checkpoints/checkpoint-*[0-9]"), key=lambda path: int(path.name.split("-")[1]))
    need(bool(found), "there is no checkpoint to damage")
    return sorted(path for path in found[-1].rglob("*") if path.is_file() and path.name != "complete.json")


def _files(store: Path, pattern: str) -> list[Path]:
    return sorted(path for path in store.rglob("*") if re.search(pattern, str(path)) and path.is_file())


def _one_of(rng: random.Random, paths: Sequence[Path]) -> Path:
    return rng.choice([path for path in paths if path.stat().st_size])


def _named(told: str, pattern: str) -> str:
    found = re.search(pattern, told)
    return found[0][:80] if found else ""


def _last(told: str) -> str:
    return " | ".join(line.strip() for line in told.strip().splitlines()[-3:])[-300:]


def need(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Struck(otherwise)


class mounted:
    """A small disk at ``folder`` while the block lasts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", self.folder], check=True)

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", self.folder], check=True)


def may_mount(folder: Path) -> bool:
    """Whether small disks can be had here."""
    try:
        with mounted(folder):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
