"""The drawer on a vLLM server: servers that will not do, servers that go, several processes, and a real server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from rl import rl_support as support
from stub_vllm import StubVLLM, gone, status
from torch import nn
from vllm_support import IDS, NAMES, NUMBERS, drawer, drawn, expected, pauses, policy, stub

from alignment.errors import UserError
from alignment.gemma import core
from alignment.gemma.presets import Shape, TokenIds
from alignment.gemma.roles import multiplied_out
from alignment.rl import loop, records
from alignment.sampling import vllm
from alignment.sampling.sampler import Answer
from alignment.sampling.vllm import VLLMDrawer
from alignment.training.policies import Policy, save_policy

__all__ = ["pauses", "policy", "stub"]


# ── servers that will not do, and servers that go ────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ({"model_config": {"logprobs_mode": "raw_logprobs"}}, "--logprobs-mode raw_logprobs"),
        ({"weight_transfer_config": None}, "takes no weights"),
        ({"model_config": {}}, "no vLLM server"),
    ],
)
def test_servers_that_will_not_do(
    stub: StubVLLM, policy: Policy, pauses: list[float], info: dict[str, Any], said: str
) -> None:
    stub.info |= info
    with pytest.raises(UserError, match=said) as refused:
        drawer(stub, policy).open()
    assert "vllm serve" in refused.value.remedy
    assert not pauses
    assert not stub.groups


def test_a_server_without_its_development_endpoints(stub: StubVLLM, policy: Policy, pauses: list[float]) -> None:
    stub.fail("/server_info", status(404, "Not Found"))
    with pytest.raises(UserError, match=r"/server_info.*404") as refused:
        drawer(stub, policy).open()
    assert "VLLM_SERVER_DEV_MODE=1" in refused.value.remedy
    assert not pauses


def test_without_vllm_or_a_gpu(stub: StubVLLM, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="on the cpu"):
        drawer(stub, policy, device="cpu").open()
    monkeypatch.setattr(vllm.requests.Session, "get", lambda *_: None)
    monkeypatch.setattr("trl.generation.vllm_client.is_vllm_available", lambda *_: False)
    with pytest.raises(UserError, match="vLLM is not installed") as refused:
        drawer(stub, policy).open()
    assert "alignment[vllm]" in refused.value.remedy


def test_weights_of_a_server_on_this_machine_stay_on_it(stub: StubVLLM, policy: Policy) -> None:
    drawer(stub, policy, group_port=51300).open()
    assert os.environ["VLLM_HOST_IP"] == "127.0.0.1"
    assert (stub.groups[0]["master_port"], stub.groups[0]["world_size"]) == (51300, 2)


@pytest.mark.parametrize(
    "path", ["/health", "/v1/completions", "/update_weights", "/start_weight_update", "/reset_prefix_cache"]
)
@pytest.mark.parametrize("fault", [gone, status(503, "loading")])
def test_a_draw_is_begun_anew_and_whole(
    stub: StubVLLM, policy: Policy, pauses: list[float], path: str, fault: Any
) -> None:
    stub.fail(path, fault)
    assert drawn(drawer(stub, policy), policy.model) == expected(policy.model, policy)
    assert pauses == [1.0]
    assert len(stub.groups) == (1 if path == "/health" else 2), "connected anew"
    behind = len(stub.paths) - stub.paths[::-1].index("/finish_weight_update")
    assert stub.paths[behind:].count("/v1/completions") == len(IDS), "all prompts again, behind the weights"


def test_a_server_that_is_gone_for_good(stub: StubVLLM, policy: Policy, pauses: list[float]) -> None:
    stub.fail("/v1/completions", *[gone] * 100)
    with pytest.raises(UserError, match="no answers in 9 attempts") as refused:
        drawn(drawer(stub, policy, retries=8), policy.model)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert "last checkpoint" in refused.value.remedy


def test_a_server_that_says_nothing(stub: StubVLLM, policy: Policy) -> None:
    real = time.sleep
    stub.fail("/v1/completions", lambda handler: real(3))
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"1 attempt\n.*timed? ?out"):
        drawn(drawer(stub, policy, retries=0, timeout_s=0.3), policy.model)
    assert time.monotonic() - begun < 2.5


def test_a_refusal_is_not_repeated(stub: StubVLLM, policy: Policy, pauses: list[float]) -> None:
    stub.fail("/v1/completions", status(400, "the model's context is 8 tokens"))
    with pytest.raises(UserError, match="context is 8 tokens"):
        drawn(drawer(stub, policy), policy.model)
    assert not pauses


def test_a_server_with_a_key_is_shown_it(
    stub: StubVLLM, policy: Policy, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.key = "key-of-a-test-7a6b5c4d"
    with pytest.raises(UserError, match=r"/v1/models: status 401") as refused:
        drawer(stub, policy).open()
    assert "VLLM_API_KEY" in refused.value.remedy
    monkeypatch.setenv("VLLM_API_KEY", stub.key)
    assert drawn(drawer(stub, policy), policy.model) == expected(policy.model, policy)
    assert not pauses


def test_the_key_is_told_nowhere(
    stub: StubVLLM,
    policy: Policy,
    pauses: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not where the server repeats it, nor where it cannot stand in a request."""
    key = "key-of-a-test-7a6b5c4d"
    monkeypatch.setenv("VLLM_API_KEY", key)
    stub.fail("/v1/models", status(503, f"not yet, Bearer {key}"), status(400, f"no: {key}"))
    with pytest.raises(UserError, match="status 400") as refused:
        drawer(stub, policy).open()
    assert pauses == [1.0]
    monkeypatch.setenv("VLLM_API_KEY", f"{key}\n{key}")
    with pytest.raises(UserError, match="VLLM_API_KEY holds what no key can hold") as impossible:
        drawer(stub, policy).open()
    said = capsys.readouterr()
    assert "not yet" in said.out + said.err
    assert key not in said.out + said.err + str(refused.value) + str(impossible.value)


