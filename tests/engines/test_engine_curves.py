"""Two processes train what one trains: every stage, through the door, under every engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import several
import tiny_runs
from safetensors.torch import load_file

from alignment import run
from alignment.artifacts import RECORD, load

pytest.importorskip("deepspeed")

ENGINES = ("ddp", "zero1", "zero2", "zero3", "zero3_offload")
RELATIVE = 2e-6
"""What a different order of summation may change, in fp32 over 20 steps."""
OFFLOADED = 1e-5
"""The same where DeepSpeed's own Adam steps on the processor, which rounds in another order than PyTorch's; 2.4e-6 was
measured for pretraining."""
WHOLE = {"model.safetensors", "config.json", "tokenizer.json", "seen.npy"}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tiny_runs.Given:
    return tiny_runs.given(tmp_path_factory.mktemp("given"))


def alone(stage: str, given: tiny_runs.Given, store: Path, *more: str, steps: int = 20) -> Path:
    assert run.door(tiny_runs.line(stage, given, store, *more, steps=steps)) == 0
    return store


def apart(one: Path, other: Path, stage: str) -> dict[str, float]:
    """The largest difference of each curve, relative to one process's; the rows are of the same steps."""
    mine, theirs = (tiny_runs.curve(store, stage) for store in (one, other))
    assert [row["step"] for row in mine] == [row["step"] for row in theirs]
    found: dict[str, float] = {}
    for row, again in zip(mine, theirs, strict=True):
        assert row.keys() == again.keys()
        for name, value in row.items():
            found[name] = max(found.get(name, 0.0), abs(value - again[name]) / max(abs(value), 1e-3))
    return found


def need_alike(one: Path, other: Path, stage: str, relative: float = RELATIVE) -> None:
    """Curves, weights and records: the same but for rounding, and whole."""
    found = apart(one, other, stage)
    # Differences of scores, and the norm of a gradient, are small differences of large numbers.
    curves = {"loss", "held_out_loss", "learning_rate"} & found.keys()
    assert curves, found
    for name in curves:
        assert found[name] <= relative, (name, found)
    (mine,), (theirs,) = (list(store.glob(f"solo/{stage}-*")) for store in (one, other))
    weights, again = (load_file(folder / "model.safetensors") for folder in (mine, theirs))
    assert weights.keys() == again.keys()
    for name, weight in weights.items():
        assert weight.dtype == again[name].dtype, name
        assert (weight - again[name]).abs().max() < 1e-4, name
    assert load(theirs).verify() == []
    assert {path.name for path in theirs.iterdir()} == {path.name for path in mine.iterdir()}
    metrics, others = load(mine).metrics, load(theirs).metrics
    for name, value in metrics.items():
        assert others[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


def test_sft_on_two_processes(given: tiny_runs.Given, tmp_path: Path) -> None:
    """The small part: one group of processes goes through the door under DDP and under ZeRO 2."""
    alone("sft", given, tmp_path / "one", steps=8)
    micro = {"ddp": 2, "zero2": 4}
    lines = [
        tiny_runs.line("sft", given, tmp_path / name, f"engine={name}", f"engine.micro_batch={rows}", steps=8)
        for name, rows in micro.items()
    ]
    assert several.together(2, lines, tmp_path) == [0, 0]
    for name in micro:
        need_alike(tmp_path / "one", tmp_path / name, "sft")
    said = (tmp_path / "said.txt").read_text()
    assert said.count("finished: run:") == 2, said


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_every_stage_on_two_processes(engine: str, given: tiny_runs.Given, tmp_path: Path) -> None:
    stages = [*(stage for stage in tiny_runs.STAGES if stage != "rl"), *tiny_runs.OWN_ANSWERS]
    lines = [
        tiny_runs.line(stage, given, tmp_path / engine, f"engine={engine}", "engine.micro_batch=2") for stage in stages
    ]
    assert several.together(2, lines, tmp_path) == [0] * len(lines)
    for stage in stages:
        bound = OFFLOADED if engine == "zero3_offload" else RELATIVE
        need_alike(alone(stage, given, tmp_path / "one"), tmp_path / engine, stage, bound)
    assert not list(tmp_path.rglob(f"*{RECORD}.partial"))
