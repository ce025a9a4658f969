"""Whether a student can learn from what a teacher left beside a dataset, told before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable

from numpy.typing import ArrayLike

from alignment.artifacts import Tokens
from alignment.data.topk import AGAIN, Store, other_tokens, row_digest
from alignment.errors import UserError


def need_fit(
    store: Store,
    tokens: Tokens,
    *,
    temperature: float,
    block: int | None,
    rows: Iterable[tuple[str, ArrayLike]],
) -> None:
    """Raise :class:`UserError`, which explains, where a student cannot learn from what is stored.

    ``tokens`` are the student's, ``temperature`` that of its objective, ``block`` what its text is cut into (None for
    conversations). ``rows`` are names and trained ids as the student has them: there may be fewer than in the store,
    but they come in its order; one that comes again is the same one.
    """
    teacher = store.teacher
    if tokens.digest != teacher.tokenizer:
        raise UserError(
            f"{store.folder}: the log-probabilities are over another tokenizer's ids than the student's",
            cause=f"Teacher {teacher.tokenizer[:12]}, student {tokens.digest[:12]}: one id is another piece there.",
            remedy="Give the student the teacher's tokenizer. Between different ones distillation is another method.",
        )
    if block != teacher.block:
        here, there = (f"rows of {size} tokens" if size else "conversations" for size in (block, teacher.block))
        raise UserError(f"{store.folder}: is of {there}, and the student reads {here}", remedy=AGAIN)
    if block is None and tokens.schema != teacher.schema:
        raise UserError(
            f"{store.folder}: conversations are rendered as {teacher.schema}, and by the student as {tokens.schema}",
            cause="Answers close with other tokens there.",
            remedy=f"Give the student the teacher's chat_schema. {AGAIN}",
        )
    if temperature != teacher.temperature:
        raise UserError(
            f"objective.temperature={temperature}: {store.folder} holds log-probabilities at {teacher.temperature}",
            cause="Of the likeliest tokens alone, those at another temperature cannot be told.",
            remedy=f"Say objective.temperature={teacher.temperature}, or teach with top_k_temperature={temperature}.",
        )
    _need_order(store, rows)


def _need_order(store: Store, rows: Iterable[tuple[str, ArrayLike]]) -> None:
    last, before, seen = -1, "", set[str]()
    for name, tokens_T in rows:
        place = store.place(name)
        if place.digest != row_digest(tokens_T):
            raise other_tokens(store, name)
        if name in seen:
            continue
        seen.add(name)
        if place.number < last:
            raise UserError(
                f"{store.folder}: row {name!r} stands before {before!r}, and in this dataset behind it",
                cause="They were made of the rows in another order, so of another dataset than this one.",
                remedy=f"Read them with the dataset that they lie beside. {AGAIN}",
            )
        last, before = place.number, name
