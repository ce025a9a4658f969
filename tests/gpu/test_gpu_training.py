"""Stages through the door on a device: in fp32 their curves are the CPU's; in bf16 they learn.

A Gemma 1 takes sdpa on both; a Gemma 2 is eager on a CPU and flex attention on a GPU, where rows are packed as well.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import drawing
import pytest
import reinforcing
import rewarding
import torch
from safetensors.torch import load_file

from alignment import artifacts, run
from alignment.artifacts import Artifact
from alignment.chat.types import Conversation, messages
from alignment.gemma.presets import Shape
from alignment.store import Store
from alignment.training.tracking import read_metrics

CPU_IS_SLOW = True
GEMMA1 = Shape("gemma1", 32, 2, 48, 2, 1, head_dim=16, query_scale=16, context=96)
SHAPES = {"gemma1": GEMMA1, "gemma2": rewarding.SHAPE}
SFT = (
    "tracker=off",
    "tracker.every=1",
    "optimisation={steps: 6, epochs: null, batch: 8, learning_rate: 1e-2, checkpoint_steps: 3}",
)
CURVE = 2e-4
"""Relative, of losses in fp32 over some steps whose every update rounds otherwise."""


class Parts(NamedTuple):
    """What a command line names."""

    model: Path
    teacher: Path
    conversations: Path
    pairs: Path
    prompts: Path


@pytest.fixture(scope="module", params=SHAPES)
def parts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    root = tmp_path_factory.mktemp(request.param)
    said = [
        Conversation(
            messages(
                ("user", f"Who lives in house {n}{', and who else' * (n % 4)}?"), ("assistant", "The baker does.")
            ),
            f"c-{n}",
        )
        for n in range(40)
    ]
    larger = replace(SHAPES[request.param], width=48)
    return Parts(
        rewarding.policy(root / "model", shape=SHAPES[request.param], schema=request.param),
        rewarding.policy(root / "teacher", shape=larger, schema=request.param),
        drawing.dataset(root / "conversations", "conversations", {"train": said[:32], "valid": said[32:]}).path,
        rewarding.pairs(root / "pairs", {"train": rewarding.street(16), "valid": rewarding.street(8, 50)}),
        reinforcing.prompts(root / "prompts"),
    )


def on(device: str, precision: str = "fp32") -> tuple[str, ...]:
    """Packed on a GPU, as engine=gpu has it, and beside each other on a CPU."""
    return (f"engine.device={device}", f"engine.precision={precision}", "engine.layout=auto")


def made(store: Path, *arguments: str) -> Artifact:
    """The artifact that a command line makes."""
    assert run.door([f"store={store}", *arguments]) == 0
    return Store(store).finished()[-1]


def tuned(store: Path, parts: Parts, *more: str) -> Artifact:
    data = f"data=dir:{parts.conversations}"
    return made(store, "stage=sft", f"model=dir:{parts.model}", data, *SFT, *more)


def curve(of: Artifact, name: str = "loss") -> list[float]:
    found = [row[name] for row in read_metrics(of.path / "metrics.jsonl") if name in row]
    assert len(found) > 1
    return found


def weights_apart(one: Artifact, other: Artifact) -> float:
    """The largest difference, of all weights."""
    some, others = (load_file(of.path / "model.safetensors") for of in (one, other))
    assert some.keys() == others.keys()
    return max(float((some[name] - others[name]).abs().max()) for name in some)


def test_sft_has_the_curve_of_the_cpu(device: str, parts: Parts, tmp_path: Path) -> None:
    there = tuned(tmp_path / "there", parts, *on(device), "watts=300")
    here = tuned(tmp_path / "here", parts, *on("cpu"))
    assert there.notes["device"] == device
    assert curve(there) == pytest.approx(curve(here), rel=CURVE)
    assert curve(there, "held_out_loss") == pytest.approx(curve(here, "held_out_loss"), rel=CURVE)
    assert curve(there)[-1] < curve(there)[0] - 0.2
    # NVML's counters move in steps of some tenths of a second; it is less than a kilowatt for less than an hour.
    took = there.energy
    assert took is not None
    assert took.kwh is not None
    assert 0 <= took.kwh < 1
    assert took.device == (artifacts.machine()["cpu"] if device == "cpu" else torch.cuda.get_device_name(0))


def test_sft_in_bf16_learns_and_computing_activations_again_changes_nothing(
    device: str, parts: Parts, tmp_path: Path
) -> None:
    plain = tuned(tmp_path / "plain", parts, *on(device, "bf16"))
    again = tuned(tmp_path / "again", parts, *on(device, "bf16"), "engine.gradient_checkpointing=true")
    whole = tuned(tmp_path / "whole", parts, *on(device))
    assert plain.notes["precision"] == "bf16 autocast"
    assert curve(plain) == pytest.approx(curve(whole), rel=0.05)
    assert curve(plain) != curve(whole)
    assert curve(again) == pytest.approx(curve(plain), rel=2e-3)


@pytest.mark.parametrize("mode", ["live", "minillm"])
def test_distillation_has_the_curve_of_the_cpu(device: str, mode: str, parts: Parts, tmp_path: Path) -> None:
    """What is drawn on the GPU is what the CPU draws, but where a number falls on an edge: few do of so few tokens."""
    own = ("drawing.max_new_tokens=8", "minillm={rollouts: 16, epochs: 2}") if mode == "minillm" else ()
    learner = f"student.weights=dir:{parts.model}", "student.shape=null", f"teacher=dir:{parts.teacher}"
    there, here = (
        made(
            tmp_path / where,
            "stage=distill/minillm" if own else "stage=distill",
            *learner,
            f"data=dir:{parts.conversations}",
            "block=null",
            *SFT,
            *own,
            *on(where_on),
        )
        for where, where_on in (("there", device), ("here", "cpu"))
    )
    assert curve(there) == pytest.approx(curve(here), rel=CURVE, abs=1e-5)
    assert curve(there, "divergence")[-1] < curve(there, "divergence")[0]


def test_a_reward_model_has_the_curve_of_the_cpu(device: str, parts: Parts, tmp_path: Path) -> None:
    there, here = (
        rewarding.trained(tmp_path / where, parts.model, parts.pairs, "tracker.every=1", *on(where_on))
        for where, where_on in (("there", device), ("here", "cpu"))
    )
    assert curve(there) == pytest.approx(curve(here), rel=CURVE, abs=1e-5)
    assert there.metrics["accuracy"] == pytest.approx(here.metrics["accuracy"], abs=0.01)


@pytest.mark.parametrize("layout", ["separate", "shared"])
def test_reinforcement_learning_begins_at_ratio_1_and_learns_in_both_layouts(
    device: str, layout: str, parts: Parts, tmp_path: Path
) -> None:
    """The first step has the CPU's numbers; those that follow may draw another token, and must only be sound."""
    shared = layout == "shared"
    preset = ("stage=reward/lora",) if shared else ()
    judge = rewarding.trained(tmp_path / "judge", parts.model, parts.pairs, *preset, *on("cpu"))
    more = ("estimating.kind=gae", "anchoring.kind=ema", f"roles={layout}")
    more += ("adapter.kind=lora", "adapter.rank=4") if shared else ()
    there, here = (
        reinforcing.trained(tmp_path / where, parts.model, parts.prompts, judge.path, *more, *on(where_on))
        for where, where_on in (("there", device), ("here", "cpu"))
    )
    assert there.notes["device"] == device
    found, wanted = (
        [row for row in read_metrics(one.path / "metrics.jsonl") if "score/mean" in row] for one in (there, here)
    )
    for name in ("score/mean", "entropy", "length/mean", "kl/anchor"):
        assert found[0][name] == pytest.approx(wanted[0][name], rel=1e-3, abs=1e-4), name
    assert all(row["update/first_ratio"] < 1e-3 for row in found)
    assert all(math.isfinite(value) for row in found for value in row.values() if isinstance(value, float))
    assert there.verify() == []
    assert set(load_file(there.path / "model.safetensors")) == set(load_file(here.path / "model.safetensors"))
