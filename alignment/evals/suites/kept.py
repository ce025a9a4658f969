"""Examples on disk, and what they come to: every measure with its interval, by group, and between two models.

``examples.parquet`` has a row an example: ``id``, ``unit``, ``by_<group>``, ``<measure>`` (null where it does not
apply), and ``shown``, JSON for people. Axes: P examples, K columns.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignment import files
from alignment.errors import UserError
from alignment.evals.intervals import Bootstrap, Interval, mean_of_seeds
from alignment.evals.suites.suite import Examined, Measure

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

EXAMPLES, RESULTS = "examples.parquet", "results.json"
BY = "by_"
ROWS_A_BATCH = 4_096

Told = dict[str, Any]


@dataclass(frozen=True)
class Kept:
    """All examples of one model, without what is shown. ``values[measure]`` is NaN where it does not apply."""

    measures: tuple[Measure, ...]
    ids: list[str]
    units: list[str]
    values: dict[str, np.ndarray]
    groups: dict[str, list[str | None]]

    @classmethod
    def of(cls, measures: Sequence[Measure], folder: Path) -> Kept:
        """Those that lie in a folder, of which these are the measures."""
        import pyarrow.parquet as pq

        path = folder / EXAMPLES
        # What is shown is texts, the larger part by far, and nothing is reckoned from it.
        table = pq.read_table(path, columns=[name for name in pq.read_schema(path).names if name != "shown"])
        return cls(
            tuple(measures),
            table["id"].to_pylist(),
            table["unit"].to_pylist(),
            {one.name: table[one.name].to_numpy().astype(float) for one in measures},
            {name.removeprefix(BY): table[name].to_pylist() for name in table.column_names if name.startswith(BY)},
        )

    @classmethod
    def read(cls, folder: Path) -> Kept:
        """Those of an artifact of ``stage=assess``."""
        declared = json.loads((folder / RESULTS).read_text(encoding="utf-8"))["declared"]
        return cls.of([Measure(**one) for one in declared], folder)

    def labels(self, group: str) -> list[str]:
        """The labels of a group: numbers by value, others by name."""
        found = {label for label in self.groups[group] if label is not None}
        try:
            return sorted(found, key=float)
        except ValueError:
            return sorted(found)


def write(folder: Path, examined: Examined) -> int:
    """Write the examples, some thousand in memory at a time; returns how many.

    Raises :class:`UserError` for a value that is no finite number, naming the example.
    """
    import pyarrow as pa

    from alignment.parts import batches

    names, groups, count = [measure.name for measure in examined.measures], set[str](), 0
    beside = folder / f"{EXAMPLES}{files.TEMPORARY}"
    writer: pq.ParquetWriter | None = None
    try:
        for some in batches(examined.examples, ROWS_A_BATCH):
            new = {group for one in some for group in one.groups} - groups
            if writer is None or new:
                groups |= new
                writer = _wider(writer, beside, _schema(groups, names))
            for one in some:
                assert set(one.values) <= set(names), f"{one.id} has measures that were not declared"
                need_finite(one.id, one.values)
            rows = [
                {"id": one.id, "unit": one.unit, "shown": json.dumps(one.shown, ensure_ascii=False), **one.values}
                | {BY + group: label for group, label in one.groups.items()}
                for one in some
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=writer.schema))
            count += len(some)
    finally:
        if writer is not None:
            writer.close()
    assert count, "a suite has examples"
    beside.replace(folder / EXAMPLES)
    return count


def _schema(groups: Iterable[str], measures: Sequence[str]) -> pa.Schema:
    import pyarrow as pa

    texts = ["id", "unit", *(BY + group for group in sorted(groups)), "shown"]
    return pa.schema([(name, pa.string()) for name in texts] + [(name, pa.float64()) for name in measures])


def _wider(before: pq.ParquetWriter | None, path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer of ``schema`` that begins with what ``before`` has written to ``path``; new columns are null there.

    A group is known when an example first belongs to it, and the columns of a file are fixed when it is begun.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if before is None:
        return pq.ParquetWriter(path, schema, compression="zstd")
    before.close()
    narrow = path.with_name(f"narrow_{path.name}")
    path.replace(narrow)
    writer = pq.ParquetWriter(path, schema, compression="zstd")
    with pq.ParquetFile(narrow) as written:
        for place in range(written.num_row_groups):
            table = written.read_row_group(place)
            columns = [
                table[field.name] if field.name in table.column_names else pa.nulls(len(table), field.type)
                for field in schema
            ]
            writer.write_table(pa.table(columns, schema=schema))
    narrow.unlink()
    return writer


def need_finite(name: str, values: Mapping[str, float]) -> None:
    """Raise :class:`UserError` for a value that is no finite number; ``name`` is the example's."""
    for measure, value in values.items():
        if not np.isfinite(value):
            raise UserError(
                f"{name}: its {measure} is {value}",
                cause="The model, or what judges it, gives NaN or infinity.",
                remedy="Try engine.precision=fp32, or look at the run that trained it.",
            )


# ── what they come to ────────────────────────────────────────────────────────────────────────────


def told(kept: Kept, confidence: float, seed: int) -> Told:
    """``measures`` by name, each with its interval and ``examples`` it rests on, and ``groups`` by name and label."""
    resamples = Bootstrap(kept.units, confidence, seed)
    everything = np.ones(len(kept.ids), bool)
    groups = {}
    for group, of in kept.groups.items():
        groups[group] = {
            label: _told(kept, resamples, np.array([one == label for one in of])) for label in kept.labels(group)
        }
    return {"measures": _told(kept, resamples, everything), "groups": groups}


