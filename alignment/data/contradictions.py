"""Pairs of answers that are compared both ways, once the one is better and once the other: together they say nothing.

Memory: 16 bytes of digest for every row of a dataset of comparisons, twice as much again while they are matched,
and some hundred bytes for every pair that is contradicted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator

import numpy as np

from alignment.chat.types import Comparison
from alignment.data.prepare import Shard

Order = bool
"""Which of two answers is the better: whether the one that comes first by alphabet."""

BothWays = dict[bytes, dict[Order, str]]
"""The id of the first row that says each order, by the digest of a pair that is compared both ways."""


def pair_of(row: Comparison) -> tuple[bytes, Order]:
    """16 bytes that are equal for the same two answers to the same prompt, and their order here."""
    turns = [text for turn in row.prompt for text in (turn.role, turn.content)]
    texts = [*turns, *sorted((row.chosen, row.rejected))]
    return hashlib.sha256(json.dumps(texts).encode()).digest()[:16], row.chosen < row.rejected


def find(shards: Callable[[], Iterator[Shard]]) -> BothWays:
    """Every pair that is compared both ways. The shards are read once, and again only where there is one."""
    said: dict[Order, bytearray] = {True: bytearray(), False: bytearray()}
    for _, digest, order in _compared(shards()):
        said[order] += digest
    one, other = (np.frombuffer(digests, "V16") for digests in said.values())
    contradicted = {digest.tobytes() for digest in np.intersect1d(one, other)}
    found: BothWays = {}
    if contradicted:
        for row_id, digest, order in _compared(shards()):
            if digest in contradicted:
                found.setdefault(digest, {}).setdefault(order, row_id)
    return found


def opposite(row: Comparison, both_ways: BothWays) -> str:
    """The id of the first row that says the opposite of this one, or an empty text."""
    digest, order = pair_of(row)
    return both_ways[digest][not order] if digest in both_ways else ""


def _compared(shards: Iterator[Shard]) -> Iterator[tuple[str, bytes, Order]]:
    """Id, pair and order of every comparison that is still in."""
    for _, records in shards:
        for one in (one for record in records for one in record["candidates"] if one.row is not None):
            yield one.id, *pair_of(one.row)
