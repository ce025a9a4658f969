"""A dataset directory: a table per split, the ledger, and the card.

``train.parquet``, ``valid.parquet``, ``test.parquet`` (those that have rows) hold the columns of
``chat/features.py``; ``ledger.parquet`` has a line for every source row; ``card.json`` sums it up
(:class:`Card`) and is written last. Tables are streamed to disk and, for the same rows, the same to the byte.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignment import files
from alignment.chat.features import features, from_row, to_row
from alignment.data import ledger
from alignment.data.ledger import Entry, Fate
from alignment.data.rows import SPLITS, Kind, Row, Split
from alignment.errors import DataError, UserError
from alignment.miniature.world import World

CARD = "card.json"
LEDGER = "ledger.parquet"
NAMES = (*(f"{split}.parquet" for split in SPLITS), LEDGER, CARD)
"""Every file of a dataset."""
ROWS_A_GROUP = 2_000
"""Rows held in memory before they are written as one row group."""


@dataclass(frozen=True)
class Card:
    """What a dataset is. ``sources`` are as :meth:`ledger.Tally.summary` gives them.

    ``recipe`` is the identity of the recipe that made it, or null where a stage did (``made_by``); ``world``
    holds seed and residents of the miniature world whose truth holds for its rows, or null.
    """

    kind: Kind
    rows: dict[Split, int]
    fates: dict[Fate, int]
    dropped_share: float
    sources: dict[str, dict[str, Any]]
    licences: tuple[str, ...]
    made_by: str
    recipe: dict[str, Any] | None = None
    recipe_digest: str | None = None
    world: dict[str, int] | None = None
    statistics: dict[str, Any] = field(default_factory=dict)

    def told(self) -> str:
        """One line: what became of the source rows, why most were dropped, and where the rest went."""
        reasons: Counter[str] = Counter()
        for source in self.sources.values():
            reasons.update(source["reasons"])
        why = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common(3))
        fates = [f"{count:,} {fate.replace('_', ' ')}" for fate, count in self.fates.items() if count]
        splits = "  ".join(f"{split} {count:,}" for split, count in self.rows.items())
        return f"{', '.join(fates)}{f' ({why})' if why else ''}: {splits}"

    def metrics(self) -> dict[str, float]:
        """The numbers for an artifact's record."""
        counts = {"rows": float(sum(self.rows.values())), "dropped_share": self.dropped_share}
        counts |= {f"rows_{split}": float(rows) for split, rows in self.rows.items()}
        return counts | {f"ledger_{fate}": float(count) for fate, count in self.fates.items()}


class Table:
    """A parquet file that grows by rows and appears under its name when it is whole."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema, self.rows = path, schema, 0
        self._beside = path.with_name(path.name + files.TEMPORARY)
        self._held: list[dict[str, Any]] = []
        self._open = True
        self._file = pq.ParquetWriter(self._beside, schema, compression="zstd")

    def append(self, row: dict[str, Any]) -> None:
        """Add one row."""
        self.rows += 1
        self._held.append(row)
        if len(self._held) == ROWS_A_GROUP:
            self._flush()

    def finish(self) -> None:
        """Write what is held and give the file its name."""
        if self._open:
            self._flush()
            self._file.close()
            self._beside.replace(self.path)
            self._open = False

    def discard(self) -> None:
        """Leave nothing behind."""
        if self._open:
            self._file.close()
            self._open = False
        for path in (self._beside, self.path):
            path.unlink(missing_ok=True)

    def _flush(self) -> None:
        if self._held:
            try:
                self._file.write_table(pa.Table.from_pylist(self._held, schema=self.schema))
            except OSError as error:
                raise files.disk_error(error, self.path) from None
            self._held = []


class Writer:
    """Writes a dataset directory; what an exception interrupts leaves no table behind."""

    def __init__(self, out: Path, kind: Kind) -> None:
        self.out, self.kind = out, kind
        files.make_folder(out)
        for name in NAMES:
            (out / name).unlink(missing_ok=True)
        self._columns = features(kind).arrow_schema
        self._splits: dict[Split, Table] = {}
        self._ledger = Table(out / LEDGER, ledger.SCHEMA)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind:
            for table in self._tables:
                table.discard()
        else:
            self.close()

    def close(self) -> None:
        """Finish every table; doing so twice does no harm."""
        for table in self._tables:
            table.finish()

    @property
    def _tables(self) -> list[Table]:
        return [*self._splits.values(), self._ledger]

    def add(self, split: Split, row: Row) -> None:
        """Add a row to a split."""
        if split not in self._splits:
            self._splits[split] = Table(self.out / f"{split}.parquet", self._columns)
        self._splits[split].append(to_row(row))

    def record(self, entry: Entry) -> None:
        """Add a line to the ledger."""
        self._ledger.append({name: getattr(entry, name) for name in ledger.SCHEMA.names})

    @property
    def rows(self) -> dict[Split, int]:
        """Rows by split, of those that have any."""
        return {split: self._splits[split].rows for split in SPLITS if split in self._splits}


def write_card(directory: Path, card: Card, **more: Any) -> None:
    """Write the card, last of all, with what else a stage has to say of the dataset."""
    files.write_json(directory / CARD, {**asdict(card), **more})


def named(row: Row, row_id: str) -> Row:
    """The row with an id."""
    return replace(row, id=row_id)


def card(directory: Path) -> dict[str, Any]:
    """The card of a dataset directory. Raises :class:`UserError` where there is none."""
    path = directory / CARD
    if not path.is_file():
        raise UserError(
            f"{directory}: is not a dataset", cause=f"It holds no {CARD}.", remedy="`stage=data recipe=…` makes one."
        )
    return json.loads(path.read_text(encoding="utf-8"))


def world_of(directory: Path) -> World | None:
    """The miniature world whose truth holds for a dataset's rows; None where they come from elsewhere."""
    knobs = card(directory)["world"]
    return None if knobs is None else World(**knobs)


def shared_world(directories: Iterable[Path]) -> dict[str, int] | None:
    """The world that all of these datasets come from; None where they differ or one has none."""
    found = [card(directory)["world"] for directory in directories]
    return found[0] if found and all(knobs == found[0] for knobs in found) else None


def stream(directory: Path, split: Split) -> Iterator[Row]:
    """The rows of a split, in order. Raises :class:`UserError` where the dataset has no such split."""
    summary = card(directory)
    path = directory / f"{split}.parquet"
    if split not in summary["rows"]:
        have = ", ".join(f"{name} ({count:,} rows)" for name, count in summary["rows"].items())
        raise UserError(
            f"{directory}: has no split {split!r}",
            cause=f"It has {have}.",
            remedy="Choose one of these, or give the split a share in the recipe's `splits`.",
        )
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS_A_GROUP):
                for row in batch.to_pylist():
                    yield from_row(summary["kind"], row)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(
            str(path),
            "cannot be read",
            cause=str(error).splitlines()[0],
            remedy="Make the dataset again with force=true.",
        ) from None


def read(directory: Path, split: Split) -> list[Row]:
    """All rows of a split, in order."""
    return list(stream(directory, split))


def entries(
    directory: Path, *, source: str | None = None, file: str | None = None, line: int | None = None
) -> list[Entry]:
    """The ledger's lines, or those of one source, file or line: what happened to row 1,234 of file F?"""
    wanted = {"source": source, "file": file, "line": line}
    chosen = [pc.field(name) == value for name, value in wanted.items() if value is not None]
    where = None
    for condition in chosen:
        where = condition if where is None else where & condition
    table = pq.read_table(directory / LEDGER, filters=where)
    return [Entry(**row) for row in table.to_pylist()]
