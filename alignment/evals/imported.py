"""Results of evaluations that were run elsewhere: a small file of numbers, read strictly.

CSV with a header, or a JSON array of objects. Columns: model, measure, estimate, low, high, n, source, date. The bounds
are those of the 95 % interval; they may be empty (null) together, and so may n.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment import files
from alignment.data import readers
from alignment.errors import DataError, UserError
from alignment.evals.intervals import Interval
from alignment.settings import Settings, identity, text

NUMBERS = ("estimate", "low", "high")
MOVING = ("latest", "step")
"""Schemes of references that name another model tomorrow."""
SHORTEST_FINGERPRINT = 8
LAYOUT = "docs/evaluation.md has the layout."


@dataclass(frozen=True)
class Model:
    """A model, or the seeds of an arm: its name, its fingerprints, and whatever else it is called."""

    name: str
    fingerprints: tuple[str, ...]
    called: frozenset[str]

    @classmethod
    def of(cls, name: str, made: Sequence[tuple[str, str, str | Path]]) -> Model:
        """From the fingerprint, the reference and the folder of each of its seeds."""
        called = {name}
        if len(made) == 1:
            _, reference, path = made[0]
            called |= {f"run:{path}", Path(path).name}
            called |= set() if reference.partition(":")[0] in MOVING else {reference}
        return cls(name, tuple(fingerprint for fingerprint, *_ in made), frozenset(called))

    def is_called(self, said: str) -> bool:
        """Whether a file that names ``said`` means this model: a name, a folder, a reference or a fingerprint."""
        start = len(said) >= SHORTEST_FINGERPRINT and len(self.fingerprints) == 1
        return said in self.called or (start and self.fingerprints[0].startswith(said))


class Result(Settings):
    """One line: what was measured of one model, where and when."""

    model: str = text("a name, a fingerprint or a reference", min_length=1)
    measure: str = text("what was measured", min_length=1)
    estimate: float = identity("the mean")
    low: float | None = identity("lower bound of the 95 % interval")
    high: float | None = identity("upper bound of the 95 % interval")
    n: int | None = identity("prompts, or tasks", ge=1)
    source: str = text("who measured it, and with what", min_length=1)
    date: str = text("when, YYYY-MM-DD", min_length=1)

    @property
    def interval(self) -> Interval:
        """With infinite bounds where nobody said them."""
        if self.low is None or self.high is None:
            return Interval(self.estimate, -math.inf, math.inf)
        return Interval(self.estimate, self.low, self.high)

    @property
    def where(self) -> str:
        """Source and date."""
        return f"{self.source}, {self.date}"


def read(path: Path) -> list[Result]:
    """The results of a file. Raises :class:`UserError`, with ``file:line``, for whatever is not as it should be."""
    if path.suffix not in (".csv", ".json"):
        raise UserError(
            f"imports: {path}: the suffix says what the file is, and {path.suffix or 'none'!r} is not known",
            remedy="Call it .csv or .json.",
        )
    try:
        rows = [(f"{path}:{line}", value) for line, value in readers.READERS[path.suffix[1:]](path)]
    except OSError as error:
        raise files.disk_error(error, path) from None
    if not rows:
        raise DataError(str(path), "holds no results", remedy=LAYOUT)
    first: dict[tuple[str, ...], str] = {}
    results = []
    for where, value in rows:
        if not isinstance(value, dict):
            raise DataError(where, f"a result is an object with keys, not {type(value).__name__}", remedy=LAYOUT)
        one = _result(where, _numbers(where, value) if path.suffix == ".csv" else value)
        key = (one.model, one.measure, one.source)
        if key in first:
            raise DataError(
                where,
                f"{one.measure} of {one.model} from {one.source} stands at {first[key]} already",
                remedy="Keep the one that holds.",
            )
        first[key] = where
        results.append(one)
    return results


def of(model: Model, results: Iterable[Result]) -> list[Result]:
    """What results tell of a model. Raises :class:`UserError` where two tell the same measure by one source."""
    found: dict[tuple[str, str], Result] = {}
    for one in (one for one in results if model.is_called(one.model)):
        other = found.setdefault((one.measure, one.source), one)
        if other is not one:
            raise UserError(
                f"imports: {one.measure} of {model.name} from {one.source} is there twice",
                cause=" and ".join(f"{each.estimate:g} of {each.model} ({each.date})" for each in (other, one)),
                remedy="Keep the line that holds.",
            )
    return [*found.values()]


def _numbers(where: str, cells: Mapping[str, str]) -> dict[str, Any]:
    """The cells of a line, numbers as numbers and empty bounds as null."""
    values: dict[str, Any] = {name: cell.strip() for name, cell in cells.items()}
    for name in {*NUMBERS, "n"} & values.keys():
        cell = values[name]
        try:
            values[name] = None if not cell else int(cell) if name == "n" else float(cell)
        except ValueError:
            kind = "whole number" if name == "n" else "number"
            raise DataError(where, f"{name}={cell!r} is no {kind}", remedy=LAYOUT) from None
    return values


def _result(where: str, values: Mapping[str, Any]) -> Result:
    try:
        one: Result = Result.parse(values, where)
    except UserError as error:
        raise DataError(where, error.problem, remedy=f"{LAYOUT} Columns: {', '.join(Result.model_fields)}.") from None
    if (one.low is None) != (one.high is None):
        raise DataError(where, "one bound of the interval is there and the other is not", remedy="Give both, or none.")
    interval = one.interval
    if not interval.low <= interval.estimate <= interval.high:
        raise DataError(
            where,
            f"estimate={one.estimate:g} does not lie between low={one.low:g} and high={one.high:g}",
            remedy="The bounds are those of the estimate's interval, not its distances.",
        )
    try:
        whole = datetime.date.fromisoformat(one.date).isoformat() == one.date
    except ValueError:
        whole = False
    if not whole:
        raise DataError(where, f"date={one.date!r} is no date", remedy="Write it as 2026-01-31.")
    if one.model.partition(":")[0] in MOVING:
        raise DataError(
            where,
            f"model={one.model!r} names whatever is newest, and not the model that was measured",
            remedy="Write its fingerprint, its folder's name (ppo-8a87ab82), run:<path>, hf:<repository>@<revision>, …",
        )
    return one
