"""Adapters, bf16, activations computed again, parts in the CPU's memory: two processes train what one trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import several
import tiny_runs
from safetensors.torch import load_file

from alignment import run
from alignment.artifacts import load

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow

STAGES = ("sft", "reward")
STEPS = 8
LORA, BF16, AGAIN = "adapter.kind=lora", "engine.precision=bf16", "engine.gradient_checkpointing=true"
WAYS: dict[str, tuple[str, tuple[str, ...]]] = {
    # The engine, and what is said besides to both.
    "lora under ZeRO 2": ("zero2", (LORA,)),
    "lora under ZeRO 3": ("zero3", (LORA,)),
    "bf16 under ZeRO 1": ("zero1", (BF16,)),
    "bf16 under ZeRO 3": ("zero3", (BF16,)),
    "again under DDP": ("ddp", (AGAIN,)),
    "again under ZeRO 2": ("zero2", (AGAIN,)),
    "again under ZeRO 3": ("zero3", (AGAIN,)),
    "offload": ("zero3_offload", ()),
    "lora, again and offload": ("zero3_offload", (LORA, AGAIN)),
    "all of it": ("zero3_offload", (LORA, BF16, AGAIN)),
}
FP32, ROUGH = 2e-6, 2e-2
"""What a different order of summation may change of a loss, relative, in either precision."""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tiny_runs.Given:
    return tiny_runs.given(tmp_path_factory.mktemp("given"))


@pytest.fixture(scope="module")
def together(given: tiny_runs.Given, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One group of processes goes through every way of every stage."""
    root = tmp_path_factory.mktemp("together")
    lines = [
        tiny_runs.line(stage, given, root / place(way), f"engine={engine}", "engine.micro_batch=2", *more, steps=STEPS)
        for way, (engine, more) in WAYS.items()
        for stage in STAGES
    ]
    codes = several.together(2, lines, root)
    assert codes == [0] * len(lines), codes
    return root


def place(way: str) -> str:
    return way.replace(" ", "_").replace(",", "")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_train_what_one_trains(
    way: str, stage: str, given: tiny_runs.Given, together: Path, tmp_path: Path
) -> None:
    _, more = WAYS[way]
    assert run.door(tiny_runs.line(stage, given, tmp_path, *more, steps=STEPS)) == 0
    wanted, found = (tiny_runs.curve(store, stage) for store in (tmp_path, together / place(way)))
    bound = ROUGH if BF16 in more else FP32
    assert [row["step"] for row in found] == [row["step"] for row in wanted]
    for row, again in zip(wanted, found, strict=True):
        for name in {"loss", "held_out_loss"} & row.keys():
            assert again[name] == pytest.approx(row[name], rel=bound, abs=bound / 10), (name, row["step"])
    (mine,), (theirs,) = (list(store.glob(f"solo/{stage}-*")) for store in (tmp_path, together / place(way)))
    assert load(theirs).verify() == []
    near = {"rel": max(1e-3, 10 * bound), "abs": 1e-4 if bound == FP32 else 0.1}
    for metric, value in load(mine).metrics.items():
        assert load(theirs).metrics[metric] == pytest.approx(value, **near), metric
    names = ["model.safetensors"] + (["adapter/adapter_model.safetensors"] if LORA in more else [])
    for name in names:
        weights, again_too = (load_file(folder / name) for folder in (mine, theirs))
        assert weights.keys() == again_too.keys()
        for key, weight in weights.items():
            assert weight.shape == again_too[key].shape, key
            assert (weight - again_too[key]).abs().max() < (2e-2 if BF16 in more else 1e-4), key
