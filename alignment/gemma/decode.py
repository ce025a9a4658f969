"""Decoding straight over a Gemma's weights, with a static cache: what ``generate`` does, without what it need not do.

The result equals transformers' forward up to rounding (``tests/gemma/test_decode.py`` holds it); the speed comes from
fused projections, a cache that is written in place, and few small operations per layer.

Rows are padded on the left, so that all of them write the same cache slot at the same time; their positions count from
their own first token. A row that has finished leaves: the last rows take its place, and nothing else moves.

Axes: B rows, U distinct prompts, T tokens of a prompt, S cache slots, L layers, H query heads, K key/value heads,
G query heads per key/value head, E head dimension, D width, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from alignment.gemma.core import causal_lm, head, shape_of
from alignment.gemma.presets import Shape

Projection = Callable[[Tensor], Tensor]

PREFILL_TOKENS = 4096
"""Prompt tokens that go through a layer at once: few enough for their activations to stay near the processor."""


class Layer(NamedTuple):
    """One layer, ready to be applied. Scales are 1 + w of the norms, in fp32; the post-norms are Gemma 2's."""

    qkv: Projection
    out: Projection
    gate_up: Projection
    down: Projection
    before_attention_D: Tensor
    after_attention_D: Tensor | None
    before_mlp_D: Tensor
    after_mlp_D: Tensor | None
    window: int | None


class Weights(NamedTuple):
    """A model as the decode reads it. Taken anew for each draw: in RL the weights move between draws."""

    shape: Shape
    epsilon: Tensor
    embed: Projection
    layers: tuple[Layer, ...]
    final_D: Tensor
    head_VD: Tensor
    cos_SE: Tensor
    sin_SE: Tensor


@dataclass
class DecodeState:
    """The cache of the rows still being written: slots ``[0, filled)`` of rows ``[0, rows)`` are in use."""

    keys_LBKSE: Tensor
    values_LBKSE: Tensor
    first_B: Tensor
    padding: int
    filled: int
    rows: int

    def drop(self, finished_B: Tensor) -> Tensor:
        """Remove the finished rows. Returns ``order``: row i from now on is what row ``order[i]`` was."""
        kept = int((~finished_B).sum())
        holes = finished_B[:kept].nonzero().squeeze(-1)
        movers = (~finished_B[kept:]).nonzero().squeeze(-1) + kept
        for cache in (self.keys_LBKSE, self.values_LBKSE):
            cache[:, holes, :, : self.filled] = cache[:, movers, :, : self.filled]
        order = torch.arange(kept, device=finished_B.device)
        order[holes] = movers
        self.first_B, self.rows = self.first_B[order], kept
        return order


