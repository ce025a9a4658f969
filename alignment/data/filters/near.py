"""Near duplicates: rows whose sets of word shingles overlap, within and across sources.

MinHash in bands finds the candidates (Broder 1997; Leskovec et al., Mining of Massive Datasets, ch. 3),
the exact Jaccard similarity of the two texts decides. The keys are made row by row in any process; the
index takes rows in order and stays in one.
"""

from __future__ import annotations

import hashlib
import math
import struct
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from alignment.data.filters.bands import Band
from alignment.data.filters.texts import library, texts_of, words
from alignment.data.rows import Row
from alignment.settings import Settings, identity

RECALL = 0.985
"""Chance with which a pair at the threshold shares at least one band."""

MOST_BANDS = 14
"""What memory allows: every band costs about 16 bytes a row."""

SEED = 0x6C0FFEE
"""Of the permutations."""

SAME_KEY = 16
"""Rows that stand under one key of one band; later ones with that key are not entered under it."""

COMPARED = 32
"""Earlier rows with which a row is compared: those with the most bands in common, the oldest first."""


class NearOptions(Settings):
    """What is nearly the same."""

    jaccard: float = identity("share of common shingles from which two rows are duplicates", ge=0.5, le=1)
    shingle_words: int = identity("words of a shingle; a shorter text is one shingle", ge=1, le=13)
    across: bool = identity("look for duplicates in other sources too, not only in the row's own")


def fingerprint_text(row: Row) -> str:
    """What of a row is compared: all its texts in reading order."""
    return "\n".join(texts_of(row))


def banding(jaccard: float) -> tuple[int, int]:
    """Bands and rows of a band for a threshold: as many rows as let a pair at it be found, the fewest bands for them.

    A pair of similarity s shares a band with a chance of 1 - (1 - sʳ)ᵇ. For 0.8 that is 14 bands of 6 rows:
    0.986 at 0.8, 0.51 at 0.6, 0.06 at 0.4.
    """
    # Equal texts share every band, and a bound of 1 asks for nothing else.
    similarity = min(jaccard, 0.99)
    rows = 1
    while _bands_needed(similarity, rows + 1) <= MOST_BANDS:
        rows += 1
    return _bands_needed(similarity, rows), rows


def _bands_needed(similarity: float, rows: int) -> int:
    return math.ceil(math.log(1 - RECALL) / math.log1p(-(similarity**rows)))


def shingles(text: str, length: int) -> list[str]:
    """The runs of ``length`` words; one shingle of all its words for a shorter text.

    A text without any word (signs, emoji) is one shingle as it is.
    """
    found = words(text)
    if len(found) <= length:
        return [" ".join(found) or text.strip().encode("utf-8", "replace").decode()]
    return [" ".join(found[start : start + length]) for start in range(len(found) - length + 1)]


def similarity(one: Iterable[str], other: Iterable[str]) -> float:
    """Jaccard's, of two sets: common elements over all elements."""
    first, second = set(one), set(other)
    common = len(first & second)
    return common / (len(first) + len(second) - common)


def band_keys(texts: Sequence[str], options: NearOptions) -> np.ndarray:
    """64-bit keys, one a band, of shape (rows, bands): rows with a key in common are candidates.

    The same text has the same keys in every process and on every platform.
    """
    with library("rensa", "near duplicates"):
        from rensa import RMinHash
    bands, rows = banding(options.jaccard)
    sets = [shingles(text, options.shingle_words) for text in texts]
    digests = RMinHash.digest_matrix_from_token_sets(sets, bands * rows, SEED).to_rows()
    digests_RBr = np.array(digests, np.uint64).reshape(len(texts), bands, rows)
    keys_RB = np.zeros((len(texts), bands), np.uint64)
    for place in range(rows):
        keys_RB = mixed(keys_RB * np.uint64(0x9E3779B97F4A7C15) + digests_RBr[:, :, place])
    return keys_RB


