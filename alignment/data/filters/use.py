"""A filter as a recipe uses it: which one, what is done with what it finds, and with which settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignment.data.filters.filter import Action
from alignment.data.filters.near import NearOptions
from alignment.data.filters.table import FILTERS, SCORED
from alignment.data.rows import Kind
from alignment.data.sources import EvaluationSet, check_source
from alignment.errors import UserError, nearest
from alignment.settings import Settings, identity, reference, text

NEAR = "near_duplicates"
"""The one that looks at all rows together; it stands last."""


class Use(Settings):
    """A filter in its place. Filters act in the order of the recipe; duplicates are always looked for last."""

    filter: str = identity("which one: a name in data/filters/table.py, or near_duplicates")
    action: Action = identity("drop the row, flag it and keep it, or change it (filters that can mend)")
    options: dict[str, Any] = identity("the filter's own settings")
    scorer: str | None = reference("who scores, for filters that need scores", default=None)
    label: str | None = text("the class whose score counts, for a classifier with several", default=None)
    against: list[EvaluationSet] | None = None
    """The evaluation sets that a row is compared with, for filters that compare."""


def options_of(name: str) -> type[Settings]:
    """The settings of a filter by its name."""
    if name == NEAR:
        return NearOptions
    return FILTERS[name].options if name in FILTERS else SCORED[name].options


def check(uses: Sequence[Use], kind: Kind, where: str) -> None:
    """The rules between a filter's fields, and its own options. Raises :class:`UserError` with the dotted key."""
    sets = [one.name for use in uses for one in use.against or []]
    for name in sets:
        if sets.count(name) > 1:
            raise UserError(
                f"filters: {sets.count(name)} evaluation sets are called {name!r}", remedy="Give each its own name."
            )
    for number, use in enumerate(uses):
        try:
            _check_one(use, kind, last=number + 1 == len(uses))
        except UserError as error:
            raise UserError(f"filters.{number}{error.problem}", cause=f"({where})", remedy=error.remedy) from None
        options_of(use.filter).parse(use.options, f"filters.{number}.options of {where}")
        for place, one in enumerate(use.against or []):
            check_source(one, one.kind, f"filters.{number}.against.{place}", where)
            if one.dataset is not None:
                raise UserError(
                    f"filters.{number}.against.{place}.dataset: evaluation sets are read from files or the hub",
                    cause=f"({where})",
                )


def _check_one(use: Use, kind: Kind, last: bool) -> None:
    known = [*FILTERS, *SCORED, NEAR]
    if use.filter not in known:
        raise UserError(f".filter={use.filter!r}: there is no such filter", remedy=nearest(use.filter, known))
    if use.filter == NEAR and not last:
        raise UserError(f".filter={NEAR}: stands before others", remedy="Duplicates are looked for last: move it down.")
    plain, scored = FILTERS.get(use.filter), SCORED.get(use.filter)
    if use.action == "change" and not (plain and plain.mends):
        mending = ", ".join(name for name, one in FILTERS.items() if one.mends)
        raise UserError(f".action=change: {use.filter} cannot mend a row", remedy=f"Drop or flag; {mending} can mend.")
    kinds = plain.kinds if plain else scored.kinds if scored else (kind,)
    if kind not in kinds:
        raise UserError(f".filter={use.filter}: does not look at {kind}", remedy=f"It is for {', '.join(kinds)}.")
    if scored and use.scorer is None:
        remedy = "Name one: gold:safety, latest:reward, dir:<a classifier's folder> …"
        raise UserError(f".scorer: {use.filter} needs a scorer", remedy=remedy)
    for name in ("scorer", "label"):
        if not scored and getattr(use, name) is not None:
            raise UserError(f".{name}={getattr(use, name)}: {use.filter} takes none")
    comparing = plain is not None and plain.needs_against
    if bool(use.against) != comparing:
        raise UserError(f".against: {use.filter} {'needs' if comparing else 'takes no'} evaluation sets")
