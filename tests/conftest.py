"""Fixtures for every room's tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests_support import QUIET, call

# Two OpenMP threads that share their cores with another process wait for each other, 10 to 100 times longer.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
# As wide as where nobody looks on: pytest-xdist tells its workers a width of its own.
os.environ.pop("COLUMNS", None)

ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a finished `pipeline=smoke` come first.

    Of two workers that steal from the end of each other's queue the first then does them all, and makes it once.
    """
    items.sort(key=lambda item: "smoke" not in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data, or a skip with a word where it is not there."""
    folder = Path(os.environ.get("ALIGNMENT_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; ALIGNMENT_SHARED=<folder> names it")
    return folder


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a finished `pipeline=smoke`."""
    store = tmp_path_factory.mktemp("smoke") / "runs"
    done = call(store, "stage=pipeline", "pipeline=smoke", *QUIET)
    assert done.returncode == 0, done.stdout + done.stderr
    return store
