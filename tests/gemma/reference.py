"""Gemma 1 and 2 in numpy float64, written from the two reports' formulas alone: no transformers, no torch.

Slow and plain on purpose: one sequence, loops over heads. It stands beside the model that the project trains.
Every formula is a function of its own, so that a test can disturb one and see that the comparison notices.

Axes: T tokens, D width, H heads, E head dimension, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.gemma.presets import Shape

Array = NDArray[np.float64]


def rms_norm(x: Array, weight: Array) -> Array:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * (1 + weight)


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def geglu(x: Array, gate: Array, up: Array, down: Array) -> Array:
    return (gelu(x @ gate.T) * (x @ up.T)) @ down.T


def soft_cap(z: Array, cap: float | None) -> Array:
    return z if cap is None else cap * np.tanh(z / cap)


def embedding_scale(width: int) -> float:
    return float(np.sqrt(width))


def rope(x_TE: Array, positions_T: NDArray[np.int64]) -> Array:
    """Half-split rotation, base 10,000, over the whole head dimension."""
    half = x_TE.shape[-1] // 2
    angles = positions_T[:, None] * 10_000.0 ** (-np.arange(half) / half)
    first, second = x_TE[:, :half], x_TE[:, half:]
    return np.concatenate(
        [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)], axis=-1
    )


def visible(query: int, key: int, window: int | None) -> bool:
    return key <= query and (window is None or key > query - window)


def is_local(layer: int) -> bool:
    """The first layer is local, then they alternate."""
    return layer % 2 == 0


def attention(x: Array, layer: dict[str, Array], shape: Shape, window: int | None) -> Array:
    T, E = len(x), shape.head_dim
    positions, served = np.arange(T), shape.heads // shape.kv_heads
    outputs = []
    for head in range(shape.heads):
        rows, shared = slice(head * E, (head + 1) * E), slice(head // served * E, (head // served + 1) * E)
        query = rope(x @ layer["self_attn.q_proj.weight"][rows].T, positions)
        key = rope(x @ layer["self_attn.k_proj.weight"][shared].T, positions)
        value = x @ layer["self_attn.v_proj.weight"][shared].T
        logits = soft_cap(query * shape.query_scale**-0.5 @ key.T, shape.attention_cap)
        seen = np.array([[visible(i, j, window) for j in range(T)] for i in range(T)])
        shares = np.exp(logits - logits.max(-1, keepdims=True)) * seen
        outputs.append(shares / shares.sum(-1, keepdims=True) @ value)
    return np.concatenate(outputs, axis=-1) @ layer["self_attn.o_proj.weight"].T


def gemma1_layer(x: Array, layer: dict[str, Array], shape: Shape, index: int) -> Array:
    x = x + attention(rms_norm(x, layer["input_layernorm.weight"]), layer, shape, window=None)
    return x + _mlp(rms_norm(x, layer["post_attention_layernorm.weight"]), layer)


def gemma2_layer(x: Array, layer: dict[str, Array], shape: Shape, index: int) -> Array:
    window = shape.window if is_local(index) else None
    attended = attention(rms_norm(x, layer["input_layernorm.weight"]), layer, shape, window)
    x = x + rms_norm(attended, layer["post_attention_layernorm.weight"])
    fed = _mlp(rms_norm(x, layer["pre_feedforward_layernorm.weight"]), layer)
    return x + rms_norm(fed, layer["post_feedforward_layernorm.weight"])


def _mlp(x: Array, layer: dict[str, Array]) -> Array:
    return geglu(x, layer["mlp.gate_proj.weight"], layer["mlp.up_proj.weight"], layer["mlp.down_proj.weight"])


def logits(parameters: dict[str, Any], shape: Shape, ids: list[int]) -> Array:
    """``logits_TV`` of one sequence. ``parameters`` are named as in the model's state dict."""
    table = parameters["model.embed_tokens.weight"]
    x = table[ids] * embedding_scale(shape.width)
    for index in range(shape.layers):
        prefix = f"model.layers.{index}."
        layer = {name.removeprefix(prefix): value for name, value in parameters.items() if name.startswith(prefix)}
        x = (gemma1_layer if shape.family == "gemma1" else gemma2_layer)(x, layer, shape, index)
    return soft_cap(rms_norm(x, parameters["model.norm.weight"]) @ table.T, shape.final_cap)