def differences(kept: Kept, base: Kept, confidence: float, seed: int) -> Told:
    """Every measure less that of the base, on the examples that both have; ``groups`` alike.

    Groups that a model's own answers decide (``length`` of safety) are not compared: their examples differ by model.
    """
    base = _in_order(base, kept)
    resamples = Bootstrap(kept.units, confidence, seed)
    everything = np.ones(len(kept.ids), bool)
    groups = {}
    for group, of in kept.groups.items():
        if of != base.groups.get(group):
            continue
        groups[group] = {
            label: _less(kept, base, resamples, np.array([one == label for one in of])) for label in kept.labels(group)
        }
    return {"measures": _less(kept, base, resamples, everything), "groups": groups}


def averaged(seeds: Sequence[Kept]) -> Kept:
    """The seeds of one arm as one: example by example the mean of every value, over the seeds that have it.

    So a judge's reply that could not be read costs the value of one seed, and not that of the arm. Groups are those of
    the first seed, also where a model's own answers decide them (``length`` of safety).
    """
    first = seeds[0]
    others = [_in_order(one, first) for one in seeds]
    values = {name: mean_of_seeds([one.values[name] for one in others]) for name in first.values}
    return Kept(first.measures, first.ids, first.units, values, first.groups)


def _told(kept: Kept, resamples: Bootstrap, mask_P: np.ndarray) -> Told:
    found: Told = {}
    for measure in kept.measures:
        above_P, below_P = _sums(kept, measure, mask_P)
        if not below_P.any():
            continue
        (interval,) = resamples.interval(np.stack([above_P, below_P], 1), partial(_ratio, measure=measure))
        if interval is not None:
            if measure.bounded:
                interval = resamples.bounded(interval, below_P > 0, above_P, 0, measure.most or 0)
            found[measure.name] = interval._asdict() | {"examples": int((below_P > 0).sum())}
    return found


def _less(kept: Kept, base: Kept, resamples: Bootstrap, mask_P: np.ndarray) -> Told:
    found: Told = {}
    for measure in kept.measures:
        both_P = mask_P & ~np.isnan(kept.values[measure.name]) & ~np.isnan(base.values[measure.name])
        if not both_P.any():
            continue
        columns_PK = np.stack([*_sums(kept, measure, both_P), *_sums(base, measure, both_P)], 1)

        def less(sums: np.ndarray, m: Measure = measure) -> np.ndarray:
            return _ratio(sums[..., :2], m) - _ratio(sums[..., 2:], m)

        (interval,) = resamples.interval(columns_PK, less)
        if interval is not None:
            if measure.bounded:
                most, less_P = measure.most or 0, kept.values[measure.name] - base.values[measure.name]
                interval = resamples.bounded(interval, both_P, less_P, -most, most)
            found[measure.name] = interval._asdict() | {"examples": int(both_P.sum())}
    return found


def _sums(kept: Kept, measure: Measure, mask_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is summed above and below the line, 0 where it does not apply."""
    value_P = kept.values[measure.name]
    below_P = np.ones_like(value_P) if measure.per is None else kept.values[measure.per]
    there_P = mask_P & ~np.isnan(value_P) & ~np.isnan(below_P)
    return np.where(there_P, value_P, 0.0), np.where(there_P, below_P, 0.0)


def _ratio(sums: np.ndarray, measure: Measure) -> np.ndarray:
    """Σ above / Σ below of (…, 2) as (…, 1), NaN where nothing is below."""
    found = np.where(sums[..., 1] == 0, np.nan, sums[..., 0] / sums[..., 1])
    return (np.exp(found) if measure.exponential else found)[..., None]


def _in_order(kept: Kept, like: Kept) -> Kept:
    """The examples of ``like``, in its order. Raises :class:`UserError` where they are not the same examples."""
    if kept.ids == like.ids:
        return kept
    places = {name: place for place, name in enumerate(kept.ids)}
    if places.keys() != set(like.ids):
        strange = next(iter(places.keys() ^ set(like.ids)))
        raise UserError(
            f"{strange}: one model was examined on it, and another was not",
            cause="Models are compared example by example.",
            remedy="Examine both on the same suite; a suite that draws its examples has to draw the same for both.",
        )
    order = [places[name] for name in like.ids]

    def take(column: Sequence[Any]) -> list[Any]:
        return [column[place] for place in order]

    values = {name: value_P[order] for name, value_P in kept.values.items()}
    groups = {name: take(column) for name, column in kept.groups.items()}
    return Kept(kept.measures, like.ids, take(kept.units), values, groups)


def interval_of(one: Mapping[str, Any]) -> Interval:
    """An interval as results tell it: bounds that nobody knows are null there."""
    low, high = (-math.inf, math.inf) if one["low"] is None else (one["low"], one["high"])
    return Interval(one["estimate"], low, high)


def told_of(interval: Interval) -> dict[str, Any]:
    """The other way round."""
    low, high = (None if math.isinf(bound) else bound for bound in interval[1:])
    return {"estimate": interval.estimate, "low": low, "high": high}


def shown(folder: Path) -> Iterator[dict[str, Any]]:
    """Every example with what is shown of it, a few thousand in memory at a time."""
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(folder / EXAMPLES).iter_batches(ROWS_A_BATCH):
        for row in batch.to_pylist():
            yield row | {"shown": json.loads(row["shown"])}
