"""What stages that train may write, reckoned before they begin by the model that they are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from alignment import files, pipeline, run
from alignment.errors import UserError
from alignment.plans.step import Step
from alignment.store import Store

STAGES = {"sft": "model.weights", "dpo": "model.weights", "reward": "model.weights", "distill": "student.weights"}
WEIGHTS, ADAPTERS = 4 * 2_000 * 3_000, 4 * 16 * (2_000 + 3_000)
"""Six million weights of two bytes each are written in fp32; an adapter of rank 16 has a row and a column for each."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    matrix = np.zeros((2_000, 3_000), dtype=np.float16)
    save_file({"model.layers.0.mlp.up_proj.weight": matrix}, folder / "model.safetensors")
    return folder


def needed(stage: str, folder: Path | None, **changes: Any) -> int:
    module = pipeline.load_stage(stage)
    settings = module.Settings.parse(run.compose(stage, changes))
    return int(module.disk_needed_from(settings, {} if folder is None else {STAGES[stage]: folder}))


@pytest.mark.parametrize("stage", STAGES)
def test_it_reckons_with_the_weights_that_are_there(stage: str, model: Path) -> None:
    """The model, and three checkpoints of weights and two moments."""
    adapter = {"adapter.kind": "lora", "adapter.rank": 16}
    if stage == "distill":
        adapter["student.weights"] = "latest:sft"
    assert needed(stage, model) == 10 * WEIGHTS
    assert needed(stage, model, **adapter) == WEIGHTS + 9 * ADAPTERS
    snapshots = {"optimisation.snapshots": 4, "optimisation.steps": 12, "optimisation.epochs": None}
    assert needed(stage, model, **snapshots) == 14 * WEIGHTS, "those of steps 4 and 8, twice for a while"
    assert needed(stage, None) < 100e6, "before the weights are there the miniature counts"


def test_a_head_alone_has_no_moments(model: Path) -> None:
    assert needed("reward", model, part="head") == 4 * WEIGHTS


def test_what_does_not_fit_is_refused_before_it_begins(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model named by its folder alone, without a shape."""
    asked = list[int]()

    def refuse(folder: Path, wanted: int) -> None:
        asked.append(wanted)
        raise UserError("too little")

    monkeypatch.setattr(files, "need_space", refuse)
    maker = pipeline.Maker(Store(tmp_path / "runs"), run.compose, {})
    said = {"model.weights": f"dir:{model}", "model.shape": None, "data": f"dir:{model}"}
    with pytest.raises(UserError, match="too little"):
        maker.make(maker.plan("solo", Step("sft", "sft", said), {}))
    assert asked == [10 * WEIGHTS]
