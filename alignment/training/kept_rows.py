"""The conversations of a dataset that a model can learn from, as ids; what became of the others is listed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from alignment import files, ranks
from alignment.chat.render import render
from alignment.chat.types import Conversation
from alignment.data import store
from alignment.data.rows import Split
from alignment.errors import UserError
from alignment.training.policies import Policy

LEFT_OUT = "left_out.jsonl"
"""The list of a split is ``<split>_left_out.jsonl``."""


class KeptRow(NamedTuple):
    """``mask`` tells which of ``ids`` carry loss."""

    conversation: Conversation
    ids: list[int]
    mask: list[bool]


def kept_rows(
    dataset: Path, split: Split, policy: Policy, too_long: Literal["refuse", "leave_out"], out: Path
) -> list[KeptRow]:
    """Those of a split that fit the context, rendered; none where a split other than ``train`` is not there.

    Lists below ``out`` what was left out. Raises :class:`UserError` for rows that are no conversations, and where one
    is too long and that is not allowed.
    """
    if split != "train" and split not in store.card(dataset)["rows"]:
        return []
    kept: list[KeptRow] = []
    left_out: list[dict[str, object]] = []
    for row in _rendered(dataset, split, policy):
        name, tokens = row.conversation.id, len(row.ids)
        if tokens <= policy.tokens_limit:
            kept.append(row)
        elif too_long == "leave_out":
            left_out.append({"id": name, "tokens": tokens, "split": split, "reason": "too long"})
        else:
            raise UserError(
                f"{dataset}: conversation {name} has {tokens:,} tokens",
                cause=f"The model's context is {policy.tokens_limit:,} tokens.",
                remedy=f"Say too_long=leave_out (they are listed in {LEFT_OUT}), or shorten it in the recipe.",
            )
    if left_out and ranks.is_main():
        lines = "".join(json.dumps(line) + "\n" for line in left_out)
        files.write_atomic(out / f"{split}_{LEFT_OUT}", lines)
    return kept


def _rendered(dataset: Path, split: Split, policy: Policy) -> Iterator[KeptRow]:
    for row in store.stream(dataset, split):
        if not isinstance(row, Conversation):
            raise UserError(f"{dataset} holds no conversations", remedy="sft takes conversations; pretrain takes text.")
        rendered = render(row.messages, policy.tokenizer, policy.schema, row.train)
        yield KeptRow(row, rendered.ids, rendered.mask)
