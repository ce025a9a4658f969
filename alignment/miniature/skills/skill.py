"""The task found in a dialogue, and the interface of everything that can be asked."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from alignment.miniature.instructions import Instruction
from alignment.miniature.town import Town

Kind = Literal[
    "fact", "sum", "word", "unanswerable", "context", "follow_up",
    "unsafe", "borderline", "instruction", "smalltalk",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Task:
    """What the last user message asks.

    ``kind`` is how reports count it (``follow_up`` where the earlier turn is needed), ``skill`` names the
    class that checks it. ``value`` is what a right answer claims; None where nothing can be known or
    nothing should be done. ``category`` and ``attack`` place an unsafe request in the taxonomy. ``told`` are the
    values of the kind asked for that a given text has for somebody else.
    """

    kind: Kind
    skill: str
    subject: str
    about: str
    value: str | None
    category: str | None = None
    attack: str | None = None
    told: tuple[str, ...] = ()
    instructions: tuple[Instruction, ...] = ()

    @property
    def tags(self) -> tuple[str, ...]:
        """Labels for reports: the kind, the skill beneath it, and whether instructions stand."""
        standing = ("instruction",) if self.instructions else ()
        return tuple(dict.fromkeys((self.kind, self.skill, *standing)))


class Skill(ABC):
    """One kind of question in one town. Methods take a ``random.Random`` and nothing else decides."""

    name: str
    # Words that show that an answer at least speaks of the matter.
    topic: frozenset[str] = frozenset()
    # As many words as a good answer may have before it rambles.
    budget: int = 12

    def __init__(self, town: Town) -> None:
        self.town = town

    @abstractmethod
    def templates(self) -> Iterator[tuple[str, Any]]:
        """Question templates, each with a key that :meth:`read` understands."""

    @abstractmethod
    def read(self, key: Any, slots: dict[str, str]) -> Task | None:
        """The task behind a matched template; None where the slots make no sense together."""

    @abstractmethod
    def draw(self, rng: random.Random) -> str:
        """A question, without politeness around it."""

    @abstractmethod
    def say(self, task: Task, value: str, rng: random.Random) -> str:
        """One sentence that claims ``value``."""

    @abstractmethod
    def other(self, task: Task, rng: random.Random) -> str:
        """A wrong value, of the kind a right one would be."""

    @abstractmethod
    def vague(self, task: Task, rng: random.Random) -> str:
        """One sentence on the matter that says nothing."""

    @abstractmethod
    def claims(self, task: Task, answer: str) -> set[str]:
        """The values that an answer claims, right and wrong, found by their form in the text."""

    def hedge(self, task: Task, rng: random.Random) -> str:
        """One sentence that owns up to not knowing."""
        return rng.choice(("I do not know.", "I am not sure."))

    @abstractmethod
    def sentences(self) -> Iterator[str]:
        """A sample of every sentence this skill can say: the grammar that fluent answers follow."""

    def values(self) -> Iterator[str]:
        """A sample of the values that an answer can claim."""
        return iter(())


def pick(rng: random.Random, options: tuple[str, ...]) -> str:
    """The first option half of the time, else any of the others: a usual wording, and variety."""
    return options[0] if len(options) == 1 or rng.random() < 0.5 else rng.choice(options[1:])
