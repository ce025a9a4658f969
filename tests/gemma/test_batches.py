"""What a batch may say: packed rows, padding; and what leaks when it says the wrong thing."""

from __future__ import annotations

import pytest
import tiny
import torch

from alignment.gemma import core

FAMILIES = ["gemma1", "gemma2"]
LENGTHS = (7, 11, 6)


# Packing is tested in float64: weights this wild make sums of other shapes differ by some 1e-6 in float32.


def packed(model) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two packed rows: ids, restarting positions, and the hidden states of each example by itself."""
    ids = tiny.ids(2, sum(LENGTHS))
    positions = torch.cat([torch.arange(length) for length in LENGTHS]).expand(2, -1)
    alone = torch.cat([core.hidden_states(model, part) for part in ids.split(LENGTHS, dim=1)], dim=1)
    return ids, positions, alone


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_packed_equals_unpacked(family):
    model = tiny.model(tiny.SHAPES[family]).double()
    ids, positions, alone = packed(model)
    torch.testing.assert_close(core.hidden_states(model, ids, position_ids=positions), alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("trap", ["all-ones mask", "cache"])
@torch.no_grad()
def test_packed_examples_leak_with_a_mask_or_a_cache(family, trap):
    """Why ``hidden_states`` neither takes a mask beside positions nor keeps a cache."""
    model = tiny.model(tiny.SHAPES[family]).double()
    ids, positions, alone = packed(model)
    said = {"attention_mask": torch.ones_like(ids)} if trap == "all-ones mask" else {}
    leaking = model.model(ids, position_ids=positions, use_cache=trap == "cache", **said).last_hidden_state
    first, second = leaking.split([LENGTHS[0], ids.shape[1] - LENGTHS[0]], dim=1)
    torch.testing.assert_close(first, alone[:, : LENGTHS[0]], atol=1e-6, rtol=0)
    assert (second - alone[:, LENGTHS[0] :]).abs().max() > 0.1


def test_mask_and_positions_together_are_refused():
    model, ids = tiny.model(tiny.GEMMA2), tiny.ids(1, 4)
    with pytest.raises(AssertionError, match="packed rows take position ids and no mask"):
        core.hidden_states(model, ids, torch.ones_like(ids), torch.arange(4)[None])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_equals_no_padding(family, side):
    model = tiny.model(tiny.SHAPES[family])
    ids = tiny.ids(3, 12)
    mask = torch.ones_like(ids)
    for row, length in enumerate((12, 9, 4)):
        slots = slice(0, 12 - length) if side == "left" else slice(length, 12)
        mask[row, slots], ids[row, slots] = 0, 0
    hidden = core.hidden_states(model, ids, mask)
    for row in range(3):
        real = mask[row].bool()
        alone = core.hidden_states(model, ids[row : row + 1, real])[0]
        torch.testing.assert_close(hidden[row, real], alone, atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_positions_are_counted_from_the_mask():
    """Attention hears of distances alone, so only what reaches the module shows where a row begins to count."""
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    counted = [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]]
    assert core.positions_from_mask(mask).tolist() == counted
    model, heard = tiny.model(tiny.GEMMA2), {}
    model.model.register_forward_pre_hook(lambda module, args, said: heard.update(said), with_kwargs=True)
    core.hidden_states(model, tiny.ids(2, 5), mask)
    assert heard["position_ids"].tolist() == counted
