"""Documents cut into rows of tokens: what a model is trained on where the data is text, and what a teacher reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from alignment.chat.tokenizers import Tokenizer
from alignment.chat.types import Text
from alignment.data import store
from alignment.data.rows import Split
from alignment.errors import UserError


class Piece(NamedTuple):
    """One row: its ids, the first of them ``<bos>``, and which of them carry loss, which is all but that.

    ``name`` is the document's id and the place of the first token in it: ``book-7@0``, ``book-7@127``.
    """

    name: str
    ids: list[int]
    mask: list[bool]


def pieces(dataset: Path, split: Split, tokenizer: Tokenizer, block: int, most: int | None = None) -> Iterator[Piece]:
    """Documents as ``<bos> … <eos>``, cut into rows of at most ``block`` tokens; every row begins with ``<bos>``.

    Always the same ones in the same order; ``most`` of them at most. Raises :class:`UserError` where the dataset holds
    something else than text.
    """
    given = 0
    for row in store.stream(dataset, split):
        if not isinstance(row, Text):
            raise UserError(
                f"{dataset} holds {store.card(dataset)['kind']}",
                cause="Rows of so many tokens are cut from text alone.",
                remedy="pretrain takes text; sft takes conversations.",
            )
        ids = [*tokenizer.encode(row.text), tokenizer.eos_id]
        for start in range(0, len(ids), block - 1):
            if given == most:
                return
            given += 1
            piece = [tokenizer.bos_id, *ids[start : start + block - 1]]
            yield Piece(f"{row.id}@{start}", piece, [False] + [True] * (len(piece) - 1))
