"""Answers drawn on a device: greedy ones to the letter those of the CPU, sampled ones by the same random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from alignment.gemma import core
from alignment.gemma.presets import Shape, TokenIds
from alignment.sampling.sampler import Answer, Sampler

VOCABULARY, STOPS, TOKENS = 64, (1, 40, 41), 24
SHAPES = {
    "gemma1": Shape("gemma1", 32, 3, 64, 4, 1, head_dim=16, query_scale=16, context=96),
    "gemma2": Shape(
        "gemma2", 32, 4, 64, 4, 2, head_dim=16, query_scale=16, context=96, window=8, attention_cap=20.0, final_cap=10.0
    ),
}


def model(family: str, device: str) -> core.CausalLM:
    """Far from uniform, and the same on every device."""
    built = core.build(SHAPES[family], VOCABULARY, TokenIds(), 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0.0, 0.25, generator=generator)
    built.set_attn_implementation(core.attention_for(built.config, device))
    return built.to(device)  # type: ignore[return-value,arg-type]


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 40, (count,), generator=generator).tolist()
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def drawn(on: core.CausalLM, asked: Sequence[Sequence[int]], temperature: float, **how: float) -> list[Answer]:
    sampler = Sampler(on, stop_ids=STOPS, pad_id=0)
    names = [f"prompt-{number}" for number in range(len(asked))]
    return sampler.draw(
        asked, names, samples=2, temperature=temperature, max_new_tokens=TOKENS, seed=0, batch_rows=24, **how
    )


@pytest.mark.parametrize("family", SHAPES)
def test_greedy_answers_are_those_of_the_cpu(device: str, family: str) -> None:
    found, wanted = (drawn(model(family, where), prompts(16), 0.0) for where in (device, "cpu"))
    assert [one.ids for one in found] == [one.ids for one in wanted]
    assert len({tuple(one.ids) for one in wanted}) > 10, "answers that are all alike would show nothing"
    for one, other in zip(found, wanted, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)


@pytest.mark.parametrize("family", SHAPES)
def test_sampled_answers_are_those_of_the_cpu_but_where_a_number_falls_on_an_edge(device: str, family: str) -> None:
    found, wanted = (drawn(model(family, where), prompts(32), 0.8, top_p=0.95) for where in (device, "cpu"))
    same = [one for one, other in zip(found, wanted, strict=True) if one.ids == other.ids]
    # A rounding of 1e-6 moves one number in some hundred thousand over an edge.
    assert len(same) >= 62


@pytest.mark.parametrize("family", SHAPES)
@torch.no_grad()
def test_log_probabilities_are_those_of_the_forward_pass_on_the_device(device: str, family: str) -> None:
    there, asked = model(family, device), prompts(8)
    for answer in drawn(there, asked, 0.7):
        ids = torch.tensor([[*asked[answer.prompt], *answer.ids]], device=device)
        hidden_ND = core.hidden_states(there, ids)[0, len(asked[answer.prompt]) - 1 : -1]
        weight_VD, softcap = core.head(there)
        logits_NV = hidden_ND @ weight_VD.T
        logits_NV = logits_NV if softcap is None else softcap * torch.tanh(logits_NV / softcap)
        wanted_NV = (logits_NV / 0.7).log_softmax(-1).cpu()
        wanted = wanted_NV[range(len(answer.ids)), answer.ids].tolist()
        assert answer.logprobs == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("family", SHAPES)
def test_bf16_is_near_fp32(device: str, family: str) -> None:
    whole, half = model(family, device), model(family, device).bfloat16()
    found, wanted = drawn(half, prompts(32), 0.0), drawn(whole, prompts(32), 0.0)
    first = [
        (one.ids[0] == other.ids[0], one.logprobs[0] - other.logprobs[0])
        for one, other in zip(found, wanted, strict=True)
    ]
    # The first token of most prompts is clear; where it is the same, its log-probability is near.
    assert sum(same for same, _ in first) >= 0.75 * len(first)
    assert max(abs(apart) for same, apart in first if same) < 0.5
    assert all(all(map(torch.isfinite, torch.tensor(one.logprobs))) for one in found)
