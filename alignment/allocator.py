"""What glibc does with freed memory: kept for the next tensor within a step, given back between steps."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os

# glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
KEPT = 512 * 2**20
"""Bytes of freed memory that stay with the process."""
LARGE = 256 * 2**20
"""Bytes from which a piece of memory is the kernel's own, and goes back to it at once."""


def keep_freed() -> None:
    """Let freed memory serve the next tensor.

    glibc gives pieces of 32 MiB, and a free end of 64 MiB, back to the kernel and takes them anew, zeroed page by page,
    at every operation: a quarter of the time of an examination by likelihoods. What it keeps instead is bounded, and is
    given back by :func:`give_back`. Whoever sets ``MALLOC_…`` in the environment decides; other libraries of C are left
    alone.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    with contextlib.suppress(OSError, AttributeError):
        choose = ctypes.CDLL("libc.so.6").mallopt
        choose(_MMAP_THRESHOLD, LARGE)
        choose(_TRIM_THRESHOLD, KEPT)


def give_back() -> None:
    """What a step has left: trainers and models in circles, and freed memory that glibc would keep to itself.

    A plan of thirty reward models had 6 GB of it, which no tensor used.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
