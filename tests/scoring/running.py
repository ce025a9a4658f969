"""A service in a thread of the test, a scorer that can be held up, and a server that says what it is told to say."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np

from alignment.chat.types import Messages
from alignment.errors import UserError
from alignment.scoring import service
from alignment.scoring.scorer import Scores, sigmoid

FINGERPRINT = "f" * 64


def row(said: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "?"}, {"role": "assistant", "content": said}]


class Numbers:
    """The score is the answer's number. ``gate`` holds the worker up; a word in place of a number makes it fail."""

    name, absolute = "numbers", False

    def __init__(self) -> None:
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)
        self.gate.set()
        self.calls: list[int] = []

    def score(self, dialogues: Sequence[Messages]) -> Scores:
        self.entered.release()
        assert self.gate.wait(20)
        self.calls.append(len(dialogues))
        said = [turns[-1].content for turns in dialogues]
        if "long" in said:
            raise UserError(f"numbers: dialogue {said.index('long')} is too long", remedy="Leave it out.")
        raw = [float(one) for one in said]
        return Scores(raw, [value - 1 for value in raw], [sigmoid(value) for value in raw])


class Running:
    """A service in a thread of its own, at a free port."""

    def __init__(self, scorer: Any, *, room: int = 64, batch: int = 8, **more: Any) -> None:
        self.scorer, self.room, self.batch = scorer, room, batch
        self.more = {"tokenizer": None, "timeout": 20.0, "token": None, "trained_on": np.zeros(0, np.uint64)} | more
        self.most_bytes = self.more.pop("most_bytes", 2**16)
        self.most_dialogues = self.more.pop("most_dialogues", batch)
        self.fingerprint = self.more.pop("fingerprint", FINGERPRINT)
        self.address = ""
        self.failed: BaseException | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            self.failed = error
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self.loop, self.stop = asyncio.get_running_loop(), asyncio.Event()
        self.queue = service.Queue(self.scorer, self.room, self.batch)
        about = service.About(
            self.scorer.name,
            self.fingerprint,
            "reward",
            self.scorer.absolute,
            1.0,
            "gemma2",
            self.most_dialogues,
            self.most_bytes,
        )
        served = service.Service(self.queue, about, **self.more)
        await service.serve(served, "127.0.0.1", 0, stop=self.stop, ready=self._told)

    def _told(self, address: str) -> None:
        self.address = address.removeprefix("http://")
        self._ready.set()

    def __enter__(self) -> Running:
        self._thread.start()
        assert self._ready.wait(20)
        if self.failed:
            raise self.failed
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._thread.join(20)
        assert not self._thread.is_alive()
        assert self.failed is None

    def end(self) -> None:
        """Ask it to stop, as a signal does; it may have done so already."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.stop.set)

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Status, JSON and headers. A ``body`` of bytes is sent as it is, None asks with GET."""
        connection = http.client.HTTPConnection(self.address, timeout=20)
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request("GET" if body is None else "POST", path, content, headers)
        response = connection.getresponse()
        found = response.status, json.loads(response.read()), dict(response.headers)
        connection.close()
        return found

    def score(self, *said: str) -> tuple[int, dict[str, Any], dict[str, str]]:
        return self.ask("/score", {"dialogues": [row(one) for one in said]})


def until(true: Callable[[], bool]) -> None:
    """Wait for something that is about to happen."""
    for _ in range(1000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def held(running: Running, pool: ThreadPoolExecutor, *said: str) -> Future[Any]:
    """A request that the worker has begun, and whose end the gate holds up."""
    running.scorer.gate.clear()
    asked = pool.submit(running.score, *said)
    assert running.scorer.entered.acquire(timeout=20)
    return asked


class Stub:
    """A server that gives these replies, one after the other; None closes the connection without one."""

    def __init__(self, *replies: tuple[int, Any] | None, retry_after: str = "0") -> None:
        self.replies, self.retry_after, self.asked = list(replies), retry_after, 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        for reply in self.replies:
            connection, _ = self._socket.accept()
            with connection:
                connection.recv(65536)
                self.asked += 1
                if reply is not None:
                    content = json.dumps(reply[1]).encode()
                    lines = (
                        f"HTTP/1.1 {reply[0]} No",
                        f"Content-Length: {len(content)}",
                        f"Retry-After: {self.retry_after}",
                    )
                    connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + content)
        self._socket.close()
