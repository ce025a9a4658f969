"""A vLLM server without vLLM: the endpoints that TRL's client calls, and a model behind them that draws.

NCCL is replaced at one seam, the engine that TRL's client imports from vLLM: what it would broadcast comes to the stub
as it is, and is in its model once the update is finished. Everything else of TRL's client is its own.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from torch import Tensor
from trl.generation import vllm_client

from alignment.gemma import core
from alignment.sampling.sampler import Sampler

Fault = Callable[["Handler"], None]


class StubVLLM:
    """Holds ``model`` in fp32. ``faults`` by path are used up first, one a request; ``asked`` are the bodies that came.

    ``updates`` are the updates of its weights, by name. ``spoil`` may change a choice of a reply. ``key`` is asked for
    where vLLM asks for one, under ``/v1`` alone.
    """

    def __init__(self, model: core.CausalLM) -> None:
        self.model = model
        self.key: str | None = None
        self.faults: dict[str, deque[Fault]] = {}
        self.asked: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.updates: list[dict[str, Tensor]] = []
        self.groups: list[dict[str, Any]] = []
        self.spoil: Callable[[dict[str, Any]], None] = lambda choice: None
        self.info: dict[str, Any] = {
            "instance_id": "first",
            "model_config": {"logprobs_mode": "processed_logprobs"},
            "weight_transfer_config": {"backend": "nccl"},
        }
        self.lock = Lock()
        self._sent: dict[str, Tensor] = {}
        self._announced: dict[str, tuple[str, list[int]]] = {}
        self._fresh = True
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.stub = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> StubVLLM:
        Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take_the_place_of_vllm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What TRL's client imports where vLLM is installed."""
        engine = SimpleNamespace(trainer_init=self._join, trainer_send_weights=self._receive)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(vllm_client, "is_vllm_available", lambda *_: True)
        monkeypatch.setattr(vllm_client, "_HAS_STATEFUL_TRAINER_ENGINE", False)
        monkeypatch.setattr(vllm_client, "get_ip", lambda: "127.0.0.1", raising=False)
        monkeypatch.setattr(vllm_client, "NCCLWeightTransferEngine", engine, raising=False)
        monkeypatch.setattr(vllm_client, "NCCLTrainerSendWeightsArgs", SimpleNamespace, raising=False)

    def fail(self, path: str, *faults: Fault) -> None:
        """The next requests to ``path`` come to this."""
        self.faults.setdefault(path, deque()).extend(faults)

    def restart(self) -> None:
        """As a supervisor would do it: at the same address, with the weights from its folder."""
        self.info |= {"instance_id": f"{self.info['instance_id']}+"}
        self._fresh = True

    # ── the seam ─────────────────────────────────────────────────────────────────────────────────

    def _join(self, init_info: dict[str, Any]) -> Any:
        self.groups.append(init_info)
        return SimpleNamespace(group=SimpleNamespace(store="store", socket="socket"))

    def _receive(self, iterator: Iterable[tuple[str, Tensor]], trainer_args: Any) -> None:
        assert trainer_args.group.group.store == "store", "the group is closed"
        with self.lock:
            self._sent |= {name: tensor.clone() for name, tensor in iterator}

    # ── the endpoints ────────────────────────────────────────────────────────────────────────────

    def reply(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/v1/completions":
            return self._complete(body)
        if path == "/init_weight_transfer_engine":
            self._fresh = False
        elif path in ("/start_weight_update", "/update_weights", "/finish_weight_update"):
            assert not self._fresh, "no trainer has met this server"
        if path == "/start_weight_update":
            self._sent, self._announced = {}, {}
        elif path == "/update_weights":
            told = body["update_info"]
            rows = zip(told["names"], told["dtype_names"], told["shapes"], strict=True)
            self._announced = {name: (dtype, shape) for name, dtype, shape in rows}
        elif path == "/finish_weight_update":
            self._finish()
        return {
            "/v1/models": {"data": [{"id": "stub"}]},
            "/server_info": {"vllm_config": self.info},
            "/get_world_size": {"world_size": 1},
        }.get(path, {})

    def _finish(self) -> None:
        came = {name: (str(one.dtype).removeprefix("torch."), list(one.shape)) for name, one in self._sent.items()}
        assert list(came.items()) == list(self._announced.items()), "what came is not what was announced"
        missing = self.model.load_state_dict(self._sent, strict=False)
        assert set(missing.missing_keys) <= {"lm_head.weight"}, missing
        assert not missing.unexpected_keys, missing
        self.updates.append(self._sent)

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            self.asked.append(body)
        (prompt,) = body["prompt"]
        # As in vLLM: the n-th answer has the seed + n, and ids end with the stop id.
        numbers = [f"{body['seed'] + number}" for number in range(body["n"])]
        answers = Sampler(self.model, stop_ids=body["stop_token_ids"], pad_id=0).draw(
            [prompt] * body["n"],
            numbers,
            temperature=body["temperature"],
            max_new_tokens=body["max_tokens"],
            seed=0,
        )
        choices = []
        for answer in answers:
            names = [f"token_id:{one}" for one in answer.ids]
            top = [{name: value} for name, value in zip(names, answer.logprobs, strict=True)]
            choice = {
                "prompt_token_ids": list(prompt),
                "token_ids": list(answer.ids),
                "logprobs": {"tokens": names, "token_logprobs": list(answer.logprobs), "top_logprobs": top},
            }
            self.spoil(choice)
            choices.append(choice)
        return {"choices": choices}


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        self._answer(json.loads(self.rfile.read(length)) if length else {})

    def _answer(self, body: dict[str, Any]) -> None:
        stub: StubVLLM = self.server.stub  # type: ignore[attr-defined]
        path = urlsplit(self.path).path
        with stub.lock:
            stub.paths.append(path)
            faults = stub.faults.get(path)
            fault = faults.popleft() if faults else None
        try:
            if fault:
                fault(self)
            elif stub.key and path.startswith("/v1") and self.headers["authorization"] != f"Bearer {stub.key}":
                self.say(401, {"error": "Unauthorized"})
            else:
                self.say(200, stub.reply(path, body))
        except OSError:
            pass  # The client has gone.
        except AssertionError as error:
            self.say(500, {"error": str(error)})

    def say(self, code: int, told: Any) -> None:
        content = json.dumps(told).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def status(code: int, told: str = "no") -> Fault:
    """An error."""
    return lambda handler: handler.say(code, {"error": told})


def gone(handler: Handler) -> None:
    """The connection breaks off without a word."""
    handler.close_connection = True
