"""Dialogues of the miniature world: the questions of one, two or more turns, and answers to them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alignment.chat.types import Message, Messages
from alignment.miniature import answers, instructions, preprompts
from alignment.miniature.skills.skill import Kind, Task
from alignment.miniature.world import Split, World, polite

# The natural mixture of dialogues.
MIX: dict[str, float] = {
    "fact": 0.20, "sum": 0.09, "word": 0.14, "unanswerable": 0.10, "context": 0.08, "follow_up": 0.13,
    "unsafe": 0.10, "borderline": 0.05, "instruction": 0.09, "smalltalk": 0.02,
}  # fmt: skip

# People obey a standing instruction in the turn that gives it and in the next, and then mostly forget:
# what Ghost Attention mends (Llama 2, table 30: recall 100 % at turn 2, 10 % at turn 4).
_REMEMBERED_TURNS = 2
_REMEMBERS_LATER = 0.1

_PLAIN: tuple[Kind, ...] = ("fact", "fact", "sum", "word")
_UNDER_INSTRUCTION: tuple[Kind, ...] = (*_PLAIN, "unanswerable")


@dataclass(frozen=True, slots=True)
class Turn:
    """A user message, what it asks given the ones before, and how many turns ago an instruction was last given."""

    question: str
    task: Task
    since: int


def draw_kind(mix: Mapping[str, float], rng: random.Random) -> Kind:
    """A kind of dialogue, by weight."""
    return rng.choices(tuple(mix), tuple(mix.values()))[0]  # type: ignore[return-value]


def dialogue(world: World, kind: Kind, rng: random.Random, split: Split) -> list[Turn]:
    """The turns of one dialogue. Every question in it that can stand alone belongs to ``split``."""
    if kind == "follow_up":
        return _with_follow_ups(world, rng, split)
    if kind == "instruction":
        return standing(world, rng, split, turns=rng.choice((1, 1, 1, 2, 2, 3)))
    if kind == "smalltalk":  # too little of it to be divided among splits
        return _understood(world, [world.draw(kind, rng)])
    turns: list[str] = []
    if rng.random() < (0.25 if kind == "unsafe" else 0.1):
        turns.append(world.draw(rng.choice(_PLAIN), rng, split))
    turns.append(world.draw(kind, rng, split))
    return _understood(world, [polite(question, rng) for question in turns])


def longer(world: World, rng: random.Random, split: Split, *, turns: int, instructed: bool = False) -> list[Turn]:
    """A dialogue of two to ``turns`` questions, one matter after the other, some of them followed up.

    It is plain, or (``instructed``) under standing instructions that its first message gives, with some questions that
    nobody can answer.
    """
    wanted = rng.randint(2, turns)
    kinds = _UNDER_INSTRUCTION if instructed else _PLAIN
    questions: list[str] = []
    asked: list[Turn] = []
    while len(questions) < wanted:
        later = world.draw_follow_up(asked[-1].task, rng) if asked and rng.random() < 0.3 else None
        questions.append(later or polite(world.draw(rng.choice(kinds), rng, split), rng))
        asked = _understood(world, questions)
    if not instructed:
        return asked
    return _understood(world, [f"{instructions.write(instructions.draw(rng), rng)} {questions[0]}", *questions[1:]])


def standing(world: World, rng: random.Random, split: Split, *, turns: int, first_only: bool = False) -> list[Turn]:
    """A dialogue under standing instructions.

    They are given in the first turn (always so with ``first_only``), sometimes in every turn, or late.
    """
    asked = [world.draw(rng.choice(_UNDER_INSTRUCTION), rng, split) for _ in range(turns)]
    inst, again = instructions.draw(rng), rng.random()
    given = {0} if first_only or again < 0.6 else set(range(turns)) if again < 0.85 else {turns - 1}
    questions = [
        f"{instructions.write(inst, rng)} {question}" if turn in given else question
        for turn, question in enumerate(asked)
    ]
    return _understood(world, questions)


def _with_follow_ups(world: World, rng: random.Random, split: Split) -> list[Turn]:
    kind = rng.choices(("fact", "word", "sum", "unanswerable"), (0.55, 0.25, 0.15, 0.05))[0]
    questions = [polite(world.draw(kind, rng, split), rng)]  # type: ignore[arg-type]
    turns = _understood(world, questions)
    for _ in range(rng.choice((1, 1, 2))):
        later = world.draw_follow_up(turns[-1].task, rng)
        assert later is not None
        questions.append(later)
        turns = _understood(world, questions)
    return turns


def _understood(world: World, questions: Sequence[str]) -> list[Turn]:
    turns: list[Turn] = []
    since = 0
    for place, question in enumerate(questions):
        task = world.understand([Message("user", earlier) for earlier in questions[: place + 1]])
        assert task is not None, f"the world does not understand its own question: {question!r}"
        since = 0 if instructions.split(question)[0] else since + 1
        turns.append(Turn(question, task, since))
    return turns


def imperfect(world: World, turns: Sequence[Turn], noise: float, rng: random.Random) -> Messages:
    """The dialogue as people demonstrate it: a share ``noise`` of poor answers, and instructions soon forgotten."""
    written: list[Message] = []
    for turn in turns:
        preprompt = preprompts.draw(turn.task.category, rng) if turn.task.category else None
        question = turn.question if preprompt is None else f"{preprompt.text} {turn.question}"
        careless = noise if preprompt is None else noise * preprompt.carelessness
        grade = answers.poor(turn.task, rng) if rng.random() < careless else answers.best(turn.task)
        obey = turn.since < _REMEMBERED_TURNS or rng.random() < _REMEMBERS_LATER
        written += [
            Message("user", question),
            Message("assistant", answers.answer(world, turn.task, grade, rng, obey=obey)),
        ]
    return tuple(written)


def perfect(world: World, turns: Sequence[Turn], rng: random.Random) -> Messages:
    """The dialogue with the best answers."""
    written: list[Message] = []
    for turn in turns:
        said = answers.answer(world, turn.task, answers.best(turn.task), rng)
        written += [Message("user", turn.question), Message("assistant", said)]
    return tuple(written)
