"""What the tests of the drawer on a vLLM server share: five prompts, a policy, a stub that is found as vLLM is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from rl import rl_support as support
from stub_vllm import StubVLLM
from torch import nn

from alignment.chat.render import prompt_ids
from alignment.sampling.drawer import Drawer
from alignment.sampling.noise import streams
from alignment.sampling.sampler import Answer, Sampler
from alignment.sampling.vllm import VLLMDrawer
from alignment.training.policies import Policy

NUMBERS: dict[str, Any] = {"samples": 3, "temperature": 1.5, "max_new_tokens": 9, "seed": 4}
ASKED = [support.question(number) for number in range(5)]
IDS = [prompt_ids(one.messages, support.tokenizer()) for one in ASKED]
NAMES = [one.id for one in ASKED]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubVLLM]:
    with StubVLLM(support.model(seed=9)) as running:
        running.take_the_place_of_vllm(monkeypatch)
        monkeypatch.delenv("VLLM_API_KEY", raising=False)
        monkeypatch.delenv("VLLM_HOST_IP", raising=False)
        # What the drawer sets for itself goes with the test.
        monkeypatch.setenv("VLLM_HOST_IP", "")
        monkeypatch.delenv("VLLM_HOST_IP")
        yield running


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody waits in these tests; the pauses are written down."""
    waited: list[float] = []
    monkeypatch.setattr("alignment.signals.pause", lambda seconds, _: waited.append(seconds))
    return waited


@pytest.fixture
def policy() -> Policy:
    return support.policy(seed=1)


def drawer(stub: StubVLLM, policy: Policy, **changes: Any) -> VLLMDrawer:
    numbers = {"group_port": 51216, "timeout_s": 20.0, "retries": 3, "stop_ids": policy.stop_ids, "device": "cuda"}
    return VLLMDrawer(stub.url, **numbers | changes)  # type: ignore[arg-type]


def drawn(who: Drawer, model: nn.Module, **changes: Any) -> list[Answer]:
    return who.draw(model, IDS, NAMES, **NUMBERS | changes)


def expected(model: nn.Module, policy: Policy, seed: int = 4) -> list[Answer]:
    """What the stub draws where it has the weights of ``model``."""
    found = []
    for place, (ids, key) in enumerate(zip(IDS, streams(seed, NAMES, [0] * len(NAMES)).tolist(), strict=True)):
        some = Sampler(model, stop_ids=policy.stop_ids, pad_id=0).draw(
            [ids] * 3, [f"{key // 4 + number}" for number in range(3)], temperature=1.5, max_new_tokens=9, seed=0
        )
        found += [Answer(place, number, one.ids, one.logprobs, one.finished) for number, one in enumerate(some)]
    return found
