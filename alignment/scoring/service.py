"""A scorer as a small HTTP service: a bounded queue in front of one worker that scores together what waits.

=================== ========================================================================================
``POST /score``      ``{"dialogues": [[{"role", "content"}, …], …]}`` → ``{"raw", "reported", "probability"}``
``POST /get_reward`` OpenRLHF's remote reward model: ``{"query": [text], "prompts": [text]}`` → ``{"rewards",
                     "scores"}``, the reported scores and the probabilities
``POST /seen``       ``{"keys": [prompt key, …]}`` → ``{"seen": n}``, how many of them it was trained on
``GET /about``       what is served
``GET /health``      whether it takes requests; needs no token
=================== ========================================================================================

What is refused is told in one sentence, ``{"error": …}``: 400 for what cannot be read, 422 for what cannot be scored,
503 with ``Retry-After`` where the queue is full, too many bytes are held already, a request has waited too long, or the
service is about to stop. What is being scored already is finished, however long that takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from aiohttp import web

from alignment import console
from alignment.chat.tokenizers import Tokenizer
from alignment.chat.types import Messages
from alignment.data import seen
from alignment.errors import UserError
from alignment.scoring.requests import RefusedError, dialogues_of, dialogues_of_texts, keys_of, object_of
from alignment.scoring.scorer import Scorer, Scores

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
OPEN = ("/health",)
"""Paths that need no token."""
HELD = 16
"""Requests of the largest size that are held at once, from before they are read until they are answered."""
RETRY_AFTER = 1
"""Seconds that a request is asked to wait before it comes again."""


@dataclass(frozen=True)
class About:
    """What ``/about`` tells. ``most_dialogues`` and ``most_bytes`` bound one request of a considerate client."""

    name: str
    fingerprint: str
    kind: str
    absolute: bool
    centre: float
    schema: str | None
    most_dialogues: int
    most_bytes: int


class _Job:
    """A request's dialogues, and where its scores are waited for."""

    def __init__(self, dialogues: Sequence[Messages]) -> None:
        self.dialogues = dialogues
        self.taken = asyncio.Event()
        self.scores: asyncio.Future[Scores] = asyncio.get_running_loop().create_future()


class Queue:
    """Requests in the order of their arrival, in front of one thread that scores.

    At most ``room`` dialogues wait. Requests are scored together up to ``batch`` dialogues; a larger one by itself.
    """

    def __init__(self, scorer: Scorer, room: int, batch: int) -> None:
        self.room, self.scored = room, 0
        self.closed = False
        self._scorer, self._batch = scorer, batch
        self._jobs: deque[_Job] = deque()
        self._changed = asyncio.Event()
        self._thread = ThreadPoolExecutor(1)

    @property
    def waiting(self) -> int:
        """Dialogues that nobody works on yet."""
        return sum(len(job.dialogues) for job in self._jobs)

    async def score(self, dialogues: Sequence[Messages], until: float | None = None) -> Scores:
        """Wait for the scores. Whoever is cancelled meanwhile gives his place in the queue back.

        Raises :class:`TimeoutError` where nobody works on them at ``until``, by the loop's clock.
        """
        if self.closed:
            raise RefusedError(503, "the service is about to stop")
        if len(dialogues) > self.room:
            raise RefusedError(
                413, f"a request may hold {self.room:,} dialogues, and this one holds {len(dialogues):,}"
            )
        if self.waiting + len(dialogues) > self.room:
            raise RefusedError(503, f"the queue is full: {self.waiting:,} dialogues wait")
        job = _Job(dialogues)
        self._jobs.append(job)
        self._changed.set()
        try:
            async with asyncio.timeout_at(until):
                await job.taken.wait()
            return await job.scores
        finally:
            if job in self._jobs:
                self._jobs.remove(job)

    async def work(self) -> None:
        """Score what comes, until the queue is closed and empty."""
        while self._jobs or not self.closed:
            if self._jobs:
                await self._score(self._taken())
            else:
                self._changed.clear()
                await self._changed.wait()
        self._thread.shutdown()

    def close(self) -> None:
        """Take no more requests; what waits is still scored."""
        self.closed = True
        self._changed.set()

    def _taken(self) -> list[_Job]:
        """The next requests, as many as make a batch."""
        taken = [self._jobs.popleft()]
        count = len(taken[0].dialogues)
        while self._jobs and count + len(self._jobs[0].dialogues) <= self._batch:
            taken.append(self._jobs.popleft())
            count += len(taken[-1].dialogues)
        for job in taken:
            job.taken.set()
        return taken

    async def _score(self, jobs: Sequence[_Job]) -> None:
        """Scores for each; where one of several cannot be scored, each by itself, so that only that one fails."""
        together = [turns for job in jobs for turns in job.dialogues]
        try:
            scores = await asyncio.get_running_loop().run_in_executor(self._thread, self._scorer.score, together)
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    await self._score([job])
            elif not jobs[0].scores.done():
                jobs[0].scores.set_exception(error)
            return
        start = 0
        for job in jobs:
            end = start + len(job.dialogues)
            if not job.scores.done():
                job.scores.set_result(Scores(*(values[start:end] for values in scores)))
            start = end
        self.scored += len(together)


