"""The shared core against the float64 reference; and each formula of the reference, disturbed, is noticed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reference
import tiny
import torch

from alignment.gemma import core

TOLERANCE = 2e-5


def both(family: str, **changes) -> float:
    """Largest difference between the model and the reference; ``changes`` to the shape reach the reference alone."""
    shape = tiny.SHAPES[family]
    model, ids = tiny.model(shape), tiny.ids(1, 14)
    parameters = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    expected = reference.logits(parameters, replace(shape, **changes), ids[0].tolist())
    weight, cap = core.head(model)
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits[0].double().numpy()
        by_head = core.hidden_states(model, ids)[0] @ weight.T
        by_head = (by_head if cap is None else cap * torch.tanh(by_head / cap)).double().numpy()
    np.testing.assert_allclose(by_head, whole, atol=1e-6)
    return float(np.abs(whole - expected).max())


@pytest.mark.parametrize("family", ["gemma1", "gemma2"])
def test_forward_equals_the_reference(family):
    assert both(family) < TOLERANCE


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("gemma1", {"query_scale": 9}),
        ("gemma2", {"query_scale": 6}),
        ("gemma2", {"attention_cap": None}),
        ("gemma2", {"attention_cap": 3.1}),
        ("gemma2", {"final_cap": None}),
        ("gemma2", {"final_cap": 2.1}),
        ("gemma2", {"window": 4}),
        ("gemma2", {"window": 6}),
    ],
)
def test_a_wrong_number_is_noticed(family, change, monkeypatch):
    # Gemma 1 has no scale of its own in the config; its shape refuses another one, the reference does not ask.
    monkeypatch.setattr("alignment.gemma.presets.Shape.__post_init__", lambda self: None)
    assert both(family, **change) > 50 * TOLERANCE


def interleaved_rope(x_TE, positions_T):
    half = x_TE.shape[-1] // 2
    angles = positions_T[:, None] * 10_000.0 ** (-np.arange(half) / half)
    even, odd = x_TE[:, 0::2], x_TE[:, 1::2]
    turned = np.empty_like(x_TE)
    turned[:, 0::2] = even * np.cos(angles) - odd * np.sin(angles)
    turned[:, 1::2] = odd * np.cos(angles) + even * np.sin(angles)
    return turned


def erf_gelu(x):
    return torch.nn.functional.gelu(torch.from_numpy(x)).numpy()


def without_post_norms(x, layer, shape, index):
    window = shape.window if reference.is_local(index) else None
    x = x + reference.attention(reference.rms_norm(x, layer["input_layernorm.weight"]), layer, shape, window)
    return x + reference._mlp(reference.rms_norm(x, layer["pre_feedforward_layernorm.weight"]), layer)


@pytest.mark.parametrize("family", ["gemma1", "gemma2"])
@pytest.mark.parametrize(
    ("formula", "disturbed"),
    [
        ("rms_norm", lambda x, w: x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * w),
        ("gelu", erf_gelu),
        ("geglu", lambda x, gate, up, down: ((x @ gate.T) * reference.gelu(x @ up.T)) @ down.T),
        ("embedding_scale", lambda width: 1.0),
        ("rope", interleaved_rope),
        ("rope", lambda x, positions: x),
    ],
)
def test_a_wrong_formula_is_noticed(family, formula, disturbed, monkeypatch):
    monkeypatch.setattr(reference, formula, disturbed)
    assert both(family) > 5 * TOLERANCE


@pytest.mark.parametrize(
    ("formula", "disturbed"),
    [
        ("gemma2_layer", without_post_norms),
        ("is_local", lambda layer: layer % 2 == 1),
        ("is_local", lambda layer: True),
    ],
)
def test_a_wrong_gemma2_layer_is_noticed(formula, disturbed, monkeypatch):
    monkeypatch.setattr(reference, formula, disturbed)
    assert both("gemma2") > 50 * TOLERANCE
