"""Checkpoints are whole or not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from alignment.errors import UserError
from alignment.training import checkpoints


def save(root: Path, step: int, content: bytes = b"weights") -> Path:
    with checkpoints.writing(root, step) as beside:
        (beside / "model.safetensors").write_bytes(content)
        (beside / "state").mkdir()
        (beside / "state" / "rng.pth").write_bytes(b"rng")
    return root / f"checkpoint-{step}"


def test_the_newest_whole_one_is_found(tmp_path: Path) -> None:
    assert checkpoints.last_whole(tmp_path / "none") is None
    save(tmp_path, 9)
    save(tmp_path, 10)
    assert checkpoints.last_whole(tmp_path) == tmp_path / "checkpoint-10"


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "unmarked", "mark cut short"])
def test_a_broken_one_is_named_and_the_one_before_it_taken(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 1)
    broken = save(tmp_path, 2)
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
    assert checkpoints.last_whole(tmp_path) == tmp_path / "checkpoint-1"
    assert "checkpoint-2 is passed over" in capsys.readouterr().out
    # It counts as none of the two that are kept, and goes with the next whole one.
    assert checkpoints.newest_first(tmp_path) == [tmp_path / "checkpoint-1"]
    save(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-3"]


def test_nothing_is_written_that_would_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one has 7 bytes of weights, 3 of state, and its mark."""
    last = save(tmp_path, 1)
    size = 10 + (last / checkpoints.MARK).stat().st_size
    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=size))
    save(tmp_path, 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=size - 1))
    with pytest.raises(UserError, match="MiB are needed"):
        save(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2"]


def test_an_exception_while_writing_leaves_the_earlier_ones(tmp_path: Path) -> None:
    save(tmp_path, 1)

    def interrupted() -> None:
        with checkpoints.writing(tmp_path, 2) as beside:
            (beside / "model.safetensors").write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert checkpoints.last_whole(tmp_path) == tmp_path / "checkpoint-1"
    save(tmp_path, 2)
    assert checkpoints.last_whole(tmp_path) == tmp_path / "checkpoint-2"


def test_two_are_kept_and_rotation_counts_numbers_not_letters(tmp_path: Path) -> None:
    for step in (8, 9, 10, 11):
        save(tmp_path, step)
    assert [path.name for path in checkpoints.newest_first(tmp_path)] == ["checkpoint-11", "checkpoint-10"]


def test_the_mark_holds_the_digest_of_every_file(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    assert set(json.loads((folder / checkpoints.MARK).read_text())) == {"model.safetensors", "state/rng.pth"}
