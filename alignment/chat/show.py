"""Tokens for the eye, coloured by what the loss sees."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.text import Text

from alignment.chat.convert import SPACE
from alignment.chat.tokenizers import Tokenizer

TRAINED, SEEN, CONTROL = "bold green", "dim", "magenta"


def coloured(ids: Sequence[int], mask: Sequence[bool], tokenizer: Tokenizer) -> Text:
    """One line or more of text: trained tokens bold green, seen ones dim, control tokens magenta (bold if trained).

    Newlines are shown as ``↵`` and then taken. Characters that are spread over several byte pieces are put together.
    """
    assert len(ids) == len(mask), (len(ids), len(mask))
    text = Text()
    pairs = zip(ids, mask, strict=True)
    for (trained, control), group in groupby(pairs, key=lambda pair: (pair[1], pair[0] in tokenizer.control_ids)):
        run = [index for index, _ in group]
        if control:
            text.append("".join(map(tokenizer.piece, run)), style=f"bold {CONTROL}" if trained else CONTROL)
        else:
            text.append(tokenizer.decode(run).replace("\n", "↵\n"), style=TRAINED if trained else SEEN)
    return text


def pieces(ids: Sequence[int], mask: Sequence[bool], tokenizer: Tokenizer) -> Text:
    """The same with every piece apart, spaces as ``·``: where a text is cut into tokens."""
    assert len(ids) == len(mask), (len(ids), len(mask))
    text = Text()
    for index, trained in zip(ids, mask, strict=True):
        control = index in tokenizer.control_ids
        style = CONTROL if control else TRAINED if trained else SEEN
        piece = tokenizer.piece(index).replace(SPACE, "·").replace("\n", "↵\n")
        text.append(piece, style=f"bold {CONTROL}" if control and trained else style)
        text.append("|" if not piece.endswith("\n") else "", style="dim")
    return text
