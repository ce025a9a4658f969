"""A compact table from 32-bit keys to row numbers that takes and answers whole batches at once."""

from __future__ import annotations

import numpy as np

FULL = 0.6
"""Filling at which a table doubles; beyond it, the searches of linear probing grow long."""


class Band:
    """An open-addressing table with linear probing: 8 bytes a slot, 13 to 27 bytes for a row that is entered.

    One key may have several rows. A key starts at the slot of its first bits, so keys have to be well mixed.
    """

    def __init__(self, bits: int = 12) -> None:
        self._bits = bits
        self._keys = np.zeros(1 << bits, np.uint32)
        self._rows = np.zeros(1 << bits, np.uint32)
        """One more than the row's number; 0 is a free slot."""
        self._used = 0

    @property
    def nbytes(self) -> int:
        """Memory of the table."""
        return self._keys.nbytes + self._rows.nbytes

    def find(self, keys_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All entries under some keys, as pairs: the place of the key among ``keys_R``, and the row."""
        places, slots = np.arange(len(keys_R)), self._first_slots(keys_R)
        found_places, found_rows = [places[:0]], [self._rows[:0]]
        while len(places):
            rows = self._rows[slots]
            occupied = rows > 0
            places, slots, rows = places[occupied], slots[occupied], rows[occupied]
            same = self._keys[slots] == keys_R[places]
            found_places.append(places[same])
            found_rows.append(rows[same] - np.uint32(1))
            slots = (slots + 1) & (len(self._keys) - 1)
        return np.concatenate(found_places), np.concatenate(found_rows)

    def enter(self, keys_R: np.ndarray, rows_R: np.ndarray) -> None:
        """Enter rows under their keys, beside what stands there."""
        while self._used + len(keys_R) > FULL * len(self._keys):
            self._grow()
        self._used += len(keys_R)
        self._place(keys_R, rows_R.astype(np.uint32) + np.uint32(1))

    def _place(self, keys_R: np.ndarray, numbers_R: np.ndarray) -> None:
        slots, waiting = self._first_slots(keys_R), np.arange(len(keys_R))
        while len(waiting):
            free = np.flatnonzero(self._rows[slots] == 0)
            # Of several that want one free slot the first has it; all others go on to the next slot.
            taken, first = np.unique(slots[free], return_index=True)
            placed = free[first]
            self._keys[taken], self._rows[taken] = keys_R[waiting[placed]], numbers_R[waiting[placed]]
            left = np.ones(len(waiting), bool)
            left[placed] = False
            waiting, slots = waiting[left], (slots[left] + 1) & (len(self._keys) - 1)

    def _grow(self) -> None:
        entered = self._rows > 0
        keys, numbers = self._keys[entered], self._rows[entered]
        self._bits += 1
        self._keys, self._rows = np.zeros(1 << self._bits, np.uint32), np.zeros(1 << self._bits, np.uint32)
        self._place(keys, numbers)

    def _first_slots(self, keys_R: np.ndarray) -> np.ndarray:
        return (keys_R >> np.uint32(32 - self._bits)).astype(np.int64)
