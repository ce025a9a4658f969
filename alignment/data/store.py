"""A dataset directory: a table per split, the ledger, and the card.

``train.parquet``, ``valid.parquet``, ``test.parquet`` (those that have rows) hold the columns of
``chat/features.py``; ``ledger.parquet`` has a line for every source row; ``card.json`` sums it up.
Tables are streamed to disk and, for the same rows, the same to the byte.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignment import files
from alignment.chat.features import features, from_row, to_row
from alignment.data import ledger
from alignment.data.ledger import Entry
from alignment.data.rows import SPLITS, Kind, Row, Split
from alignment.errors import DataError, UserError
from alignment.miniature.settings import Miniature
from alignment.miniature.world import World

CARD = "card.json"
LEDGER = "ledger.parquet"
ROWS_A_GROUP = 2_000
"""Rows held in memory before they are written as one row group."""


class Table:
    """A parquet file that grows by rows and appears under its name when it is whole."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema, self.rows = path, schema, 0
        self._beside = path.with_name(path.name + files.TEMPORARY)
        self._held: list[dict[str, Any]] = []
        self._file = pq.ParquetWriter(self._beside, schema, compression="zstd")

    def append(self, row: dict[str, Any]) -> None:
        """Add one row."""
        self.rows += 1
        self._held.append(row)
        if len(self._held) == ROWS_A_GROUP:
            self._flush()

    def finish(self) -> None:
        """Write what is held and give the file its name."""
        self._flush()
        self._file.close()
        self._beside.replace(self.path)

    def discard(self) -> None:
        """Leave nothing behind."""
        self._file.close()
        self._beside.unlink(missing_ok=True)

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
        for name in (*(f"{split}.parquet" for split in SPLITS), LEDGER, CARD):
            (out / name).unlink(missing_ok=True)
        self._columns = features(kind).arrow_schema
        self._splits: dict[Split, Table] = {}
        self._ledger = Table(out / LEDGER, ledger.SCHEMA)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for table in (*self._splits.values(), self._ledger):
            table.discard() if kind else table.finish()

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


def write_card(directory: Path, card: Mapping[str, Any]) -> None:
    """Write the card, last of all."""
    files.write_json(directory / CARD, card)


def card(directory: Path) -> dict[str, Any]:
    """The card of a dataset directory. Raises :class:`UserError` where there is none."""
    path = directory / CARD
    if not path.is_file():
        raise UserError(
            f"{directory}: is not a dataset", cause=f"It holds no {CARD}.", remedy="`stage=data recipe=…` makes one."
        )
    return json.loads(path.read_text(encoding="utf-8"))


def world_of(directory: Path) -> World | None:
    """The miniature world that a dataset's rows were drawn from; None where they come from elsewhere."""
    sources = [source["miniature"] for source in card(directory)["recipe"]["sources"]]
    worlds = {Miniature.parse(source["world"], str(directory / CARD)).world() for source in sources if source}
    assert len(worlds) <= 1, "rows of two worlds have two truths"
    return next(iter(worlds), None) if all(sources) else None


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
