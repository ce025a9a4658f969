"""Word tasks: spelling, first and last letters, counting letters, spelling backwards."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from alignment.miniature.lexicon import WORDS
from alignment.miniature.skills.skill import Skill, Task, pick


def spelled(word: str) -> str:
    """``cat`` → ``c-a-t``."""
    return "-".join(word)


@dataclass(frozen=True, slots=True)
class Exercise:
    """One thing to do with a word: how it is asked, asked again of the same word, answered and checked."""

    solve: Callable[[str], str]
    asks: tuple[str, ...]
    follows: tuple[str, ...]
    says: tuple[str, ...]
    form: re.Pattern[str]


_SPELLED = re.compile(r"\b\w(?:-\w)+\b")
_LETTER = re.compile(r"\"\w\"|\b[b-hj-z]\b")
_NUMBER = re.compile(r"\d+")

EXERCISES = {
    "spell": Exercise(
        spelled,
        (
            "Spell the word {word}.",
            "Spell {word}.",
            "How do you spell {word}?",
            "Can you spell {word} for me?",
            "What is the spelling of {word}?",
            "Spell {word} letter by letter.",
            "How is {word} written?",
        ),
        ("And how is it spelled?", "And how do you spell it?"),
        ("The word {word} is spelled {value}.", "You spell it {value}.", "It is written {value}."),
        _SPELLED,
    ),
    "first_letter": Exercise(
        lambda word: f'"{word[0]}"',
        (
            "What is the first letter of {word}?",
            "Which letter does {word} begin with?",
            "Tell me the first letter of {word}.",
            "With which letter does {word} start?",
            "How does the word {word} begin?",
        ),
        ("And what is its first letter?", "And which letter does it begin with?"),
        ("The first letter of {word} is {value}.", "It begins with {value}.", "It starts with {value}."),
        _LETTER,
    ),
    "last_letter": Exercise(
        lambda word: f'"{word[-1]}"',
        (
            "What is the last letter of {word}?",
            "Which letter does {word} end with?",
            "Tell me the last letter of {word}.",
            "With which letter does {word} stop?",
            "How does the word {word} end?",
        ),
        ("And what is its last letter?", "And which letter does it end with?"),
        ("The last letter of {word} is {value}.", "It ends with {value}.", "It stops with {value}."),
        _LETTER,
    ),
    "count_letters": Exercise(
        lambda word: str(len(word)),
        (
            "How many letters are in {word}?",
            "How many letters does {word} have?",
            "Count the letters of {word}.",
            "How long is the word {word}?",
            "What is the number of letters in {word}?",
        ),
        ("And how many letters does it have?", "And how long is it?"),
        ("The word {word} has {value} letters.", "It has {value} letters.", "There are {value} letters in it."),
        _NUMBER,
    ),
    "reverse": Exercise(
        lambda word: spelled(word[::-1]),
        (
            "Spell {word} backwards.",
            "What is {word} backwards?",
            "How do you spell {word} backwards?",
            "Turn the word {word} around.",
            "Write {word} from the end to the beginning.",
        ),
        ("And backwards?", "Now spell it backwards."),
        ("The word {word} backwards is {value}.", "Backwards it is {value}.", "Turned around it is {value}."),
        _SPELLED,
    ),
}
_VAGUE = ("The word {word} is a short one.", "That word has some letters.", "It is a word that many people use.")


class Words(Skill):
    """``Spell the word cat.`` and the like."""

    name = "word"
    topic = frozenset(("word", "letter", "letters", "spelled", "spell"))

    def templates(self) -> Iterator[tuple[str, Any]]:
        for about, exercise in EXERCISES.items():
            for template in exercise.asks:
                yield template, about

    def read(self, key: Any, slots: dict[str, str]) -> Task | None:
        return self.task(slots["word"], key)

    @staticmethod
    def task(word: str, about: str) -> Task:
        """The task of doing one exercise with a word (any word, also one that the world never uses)."""
        return Task("word", "word", word, about, EXERCISES[about].solve(word))

    def draw(self, rng: random.Random) -> str:
        exercise = EXERCISES[rng.choice(tuple(EXERCISES))]
        return rng.choice(exercise.asks).format(word=rng.choice(WORDS))

    def say(self, task: Task, value: str, rng: random.Random) -> str:
        return pick(rng, EXERCISES[task.about].says).format(word=task.subject, value=value)

    def other(self, task: Task, rng: random.Random) -> str:
        """What is right for another word, or a count that is off by one."""
        if task.about == "count_letters":
            return str(max(1, len(task.subject) + rng.choice((-1, 1, 2))))
        solve = EXERCISES[task.about].solve
        if task.about in ("spell", "reverse"):
            shuffled = spelled("".join(rng.sample(task.subject, len(task.subject))))
            if shuffled != task.value:
                return shuffled
        return rng.choice([value for value in map(solve, WORDS) if value != task.value])

    def vague(self, task: Task, rng: random.Random) -> str:
        return rng.choice(_VAGUE).format(word=task.subject)

    def claims(self, task: Task, answer: str) -> set[str]:
        found = EXERCISES[task.about].form.findall(answer.casefold())
        if task.about in ("first_letter", "last_letter"):
            return {letter if letter.startswith('"') else f'"{letter}"' for letter in found}
        return set(found)

    def sentences(self) -> Iterator[str]:
        for exercise in EXERCISES.values():
            yield from (template.format(word="sun", value=exercise.solve("sun")) for template in exercise.says)
        yield from (template.format(word="sun") for template in _VAGUE)

    def values(self) -> Iterator[str]:
        return (exercise.solve("sun") for exercise in EXERCISES.values())


class WordFollowUps:
    """``And backwards?``, after a question about a word."""

    def templates(self) -> Iterator[tuple[str, str]]:
        for about, exercise in EXERCISES.items():
            for template in exercise.follows:
                yield template, about

    def read(self, key: str, slots: dict[str, str], before: Task) -> Task | None:
        if before.skill != Words.name:
            return None
        return replace(Words.task(before.subject, key), kind="follow_up")

    def draw(self, before: Task, rng: random.Random) -> str:
        about = rng.choice([about for about in EXERCISES if about != before.about])
        return rng.choice(EXERCISES[about].follows)
