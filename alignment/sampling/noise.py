"""One uniform number for each (seed, prompt id, sample, position), by a counter-based hash.

A draw needs no generator whose state would depend on what else was drawn: the number is a function of the four names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64: a bijection in which every input bit moves every output bit (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def streams(seed: int, prompt_ids: Sequence[str], samples: Sequence[int]) -> NDArray[np.uint64]:
    """One key for each answer, of its prompt's id and its number among that prompt's samples."""
    digests = [hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest() for name in prompt_ids]
    prompts = np.array([int.from_bytes(digest, "little") for digest in digests], dtype=np.uint64)
    return _mix(prompts + _GOLDEN * (np.asarray(samples, dtype=np.uint64) + np.uint64(1)))


def uniforms(keys: NDArray[np.uint64], positions: int) -> NDArray[np.float64]:
    """``[len(keys), positions]`` numbers in [0, 1) of 53 bits; column t belongs to the t-th token of an answer."""
    counters = _GOLDEN * np.arange(1, positions + 1, dtype=np.uint64)
    return (_mix(keys[:, None] + counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53
