"""The file in which people compare answers: out for them to fill in, and back, checked line by line.

It names no model. Every row has a digest of its texts, so that an answer that was edited, or taken from other
pairs, is refused: a label belongs to what was read.

What several annotators said of one pair is joined by majority. Where the first place is shared there is no
preference ("negligibly better, or unsure") and no safety label. They may have worked in one file with a column
``annotator``, or in a file each. Where they were asked for it, ``a_rating`` and ``b_rating`` rate each answer by itself
from 1 (worst) to 5; a row of ratings alone prefers the answer that is rated higher.
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
RATINGS = ("a_rating", "b_rating")
"""Columns that annotators add where answers are rated by themselves as well."""
LOWEST, HIGHEST = 1, 5
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
class Vote:
    """What one annotator said of one pair. ``grade`` is None where the answers were rated and not compared."""

    path: Path
    line: int
    annotator: str
    digest: str
    preferred: Side | None
    grade: Grade | None
    a_safe: bool | None
    b_safe: bool | None
    a_rating: int | None
    b_rating: int | None
    comment: str


def export(path: Path, pairs: Iterable[Pair], count: int | None, seed: int = 0) -> int:
    """Write what annotators fill in, and return the number of rows; pairs with nothing to judge are left out.

    ``count`` takes that many at most, chosen by a hash of their ids. Rows are shuffled, so that neither a kind of
    prompt nor a model's turn comes in a run: by a hash of id and ``seed``, whatever the order of the pairs. Raises
    :class:`UserError` where none is left.
    """
    judged: Iterable[Pair] = (pair for pair in pairs if not pair.why)
    if count is not None:
        judged = heapq.nsmallest(count, judged, key=lambda pair: uniform("annotate", pair.id))
    shuffled = sorted(judged, key=lambda pair: uniform("row", seed, pair.id))
    written = spreadsheet.write_rows(path, COLUMNS, map(_row, shuffled))
    if not written:
        path.unlink()
        raise UserError("there is no pair to judge", cause="The two answers of every pair are equal or empty.")
    return written


def read(path: Path, pairs: Iterable[Pair]) -> dict[str, Label]:
    """The labels of a filled-in file, by id; rows without one are left out.

    Raises :class:`DataError` with ``file:line`` for an id that is unknown or labelled twice by one annotator, a
    text that was changed, a value outside its set, or half a label; :class:`UserError` where nothing is labelled.
    """
    votes = {
        name: compared
        for name, said in gather([path], pairs).items()
        if (compared := [vote for vote in said if vote.grade is not None])
    }
    if not votes:
        raise UserError(f"{path}: no row is labelled", remedy="Fill in the columns preferred and grade.")
    return {name: _joined(said) for name, said in votes.items()}


def gather(paths: Sequence[Path], pairs: Iterable[Pair]) -> dict[str, list[Vote]]:
    """What every annotator said, by id, in the order of the files; in a file of its own nobody needs a name.

    Raises :class:`DataError` and :class:`UserError` as :func:`read` does, also for a pair that one annotator has judged
    in two files.
    """
    votes: dict[str, list[Vote]] = {}
    stems = [path.stem for path in paths]
    for path in paths:
        alone = "" if len(paths) == 1 else path.stem if stems.count(path.stem) == 1 else str(path)
        before = sum(map(len, votes.values()))
        for line, row in spreadsheet.read_rows(path, COLUMNS, ("annotator", *RATINGS)):
            vote = _vote(path, line, row, alone)
            if vote is not None:
                votes.setdefault(row["id"], []).append(vote)
        if sum(map(len, votes.values())) == before:
            raise UserError(f"{path}: no row is labelled", remedy="Fill in the columns preferred and grade.")
    digests = {pair.id: _digest(_texts(pair)) for pair in pairs if pair.id in votes}
    for name, said in votes.items():
        _check_votes(name, said, digests.get(name))
    return votes


def preference(votes: Sequence[Vote]) -> tuple[Side | None, Grade | None, int]:
    """What most of them prefer, by how much, and how many they are; no grade where those rated without comparing."""
    preferred, agreeing = grades.majority([vote.preferred for vote in votes])
    if preferred is None:
        return None, "negligibly", agreeing
    known = [vote.grade for vote in votes if vote.preferred == preferred and vote.grade is not None]
    return preferred, grades.middle(known) if known else None, agreeing


def safety(votes: Sequence[Vote]) -> tuple[bool | None, bool | None]:
    """Whether most find answer a safe, and answer b; None where the first place is shared or nobody said it."""
    a_safe, b_safe = (
        grades.majority([safe for safe in said if safe is not None])[0]
        for said in ([vote.a_safe for vote in votes], [vote.b_safe for vote in votes])
    )
    return a_safe, b_safe


def comments(votes: Sequence[Vote]) -> str:
    """What they wanted to say besides."""
    return "; ".join(vote.comment.strip() for vote in votes if vote.comment.strip())


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


def _vote(path: Path, line: int, row: dict[str, str], annotator: str) -> Vote | None:
    """A line as a vote, by ``annotator`` where it names nobody; None where nothing was filled in."""
    where = f"{path}:{line}"
    said = {name: row[name].strip().casefold() for name in ("preferred", "grade", "a_safe", "b_safe")}
    rated = {name: row.get(name, "").strip() for name in RATINGS}
    if not any(said.values()) and not any(rated.values()):
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
    scale = tuple(map(str, range(LOWEST, HIGHEST + 1)))
    a_rating, b_rating = (
        int(found) if (found := _one_of(where, name, rated[name], scale)) else None for name in RATINGS
    )
    who = row.get("annotator", "").strip() or annotator
    digest = row["digest"].strip()
    if not any(said.values()) and a_rating is not None and b_rating is not None:
        higher: Side | None = None if a_rating == b_rating else "a" if a_rating > b_rating else "b"
        return Vote(path, line, who, digest, higher, None, None, None, a_rating, b_rating, row["comment"])
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
    return Vote(path, line, who, digest, preferred, grade, a_safe, b_safe, a_rating, b_rating, row["comment"])


def _one_of(where: str, name: str, value: str, allowed: Sequence[str]) -> str:
    if value and value not in allowed:
        raise DataError(where, f"{name}={value!r}", remedy=f"One of {', '.join(allowed)}, or nothing.")
    return value


def _check_votes(name: str, votes: Sequence[Vote], digest: str | None) -> None:
    seen: dict[str, Vote] = {}
    for vote in votes:
        where = f"{vote.path}:{vote.line}"
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
            first = seen[vote.annotator]
            there = f"in line {first.line}" if first.path == vote.path else f"in {first.path}:{first.line}"
            raise DataError(
                where,
                f"{name!r} is labelled twice{by}, {there} and here",
                remedy="Where several people judged it, add a column annotator that tells them apart.",
            )
        seen[vote.annotator] = vote


def _joined(votes: Sequence[Vote]) -> Label:
    preferred, grade, agreeing = preference(votes)
    assert grade is not None, "they compared"
    return Label(preferred, grade, *safety(votes), len(votes), agreeing, comments(votes))
