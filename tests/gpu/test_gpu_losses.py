"""Losses over the vocabulary, in chunks, on a device: value and gradients against float64 on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from alignment.objectives.imitation import IGNORE, chunked_nll
from alignment.objectives.tokens import gather_logprobs

N, D, V = 300, 64, 1000
CAPS = [None, 5.0]


def problem() -> tuple[Tensor, Tensor, Tensor]:
    """``hidden_ND``, ``weight_VD``, ``labels_N`` in float64; logits so large that a cap bites, a third without loss."""
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(N, D, generator=generator, dtype=torch.float64)
    weight_VD = 0.5 * torch.randn(V, D, generator=generator, dtype=torch.float64)
    labels_N = torch.randint(0, V, (N,), generator=generator)
    labels_N[::3] = IGNORE
    return hidden_ND, weight_VD, labels_N


def leaves(device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The problem on a device, its first two parts to be differentiated by."""
    hidden_ND, weight_VD, labels_N = problem()
    placed = [one.to(device, dtype).requires_grad_() for one in (hidden_ND, weight_VD)]
    return placed[0], placed[1], labels_N.to(device)


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def near(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Within a share of the norm of what is wanted."""
    apart = (found.detach().double().cpu() - wanted).norm() / wanted.norm()
    assert apart < tolerance, apart


@pytest.mark.parametrize("softcap", CAPS)
@pytest.mark.parametrize("chunk_tokens", [64, 1024])
def test_nll_in_chunks_is_cross_entropy_in_float64(device: str, softcap: float | None, chunk_tokens: int) -> None:
    exact = leaves("cpu", torch.float64)
    logits_NV = capped(exact[0] @ exact[1].T, softcap)
    wanted = functional.cross_entropy(logits_NV, exact[2], ignore_index=IGNORE, reduction="sum")
    given = leaves(device, torch.float32)
    found = chunked_nll(*given, softcap=softcap, chunk_tokens=chunk_tokens)
    near(found, wanted.detach(), 1e-6)
    gradients = torch.autograd.grad(found, given[:2])
    for one, other in zip(gradients, torch.autograd.grad(wanted, exact[:2]), strict=True):
        near(one, other, 1e-5)
    assert gradients[0][given[2] == IGNORE].count_nonzero() == 0


@pytest.mark.parametrize("softcap", CAPS)
def test_nll_under_bf16_is_right_to_its_rounding(device: str, softcap: float | None) -> None:
    exact = leaves("cpu", torch.float64)
    logits_NV = capped(exact[0] @ exact[1].T, softcap)
    wanted = functional.cross_entropy(logits_NV, exact[2], ignore_index=IGNORE, reduction="sum")
    given = leaves(device, torch.float32)
    with torch.autocast(device, dtype=torch.bfloat16):
        found = chunked_nll(*given, softcap=softcap, chunk_tokens=64)
    assert found.dtype == torch.float32
    # bf16 has 8 bits: hidden states and weights are right to 2^-9 of their size each, and sums average that out.
    near(found, wanted.detach(), 5e-3)
    for one, other in zip(torch.autograd.grad(found, given[:2]), torch.autograd.grad(wanted, exact[:2]), strict=True):
        near(one, other, 3e-2)


@pytest.mark.parametrize("softcap", CAPS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_in_chunks_are_those_of_float64(
    device: str, softcap: float | None, temperature: float
) -> None:
    exact = leaves("cpu", torch.float64)
    ids_N = exact[2].clamp_min(0)
    weights_N = torch.linspace(-1, 2, N, dtype=torch.float64)
    all_NV = (capped(exact[0] @ exact[1].T, softcap) / temperature).log_softmax(-1)
    wanted_N = all_NV.gather(-1, ids_N[:, None]).squeeze(-1)
    given = leaves(device, torch.float32)
    found_N = gather_logprobs(
        given[0], given[1], ids_N.to(device), softcap=softcap, temperature=temperature, chunk_tokens=64
    )
    assert (found_N.detach().double().cpu() - wanted_N.detach()).abs().max() < 2e-4
    found = torch.autograd.grad((found_N * weights_N.to(device, torch.float32)).sum(), given[:2])
    for one, other in zip(found, torch.autograd.grad((wanted_N * weights_N).sum(), exact[:2]), strict=True):
        near(one, other, 1e-5)
