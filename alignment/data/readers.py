"""Files to raw rows, each with its line. Broken input stops here with ``file:line`` and a remedy."""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from alignment.data.rows import Raw
from alignment.errors import DataError
from alignment.files import disk_error

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"\s*")

Numbered = Iterator[tuple[int, Any]]
"""Rows with the line (from 1) on which each begins; in a parquet file, the row's number."""


def read(path: Path, reader: str, name: str) -> Iterator[Raw]:
    """The rows of one file. ``name`` is what the ledger calls it. A file without rows is a :class:`DataError`."""
    number = 0
    try:
        for number, value in READERS[reader](path):
            yield Raw(name, number, value, str(path), whole_file=reader == "text")
    except OSError as error:
        raise disk_error(error, path) from None
    if number == 0:
        raise DataError(
            str(path),
            "holds no rows",
            cause="The file is empty.",
            remedy="Take the source out of the recipe, or fetch the file again.",
        )


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file, plain or gzip, with their ends and without a byte-order mark."""
    number = 0
    with _open(path) as file:
        try:
            for number, line in enumerate(file, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}:{number}",
                f"byte {error.start + 1} of the line ({error.object[error.start]:#04x}) is not UTF-8",
                remedy="Convert the file, for instance with `iconv -f latin1 -t utf-8`.",
            ) from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{path}:{number + 1}",
                "the compressed file is cut off or damaged",
                cause=str(error),
                remedy="Fetch the file again.",
            ) from None


def read_jsonl(path: Path) -> Numbered:
    """A JSON value a line; blank lines are no rows."""
    for number, line in text_lines(path):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise _not_json(path, number, error) from None


def read_json(path: Path) -> Numbered:
    """One JSON array, an element a row."""
    text = "".join(line for _, line in text_lines(path))
    start = _skip(text, 0)
    if start == len(text):
        return
    if text[start] != "[":
        raise DataError(
            f"{path}:1",
            f"a JSON array is wanted, not {text[start : start + 20]!r}",
            remedy="For one JSON value a line the reader is jsonl.",
        )
    line, counted, position = 1, 0, _skip(text, start + 1)
    try:
        ended = text.startswith("]", position)
        while not ended:
            line, counted = line + text.count("\n", counted, position), position
            value, position = _DECODER.raw_decode(text, position)
            yield line, value
            position = _skip(text, position)
            ended = text.startswith("]", position)
            if not ended and not text.startswith(",", position):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, position)
            position = _skip(text, position + 1)
        if position < len(text) and counted:
            raise json.JSONDecodeError("Extra data after the array", text, position)
    except json.JSONDecodeError as error:
        raise _not_json(path, error.lineno, error) from None


def read_csv(path: Path) -> Numbered:
    """A header line, then a record a row; every record has the header's number of fields."""
    # The csv module's own limit, 128 KiB a field, is less than a long conversation.
    csv.field_size_limit(sys.maxsize)
    records = csv.reader((line for _, line in text_lines(path)), strict=True)
    begins = 1
    try:
        header = next(records, [])
        begins = records.line_num + 1
        for fields in records:
            if fields and len(fields) != len(header):
                raise DataError(
                    f"{path}:{begins}",
                    f"has {len(fields)} fields, the header has {len(header)}",
                    remedy="Quote fields that hold commas, quotes or line ends.",
                )
            if fields:
                yield begins, dict(zip(header, fields, strict=True))
            begins = records.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}:{begins}",
            f"is not CSV: {error}",
            remedy="Quote fields that hold commas, quotes or line ends, and double the quotes inside.",
        ) from None


def read_parquet(path: Path) -> Numbered:
    """The rows of a parquet file, numbered from 1."""
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for value in batch.to_pylist():
                    number += 1
                    yield number, value
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{path}:{number + 1}" if number else str(path),
            "is not a whole parquet file",
            cause=str(error).splitlines()[0],
            remedy="Fetch the file again.",
        ) from None


def read_text(path: Path) -> Numbered:
    """The whole file as one row, ``{"text": …}``; CRLF line ends become LF."""
    text = "".join(line for _, line in text_lines(path)).replace("\r\n", "\n")
    if text.strip():
        yield 1, {"text": text}


READERS: dict[str, Callable[[Path], Numbered]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "parquet": read_parquet,
    "text": read_text,
}
"""By the name that a recipe declares."""


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")  # type: ignore[return-value]


def _skip(text: str, position: int) -> int:
    """The next position that holds no white space."""
    return _SPACE.match(text, position).end()  # type: ignore[union-attr]


def _not_json(path: Path, line: int, error: json.JSONDecodeError) -> DataError:
    return DataError(
        f"{path}:{line}",
        f"is not JSON: {error.msg} (column {error.colno})",
        remedy="Mend the line or fetch the file again; a source may also declare another `reader`.",
    )
