"""The parameters of every shape, and what a layer saves for its backward pass: to the number, and to the byte."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from alignment.estimate.arithmetic import ARITHMETIC, Layer, Model, layer, projections
from alignment.gemma import branches, core, heads
from alignment.gemma.presets import SHAPES, Shape, TokenIds, parameter_counts

GEMMA1 = Shape("gemma1", 96, 2, 320, 4, 2, head_dim=40, query_scale=40, context=2048)
GEMMA2 = replace(GEMMA1, family="gemma2", window=16, attention_cap=50.0, final_cap=30.0)
VOCABULARY, LINES, TOKENS = 512, 3, 56
ADAPTED = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def count(model: nn.Module, *, trained: bool = False) -> int:
    return sum(one.numel() for one in model.parameters() if one.requires_grad or not trained)


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_those_of_the_module(name: str) -> None:
    model = core.build(SHAPES[name], 4096, TokenIds(), 0, device="meta")
    found = Model(SHAPES[name], 4096)
    assert found.held == found.trained == count(model)
    matrices = sum(p.numel() for p in core.trunk(model).layers.parameters() if p.ndim == 2)
    assert found.matrices == matrices
    assert found.embedding == model.model.embed_tokens.weight.numel()


@pytest.mark.parametrize("shape", [GEMMA1, GEMMA2], ids=lambda shape: shape.family)
@pytest.mark.parametrize("score", [False, True])
def test_parameters_with_an_adapter_and_a_head(shape: Shape, score: bool) -> None:
    plain: Any = core.build(shape, VOCABULARY, TokenIds(), 0)
    if score:
        plain = heads.with_head(plain, 0)
        assert Model(shape, VOCABULARY, score=True).held == count(plain)
    config = LoraConfig(
        r=4, target_modules=ADAPTED, modules_to_save=["score"] if score else None,
        task_type="SEQ_CLS" if score else "CAUSAL_LM",
    )  # fmt: skip
    adapted = get_peft_model(plain, config)
    found = Model(shape, VOCABULARY, rank=4, score=score)
    assert found.held == count(adapted)
    assert found.trained == count(adapted, trained=True)


def test_the_tied_embedding_counts_once() -> None:
    one, more = (Model(SHAPES["gemma2_9b"], vocabulary) for vocabulary in (256_000, 256_001))
    assert more.held - one.held == 3584
    assert one.held == parameter_counts(SHAPES["gemma2_9b"], 256_000).total


def saved_by_a_layer(shape: Shape, precision: str, *, trees: bool, rank: int | None) -> int:
    """Bytes that autograd saves for one layer: of three, less those of two. Weights and their casts are left out."""

    def saved(layers: int) -> Counter[tuple[Any, ...]]:
        torch.manual_seed(0)
        model: nn.Module = core.build(replace(shape, layers=layers), VOCABULARY, TokenIds(), 0)
        if rank is not None:
            adapted: Any = get_peft_model(model, LoraConfig(r=rank, target_modules=ADAPTED, task_type="CAUSAL_LM"))  # type: ignore[arg-type]
            model = adapted
        model.train()
        weights = {one.untyped_storage().data_ptr() for one in model.parameters()}
        shapes = {tuple(one.shape) for one in model.parameters()}
        found: dict[int, torch.Tensor] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            place = tensor.untyped_storage().data_ptr()
            of_weight = place in weights or {tuple(tensor.shape), tuple(reversed(tensor.shape))} & shapes
            if not of_weight:
                found.setdefault(place, tensor)
            return tensor

        autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "autocast")
        with autocast, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            if trees:
                some = [branches.Tree([3] * 16, [[4] * 20, [5] * 20])] * LINES
                result = branches._hidden_states(model, branches.lay_out(some, pad_id=0))
            else:
                result = core.hidden_states(model, torch.full((LINES, TOKENS), 7))
        assert result.requires_grad
        return Counter((tuple(one.shape), one.dtype, one.untyped_storage().nbytes()) for one in found.values())

    three = saved(3)
    three.subtract(saved(2))
    return sum(many * size for (_, _, size), many in three.items())


@pytest.mark.parametrize("shape", [GEMMA1, GEMMA2], ids=lambda shape: shape.family)
@pytest.mark.parametrize("precision", ["fp32", "autocast"])
@pytest.mark.parametrize("trees", [False, True], ids=["rows", "trees"])
def test_a_layer_saves_what_is_counted(shape: Shape, precision: str, trees: bool) -> None:
    kind = "eager" if shape.family == "gemma2" else "sdpa"
    counted = layer(Model(shape, VOCABULARY), ARITHMETIC[precision], kind, lines=LINES, tokens=TOKENS, trees=trees)
    assert counted.saved == saved_by_a_layer(shape, precision, trees=trees, rank=None)


@pytest.mark.parametrize("precision", ["fp32", "autocast"])
def test_a_frozen_layer_with_an_adapter_saves_what_is_counted(precision: str) -> None:
    counted = layer(Model(GEMMA2, VOCABULARY, rank=4), ARITHMETIC[precision], "eager", lines=LINES, tokens=TOKENS)
    assert counted.saved == pytest.approx(saved_by_a_layer(GEMMA2, precision, trees=False, rank=4), rel=0.02)


def test_what_is_saved_grows_as_it_should() -> None:
    def of(lines: int, tokens: int, kind: Any = "flex_attention") -> Layer:
        return layer(Model(SHAPES["gemma2_2b"], 256_000), ARITHMETIC["autocast"], kind, lines=lines, tokens=tokens)

    assert of(4, 512).saved == 4 * of(1, 512).saved
    assert of(1, 2048).saved == of(4, 512).saved, "without logits of attention only the number of tokens counts"
    # With them: tanh 2, softmax 4 and its copy 2 bytes for each of 8 heads and pair of tokens.
    assert of(1, 2048, "eager").saved - of(4, 512, "eager").saved == 8 * 8 * (2048**2 - 4 * 512**2)
    assert of(1, 512).peak >= of(1, 512).saved


def test_projections_are_all_matrices_of_a_layer() -> None:
    shape = SHAPES["gemma2_27b"]
    assert projections(shape)[:4] == [(4608, 4096), (4608, 2048), (4608, 2048), (4096, 4608)]
    assert (
        sum(a * b for a, b in projections(shape)) * 46 + 46 * 4 * 4608 + 4608
        == parameter_counts(shape, 1).non_embedding
    )
