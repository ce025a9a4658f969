"""A Slurm that only writes down, and one that runs; the tiny models of other rooms' tests serve here too."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from stub_slurm import Stub
from throwaway_slurm import Cluster, UnavailableError, install

sys.path += [str(Path(__file__).parents[1] / room) for room in ("stages", "engines", "rl", "security")]


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    """Slurm's programs, first on the PATH, which write down what they are told."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return Stub(folder)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes that take jobs, or a skip with a word where there can be none."""
    try:
        install()
    except UnavailableError as error:
        pytest.skip(str(error))
    made = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        made.up()
        yield made
    finally:
        made.down()
