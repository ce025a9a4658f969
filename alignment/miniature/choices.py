"""Multiple-choice questions about the miniature world: what is true, among what could be."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from string import ascii_lowercase

from alignment.chat.types import Prompt, messages
from alignment.errors import UserError
from alignment.miniature.skills.skill import Kind
from alignment.miniature.world import Split, World

KINDS: tuple[Kind, ...] = ("fact", "sum", "word")
"""What is asked about, one after the other: what has one right answer, and wrong ones of the same shape."""

_PATIENCE = 400


def choices(world: World, n: int, seed: int, *, split: Split, options: int) -> Iterator[Prompt]:
    """``n`` different questions of one split, each with ``options`` answers in the same words, of which one is true.

    The right one stands at a random place. Raises :class:`UserError` when no more questions are found.
    """
    seen: set[str] = set()
    for row in range(n):
        rng = random.Random(f"choices:{split}:{seed}:{row}")
        for _ in range(_PATIENCE):
            question = world.draw(KINDS[row % len(KINDS)], rng, split)
            answers = _answers(world, question, rng, options)
            if question not in seen and answers is not None:
                break
        else:
            raise UserError(
                f"the miniature has no more than {row} questions for the split {split}",
                remedy="Draw fewer rows, or give the world more residents.",
            )
        seen.add(question)
        yield _prompt(question, *answers, f"mini-choices-{split}-{seed}-{row}", KINDS[row % len(KINDS)])


def _answers(world: World, question: str, rng: random.Random, count: int) -> tuple[list[str], int] | None:
    """Answers and the place of the right one; None where there are not as many different ones."""
    task = world.understand(messages(("user", question)))
    assert task is not None, "a question of the world"
    assert task.value is not None, "a question that has an answer"
    skill, values = world.skill(task), [task.value]
    for _ in range(_PATIENCE):
        value = skill.other(task, rng)
        if value not in values:
            values.append(value)
        if len(values) == count:
            break
    else:
        return None
    right = rng.randrange(count)
    values[0], values[right] = values[right], values[0]
    words = rng.random()
    return [skill.say(task, value, random.Random(words)) for value in values], right


def _prompt(question: str, answers: list[str], right: int, name: str, kind: Kind) -> Prompt:
    lettered = [f"({letter}) {answer}" for letter, answer in zip(ascii_lowercase, answers, strict=False)]
    told = {"question": question, "options": answers, "right": [right]}
    turns = messages(("user", "\n".join([question, *lettered])))
    return Prompt(turns, name, (kind,), reference=json.dumps(told, ensure_ascii=False))
