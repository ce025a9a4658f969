"""Rows of a dataset that several models are measured on: the same ids for all of them.

Text is cut into pieces; of conversations the answers carry loss, as their masks say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from alignment import files
from alignment.artifacts import Artifact
from alignment.chat.tokenizers import Tokenizer
from alignment.chat.types import row_key
from alignment.data import store
from alignment.data.pieces import pieces
from alignment.errors import UserError
from alignment.evals.perplexity import HeldOutRows
from alignment.gemma import core
from alignment.gemma.presets import TokenIds
from alignment.scoring.opening import refuse_seen
from alignment.training import policies
from alignment.training.kept_rows import kept_rows
from alignment.training.policies import Policy
from alignment.training.rows import TokenRows


class Dataset(NamedTuple):
    """Rows as tokens, and what is known of them besides."""

    tokens: TokenRows
    rows: HeldOutRows


@dataclass(frozen=True)
class Common:
    """What models share: how text becomes ids, in rows of at most ``block``; ``narrow`` is the one that sees least."""

    tokenizer: Tokenizer
    schema: str
    block: int
    narrow: Artifact

    def policy(self) -> Policy:
        """The narrowest without its weights: enough to render conversations and to see whether they fit."""
        config = core.read_config(self.narrow.path)
        model = core.build(core.shape_of(config), config.vocab_size, TokenIds(), 0, device="meta")
        return Policy(model, self.tokenizer, self.schema)


def common(models: Mapping[str, Artifact], block: int) -> Common:
    """``models`` by their references. No weight is read.

    Raises :class:`UserError` where two of them do not read the same ids, or ``block`` is more than one can see.
    """
    opened = {name: policies.vocabulary_of(model, shape=None, schema="auto") for name, model in models.items()}
    first = next(iter(opened))
    tokenizer, schema = opened[first]
    for name, (other, other_schema) in opened.items():
        if other.digest != tokenizer.digest:
            raise UserError(
                f"{name} has another tokenizer than {first}",
                cause="A loss by token says as much of the pieces as of the model.",
                remedy="Measure models of one tokenizer together.",
            )
        if other_schema != schema:
            raise UserError(
                f"{name} has another chat schema than {first} ({other_schema}, not {schema})",
                cause="All of them are to read the same ids.",
                remedy="Measure models together that open and close turns alike.",
            )
    contexts = {name: core.read_config(model.path).max_position_embeddings for name, model in models.items()}
    narrowest = min(contexts, key=lambda name: contexts[name])
    if block > contexts[narrowest]:
        raise UserError(f"block={block} is more than the context of {narrowest}, {contexts[narrowest]}")
    return Common(tokenizer, schema, block, models[narrowest])


def read(
    dataset: Path,
    split: Literal["valid", "test"],
    common: Common,
    models: Sequence[Artifact],
    *,
    count: int,
    too_long: Literal["refuse", "leave_out"],
    left_out: Path,
) -> Dataset:
    """The first ``count`` rows of a split; conversations that are left out are listed in the folder ``left_out``.

    Raises :class:`UserError` where there are none, where a conversation does not fit, and where a model has seen a
    prompt of theirs.
    """
    card = store.card(dataset)
    if split not in card["rows"]:
        store.read(dataset, split)  # It says which splits there are.
    if card["kind"] == "text":
        found = list(pieces(dataset, split, common.tokenizer, common.block, count))
        documents = [piece.name.rpartition("@")[0] for piece in found]
        return _dataset([piece.name for piece in found], documents, [(piece.ids, piece.mask) for piece in found])
    files.make_folder(left_out)
    rows = kept_rows(dataset, split, common.policy(), too_long, left_out)[:count]
    if not any(left_out.iterdir()):
        left_out.rmdir()
    if not rows:
        raise UserError(f"{dataset}: every row of its split {split!r} is longer than a model's context")
    keys = [row_key(row.conversation) for row in rows]
    for model in models:
        refuse_seen(model, keys)
    return _dataset([row.conversation.id for row in rows], keys, [(row.ids, row.mask) for row in rows])


def _dataset(
    names: Sequence[str], documents: Sequence[str], rows: Sequence[tuple[Sequence[int], Sequence[bool]]]
) -> Dataset:
    trained_R = np.array([sum(mask) for _, mask in rows])
    return Dataset(TokenRows.gather(rows), HeldOutRows(names, documents, trained_R))
