"""Freed memory serves the next tensor while it is asked to, and goes back at the end."""

import os
import subprocess
import sys

import pytest

# Tensors of 40 MiB, as those of a forward pass come and go; then the page faults of it and the resident bytes.
PASSES = """
import contextlib, resource, sys
import torch
from alignment import allocator
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
with allocator.keeping() if sys.argv[1] == "kept" else contextlib.nullcontext():
    pieces = [torch.ones(10 * 2**20) for _ in range(4)]
    del pieces
    before = faults()
    for _ in range(10):
        pieces = [torch.ones(10 * 2**20) for _ in range(4)]
        del pieces
    taken, held = faults() - before, resident()
print(taken * resource.getpagesize(), held - resident())
"""

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not os.confstr("CS_GNU_LIBC_VERSION"), reason="the allocator is not glibc's"
)


def passes(how: str, **environment: str) -> tuple[int, int]:
    """Bytes that the kernel gave anew while tensors came and went, and that went back to it at the block's end."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", PASSES, how]
    said = subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, check=True).stdout
    taken, back = map(int, said.split())
    return taken, back


def test_freed_memory_serves_the_next_tensor() -> None:
    # Ten times 160 MiB: without it every pass takes them anew, with it hardly the first do (up to 440 MiB measured).
    assert passes("plain")[0] > 1_000 * 2**20
    taken, back = passes("kept")
    assert taken < 800 * 2**20
    assert back > 100 * 2**20, "at the end it is given back"


def test_who_sets_it_in_the_environment_decides() -> None:
    assert passes("kept", MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072")[0] > 1_000 * 2**20
    assert passes("kept", GLIBC_TUNABLES="glibc.malloc.mmap_threshold=131072")[0] > 1_000 * 2**20
