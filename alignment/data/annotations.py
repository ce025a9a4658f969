"""The file in which people compare answers: out for them to fill in, and back, checked line by line.

It names no model. Every row has a digest of its texts, so that an answer that was edited, or taken from other
pairs, is refused: a label belongs to what was read.

What several annotators said of one pair is joined by majority. Where the first place is shared there is no
preference ("negligibly better, or unsure") and no safety label.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alignment import files
from alignment.chat.types import Grade, Messages
from alignment.data import grades, spreadsheet
from alignment.data.draw import uniform
from alignment.data.pairs import Pair
from alignment.errors import DataError, UserError

COLUMNS = ("id", "prompt", "answer_a", "answer_b", "preferred", "grade", "a_safe", "b_safe", "comment", "digest")
_TEXTS = ("id", "prompt", "answer_a", "answer_b")
_SPEAKERS = {"system": "System", "user": "User", "assistant": "Assistant"}
_YES_OR_NO = {"yes": True, "no": False, "": None}

Side = Literal["a", "b"]


@dataclass(frozen=True, slots=True)
class Label:
    """What people said of one pair. ``preferred`` is None where none of the two was better.

    ``votes`` of them were asked, and ``agreeing`` said what is said here (of no preference: the largest group).
    """

    preferred: Side | None
    grade: Grade
    a_safe: bool | None
    b_safe: bool | None
    votes: int
    agreeing: int
    comment: str


@dataclass(frozen=True, slots=True)
class _Vote:
    line: int
    annotator: str
    digest: str
    preferred: Side | None
    grade: Grade
    a_safe: bool | None
    b_safe: bool | None
    comment: str


def export(path: Path, pairs: Iterable[Pair], count: int | None) -> int:
    """Write what annotators fill in, and return the number of rows; pairs with nothing to judge are left out.

    ``count`` takes that many at most, chosen by a hash of their ids. Raises :class:`UserError` where none is left.
    """
    judged = (pair for pair in pairs if not pair.why)
    if count is not None:
        chosen = heapq.nsmallest(count, enumerate(judged), key=lambda one: uniform("annotate", one[1].id))
        judged = (pair for _, pair in sorted(chosen, key=lambda one: one[0]))
    written = spreadsheet.write_rows(path, COLUMNS, (_row(pair) for pair in judged))
    if not written:
        path.unlink()
        raise UserError("there is no pair to judge", cause="The two answers of every pair are equal or empty.")
    return written


def read(path: Path, pairs: Iterable[Pair]) -> dict[str, Label]:
    """The labels of a filled-in file, by id; rows without one are left out.

    Raises :class:`DataError` with ``file:line`` for an id that is unknown or labelled twice by one annotator, a
    text that was changed, a value outside its set, or half a label; :class:`UserError` where nothing is labelled.
    """
    votes: dict[str, list[_Vote]] = {}
    for line, row in spreadsheet.read_rows(path, COLUMNS, ("annotator",)):
        vote = _vote(path, line, row)
        if vote is not None:
            votes.setdefault(row["id"], []).append(vote)
    if not votes:
        raise UserError(f"{path}: no row is labelled", remedy="Fill in the columns preferred and grade.")
    digests = {pair.id: _digest(_texts(pair)) for pair in pairs if pair.id in votes}
    for name, said in votes.items():
        _check_votes(path, name, said, digests.get(name))
    return {name: _joined(said) for name, said in votes.items()}


def readable(turns: Messages) -> str:
    """A prompt for a person: one question as it is, a conversation with its speakers."""
    if len(turns) == 1:
        return turns[0].content
    return "\n\n".join(f"{_SPEAKERS[turn.role]}: {turn.content}" for turn in turns)


def _texts(pair: Pair) -> dict[str, str]:
    return {"id": pair.id, "prompt": readable(pair.prompt), "answer_a": pair.answer_a, "answer_b": pair.answer_b}


def _row(pair: Pair) -> dict[str, str]:
    texts = _texts(pair)
    return dict.fromkeys(COLUMNS, "") | texts | {"digest": _digest(texts)}


def _digest(texts: dict[str, str]) -> str:
    """What stands for a row's texts, whatever a program makes of line ends and outer space.

    A letter comes first: no spreadsheet takes it for a number.
    """
    plain = [texts[name].replace("\r\n", "\n").replace("\r", "\n").strip() for name in _TEXTS]
    return f"x{files.digest_json(plain)[:16]}"


def _vote(path: Path, line: int, row: dict[str, str]) -> _Vote | None:
    """A line as a vote; None where nothing was filled in."""
    where = f"{path}:{line}"
    said = {name: row[name].strip().casefold() for name in ("preferred", "grade", "a_safe", "b_safe")}
    if not any(said.values()):
        return None
    if _digest(row) != row["digest"].strip():
        raise DataError(
            where,
            f"the texts of {row['id']!r} are not those that were exported",
            cause="A label belongs to what was read; some programs change what looks like a number or a date.",
            remedy="Take the texts from the exported file again, with every column imported as text.",
        )
    for name, allowed in (("preferred", ("a", "b")), ("grade", grades.GRADES)):
        _one_of(where, name, said[name], allowed)
    a_safe, b_safe = (_YES_OR_NO[_one_of(where, name, said[name], ("yes", "no"))] for name in ("a_safe", "b_safe"))
    if not said["grade"]:
        raise DataError(
            where,
            "a label without a grade",
            remedy=f"Give one of {', '.join(grades.GRADES)}; without a preference, negligibly.",
        )
    if not said["preferred"] and said["grade"] != "negligibly":
        raise DataError(where, f"{said['grade']!r} without saying which is", remedy="Fill in preferred: a or b.")
    preferred: Side | None = said["preferred"] or None  # type: ignore[assignment]
    grade: Grade = said["grade"]  # type: ignore[assignment]
    who = row.get("annotator", "").strip()
    return _Vote(line, who, row["digest"].strip(), preferred, grade, a_safe, b_safe, row["comment"])


def _one_of(where: str, name: str, value: str, allowed: Sequence[str]) -> str:
    if value and value not in allowed:
        raise DataError(where, f"{name}={value!r}", remedy=f"One of {', '.join(allowed)}, or nothing.")
    return value


def _check_votes(path: Path, name: str, votes: Sequence[_Vote], digest: str | None) -> None:
    seen: dict[str, int] = {}
    for vote in votes:
        where = f"{path}:{vote.line}"
        if digest is None:
            raise DataError(
                where, f"there is no pair {name!r}", remedy="Name the pairs from which the file was exported: pairs=…"
            )
        if vote.digest != digest:
            raise DataError(
                where,
                f"the answers of {name!r} are not those of these pairs",
                cause="The file was exported from other pairs, with the same prompts.",
                remedy="Name the pairs from which the file was exported: pairs=…",
            )
        if vote.annotator in seen:
            by = f" by {vote.annotator!r}" if vote.annotator else ""
            raise DataError(
                where,
                f"{name!r} is labelled twice{by}, in line {seen[vote.annotator]} and here",
                remedy="Where several people judged it, add a column annotator that tells them apart.",
            )
        seen[vote.annotator] = vote.line


def _joined(votes: Sequence[_Vote]) -> Label:
    preferred, agreeing = grades.majority([vote.preferred for vote in votes])
    grade: Grade = "negligibly"
    if preferred is not None:
        grade = grades.middle([vote.grade for vote in votes if vote.preferred == preferred])
    a_safe, b_safe = (
        grades.majority([safe for safe in said if safe is not None])[0]
        for said in ([vote.a_safe for vote in votes], [vote.b_safe for vote in votes])
    )
    comment = "; ".join(vote.comment.strip() for vote in votes if vote.comment.strip())
    return Label(preferred, grade, a_safe, b_safe, len(votes), agreeing, comment)
