"""What glibc does with freed memory: it serves the next tensor, or goes back to the kernel."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from collections.abc import Iterator
from typing import NamedTuple


class Thresholds(NamedTuple):
    """Bytes from which a piece is the kernel's own, and goes back to it at once; bytes of a free end that are kept."""

    piece: int
    kept: int


USUAL = Thresholds(32 * 2**20, 64 * 2**20)
"""What glibc comes to by itself where pieces are large."""
ROOMY = Thresholds(256 * 2**20, 512 * 2**20)
# glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


@contextlib.contextmanager
def keeping() -> Iterator[None]:
    """While the block lasts, freed memory serves the next tensor.

    glibc otherwise gives pieces of 32 MiB, and a free end of 64 MiB, back to the kernel and takes them anew, zeroed
    page by page, at every operation: a quarter of the time of an examination by likelihoods. This is for forward
    passes alone: between what a backward pass needs later, free pieces of all sizes are too small for the next (a
    training of 4 GB took 13). Whoever sets ``MALLOC_…`` in the environment decides; other libraries of C are left
    alone.
    """
    told = any(name.startswith("MALLOC_") for name in os.environ)
    if told or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        yield
        return
    _choose(ROOMY)
    try:
        yield
    finally:
        _choose(USUAL)
        give_back()


def _choose(some: Thresholds) -> None:
    with contextlib.suppress(OSError, AttributeError):
        option = ctypes.CDLL("libc.so.6").mallopt
        option(_MMAP_THRESHOLD, some.piece)
        option(_TRIM_THRESHOLD, some.kept)


def give_back() -> None:
    """What a step has left: trainers and models in circles, and freed memory that glibc would keep to itself.

    A plan of thirty reward models had 6 GB of it, which no tensor used.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
