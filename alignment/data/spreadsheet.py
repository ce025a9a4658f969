"""Tables that people fill in: CSV for a spreadsheet, JSON lines for a tool of their own.

A cell that begins like a formula (``=``, ``+``, ``-``, ``@`` …) is run by a spreadsheet, whoever wrote it; in
CSV it gets an apostrophe, which reading takes away again. CSV begins with a byte-order mark, without which
some spreadsheets read UTF-8 as Latin.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from alignment import files
from alignment.data import readers
from alignment.errors import DataError, UserError

_FORMULA = re.compile("'*([\t\r\n]|\\s*[=+\\-@\uff1d\uff0b\uff0d\uff20])")
"""What a spreadsheet would run or swallow, behind any apostrophes, so that ``escape`` can always be undone."""

_BYTE_ORDER_MARK = "\ufeff"
SUFFIXES = (".csv", ".jsonl")
CELL_LIMIT = 32_767
"""Characters that a cell holds in the common spreadsheet programs; they cut what is longer."""


def escape(text: str) -> str:
    """``text`` as a spreadsheet may hold it: ``=1+1`` becomes ``'=1+1``."""
    return f"'{text}" if _FORMULA.match(text) else text


def unescape(text: str) -> str:
    """Undo :func:`escape`; a text that was never escaped stays as it is, also one that begins with an apostrophe."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text[1:]) else text


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> int:
    """Write ``columns`` of ``rows`` as CSV or JSON lines, by the file's suffix, and return how many rows.

    Raises :class:`UserError` for another suffix.
    """
    _check_suffix(path)
    chosen = [{name: row[name] for name in columns} for row in rows]
    files.make_folder(path.parent)
    if path.suffix == ".jsonl":
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
    else:
        written = io.StringIO()
        writer = csv.writer(written, lineterminator="\r\n")
        writer.writerow(columns)
        writer.writerows([escape(row[name]) for name in columns] for row in chosen)
        content = _BYTE_ORDER_MARK + written.getvalue()
    files.write_atomic(path, content)
    return len(chosen)


def read_rows(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a file that people have filled in, each with its line; what is null is ``""``.

    Every row has ``columns`` and those of ``optional`` that the file has; further columns are left out, and
    so are rows without a single value. Raises :class:`DataError` with ``file:line`` for a column that is
    missing, a value that is no text, and whatever is not CSV or JSON.
    """
    _check_suffix(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file", remedy="Check the path.")
    if path.suffix == ".csv":
        header = next(csv.reader(line for _, line in readers.text_lines(path)), [])
        _need(f"{path}:1", header, columns)
    numbered = readers.read_jsonl(path) if path.suffix == ".jsonl" else readers.read_csv(path)
    for line, value in numbered:
        where = f"{path}:{line}"
        if not isinstance(value, dict):
            raise DataError(where, f"a row with columns is wanted, not {type(value).__name__}")
        _need(where, list(value), columns)
        row = {name: _text(where, name, value[name]) for name in (*columns, *optional) if name in value}
        if any(row.values()):
            yield line, {name: unescape(text) for name, text in row.items()} if path.suffix == ".csv" else row


def _check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"{path}: the suffix says what the file is, and {path.suffix or 'none'!r} is not known",
            remedy="Call it .csv, for a spreadsheet, or .jsonl, a JSON object a line.",
        )


def _need(where: str, have: Sequence[str], wanted: Sequence[str]) -> None:
    for name in wanted:
        if have.count(name) != 1:
            found = f"there is no column {name!r}" if name not in have else f"column {name!r} is there twice"
            remedy = "Keep the columns of the exported file, under their names."
            if any(";" in other for other in have):
                remedy = "Save the file with commas between the columns, not semicolons."
            raise DataError(where, found, cause=f"Columns: {', '.join(have) or 'none'}.", remedy=remedy)


def _text(where: str, name: str, value: object) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    raise DataError(where, f"column {name!r} holds {json.dumps(value)}, not text", remedy="Write it in quotes.")
