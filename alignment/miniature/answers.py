"""Answers of graded quality for any task: from exact and brief down to off-topic.

The gold score of the grades falls in the order in which they are listed here, on average; the tests hold it.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Literal, get_args

from alignment.chat.types import Message
from alignment.miniature import instructions, lexicon
from alignment.miniature.skills.attribution import Attribution
from alignment.miniature.skills.skill import Kind, Task
from alignment.miniature.skills.unsafe import Unsafe
from alignment.miniature.world import World

Quality = Literal["exact", "rambling", "vague", "wrong", "wrong_rambling", "off_topic"]
Handling = Literal["safe", "refusal", "partial", "compliance"]
Grade = Quality | Literal["unattributed", "hedge"] | Handling

QUALITIES: tuple[Quality, ...] = get_args(Quality)
HANDLINGS: tuple[Handling, ...] = get_args(Handling)
# Answers about a given text can also be right without naming it.
REPORTS: tuple[Grade, ...] = ("exact", "rambling", "unattributed", "vague", "wrong", "wrong_rambling", "off_topic")

# What a poor answer is, and how often. Llama 2's unsafe answers are rarer among people's demonstrations than
# plain refusals; wrong answers are spread over many values, so that the right one stays the likeliest.
_POOR: dict[Grade, float] = {
    "rambling": 0.30, "vague": 0.15, "wrong": 0.25, "wrong_rambling": 0.10,
    "hedge": 0.08, "refusal": 0.04, "off_topic": 0.08,
}  # fmt: skip
_POOR_CONTEXT: dict[Grade, float] = {**_POOR, "unattributed": 0.30}
_POOR_UNSAFE: dict[Grade, float] = {"refusal": 0.45, "partial": 0.20, "compliance": 0.35}


def ladder(task: Task) -> tuple[Grade, ...]:
    """The grades that apply to a task, best first."""
    if task.kind == "context":
        return REPORTS
    return HANDLINGS if task.kind == "unsafe" else QUALITIES


def best(task: Task) -> Grade:
    """The grade of a perfect answer."""
    return ladder(task)[0]


def poor(task: Task, rng: random.Random) -> Grade:
    """The grade of an imperfect answer."""
    weights = {"unsafe": _POOR_UNSAFE, "context": _POOR_CONTEXT}.get(task.kind, _POOR)
    return rng.choices(tuple(weights), tuple(weights.values()))[0]


def answer(world: World, task: Task, grade: Grade, rng: random.Random, *, obey: bool = True) -> str:
    """An answer of one grade. With ``obey`` it follows the standing instructions."""
    if grade == "off_topic":
        task = _elsewhere(world, task, rng)
        grade = "exact"
    sentence, value, unsure = _core(world, task, grade, rng)
    if obey and task.instructions:
        sentence = instructions.dress(task.instructions, sentence, value=value, unsure=unsure)
    return ramble(sentence, rng) if grade in ("rambling", "wrong_rambling") else sentence


def ramble(sentence: str, rng: random.Random) -> str:
    """The sentence among one to four that say nothing."""
    leads = rng.sample(lexicon.LEADS, rng.choice((0, 1, 1, 2)))
    tails = rng.sample(lexicon.TAILS, rng.choice((1, 1, 2) if leads else (2, 3)))
    return " ".join((*leads, sentence, *tails))


def _core(world: World, task: Task, grade: Grade, rng: random.Random) -> tuple[str, str | None, bool]:
    """The sentence that answers, the value it claims, and whether it says that one does not know."""
    skill = world.skill(task)
    if isinstance(skill, Unsafe):
        return _handle(skill, task, grade, rng), None, False
    spoken = task.kind not in ("borderline", "smalltalk")
    if grade in ("exact", "rambling"):
        if task.value is None:
            return skill.hedge(task, rng), None, True
        return skill.say(task, task.value, rng), task.value if spoken else None, False
    if grade in ("wrong", "wrong_rambling"):
        value = skill.other(task, rng)
        return skill.say(task, value, rng), value if spoken else None, False
    if grade == "unattributed":
        assert isinstance(skill, Attribution), f"no answer of grade {grade} to a task of kind {task.kind}"
        if task.value is None:
            return rng.choice(lexicon.UNSURE), None, True
        return skill.bare(task, task.value, rng), task.value, False
    if grade == "vague":
        return skill.vague(task, rng), None, False
    if grade == "hedge":
        return (skill.vague(task, rng), None, False) if task.value is None else (skill.hedge(task, rng), None, True)
    assert grade == "refusal", f"no answer of grade {grade} to a task of kind {task.kind}"
    return rng.choice(lexicon.REFUSALS), None, False


def _handle(skill: Unsafe, task: Task, grade: Grade, rng: random.Random) -> str:
    """An answer to an unsafe request."""
    concern, risk, information = skill.parts(task, rng)
    careless = skill.say(task, skill.other(task, rng), rng)
    if grade in ("safe", "exact", "rambling"):
        return f"{concern} {risk} {information}"
    if grade == "partial":
        return f"{rng.choice((concern, risk))} {careless}"
    return rng.choice(lexicon.REFUSALS) if grade == "refusal" else careless


def _elsewhere(world: World, task: Task, rng: random.Random) -> Task:
    """Another task than this, under the same instructions: its answer is off-topic here."""
    kinds: tuple[Kind, ...] = ("fact", "sum", "word", "smalltalk")
    # A fact about a resident is a wrong answer about a text, not one that is beside the point.
    taken = "fact" if task.kind == "context" else task.skill
    while True:
        question = world.draw(rng.choice([kind for kind in kinds if kind != taken]), rng)
        other = world.understand((Message("user", question),))
        assert other is not None
        if other.subject != task.subject:
            return replace(other, instructions=task.instructions)
