"""Questions about residents: what they are known for, and what nobody can know."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from alignment.miniature import lexicon
from alignment.miniature.lexicon import ATTRIBUTES, Attribute
from alignment.miniature.skills.skill import Skill, Task, pick
from alignment.miniature.town import Town

_BY_KEY = {attribute.key: attribute for attribute in ATTRIBUTES}
# "Which food does she love?" asks for nobody by name: it can only follow an earlier question.
PRONOUNS = frozenset(("she", "he", "they", "it", "her", "his", "their", "its"))
_NEVER_HEARD = (
    "I do not know anyone called {name}.",
    "There is nobody called {name} in this town, so I do not know.",
    "I do not know {name}, so I cannot say.",
)
_NEVER_TOLD = (
    "I do not know {name}'s {noun}.",
    "Nobody told me {name}'s {noun}, so I do not know.",
    "I do not know, because {name} keeps that a secret.",
)
_VAGUE = (
    "{name}'s {noun} is quite a common one.",
    "Many people ask about {name}'s {noun}.",
    "{name}'s {noun} is the same as ever.",
)


class Facts(Skill):
    """``What is Anna's job?`` for residents; for a stranger's name the right answer is not to know."""

    name = "fact"

    def __init__(self, town: Town) -> None:
        super().__init__(town)
        self._values = {
            a.key: re.compile(rf"\b({'|'.join(map(re.escape, a.values))})\b", re.IGNORECASE) for a in ATTRIBUTES
        }
        self._spelling = {value.casefold(): value for a in ATTRIBUTES for value in a.values}
        self.topic = frozenset(word for a in ATTRIBUTES for word in a.noun.split())

    def templates(self) -> Iterator[tuple[str, Any]]:
        for attribute in ATTRIBUTES:
            for template in self.asks(attribute):
                yield template, attribute.key

    @staticmethod
    def asks(attribute: Attribute) -> tuple[str, ...]:
        by_noun = tuple(template.replace("{noun}", attribute.noun) for template in lexicon.ASKS_BY_NOUN)
        return (*by_noun, *attribute.asks)

    @staticmethod
    def follows(attribute: Attribute) -> tuple[str, ...]:
        """Questions that need the earlier turn to know of whom they speak."""
        by_noun = tuple(template.replace("{noun}", attribute.noun) for template in lexicon.FOLLOWS_BY_NOUN)
        return (*by_noun, *attribute.follows)

    def read(self, key: Any, slots: dict[str, str]) -> Task | None:
        return None if slots["name"] in PRONOUNS else self.task(slots["name"], key)

    def task(self, name: str, key: str) -> Task:
        """The task of telling one attribute of somebody, resident or stranger."""
        name = self.town.spelling.get(name, name.capitalize())
        if name not in self.town.people:
            return Task("unanswerable", self.name, name, key, None)
        return Task("fact", self.name, name, key, self.town.people[name].facts[key])

    def draw(self, rng: random.Random) -> str:
        return self._ask(rng, self.town.names)

    def draw_stranger(self, rng: random.Random) -> str:
        return self._ask(rng, self.town.strangers)

    def _ask(self, rng: random.Random, names: tuple[str, ...]) -> str:
        return rng.choice(self.asks(rng.choice(ATTRIBUTES))).format(name=rng.choice(names))

    def say(self, task: Task, value: str, rng: random.Random) -> str:
        template = pick(rng, _BY_KEY[task.about].says)
        return template.format(S=task.subject, P=f"{task.subject}'s", value=value)

    def other(self, task: Task, rng: random.Random) -> str:
        return rng.choice([value for value in _BY_KEY[task.about].values if value != task.value])

    def vague(self, task: Task, rng: random.Random) -> str:
        return rng.choice(_VAGUE).format(name=task.subject, noun=_BY_KEY[task.about].noun)

    def hedge(self, task: Task, rng: random.Random) -> str:
        if task.value is None:
            return pick(rng, _NEVER_HEARD).format(name=task.subject)
        return super().hedge(task, rng)

    def claims(self, task: Task, answer: str) -> set[str]:
        return {self._spelling[value.casefold()] for value in self._values[task.about].findall(answer)}

    def sentences(self) -> Iterator[str]:
        for attribute in ATTRIBUTES:
            for value in attribute.values:
                for template in attribute.says:
                    yield template.format(S="Anna", P="Anna's", value=value)
            yield from (template.format(name="Anna", noun=attribute.noun) for template in _VAGUE)
        yield from (template.format(name="Anna") for template in _NEVER_HEARD)

    def values(self) -> Iterator[str]:
        return (value for attribute in ATTRIBUTES for value in attribute.values)


class Unknowns(Skill):
    """``What is Anna's shoe size?``: nobody has told, so that every value is invented."""

    name = "unknown"

    def __init__(self, town: Town) -> None:
        super().__init__(town)
        self._by_noun = {unknown.noun: unknown for unknown in lexicon.UNKNOWNS}
        self.topic = frozenset(word for noun in self._by_noun for word in noun.split())

    def templates(self) -> Iterator[tuple[str, Any]]:
        for noun in self._by_noun:
            for template in lexicon.ASKS_UNKNOWN:
                yield template.replace("{noun}", noun), noun

    def read(self, key: Any, slots: dict[str, str]) -> Task | None:
        name = self.town.spelling.get(slots["name"], slots["name"].capitalize())
        return Task("unanswerable", self.name, name, key, None)

    def draw(self, rng: random.Random) -> str:
        name = rng.choice(self.town.names)
        template = rng.choice(lexicon.ASKS_UNKNOWN)
        return template.format(
            name=name, noun=rng.choice(lexicon.UNKNOWNS).noun, pos_name=self.town.pronouns(name)["pos"]
        )

    def say(self, task: Task, value: str, rng: random.Random) -> str:
        return f"{task.subject}'s {task.about} is {value}."

    def other(self, task: Task, rng: random.Random) -> str:
        return rng.choice(self._by_noun[task.about].invented)

    def vague(self, task: Task, rng: random.Random) -> str:
        return rng.choice(_VAGUE).format(name=task.subject, noun=task.about)

    def hedge(self, task: Task, rng: random.Random) -> str:
        return pick(rng, _NEVER_TOLD).format(name=task.subject, noun=task.about)

    def claims(self, task: Task, answer: str) -> set[str]:
        text = answer.casefold()
        listed = {value for value in self._by_noun[task.about].invented if value.casefold() in text}
        return listed | set(re.findall(r"\d+", text))

    def sentences(self) -> Iterator[str]:
        for unknown in lexicon.UNKNOWNS:
            yield from (template.format(name="Anna", noun=unknown.noun) for template in (*_VAGUE, *_NEVER_TOLD))
            yield from (f"Anna's {unknown.noun} is {value}." for value in unknown.invented)

    def values(self) -> Iterator[str]:
        return (value for unknown in lexicon.UNKNOWNS for value in unknown.invented)


