"""An OpenAI-compatible server on this machine for tests: it counts, answers by a function, and fails as it is told."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

import pytest

KEY = "sk-local-7f3a9c1e5b"
PROMPT_TOKENS, ANSWER_TOKENS = 7, 5

Fault = Callable[["Handler"], None]


def completion(text: Any, finish_reason: str = "stop") -> dict[str, Any]:
    """A reply as such servers give it."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "local",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason},
        ],
        "usage": {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": ANSWER_TOKENS,
            "total_tokens": PROMPT_TOKENS + ANSWER_TOKENS,
        },
    }


def echo(body: dict[str, Any]) -> str:
    """The last message and the seed, so that every sample differs."""
    return f"{body['messages'][-1]['content']} {body['seed']}"


class LocalServer:
    """``requests`` are the bodies that came; ``faults`` are used up first, one a request;
    None among them is an answer. ``complete`` answers requests for plain completions, where there are such."""

    def __init__(
        self,
        answer: Callable[[dict[str, Any]], str] = echo,
        complete: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        self.answer, self.complete = answer, complete
        self.faults: deque[Fault | None] = deque()
        self.always: Fault | None = None
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.at_once = self.most_at_once = 0
        self.seconds = 0.0
        self.lock = Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.local = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> LocalServer:
        Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def name_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put address and key into the environment."""
        monkeypatch.setenv("OPENAI_BASE_URL", self.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        local: LocalServer = self.server.local  # type: ignore[attr-defined]
        self.body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with local.lock:
            local.requests.append(self.body)
            local.keys.add(self.headers["authorization"])
            fault = local.faults.popleft() if local.faults else local.always
            local.at_once += 1
            local.most_at_once = max(local.most_at_once, local.at_once)
        try:
            plain = self.path == "/v1/completions" and local.complete
            if self.path != "/v1/chat/completions" and not plain:
                status(404, "no such path")(self)
            elif fault:
                fault(self)
            else:
                time.sleep(local.seconds)
                self.say(200, json.dumps(plain(self.body) if plain else completion(local.answer(self.body))).encode())
        except OSError:
            pass  # The client has gone.
        finally:
            with local.lock:
                local.at_once -= 1

    def say(self, code: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def status(code: int, message: str = "no", **headers: str) -> Fault:
    """An error with the message that OpenAI's servers give."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.say(code, json.dumps({"error": {"message": message}}).encode(), named)


def content(told: Any) -> Fault:
    """A reply of status 200 that is exactly this: bytes, or a value as JSON."""
    return lambda handler: handler.say(200, told if isinstance(told, bytes) else json.dumps(told).encode())


def slow(seconds: float) -> Fault:
    """No answer for so long."""
    return lambda handler: time.sleep(seconds)


def dying(handler: Handler) -> None:
    """Half of a reply, and the connection is gone."""
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True
