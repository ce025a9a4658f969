"""Together the thorough tests try what the project promises: ten thousand examples."""

from __future__ import annotations

import importlib
from pathlib import Path

import fuzzing


def test_ten_thousand_examples() -> None:
    for path in Path(__file__).parent.glob("test_fuzzed_*.py"):
        importlib.import_module(path.stem)
    assert sum(fuzzing.SIZES.values()) >= 10_000
    assert len({name.split(".")[0] for name in fuzzing.SIZES}) == len(
        list(Path(__file__).parent.glob("test_fuzzed_*.py"))
    )