def weights(model: nn.Module, context: int) -> Weights:
    """Read a model (PEFT's wrapping included) for decoding up to ``context`` positions.

    Query, key and value matrices become one, gate and up matrices become one, where they are plain; projections that
    carry an adapter are called as modules.
    """
    base = causal_lm(model)
    shape = shape_of(base.config)
    table_VD, _ = head(base)
    positions = torch.arange(context, device=table_VD.device)[None]
    cos_1SE, sin_1SE = base.model.rotary_emb(table_VD, positions)
    # rotate_half(x) · sin == roll(x, E/2) · signed sin
    sign_E = torch.ones(shape.head_dim, dtype=sin_1SE.dtype, device=sin_1SE.device)
    sign_E[: shape.head_dim // 2] = -1
    return Weights(
        shape=shape,
        epsilon=torch.tensor(base.config.rms_norm_eps, device=table_VD.device),
        embed=base.model.embed_tokens,
        layers=tuple(_layer(layer, shape, index) for index, layer in enumerate(base.model.layers)),
        final_D=_scale(base.model.norm),
        head_VD=table_VD.detach(),
        cos_SE=cos_1SE[0],
        sin_SE=sin_1SE[0] * sign_E,
    )


def _layer(layer: Any, shape: Shape, index: int) -> Layer:
    attention, mlp, gemma2 = layer.self_attn, layer.mlp, shape.family == "gemma2"
    return Layer(
        qkv=_side_by_side(attention.q_proj, attention.k_proj, attention.v_proj),
        out=_side_by_side(attention.o_proj),
        gate_up=_side_by_side(mlp.gate_proj, mlp.up_proj),
        down=_side_by_side(mlp.down_proj),
        before_attention_D=_scale(layer.input_layernorm),
        after_attention_D=_scale(layer.post_attention_layernorm) if gemma2 else None,
        # In Gemma 1, `post_attention_layernorm` is the norm before the MLP.
        before_mlp_D=_scale(layer.pre_feedforward_layernorm if gemma2 else layer.post_attention_layernorm),
        after_mlp_D=_scale(layer.post_feedforward_layernorm) if gemma2 else None,
        window=shape.window if gemma2 and layer.self_attn.layer_type == "sliding_attention" else None,
    )


def _side_by_side(*modules: nn.Module) -> Projection:
    """One projection that gives the outputs of several beside each other."""
    matrices = [module.weight.detach() for module in modules if _is_plain(module)]
    if len(matrices) < len(modules):
        return lambda x: torch.cat([module(x) for module in modules], -1)
    matrix = torch.cat(matrices) if len(matrices) > 1 else matrices[0]
    return lambda x: functional.linear(x, matrix)


def _is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """A matrix and nothing else: not an adapter's, not a quantised one (which are subclasses)."""
    return type(module) is nn.Linear and module.bias is None


def _scale(norm: Any) -> Tensor:
    return 1.0 + norm.weight.detach().float()


def logits(w: Weights, hidden_BD: Tensor) -> Tensor:
    """``logits_BV`` in fp32, with the final soft cap."""
    logits_BV = functional.linear(hidden_BD, w.head_VD).float()
    cap = w.shape.final_cap
    return logits_BV if cap is None else logits_BV.div_(cap).tanh_().mul_(cap)


def prefill(
    w: Weights, prompts: Sequence[Sequence[int]], copies: Sequence[int], new_tokens: int, pad_id: int
) -> tuple[DecodeState, Tensor]:
    """Read each prompt once and give it ``copies`` rows, in order, with room for ``new_tokens`` more slots.

    Returns the state and ``hidden_BD`` of the rows' last prompt tokens, after the final norm. Prompts sorted by length
    cost the least.
    """
    assert len(prompts) == len(copies), "one number of copies for each prompt"
    assert all(len(prompt) > 0 for prompt in prompts), "a prompt holds at least one token"
    device, shape = w.head_VD.device, w.shape
    longest, rows = max(map(len, prompts)), sum(copies)
    size = (shape.layers, rows, shape.kv_heads, longest + new_tokens, shape.head_dim)
    copies_U = torch.tensor(copies, device=device)
    first_U = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
    state = DecodeState(
        # Zeros and not empty memory: what is masked out has weight 0, and 0 times a leftover NaN would be NaN.
        keys_LBKSE=torch.zeros(size, dtype=w.head_VD.dtype, device=device),
        values_LBKSE=torch.zeros(size, dtype=w.head_VD.dtype, device=device),
        first_B=first_U.repeat_interleave(copies_U),
        padding=longest - min(map(len, prompts)),
        filled=longest,
        rows=rows,
    )
    pieces, row = [], 0
    for begin, end in _pieces([len(prompt) for prompt in prompts]):
        hidden_UD = _prefill_piece(w, prompts[begin:end], copies_U[begin:end], state, row, pad_id)
        pieces.append(hidden_UD.repeat_interleave(copies_U[begin:end], dim=0))
        row += sum(copies[begin:end])
    return state, torch.cat(pieces)


def _pieces(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Runs of prompts of at most ``PREFILL_TOKENS`` with their padding, as (begin, end)."""
    bounds, begin = [], 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or max(lengths[begin : end + 1]) * (end + 1 - begin) > PREFILL_TOKENS:
            bounds.append((begin, end))
            begin = end
    return bounds


def _prefill_piece(
    w: Weights, prompts: Sequence[Sequence[int]], copies_U: Tensor, state: DecodeState, row: int, pad_id: int
) -> Tensor:
    """Fill the cache rows from ``row`` on; returns ``hidden_UD`` of the prompts' last tokens."""
    device, longest = w.head_VD.device, max(map(len, prompts))
    padded = [[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    first_U1 = torch.tensor([[longest - len(prompt)] for prompt in prompts], device=device)
    slots_T = torch.arange(longest, device=device)
    positions_UT = (slots_T - first_U1).clamp_min(0)
    rotation = w.cos_SE[positions_UT].unsqueeze(2), w.sin_SE[positions_UT].unsqueeze(2)
    rows, slots = slice(row, row + int(copies_U.sum())), slice(state.filled - longest, state.filled)
    masks = {window: _prompt_mask(slots_T, first_U1, window) for window in {layer.window for layer in w.layers}}

    x_UTD = w.embed(torch.tensor(padded, device=device))
    for index, layer in enumerate(w.layers):
        queries_UTHE, keys_UTKE, values_UTKE = _heads(w, layer, x_UTD, rotation)
        keys_UKTE, values_UKTE = keys_UTKE.transpose(1, 2), values_UTKE.transpose(1, 2)
        state.keys_LBKSE[index, rows, :, slots] = keys_UKTE.repeat_interleave(copies_U, dim=0)
        state.values_LBKSE[index, rows, :, slots] = values_UKTE.repeat_interleave(copies_U, dim=0)
        mask_UTT = masks[layer.window]
        if index == len(w.layers) - 1:
            # Only the last token's output is asked for; of the others the last layer owes keys and values alone.
            x_UTD, queries_UTHE, mask_UTT = x_UTD[:, -1:], queries_UTHE[:, -1:], mask_UTT[:, -1:]
        x_UTD = _rest_of_layer(w, layer, x_UTD, _attend(w, queries_UTHE, keys_UKTE, values_UKTE, mask_UTT))
    return _rms_norm(x_UTD[:, -1], w.final_D, w.epsilon)


def _prompt_mask(slots_T: Tensor, first_U1: Tensor, window: int | None) -> Tensor:
    """``mask_UTT`` to add to attention logits: causal, within the window, and nothing of the padding.

    Padding sees itself, so that no row is without keys and no NaN arises.
    """
    behind_TT = slots_T[:, None] - slots_T[None]
    visible_TT = (behind_TT >= 0) if window is None else (behind_TT >= 0) & (behind_TT < window)
    visible_UTT = visible_TT & (slots_T >= first_U1)[:, None] | (behind_TT == 0)
    return torch.zeros(visible_UTT.shape, device=slots_T.device).masked_fill_(~visible_UTT, -math.inf)


def step(w: Weights, state: DecodeState, ids_B: Tensor) -> Tensor:
    """Append one token to every row; returns ``hidden_BD`` after the final norm."""
    assert len(ids_B) == state.rows, "one token for each row"
    slot, rows = state.filled, state.rows
    assert slot < state.keys_LBKSE.shape[3], "the cache is full"
    positions_B = slot - state.first_B
    rotation = w.cos_SE[positions_B][:, None, None], w.sin_SE[positions_B][:, None, None]
    mask_BS = _padding_mask(state)

    x_BTD = w.embed(ids_B[:, None])
    for index, layer in enumerate(w.layers):
        queries_BTHE, keys_BTKE, values_BTKE = _heads(w, layer, x_BTD, rotation)
        state.keys_LBKSE[index, :rows, :, slot] = keys_BTKE[:, 0]
        state.values_LBKSE[index, :rows, :, slot] = values_BTKE[:, 0]
        begin = 0 if layer.window is None else max(0, slot + 1 - layer.window)
        keys_BKSE = state.keys_LBKSE[index, :rows, :, begin : slot + 1]
        values_BKSE = state.values_LBKSE[index, :rows, :, begin : slot + 1]
        seen_B1S = None if mask_BS is None or begin >= state.padding else mask_BS[:, None, begin:]
        x_BTD = _rest_of_layer(w, layer, x_BTD, _attend(w, queries_BTHE, keys_BKSE, values_BKSE, seen_B1S))
    state.filled += 1
    return _rms_norm(x_BTD[:, 0], w.final_D, w.epsilon)


def _padding_mask(state: DecodeState) -> Tensor | None:
    """``mask_BS`` over the slots in which any row is padded; None where none is."""
    if state.padding == 0:
        return None
    slots_S = torch.arange(state.padding, device=state.first_B.device)
    padded_BS = slots_S < state.first_B[:, None]
    return torch.zeros(padded_BS.shape, device=padded_BS.device).masked_fill_(padded_BS, -math.inf)


def _heads(w: Weights, layer: Layer, x_BTD: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries ``BTHE`` and keys ``BTKE``, rotated to their positions, and values ``BTKE``."""
    shape, (cos_BT1E, sin_BT1E) = w.shape, rotation
    heads = layer.qkv(_rms_norm(x_BTD, layer.before_attention_D, w.epsilon))
    heads = heads.unflatten(-1, (shape.heads + 2 * shape.kv_heads, shape.head_dim))
    turned = heads[:, :, : shape.heads + shape.kv_heads]
    turned = torch.addcmul(turned * cos_BT1E, turned.roll(shape.head_dim // 2, -1), sin_BT1E)
    return turned[:, :, : shape.heads], turned[:, :, shape.heads :], heads[:, :, shape.heads + shape.kv_heads :]


def _attend(
    w: Weights, queries_BTHE: Tensor, keys_BKSE: Tensor, values_BKSE: Tensor, mask_BTS: Tensor | None
) -> Tensor:
    """Capped attention: ``[B, T, H·E]``. ``mask_BTS`` is added after the cap and may cover only the first slots."""
    shape, (B, T) = w.shape, queries_BTHE.shape[:2]
    K, G, E, S = shape.kv_heads, shape.heads // shape.kv_heads, shape.head_dim, keys_BKSE.shape[2]
    queries = queries_BTHE.view(B, T, K, G, E).permute(0, 2, 3, 1, 4).reshape(B * K, G * T, E)
    scores = torch.bmm(queries, keys_BKSE.reshape(B * K, S, E).transpose(1, 2))
    scale, cap = shape.query_scale**-0.5, shape.attention_cap
    scores = scores.mul_(scale) if cap is None else scores.mul_(scale / cap).tanh_().mul_(cap)
    if mask_BTS is not None:
        scores.view(B, K, G, T, S)[..., : mask_BTS.shape[-1]].add_(mask_BTS[:, None, None])
    shares = torch.softmax(scores, -1, dtype=torch.float32).to(queries.dtype)
    mixed = torch.bmm(shares, values_BKSE.reshape(B * K, S, E))
    return mixed.view(B, K, G, T, E).permute(0, 3, 1, 2, 4).reshape(B, T, K * G * E)


def _rest_of_layer(w: Weights, layer: Layer, x_BTD: Tensor, attended: Tensor) -> Tensor:
    """What follows attention: its output projection, the gated MLP, and both residuals."""
    update = layer.out(attended)
    if layer.after_attention_D is not None:
        update = _rms_norm(update, layer.after_attention_D, w.epsilon)
    x_BTD = x_BTD + update
    gate, up = layer.gate_up(_rms_norm(x_BTD, layer.before_mlp_D, w.epsilon)).chunk(2, -1)
    update = layer.down(_geglu(gate, up))
    if layer.after_mlp_D is not None:
        update = _rms_norm(update, layer.after_mlp_D, w.epsilon)
    return x_BTD.add_(update)


def _geglu(gate: Tensor, up: Tensor) -> Tensor:
    """gelu_tanh(gate) · up."""
    if gate.device.type != "cpu" or gate.dtype != torch.float32:
        return functional.gelu(gate, approximate="tanh").mul_(up)
    # ½ (1 + tanh z) = σ(2z), and torch's sigmoid takes a quarter of the time of its tanh-GELU on a CPU.
    inner = torch.addcmul(gate, gate * gate, gate, value=0.044715).mul_(2 * math.sqrt(2 / math.pi))
    return inner.sigmoid_().mul_(gate).mul_(up)


def _rms_norm(x: Tensor, scale_D: Tensor, epsilon: Tensor) -> Tensor:
    """x · (mean x² + ε)^-½ · (1 + w), in fp32."""
    wide = x.float()
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    inverse = torch.addcmul(epsilon, length, length, value=1 / x.shape[-1]).rsqrt_()
    return (wide * inverse).mul_(scale_D).to(x.dtype)
