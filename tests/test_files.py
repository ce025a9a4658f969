"""Files that several processes of a run look at in the same moment."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from alignment import files


def test_processes_that_make_one_folder_do_not_disturb_each_other(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as together:
        for made in [together.submit(files.make_folder, tmp_path / str(n // 8) / "parts") for n in range(1_600)]:
            made.result()
    assert not list(tmp_path.rglob(f"*{files.TEMPORARY}"))
