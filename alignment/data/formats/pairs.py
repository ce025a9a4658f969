"""Formats of comparisons whose rows hold two answers to one prompt. ``grades.py`` says how they are graded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from alignment.chat.types import Comparison, Grade, Message, Messages, messages
from alignment.data.formats.grades import drawn_side
from alignment.data.formats.shape import Shape, label
from alignment.data.formats.turns import ROLES, Markers, marked, prompt_of, turns_of, without_last_answer
from alignment.data.grades import GRADES
from alignment.data.rows import Raw, Reading, none, one
from alignment.errors import DataError
from alignment.settings import Settings, identity

DIFFERENT = "the two sides have different prompts"
_LONGEST_VALUE = 40


class PromptOptions(Settings):
    """How a prompt that is text is read."""

    markers: Markers | None = identity(
        "the words that open a turn inside a prompt; null takes the prompt for one question", default=None
    )


class SafeOptions(Settings):
    """Which of two preferences is taken."""

    by: Literal["better", "safer"] = identity("better: the more helpful answer is chosen; safer: the safer one")


class GradedOptions(PromptOptions):
    """What the values of the preference column mean."""

    a: dict[str, Grade | None] = identity("value → by how much answer a is better; a null grade is none")
    b: dict[str, Grade | None] = identity("value → by how much answer b is better; a null grade is none")
    ties: list[str] = identity("values that prefer neither")
    keep_ties: bool = identity("keep a tie as negligibly better, with a side drawn by a hash; false drops it")


def comparison(
    raw: Raw, shape: Shape, prompt: Messages, chosen: str, rejected: str, grade: Grade | None = None
) -> Comparison:
    """A comparison of this source."""
    return Comparison(prompt, chosen, rejected, grade, shape.source, label(raw, shape, "id") or "")


def unknown(what: str, value: str) -> str:
    """Why a row is dropped whose grade or label the recipe does not map."""
    return f"unknown {what} {value[:_LONGEST_VALUE]!r}"


def read_marked_pair(raw: Raw, shape: Shape) -> Reading:
    """Two whole dialogues with marked turns, as in HH-RLHF; the history they share is the prompt."""
    sides: list[Sequence[Message]] = []
    for name in ("chosen", "rejected"):
        text = raw.text(shape.columns[name])
        if text is None:
            return none(f"no value in column {shape.columns[name]!r}")
        before, turns = marked(text, shape.options)
        if not turns:
            return none(f"no turn opens with {shape.options.user!r}")
        if before.strip():
            return none("text before the first turn")
        sides.append(turns)
    return _whole_dialogues(raw, shape, sides)


def _whole_dialogues(raw: Raw, shape: Shape, sides: Sequence[Sequence[Message]], grade: Grade | None = None) -> Reading:
    chosen, rejected = (without_last_answer(side) for side in sides)
    if chosen is None or rejected is None:
        return none("a side does not end with an answer")
    if chosen[0] != rejected[0]:
        return none(DIFFERENT)
    return one(comparison(raw, shape, chosen[0], chosen[1], rejected[1], grade))


SAFE = ("chosen_safe", "rejected_safe")
"""Columns that say whether an answer is safe: true or false, 1 or 0, or null where nobody said."""


def read_chosen_rejected(raw: Raw, shape: Shape) -> Reading:
    """A better and a worse answer, each a text or a list of ``{"role", "content"}`` turns; a grade and safety labels
    where columns are mapped to them.

    With a column ``prompt`` that is the prompt, and turns before an answer have to be its own. Without one the
    sides are whole dialogues, and the history they share is the prompt.
    """
    labels: dict[str, bool | None] = {}
    for name in (name for name in SAFE if name in shape.columns):
        value = raw.column(shape.columns[name])
        if value not in (None, 0, 1):  # False and True are 0 and 1
            return none(unknown("safety label", str(value)))
        labels[name] = None if value is None else bool(value)
    reading = _chosen_rejected(raw, shape)
    found = [
        replace(made, row=replace(made.row, **labels)) if isinstance(made.row, Comparison) else made  # type: ignore[arg-type]
        for made in reading.candidates
    ]
    return replace(reading, candidates=found)


def _chosen_rejected(raw: Raw, shape: Shape) -> Reading:
    sides: list[str | Messages] = []
    for column in (shape.columns["chosen"], shape.columns["rejected"]):
        value = raw.column(column)
        if value is None:
            return none(f"no value in column {column!r}")
        sides.append(
            value
            if isinstance(value, str)
            else turns_of(raw, column, value, role="role", content="content", roles=ROLES)
        )
    named = label(raw, shape, "grade")
    if named is not None and named not in GRADES:
        return none(unknown("grade", named))
    if "prompt" in shape.columns:
        return _under_prompt(raw, shape, sides, named)
    dialogues = [side for side in sides if not isinstance(side, str)]
    if len(dialogues) < len(sides):
        raise DataError(
            raw.where,
            "an answer is text and there is no prompt to it",
            remedy="Map the column `prompt`; for dialogues in one text declare the format marked_pair.",
        )
    return _whole_dialogues(raw, shape, dialogues, named)


def _under_prompt(raw: Raw, shape: Shape, sides: Sequence[str | Messages], grade: Grade | None) -> Reading:
    prompt = prompt_of(raw, shape.columns["prompt"], shape.options.markers)
    if prompt is None:
        return none(f"no value in column {shape.columns['prompt']!r}")
    parted = [((), side) if isinstance(side, str) else without_last_answer(side) for side in sides]
    chosen, rejected = parted
    if chosen is None or rejected is None:
        return none("a side does not end with an answer")
    if any(history not in ((), prompt) for history, _ in (chosen, rejected)):
        return none(DIFFERENT)
    return one(comparison(raw, shape, prompt, chosen[1], rejected[1], grade))


def read_safe_rlhf(raw: Raw, shape: Shape) -> Reading:
    """PKU-SafeRLHF: two answers, whether each is safe, which is the more helpful and which the safer.

    Llama 2's safety set has no pair that prefers an unsafe answer to a safe one (§3.1): by ``safer`` such a
    pair is dropped. By ``better`` it stays, for it says which answer helps more.
    """
    prompt, answers = raw.text("prompt"), [raw.text(f"response_{side}") for side in (0, 1)]
    safe = [raw.column(f"is_response_{side}_safe") for side in (0, 1)]
    column = f"{shape.options.by}_response_id"
    preferred = raw.column(column)
    if prompt is None or None in answers:
        return none("no value in the prompt or an answer")
    if preferred not in (0, 1):
        return none(f"no preference in column {column!r}")
    for side, value in enumerate(safe):
        if not isinstance(value, bool):
            raise DataError(
                raw.where,
                f"column 'is_response_{side}_safe' holds {value!r}, not true or false",
                remedy="Check the recipe's `format`.",
            )
    better, worse = int(preferred), 1 - int(preferred)
    if shape.options.by == "safer" and safe[worse] and not safe[better]:
        return none("prefers an unsafe answer to a safe one")
    row = comparison(raw, shape, messages(("user", prompt)), answers[better] or "", answers[worse] or "")
    return one(replace(row, chosen_safe=safe[better], rejected_safe=safe[worse]))


def read_graded_pair(raw: Raw, shape: Shape) -> Reading:
    """Two answers and a column that says which is better and by how much, in the source's own words or numbers."""
    options, column = shape.options, shape.columns["preference"]
    prompt = prompt_of(raw, shape.columns["prompt"], options.markers)
    a, b = (raw.text(shape.columns[name]) for name in ("answer_a", "answer_b"))
    if prompt is None or a is None or b is None:
        return none("no value in the prompt or an answer")
    value = raw.column(column)
    if value is None:
        return none(f"no preference in column {column!r}")
    if not isinstance(value, str | int | float):
        raise DataError(
            raw.where,
            f"column {column!r} holds {type(value).__name__}, not text or a number: {str(value)[:60]!r}",
            remedy="Check the recipe's `format` and `columns`.",
        )
    said = str(value)
    if said in options.ties:
        if not options.keep_ties:
            return none("tie")
        chosen, rejected = (a, b) if drawn_side(a, b) else (b, a)
        return one(comparison(raw, shape, prompt, chosen, rejected, "negligibly"))
    if said in options.a:
        return one(comparison(raw, shape, prompt, a, b, options.a[said]))
    if said in options.b:
        return one(comparison(raw, shape, prompt, b, a, options.b[said]))
    return none(unknown("grade", said))