class Service:
    """The endpoints. ``tokenizer`` reads spelled-out dialogues; without one, there is no ``/get_reward``.

    ``trained_on`` are the numbers of the prompts that the model has seen (``data.seen``). ``timeout``, in seconds, is
    for the arrival of a request and its wait. With a ``token`` every request but ``/health`` must bear it.
    """

    def __init__(
        self,
        queue: Queue,
        about: About,
        *,
        tokenizer: Tokenizer | None,
        trained_on: np.ndarray,
        timeout: float,
        token: str | None,
    ) -> None:
        self.queue, self.about, self.tokenizer = queue, about, tokenizer
        self._trained_on, self._timeout, self._token = trained_on, timeout, token
        self._held = 0

    def app(self) -> web.Application:
        """The application, to be served."""
        app = web.Application(middlewares=[self._guard], client_max_size=self.about.most_bytes)
        app.router.add_get("/health", self._health)
        app.router.add_get("/about", self._about)
        app.router.add_post("/score", self._score)
        app.router.add_post("/seen", self._seen)
        if self.tokenizer is not None:
            app.router.add_post("/get_reward", self._get_reward)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Ask for the token, and tell every failure in one sentence."""
        try:
            if request.path not in OPEN:
                self._check_token(request)
            with self._holding(request):
                return await handler(request)
        except RefusedError as error:
            return _refusal(error.status, error.sentence)
        except TimeoutError:
            return _refusal(503, f"there was no answer within {self._timeout:g} s")
        except web.HTTPException as error:
            return _refusal(error.status, (error.text or error.reason).removeprefix(f"{error.status}: "))
        except UserError as error:
            return _refusal(422, "; ".join(part for part in (error.problem, error.cause) if part))
        except Exception:
            console.console().print_exception()
            return _refusal(500, "the model failed; the log of the server says how")

    def _check_token(self, request: web.Request) -> None:
        if self._token is None:
            return
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, f"Bearer {self._token}".encode()):
            raise RefusedError(401, "a token is needed here: Authorization: Bearer <token>")

    @contextlib.contextmanager
    def _holding(self, request: web.Request) -> Iterator[None]:
        """Count what a request says that it has, in bytes, until it is answered. Refuses it, unread, where that is too
        much beside the others: the queue counts dialogues, and only once they are read."""
        most = self.about.most_bytes
        promised = min(most if request.content_length is None else request.content_length, most)
        size = promised if request.body_exists else 0
        if self._held + size > HELD * most:
            raise RefusedError(503, f"there is no room for another request: {self._held:,} bytes are held already")
        self._held += size
        try:
            yield
        finally:
            self._held -= size

    async def _health(self, request: web.Request) -> web.Response:
        status = "stopping" if self.queue.closed else "ok"
        return _told({"status": status, "waiting": self.queue.waiting, "scored": self.queue.scored})

    async def _about(self, request: web.Request) -> web.Response:
        return _told(asdict(self.about))

    async def _score(self, request: web.Request) -> web.Response:
        until = self._until()
        told = await _body(request, until)
        scores = await self.queue.score(dialogues_of(told), until)
        return _told({**scores._asdict(), "fingerprint": self.about.fingerprint})

    async def _seen(self, request: web.Request) -> web.Response:
        wanted = seen.numbers(keys_of(await _body(request, self._until())))
        known = np.intersect1d(wanted, self._trained_on, assume_unique=True)
        return _told({"seen": len(known), "fingerprint": self.about.fingerprint})

    async def _get_reward(self, request: web.Request) -> web.Response:
        assert self.tokenizer is not None
        until = self._until()
        told = await _body(request, until)
        scores = await self.queue.score(dialogues_of_texts(told, self.tokenizer), until)
        # What OpenRLHF filters by should lie in [0, 1].
        return _told({"rewards": scores.reported, "scores": scores.probability, "extra_logs": {}})

    def _until(self) -> float:
        """When a request that has just begun has waited long enough, by the loop's clock."""
        return asyncio.get_running_loop().time() + self._timeout


async def _body(request: web.Request, until: float) -> dict[str, Any]:
    """What a request says, once all of it has come."""
    async with asyncio.timeout_at(until):
        return object_of(await request.read())


def _told(values: dict[str, Any]) -> web.Response:
    """As JSON, which knows no NaN."""
    return web.Response(text=json.dumps(values, allow_nan=False), content_type="application/json")


def _refusal(status: int, sentence: str) -> web.Response:
    headers = {"Retry-After": str(RETRY_AFTER)} if status == 503 else {}
    headers |= {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return web.json_response({"error": sentence}, status=status, headers=headers)


async def serve(
    service: Service, host: str, port: int, *, stop: asyncio.Event, ready: Callable[[str], None] = lambda _: None
) -> None:
    """Serve until ``stop`` is set; then refuse what is new, finish what waits, and return.

    ``ready`` is told the address, once requests are taken. Raises :class:`UserError` where it cannot be had.
    """
    worker = asyncio.create_task(service.queue.work())
    # A client that has gone gives its place in the queue back.
    runner = web.AppRunner(service.app(), handler_cancellation=True, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise UserError(
                f"host={host} port={port}: cannot listen there",
                cause=str(error.strerror or error),
                remedy="Choose another port; port=0 takes a free one.",
            ) from None
        bound = runner.addresses[0]
        ready(f"http://{f'[{bound[0]}]' if ':' in bound[0] else bound[0]}:{bound[1]}")
        await stop.wait()
    finally:
        service.queue.close()
        await worker
        await runner.cleanup()


def stop_at_signals(stop: asyncio.Event) -> None:
    """Have SIGINT and SIGTERM set ``stop``; a second one waits for nothing."""
    loop = asyncio.get_running_loop()

    def stopping() -> None:
        stop.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping)
