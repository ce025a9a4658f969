"""Every test here runs on a device: on ``cpu`` in the default run, on ``cuda`` in ``make gpu-check``.

What a test asserts is the same on both; on a GPU it is the GPU that is held to what the CPU, or float64, gives.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# What tests of other rooms are made with; pytest itself finds it only for those in the same folder.
sys.path += [str(Path(__file__).parents[1] / room) for room in ("gemma", "merging", "stages")]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of a module with ``CPU_IS_SLOW`` has its turn on the CPU in ``make test-slow``."""
    if "device" in metafunc.fixturenames:
        slow = [pytest.mark.slow] if getattr(metafunc.module, "CPU_IS_SLOW", False) else []
        devices = [pytest.param("cpu", marks=slow), pytest.param("cuda", marks=pytest.mark.gpu)]
        metafunc.parametrize("device", devices, indirect=True)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The device, with matrix products in the precision that they say; skipped where it is not there."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("this machine has no CUDA device")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    # What one test has compiled would count towards the recompilations of the next.
    torch.compiler.reset()
    yield request.param
    torch.set_float32_matmul_precision(before)
