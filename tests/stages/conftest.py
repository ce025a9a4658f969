"""Stores with some parts of the miniature in them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest


@pytest.fixture
def copy_of(smoke: Path, tmp_path: Path) -> Callable[[Sequence[str]], Path]:
    """A store of one's own with some steps of the smoke pipeline, so that others can be made anew."""

    def copy(steps: Sequence[str]) -> Path:
        store = tmp_path / "runs"
        for path in smoke.glob("smoke/*"):
            if path.is_dir() and path.name.rsplit("-", 1)[0] in steps:
                shutil.copytree(path, store / "smoke" / path.name)
        return store

    return copy