def test_a_server_that_was_restarted_gets_the_weights_again(
    stub: StubVLLM, policy: Policy, pauses: list[float]
) -> None:
    who = drawer(stub, policy)
    first = drawn(who, policy.model)
    stub.restart()
    stub.model.load_state_dict(support.model(seed=9).state_dict())
    assert drawn(who, policy.model) == first
    assert (len(stub.updates), len(stub.groups)) == (2, 2)
    assert not pauses


# ── in the loop ──────────────────────────────────────────────────────────────────────────────────


def begun(out: Path, stub: StubVLLM, **changes: Any) -> support.Made:
    run = support.made(out, {"drawing.largest_weight": 1.5}, lora=2)
    who = drawer(stub, run.course.policy, **changes)
    return support.made(out, {"drawing.largest_weight": 1.5}, lora=2, drawer=who)


def test_the_loop_learns_from_a_server(stub: StubVLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step is drawn by the weights of that step, and weighed against what drew."""
    seen: list[tuple[bool, float]] = []
    targets = loop.targets

    def look(episodes: Any, *args: Any, **more: Any) -> Any:
        weights_BT, mask_BT = episodes.weights_BT, episodes.mask_BT
        assert float(weights_BT.max()) <= 1.5
        now = dict(multiplied_out(run.learner.roles.policy))  # type: ignore[arg-type]
        seen.append((support.same(now, stub.updates[-1]), float(weights_BT[mask_BT].sub(1).abs().max())))
        return targets(episodes, *args, **more)

    monkeypatch.setattr(loop, "targets", look)
    run = begun(tmp_path, stub)
    run.go()
    assert [same for same, _ in seen] == [True] * 4
    assert max(apart for _, apart in seen) < 1e-4, "this server computes what the policy does"
    assert len(stub.updates) == 4


def test_a_run_goes_on_from_its_checkpoint_when_the_server_is_back(
    stub: StubVLLM, tmp_path: Path, pauses: list[float]
) -> None:
    run = begun(tmp_path, stub)
    real = run.course.drawer.draw
    calls: list[int] = []

    def lost(*args: Any, **more: Any) -> list[Answer]:
        calls.append(1)
        if len(calls) == 4:
            stub.fail("/v1/completions", *[gone] * 100)
        return real(*args, **more)

    run.course.drawer.draw = lost  # type: ignore[method-assign]
    with pytest.raises(UserError, match="no answers in 4 attempts"):
        run.go()
    stub.faults.clear()
    again = begun(tmp_path, stub)
    assert again.go().step == 4
    assert len(calls) == 4
    steps = [row["step"] for row in records.read(tmp_path / "metrics.jsonl") if "score/mean" in row]
    assert steps == [1, 2, 3, 4]


# ── several processes ────────────────────────────────────────────────────────────────────────────


def test_the_main_process_asks_for_all(stub: StubVLLM, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, one behind the other here: each has the answers to its own prompts."""
    shares: list[list[Any]] = []
    kept: list[Any] = []
    who = drawer(stub, policy)
    monkeypatch.setattr(vllm, "_of_all", lambda asks: shares.append(asks) or [asks])
    for some in (slice(0, 2), slice(2, 5)):
        who.draw(policy.model, IDS[some], NAMES[some], **NUMBERS)
    stub.asked.clear()
    monkeypatch.setattr(vllm, "_of_all", lambda asks: shares)
    monkeypatch.setattr(vllm, "_from_main", lambda told: kept.append(told) or kept[0])
    whole, found = expected(policy.model, policy), []
    for rank, some in enumerate((slice(0, 2), slice(2, 5))):
        monkeypatch.setattr(vllm, "_rank", lambda rank=rank: rank)
        monkeypatch.setenv("RANK", str(rank))
        found.append(who.draw(policy.model, IDS[some], NAMES[some], **NUMBERS))
    assert len(stub.asked) == len(IDS), "the second asks nobody"
    assert [(one.ids, one.logprobs) for one in found[0] + found[1]] == [(one.ids, one.logprobs) for one in whole]
    assert [one.prompt for one in found[1]] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


TWO = """
import sys
import torch
from torch import nn
from alignment.errors import UserError
from alignment.sampling.vllm import VLLMDrawer, _Drawn

rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
who = VLLMDrawer("http://127.0.0.1:1", group_port=1, timeout_s=1, retries=0, stop_ids=(), device="cuda")

def rollout(model, asks, samples, temperature, max_new_tokens):
    assert rank == 0
    if asks[0].ids == [9]:
        raise UserError("gone", remedy="start it")
    return [[_Drawn(ask.ids, [float(number)], True) for number in range(samples)] for ask in asks]

def draw(ids):
    names = [str(one) for one in ids]
    return who.draw(nn.Linear(1, 1), ids, names, samples=2, temperature=1.0, max_new_tokens=1, seed=0)

who._rollout = rollout
mine = ([[7]], [[1], [2]])[rank]
found = [(one.prompt, one.sample, one.ids) for one in draw(mine)]
assert found == [(place, sample, ids) for place, ids in enumerate(mine) for sample in range(2)], found
try:
    draw([[9]] if rank == 0 else [[1]])
except UserError as error:
    assert (error.problem, error.remedy) == ("gone", "start it")
else:
    raise AssertionError("no error")
"""


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """Objects go between processes as they should; an error of the main one ends both."""
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(rank), str(tmp_path / "meet")], env=os.environ | {"RANK": str(rank)}
        )
        for rank in range(2)
    ]
    assert [one.wait(60) for one in both] == [0, 0]


