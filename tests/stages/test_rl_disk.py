"""What ``stage=rl`` may write, reckoned before it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reinforcing
import rewarding
from safetensors.numpy import save_file

from alignment import artifacts, files, run
from alignment.artifacts import Artifact
from alignment.stages import rl


def needed(folder: Path | None, **changes: Any) -> int:
    settings = rl.Settings.parse(run.compose("rl", changes))
    return rl.disk_needed_from(settings, {} if folder is None else {"policy": folder})


def test_it_reckons_with_the_policy_that_it_is_given(tmp_path: Path) -> None:
    """Six million weights of two bytes each; weights, checkpoints and moments are written in fp32."""
    matrix = np.zeros((2_000, 3_000), dtype=np.float16)
    save_file({"model.layers.0.mlp.up_proj.weight": matrix}, tmp_path / "model.safetensors")
    weights, adapters = 4 * matrix.size, 4 * 16 * (2_000 + 3_000)
    plain = needed(tmp_path)
    assert plain == weights + 3 * 3 * weights + rl.RECORDS
    assert needed(tmp_path, **{"estimating.kind": "gae"}) == weights + 3 * 6 * weights + rl.RECORDS
    assert needed(tmp_path, **{"anchoring.kind": "ema"}) == plain + 3 * weights
    assert needed(tmp_path, **{"watching.keep": "best"}) == plain + 4 * weights
    assert needed(tmp_path, **{"adapter.kind": "lora"}) == weights + 9 * adapters + rl.RECORDS


def test_before_the_policy_is_there_the_miniature_counts() -> None:
    assert 10 * 4e6 < needed(None) - rl.RECORDS < 100e6


@pytest.mark.parametrize(
    "more", [("anchoring.kind=ema", "watching.keep=best"), ("adapter={kind: lora, rank: 4, alpha: 8}",)]
)
def test_a_run_writes_no_more_than_was_reckoned_and_not_much_less(
    more: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = rewarding.policy(tmp_path / "model")
    data, judge = reinforcing.prompts(tmp_path / "prompts"), reinforcing.reward(tmp_path / "reward", model)
    reckoned, written = [], []
    finish = artifacts.finish

    def weighed(artifact: Artifact) -> Artifact:
        """Two checkpoints of three are there at the end."""
        there = (path for path in artifact.path.rglob("*") if path.suffix in (".safetensors", ".pt"))
        written.append(sum(path.stat().st_size for path in there))
        return finish(artifact)

    monkeypatch.setattr(files, "need_space", lambda _, wanted: reckoned.append(wanted - rl.RECORDS))
    monkeypatch.setattr(artifacts, "finish", weighed)
    reinforcing.trained(tmp_path / "runs", model, data, judge.path, *more)
    assert reckoned[0] / 4 < written[-1] < reckoned[0]
