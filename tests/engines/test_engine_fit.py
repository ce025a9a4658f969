"""What an engine cannot do is refused before anything is made."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf
from several import ROOT

from alignment import run
from alignment.errors import UserError
from alignment.settings import Settings
from alignment.training import fit
from alignment.training.engine import EngineSettings, batch_arithmetic, resolve
from alignment.training.fit import Machine

ENGINES = ("single", "gpu", "ddp", "zero1", "zero2", "zero3", "zero3_offload")


def engine(name: str, **changes: Any) -> EngineSettings:
    values = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "engine" / f"{name}.yaml"))
    return EngineSettings.parse(values | changes)  # type: ignore[operator]


def settings(name: str, *, stage: str = "sft", over: dict[str, Any] | None = None, **changes: Any) -> Settings:
    values = run.compose(stage, {"engine": name} | (over or {}))
    some = fit_stage(stage).parse(values, stage)
    return some.model_copy(update={"engine": some.engine.model_copy(update=changes)})


def fit_stage(stage: str) -> Any:
    return run.settings_class(stage)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")


def test_every_engine_of_the_folder_can_be_chosen() -> None:
    assert sorted(run.options("engine")) == sorted(ENGINES)
    for name in ENGINES:
        engine(name)


@pytest.mark.parametrize("name", ["ddp", "zero1", "zero2", "zero3", "zero3_offload"])
@pytest.mark.parametrize("stage", sorted(fit.TRAINING))
def test_every_training_stage_fits_every_engine(name: str, stage: str, launched: None) -> None:
    fit.check(stage, settings(name, stage=stage, micro_batch=1), 2, None, solo=True)


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize(
    ("name", "world", "changes", "told"),
    [
        ("single", 2, {}, "engine.processes=one: is for one process, and there are 2"),
        ("ddp", 1, {}, "engine.processes=several: is for several processes"),
        ("single", 1, {"offload": True}, "engine.offload=true"),
        ("ddp", 3, {}, "batch=32 does not divide among 3 processes"),
        ("ddp", 2, {"micro_batch": 3}, "engine.micro_batch=3 does not divide a process's share of 16 rows"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, world: int, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        fit.check("sft", settings(name, **changes), world, None, solo=True)
    assert caught.value.remedy


def test_zero_needs_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match=r"engine\.zero=2 outside a launcher"):
        fit.check("sft", settings("zero2"), 1, None, solo=True)


def test_zero_needs_deepspeed(monkeypatch: pytest.MonkeyPatch, launched: None) -> None:
    monkeypatch.setattr(fit, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="DeepSpeed is not installed"):
        fit.check("sft", settings("zero2"), 2, None, solo=True)


def test_four_bits_are_not_divided(launched: None) -> None:
    some = settings("zero3", over={"adapter.kind": "qlora"})
    with pytest.raises(UserError, match=r"adapter\.kind=qlora"):
        fit.check("sft", some, 2, None, solo=True)
    fit.check("sft", settings("zero2", over={"adapter.kind": "qlora"}), 2, None, solo=True)


def test_groups_of_answers_have_to_divide(launched: None) -> None:
    """48 answers in groups of 4 are 12 groups: 2 processes take 6 each, 8 cannot."""
    some = settings("zero2", stage="rl", over={"updating.batch": 48, "updating.minibatch": 48})
    fit.check("rl", some, 2, None, solo=True)
    with pytest.raises(UserError, match=r"updating\.batch=48: does not divide among 8 processes in groups of 4"):
        fit.check("rl", some, 8, None, solo=True)


@pytest.mark.parametrize(
    ("gpus", "told"),
    [
        ([1, 0], "process 1 on b sees no CUDA device"),
        ([0, 1], "process 0 on a sees no CUDA device"),
    ],
)
def test_gpus_that_are_not_there_are_named(gpus: list[int], told: str, launched: None) -> None:
    machines = [Machine(host, count) for host, count in zip("ab", gpus, strict=True)]
    with pytest.raises(UserError, match=told):
        fit.check("sft", settings("ddp", device="cuda"), 2, machines, solo=True)


def test_a_gpu_for_every_process(launched: None) -> None:
    """Three processes beside two GPUs are refused; a process that sees one alone has its own."""
    some = settings("ddp", device="cuda", micro_batch=1)
    fit.check("sft", some, 2, [Machine("a", 2), Machine("a", 2)], solo=True)
    fit.check("sft", some, 4, [Machine("a", 1)] * 4, solo=True)
    with pytest.raises(UserError, match="a has 2 GPUs for 3 processes"):
        fit.check("sft", some, 4, [Machine("a", 2)] * 4, solo=True)


def test_a_stage_that_trains_nothing_takes_no_zero_by_itself(launched: None) -> None:
    some = settings("zero2", stage="evaluate")
    with pytest.raises(UserError, match="stage=evaluate trains nothing"):
        fit.check("evaluate", some, 2, None, solo=True)
    fit.check("evaluate", some, 2, None, solo=False)


def test_a_batch_shell_with_several_tasks_is_told_of_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit.ranks, "batch_shell", lambda: 4)
    with pytest.raises(UserError, match="the job has 4 tasks, and this is its batch shell"):
        fit.check("sft", settings("single"), 1, None, solo=True)


def test_batch_arithmetic() -> None:
    """64 rows on 4 processes are 16 each: 4 forward passes of 4."""
    how = SimpleNamespace(world=4, settings=engine("ddp", micro_batch=4))
    assert batch_arithmetic(64, how) == (4, 4)  # type: ignore[arg-type]


def test_an_engine_settles_by_itself_on_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    found = resolve(engine("zero2", device="cpu", precision="fp32", layout="bucketed"))
    assert (found.world, found.device, found.bf16, found.packed) == (1, "cpu", False, False)