class FactFollowUps:
    """``And what is her job?`` and ``And Tom?``, after a question about somebody."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def templates(self) -> Iterator[tuple[str, str]]:
        for attribute in ATTRIBUTES:
            for template in self._facts.follows(attribute):
                yield template, f"attribute:{attribute.key}"
        for template in lexicon.FOLLOWS_BY_NAME:
            yield template, "name"

    def read(self, key: str, slots: dict[str, str], before: Task) -> Task | None:
        if before.skill not in (Facts.name, Unknowns.name):
            return None
        if key.startswith("attribute:"):
            return self._as_follow_up(self._facts.task(before.subject, key.removeprefix("attribute:")))
        if before.skill == Facts.name:
            return self._as_follow_up(self._facts.task(slots["name"], before.about))
        return None

    @staticmethod
    def _as_follow_up(task: Task) -> Task:
        return replace(task, kind="follow_up") if task.value is not None else task

    def draw(self, before: Task, rng: random.Random) -> str:
        """A question that can follow ``before``, a task about a resident or a stranger."""
        if before.skill == Facts.name and rng.random() < 0.3:
            names = [name for name in self._facts.town.names if name != before.subject]
            return rng.choice(lexicon.FOLLOWS_BY_NAME).format(name=rng.choice(names))
        attribute = rng.choice([a for a in ATTRIBUTES if a.key != before.about])
        return rng.choice(self._facts.follows(attribute)).format(**self._facts.town.pronouns(before.subject))
