"""A dataset as what distillation learns from: conversations, text in pieces, or prompts alone."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from alignment.chat.render import prompt_ids
from alignment.chat.types import Prompt, row_key
from alignment.data import store
from alignment.data.pieces import pieces
from alignment.data.rows import Split
from alignment.errors import UserError
from alignment.training.kept_rows import KeptRow, kept_rows
from alignment.training.lessons import Matter
from alignment.training.policies import Policy
from alignment.training.rows import TokenRows

HELD_OUT_ROWS = 512
NOTHING = Matter([], TokenRows.gather([]), [])


class Read(NamedTuple):
    """What is learned from, what is held out, and the keys of the prompts that are seen."""

    kind: Literal["conversations", "text", "prompts"]
    learned: Matter
    held: Matter
    keys: list[str]


def read(
    dataset: Path,
    policy: Policy,
    out: Path,
    *,
    block: int | None,
    too_long: Literal["refuse", "leave_out"],
    max_new_tokens: int | None,
    always_drawn: bool,
) -> Read:
    """The training and validation splits as ids.

    ``max_new_tokens`` is what answers need that are drawn, or None where none are; ``always_drawn``: nothing else is
    learned from. Raises :class:`UserError` for what is no use, and for rows that leave no room.
    """
    kind = store.card(dataset)["kind"]
    if kind == "text":
        if max_new_tokens is not None:
            raise UserError(
                f"{dataset}: holds text, to which there is no answer to draw",
                remedy="Say mode=live or offline, or give conversations or prompts.",
            )
        return _texts(dataset, policy, block)
    if block is not None:
        raise UserError(f"block={block}: conversations and prompts are not cut", remedy="Say block=null, or give text.")
    if kind == "conversations":
        found = _talks(dataset, policy, out, too_long)
    elif kind == "prompts" and always_drawn:
        found = _prompts(dataset, policy)
    else:
        raise UserError(
            f"{dataset}: holds {kind}",
            cause="Learned from are conversations and text; prompts alone only where all answers are drawn.",
            remedy="stage=data and stage=teach make conversations; or say stage=distill/on_policy drawing.share=1.0.",
        )
    if max_new_tokens is not None:
        _need_room(found.learned, policy.tokens_limit, max_new_tokens)
    return found


def _texts(dataset: Path, policy: Policy, block: int | None) -> Read:
    if block is None or block > policy.tokens_limit:
        raise UserError(
            f"block={block}: text is cut into rows of at most the context, {policy.tokens_limit:,} tokens",
            remedy="Say for instance block=128.",
        )

    def of(split: Split, most: int | None) -> Matter:
        if split not in store.card(dataset)["rows"]:
            return NOTHING
        found = list(pieces(dataset, split, policy.tokenizer, block, most))
        return Matter([one.name for one in found], TokenRows.gather((one.ids, one.mask) for one in found), [])

    return Read("text", of("train", None), of("valid", HELD_OUT_ROWS), [])


def _talks(dataset: Path, policy: Policy, out: Path, too_long: Literal["refuse", "leave_out"]) -> Read:
    def of(rows: list[KeptRow]) -> Matter:
        prompts = [prompt_ids(row.conversation.messages[:-1], policy.tokenizer) for row in rows]
        names = [row.conversation.id for row in rows]
        return Matter(names, TokenRows.gather((row.ids, row.mask) for row in rows), prompts)

    learned, held = (kept_rows(dataset, split, policy, too_long, out) for split in _SPLITS)
    keys = [row_key(row.conversation) for row in learned]
    return Read("conversations", of(learned), of(held[:HELD_OUT_ROWS]), keys)


_SPLITS: tuple[Split, Split] = ("train", "valid")


def _prompts(dataset: Path, policy: Policy) -> Read:
    rows = [row for row in store.stream(dataset, "train") if isinstance(row, Prompt)]
    ids = [prompt_ids(row.messages, policy.tokenizer) for row in rows]
    flat = np.concatenate([np.zeros(0, np.int32), *(np.asarray(one, dtype=np.int32) for one in ids)])
    ends = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    matter = Matter([row.id for row in rows], TokenRows(flat, np.zeros(len(flat), dtype=bool), ends), ids)
    return Read("prompts", matter, NOTHING, [row_key(row) for row in rows])


def _need_room(matter: Matter, context: int, max_new_tokens: int) -> None:
    """Before anything is drawn: every prompt leaves room for an answer."""
    for name, prompt in zip(matter.names, matter.prompts, strict=True):
        if len(prompt) > context - max_new_tokens:
            raise UserError(
                f"the prompt of {name} has {len(prompt):,} tokens",
                cause=f"The student sees {context:,}, of which drawing.max_new_tokens={max_new_tokens} are for the "
                "answer.",
                remedy="Leave such rows out by the recipe's `length` filter, or ask for shorter answers.",
            )
