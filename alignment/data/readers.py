"""Files to raw rows, each with its line. Broken input stops here with ``file:line`` and a remedy.

JSON lines, CSV and parquet are streamed: what is held of them is a row (of parquet 1,000). A JSON array and a
text are held whole, and so is a source whose rows have to be gathered.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from alignment.data.rows import Raw, Split
from alignment.errors import DataError
from alignment.files import disk_error


def _integer(digits: str) -> int:
    """As ``int``, which refuses more digits than this with an error that is no JSON's."""
    if len(digits) > 4000:
        raise json.JSONDecodeError(f"A number of {len(digits):,} digits", digits[:20], 0)
    return int(digits)


_DECODER = json.JSONDecoder(parse_int=_integer)
_SPACE = re.compile(r"\s*")

LONGEST_LINE = 1 << 26
"""Bytes of a JSON line, 64 MiB. A longer one is not a row but a file of another layout, and would not fit."""

LONGEST_FILE = 1 << 32
"""Bytes of a file that is held whole, 4 GiB once it is unpacked: a small archive may stand for more than any memory."""

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


def grouped(raws: Iterator[Raw], column: str) -> Iterator[Raw]:
    """Rows of one file that follow one another and have the same value in a column, joined into one each.

    It stands where the first of them stood; its value is ``{"rows": [their values]}`` and ``members`` holds them.
    """
    for _, same in groupby(raws, key=lambda raw: (raw.file, raw.split, raw.column(column))):
        yield _joined(tuple(same))


def gathered(raws: Iterator[Raw], column: str) -> Iterator[Raw]:
    """As :func:`grouped`, for rows that lie anywhere in a source, in several files too. All are held in memory."""
    groups: dict[tuple[Split | None, str], list[Raw]] = {}
    for raw in raws:
        value = json.dumps(raw.column(column), sort_keys=True, default=str)
        groups.setdefault((raw.split, value), []).append(raw)
    for members in groups.values():
        yield _joined(tuple(members))


def _joined(members: tuple[Raw, ...]) -> Raw:
    return replace(members[0], value={"rows": [member.value for member in members]}, members=members)


