"""The filters by the names that a recipe gives them."""

from __future__ import annotations

from typing import get_args

from alignment.data.filters import contamination, identity, language, length, personal, repetition, turns, unsafe
from alignment.data.filters.filter import Filter, Scored
from alignment.data.rows import Kind

ALL: tuple[Kind, ...] = get_args(Kind)
ANSWERED: tuple[Kind, ...] = ("conversations", "prompts", "comparisons")

FILTERS: dict[str, Filter] = {
    "personal": Filter(personal.make, personal.Options, ALL, mends=True),
    "identity": Filter(identity.make, identity.Options, ANSWERED),
    "language": Filter(language.make, language.Options, ALL),
    "length": Filter(length.make, length.Options, ALL),
    "repetition": Filter(repetition.make, repetition.Options, ALL),
    "turns": Filter(turns.make, turns.Options, ALL),
    "contamination": Filter(contamination.make, contamination.Options, ALL, needs_against=True),
}
"""Filters that look at the row alone. What they need of other packages is imported when they are made."""

SCORED: dict[str, Scored] = {
    "unsafe": Scored(unsafe.dialogues, unsafe.judge, unsafe.Options, ("conversations", "comparisons")),
}
"""Filters that ask a scorer."""
