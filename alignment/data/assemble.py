"""What can only be decided of a row among all others: duplicates, contradictions, its side, how often it is drawn.

Memory: 16 bytes of digest and the id of every distinct row (some 250 bytes a row in Python; half as much again
where rows bring ids of their own), and the index of near duplicates where the recipe asks for one. Comparisons are
gone through once more, before (``contradictions.py`` states what that holds, ``filters/near.py`` the size of its
index). Everything else streams.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from alignment.chat.types import Comparison
from alignment.data import contradictions, draw
from alignment.data.contradictions import BothWays
from alignment.data.filters import near
from alignment.data.filters.use import NEAR, Use
from alignment.data.ledger import Fate, Verdict
from alignment.data.prepare import LIMIT, Candidate, Record, Shard
from alignment.data.recipe import Recipe
from alignment.data.rows import Split
from alignment.errors import UserError
from alignment.parts import FOLDER

Shards = Callable[[], Iterator[Shard]]
"""Begins to read all records, in the order of the sources; it can be called again."""


class Assembler:
    """Decides on candidates in order, and remembers what it has seen."""

    def __init__(self, recipe: Recipe, out: Path, both_ways: BothWays) -> None:
        self.recipe, self.both_ways = recipe, both_ways
        self._seen: dict[bytes, str] = {}
        self._sides: dict[str, Split] = {}
        self._given = any(source.brings_sides for source in recipe.sources)
        self._near: near.Index | None = None
        self._use: Use | None = next((use for use in recipe.filters or [] if use.filter == NEAR), None)
        if self._use is not None:
            self._near = near.Index(near.NearOptions.parse(self._use.options), out / FOLDER / "near")

    def close(self) -> None:
        """Let go of the index of near duplicates."""
        if self._near is not None:
            self._near.close()

    def decide(self, source: int, records: Sequence[Record]) -> list[list[Verdict]]:
        """The verdicts on a shard's candidates, by record. Whatever is kept has one copy, until it is drawn."""
        fresh = []
        for one in (one for record in records for one in record["candidates"] if one.row is not None):
            digest = bytes.fromhex(one.digest)
            if digest in self._seen:
                one.drop("duplicates", "duplicate", f"of {self._seen[digest]}")
                continue
            self._seen[digest] = one.id
            if isinstance(one.row, Comparison) and (other := contradictions.opposite(one.row, self.both_ways)):
                one.drop("rules", "contradiction", f"with {other}")
            else:
                fresh.append(one)
        twins = self._twins(fresh, self.recipe.sources[source].name)
        return [
            [self._verdict(one, record.get("split"), twins.get(id(one), "")) for one in record["candidates"]]
            for record in records
        ]

    def _twins(self, fresh: list[Candidate], source: str) -> dict[int, str]:
        """What each candidate nearly repeats, for those that repeat something."""
        if self._near is None or not fresh:
            return {}
        keys = np.array([np.frombuffer(bytes.fromhex(one.bands), np.uint64) for one in fresh])
        texts = [near.fingerprint_text(one.row) for one in fresh if one.row is not None]
        found = self._near.add(keys, texts, [one.id for one in fresh], [source] * len(fresh))
        return {id(one): twin for one, twin in zip(fresh, found, strict=True) if twin is not None}

    def _verdict(self, one: Candidate, given: Split | None, twin: str) -> Verdict:
        marks, changes = tuple(one.marks), tuple(one.changes)

        def dropped(by: str, reason: str, detail: str = "") -> Verdict:
            return Verdict("dropped", one.id, None, by, reason, detail, line=one.line)

        if one.by == LIMIT:
            return Verdict("not_drawn", one.id, by=LIMIT, reason=one.reason)
        if one.row is None:
            return dropped(one.by, one.reason, one.detail)
        if twin:
            assert self._use is not None
            if self._use.action == "drop":
                return dropped("duplicates", "near duplicate", f"of {twin}")
            marks = (*marks, "near duplicate")
        side = self._side(one.key, given)
        if given not in (None, side):
            return dropped("splits", "its prompt is in another split")
        fate: Fate = "flagged" if marks else "changed" if changes else "kept"
        detail = f"of {twin}" if twin else ""
        return Verdict(
            fate, one.id, one.row, "duplicates" if twin else one.by, "", detail, marks, changes, side, 1, one.line
        )

    def _side(self, key: str, given: Split | None) -> Split:
        """The split of a prompt: where its first row fell, by what the source gave or by its hash."""
        if not self._given:
            assert self.recipe.splits is not None
            return draw.split_of(key, self.recipe.seed, self.recipe.splits)
        if key not in self._sides:
            if given is None:
                assert self.recipe.splits is not None
                given = draw.split_of(key, self.recipe.seed, self.recipe.splits)
            self._sides[key] = given
        return self._sides[key]


