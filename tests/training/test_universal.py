"""Checkpoints for another number of processes: room for them is asked for, and they go when they have served."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from alignment.errors import UserError
from alignment.training import universal


def engine(zero: int = 2) -> Any:
    return cast(Any, SimpleNamespace(settings=SimpleNamespace(zero=zero), world=2))


def test_nothing_is_converted_that_would_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fragments, and what is put together from them: twice the checkpoint."""
    source = tmp_path / "checkpoint-3" / "global_step3"
    source.mkdir(parents=True)
    (source / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(bytes(1000))
    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=1999))
    with pytest.raises(UserError, match="MiB are needed"):
        universal.convert(source, tmp_path / "parts" / "universal" / "global_step3_universal")


def test_it_goes_with_the_first_checkpoint_of_this_number_of_processes(tmp_path: Path) -> None:
    converted = tmp_path / "parts" / "universal" / "global_step3_universal"
    converted.mkdir(parents=True)
    (tmp_path / "parts" / "stacks-0.txt").touch()
    checkpoint = tmp_path / "checkpoints" / "checkpoint-6.partial"
    checkpoint.mkdir(parents=True)
    universal.describe(checkpoint, engine())
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["stacks-0.txt"]
    assert universal.fits(checkpoint, engine())
