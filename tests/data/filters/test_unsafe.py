"""Unsafe answers by a scorer's numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest

from alignment.chat.types import Comparison, Conversation, messages
from alignment.data.filters.table import SCORED
from alignment.errors import UserError

TALK = Conversation(messages(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")), "t")
PAIR = Comparison(messages(("user", "a")), "b", "c", "better", "s", "x")
UNSAFE = SCORED["unsafe"]


def options(**changes: Any) -> Any:
    return UNSAFE.options.parse({"threshold": 0.5, "direction": "below", "which": "any"} | changes, "unsafe")


def test_every_answer_has_its_dialogue() -> None:
    assert UNSAFE.dialogues(TALK) == [TALK.messages[:2], TALK.messages]
    assert UNSAFE.dialogues(PAIR) == [
        messages(("user", "a"), ("assistant", "b")),
        messages(("user", "a"), ("assistant", "c")),
    ]
    assert UNSAFE.kinds == ("conversations", "comparisons")


@pytest.mark.parametrize(
    ("row", "changes", "scores", "unsafe"),
    [
        (TALK, {}, (0.4, 0.9), True),
        (TALK, {}, (0.5, 0.9), False),
        (TALK, {"which": "last"}, (0.4, 0.9), False),
        (TALK, {"which": "last"}, (0.9, 0.4), True),
        (TALK, {"direction": "above"}, (0.6, 0.1), True),
        (TALK, {"direction": "above"}, (0.5, 0.1), False),
        (TALK, {"direction": "above", "which": "last"}, (0.6, 0.1), False),
        (PAIR, {"which": "last"}, (0.4, 0.9), True),
        (PAIR, {"threshold": 0.3}, (0.4, 0.9), False),
    ],
)
def test_thresholds(row: Any, changes: dict[str, Any], scores: tuple[float, ...], unsafe: bool) -> None:
    finding = UNSAFE.judge(options(**changes), row, scores)
    assert (finding is not None) == unsafe
    if finding:
        assert finding.reason == "unsafe answer"


def test_the_detail_counts_and_gives_the_worst() -> None:
    assert UNSAFE.judge(options(), TALK, (0.4, 0.1)).detail == "2 of 2 answers; the worst scores 0.1, below 0.5"  # type: ignore[union-attr]
    above = UNSAFE.judge(options(direction="above"), TALK, (0.9, 0.1))
    assert above is not None
    assert above.detail == "1 of 2 answers; the worst scores 0.9, above 0.5"


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_an_error(score: float) -> None:
    with pytest.raises(UserError, match="begins 'a'"):
        UNSAFE.judge(options(), TALK, (score, 0.9))
