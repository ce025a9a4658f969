"""The hub's loader on local directories of the same layout."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignment.data import store
from alignment.data.build import build
from alignment.errors import DataError

from .examples import parse, source


def hub(folder: Path, **changes: str | None) -> dict:
    values = {"repository": str(folder), "revision": "main", "subset": None, "split": "train"}
    return source(files=None, hub=values | changes)


def test_a_repository_of_parquet_files(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    (folder / "data").mkdir(parents=True)
    for split, count in (("train", 3), ("test", 2)):
        table = pa.table({"q": [f"{split} {n}?" for n in range(count)], "a": ["yes"] * count})
        pq.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")
    summary = build(parse(hub(folder)), tmp_path / "out", base=tmp_path)
    assert summary.rows == {"train": 3}
    assert [row.messages[0].content for row in store.read(tmp_path / "out", "train")] == [  # type: ignore[union-attr]
        "train 0?", "train 1?", "train 2?",
    ]  # fmt: skip
    line = store.entries(tmp_path / "out", line=2)[0]
    assert (line.file, line.id) == (f"{folder}@main/train", "s:2")


def test_a_repository_of_json_lines_with_subsets(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    for subset in ("easy", "hard"):
        (folder / subset).mkdir(parents=True)
        (folder / subset / "train.jsonl").write_text(json.dumps({"q": f"{subset}?", "a": "yes"}) + "\n")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: easy\n  data_files: easy/*.jsonl\n"
        "- config_name: hard\n  data_files: hard/*.jsonl\n---\n"
    )
    build(parse(hub(folder, subset="hard")), tmp_path / "out", base=tmp_path)
    assert store.read(tmp_path / "out", "train")[0].messages[0].content == "hard?"  # type: ignore[union-attr]


def test_what_cannot_be_had_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"q": "1?", "a": "2"}\n')
    for changes in ({"split": "validation"}, {"repository": str(tmp_path / "nowhere")}, {"subset": "other"}):
        with pytest.raises(DataError, match="cannot be read from the hub") as caught:
            build(parse(hub(folder, **changes)), tmp_path / "out", base=tmp_path)
        assert caught.value.cause
        assert caught.value.remedy
