"""Files that several processes of a run look at in the same moment."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from alignment import files


def test_processes_that_make_one_folder_do_not_disturb_each_other(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as together:
        for made in [together.submit(files.make_folder, tmp_path / str(n // 8) / "parts") for n in range(1_600)]:
            made.result()
    assert not list(tmp_path.rglob(f"*{files.TEMPORARY}"))


def test_a_short_write_of_numpys_is_a_full_disk(tmp_path: Path) -> None:
    """numpy.save ends with an OSError that has no number."""
    told = files.disk_error(OSError("4457 requested and 1520 written"))
    assert "No space left" in told.problem
    assert "the disk is full" in told.remedy.lower()


def test_what_safetensors_was_writing_is_removed_with_our_own(tmp_path: Path) -> None:
    for name in (".tmpskP7oz", "a.safetensors.12.partial", "deep/.tmpAbC123"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ("model.safetensors", ".tmp", ".tmpfiles.json"):
        (tmp_path / name).touch()
    files.remove_temporaries(tmp_path)
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"model.safetensors", ".tmp", ".tmpfiles.json"}


def test_a_look_at_a_folder_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed while it looks leaves nothing."""
    seen: list[list[Path]] = []
    opened = tempfile.TemporaryFile

    def looking(*args: Any, **more: Any) -> Any:
        made = opened(*args, **more)
        seen.append([*tmp_path.iterdir()])
        return made

    monkeypatch.setattr(tempfile, "TemporaryFile", looking)
    files.make_folder(tmp_path)
    assert seen == [[]]
