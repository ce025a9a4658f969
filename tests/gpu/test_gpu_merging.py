"""Merges computed on a device: the directories that the CPU writes, to the rounding of fp32."""

from __future__ import annotations

from pathlib import Path

import merge_models
import pytest
import torch

from alignment.merging import checkpoint, layout, plan

COUNT = 3


def family(folder: Path, dtype: torch.dtype) -> tuple[list[Path], Path]:
    """Models that were trained a little, and their start."""
    shapes = {name: shape for name, shape in merge_models.SHAPES.items() if name not in ("model.one", "model.scalar")}
    shapes["model.layers.0.mlp.down_proj.weight"] = (257, 129)
    start = merge_models.drawn(100, dtype, shapes)
    models = []
    for seed in range(COUNT):
        moved = merge_models.drawn(seed, torch.float32, shapes)
        weights = {name: (start[name].float() + 0.1 * moved[name]).to(dtype) for name in start}
        models.append(merge_models.write(folder / str(seed), weights))
    return models, merge_models.write(folder / "start", start)


@pytest.mark.parametrize("method", ["slerp", "linear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merge_is_that_of_the_cpu(device: str, method: str, dtype: torch.dtype, tmp_path: Path) -> None:
    models, start = family(tmp_path / "models", dtype)
    layouts, shares = [layout.read(one) for one in models], [0.5, 0.3, 0.2]

    def merged(where: str, name: str) -> merge_models.Weights:
        made = plan.slerp(layouts, shares, layout.read(start), "layer") if method == "slerp" else None
        out = tmp_path / name
        checkpoint.merge(
            made or plan.linear(layouts, shares),
            out,
            memory=64 << 20,
            threads=2,
            on_progress=lambda done: None,
            device=where,
        )
        return merge_models.read(out)

    found, wanted = merged(device, "found"), merged("cpu", "wanted")
    assert found.keys() == wanted.keys()
    step = 2.0**-7 if dtype == torch.bfloat16 else 2.0**-20
    for name, value in wanted.items():
        assert found[name].dtype == dtype
        bound = step * value.double().abs() + 1e-6
        assert ((found[name].double() - value.double()).abs() <= bound).all(), name
