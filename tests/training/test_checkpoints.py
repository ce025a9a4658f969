"""Checkpoints are whole or not there."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from alignment import files
from alignment.errors import UserError
from alignment.training import checkpoints, incidents


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where the checkpoints of what is made in ``tmp_path`` lie."""
    return tmp_path / "checkpoints"


def save(root: Path, step: int, content: bytes = b"weights") -> Path:
    with checkpoints.writing(root, step) as beside:
        (beside / "model.safetensors").write_bytes(content)
        (beside / "state").mkdir()
        (beside / "state" / "rng.pth").write_bytes(b"rng")
    return root / f"checkpoint-{step}"


def test_the_newest_whole_one_is_found(root: Path) -> None:
    assert checkpoints.last_whole(root / "none") is None
    save(root, 9)
    save(root, 10)
    assert checkpoints.last_whole(root) == root / "checkpoint-10"


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "unmarked", "mark cut short"])
def test_a_broken_one_is_named_and_the_one_before_it_taken(
    root: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(root, 1)
    broken = save(root, 2)
    weights, mark = broken / "model.safetensors", broken / checkpoints.MARK
    if damage == "truncated":
        weights.write_bytes(b"weigh")
    elif damage == "flipped":
        weights.write_bytes(b"weightz")
    elif damage == "missing":
        (broken / "state" / "rng.pth").unlink()
    elif damage == "unmarked":
        mark.unlink()
    else:
        mark.write_text(mark.read_text()[:-20])
    assert checkpoints.last_whole(root) == root / "checkpoint-1"
    assert "checkpoint-2 is passed over" in capsys.readouterr().out
    [noted] = incidents.told(root.parent)["incidents"]
    assert noted["why"].startswith("checkpoint-2 was passed over: ")
    # It counts as none of the two that are kept, and goes with the next whole one.
    assert checkpoints.newest_first(root) == [root / "checkpoint-1"]
    save(root, 3)
    assert sorted(path.name for path in root.iterdir()) == ["checkpoint-1", "checkpoint-3"]


def test_one_that_the_disk_does_not_give_back_is_passed_over(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(root, 1)
    save(root, 2)
    digest = files.digest_file

    def unreadable(path: Path) -> str:
        if path.parent.name == "checkpoint-2":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return digest(path)

    monkeypatch.setattr(files, "digest_file", unreadable)
    assert checkpoints.last_whole(root) == root / "checkpoint-1"
    [noted] = incidents.told(root.parent)["incidents"]
    assert noted["why"] == "checkpoint-2 was passed over: it cannot be read: Input/output error"


def test_rows_are_on_the_disk_before_the_checkpoint_that_follows_them(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.mkdir()
    for name in ("metrics.jsonl", "front.jsonl"):
        (root.parent / name).write_text('{"step": 1}\n')
    done = list[str]()
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def replaced(source: Path, target: Path) -> None:
        done.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    save(root, 1)
    marked = done.index(checkpoints.MARK)
    assert {"metrics.jsonl", "front.jsonl", root.parent.name} <= set(done[:marked])
    assert done[-2:] == ["checkpoint-1", "checkpoints"]


def test_nothing_is_written_that_would_not_fit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one has 7 bytes of weights, 3 of state, and its mark."""
    last = save(root, 1)
    size = 10 + (last / checkpoints.MARK).stat().st_size
    disk = shutil.disk_usage(root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=size))
    save(root, 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=size - 1))
    with pytest.raises(UserError, match="MiB are needed"):
        save(root, 3)
    assert sorted(path.name for path in root.iterdir()) == ["checkpoint-1", "checkpoint-2"]


def test_an_exception_while_writing_leaves_the_earlier_ones(root: Path) -> None:
    save(root, 1)

    def interrupted() -> None:
        with checkpoints.writing(root, 2) as beside:
            (beside / "model.safetensors").write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert checkpoints.last_whole(root) == root / "checkpoint-1"
    save(root, 2)
    assert checkpoints.last_whole(root) == root / "checkpoint-2"


def test_two_are_kept_and_rotation_counts_numbers_not_letters(root: Path) -> None:
    for step in (8, 9, 10, 11):
        save(root, step)
    assert [path.name for path in checkpoints.newest_first(root)] == ["checkpoint-11", "checkpoint-10"]


def test_the_mark_holds_the_digest_of_every_file(root: Path) -> None:
    folder = save(root, 1)
    assert set(json.loads((folder / checkpoints.MARK).read_text())) == {"model.safetensors", "state/rng.pth"}


def test_half_a_note_of_a_full_disk_takes_no_other_with_it(tmp_path: Path) -> None:
    (tmp_path / "something").touch()
    incidents.note(tmp_path, "first")
    path = tmp_path / incidents.FILE
    path.write_bytes(path.read_bytes() + b'{"at": "2026')
    incidents.note(tmp_path, "second")
    assert [one["why"] for one in incidents.told(tmp_path)["incidents"]] == ["first", "second"]
