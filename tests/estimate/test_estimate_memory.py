"""Memory by parts and phases: numbers that were worked out by hand, and what has to hold for every job."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.estimate import jobs, memory
from alignment.estimate.arithmetic import ARITHMETIC, Model
from alignment.estimate.jobs import Job
from alignment.estimate.memory import (
    ACTIVATIONS,
    ANCHOR,
    BUFFERS,
    CACHE,
    COPIES,
    CRITIC,
    GRADIENTS,
    OPTIMISER,
    REWARDS,
    WEIGHTS,
    Way,
)
from alignment.estimate.roles import Drawing, Roles
from alignment.gemma.presets import SHAPES

PRESETS = [name for name in SHAPES if not name.startswith("mini")]
VOCABULARY = 256_000
WAY = Way(ARITHMETIC["autocast"], "flex_attention", True, 2048)


def job(name: str = "gemma2_2b", stage: str = "sft", way: Way = WAY, **changes: object) -> Job:
    model = Model(SHAPES[name], VOCABULARY, score=stage == "reward")
    plain = Job(stage, model, way, rows=1, length=2048, passes=1)  # type: ignore[arg-type]
    return replace(plain, **changes)  # type: ignore[arg-type]


def reinforcing(name: str = "gemma2_2b", way: Way = WAY, rank: int | None = None, **changes: object) -> Job:
    shape = SHAPES[name]
    model, critic = Model(shape, VOCABULARY, rank), Model(shape, VOCABULARY, rank, score=True)
    roles = Roles(model, critic, (Model(shape, VOCABULARY, score=True),), **changes)  # type: ignore[arg-type]
    return Job("rl", model, way, 4, 1024, 1, roles, Drawing(32, 1, 512, 512, 32))


def part(one: Job, phase: str, name: str) -> float:
    return next(found for found in jobs.phases(one) if found.name == phase).parts.get(name, 0.0)


def test_a_full_update_holds_sixteen_bytes_a_parameter() -> None:
    """Weights, gradients and two moments in fp32: 4 + 4 + 8 (ZeRO, §3.1, has 16 too, of which 4 are bf16)."""
    update = next(phase for phase in jobs.phases(job()) if phase.name == "update")
    assert update.total == 16 * Model(SHAPES["gemma2_2b"], VOCABULARY).held


def test_ddp_holds_another_copy_of_the_gradients() -> None:
    held = Model(SHAPES["gemma2_2b"], VOCABULARY).held
    assert part(job(way=replace(WAY, gpus=2)), "update", BUFFERS) == 4 * held
    assert part(job(), "update", BUFFERS) == 0


def test_zero_divides_what_it_says() -> None:
    """On 8 GPUs, bytes a parameter: moments 8/8, a copy of the own weights 4/8, gradients and weights 4/8."""
    held = Model(SHAPES["gemma2_9b"], VOCABULARY).held

    def per_parameter(zero: int, name: str, *, offload: bool = False) -> float:
        way = replace(WAY, gpus=8, zero=zero, offload=offload)
        return part(job("gemma2_9b", way=way), "update", name) / held

    assert [per_parameter(zero, OPTIMISER) for zero in range(4)] == [8, 1.5, 1.5, 1]
    assert [per_parameter(zero, GRADIENTS) for zero in range(4)] == [4, 4, 0.5, 0.5]
    assert [per_parameter(zero, WEIGHTS) for zero in range(4)] == [4, 4, 4, 0.5]
    assert [per_parameter(3, name, offload=True) for name in (OPTIMISER, GRADIENTS, WEIGHTS)] == [0, 0, 0]


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward"])
def test_under_zero_3_no_gpu_ever_has_the_whole_model(stage: str) -> None:
    one = job("gemma2_27b", stage, way=replace(WAY, gpus=512, zero=3))
    assert max(phase.parts.get(WEIGHTS, 0.0) for phase in jobs.phases(one)) == 4 * one.model.held / 512


def test_dpo_asks_a_whole_policy() -> None:
    one = job("gemma2_27b", "dpo", way=replace(WAY, gpus=512, zero=3))
    assert part(one, "asked", WEIGHTS) == 4 * one.model.held * (1 + 1 / 512)
    assert not any(phase.name == "asked" for phase in jobs.phases(job(stage="dpo", way=replace(WAY, gpus=8, zero=2))))


def test_answers_are_drawn_from_whole_weights_whether_or_not_they_stay_whole() -> None:
    """Policy and critic, on 8 GPUs; with ``gather`` until the answers are judged and read."""
    for gather in (True, False):
        one = reinforcing(way=replace(WAY, gpus=8, zero=3, gather=gather))
        assert one.roles is not None
        whole, divided = 4 * one.roles.in_engine, 4 * one.roles.policy.held / 8
        assert part(one, "draw", WEIGHTS) >= divided + whole
        for name in ("judge", "read"):
            assert part(one, name, WEIGHTS) == divided + (whole if gather else 0), name
        elsewhere = replace(one, drawing=Drawing(32, 1, 512, 512, 32, elsewhere=True))
        assert part(elsewhere, "hand over", WEIGHTS) == divided + whole
        # One pass reads 32 lines of 1,024 tokens: the anchor, and what is not whole any more.
        sent = jobs.traffic(one).rollout * 8 / 7
        assert sent == pytest.approx(whole + 4 * one.roles.policy.held + (0 if gather else whole))


def test_roles_on_one_trunk_are_read_whole() -> None:
    one = reinforcing(way=replace(WAY, gpus=8, zero=3, gather=False), rank=16, shared=True, judge_here=True)
    assert one.roles is not None
    for name in ("judge", "read"):
        assert part(one, name, WEIGHTS) > 4 * one.roles.in_engine, name


def test_under_zero_3_no_copy_in_bf16_outlives_its_product() -> None:
    """Gemma 2 27B: the widest projection is 4,608 x 36,864."""
    one = job("gemma2_27b", way=replace(WAY, gpus=64, zero=3))
    assert max(phase.parts.get(COPIES, 0.0) for phase in jobs.phases(one)) == 2 * 4_608 * 36_864
    kept = job("gemma2_27b", way=replace(WAY, gpus=64, zero=2))
    assert max(phase.parts.get(COPIES, 0.0) for phase in jobs.phases(kept)) == 2 * one.model.matrices


def test_an_adapter_needs_no_moments_of_the_trunk() -> None:
    model = Model(SHAPES["gemma2_9b"], VOCABULARY, rank=16)
    update = next(phase for phase in jobs.phases(job(model=model)) if phase.name == "update")
    assert update.parts[OPTIMISER] == 8 * model.trained < 0.02 * update.total
    assert update.parts[WEIGHTS] == 4 * model.held


def test_the_cache_has_a_slot_for_every_token_of_every_row() -> None:
    """Gemma 2 2B: keys and values of 26 layers, 4 heads of 256 numbers in fp32: 212,992 bytes a token."""
    assert part(reinforcing(), "draw", CACHE) == 32 * 1024 * 2 * 26 * 4 * 256 * 4 == 32 * 1024 * 212_992
    elsewhere = replace(reinforcing(), drawing=Drawing(32, 1, 512, 512, 32, elsewhere=True))
    assert all(phase.name != "draw" for phase in jobs.phases(elsewhere))


def test_roles_on_one_trunk_hold_it_once() -> None:
    plain = Model(SHAPES["gemma2_2b"], VOCABULARY)
    adapter = Model(SHAPES["gemma2_2b"], VOCABULARY, 16).adapter
    apart, shared = reinforcing(), reinforcing(rank=16, shared=True, judge_here=True)
    assert part(apart, "update", ANCHOR) == 4 * plain.held
    assert part(apart, "update", REWARDS) == 4 * (plain.held + 2304)
    assert part(apart, "update", CRITIC) == 16 * (plain.held + 2304)
    assert part(shared, "update", ANCHOR) == 0
    assert part(shared, "update", WEIGHTS) == 4 * (plain.held + adapter)
    # Adapter and head: as they were and as they are trained; of the latter two moments and a gradient.
    assert part(shared, "update", CRITIC) == 4 * (adapter + 2 * 2304) + 12 * (adapter + 2304)
    moving = reinforcing(rank=16, shared=True, follows=True)
    assert part(moving, "update", ANCHOR) == 4 * plain.matrices
    half = reinforcing(rank=16, shared=True, half=True)
    assert part(moving, "update", WEIGHTS) - part(half, "update", WEIGHTS) == 2 * plain.matrices
    assert part(reinforcing(follows=True, start=True), "update", ANCHOR) == 8 * plain.held


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "dpo", "rl"])
def test_every_preset_has_an_estimate_on_8_to_512_gpus(name: str, stage: str) -> None:
    for zero in range(4):
        for gpus in (8, 64, 512):
            way = replace(WAY, zero=zero, gpus=gpus)
            one = reinforcing(name, way) if stage == "rl" else job(name, stage, way)
            found = jobs.phases(one)
            assert all(size >= 0 for phase in found for size in phase.parts.values())
            assert all(set(phase.parts) <= set(memory.PARTS) for phase in found)
            # No more than all weights, gradients and moments twice, of every role, and 100 GB.
            assert 1e9 < jobs.fullest(one).total < 4 * 32 * one.model.held + 100e9
            assert jobs.traffic(one).total > 0


JOBS = st.builds(
    lambda name, stage, zero, gpus, rows, passes, checkpointing, precision, rank: job(
        name,
        stage,
        Way(ARITHMETIC[precision], "flex_attention", checkpointing, 2048, gpus=gpus, zero=zero),
        model=Model(SHAPES[name], VOCABULARY, rank, score=stage == "reward"),
        rows=rows,
        passes=passes,
    ),
    st.sampled_from(PRESETS),
    st.sampled_from(["pretrain", "sft", "reward", "dpo"]),
    st.integers(0, 3),
    st.sampled_from([2, 8, 32, 512]),
    st.integers(1, 8),
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from(["fp32", "autocast"]),
    st.sampled_from([None, 1, 64]),
)


REINFORCING = st.builds(
    lambda name, zero, gpus, shared, follows: reinforcing(
        name, replace(WAY, gpus=gpus, zero=zero), 16 if shared else None, shared=shared, follows=follows
    ),
    st.sampled_from(PRESETS),
    st.integers(0, 3),
    st.sampled_from([2, 8, 32, 512]),
    st.booleans(),
    st.booleans(),
)


@settings(max_examples=200, deadline=None)
@given(JOBS | REINFORCING)
def test_more_gpus_never_need_more_memory_each(one: Job) -> None:
    more = replace(one, way=replace(one.way, gpus=2 * one.way.gpus))
    assert jobs.fullest(more).total <= jobs.fullest(one).total
    assert jobs.traffic(more).total > jobs.traffic(one).total


@settings(max_examples=150, deadline=None)
@given(JOBS)
def test_every_stage_of_zero_holds_less_than_the_one_before(one: Job) -> None:
    def held(zero: int) -> float:
        update = next(
            phase for phase in jobs.phases(replace(one, way=replace(one.way, zero=zero))) if phase.name == "update"
        )
        return sum(update.parts[name] for name in (WEIGHTS, GRADIENTS, OPTIMISER))

    assert held(0) > held(1) > held(2) > held(3)


@settings(max_examples=150, deadline=None)
@given(JOBS)
def test_more_rows_and_kept_activations_never_need_less(one: Job) -> None:
    assert jobs.fullest(replace(one, rows=one.rows + 1)).total >= jobs.fullest(one).total
    assert jobs.fullest(replace(one, length=2 * one.length)).total >= jobs.fullest(one).total
    kept, again = (
        max(
            phase.parts.get(ACTIVATIONS, 0)
            for phase in jobs.phases(replace(one, way=replace(one.way, checkpointing=checkpointing)))
        )
        for checkpointing in (False, True)
    )
    assert kept > again
