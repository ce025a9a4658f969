"""Comparisons and what a judge says of them, drawn at random, for tests of measures."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignment.chat.types import Comparison, messages
from alignment.data.grades import GRADES
from alignment.evals.preferences import Pairs, Said, sigmoid

SAFETY = ((True, False), (True, True), (False, False), (None, None), (False, True), (True, None))


def comparison(name: str, chosen: str = "Yes.", rejected: str = "No.", **more: Any) -> Comparison:
    """One comparison; ``question`` is the opening message, ``turns`` the number of the user's."""
    turns = [("user", more.pop("question", f"Question {name}?"))]
    for _ in range(more.pop("turns", 1) - 1):
        turns += [("assistant", "Well."), ("user", "And?")]
    fields = {"grade": "better", "source": "hand", "id": name, **more}
    return Comparison(prompt=messages(*turns), chosen=chosen, rejected=rejected, **fields)  # type: ignore[arg-type]


def comparisons(count: int, seed: int = 0) -> list[Comparison]:
    """Some of every kind, with prompts that come once, twice and more often."""
    draw = random.Random(seed)
    return [
        comparison(
            f"c{seed}-{number}",
            chosen="c" * draw.choice((5, 9, 10, 11, 20, 40)),
            rejected="r" * draw.choice((5, 9, 10, 11, 20, 40)),
            question=f"Question {draw.randrange(count // 2)}?",
            turns=draw.choice((1, 1, 2, 3, 4, 7)),
            grade=draw.choice((*GRADES, None)),
            source=draw.choice(("one", "two")),
            chosen_safe=(labels := draw.choice(SAFETY))[0],
            rejected_safe=labels[1],
        )
        for number in range(count)
    ]


def scores(count: int, seed: int = 0) -> np.ndarray:
    """Raw scores (P, 2) that lean to the chosen answer, some of them equal."""
    rng = np.random.default_rng(seed)
    raw_PA = rng.normal(size=(count, 2)) * 1.5 + (0.5, -0.3)
    raw_PA[::7, 1] = raw_PA[::7, 0]
    return raw_PA


def said(count: int, seed: int = 0, *, absolute: bool = True) -> Said:
    """What a judge with such scores says."""
    raw_PA = scores(count, seed)
    return Said.scores(raw_PA, sigmoid(raw_PA), absolute)


def columns(rows: Sequence[Comparison]) -> Pairs:
    """The rows as columns."""
    return Pairs.of(rows)
