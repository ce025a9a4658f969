"""Models that are put aside on the way: what becomes of them is what they were, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from alignment.errors import UserError
from alignment.training import snapshots


def written(out: Path, last: float) -> dict[str, torch.Tensor]:
    """What the model is afterwards."""
    held = {"weight": torch.full((3,), last)}
    snapshots.write(out, held, lambda folder: save_file(dict(held), folder / "model.safetensors"))
    return held


def test_they_become_models_and_the_run_keeps_its_last_weights(tmp_path: Path) -> None:
    for step in (12, 4, 4):
        snapshots.put_aside(tmp_path, step, {"weight": torch.full((3,), float(step))})
    assert written(tmp_path, 20.0)["weight"].tolist() == [20.0] * 3
    models = {path.name: load_file(path / "model.safetensors") for path in (tmp_path / "snapshots").iterdir()}
    assert {name: model["weight"].tolist() for name, model in models.items()} == {
        "step-4": [4.0] * 3,
        "step-12": [12.0] * 3,
    }


@pytest.mark.parametrize("damage", ["flipped", "cut", "unsealed"])
def test_a_damaged_one_is_refused_by_name_before_any_is_made(damage: str, tmp_path: Path) -> None:
    for step in (4, 12):
        snapshots.put_aside(tmp_path, step, {"weight": torch.full((3,), float(step))})
    path = tmp_path / "parts" / "snapshots" / "step-12.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-2])
    else:
        snapshots._seal(path).unlink()
    with pytest.raises(UserError, match=r"step-12\.safetensors is damaged"):
        written(tmp_path, 20.0)
    assert not (tmp_path / "snapshots").exists()
    path.unlink()
    written(tmp_path, 20.0)
    assert [one.name for one in (tmp_path / "snapshots").iterdir()] == ["step-4"]
