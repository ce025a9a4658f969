"""What ``stage=prune`` frees, and what it leaves to those who are at work."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from alignment import artifacts, run
from alignment.artifacts import Artifact, Parent


def made(store: Path, step: str, number: int, *parents: Artifact) -> Artifact:
    folder = store / "mini" / f"{step}-{number:08x}"
    folder.mkdir(parents=True)
    (folder / "weights.bin").write_bytes(bytes(2**20))
    of = {str(place): Parent("step:x", one.fingerprint, str(one.path)) for place, one in enumerate(parents)}
    return artifacts.finish(Artifact(folder, "policy", "sft", step, f"{number:08x}" * 8, parents=of))


def prune(store: Path, *more: str) -> None:
    assert run.door(["stage=prune", f"store={store}", *more]) == 0


def test_what_a_kill_has_left_beside_a_record_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = made(tmp_path, "base", 1)
    sft = made(tmp_path, "sft", 2, base)
    (left := base.path / "checkpoints" / "7").mkdir(parents=True)
    (left / "state.pt").write_bytes(bytes(2**21))
    prune(tmp_path)
    assert left.is_dir()
    said = " ".join(capsys.readouterr().out.split())
    assert "2.0 MiB would be freed" in said
    assert "checkpoints" in said
    prune(tmp_path, "apply=true")
    assert not left.parent.exists()
    assert artifacts.load(base.path).verify() == []
    assert sft.path.is_dir()
    prune(tmp_path)
    assert "nothing to free" in capsys.readouterr().out


def test_where_somebody_is_at_work_nothing_is_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    busy, idle = (tmp_path / "mini" / f"sft-{number:08x}" for number in (3, 4))
    for folder in (busy, idle):
        folder.mkdir(parents=True)
        (folder / "half").write_bytes(bytes(2**20))
    with open(busy.with_name(f".{busy.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 17 on node-3")
        lock.flush()
        prune(tmp_path, "unfinished=true", "apply=true")
    assert (busy / "half").is_file()
    assert not idle.exists()
    said = " ".join(capsys.readouterr().out.split())
    assert "in use by process 17 on node-3" in said
    assert "1.0 MiB freed" in said
