"""GPUs on which models of this size are trained, and what one of them has.

Memory is what the driver reports, which is neither the GB nor the GiB of the box (nvidia-smi; collected in
modal-labs/modal-client#2797 and, for the B200, pytorch/ao#4002). Links and power caps are those of NVIDIA's data
sheets: NVLink in one direction, half of what is printed; cards without it go through PCIe 4.0 x16. The network is that
of the usual node: DGX A100 with eight times 200 Gb/s, DGX H100, H200 and B200 with eight times 400 Gb/s, and 100 Gb/s
for cards in ordinary servers; it can be said otherwise on the command line.
"""

from __future__ import annotations

from dataclasses import dataclass

from alignment.errors import UserError, nearest

GIB = 2**30
MIB = 2**20
GB = 10**9


@dataclass(frozen=True, slots=True)
class Gpu:
    """``memory`` in bytes; ``link`` to the others of its node and ``node_network`` of the whole node, in bytes a second
    and direction; ``power`` in watts at the cap."""

    memory: int
    link: float
    node_network: float
    power: int


GPUS: dict[str, Gpu] = {
    "a100_40": Gpu(40_960 * MIB, 300 * GB, 8 * 25 * GB, 400),
    "a100": Gpu(81_920 * MIB, 300 * GB, 8 * 25 * GB, 400),
    "h100": Gpu(81_559 * MIB, 450 * GB, 8 * 50 * GB, 700),
    "h200": Gpu(143_771 * MIB, 450 * GB, 8 * 50 * GB, 700),
    "b200": Gpu(182_630 * MIB, 900 * GB, 8 * 50 * GB, 1000),
    "l40s": Gpu(46_068 * MIB, 32 * GB, 12.5 * GB, 350),
    "l4": Gpu(23_034 * MIB, 32 * GB, 12.5 * GB, 72),
}


def gpu_named(name: str) -> Gpu:
    """The GPU of that name. Raises :class:`UserError` that lists what there is."""
    if name not in GPUS:
        raise UserError(f"gpu={name}: is not known here", remedy=nearest(name, list(GPUS)))
    return GPUS[name]
