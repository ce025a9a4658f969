"""Questions about a short text that stands before them: a right answer names the text, or says that it is silent.

The texts are about strangers and are made up for one question, so that nothing learnt can help: the answer has
to be copied. Gemma 2 (§4) adds such data, "in-context attribution, hedging, and refusals", against hallucination.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

from alignment.miniature.lexicon import ATTRIBUTES, Attribute
from alignment.miniature.skills.facts import PRONOUNS
from alignment.miniature.skills.skill import Skill, Task, pick
from alignment.miniature.templates import Patterns, plain
from alignment.miniature.town import Town

# What texts tell: everything whose value is one word, which is easily copied.
MATTERS = tuple(each for each in ATTRIBUTES if not any(" " in value for value in each.values))

_BY_KEY = {matter.key: matter for matter in MATTERS}
_KEY_OF = {value: matter.key for matter in MATTERS for value in matter.values}
_VALUES = re.compile(rf"\b({'|'.join(_KEY_OF)})\b")
_LEADS = ("Text:", "A text:", "Read this:")
_ASKS_BY_NOUN = ("What is {name}'s {noun}?", "Tell me {name}'s {noun}.", "Can you tell me {name}'s {noun}?")
_REPORTS = ("The text says that {statement}.", "According to the text, {statement}.", "As the text says, {statement}.")
_REPORT_KEYS = ("the text says that", "according to the text", "as the text says")
_SILENT = (
    "The text does not say.",
    "The text does not say what {name}'s {noun} is.",
    "The text says nothing about {name}'s {noun}.",
)
SILENT_KEYS = ("the text does not say", "the text says nothing")
_VAGUE = ("The text is about {name} and others.", "The text speaks of {name}.", "The text tells of {name} too.")

# How many questions have their answer in the text; in how many texts somebody else has the thing asked for.
_TOLD = 0.7
_CONFUSABLE = 0.5
_LENGTHS = range(3, 8)  # words of a statement


class Attribution(Skill):
    """``Text: Zara has a cat. Otto is a baker. What is Zara's pet?``"""

    name = "attribution"
    topic = frozenset(("text",))
    budget = 15

    def __init__(self, town: Town) -> None:
        super().__init__(town)
        statements = (
            (template.format(S="{name}", P="{name}'s", value="{value}"), matter.key)
            for matter in MATTERS
            for template in matter.says
        )
        self._statements = Patterns(statements, {"name": r"[^\W\d_]+", "value": "|".join(_KEY_OF)})

    def templates(self) -> Iterator[tuple[str, Any]]:
        for lead in _LEADS:
            for matter in MATTERS:
                for ask in _asks(matter):
                    yield f"{lead} {{text}} {ask}", matter.key

    def read(self, key: Any, slots: dict[str, str]) -> Task | None:
        name, told = slots["name"], self._told(slots["text"])
        if told is None or name in PRONOUNS:
            return None
        return Task(
            "context",
            self.name,
            self.town.spelling.get(name, name.capitalize()),
            key,
            told.get((name, key)),
            told=tuple(value for (who, what), value in told.items() if what == key and who != name),
        )

    def _told(self, text: str) -> dict[tuple[str, str], str] | None:
        """What a text (in ``plain`` form) tells, by name and attribute; None if a part of it is not understood
        or two parts disagree."""
        told: dict[tuple[str, str], str] = {}
        words = text.split()
        while words:
            for length in _LENGTHS:
                found = self._statement(" ".join(words[:length]))
                if found is not None:
                    break
            else:
                return None
            name, key, value = found
            if told.setdefault((name, key), value) != value:
                return None
            words = words[length:]
        return told

    def _statement(self, text: str) -> tuple[str, str, str] | None:
        for key, slots in self._statements.matches(text):
            if _KEY_OF[slots["value"]] == key and slots["name"] not in PRONOUNS:
                return slots["name"], key, slots["value"]
        return None

    def draw(self, rng: random.Random) -> str:
        asked, other = rng.sample(self.town.strangers, 2)
        matter = rng.choice(MATTERS)
        beside = rng.sample([each for each in MATTERS if each is not matter], 3)
        told = [
            (asked, matter if rng.random() < _TOLD else beside[0]),
            (other, matter if rng.random() < _CONFUSABLE else beside[1]),
        ]
        if rng.random() < 0.5:
            told.append((rng.choice((asked, other)), beside[2]))
        rng.shuffle(told)
        values = {each.key: rng.sample(each.values, 2) for each in (matter, *beside)}
        text = " ".join(f"{state(name, each, values[each.key].pop(), rng)}." for name, each in told)
        ask = rng.choice(_asks(matter)).format(name=asked)
        return f"{rng.choice(_LEADS)} {text} {ask}"

    def say(self, task: Task, value: str, rng: random.Random) -> str:
        return report(self.bare(task, value, rng).removesuffix("."), rng)

    @staticmethod
    def bare(task: Task, value: str, rng: random.Random) -> str:
        """One sentence that claims ``value`` and does not name the text."""
        return f"{state(task.subject, _BY_KEY[task.about], value, rng)}."

    def other(self, task: Task, rng: random.Random) -> str:
        """What the text tells of somebody else, or what it tells of nobody."""
        if task.told and rng.random() < 0.6:
            return rng.choice(task.told)
        return rng.choice([value for value in _BY_KEY[task.about].values if value not in (task.value, *task.told)])

    def vague(self, task: Task, rng: random.Random) -> str:
        return rng.choice(_VAGUE).format(name=task.subject)

    def hedge(self, task: Task, rng: random.Random) -> str:
        return silent(task.subject, _BY_KEY[task.about], rng)

    def claims(self, task: Task, answer: str) -> set[str]:
        """Values of any kind: an answer that repeats the whole text claims all of it."""
        return set(_VALUES.findall(answer.casefold()))

    def sentences(self) -> Iterator[str]:
        for matter in MATTERS:
            for template in matter.says:
                statement = template.format(S="Anna", P="Anna's", value=matter.values[0]).removesuffix(".")
                yield from (each.format(statement=statement) for each in _REPORTS)
            yield from (each.format(name="Anna", noun=matter.noun) for each in (*_SILENT, *_VAGUE))


def _says(matter: Attribute) -> tuple[str, ...]:
    """The statements that texts and answers are made of: the shortest, which begin with the name."""
    return matter.says[:2]


def _asks(matter: Attribute) -> tuple[str, ...]:
    """Questions that such a statement answers, word for word or nearly so."""
    return (*(ask.replace("{noun}", matter.noun) for ask in _ASKS_BY_NOUN), matter.asks[0])


def state(name: str, matter: Attribute, value: str, rng: random.Random) -> str:
    """A statement about somebody, without a full stop: ``Zara has a cat``."""
    return pick(rng, _says(matter)).format(S=name, P=f"{name}'s", value=value).removesuffix(".")


def report(statement: str, rng: random.Random) -> str:
    """The statement with its source: ``The text says that Zara has a cat.``"""
    return pick(rng, _REPORTS).format(statement=statement)


def silent(name: str, matter: Attribute, rng: random.Random) -> str:
    """``The text does not say.``"""
    return pick(rng, _SILENT).format(name=name, noun=matter.noun)


def attributed(answer: str, value: str) -> bool:
    """Whether a sentence of the answer gives the value as what the text says."""
    sentences = (plain(sentence) for sentence in re.split(r"[.!?]", answer))
    return any(value in sentence and any(key in sentence for key in _REPORT_KEYS) for sentence in sentences)


def speaks_of_text(answer: str) -> bool:
    """Whether an answer names a text as its source, or as silent."""
    return "the text" in plain(answer)
