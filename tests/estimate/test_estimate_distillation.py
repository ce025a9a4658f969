"""Memory of distillation: what a teacher takes beside its student, by hand, and what has to hold for every job."""

from __future__ import annotations

from dataclasses import replace

import pytest

from alignment.estimate import jobs, memory
from alignment.estimate.arithmetic import ARITHMETIC, Model
from alignment.estimate.distillation import Teaching
from alignment.estimate.jobs import Job
from alignment.estimate.memory import BUFFERS, CACHE, LOGITS, TEACHER, WEIGHTS, Way
from alignment.estimate.roles import Drawing
from alignment.gemma.presets import SHAPES

VOCABULARY = 256_000
STUDENT, TEACHER_9B = Model(SHAPES["gemma2_2b"], VOCABULARY), Model(SHAPES["gemma2_9b"], VOCABULARY)
HEAD = 4 * VOCABULARY * 3_584
"""The teacher's, in fp32."""
WAY = Way(ARITHMETIC["autocast"], "flex_attention", True, 2048)
DRAWING = Drawing(32, 1, 512, 512, 32)
WAYS = {
    "offline": Teaching(None, 64),
    "live": Teaching(TEACHER_9B),
    "on_policy": Teaching(TEACHER_9B, drawing=DRAWING),
    "minillm": Teaching(TEACHER_9B, drawing=DRAWING, together=True),
}


def job(mode: str = "live", way: Way = WAY, passes: int = 1, **changes: object) -> Job:
    return Job("distill", STUDENT, way, 4, 1024, passes, teaching=replace(WAYS[mode], **changes))  # type: ignore[arg-type]


def part(one: Job, phase: str, name: str) -> float:
    return next(found for found in jobs.phases(one) if found.name == phase).parts.get(name, 0.0)


def names(one: Job) -> list[str]:
    return [phase.name for phase in jobs.phases(one)]


def test_a_teacher_in_memory_is_whole_but_under_zero_3() -> None:
    whole = 4 * TEACHER_9B.held
    assert [part(job(way=replace(WAY, gpus=8, zero=zero)), "update", TEACHER) for zero in range(3)] == [whole] * 3
    divided = replace(WAY, gpus=8, zero=3)
    assert part(job(way=divided), "update", TEACHER) == whole / 8 + HEAD
    assert part(job(way=replace(divided, offload=True)), "update", TEACHER) == HEAD
    assert part(job("offline"), "update", TEACHER) == 0


def test_the_student_is_trained_as_in_fine_tuning() -> None:
    tuned = Job("sft", STUDENT, WAY, 4, 1024, 2)
    apart = {TEACHER, LOGITS}
    for mode in ("offline", "live"):
        for one, other in zip(
            [found for found in jobs.phases(job(mode, passes=2)) if found.name != "teacher"],
            jobs.phases(tuned),
            strict=True,
        ):
            assert one.name == other.name
            for name in set(memory.PARTS) - apart:
                assert one.parts.get(name, 0.0) == other.parts.get(name, 0.0), (mode, one.name, name)


def test_what_a_teacher_told_is_held_until_the_loss_is_there() -> None:
    """4 x 1,024 tokens. Stored: 64 ids of 8 bytes, as many log-probabilities of 4, a tail. In memory: 3,584 numbers in
    fp32, and in bf16 once more, as the head."""
    tokens, told = 4 * 1024, 4 * 1024 * 3_584 * 4
    assert part(job("offline"), "loss", TEACHER) == tokens * (64 * 12 + 4)
    # Sixteen drawn ids, and the entropy of what they are drawn from.
    assert part(job("offline", tail_draws=16), "loss", TEACHER) == tokens * (64 * 12 + 4 + 16 * 8 + 4)
    assert part(job(), "loss", TEACHER) == 4 * TEACHER_9B.held + told + told / 2 + HEAD / 2
    assert part(job(), "loss, backward", TEACHER) == 4 * TEACHER_9B.held
    precise = replace(WAY, arithmetic=ARITHMETIC["fp32"])
    assert part(job(way=precise), "loss", TEACHER) == 4 * TEACHER_9B.held + told


