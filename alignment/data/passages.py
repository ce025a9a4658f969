"""Cutting documents: Project Gutenberg's frame, WikiText's articles, paragraphs grouped into passages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from alignment.errors import DataError


class Part(NamedTuple):
    """A piece of a document and the line (from 1) on which it begins."""

    text: str
    line: int


_START = re.compile(r"^\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG EBOOK[^*]*\*\*\*[ \t]*\n", re.MULTILINE)
_END = re.compile(r"^\*\*\* ?END OF (?:THE|THIS) PROJECT GUTENBERG EBOOK[^*]*\*\*\*", re.MULTILINE)
_TITLE = re.compile(r"^ = (?!=).*(?<!=) = ?$", re.MULTILINE)


def strip_gutenberg(text: str, where: str) -> tuple[str, int, str]:
    """The book between the two marks, its first line's number, and a note on what was taken off.

    Raises :class:`DataError` where a mark is missing: the recipe declares that they are there.
    """
    start, end = _START.search(text), _END.search(text)
    if start is None or end is None or end.start() < start.end():
        missing = "START" if start is None else "END"
        raise DataError(
            where,
            f"there is no line `*** {missing} OF THIS PROJECT GUTENBERG EBOOK …`",
            cause="The source's option gutenberg is true.",
            remedy="Set it to false for a plain text.",
        )
    first, last = text.count("\n", 0, start.end()), text.count("\n", 0, end.start()) + 1
    note = f"Project Gutenberg's header (lines 1 to {first}) and footer (from line {last}) taken off"
    return text[start.end() : end.start()], first + 1, note


def articles(text: str, where: str) -> list[Part]:
    """A WikiText file's articles, headings included. Raises :class:`DataError` where there is no heading."""
    starts = [match.start() for match in _TITLE.finditer(text)]
    if not starts:
        raise DataError(where, "there is no heading ` = Title = `", remedy="Declare the format text for a plain text.")
    if text[: starts[0]].strip():
        starts.insert(0, 0)
    ends = [*starts[1:], len(text)]
    return [Part(text[a:b], text.count("\n", 0, a) + 1) for a, b in zip(starts, ends, strict=True)]


def lines(document: Part) -> list[Part]:
    """The lines of a document that hold anything, each with its line end."""
    numbered = enumerate(document.text.split("\n"), document.line)
    return [Part(f"{line}\n", number) for number, line in numbered if line.strip()]


def paragraphs(document: Part) -> list[Part]:
    """The paragraphs of a document: what blank lines divide."""
    found: list[Part] = []
    follows = 0
    for line in lines(document):
        if line.line == follows:
            found[-1] = Part(found[-1].text + line.text, found[-1].line)
        else:
            found.append(line)
        follows = line.line + 1
    return found


def group(parts: Iterable[Part], least: int) -> list[Part]:
    """Neighbouring parts joined until each group has at least ``least`` characters; the last may be shorter."""
    groups: list[Part] = []
    held: list[Part] = []
    length = 0
    for part in parts:
        held.append(part)
        length += len(part.text)
        if length >= least:
            groups.append(_join(held))
            held, length = [], 0
    return [*groups, _join(held)] if held else groups


def _join(parts: list[Part]) -> Part:
    """Parts with the blank lines that stood between them."""
    text = parts[0].text
    for before, part in pairwise(parts):
        text += "\n" * (part.line - before.line - before.text.count("\n")) + part.text
    return Part(text, parts[0].line)
