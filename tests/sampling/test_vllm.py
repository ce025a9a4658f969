"""The drawer on a vLLM server: what it asks, what it reads, what it hands over.

The server is a stub that draws with our own sampler from the weights that it was handed.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rl import rl_support as support
from stub_vllm import StubVLLM
from torch import nn
from vllm_support import IDS, NAMES, drawer, drawn, expected, pauses, policy, stub

from alignment.errors import UserError
from alignment.gemma import core
from alignment.gemma.roles import plain_copy
from alignment.sampling import vllm
from alignment.sampling.drawer import OwnDrawer
from alignment.sampling.noise import streams
from alignment.sampling.served import Server
from alignment.stages import rl
from alignment.training.policies import Policy

__all__ = ["pauses", "policy", "stub"]


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


def test_answers_are_of_the_policy_in_order(stub: StubVLLM, policy: Policy) -> None:
    who = drawer(stub, policy)
    answers = drawn(who, policy.model)
    assert answers == expected(policy.model, policy)
    assert {answer.finished for answer in answers} == {True, False}
    assert all((answer.ids[-1] in policy.stop_ids) == answer.finished for answer in answers)
    assert not who.exact
    assert drawn(who, policy.model, seed=5) != answers


def test_what_is_asked(stub: StubVLLM, policy: Policy) -> None:
    drawn(drawer(stub, policy), policy.model)
    asked = {tuple(body["prompt"][0]): body for body in stub.asked}
    assert sorted(asked) == sorted(map(tuple, IDS)), "ids, each prompt once"
    for ids, key in zip(IDS, streams(4, NAMES, [0] * 5).tolist(), strict=True):
        body = asked[tuple(ids)]
        assert body["seed"] == key // 4 < 2**62
        assert (body["n"], body["max_tokens"], body["temperature"]) == (3, 9, 1.5)
        assert (body["top_p"], body["top_k"], body["min_p"], body["repetition_penalty"]) == (1.0, 0, 0.0, 1.0)
        assert body["stop_token_ids"] == list(policy.stop_ids)
        assert body["ignore_eos"] is True
        assert body["logprobs"] == 0


def test_without_stop_ids_every_answer_has_all_tokens(stub: StubVLLM, policy: Policy) -> None:
    answers = drawn(drawer(stub, policy, stop_ids=()), policy.model)
    assert all(len(answer.ids) == 9 and not answer.finished for answer in answers)


def test_the_token_that_was_drawn_is_found_among_others(stub: StubVLLM, policy: Policy) -> None:
    """A server may add the likeliest token, and then puts it first."""

    def add(choice: dict[str, Any]) -> None:
        for top in choice["logprobs"]["top_logprobs"]:
            top["token_id:0"] = -1e-9

    stub.spoil = add
    assert drawn(drawer(stub, policy), policy.model) == expected(policy.model, policy)


def cut(choice: dict[str, Any]) -> None:
    """As a server that leaves the stop id out."""
    choice["token_ids"].pop()
    for one in choice["logprobs"].values():
        one.pop()


def nan(choice: dict[str, Any]) -> None:
    choice["logprobs"]["token_logprobs"][0] = math.nan
    choice["logprobs"]["top_logprobs"][0] = {}


def fewer(choice: dict[str, Any]) -> None:
    for one in choice["logprobs"].values():
        one.pop()


def more(choice: dict[str, Any]) -> None:
    for one in choice["logprobs"].values():
        one.append(one[-1])


def of_others(choice: dict[str, Any]) -> None:
    choice["token_ids"][0] += 1


def past_the_end(choice: dict[str, Any]) -> None:
    choice["token_ids"][:] = [support.tokenizer().eos_id] * 2
    choice["logprobs"] = {
        "tokens": [f"token_id:{support.tokenizer().eos_id}"] * 2,
        "token_logprobs": [-1.0] * 2,
        "top_logprobs": [{}] * 2,
    }


def another_prompt(choice: dict[str, Any]) -> None:
    choice["prompt_token_ids"].append(1)


def no_logprobs(choice: dict[str, Any]) -> None:
    choice["logprobs"] = None


def no_ids(choice: dict[str, Any]) -> None:
    del choice["token_ids"]


@pytest.mark.parametrize("spoil", [cut, nan, fewer, more, of_others, past_the_end, another_prompt, no_logprobs, no_ids])
def test_nonsense_is_refused_at_once(stub: StubVLLM, policy: Policy, pauses: list[float], spoil: Any) -> None:
    stub.spoil = spoil
    with pytest.raises(UserError, match=stub.url):
        drawn(drawer(stub, policy), policy.model)
    assert not pauses


# ── weights ──────────────────────────────────────────────────────────────────────────────────────


def test_weights_go_over_once_for_each_policy(stub: StubVLLM, policy: Policy) -> None:
    who = drawer(stub, policy)
    drawn(who, policy.model)
    drawn(who, policy.model, seed=8)
    assert len(stub.updates) == 1
    assert support.same(stub.updates[0], support.weights(policy.model))
    with torch.no_grad():
        policy.model.get_parameter("model.layers.1.mlp.up_proj.weight")[3, 5] += 0.5
    assert drawn(who, policy.model) == expected(policy.model, policy)
    assert len(stub.updates) == 2
    assert len(stub.groups) == 1
    # What the server remembers of prompts is thrown away after each update, before anything is drawn.
    kept = [path for path in stub.paths if path in ("/finish_weight_update", "/reset_prefix_cache", "/v1/completions")]
    assert [path for path in kept if path != "/v1/completions"] == ["/finish_weight_update", "/reset_prefix_cache"] * 2
    assert kept[:3] == ["/finish_weight_update", "/reset_prefix_cache", "/v1/completions"]


def test_every_step_of_an_optimiser_is_seen(policy: Policy) -> None:
    """Also one that moves few weights by one bit, and one into the opposite direction."""
    before = vllm._marks(policy.model)
    weight = policy.model.get_parameter("model.norm.weight")
    with torch.no_grad():
        weight[0] = torch.nextafter(weight[0], torch.tensor(9.0))
    assert vllm._marks(policy.model) != before
    half = core.causal_lm(support.model()).bfloat16()
    before = vllm._marks(half)
    with torch.no_grad():
        half.get_parameter("model.norm.weight")[2] *= 1.01
    assert vllm._marks(half) != before


def test_adapters_are_multiplied_out(stub: StubVLLM) -> None:
    policy = support.policy(seed=1, lora=2, dropout=0.5)
    for name, weight in policy.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, 0, 0.3)
    before = support.weights(policy.model)
    plain = plain_copy(policy.model)
    assert drawn(drawer(stub, policy), policy.model) == expected(plain, policy)
    assert support.same(stub.updates[0], support.weights(plain))
    assert support.apart(stub.updates[0], support.weights(support.model(seed=1))) > 0.1
    assert support.same(before, support.weights(policy.model)), "what is trained is not touched"


# ── settings ─────────────────────────────────────────────────────────────────────────────────────


def test_the_stage_opens_what_is_asked_for(stub: StubVLLM, policy: Policy) -> None:
    def opened(stop: bool, device: str, **server: Any) -> Any:
        numbers = Server.parse(support.read("stage", "rl")["server"] | server)
        settings = SimpleNamespace(server=numbers, drawing=SimpleNamespace(stop=stop))
        return rl._drawer(settings, policy, SimpleNamespace(device=device))  # type: ignore[arg-type]

    assert opened(True, "cpu") == OwnDrawer(policy.stop_ids, policy.tokenizer.pad_id)
    assert opened(False, "cpu").stop_ids == ()
    with pytest.raises(UserError, match="on the cpu"):
        opened(True, "cpu", url=stub.url)
    who = opened(True, "cuda", url=stub.url, group_port=51301, timeout_s=7.0, retries=2)
    assert (who.url, who.group_port, who.timeout_s, who.retries) == (stub.url, 51301, 7.0, 2)
    assert who.stop_ids == policy.stop_ids
    assert len(stub.groups) == 1, "found before anything is drawn"
    assert opened(False, "cuda", url=stub.url).stop_ids == ()


@pytest.mark.parametrize("url", [None, "http://127.0.0.1:8000", "http://node-7.local:80", "http://[::1]:8000"])
def test_addresses(url: str | None) -> None:
    assert Server.parse({"url": url, "group_port": 51216, "timeout_s": 600, "retries": 8}).url == url


@pytest.mark.parametrize(
    ("url", "said"),
    [
        *((url, "url=") for url in ("127.0.0.1:8000", "http://host", "https://host:1", "")),
        ("http://me:secret@host:80", "password"),
    ],
)
def test_what_is_no_address(url: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Server.parse({"url": url, "group_port": 51216, "timeout_s": 600, "retries": 8})
