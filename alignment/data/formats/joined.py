"""Formats of comparisons whose rows hold one answer each: those to one prompt are joined, and compared two by two."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import combinations
from typing import Literal

from pydantic import model_validator

from alignment.chat.types import Messages
from alignment.data import trees
from alignment.data.formats.grades import Gaps, by_gap
from alignment.data.formats.pairs import PromptOptions, comparison, unknown
from alignment.data.formats.shape import Shape, label
from alignment.data.formats.turns import prompt_of
from alignment.data.rows import Candidate, Raw, Reading, none
from alignment.errors import DataError
from alignment.settings import Settings, identity


class ScoredOptions(PromptOptions):
    """What makes an answer's score, and what a difference of scores is worth."""

    scores: dict[str, float] = identity("column of a score → its weight in the sum", min_length=1)
    grades: Gaps | None = identity(
        "grade → least difference of the sums; null leaves pairs without grades", default=None
    )


class Order(Settings):
    """Which label is better than which, for the prompts of some types."""

    types: list[str] = identity("values of the column `type`; `*` stands for anything", min_length=1)
    best_first: list[str] = identity("labels, the best first", min_length=2)
    unsafe: list[str] | None = identity("labels of answers that are unsafe; null says nothing of safety", default=None)

    @model_validator(mode="after")
    def _each_once(self) -> Order:
        if len(set(self.best_first)) < len(self.best_first):
            raise ValueError("a label stands in best_first twice")
        if stray := sorted(set(self.unsafe or []) - set(self.best_first)):
            raise ValueError(f"the unsafe label {stray[0]!r} is not in best_first")
        return self


class LabelledOptions(PromptOptions):
    """Which labels make an answer the better one, and what their distance is worth."""

    orders: list[Order] = identity("for prompts of each type; the first that fits is taken", min_length=1)
    grades: Gaps | None = identity(
        "grade → least distance of the labels in their order; null leaves pairs without grades", default=None
    )


class RankedOptions(Settings):
    """Which ranked answers are compared, and what a difference of ranks is worth."""

    pairs: Literal["all", "adjacent"] = identity("all pairs of ranked answers to a question, or neighbours alone")
    grades: Gaps | None = identity(
        "grade → least difference of the ranks; null leaves pairs without grades", default=None
    )


@dataclass(frozen=True, slots=True)
class Judged:
    """An answer, how good it is, and whether it is safe where that is known; ``flaw`` says why it cannot be judged."""

    text: str
    worth: float
    safe: bool | None = None
    flaw: str = ""


def read_scored_pair(raw: Raw, shape: Shape) -> Reading:
    """Answers to one prompt, a row and a score each, joined by the source's ``group``; every pair is a comparison."""
    scores: dict[str, float] = shape.options.scores

    def judge(member: Raw, answer: str) -> Judged:
        return Judged(answer, sum(weight * _number(member, column) for column, weight in scores.items()))

    return _two_by_two(raw, shape, judge, "equal scores")


def read_labelled_pair(raw: Raw, shape: Shape) -> Reading:
    """Answers to one prompt, a row and a label each, joined by the source's ``group``; other labels make a comparison.

    Which label is the better one may depend on the prompt's type: refusing is right where a request is unsafe and
    wrong where it only looks so. Without a column ``type`` the type is an empty text.
    """
    kind, *others = {_label(member, shape, "type") for member in _members(raw, shape)}
    if others:
        return none("the answers have prompts of different types")
    orders: list[Order] = shape.options.orders
    order = next((one for one in orders if any(fnmatchcase(kind, pattern) for pattern in one.types)), None)
    if order is None:
        return none(unknown("type", kind))

    def judge(member: Raw, answer: str) -> Judged:
        said = _label(member, shape, "label")
        if said not in order.best_first:
            return Judged(answer, 0.0, flaw=unknown("label", said))
        safe = None if order.unsafe is None else said not in order.unsafe
        return Judged(answer, -float(order.best_first.index(said)), safe)

    return _two_by_two(raw, shape, judge, "equal labels")


def _two_by_two(raw: Raw, shape: Shape, judge: Callable[[Raw, str], Judged], equal: str) -> Reading:
    """A comparison for every two answers of which one is better; ``equal`` says why the others are none."""
    members = _members(raw, shape)
    if len(members) == 1:
        return none("one answer only")
    prompts = {prompt_of(member, shape.columns["prompt"], shape.options.markers) for member in members}
    answers = [member.text(shape.columns["answer"]) for member in members]
    if None in prompts or None in answers:
        return none("no value in the prompt or an answer")
    if len(prompts) > 1:
        return none("the answers have different prompts")
    (prompt,) = prompts
    judged = [judge(member, answer or "") for member, answer in zip(members, answers, strict=True)]
    return Reading([_compared(raw, shape, prompt or (), one, other, equal) for one, other in combinations(judged, 2)])


def _members(raw: Raw, shape: Shape) -> tuple[Raw, ...]:
    """The rows of one prompt. Raises :class:`DataError` where they are not joined."""
    if not raw.members:
        raise DataError(
            raw.where,
            "the rows of one prompt are not joined",
            remedy=f"Set the source's `group` to {shape.columns['prompt']!r}.",
        )
    return raw.members


def _compared(raw: Raw, shape: Shape, prompt: Messages, one: Judged, other: Judged, equal: str) -> Candidate:
    gap = abs(one.worth - other.worth)
    if flaw := one.flaw or other.flaw or (equal if gap < 1e-9 else ""):
        return Candidate(dropped=flaw)
    chosen, rejected = (one, other) if one.worth > other.worth else (other, one)
    row = comparison(raw, shape, prompt, chosen.text, rejected.text, by_gap(gap, shape.options.grades))
    return Candidate(replace(row, chosen_safe=chosen.safe, rejected_safe=rejected.safe))


def _label(member: Raw, shape: Shape, name: str) -> str:
    """A label, or an empty text where there is none."""
    return label(member, shape, name) or ""


def _number(raw: Raw, column: str) -> float:
    """A score; a table without types, such as CSV, writes it as text."""
    value = raw.column(column)
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return number
    raise DataError(
        raw.where,
        f"column {column!r} holds {value!r}, not a number",
        remedy="Check the source's option `scores`.",
    )


def read_oasst_pairs(raw: Raw, shape: Shape) -> Reading:
    """The ranked answers of an Open-Assistant tree, compared with each other under the turns before them."""
    options = shape.options
    found = trees.pairs(raw, adjacent=options.pairs == "adjacent")
    candidates = [
        Candidate(
            comparison(raw, shape, pair.prompt, pair.better, pair.worse, by_gap(pair.gap, options.grades))
            if pair.gap
            else None,
            pair.dropped or ("" if pair.gap else "equal ranks"),
        )
        for pair in found
    ]
    left = trees.alone(raw) if candidates else 0
    return Reading(candidates, changed=f"{left} answers without a ranked other left out" if left else "")