def test_three_chunks_of_logits_and_some_blocks() -> None:
    """In bf16, 2,048 x 256,000 numbers each: the teacher's, the student's, and the gradient of the chunk before. Blocks
    are 262 rows in fp32, seven of them at once, or four. Formed: the head's gradient, and twice the states."""
    chunk, block = 2 * 2_048 * VOCABULARY, 4 * 262 * VOCABULARY
    formed = 4 * VOCABULARY * 2_304 + 2 * 4 * 4_096 * 2_304
    copy = 2 * VOCABULARY * 2_304
    assert part(job(), "loss", LOGITS) == formed + copy + 3 * chunk + 7 * block
    assert part(job("offline"), "loss", LOGITS) == formed + copy + 2 * chunk + 4 * block
    once = job(way=replace(WAY, loss_chunk=4096))
    assert part(once, "loss", LOGITS) == formed + copy + 2 * 2 * chunk + 7 * block


def test_of_drawn_rows_the_answers_carry_loss() -> None:
    """Half of 4 x 1,024 tokens: one chunk less, for there is but one."""
    live, drawn = part(job(), "loss", LOGITS), part(job("on_policy"), "loss", LOGITS)
    assert live - drawn == 2 * 2_048 * VOCABULARY
    assert part(job("on_policy"), "loss", TEACHER) < part(job(), "loss", TEACHER)


def test_answers_are_drawn_by_the_student_or_together() -> None:
    """Gemma 2 2B keeps 212,992 bytes a token, 9B 42 layers · 2 · 8 heads · 256 numbers: 688,128."""
    assert names(job())[:2] == ["teacher", "loss"]
    assert names(job("offline"))[0] == "loss"
    assert names(job("on_policy"))[:3] == ["draw", "teacher", "loss"]
    assert names(job("minillm"))[:4] == ["draw", "weigh", "teacher", "loss"]
    assert part(job("on_policy"), "draw", CACHE) == 32 * 1024 * 212_992
    assert part(job("minillm"), "draw", CACHE) == 32 * 1024 * (212_992 + 688_128)
    divided = replace(WAY, gpus=8, zero=3)
    own, theirs = 4 * STUDENT.held, 4 * TEACHER_9B.held
    assert part(job("on_policy", divided), "draw", WEIGHTS) > own * (1 + 1 / 8)
    assert part(job("on_policy", divided), "draw", TEACHER) == theirs / 8 + HEAD
    for moment in ("draw", "weigh"):
        assert part(job("minillm", divided), moment, TEACHER) == theirs * (1 + 1 / 8) + HEAD
    elsewhere = job("on_policy", divided, drawing=replace(DRAWING, elsewhere=True))
    assert part(elsewhere, "hand over", WEIGHTS) == own * (1 + 1 / 8)
    assert "draw" not in names(elsewhere)
    assert "hand over" not in names(replace(elsewhere, way=WAY))


def test_minillm_has_a_second_loss() -> None:
    assert part(job("minillm"), "loss, backward", LOGITS) > part(job("on_policy"), "loss, backward", LOGITS)


def test_zero_3_gathers_the_teacher_once_a_pass() -> None:
    """Seven eighths of the student twice and of the teacher once, for each of three passes; what draws, once a step."""
    divided = replace(WAY, gpus=8, zero=3)
    own, theirs = 4 * STUDENT.held, 4 * TEACHER_9B.held
    for mode, read, drawn in (
        ("offline", 0, 0), ("live", theirs, 0), ("on_policy", theirs, own), ("minillm", theirs, own + theirs)
    ):  # fmt: skip
        sent = jobs.traffic(job(mode, divided, passes=3))
        assert sent.weights == pytest.approx(3 * (2 * own + read) * 7 / 8), mode
        assert sent.rollout == pytest.approx(drawn * 7 / 8), mode
        assert sent.gradients == pytest.approx(3 * own * 7 / 8)
        assert jobs.traffic(job(mode, replace(WAY, gpus=8))).total == 2 * own * 7 / 8


@pytest.mark.parametrize("mode", WAYS)
def test_more_gpus_never_need_more_memory_each(mode: str) -> None:
    for zero in range(4):
        few, many = (job(mode, replace(WAY, gpus=gpus, zero=zero)) for gpus in (8, 64))
        assert jobs.fullest(many).total <= jobs.fullest(few).total
        for phase in jobs.phases(few):
            assert set(phase.parts) <= set(memory.PARTS)
            assert all(size >= 0 for size in phase.parts.values())
    assert part(job(mode, replace(WAY, gpus=8, zero=2)), "update", BUFFERS) > 0
