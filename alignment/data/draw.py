"""On which side a prompt falls and how often a row is taken: by hashes, so that neither order nor count matters."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterator, Sequence

import numpy as np

from alignment.chat.types import Comparison, Text
from alignment.data.recipe import Recipe, Shares
from alignment.data.rows import Row, Split
from alignment.errors import UserError


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


class Blender:
    """Draws a mixture: how often every training row of every source is taken.

    Memory: 16 bytes a row. Rows are offered in order and get their copies in the same order.
    """

    def __init__(self, recipe: Recipe) -> None:
        assert recipe.mixture is not None
        self.recipe, self.mixture = recipe, recipe.mixture
        self._points = [array("d") for _ in recipe.sources]
        self._sizes = [array("q") for _ in recipe.sources]

    def offer(self, source: int, row_id: str, size: int) -> None:
        """A row that may be drawn; ``size`` is its tokens, or 1."""
        self._points[source].append(uniform("mixture", self.recipe.seed, row_id))
        self._sizes[source].append(size)

    def draw(self) -> list[Iterator[int]]:
        """Copies of each row, by source. Raises :class:`UserError` where a source has less than its share."""
        copies = [self._copies(number, share) for number, share in enumerate(self._shares())]
        return [iter(some.tolist()) for some in copies]

    def _shares(self) -> list[int]:
        """Rows or tokens that each source gives."""
        weights = [source.weight or 0.0 for source in self.recipe.sources]
        if self.mixture.size is not None:
            return whole_shares(self.mixture.size, weights)
        first, others = sum(self._sizes[0]), weights[1:]
        if first == 0:
            raise UserError(
                f"mixture.size=null: {self.recipe.sources[0].name} has no {self.mixture.by} for training",
                cause="The first source, of which every row is taken, decides how large the mixture is.",
                remedy="Put the source first that is to be taken as a whole, or give a size.",
            )
        return [first, *(whole_shares(round(first * sum(others) / weights[0]), others) if others else [])]

    def _copies(self, source: int, share: int) -> np.ndarray:
        """How often each row is taken: by independent draws where rows may come again, else the first by their hash."""
        sizes = np.frombuffer(self._sizes[source], np.int64) if self._sizes[source] else np.zeros(0, np.int64)
        there, name = int(sizes.sum()), self.recipe.sources[source].name
        if self.mixture.size is None and source == 0:
            return np.ones(len(sizes), np.int64)
        if share == 0:
            return np.zeros(len(sizes), np.int64)
        if there == 0 or (share > there and not self.mixture.replacement):
            size = "null" if self.mixture.size is None else f"{self.mixture.size:,}"
            raise UserError(
                f"mixture.size={size}: {name} has {there:,} {self.mixture.by} for training, and its share is {share:,}",
                remedy="Give a smaller size, another weight, or replacement: true, which draws rows again.",
            )
        if self.mixture.replacement:
            return self._again(source, sizes, share)
        order = np.argsort(np.frombuffer(self._points[source]), kind="stable")
        before = np.cumsum(sizes[order]) - sizes[order]
        copies = np.zeros(len(sizes), np.int64)
        copies[order[before < share]] = 1
        return copies

    def _again(self, source: int, sizes: np.ndarray, share: int) -> np.ndarray:
        """Independent draws, every row as likely as any other, until the share is reached."""
        rng = np.random.Generator(np.random.PCG64([self.recipe.seed, source]))
        copies, reached = np.zeros(len(sizes), np.int64), 0
        while reached < share:
            some = rng.integers(len(sizes), size=max(1, math.ceil((share - reached) / sizes.mean())))
            sums = reached + np.cumsum(sizes[some])
            some = some[sums - sizes[some] < share]
            np.add.at(copies, some, 1)
            reached += int(sizes[some].sum())
        return copies


def whole_shares(size: int, weights: Sequence[float]) -> list[int]:
    """``size`` in whole parts by weight, which sum to it: what rounding down leaves goes to the largest remainders."""
    exact = [size * weight / sum(weights) for weight in weights]
    parts = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(parts)), key=lambda place: (parts[place] - exact[place], place))
    for place in by_remainder[: size - sum(parts)]:
        parts[place] += 1
    return parts


def all_text(row: Row) -> str:
    """Everything a row says, for counting its tokens."""
    if isinstance(row, Text):
        return row.text
    turns = row.prompt if isinstance(row, Comparison) else row.messages
    answers = (row.chosen, row.rejected) if isinstance(row, Comparison) else ()
    return "\n".join((*(turn.content for turn in turns), *answers))
