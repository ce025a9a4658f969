"""On which side a prompt falls and how often a row is taken: by hashes, so that neither order nor count matters."""

from __future__ import annotations

import hashlib
import math

from alignment.data.recipe import Shares
from alignment.data.rows import Split


def uniform(*parts: object) -> float:
    """A number in [0, 1) that depends on ``parts`` alone."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def split_of(key: str, seed: int, shares: Shares) -> Split:
    """The side of a prompt; over many prompts the sides have their ``shares``."""
    point = uniform("split", seed, key)
    if point < shares.train:
        return "train"
    # A sum such as 0.7 + 0.3 may fall short of 1 by rounding; what has no share then gets no row.
    return "valid" if point < shares.train + shares.valid or shares.test == 0 else "test"


def copies_of(row_id: str, seed: int, weight: float) -> int:
    """How often a training row is taken: ``weight`` on average, and never more than one off."""
    whole = math.floor(weight)
    return whole + (uniform("copies", seed, row_id) < weight - whole)
