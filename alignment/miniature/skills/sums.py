"""Sums: one-digit addition and subtraction, and easy ones with two digits."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from alignment.miniature.skills.skill import Skill, Task, pick

_ASKS = {
    "plus": (
        "What is {a} plus {b}?",
        "How much is {a} plus {b}?",
        "Add {a} and {b}.",
        "What do you get if you add {b} to {a}?",
        "{a} + {b} = ?",
        "Work out {a} + {b}.",
        "I have {a} apples and get {b} more. How many do I have?",
        "What is the sum of {a} and {b}?",
    ),
    "minus": (
        "What is {a} minus {b}?",
        "How much is {a} minus {b}?",
        "Take {b} away from {a}.",
        "What is left if you take {b} from {a}?",
        "{a} - {b} = ?",
        "Work out {a} - {b}.",
        "I have {a} apples and eat {b} of them. How many are left?",
        "What is {b} less than {a}?",
    ),
}
_FOLLOWS = {
    "plus": ("Now add {b}.", "And if you add {b}?", "And {b} more?", "Add {b} to that."),
    "minus": ("Now take {b} away.", "And if you take {b} away?", "And {b} less?", "Take {b} from that."),
}
_SAYS = ("{a} {op} {b} is {value}.", "The answer is {value}.", "That makes {value}.")
_VAGUE = ("It is a number that is not too big.", "The answer is some number.", "You can count it on paper.")
_ECHO = re.compile(r"\d+\s*(?:\+|-|plus|minus|and|from|less than)\s*\d+", re.IGNORECASE)


def _result(a: int, op: str, b: int) -> int:
    return a + b if op == "plus" else a - b


class Sums(Skill):
    """``What is 3 plus 4?``"""

    name = "sum"
    topic = frozenset(("number", "answer", "sum", "count"))

    def templates(self) -> Iterator[tuple[str, Any]]:
        for op, asks in _ASKS.items():
            for template in asks:
                yield template, op

    def read(self, key: Any, slots: dict[str, str]) -> Task | None:
        a, b = int(slots["a"]), int(slots["b"])
        if _result(a, key, b) < 0:
            return None
        return Task("sum", self.name, f"{a} {key} {b}", key, str(_result(a, key, b)))

    def draw(self, rng: random.Random) -> str:
        op, a, b = draw_sum(rng)
        return rng.choice(_ASKS[op]).format(a=a, b=b)

    def say(self, task: Task, value: str, rng: random.Random) -> str:
        a, op, b = task.subject.split()
        return pick(rng, _SAYS).format(a=a, op=op, b=b, value=value)

    def other(self, task: Task, rng: random.Random) -> str:
        right = int(task.value or 0)
        return str(
            rng.choice([n for n in (right - 10, right - 2, right - 1, right + 1, right + 2, right + 10) if n >= 0])
        )

    def vague(self, task: Task, rng: random.Random) -> str:
        return rng.choice(_VAGUE)

    def claims(self, task: Task, answer: str) -> set[str]:
        return set(re.findall(r"\d+", _ECHO.sub(" ", answer)))

    def sentences(self) -> Iterator[str]:
        for op in _ASKS:
            yield from (template.format(a=1, op=op, b=2, value=3) for template in _SAYS)
        yield from _VAGUE

    def values(self) -> Iterator[str]:
        return iter(("3",))


def draw_sum(rng: random.Random) -> tuple[str, int, int]:
    """An operation and two numbers: mostly of one digit; one in four has a teen or full tens."""
    op = rng.choice(("plus", "minus"))
    level = rng.random()
    if level < 0.75:
        a, b = rng.randrange(10), rng.randrange(10)
    elif level < 0.95:
        a, b = rng.randrange(10, 20), rng.randrange(1, 10)
    else:
        a, b = 10 * rng.randrange(1, 10), 10 * rng.randrange(1, 10)
    return (op, max(a, b), min(a, b)) if op == "minus" else (op, a, b)


class SumFollowUps:
    """``Now add 2.``: the result of the earlier turn goes on."""

    def templates(self) -> Iterator[tuple[str, str]]:
        for op, templates in _FOLLOWS.items():
            for template in templates:
                yield template, op

    def read(self, key: str, slots: dict[str, str], before: Task) -> Task | None:
        if before.skill != Sums.name or before.value is None:
            return None
        a, b = int(before.value), int(slots["b"])
        if _result(a, key, b) < 0:
            return None
        task = Task("sum", Sums.name, f"{a} {key} {b}", key, str(_result(a, key, b)))
        return replace(task, kind="follow_up")

    def draw(self, before: Task, rng: random.Random) -> str:
        """A step that goes on from the result of ``before``, without falling below zero."""
        b = rng.randrange(1, 6)
        op = rng.choice(("plus", "minus")) if int(before.value or 0) >= b else "plus"
        return rng.choice(_FOLLOWS[op]).format(b=b)
