"""Having comparisons judged: by a scorer, which scores both answers, or by a model that says which one is better.

A judge is asked part by part, and what it said is kept, so that a measurement that was stopped goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from alignment import parts
from alignment.chat.types import Comparison, Message
from alignment.errors import UserError
from alignment.evals.preferences import Said
from alignment.scoring.pairwise import Opinionated
from alignment.scoring.scorer import Scorer


class Judge(Protocol):
    """Judges comparisons without being told which answer is the chosen one."""

    pairs_a_part: int

    def judge(self, some: Sequence[Comparison]) -> parts.Rows:
        """What it says of each pair, as JSON holds it."""
        ...

    def said(self, rows: parts.Rows) -> Said:
        """The same as columns."""
        ...


class ByScores:
    """A scorer: the higher raw score wins."""

    pairs_a_part = 512

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def judge(self, some: Sequence[Comparison]) -> parts.Rows:
        """Raw scores and probabilities of both answers. Raises :class:`UserError` for a score that is no number."""
        dialogues = [
            (*row.prompt, Message("assistant", answer)) for row in some for answer in (row.chosen, row.rejected)
        ]
        scores = self.scorer.score(dialogues)
        for place, score in enumerate(scores.raw):
            if not math.isfinite(score):
                raise UserError(
                    f"{self.scorer.name}: gives the score {score} to an answer to {some[place // 2].id}",
                    remedy="A judge must give every answer a number.",
                )
        return [
            {"raw": list(scores.raw[place : place + 2]), "probability": list(scores.probability[place : place + 2])}
            for place in range(0, len(dialogues), 2)
        ]

    def said(self, rows: parts.Rows) -> Said:
        """The same as columns."""
        raw_PA, probability_PA = (np.array([row[name] for row in rows], float) for name in ("raw", "probability"))
        return Said.scores(raw_PA, probability_PA, self.scorer.absolute)


class ByOpinions:
    """A model that is asked in words, in both orders: no preference, and what cannot be read, are half right."""

    pairs_a_part = 32
    """Few, because such a judge is slow, and tells of its progress only part by part."""

    def __init__(self, judge: Opinionated) -> None:
        self._judge = judge

    def judge(self, some: Sequence[Comparison]) -> parts.Rows:
        """Whether the chosen answer is the better one, whether each is safe, and whether that could be read."""
        opinions = self._judge.compare(
            [row.prompt for row in some],
            [row.chosen for row in some],
            [row.rejected for row in some],
            [row.id for row in some],
        )
        return [
            {"right": one.first_better, "safe": [one.first_safe, one.second_safe], "valid": one.valid}
            for one in opinions
        ]

    def said(self, rows: parts.Rows) -> Said:
        """The same as columns; a safety that is not said is ½."""
        return Said(
            right_P=np.array([_half(row["right"]) for row in rows]),
            raw_PA=None,
            probability_PA=np.array([[_half(safe) for safe in row["safe"]] for row in rows]),
            absolute=True,
            unreadable=sum(not row["valid"] for row in rows),
        )


def _half(said: bool | None) -> float:
    return 0.5 if said is None else float(said)


def ask(
    judge: Judge, rows: Sequence[Comparison], out: Path, name: str, on_done: Callable[[int, bool], None] | None = None
) -> Said:
    """What ``judge`` says of ``rows``; ``name`` and ``on_done`` are those of ``parts.in_parts``."""
    return judge.said(list(parts.in_parts(out, name, rows, judge.pairs_a_part, judge.judge, on_done)))
