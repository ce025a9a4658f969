"""The lean decode equals transformers' forward: both families, windows, padding, adapters, rows that leave."""

from __future__ import annotations

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model

from alignment.gemma import core, decode

FAMILIES = ["gemma1", "gemma2"]
NEW = 9


def with_lora(model, modules=("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")):
    """Adapters that change something: PEFT starts B at zero. k_proj and gate_proj stay plain beside them."""
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=list(modules), lora_dropout=0.5))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.3)
    return adapted.eval()


def decoded(model, prompts, copies, answers, drops=()) -> list[torch.Tensor]:
    """Logits ``[NEW, V]`` of each row's answer, fed token by token; rows in ``drops[t]`` leave after step t."""
    w = decode.weights(model, context=64)
    state, hidden = decode.prefill(w, prompts, copies, NEW, pad_id=0)
    rows = torch.arange(sum(copies))
    found: list[list[torch.Tensor]] = [[] for _ in rows]
    for position in range(NEW):
        for row, line in zip(rows.tolist(), decode.logits(w, hidden), strict=True):
            found[row].append(line)
        leaving = torch.isin(rows, torch.tensor(dict(drops).get(position, ()), dtype=torch.long))
        rows = rows[state.drop(leaving)]
        if position + 1 < NEW:
            hidden = decode.step(w, state, answers[rows, position])
    return [torch.stack(lines) for lines in found]


def expected(model, prompt, answer) -> torch.Tensor:
    ids = torch.tensor([[*prompt, *answer]])
    return model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lora", [False, True])
@torch.no_grad()
def test_equals_the_full_forward(family, lora):
    """Prompts shorter and longer than the window of 5, padded against each other; some in several copies."""
    model = tiny.model(tiny.SHAPES[family])
    model = with_lora(model) if lora else model
    prompts = [tiny.ids(1, length, seed=length)[0].tolist() for length in (14, 9, 3, 1)]
    copies, answers = [1, 2, 1, 3], tiny.ids(7, NEW, seed=1)
    whose = [prompt for prompt, count in zip(prompts, copies, strict=True) for _ in range(count)]
    for logits, prompt, answer in zip(decoded(model, prompts, copies, answers), whose, answers, strict=True):
        torch.testing.assert_close(logits, expected(model, prompt, answer), atol=5e-5, rtol=0)


@torch.no_grad()
def test_adapters_change_what_is_decoded():
    plain, adapted = tiny.model(tiny.GEMMA2), with_lora(tiny.model(tiny.GEMMA2))
    prompt, answers = [tiny.ids(1, 6)[0].tolist()], tiny.ids(1, NEW)
    difference = decoded(plain, prompt, [1], answers)[0] - decoded(adapted, prompt, [1], answers)[0]
    assert difference.abs().max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_rows_that_leave_disturb_no_other(family):
    model = tiny.model(tiny.SHAPES[family])
    prompts = [tiny.ids(1, length, seed=length)[0].tolist() for length in (12, 8, 7, 7, 3, 2)]
    answers = tiny.ids(6, NEW, seed=1)
    drops = {1: (0, 4), 2: (5,), 5: (2, 3)}
    left_after = {0: 1, 4: 1, 5: 2, 2: 5, 3: 5}
    found = decoded(model, prompts, [1] * 6, answers, drops)
    for row, logits in enumerate(found):
        assert len(logits) == left_after.get(row, NEW - 1) + 1
        whole = expected(model, prompts[row], answers[row])
        torch.testing.assert_close(logits, whole[: len(logits)], atol=5e-5, rtol=0)


@torch.no_grad()
def test_many_prompts_are_prefilled_in_pieces(monkeypatch):
    model = tiny.model(tiny.GEMMA2)
    prompts = [tiny.ids(1, length, seed=length)[0].tolist() for length in (12, 11, 9, 5, 2)]
    answers = tiny.ids(5, NEW)
    together = decoded(model, prompts, [1] * 5, answers)
    monkeypatch.setattr(decode, "PREFILL_TOKENS", 20)
    assert decode._pieces([12, 11, 9, 5, 2]) == [(0, 1), (1, 2), (2, 4), (4, 5)]
    for whole, pieces in zip(together, decoded(model, prompts, [1] * 5, answers), strict=True):
        torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=0)


@torch.no_grad()
def test_bfloat16_is_near_float32():
    model = core.build(tiny.GEMMA2, tiny.VOCABULARY, core.TokenIds(), seed=0)
    prompt, answers = tiny.ids(1, 6)[0].tolist(), tiny.ids(1, NEW)
    whole = expected(model, prompt, answers[0])
    found = decoded(model.bfloat16(), [prompt], [1], answers)[0]
    assert found.dtype == torch.float32
    assert (found - whole).norm() < 0.02 * whole.norm()


@torch.no_grad()
def test_the_cache_is_bounded():
    w = decode.weights(tiny.model(tiny.GEMMA2), context=64)
    state, _ = decode.prefill(w, [[2, 3]], [1], 1, pad_id=0)
    decode.step(w, state, torch.tensor([3]))
    with pytest.raises(AssertionError, match="the cache is full"):
        decode.step(w, state, torch.tensor([3]))