# ── a real one ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.gpu
def test_a_real_server(tmp_path: Path) -> None:
    """Its log-probabilities are near those of the policy that it was handed, and far from those that it began with."""
    if find_spec("vllm") is None:
        pytest.skip("vllm is not installed")
    if torch.cuda.device_count() < 2:
        pytest.skip("NCCL wants a GPU for the trainer and another one for the server")
    shape = Shape("gemma2", 128, 2, 256, 2, 1, head_dim=64, query_scale=64, context=256, window=64)
    built = [core.build(shape, support.tokenizer().vocab_size, TokenIds(), seed).cuda() for seed in (0, 1)]
    for model in built:
        for weight in model.parameters():
            nn.init.normal_(weight, 0, 0.1)
    start, policy = (Policy(model, support.tokenizer(), "gemma2") for model in built)
    save_policy(start, tmp_path / "start")
    port = 8765
    serve = (
        f"vllm serve {tmp_path / 'start'} --host 127.0.0.1 --port {port} --gpu-memory-utilization 0.2 --enforce-eager"
    )
    flags = ["--generation-config", "vllm", "--logprobs-mode", "processed_logprobs"]
    flags += ["--weight-transfer-config", '{"backend": "nccl"}']
    environment = os.environ | {"VLLM_SERVER_DEV_MODE": "1", "CUDA_VISIBLE_DEVICES": "1"}
    with subprocess.Popen([*serve.split(), *flags.split(), '{"backend": "nccl"}'], env=environment) as server:
        try:
            who = VLLMDrawer(
                "http://127.0.0.1:8765",
                group_port=51216,
                timeout_s=300,
                retries=12,
                stop_ids=policy.stop_ids,
                device="cuda",
            )
            who.open()
            answers = drawn(who, policy.model)
            who.close()
        finally:
            server.terminate()
    assert all((answer.ids[-1] in policy.stop_ids) == answer.finished for answer in answers)
    assert apart(policy.model, answers) < 0.05
    assert apart(start.model, answers) > 0.2


@torch.no_grad()
def apart(model: nn.Module, answers: list[Answer]) -> float:
    """How far the log-probabilities of the answers lie from the model's own, in nats a token."""
    found: list[float] = []
    for answer in answers:
        prompt = IDS[answer.prompt]
        logits = model(torch.tensor([prompt + answer.ids], device="cuda")).logits[0, len(prompt) - 1 : -1].float()
        own = (logits / NUMBERS["temperature"]).log_softmax(-1)
        found += [abs(float(own[step, one]) - answer.logprobs[step]) for step, one in enumerate(answer.ids)]
    return sum(found) / len(found)
