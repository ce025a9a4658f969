"""What a filter is: a pure function from a row to what it found there, and the options a recipe gives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from alignment.chat.types import Messages
from alignment.data.rows import Kind, Row
from alignment.settings import Settings

Action = Literal["drop", "flag", "change"]
"""What the recipe does with a row in which something was found: lose it, mark it, or take it as mended."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a filter found in a row.

    ``reason`` is counted and so is one of a few short phrases (``personal data: email``); ``detail`` is this
    row's own; ``mended`` is the row without what was found, from filters that can mend.
    """

    reason: str
    detail: str = ""
    mended: Row | None = None


Judge = Callable[[Row], Finding | None]
"""A filter with its options: None where nothing was found. The same row always gets the same answer."""


@dataclass(frozen=True, slots=True)
class Filter:
    """A kind of filter, by the name in ``FILTERS``.

    ``make(options, against)`` gives the judge; it is called once in every process, so models and word lists are
    loaded there. ``against`` holds the rows of the evaluation sets that a recipe names (by source), for
    filters that compare with them, and is empty for the others.
    """

    make: Callable[[Any, Mapping[str, Sequence[Row]]], Judge]
    options: type[Settings]
    kinds: tuple[Kind, ...]
    mends: bool = False
    needs_against: bool = False


@dataclass(frozen=True, slots=True)
class Scored:
    """A kind of filter that asks a scorer: which dialogues of a row it wants judged, and what their scores mean.

    The scorer is opened by the stage; here only its numbers arrive, one for each dialogue.
    """

    dialogues: Callable[[Row], list[Messages]]
    judge: Callable[[Any, Row, Sequence[float]], Finding | None]
    options: type[Settings]
    kinds: tuple[Kind, ...]
