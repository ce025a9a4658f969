"""What is not whole is refused by its file's name, before a weight is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from merge_models import SHAPES, drawn, write

from alignment.errors import UserError
from alignment.merging import layout


def test_where_the_tensors_lie(tmp_path: Path) -> None:
    weights = drawn(0)
    for shards in (0, 3):
        directory = write(tmp_path / f"model{shards}", weights, shards)
        found = layout.read(directory)
        assert (found.index is None) == (shards == 0)
        assert len(found.shards) == max(shards, 1)
        assert {name: entry.shape for name, entry in found.entries.items()} == SHAPES
        for name, entry in found.entries.items():
            data = entry.path.read_bytes()[entry.start : entry.start + 4 * entry.count]
            assert data == weights[name].numpy().tobytes()
        for shard in found.shards:
            assert shard.path.read_bytes().startswith(shard.head)
            assert shard.size == shard.path.stat().st_size


def cut(directory: Path) -> None:
    path = directory / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(directory: Path) -> None:
    path = directory / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes() + b"\0")


def spoil_header(directory: Path) -> None:
    path = directory / "model-00002-of-00003.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:8] + b"[" + data[9:])


def spoil_length(directory: Path) -> None:
    path = directory / "model-00002-of-00003.safetensors"
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def empty(directory: Path) -> None:
    (directory / "model-00002-of-00003.safetensors").write_bytes(b"")


def lose(directory: Path) -> None:
    (directory / "model-00002-of-00003.safetensors").unlink()


@pytest.mark.parametrize("damage", [cut, lengthen, spoil_header, spoil_length, empty, lose])
def test_a_damaged_shard_is_named(damage: Callable[[Path], None], tmp_path: Path) -> None:
    directory = write(tmp_path / "model", drawn(0), 3)
    damage(directory)
    with pytest.raises(UserError, match=r"model-00002-of-00003\.safetensors"):
        layout.read(directory)


def index_with(directory: Path, change: Callable[[dict[str, str]], None]) -> None:
    path = directory / layout.INDEX
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def test_the_index_and_the_shards_must_fit(tmp_path: Path) -> None:
    directory = write(tmp_path / "lacks", drawn(0), 3)
    index_with(directory, lambda names: names.update({"model.ghost": "model-00001-of-00003.safetensors"}))
    with pytest.raises(UserError, match=r"model-00001-of-00003\.safetensors lacks model\.ghost"):
        layout.read(directory)
    directory = write(tmp_path / "holds", drawn(0), 3)
    index_with(directory, lambda names: names.pop("model.one"))
    with pytest.raises(UserError, match=r"unknown to the index, model\.one"):
        layout.read(directory)


@pytest.mark.parametrize("file", ["../model.safetensors", "/model.safetensors", "model.bin"])
def test_an_index_names_safetensors_beside_it(file: str, tmp_path: Path) -> None:
    directory = write(tmp_path / "model", drawn(0), 3)
    index_with(directory, lambda names: names.update({"model.one": file}))
    with pytest.raises(UserError, match="names '" + file.replace(".", r"\.")):
        layout.read(directory)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_that_is_none(text: str, tmp_path: Path) -> None:
    directory = write(tmp_path / "model", drawn(0), 3)
    (directory / layout.INDEX).write_text(text)
    with pytest.raises(UserError, match=layout.INDEX):
        layout.read(directory)


def test_two_models_in_one_directory(tmp_path: Path) -> None:
    directory = write(tmp_path / "model", drawn(0), 3)
    (directory / layout.SINGLE).write_bytes(b"")
    with pytest.raises(UserError, match="holds both"):
        layout.read(directory)


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        layout.read(tmp_path)