Decided = tuple[int, Record, list[Verdict]]


def decided(
    recipe: Recipe, out: Path, shards: Shards, count: Callable[[Sequence[str]], list[int]] | None
) -> Iterator[Decided]:
    """Every record with the final verdicts on its candidates, in the order of the sources.

    A mixture needs to know what there is before it draws: then the verdicts are kept on disk and the shards are
    read a second time. ``count`` gives the tokens of texts, for a mixture by tokens.
    """

    def named() -> Iterator[Shard]:
        return _told_apart(shards())

    both_ways = contradictions.find(named) if recipe.kind == "comparisons" else {}
    assembler = Assembler(recipe, out, both_ways)
    try:
        if recipe.mixture is None:
            for source, records in named():
                weight = recipe.sources[source].weight
                for record, verdicts in zip(records, assembler.decide(source, records), strict=True):
                    yield source, record, [_weighed(recipe, one, weight) for one in verdicts]
        else:
            yield from _blended(recipe, assembler, out / FOLDER / "verdicts.jsonl", named, count)
    finally:
        assembler.close()


def _told_apart(shards: Iterator[Shard]) -> Iterator[Shard]:
    """The shards, in which a row whose id an earlier one brought has got another: ``s:7``, ``s:7~2``, …"""
    brought: Counter[str] = Counter()
    for source, records in shards:
        for record in records:
            for one in record["candidates"]:
                if one.id == record["name"] or one.id.startswith(f"{record['name']}#"):
                    continue  # by the row's place, which no other has
                brought[one.id] += 1
                if brought[one.id] > 1:
                    one.id = f"{one.id}~{brought[one.id]}"
        yield source, records


def _weighed(recipe: Recipe, verdict: Verdict, weight: float | None) -> Verdict:
    """The verdict with the copies that its source's weight gives."""
    if weight is None or not verdict.copies:
        return verdict
    drawn = draw.copies_of(verdict.id, recipe.seed, weight)
    return taken(verdict, drawn if verdict.split == "train" else min(1, drawn), "left out by the weight")


def _blended(
    recipe: Recipe,
    assembler: Assembler,
    path: Path,
    shards: Shards,
    count: Callable[[Sequence[str]], list[int]] | None,
) -> Iterator[Decided]:
    assert recipe.mixture is not None
    blend, by_rows = draw.Blender(recipe), recipe.mixture.by == "rows"
    if not by_rows and count is None:
        raise UserError(
            "mixture.by=tokens: there is no tokenizer to count with", remedy="Name one: tokenizer=latest:tokenizer."
        )
    with open(path, "w", encoding="utf-8") as kept:
        for source, records in shards():
            decided_ = assembler.decide(source, records)
            for verdicts in decided_:
                kept.write(json.dumps([asdict(replace(one, row=None)) for one in verdicts], ensure_ascii=False) + "\n")
            training = [one for verdicts in decided_ for one in verdicts if one.split == "train" and one.copies]
            texts = [draw.all_text(one.row) for one in training if one.row is not None]
            sizes = [1] * len(training) if by_rows or count is None else count(texts)
            for one, size in zip(training, sizes, strict=True):
                blend.offer(source, one.id, size)
    copies = blend.draw()
    with open(path, encoding="utf-8") as kept:
        for source, records in shards():
            for record in records:
                verdicts = []
                for values, candidate in zip(json.loads(kept.readline()), record["candidates"], strict=True):
                    values |= {key: tuple(values[key]) for key in ("marks", "changes")}
                    verdict = Verdict(**values | {"row": candidate.row if values["copies"] else None})
                    if verdict.copies and verdict.split == "train":
                        verdict = taken(verdict, next(copies[source]), "not drawn for the mixture")
                    verdicts.append(verdict)
                yield source, record, verdicts


def taken(verdict: Verdict, copies: int, otherwise: str) -> Verdict:
    """The verdict with ``copies`` of its row, or with none and a word why."""
    if copies:
        return replace(verdict, copies=copies)
    return Verdict("not_drawn", verdict.id, by="mixture", reason=otherwise, line=verdict.line)


def check_enough(recipe: Recipe, rows: dict[Split, int]) -> None:
    """Every split that is asked for has rows. Raises :class:`UserError` otherwise."""
    if not rows:
        raise UserError(
            "no row is left", remedy="The sources' `limit` and `weight` and `max_dropped` let none through."
        )
    shares: dict[str, float] = recipe.splits.model_dump() if recipe.splits else {}
    for split, share in shares.items():
        if share > 0 and split not in rows:
            raise UserError(
                f"splits.{split}={share}: none of the {sum(rows.values()):,} rows fell into it",
                remedy="Give it a larger share, 0 if it is not wanted, or another seed.",
            )
