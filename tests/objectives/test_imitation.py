"""Chunked negative log-likelihood against float64 and against torch's cross entropy; and that it saves memory."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from alignment.objectives.imitation import IGNORE, chunked_nll

N, D, V = 37, 12, 53


def problem(dtype=torch.float32, spread: float = 2.0):
    """Hidden states and weights that make logits large enough for a cap of 5 to bite; every third label is ignored."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator).to(dtype).requires_grad_()
    weight = (spread * torch.randn(V, D, generator=generator)).to(dtype).requires_grad_()
    labels = torch.randint(0, V, (N,), generator=generator)
    labels[::3] = IGNORE
    return hidden, weight, labels


def plain(hidden, weight, labels, softcap):
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return functional.cross_entropy(logits, labels, reduction="sum")


def with_gradients(loss, hidden, weight):
    return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))


def test_by_hand():
    # Logits (1, 2) capped at 2: 2 tanh(.5) = 0.924234, 2 tanh(1) = 1.523188.
    # −log softmax at the first: ln(1 + e^(1.523188 − 0.924234)) = ln(1 + 1.820215) = 1.036813. Uncapped: ln(1 + e).
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[1.0], [2.0]])
    assert chunked_nll(hidden, weight, torch.tensor([0]), softcap=2.0).item() == pytest.approx(1.036813, abs=1e-5)
    assert chunked_nll(hidden, weight, torch.tensor([0]), softcap=None).item() == pytest.approx(1.313262, abs=1e-5)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("chunk_tokens", [1, 7, 24, 25, 1000])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-11)])
def test_equals_cross_entropy(softcap, chunk_tokens, dtype, tolerance):
    hidden, weight, labels = problem(dtype)
    expected = with_gradients(plain(*(t.double() for t in (hidden, weight)), labels, softcap), hidden, weight)
    found = with_gradients(
        chunked_nll(hidden, weight, labels, softcap=softcap, chunk_tokens=chunk_tokens), hidden, weight
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs.to(dtype), atol=tolerance, rtol=tolerance)
    assert found[1][labels == IGNORE].count_nonzero() == 0


def test_gradients_by_finite_differences():
    hidden, weight, _ = problem(torch.float64, spread=0.5)
    labels = torch.tensor([3, IGNORE, 8, 0, 3])
    few = [tensor.detach().requires_grad_() for tensor in (hidden[:5], weight[:9])]
    assert torch.autograd.gradcheck(lambda h, w: chunked_nll(h, w, labels, softcap=1.5, chunk_tokens=2), few)


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_under_bf16_autocast(softcap):
    hidden, weight, labels = problem(spread=0.3)
    expected = with_gradients(plain(hidden, weight, labels, softcap), hidden, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = chunked_nll(hidden, weight, labels, softcap=softcap, chunk_tokens=7)
    assert loss.dtype == torch.float32
    found = with_gradients(loss, hidden, weight)
    assert [tensor.dtype for tensor in found] == [torch.float32] * 3
    # bf16 keeps 8 bits: a product is right to 2^-8 of its size.
    torch.testing.assert_close(found[0], expected[0], rtol=4e-3, atol=0)
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert (ours - theirs).norm() < 0.01 * theirs.norm()
        assert (ours - theirs).norm() > 0


def test_in_bf16_the_softmax_is_still_fp32():
    hidden, weight, labels = problem(torch.bfloat16, spread=0.3)
    loss = chunked_nll(hidden, weight, labels, softcap=None, chunk_tokens=7)
    assert loss.dtype == torch.float32
    exact = plain(hidden.double(), weight.double(), labels, None)
    assert loss.item() == pytest.approx(exact.item(), rel=4e-3)
    assert {gradient.dtype for gradient in torch.autograd.grad(loss, (hidden, weight))} == {torch.bfloat16}


def test_the_upstream_gradient_scales_and_may_come_twice():
    hidden, weight, labels = problem()
    once = with_gradients(chunked_nll(hidden, weight, labels, softcap=5.0), hidden, weight)
    scaled = chunked_nll(hidden, weight, labels, softcap=5.0) / 4
    for _ in range(2):
        again = torch.autograd.grad(scaled, (hidden, weight), retain_graph=True)
        for ours, whole in zip(again, once[1:], strict=True):
            torch.testing.assert_close(ours, whole / 4)


def test_a_frozen_head_and_a_fixed_trunk():
    hidden, weight, labels = problem()
    expected = with_gradients(plain(hidden, weight, labels, None), hidden, weight)
    (for_hidden,) = torch.autograd.grad(chunked_nll(hidden, weight.detach(), labels, softcap=None), hidden)
    (for_weight,) = torch.autograd.grad(chunked_nll(hidden.detach(), weight, labels, softcap=None), weight)
    torch.testing.assert_close(for_hidden, expected[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(for_weight, expected[2], atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        assert not chunked_nll(hidden, weight, labels, softcap=None).requires_grad


def test_without_any_label_the_loss_is_zero():
    hidden, weight, labels = problem()
    loss, *gradients = with_gradients(
        chunked_nll(hidden, weight, torch.full_like(labels, IGNORE), softcap=5.0), hidden, weight
    )
    assert loss.item() == 0
    assert all(gradient.count_nonzero() == 0 for gradient in gradients)


def test_ignored_positions_have_no_influence_even_as_nan():
    hidden, weight, labels = problem()
    spoilt = torch.where((labels == IGNORE)[:, None], torch.nan, hidden.detach()).requires_grad_()
    expected = with_gradients(chunked_nll(hidden, weight, labels, softcap=5.0), hidden, weight)
    found = with_gradients(chunked_nll(spoilt, weight, labels, softcap=5.0), spoilt, weight)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


class LargestTensor(TorchDispatchMode):
    """Records the elements of the largest tensor that any operation returns, in the forward and the backward pass."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def largest(loss_of) -> int:
    hidden = torch.randn(96, 8, requires_grad=True)
    weight = torch.randn(64, 8, requires_grad=True)
    with LargestTensor() as mode:
        loss_of(hidden, weight, torch.arange(96) % 64).backward()
    return mode.elements


def test_no_temporary_is_tokens_times_vocabulary():
    chunk = 16
    found = largest(lambda h, w, y: chunked_nll(h, w, y, softcap=5.0, chunk_tokens=chunk))
    assert found == chunk * 64
    # What is measured does see the whole logits where there are any.
    assert largest(lambda h, w, y: plain(h, w, y, 5.0)) == 96 * 64
