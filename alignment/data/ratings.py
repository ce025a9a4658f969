"""The sheet on which people rate answers from 1 to 5: out for them to fill in, and back, checked line by line.

It names no model. Every row has a digest of its texts: a rating belongs to what was read, so a row whose answer was
edited, or is another than the model gives, is refused. Several people may have worked in one file with a column
``annotator``, or in a file each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignment import files
from alignment.chat.types import Messages
from alignment.data import spreadsheet
from alignment.data.annotations import HIGHEST, LOWEST, readable
from alignment.errors import DataError, UserError

COLUMNS = ("id", "prompt", "answer", "rating", "comment", "digest")
_TEXTS = ("id", "prompt", "answer")


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer to rate, with the turns before it."""

    id: str
    prompt: Messages
    answer: str


@dataclass(frozen=True, slots=True)
class Rating:
    """What one person said of one answer, from 1 (worst) to 5."""

    where: str
    annotator: str
    rating: int
    comment: str


def export(path: Path, answers: Iterable[Answered]) -> int:
    """Write the sheet, and return the number of rows."""
    return spreadsheet.write_rows(
        path,
        COLUMNS,
        (dict.fromkeys(COLUMNS, "") | _texts(one) | {"digest": _digest(_texts(one))} for one in answers),
    )


def gather(paths: Sequence[Path], answers: Iterable[Answered]) -> dict[str, list[Rating]]:
    """What everybody said, by the answers' ids, in the order of the files; rows without a rating are left out.

    Raises :class:`DataError` with ``file:line`` for an id that is unknown or rated twice by one person, a text that is
    not the answer's, and a rating outside 1 … 5; :class:`UserError` for a file in which nothing is rated.
    """
    digests = {one.id: _digest(_texts(one)) for one in answers}
    found: dict[str, list[Rating]] = {}
    stems = [path.stem for path in paths]
    for path in paths:
        alone = "" if len(paths) == 1 else path.stem if stems.count(path.stem) == 1 else str(path)
        before = sum(map(len, found.values()))
        for line, row in spreadsheet.read_rows(path, COLUMNS, ("annotator",)):
            if row["rating"].strip():
                one = _rating(f"{path}:{line}", row, alone, digests)
                _need_new(row["id"], one, found.setdefault(row["id"], []))
                found[row["id"]].append(one)
        if sum(map(len, found.values())) == before:
            raise UserError(f"{path}: no row is rated", remedy="Fill in the column rating, from 1 to 5.")
    return found


def _texts(one: Answered) -> dict[str, str]:
    return {"id": one.id, "prompt": readable(one.prompt), "answer": one.answer}


def _digest(texts: Mapping[str, str]) -> str:
    """What stands for a row's texts, whatever a program makes of line ends and outer space."""
    plain = [texts[name].replace("\r\n", "\n").replace("\r", "\n").strip() for name in _TEXTS]
    return f"x{files.digest_json(plain)[:16]}"


def _rating(where: str, row: Mapping[str, str], annotator: str, digests: Mapping[str, str]) -> Rating:
    if _digest(row) != row["digest"].strip():
        raise DataError(
            where,
            f"the texts of {row['id']!r} are not those that were exported",
            cause="A rating belongs to what was read; some programs change what looks like a number or a date.",
            remedy="Take the texts from the exported file again, with every column imported as text.",
        )
    if digests.get(row["id"]) != row["digest"].strip():
        known = "the model gives another answer to" if row["id"] in digests else "nobody was asked"
        raise DataError(
            where,
            f"{known} {row['id']!r}",
            cause="A rating belongs to one answer of one model, with its decoding and its seed.",
            remedy="Name the model, the suite and the settings of the examination that wrote the file.",
        )
    said = row["rating"].strip()
    if said not in map(str, range(LOWEST, HIGHEST + 1)):
        raise DataError(where, f"rating={said!r}", remedy=f"A whole number from {LOWEST} to {HIGHEST}, or nothing.")
    return Rating(where, row.get("annotator", "").strip() or annotator, int(said), row["comment"].strip())


def _need_new(name: str, one: Rating, before: Sequence[Rating]) -> None:
    for other in before:
        if other.annotator == one.annotator:
            by = f" by {one.annotator!r}" if one.annotator else ""
            raise DataError(
                one.where,
                f"{name!r} is rated twice{by}, in {other.where} and here",
                remedy="Where several people rated it, add a column annotator that tells them apart.",
            )