def text_lines(path: Path, longest: int = sys.maxsize - 1) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file, plain or gzip, with their ends and without a byte-order mark.

    Raises :class:`DataError` for a byte that is not UTF-8, a damaged gzip and a line of more than ``longest`` bytes.
    """
    number = 0
    with _open(path) as file:
        try:
            while line := file.readline(longest + 1):
                number += 1
                if len(line) > longest:
                    raise DataError(
                        f"{path}:{number}",
                        f"the line is longer than {longest:,} bytes",
                        remedy="A file that is one JSON array has the reader json, one document the reader text.",
                    )
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise _not_text(path, number, error) from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{path}:{number + 1}",
                "the compressed file is cut off or damaged",
                cause=str(error),
                remedy="Fetch the file again.",
            ) from None


def _whole(path: Path) -> str:
    """All of a text. Raises :class:`DataError` for one that would fill the memory."""
    lines, size = [], 0
    for _, line in text_lines(path, LONGEST_FILE):
        lines.append(line)
        size += len(line)
        if size > LONGEST_FILE:
            raise DataError(
                str(path),
                f"is longer than {LONGEST_FILE:,} bytes, and would be held whole",
                remedy="Divide it, or make it JSON lines, which are read one at a time.",
            )
    return "".join(lines)


def read_jsonl(path: Path) -> Numbered:
    """A JSON value a line; blank lines are no rows."""
    for number, line in text_lines(path, LONGEST_LINE):
        if line.strip():
            try:
                value = json.loads(line, parse_int=_integer)
            except (json.JSONDecodeError, RecursionError) as error:
                raise _not_json(path, number, error) from None
            yield number, _writable(path, number, value, _escapes(line))


def read_json(path: Path) -> Numbered:
    """One JSON array, an element a row; or one JSON object, which is the only row."""
    text = _whole(path)
    start = _skip(text, 0)
    if start == len(text):
        return
    if text[start] not in "[{":
        raise DataError(
            f"{path}:1",
            f"a JSON array or object is wanted, not {text[start : start + 20]!r}",
            remedy="For one JSON value a line the reader is jsonl.",
        )
    line, counted, position = 1, 0, _skip(text, start + 1)
    escapes = _escapes(text)
    try:
        if text[start] == "{":
            value, position = _DECODER.raw_decode(text, start)
            if _skip(text, position) < len(text):
                raise json.JSONDecodeError("Extra data after the object", text, _skip(text, position))
            yield 1 + text.count("\n", 0, start), _writable(path, 1, value, escapes)
            return
        ended = text.startswith("]", position)
        while not ended:
            line, counted = line + text.count("\n", counted, position), position
            value, position = _DECODER.raw_decode(text, position)
            yield line, _writable(path, line, value, escapes)
            position = _skip(text, position)
            ended = text.startswith("]", position)
            if not ended and not text.startswith(",", position):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, position)
            position = _skip(text, position + 1)
        if position < len(text) and counted:
            raise json.JSONDecodeError("Extra data after the array", text, position)
    except (json.JSONDecodeError, RecursionError) as error:
        raise _not_json(path, getattr(error, "lineno", line), error) from None


def read_csv(path: Path) -> Numbered:
    """A header line, then a record a row; every record has the header's number of fields."""
    # The csv module's own limit, 128 KiB a field, is less than a long conversation.
    csv.field_size_limit(LONGEST_LINE)
    records = csv.reader((line for _, line in text_lines(path, LONGEST_LINE)), strict=True)
    begins = 1
    try:
        header = next(records, [])
        twice = next((name for name in header if header.count(name) > 1), None)
        if twice is not None:
            raise DataError(f"{path}:1", f"two columns are called {twice!r}", remedy="Rename one in the header.")
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
    except (pa.ArrowException, ValueError, OverflowError) as error:
        # The last two are of dates that Python has not, and of text that is not UTF-8.
        raise DataError(
            f"{path}:{number + 1}" if number else str(path),
            "is not a whole parquet file",
            cause=(str(error).splitlines() or [type(error).__name__])[0],
            remedy="Fetch the file again, or declare the source's real `reader`.",
        ) from None


def read_text(path: Path) -> Numbered:
    """The whole file as one row, ``{"text": …}``; CRLF line ends become LF."""
    text = _whole(path).replace("\r\n", "\n")
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


def _escapes(text: str) -> bool:
    """Whether there is an escape of half a character in a JSON text, as every rare character is written with two."""
    return "\\ud" in text or "\\uD" in text


def _writable(path: Path, line: int, value: Any, escapes: bool) -> Any:
    """A JSON value. Raises :class:`DataError` where an escape in it is half a character, which no file can hold."""
    if escapes:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start].encode("unicode_escape").decode()
            raise DataError(
                f"{path}:{line}",
                f"the escape {half} is half of a character",
                cause="The text was cut inside an emoji or another rare character.",
                remedy="Take the escape out of the line.",
            ) from None
    return value


def _not_json(path: Path, line: int, error: json.JSONDecodeError | RecursionError) -> DataError:
    told = f"{error.msg} (column {error.colno})" if isinstance(error, json.JSONDecodeError) else "nested too deeply"
    return DataError(
        f"{path}:{line}",
        f"is not JSON: {told}",
        remedy="Mend the line or fetch the file again. A source may also declare another `reader`: jsonl wants a "
        "JSON value a line, json one array or object.",
    )


def _not_text(path: Path, line: int, error: UnicodeDecodeError) -> DataError:
    """A byte that is not UTF-8; a file that opens as parquet or gzip is told as such."""
    remedy = "Convert the file, for instance with `iconv -f latin1 -t utf-8`."
    if line == 1 and error.object.startswith(b"PAR1"):
        remedy = "It is a parquet file: declare the reader parquet."
    elif line == 1 and error.object.startswith(b"\x1f\x8b"):
        remedy = "It is compressed: give it a name that ends with .gz."
    return DataError(
        f"{path}:{line}",
        f"byte {error.start + 1} of the line ({error.object[error.start]:#04x}) is not UTF-8",
        remedy=remedy,
    )
