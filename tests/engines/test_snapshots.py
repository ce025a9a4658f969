"""Models along a run: what they hold, who can name and merge them, and that a stop changes nothing of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import torch
from safetensors.torch import load_file

from alignment import artifacts, run
from alignment.store import Store
from alignment.training import snapshots

SNAPSHOTS = dict.fromkeys(tiny_runs.STAGES, "optimisation.snapshots=2") | {"rl": "updating.snapshots=2"}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tiny_runs.Given:
    return tiny_runs.given(tmp_path_factory.mktemp("given"))


def made(stage: str, given: tiny_runs.Given, store: Path, *more: str, steps: int = 5) -> artifacts.Artifact:
    assert run.door(tiny_runs.line(stage, given, store, *more, steps=steps, every=3)) == 0
    return Store(store).latest(stage)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def along(artifact: artifacts.Artifact) -> dict[str, Path]:
    return {path.name: path for path in sorted((artifact.path / "snapshots").iterdir())}


SOME = [stage if stage == "sft" else pytest.param(stage, marks=pytest.mark.slow) for stage in tiny_runs.STAGES]


@pytest.mark.parametrize("stage", SOME)
def test_every_training_stage_keeps_what_it_had_at_these_steps(
    stage: str, given: tiny_runs.Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: dict[int, dict[str, torch.Tensor]] = {}
    put_aside = snapshots.put_aside

    def watched(out: Path, step: int, trained: Any) -> None:
        held[step] = {name: weight.detach().clone() for name, weight in trained.items()}
        put_aside(out, step, trained)

    monkeypatch.setattr(snapshots, "put_aside", watched)
    kept = made(stage, given, tmp_path / "with", SNAPSHOTS[stage])
    plain = made(stage, given, tmp_path / "without")
    assert torch.equal(*(one for one in map(_flat, (weights(kept.path), weights(plain.path))))), "the result is as ever"
    assert not (plain.path / "snapshots").exists()
    assert [*along(kept)] == ["step-2", "step-4"]
    assert [*held] == [2, 4]
    for step, folder in zip(held, along(kept).values(), strict=True):
        found = weights(folder)
        same = [name for name in found if any(torch.equal(found[name], one) for one in held[step].values())]
        assert len(same) == len(found), "all of them are what was trained"
        record = artifacts.load(folder)
        assert (record.kind, record.parents, record.tokens) == (kept.kind, kept.parents, kept.tokens)
        assert record.step == f"{stage}, step {step}"
        assert (folder / "seen.npy").is_file() == (kept.path / "seen.npy").is_file()
    assert len({record.fingerprint for record in map(artifacts.load, along(kept).values())} | {kept.fingerprint}) == 3
    assert not list(kept.path.rglob("parts")), "what was put aside is gone"


def _flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def test_they_are_averaged_like_any_models_of_one_start(given: tiny_runs.Given, tmp_path: Path) -> None:
    base = made("pretrain", given, tmp_path)
    sft = made("sft", given, tmp_path, f"model=run:{base.path}", SNAPSHOTS["sft"])
    members = [*along(sft).values(), sft.path]
    named = ",".join(f"run:{path}" for path in members)
    assert run.door(["stage=merge", f"store={tmp_path}", "method=ema", "rate=0.25", f"models=[{named}]"]) == 0
    found = weights(Store(tmp_path).latest("merge").path)
    counted = (0.75**2, 0.25 * 0.75, 0.25)
    for name, value in found.items():
        wanted = sum(count * weights(path)[name].double() for count, path in zip(counted, members, strict=True))
        assert torch.allclose(value.double(), wanted, rtol=0, atol=1e-6), name


@pytest.mark.parametrize("stage", [pytest.param("sft", marks=pytest.mark.slow), "rl"])
def test_a_stop_changes_no_bit_of_them(
    stage: str, given: tiny_runs.Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = made(stage, given, tmp_path / "whole", SNAPSHOTS[stage])
    put_aside = snapshots.put_aside

    def stopping(out: Path, step: int, trained: Any) -> None:
        if step == 4:
            raise KeyboardInterrupt
        put_aside(out, step, trained)

    line = tiny_runs.line(stage, given, tmp_path / "stopped", SNAPSHOTS[stage], steps=5, every=3)
    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "put_aside", stopping)
        assert run.door(line) == 130
    assert run.door(line) == 0
    found = Store(tmp_path / "stopped").latest(stage)
    mine, theirs = (artifacts.load(one.path).files for one in (found, wanted))
    # It draws how fast answers were drawn.
    assert {name for name in theirs if mine[name] != theirs[name]} <= {"plots.html"}
    for one, other in zip(along(found).values(), along(wanted).values(), strict=True):
        assert artifacts.load(one).files == artifacts.load(other).files


def test_an_adapter_has_none(given: tiny_runs.Given, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    line = tiny_runs.line("sft", given, tmp_path, "adapter.kind=lora", SNAPSHOTS["sft"])
    assert run.door(line) == 2
    assert "optimisation.snapshots=2 and adapter.kind=lora" in "".join(capfd.readouterr())