def mixed(numbers: np.ndarray) -> np.ndarray:
    """64-bit numbers scattered over all 64 bits (the finaliser of SplitMix64)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


class Index:
    """The rows kept so far, in bands; their texts wait in the file ``spool`` and are read back to be compared.

    The work for a row is bounded by ``SAME_KEY`` and ``COMPARED``: of many thousands of rows that share their
    boilerplate, a row meets 32. What is found does not depend on how the rows are cut into batches.

    In memory a kept row costs 8 bytes a band over a filling of 0.3 to 0.6, and 8 for its place in the spool:
    with 14 bands 195 to 380 bytes, whatever its length.
    """

    def __init__(self, options: NearOptions, spool: Path) -> None:
        self._options = options
        self._bands = [Band() for _ in range(banding(options.jaccard)[0])]
        self._spool = _Spool(spool)

    def __len__(self) -> int:
        """Rows kept so far."""
        return len(self._spool)

    @property
    def nbytes(self) -> int:
        """Memory of the tables."""
        return sum(band.nbytes for band in self._bands) + 8 * len(self)

    def add(
        self, keys_RB: np.ndarray, texts: Sequence[str], ids: Sequence[str], sources: Sequence[str]
    ) -> list[str | None]:
        """For each row in order the id of an earlier kept row that it nearly duplicates, or None: then it is kept."""
        assert keys_RB.shape == (len(texts), len(self._bands))
        assert len(ids) == len(sources) == len(texts)
        batch = _Batch(self._narrowed(keys_RB, sources), self._bands)
        answers: list[str | None] = []
        for place, text in enumerate(texts):
            answers.append(self._original(text, sources[place], batch.candidates(place)))
            if answers[-1] is None:
                batch.keep(place, len(self))
                self._spool.append(ids[place], sources[place], text)
        batch.enter()
        self._spool.flush()
        return answers

    def close(self) -> None:
        """Remove the spool."""
        self._spool.remove()

    def _narrowed(self, keys_RB: np.ndarray, sources: Sequence[str]) -> np.ndarray:
        """The keys as 32 bits, those of different sources apart where these are not compared."""
        if self._options.across:
            return (mixed(keys_RB) >> np.uint64(32)).astype(np.uint32)
        numbers = {name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") for name in set(sources)}
        of_row = np.array([numbers[name] for name in sources], np.uint64)
        return (mixed(keys_RB ^ of_row[:, None]) >> np.uint64(32)).astype(np.uint32)

    def _original(self, text: str, source: str, candidates: Sequence[int]) -> str | None:
        """The id of the first candidate whose text is nearly this one."""
        if not candidates:
            return None
        own = shingles(text, self._options.shingle_words)
        for row in candidates:
            row_id, row_source, row_text = self._spool.read(row)
            if (self._options.across or row_source == source) and (
                similarity(own, shingles(row_text, self._options.shingle_words)) >= self._options.jaccard
            ):
                return row_id
        return None


class _Batch:
    """Rows that are looked up together, and meet the earlier ones among themselves as if they came one by one."""

    def __init__(self, keys_RB: np.ndarray, bands: Sequence[Band]) -> None:
        self._keys_RB, self._bands = keys_RB, bands
        self._rows_R = np.full(len(keys_RB), -1, np.int64)
        self._standing_RB = np.zeros(keys_RB.shape, np.int64)
        """Rows of the tables under each key."""
        self._again: dict[int, list[tuple[int, int]]] = {}
        """By place: the bands, with their keys, in which another row of the batch has the same key."""
        self._kept: dict[tuple[int, int], list[int]] = {}
        """By band and key: the rows of this batch that were entered there."""
        pairs = []
        for number, band in enumerate(bands):
            places, rows = band.find(keys_RB[:, number])
            self._standing_RB[:, number] = np.bincount(places, minlength=len(keys_RB))
            pairs.append(places.astype(np.uint64) << np.uint64(32) | rows)
            _, inverse, counts = np.unique(keys_RB[:, number], return_inverse=True, return_counts=True)
            for place in np.flatnonzero(counts[inverse] > 1).tolist():
                key = (number, int(keys_RB[place, number]))
                self._again.setdefault(place, []).append(key)
                self._kept[key] = []
        self._earlier: dict[int, dict[int, int]] = {}
        """By place: rows of the tables, with the number of bands in common."""
        distinct, common = np.unique(np.concatenate(pairs), return_counts=True)
        for pair, count in zip(distinct.tolist(), common.tolist(), strict=True):
            self._earlier.setdefault(pair >> 32, {})[pair & 0xFFFFFFFF] = count
        self._entered_RB = self._standing_RB < SAME_KEY

    def candidates(self, place: int) -> list[int]:
        """The rows that the one at ``place`` is compared with: most bands in common first, then the oldest."""
        common = Counter(self._earlier.get(place))
        for key in self._again.get(place, ()):
            common.update(self._kept[key])
        return sorted(common, key=lambda row: (-common[row], row))[:COMPARED]

    def keep(self, place: int, row: int) -> None:
        """The row at ``place`` is no duplicate: it stays, with the number ``row``."""
        self._rows_R[place] = row
        for band, key in self._again.get(place, ()):
            standing = self._kept[band, key]
            if self._standing_RB[place, band] + len(standing) < SAME_KEY:
                standing.append(row)
            else:
                self._entered_RB[place, band] = False

    def enter(self) -> None:
        """Put the rows that stay into the tables."""
        for number, band in enumerate(self._bands):
            chosen = (self._rows_R >= 0) & self._entered_RB[:, number]
            band.enter(self._keys_RB[chosen, number], self._rows_R[chosen])


class _Spool:
    """Texts on disk by their number, each with its id and source."""

    _HEAD = struct.Struct("<II")

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = path.open("w+b")
        self._ends = array("Q")
        self._waiting: list[bytes] = []

    def __len__(self) -> int:
        return len(self._ends)

    def append(self, *parts: str) -> None:
        """Take an id, a source and a text."""
        row_id, source, text = (part.encode("utf-8", "surrogatepass") for part in parts)
        record = self._HEAD.pack(len(row_id), len(source)) + row_id + source + text
        self._ends.append((self._ends[-1] if self._ends else 0) + len(record))
        self._waiting.append(record)

    def flush(self) -> None:
        """Write what was appended."""
        self._file.seek(0, 2)
        self._file.write(b"".join(self._waiting))
        self._waiting.clear()

    def read(self, number: int) -> tuple[str, str, str]:
        """The id, the source and the text with a number."""
        record = self._record(number)
        id_size, source_size = self._HEAD.unpack_from(record)
        after_id = self._HEAD.size + id_size
        after_source = after_id + source_size
        parts = record[self._HEAD.size : after_id], record[after_id:after_source], record[after_source:]
        row_id, source, text = (part.decode("utf-8", "surrogatepass") for part in parts)
        return row_id, source, text

    def remove(self) -> None:
        """Close and delete the file."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def _record(self, number: int) -> bytes:
        waiting = number - (len(self) - len(self._waiting))
        if waiting >= 0:
            return self._waiting[waiting]
        start = self._ends[number - 1] if number else 0
        self._file.seek(start)
        return self._file.read(self._ends[number] - start)
