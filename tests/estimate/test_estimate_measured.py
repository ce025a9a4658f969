"""The estimate beside what training really takes: the most that PyTorch's allocator had given out at one moment."""

from __future__ import annotations

import gc
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def compared(folder: Path, *arguments: str) -> list[dict]:
    """What the benchmark found: each case with what was predicted and measured."""
    out = folder / "pairs.json"
    command = [sys.executable, "benchmarks/estimate.py", "--json", str(out), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text())


def test_a_small_training_takes_what_was_predicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, which has freed what it could before."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    benchmark = importlib.import_module("estimate")
    case = next(case for case in benchmark.CASES if case.shape == "small")
    gc.collect()
    measured = benchmark.measured(case, tmp_path)["step"]
    assert max(phase.total for phase in benchmark.predicted(case)) == pytest.approx(measured, rel=0.05)


@pytest.mark.slow
def test_every_case_takes_what_was_predicted(tmp_path: Path) -> None:
    pairs = compared(tmp_path)
    assert {pair["moment"] for pair in pairs} == {"draw", "judge", "read", "step"}
    assert {pair["case"].split()[0] for pair in pairs} == {"sft", "distill", "reward", "dpo", "rl"}
    for pair in pairs:
        assert pair["predicted"] == pytest.approx(pair["measured"], rel=0.15), pair
