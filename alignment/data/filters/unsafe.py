"""Unsafe answers, judged by a scorer: a safety reward model, or a classifier of toxicity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from alignment.chat.types import Comparison, Conversation, Message, Messages
from alignment.data.filters.filter import Finding
from alignment.data.filters.texts import texts_of
from alignment.data.rows import Row
from alignment.errors import UserError
from alignment.settings import Settings, identity


class Options(Settings):
    """What a score means. The threshold is always said: a reward model that knows only differences has none itself."""

    threshold: float = identity(
        "the probability (of a reward model: σ of its raw score) at which unsafe begins; the threshold itself is safe",
        ge=0,
        le=1,
    )
    direction: Literal["below", "above"] = identity("below: a safety reward; above: a classifier of toxicity")
    which: Literal["any", "last"] = identity("answers that make a row unsafe: any of them, or the one that ends it")


def dialogues(row: Row) -> list[Messages]:
    """The dialogues to be judged, each up to one answer: of a comparison the chosen one and the rejected one."""
    if isinstance(row, Comparison):
        return [(*row.prompt, Message("assistant", answer)) for answer in (row.chosen, row.rejected)]
    assert isinstance(row, Conversation), "prompts and documents have no answers to judge"
    return [row.messages[: end + 1] for end, turn in enumerate(row.messages) if turn.role == "assistant"]


def judge(options: Options, row: Row, scores: Sequence[float]) -> Finding | None:
    """What the scores of :func:`dialogues` say. Raises :class:`UserError` for a score that is no number.

    The last answers of a comparison are both of them.
    """
    for score in scores:
        if not math.isfinite(score):
            raise UserError(
                f"unsafe: the scorer gave {score} for the row that begins {texts_of(row)[0][:60]!r}",
                cause="A score has to be a finite number.",
                remedy="Look at the scorer: a broken checkpoint or an overflow in half precision does this.",
            )
    asked = scores if options.which == "any" or isinstance(row, Comparison) else scores[-1:]
    sign = 1 if options.direction == "above" else -1
    over = [score for score in asked if sign * score > sign * options.threshold]
    if not over:
        return None
    worst = max(over, key=lambda score: sign * score)
    told = (
        f"{len(over)} of {len(asked)} answers; the worst scores {worst:.4g}, {options.direction} {options.threshold:g}"
    )
    return Finding("unsafe answer", told)
