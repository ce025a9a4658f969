"""The hub's loader on local directories of the same layout."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignment.data import hub as loader
from alignment.data import store
from alignment.data.build import build
from alignment.data.sources import Hub
from alignment.errors import DataError, UserError

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


def test_a_folder_of_a_repository_is_a_subset_that_ends_with_a_slash(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    for part in ("one", "two"):
        (folder / part).mkdir(parents=True)
        (folder / part / "train.jsonl.gz").write_bytes(gzip.compress(f'{{"q": "{part}?", "a": "yes"}}\n'.encode()))
    build(parse(hub(folder, subset="two/")), tmp_path / "out", base=tmp_path)
    assert [row.messages[0].content for row in store.read(tmp_path / "out", "train")] == ["two?"]  # type: ignore[union-attr]
    assert store.entries(tmp_path / "out")[0].file == f"{folder}@main/two/train"
    with pytest.raises(DataError, match="cannot be read from the hub"):
        build(parse(hub(folder, subset="three/")), tmp_path / "out", base=tmp_path)


def test_a_local_directory_has_no_revisions_but_the_recipe_does(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"q": "1?", "a": "2"}\n')
    build(parse(hub(folder, revision="no-such-revision")), tmp_path / "out", base=tmp_path)
    assert len(store.read(tmp_path / "out", "train")) == 1
    for none in ("", None):
        with pytest.raises(UserError, match=r"hub\.revision"):
            parse(hub(folder, revision=none))


@pytest.mark.parametrize("content", [b'{"q": "1?", "a": "2"}\n{"q": \n', b'{"q": "1?", "a": "\xe9"}\n', b""])
def test_a_damaged_file_of_a_repository_is_told(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(content)
    with pytest.raises(DataError) as caught:
        build(parse(hub(folder)), tmp_path / "out", base=tmp_path)
    assert caught.value.where.startswith(f"{folder}@main/train")
    assert caught.value.remedy


def test_a_truncated_gzip_of_a_repository_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    packed = gzip.compress("".join(json.dumps({"q": f"{n:09d}" * 9, "a": "2"}) + "\n" for n in range(3000)).encode())
    (folder / "train.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match="cannot be read from the hub"):
        build(parse(hub(folder)), tmp_path / "out", base=tmp_path)


def test_a_repository_is_known_by_its_commit(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"q": "1?"}\n')
    local = Hub(repository=str(tmp_path), revision="main", subset=None, split="train")
    first = loader.commit(local)
    assert loader.commit(local) == first
    (tmp_path / "train.jsonl").write_text('{"q": "2?"}\n')
    assert loader.commit(local) != first
    whole = "0123456789abcdef0123456789abcdef01234567"
    assert loader.commit(Hub(repository="nobody/there", revision=whole, subset=None, split="train")) == whole


def test_a_hub_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object, **named: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(loader.HfApi, "dataset_info", refused)
    with pytest.raises(DataError, match=r"nobody/there@main: the hub does not tell its commit"):
        loader.commit(Hub(repository="nobody/there", revision="main", subset=None, split="train"))
