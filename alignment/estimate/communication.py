"""Bytes that a GPU sends in one optimiser step, and how long that takes at the stated bandwidth.

Ψ is the number of bytes of what is communicated, n the number of GPUs. A ring sends (n − 1)/n · Ψ for a reduce-scatter
or an all-gather, and twice that for an all-reduce (ZeRO, arXiv 1910.02054, §7):

- DDP: one all-reduce of the gradients a step, whatever the number of forward passes: 2Ψ.
- ZeRO 1 and 2: the paper has a reduce-scatter and an all-gather, 2Ψ. DeepSpeed 0.19 reduces its buckets with an
  all-reduce and keeps its own part, so it is 3Ψ. With ``use_multi_rank_bucket_allreduce`` off it reduces every part to
  its owner instead, 2Ψ; that stays on, for those are as many reductions as there are GPUs, one after another and each
  through all of them: at 512 GPUs a part of 9B parameters is 72 MB, which takes less time than its way round. ZeRO 1
  reduces once a step, ZeRO 2 after every forward pass, because no GPU has room for the others' gradients.
- ZeRO 3: the weights are gathered for the forward pass and again for the backward pass, gradients are
  reduce-scattered: 3Ψ, for every forward pass.

What is frozen is gathered by ZeRO 3 too, and never reduced; a teacher has no backward pass, and is gathered once.
"""

from __future__ import annotations

from dataclasses import dataclass

from alignment.estimate.hardware import Gpu


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that one GPU sends in a step, by what they are."""

    gradients: float
    weights: float
    rollout: float
    """Weights gathered to draw answers from them, and to read those."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.gradients + self.weights + self.rollout


def ring(size: float, gpus: int) -> float:
    """Bytes that a GPU sends when ``size`` bytes are reduce-scattered, or gathered, around a ring."""
    return size * (gpus - 1) / gpus


def bandwidth(gpu: Gpu, gpus: int, gpus_per_node: int, node_network: float | None) -> float:
    """Bytes a second at which a ring goes round: the slower of the links within a node and the network between nodes.

    NCCL lays as many rings as a node has network cards, so that all of a node's network carries one collective.
    """
    if gpus <= gpus_per_node:
        return gpu.link
    return min(gpu.link, gpu.node_network if node_network is None else node_network)


def traffic(
    *, zero: int, gpus: int, passes: int, trained: float, held: float, gathered: float, read: float = 0.0
) -> Traffic:
    """Of an optimiser step with ``passes`` forward passes on every GPU.

    All of them are bytes: of gradients, as many as what is ``trained``; of what is ``held`` in the engine, frozen or
    not; of what is only ``read`` in each pass; and of the weights that ZeRO 3 has ``gathered`` for a batch of answers,
    to draw and to read them.
    """
    if zero == 0:
        return Traffic(2 * ring(trained, gpus), 0.0, 0.0)
    if zero < 3:
        reductions = 1 if zero == 1 else passes
        return Traffic(reductions * 2 * ring(trained, gpus), ring(trained, gpus), 0.0)
    return Traffic(passes * ring(trained, gpus), passes * ring(2 * held + read, gpus), ring(gathered, gpus))
