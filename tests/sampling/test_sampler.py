"""Answers: exact log-probabilities, independence of the batch, the right distribution, stops and bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from alignment.errors import UserError
from alignment.gemma import core
from alignment.gemma.presets import SHAPES, Shape, TokenIds
from alignment.sampling.sampler import Sampler

VOCABULARY = 64
STOPS = (1, 40, 41, 42)
FAMILIES = {
    "gemma1": replace(SHAPES["mini_gemma1"], width=32, feedforward=64, head_dim=8, query_scale=8, context=96),
    # A window of 8 is shorter than most prompts.
    "gemma2": replace(SHAPES["mini"], width=32, feedforward=64, head_dim=8, query_scale=8, context=96, window=8),
}


def model(shape: Shape, spread: float = 0.25):
    built = core.build(shape, VOCABULARY, TokenIds(), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0.0, spread, generator=generator)
    return built


def prompts(count: int, longest: int = 30) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, longest, (count,), generator=generator).tolist()
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def names(count: int) -> list[str]:
    return [f"prompt-{index}" for index in range(count)]


@torch.no_grad()
def forward_logprobs(model, prompt, ids, temperature):
    logits = model(torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1)[torch.arange(len(ids)), ids]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.3, 0.7)])
def test_logprobs_are_the_full_forwards(family, lora, temperature, top_p):
    drawn_from = model(FAMILIES[family])
    if lora:
        torch.manual_seed(0)
        drawn_from = get_peft_model(
            drawn_from, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], lora_dropout=0.5)
        )
        for name, parameter in drawn_from.named_parameters():
            parameter.data.normal_(0, 0.2) if "lora_B" in name else None
        drawn_from.train()
    asked = prompts(6)
    answers = Sampler(drawn_from, stop_ids=STOPS, pad_id=0).draw(
        asked, names(6), samples=2, temperature=temperature, top_p=top_p, max_new_tokens=12, seed=0, batch_rows=5
    )
    assert drawn_from.training == lora
    drawn_from.eval()
    for answer in answers:
        expected = forward_logprobs(drawn_from, asked[answer.prompt], answer.ids, temperature)
        torch.testing.assert_close(torch.tensor(answer.logprobs), expected, atol=1e-4, rtol=0)


def test_weights_are_read_anew_at_each_draw():
    policy, asked = model(FAMILIES["gemma2"]), prompts(3)
    sampler = Sampler(policy, stop_ids=STOPS, pad_id=0)
    sampler.draw(asked, names(3), max_new_tokens=4, seed=0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.3)
    for answer in sampler.draw(asked, names(3), max_new_tokens=4, seed=0):
        expected = forward_logprobs(policy, asked[answer.prompt], answer.ids, 1.0)
        torch.testing.assert_close(torch.tensor(answer.logprobs), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_does_not_depend_on_its_batch(family):
    sampler = Sampler(model(FAMILIES[family], spread=0.15), stop_ids=STOPS, pad_id=0)
    asked, called = prompts(8), names(8)
    settings = {"temperature": 0.9, "top_p": 0.95, "max_new_tokens": 14, "seed": 5}
    whole = sampler.draw(asked, called, samples=2, **settings)
    assert [(answer.prompt, answer.sample) for answer in whole] == [(p, s) for p in range(8) for s in range(2)]
    assert len({len(answer.ids) for answer in whole}) > 3
    others = {
        "small batches": sampler.draw(asked, called, samples=2, batch_rows=3, **settings),
        "one by one": sampler.draw(asked, called, samples=2, batch_rows=1, **settings),
        "reversed": [
            replace(answer, prompt=7 - answer.prompt)
            for answer in sampler.draw(asked[::-1], called[::-1], samples=2, **settings)
        ],
        "fewer": sampler.draw(asked[:5], called[:5], samples=1, **settings),
    }
    for how, answers in others.items():
        found = {(answer.prompt, answer.sample): answer for answer in answers}
        for answer in whole:
            other = found.get((answer.prompt, answer.sample))
            if other is None:
                assert how == "fewer"
                continue
            assert (other.ids, other.finished) == (answer.ids, answer.finished)
            torch.testing.assert_close(torch.tensor(other.logprobs), torch.tensor(answer.logprobs), atol=1e-5, rtol=0)


def test_seed_prompt_id_and_sample_each_change_an_answer():
    sampler = Sampler(model(FAMILIES["gemma2"]), stop_ids=(), pad_id=0)
    prompt = prompts(1)

    def ids(name="a", seed=0, sample=0):
        return sampler.draw(prompt, [name], samples=sample + 1, max_new_tokens=12, seed=seed)[sample].ids

    assert ids() == ids()
    assert len({tuple(drawn) for drawn in (ids(), ids(name="b"), ids(seed=1), ids(sample=1))}) == 4


def test_a_longer_answer_begins_as_the_shorter_one():
    sampler = Sampler(model(FAMILIES["gemma1"]), stop_ids=(), pad_id=0)
    short, long = (sampler.draw(prompts(3), names(3), max_new_tokens=length, seed=0) for length in (5, 15))
    assert [answer.ids for answer in short] == [answer.ids[:5] for answer in long]


def test_drawn_pairs_have_the_models_distribution():
    """Two tokens from a sharpened model, 8,000 times, against the exact probabilities of pairs."""
    shape = replace(FAMILIES["gemma2"], layers=2)
    policy, prompt, count = model(shape, spread=0.2), [2, 17, 23], 8_000
    answers = Sampler(policy, stop_ids=(), pad_id=0).draw(
        [prompt], ["p"], samples=count, temperature=0.7, max_new_tokens=2, seed=0, batch_rows=1000
    )
    with torch.no_grad():
        first = (policy(torch.tensor([prompt])).logits[0, -1].double() / 0.7).softmax(-1)
        continued = torch.tensor([[*prompt, token] for token in range(VOCABULARY)])
        second = (policy(continued).logits[:, -1].double() / 0.7).softmax(-1)
    expected = (first[:, None] * second).flatten() * count
    pairs = torch.tensor([answer.ids[0] * VOCABULARY + answer.ids[1] for answer in answers])
    observed = torch.bincount(pairs, minlength=VOCABULARY**2).double()
    # Pairs expected fewer than 10 times make one class together.
    common = expected >= 10
    observed = torch.cat([observed[common], observed[~common].sum()[None]])
    expected = torch.cat([expected[common], expected[~common].sum()[None]])
    classes = len(expected)
    assert classes > 20
    chi_square = ((observed - expected) ** 2 / expected).sum().item()
    # Mean classes − 1, deviation √(2 (classes − 1)): four deviations.
    assert chi_square < (classes - 1) + 4 * (2 * (classes - 1)) ** 0.5


def test_stop_ids_end_an_answer_and_belong_to_it():
    answers = Sampler(model(FAMILIES["gemma2"]), stop_ids=STOPS, pad_id=0).draw(
        prompts(20), names(20), samples=2, max_new_tokens=15, seed=0
    )
    free = Sampler(model(FAMILIES["gemma2"]), stop_ids=(), pad_id=0).draw(
        prompts(20), names(20), samples=2, max_new_tokens=15, seed=0
    )
    assert {answer.finished for answer in answers} == {True, False}
    for answer, unstopped in zip(answers, free, strict=True):
        stopped_at = next((index for index, token in enumerate(unstopped.ids) if token in STOPS), None)
        assert answer.finished == (stopped_at is not None)
        assert answer.ids == unstopped.ids[: 15 if stopped_at is None else stopped_at + 1]
        assert len(answer.logprobs) == len(answer.ids)
        assert not unstopped.finished


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_generate(family):
    policy, asked = model(FAMILIES[family]), prompts(5)
    answers = Sampler(policy, stop_ids=STOPS, pad_id=0).draw(asked, names(5), temperature=0, max_new_tokens=20, seed=0)
    for answer, prompt in zip(answers, asked, strict=True):
        ids = torch.tensor([prompt])
        generated = policy.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20, eos_token_id=list(STOPS)
        )
        assert answer.ids == generated[0, len(prompt) :].tolist()
        expected = forward_logprobs(policy, prompt, answer.ids, 1.0)
        torch.testing.assert_close(torch.tensor(answer.logprobs), expected, atol=1e-4, rtol=0)


def test_progress_counts_answers():
    seen = []
    Sampler(model(FAMILIES["gemma1"]), stop_ids=STOPS, pad_id=0).draw(
        prompts(5), names(5), samples=2, max_new_tokens=3, seed=0, batch_rows=4, on_progress=lambda *at: seen.append(at)
    )
    assert seen == [(4, 10), (8, 10), (10, 10)]


def test_no_prompts_no_answers():
    assert Sampler(model(FAMILIES["gemma1"]), stop_ids=STOPS, pad_id=0).draw([], [], max_new_tokens=3, seed=0) == []


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"samples": 0}, "samples=0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"batch_rows": 0}, "batch_rows=0"),
        ({"max_new_tokens": 95}, "'long' of 4 tokens leaves no room for 95 more.*\n.*96 tokens.*\n.*at most 92"),
    ],
)
def test_what_cannot_be_drawn_is_refused(settings, why):
    sampler = Sampler(model(FAMILIES["gemma2"]), stop_ids=STOPS, pad_id=0)
    with pytest.raises(UserError, match=why):
        sampler.draw([[2], [2, 3, 4, 5]], ["short", "long"], **{"max_new_tokens": 5, "seed": 0, **settings})


def test_the_whole_context_can_be_used_and_an_empty_prompt_cannot():
    sampler = Sampler(model(FAMILIES["gemma2"]), stop_ids=(), pad_id=0)
    assert len(sampler.draw([[2, 3]], ["p"], max_new_tokens=94, seed=0)[0].ids) == 94
    with pytest.raises(UserError, match="'empty' is empty"):
        sampler.draw([[]], ["empty"], max_new_tokens=3, seed=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_leftovers_in_memory_do_not_reach_an_answer(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of a padded row is masked, but 0 · NaN is NaN: unwritten slots must hold numbers."""
    sampler = Sampler(model(FAMILIES[family]), stop_ids=STOPS, pad_id=0)
    clean = sampler.draw(prompts(6), names(6), max_new_tokens=8, seed=0)

    def poisoned(*size: object, **options: object) -> torch.Tensor:
        return torch.full(*size, float("nan"), **options)  # type: ignore[arg-type]

    monkeypatch.setattr("alignment.gemma.decode.torch.empty", poisoned)
    assert sampler.draw(prompts(6), names(6), max_new_tokens=8, seed=0) == clean


def test_weights_that_are_not_numbers_are_told() -> None:
    broken = model(FAMILIES["gemma2"])
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match="not numbers"):
        Sampler(broken, stop_ids=STOPS, pad_id=0).draw([[2, 5]], ["a"], max_new_tokens=4, seed=0)
