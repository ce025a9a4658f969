"""The attention that a device trains with, against eager attention in float64: forward and gradients.

On a GPU a Gemma 2 takes flex attention, compiled. On a CPU flex attention has no backward pass, so that training there
is eager, and only its forward pass is tried, as plain PyTorch.
"""

from __future__ import annotations

import pytest
import test_roles as trees_support
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from transformers.integrations import flex_attention as integration

from alignment.gemma import branches, core, roles
from alignment.gemma.presets import Shape, TokenIds

VOCABULARY = 48
# The kernels want heads of 16 numbers and more; the window of 5 and the cap of 3 bite everywhere.
SHAPES = {
    "gemma1": Shape("gemma1", 32, 2, 48, 4, 2, head_dim=16, query_scale=16, context=512),
    "gemma2": Shape(
        "gemma2", 32, 4, 48, 4, 2, head_dim=16, query_scale=5, context=512, window=5, attention_cap=3.0, final_cap=2.0
    ),
}
LENGTHS = (7, 130, 3, 61)
"""Of packed rows: two windows and less, and across the borders of the kernel's blocks of 128."""
TOLERANCE = 2e-5
"""Of fp32 against float64, as a share of the largest number."""


def model(family: str, seed: int = 0) -> core.CausalLM:
    """A model with weights far from their initial values, norms included."""
    built = core.build(SHAPES[family], VOCABULARY, TokenIds(), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
    return built


def exact(family: str) -> core.CausalLM:
    """What others are held to."""
    reference = model(family).double()
    reference.set_attn_implementation("eager")
    return reference


def placed(family: str, device: str) -> core.CausalLM:
    """The same model on a device, with the attention that it trains with there."""
    there = model(family)
    there.set_attn_implementation(core.attention_for(there.config, device))
    return there.to(device)  # type: ignore[arg-type]


def packed() -> tuple[Tensor, Tensor]:
    """``ids_BT`` and restarting ``position_ids_BT`` of two lines of packed rows."""
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(3, VOCABULARY, (2, sum(LENGTHS)), generator=generator)
    return ids_BT, torch.cat([torch.arange(length) for length in LENGTHS]).expand(2, -1)


def close(found: Tensor, wanted: Tensor, tolerance: float = TOLERANCE) -> None:
    """Within a share of the largest number that is wanted."""
    apart = (found.detach().double().cpu() - wanted.detach()).abs().max() / wanted.detach().abs().max()
    assert apart < tolerance, apart


def loss_of(hidden_BTD: Tensor) -> Tensor:
    """A sum in which every number has a weight of its own, so that one in another's place shows."""
    weights = torch.linspace(-1, 2, hidden_BTD.numel(), dtype=hidden_BTD.dtype, device=hidden_BTD.device)
    return (hidden_BTD.flatten() * weights).sum()


def gradients(of: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """By name."""
    loss.backward()
    return {name: one.grad for name, one in of.named_parameters() if one.grad is not None}


def all_close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Every weight's gradient, within a share of the largest of that weight's."""
    assert found.keys() == wanted.keys()
    for name, one in wanted.items():
        apart = (found[name].double().cpu() - one).abs().max() / one.abs().max()
        assert apart < 10 * TOLERANCE, (name, apart)


@pytest.mark.parametrize("family", SHAPES)
def test_packed_rows_windows_and_caps_forward_and_backward(device: str, family: str) -> None:
    reference, trained = exact(family), placed(family, device)
    ids_BT, positions_BT = packed()
    wanted_BTD = core.hidden_states(reference, ids_BT, position_ids=positions_BT)
    found_BTD = core.hidden_states(trained, ids_BT.to(device), position_ids=positions_BT.to(device))
    close(found_BTD, wanted_BTD)
    all_close(gradients(trained, loss_of(found_BTD)), gradients(reference, loss_of(wanted_BTD)))


@pytest.mark.parametrize("family", SHAPES)
def test_rows_that_are_padded_on_either_side(device: str, family: str) -> None:
    # In fp32: transformers masks with the least number of the weights' type, which overflows in float64.
    reference, there = exact(family).float(), placed(family, device)
    ids_BT, _ = packed()
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[0, :40], mask_BT[1, -90:] = 0, 0
    with torch.no_grad():
        wanted_BTD = core.hidden_states(reference, ids_BT, mask_BT)
        found_BTD = core.hidden_states(there, ids_BT.to(device), mask_BT.to(device))
    close(found_BTD[mask_BT.bool().to(device)], wanted_BTD[mask_BT.bool()].double())


@pytest.mark.parametrize("family", SHAPES)
def test_answers_that_share_a_prompt_forward_and_backward(device: str, family: str) -> None:
    """Trees: what reward training and reinforcement learning compute."""
    some = trees_support.trees([(9, [4]), (3, [2, 6]), (140, [1, 12, 3]), (1, [7, 7]), (12, [9, 20])])
    lines, where = trees_support.batch(some)
    reference, trained = exact(family), placed(family, device)
    on_device = {name: one.to(device) for name, one in lines.items()}
    wanted_S = roles.answer_logprobs(reference, lines, where, 0.7)
    found_S = roles.answer_logprobs(trained, on_device, where.to(device), 0.7)
    close(found_S, wanted_S.double())
    weights_S = torch.linspace(-1, 2, len(wanted_S))
    found = gradients(trained, (found_S * weights_S.to(device)).sum())
    wanted = gradients(reference, (wanted_S * weights_S).sum())
    all_close(found, {name: one.double() for name, one in wanted.items()})


@pytest.mark.parametrize("window", [None, 3])
def test_flex_attention_without_compiling_is_eager_attention(
    device: str, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The masks and the cap that flex attention is told, without the compiler."""
    monkeypatch.setattr(integration.WrappedFlexAttention, "__call__", lambda self: flex_attention)
    there = model("gemma2").to(device)  # type: ignore[arg-type]
    there.config.sliding_window = there.model.config.sliding_window = window or SHAPES["gemma2"].window
    reference = exact("gemma2")
    reference.config.sliding_window = reference.model.config.sliding_window = window or SHAPES["gemma2"].window
    there.set_attn_implementation("flex_attention")
    lines, where = trees_support.batch(trees_support.trees())
    on_device = {name: one.to(device) for name, one in lines.items()}
    with torch.no_grad():
        wanted_SD = branches.predictions(reference, lines, where)
        found_SD = branches.predictions(there, on_device, where.to(device))
    close(found_SD, wanted_SD)
