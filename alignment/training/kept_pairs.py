"""The comparisons of a dataset that a model can learn from, as ids; what became of the others is listed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from alignment import console, files, ranks
from alignment.chat.types import Comparison
from alignment.data import store
from alignment.data.rows import Split
from alignment.errors import UserError
from alignment.training.comparisons import Renderer, exchanged
from alignment.training.pair_rows import PairRow

LEFT_OUT = "left_out.jsonl"
"""The list of a split is ``<split>_left_out.jsonl``."""

KeptPairs = list[tuple[Comparison, PairRow]]


def kept_pairs(
    dataset: Path, split: Split, renderer: Renderer, out: Path, *, max_left_out: float, exchange: float = 0.0
) -> KeptPairs:
    """The pairs of a split that fit the context, a share ``exchange`` of them turned round; none where a split other
    than ``train`` is not there.

    Lists below ``out`` what was shortened or left out. Raises :class:`UserError` for rows that are no comparisons,
    and where pairs are too long and that is not allowed, or more than a share ``max_left_out`` would be left out.
    """
    if split != "train" and split not in store.card(dataset)["rows"]:
        return []
    comparisons = []
    for row in store.stream(dataset, split):
        if not isinstance(row, Comparison):
            raise UserError(f"{dataset} holds no comparisons", remedy="stage=label makes comparisons, of pairs.")
        comparisons.append(row)
    kept = list(renderer.rows(exchanged(comparisons, exchange)))
    if renderer.fits:
        _list_fits(renderer, len(comparisons), split, dataset, out, max_left_out)
    return kept


def _list_fits(renderer: Renderer, count: int, split: str, dataset: Path, out: Path, max_left_out: float) -> None:
    """List what was shortened or left out; refuse where that is not allowed, or too much."""
    left, limit = renderer.left_out, f"The model's context is {renderer.limit:,} tokens."
    if renderer.too_long == "refuse":
        raise UserError(
            f"{dataset}: {len(left):,} pairs of {count:,} are too long, {left[0].id} with {left[0].tokens:,} tokens",
            cause=limit,
            remedy="Say too_long=shorten (oldest turns go first) or leave_out, or filter by length in the recipe.",
        )
    lines = "".join(json.dumps(asdict(fit) | {"split": split}) + "\n" for fit in renderer.fits)
    listed = out / f"{split}_{LEFT_OUT}"
    if ranks.is_main():
        files.write_atomic(listed, lines)
    if len(left) > max_left_out * count:
        raise UserError(
            f"{dataset}: {len(left):,} of {count:,} pairs do not fit, more than max_left_out={max_left_out:g}",
            cause=limit,
            remedy=f"{listed} lists them.",
        )
    shortened = len(renderer.fits) - len(left)
    console.say(f"  {split}: {shortened:,} pairs without their oldest turns, {len(left):,} left out", style="yellow")
