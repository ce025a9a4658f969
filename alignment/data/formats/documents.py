"""Formats of documents: plain text, and WikiText's articles."""

from __future__ import annotations

from collections.abc import Callable

from alignment.chat.types import Text
from alignment.data import passages
from alignment.data.formats.shape import Shape
from alignment.data.rows import Candidate, Raw, Reading, none
from alignment.settings import Settings, identity


class TextOptions(Settings):
    """How a document is cut."""

    gutenberg: bool = identity("take off Project Gutenberg's header and footer, which must be there")
    passage_chars: int | None = identity("least characters of a passage; null keeps documents whole", ge=1)


class WikitextOptions(Settings):
    """How an article is cut."""

    passage_chars: int | None = identity("least characters of a passage; null keeps articles whole", ge=1)


def read_text(raw: Raw, shape: Shape) -> Reading:
    """A document, whole or in passages."""
    text = raw.text(shape.columns["text"])
    if text is None:
        return none(f"no value in column {shape.columns['text']!r}")
    start, changed = 1, ""
    if shape.options.gutenberg:
        text, start, changed = passages.strip_gutenberg(text, raw.where)
    return _documents(raw, [passages.Part(text, start)], passages.paragraphs, shape.options.passage_chars, changed)


def read_wikitext(raw: Raw, shape: Shape) -> Reading:
    """A WikiText file: articles that open with `` = Title = ``, each whole or in passages of whole lines."""
    text = raw.text(shape.columns["text"])
    if text is None:
        return none(f"no value in column {shape.columns['text']!r}")
    return _documents(raw, passages.articles(text, raw.where), passages.lines, shape.options.passage_chars, "")


def _documents(
    raw: Raw,
    documents: list[passages.Part],
    cut: Callable[[passages.Part], list[passages.Part]],
    passage_chars: int | None,
    changed: str,
) -> Reading:
    parts = (
        documents
        if passage_chars is None
        else [passage for document in documents for passage in passages.group(cut(document), passage_chars)]
    )
    # A file read whole is one raw row, and its parts have lines of their own; a row of a table has not.
    at = [raw.line + part.line - 1 if raw.whole_file else None for part in parts]
    return Reading(
        [Candidate(Text(part.text.strip("\n"), id=""), line=line) for part, line in zip(parts, at, strict=True)],
        changed,
    )
