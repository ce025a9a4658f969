"""stage=estimate: what it prints and writes, and what it refuses, in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignment import run
from alignment.estimate.arithmetic import Model
from alignment.gemma.presets import SHAPES


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert run.door(["stage=estimate", *arguments]) == code
    captured = capsys.readouterr()
    return captured.out + captured.err


def written(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    said(capsys, f"out={folder / 'numbers.json'}", *arguments)
    return json.loads((folder / "numbers.json").read_text())


def test_a_column_for_every_number_of_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "model=gemma2_9b", "engine=zero3", "gpus=[8,64]")
    assert "9,241,705,984 parameters" in text
    assert "8 x h100" in text
    assert "64 x h100" in text
    for part in ("weights", "optimiser states", "fits h100", "gradients, GB", "seconds", "zero3_offload"):
        assert part in text
    assert "512 x" not in text


def test_numbers_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = written(tmp_path, capsys, "model=gemma1_2b", "engine=ddp", "gpus=2", "gpu=a100", "batch=64")
    (one,) = numbers["runs"]
    held = Model(SHAPES["gemma1_2b"], 256_000).held
    assert numbers["parameters"] == numbers["trained"] == held
    assert one["parts"]["weights"] == one["parts"]["buffers"] == 4 * held
    assert one["bytes"] == pytest.approx(sum(one["parts"].values()))
    assert one["bytes"] == pytest.approx(max(sum(parts.values()) for parts in one["phases"].values()))
    assert one["fits"] is (one["bytes"] <= numbers["usable"] * numbers["gpu_bytes"])
    # Half of eight bytes a parameter, twice, at 300 GB/s.
    assert one["sent_bytes"]["gradients"] == 4 * held
    assert one["seconds"] == pytest.approx(4 * held / 300e9)


def test_the_least_that_fits_is_the_first_that_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("model=gemma2_9b", "engine=zero2", "batch=512")
    least = written(tmp_path, capsys, *arguments, "gpus=[8]")["least"]["zero2"]
    assert least is not None
    assert least > 1
    few, enough = (written(tmp_path, capsys, *arguments, f"gpus=[{gpus}]")["runs"][0] for gpus in (least // 2, least))
    assert not few["fits"]
    assert enough["fits"]


def test_roles_on_one_trunk_need_less(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("of=rl", "model=gemma2_2b", "engine=zero2", "gpus=[8]", "batch=64")
    apart = written(tmp_path, capsys, *common)["runs"][0]
    shared = written(tmp_path, capsys, *common, "rl.roles=shared", "adapter_rank=16")["runs"][0]
    assert shared["bytes"] < 0.6 * apart["bytes"]
    assert {"anchor", "critic", "reward models"} <= apart["parts"].keys()
    assert apart["phases"]["draw"]["KV cache"] == 8 * 2048 * 2 * 26 * 4 * 256 * 4


def test_a_teacher_stands_beside_its_student(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("of=distill", "engine=zero3", "gpus=[8]", "batch=64")
    teacher = Model(SHAPES["gemma2_9b"], 256_000)
    live = written(tmp_path, capsys, *common)["runs"][0]
    assert live["phases"]["update"]["teacher"] == 4 * (teacher.held / 8 + teacher.embedding)
    stored = written(tmp_path, capsys, *common, "distill={mode: offline, teacher: null, top_k: 32}")["runs"][0]
    assert stored["phases"]["loss"]["teacher"] == 2048 * (32 * 12 + 4 + 16 * 8 + 4)
    drawn = written(tmp_path, capsys, *common, "distill={mode: on_policy, prompt: 512, answer: 256}")["runs"][0]
    assert drawn["phases"]["draw"]["KV cache"] == 8 * 768 * 212_992
    together = written(tmp_path, capsys, *common, "distill={mode: minillm, rollouts: 1024, prompt: 512, answer: 256}")
    assert together["runs"][0]["phases"]["draw"]["KV cache"] == 128 * 768 * (212_992 + 688_128)
    assert together["runs"][0]["sent_bytes"]["rollout"] > drawn["sent_bytes"]["rollout"]
    assert drawn["sent_bytes"]["rollout"] > live["sent_bytes"]["rollout"] == 0


def test_a_folder_gives_shape_and_vocabulary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from alignment.gemma import core
    from alignment.gemma.presets import TokenIds

    core.config(SHAPES["mini_large"], 1234, TokenIds()).save_pretrained(tmp_path)
    numbers = written(tmp_path, capsys, f"model=dir:{tmp_path}", "engine=zero1", "gpus=[2]", "length=512")
    assert numbers["parameters"] == Model(SHAPES["mini_large"], 1234).held


def test_the_table_tells_every_moment(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "of=rl", "engine=zero2", "gpus=[8]", "batch=64")
    for moment in ("draw", "of draw the KV cache", "judge", "read", "critic's backward begins", "update"):
        assert moment in text


@pytest.mark.parametrize("engine", ["gpu", "ddp", "zero1", "zero2", "zero3", "zero3_offload"])
def test_every_engine_has_an_estimate(engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpus = 1 if engine == "gpu" else 4
    assert written(tmp_path, capsys, f"engine={engine}", f"gpus=[{gpus}]")["runs"][0]["bytes"] > 0


REFUSED = [
    (["gpu=h101"], "gpu=h101: is not known here"),
    (["gpus=[0]"], "gpus=0: a run has one GPU or more"),
    (["gpus=[8,-1]"], "gpus=-1"),
    (["gpus=[]"], "gpus=[]: no number of GPUs"),
    (["gpus=many"], "gpus"),
    (["engine=single", "gpus=[8]"], "is for one process"),
    (["engine=ddp", "gpus=[1]"], "is for several processes"),
    (["engine.device=cpu"], "engine.device=cpu"),
    (["engine.offload=true", "engine.zero=0"], "engine.offload=true"),
    (["batch=100", "gpus=[8]"], "batch=100 does not divide among 8 processes"),
    (["engine.micro_batch=3", "batch=64", "gpus=[8]"], "engine.micro_batch=3 does not divide"),
    (["length=9000"], "length=9,000: the model sees 8,192 tokens"),
    (["of=rl", "rl.prompt=8000", "rl.answer=500"], "rl.prompt + rl.answer=8,500"),
    (["of=rl", "rl.roles=shared"], "rl.roles=shared: roles on one trunk are adapters"),
    (["of=rl", "rl.half_trunk=true"], "rl.half_trunk=true"),
    (["of=rl", "rl.samples=3"], "does not divide into groups of rl.samples=3"),
    (["of=rl", "rl.rewards=[gemma3_1b]"], "There is no model shape 'gemma3_1b'"),
    (["of=distill", "distill.mode=offline"], "distill.mode=offline distill.teacher=gemma2_9b"),
    (["of=distill", "distill.mode=minillm", "distill.teacher=null"], "distill.mode=minillm distill.teacher=null"),
    (["of=distill", "distill.mode=minillm", "distill.drawn=server"], "distill.drawn=server"),
    (["of=distill", "distill.teacher=gemma3_4b"], "There is no model shape 'gemma3_4b'"),
    (["of=distill", "distill.mode=on_policy", "distill.prompt=8000"], "distill.prompt + distill.answer=9,024"),
    (["of=merge"], "of='merge'"),
    (["model=hf:google/gemma-2-2b"], "nothing says its shape"),
    (["model=latest:nothing"], "holds no finished artifact"),
    (["model.attention=sdpa"], "model.attention=sdpa"),
    (["usable=0"], "usable=0"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED, ids=[" ".join(one) for one, _ in REFUSED])
def test_what_no_run_could_be_is_refused(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(capsys, f"store={tmp_path}", *arguments, code=2)
    assert words in text
    assert "Traceback" not in text
