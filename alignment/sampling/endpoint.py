"""A model behind an OpenAI-compatible server as a respondent: bounded in tokens, and asked for no answer twice.

Where the server is and the key to it come from the environment (``OPENAI_BASE_URL``, ``OPENAI_API_KEY``). The key
is written nowhere. Every reply is kept in a journal as soon as it is there, so that a run that was stopped, by
whatever, pays for none of them again; asked to stop (``signals.py``), it does so while it waits.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Event, Lock
from time import time
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

from alignment import files
from alignment.chat.types import Messages
from alignment.errors import UserError
from alignment.sampling.asking import ask_all
from alignment.sampling.decoding import Decoding, Reply
from alignment.sampling.journal import Journal, Told
from alignment.settings import Settings, execution

BASE_URL, KEY = "OPENAI_BASE_URL", "OPENAI_API_KEY"
WORTH_RETRYING = (408, 409, 429)
"""Statuses below 500 after which the same request may succeed: timeout, conflict, too many requests."""
LONGEST_BACK_OFF = 60.0
"""Seconds between two attempts at most, where the server does not say how long to wait."""
LONGEST_OBEYED = 600.0
"""Seconds that are waited at most where it does."""
LONG_KEY = 16
"""Characters from which on a key cannot stand in an answer by chance, as the word for a server of one's own may."""
SHOWN = 300
"""Characters of a server's message that an error repeats."""
NO_CHOICE = "a reply without a choice"

Answer = TypeVar("Answer")


class EndpointSettings(Settings):
    """How a server is asked. Nothing here changes an answer."""

    concurrency: int = execution("requests under way at the same time", ge=1)
    max_spend: int | None = execution(
        "tokens of prompts and answers after which no request is started; those under way are finished; null: no bound",
        ge=1,
    )
    timeout: float = execution("seconds without a byte from the server after which a request is given up", gt=0)
    retries: int = execution("further attempts at a request that failed or gave nonsense", ge=0)
    back_off: float = execution("seconds before the first of them; twice as long before each next one", gt=0)


class Ask(NamedTuple):
    """One request. ``digest`` names its answer in the journal, ``key`` is the row's name.

    ``trained`` says which ids of a prompt are asked about, where its answer tells of the prompt itself.
    """

    key: str
    body: dict[str, Any]
    digest: str
    trained: tuple[bool, ...] = ()


class _UnusableError(Exception):
    """An attempt that failed, and may not the next time. ``after``: seconds that the server asks to wait."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class Server(ABC, Generic[Answer]):
    """One model of one server, asked for answers of one kind: again after a fault, and no further than a bound.

    ``spent`` counts the tokens of prompts and answers, over all starts. ``kinds`` are the values of an answer in the
    journal, by name, the first of them one that no answer of another kind has.
    """

    kinds: ClassVar[Mapping[str, type]]

    def __init__(
        self, model: str, *, base_url: str, api_key: str, settings: EndpointSettings, journal: Path | None
    ) -> None:
        self.name, self.model, self.settings = f"endpoint:{model}", model, settings
        self._client, self._secret = _client(base_url, api_key, settings.timeout), api_key
        self._journal = Journal(journal, self.kinds) if journal else None
        self._lock = Lock()
        self.spent = self._journal.spent if self._journal else 0

    @classmethod
    def from_environment(cls, model: str, journal: Path | None, settings: EndpointSettings, **more: Any) -> Self:
        """The server that the environment names; ``more`` is what its class takes besides.

        Raises :class:`UserError` where the environment names none.
        """
        base_url, api_key = (os.environ.get(name, "").strip() for name in (BASE_URL, KEY))
        if not base_url.startswith(("http://", "https://")):
            raise UserError(
                f"endpoint:{model}: {BASE_URL} {'is no address' if base_url else 'is not set'}",
                cause="It says which server answers, so that no prompt leaves for a server that nobody named.",
                remedy=f"For example `export {BASE_URL}=https://api.openai.com/v1` or http://localhost:8000/v1.",
            )
        if not api_key or not all("!" <= character <= "~" for character in api_key):
            raise UserError(
                f"endpoint:{model}: {KEY} {'holds what no key can hold' if api_key else 'is not set'}",
                remedy=f"`export {KEY}=…`; a server of your own that wants no key takes any word.",
            )
        return cls(model, base_url=base_url, api_key=api_key, settings=settings, journal=journal, **more)

    @abstractmethod
    def _send(self, body: dict[str, Any]) -> bytes:
        """What the server answers; whoever calls sees to the client's errors."""

    @abstractmethod
    def _read(self, ask: Ask, content: bytes) -> tuple[int, Answer | str | UserError]:
        """The tokens that an answer has cost, and the answer; or why it is of no use.

        That is an error where asking again would not help.
        """

    @abstractmethod
    def _line(self, answer: Answer) -> Told:
        """An answer as the journal keeps it."""

    @abstractmethod
    def _answered(self, ask: Ask, line: Told) -> Answer:
        """An answer from the journal."""

    def _mend(self, told: str) -> str:
        """What to do where the server refuses a request, and says why."""
        return "mend that"

    def _all(self, asks: Sequence[Ask], on_progress: Callable[[int], None] | None) -> list[Answer]:
        """The answers, in order; what is asked twice, or stands in the journal, is no request."""
        wanted = Counter(ask.digest for ask in asks)
        by_digest = {ask.digest: ask for ask in asks}
        kept = self._journal.answers(wanted) if self._journal else {}
        found = {digest: self._answered(by_digest[digest], line) for digest, line in kept.items()}
        done = sum(wanted[digest] for digest in found)
        if on_progress and done:
            on_progress(done)

        def arrived(ask: Ask, answer: Answer) -> None:
            nonlocal done
            found[ask.digest] = answer
            done += wanted[ask.digest]
            if on_progress:
                on_progress(done)

        stop = Event()
        ask_all(
            [ask for digest, ask in by_digest.items() if digest not in found],
            partial(self._answer, stop=stop),
            arrived,
            at_once=self.settings.concurrency,
            stop=stop,
            where=lambda left: f"with {left:,} answers of {self.name} to come",
        )
        return [found[ask.digest] for ask in asks]

    def _answer(self, ask: Ask, stop: Event) -> Answer:
        """One answer, in as many attempts as are allowed. Runs in a thread."""
        for attempt in range(1, self.settings.retries + 2):
            self._check_spent()
            try:
                return self._attempt(ask)
            except _UnusableError as error:
                problem = error
            pause = self._pause(attempt, problem.after)
            if attempt > self.settings.retries or pause > LONGEST_OBEYED or stop.wait(pause):
                break
        told = f"{problem} (it asks to wait {pause:,.0f} s)" if pause > LONGEST_OBEYED else str(problem)
        raise UserError(
            f"{ask.key}: {self.name} gave no usable answer in {attempt} attempt{'s' if attempt > 1 else ''}",
            cause=f"The last time: {told}",
            remedy=self._kept("start the same command again when the server answers")
            + " endpoint.retries, endpoint.timeout and endpoint.concurrency say how it is asked.",
        )

    def _attempt(self, ask: Ask) -> Answer:
        import openai

        try:
            content = self._send(ask.body)
        except openai.APIStatusError as error:
            told = f"status {error.status_code}: {self._message(error)}"
            if error.status_code in WORTH_RETRYING or error.status_code >= 500:
                raise _UnusableError(told, _retry_after(error.response.headers)) from None
            raise UserError(
                f"{ask.key}: {self.name} refuses the request",
                cause=f"The server says, {told}",
                remedy=self._kept(f"{self._mend(told)} and start the same command again"),
            ) from None
        except openai.APIConnectionError as error:
            raise _UnusableError(self._plain(f"{error} {error.__cause__ or ''}")) from None
        spent, answer = self._read(ask, content)
        line = None if isinstance(answer, str | UserError) else self._line(answer)
        with self._lock:
            self.spent += spent
            if self._journal:
                self._journal.add(ask.digest, line, spent)
        if isinstance(answer, str):
            raise _UnusableError(answer)
        if isinstance(answer, UserError):
            raise answer
        return answer

    def _pause(self, attempt: int, after: float | None) -> float:
        """Seconds after an attempt (from 1): what the server says, or longer each time, never all at once."""
        if after is not None:
            return after
        return min(LONGEST_BACK_OFF, self.settings.back_off * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)

    def _check_spent(self) -> None:
        bound = self.settings.max_spend
        with self._lock:
            spent = self.spent
        if bound is not None and spent >= bound:
            raise UserError(
                f"{self.name}: {spent:,} tokens are spent, and endpoint.max_spend={bound} allows no more",
                cause="Tokens of prompts and answers are counted, as the server reports them, over all starts.",
                remedy=self._kept("raise endpoint.max_spend and start the same command again"),
            )

    def _kept(self, what: str) -> str:
        """The remedy ``what``, with the news that nothing has to be paid for twice."""
        if self._journal:
            return f"The answers so far are kept: {what}; only the rest is asked for."
        return f"{what[0].upper()}{what[1:]}."

    def _message(self, error: Any) -> str:
        """A server's own message."""
        body = error.body
        message = body.get("message") if isinstance(body, dict) else None
        return self._plain(message if isinstance(message, str) else error.response.text) or "no message"

    def _plain(self, text: str) -> str:
        """One line, not long, without the key, which some servers repeat."""
        line = " ".join(text.replace(self._secret, "…").split())
        return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"


class Endpoint(Server[Reply]):
    """Has a model answer conversations."""

    kinds: ClassVar = {"text": str, "tokens": int, "finished": bool}

    def reply(
        self,
        prompts: Sequence[Messages],
        keys: Sequence[str],
        decoding: Decoding,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Reply]]:
        """As the protocol says; each sample is a request of its own, with its own seed.

        Whether a seed is honoured is the server's affair: what is in the journal stays the same in any case.
        Raises :class:`UserError` where the server refuses a request, gives no usable answer in all attempts, or
        ``max_spend`` is reached.
        """
        asks = [
            self._ask(turns, key, sample, decoding)
            for turns, key in zip(prompts, keys, strict=True)
            for sample in range(decoding.samples)
        ]
        replies = iter(self._all(asks, on_progress))
        return [list(islice(replies, decoding.samples)) for _ in prompts]

    def _ask(self, turns: Messages, key: str, sample: int, decoding: Decoding) -> Ask:
        seed = hashlib.sha256(f"{decoding.seed}\0{key}\0{sample}".encode()).digest()
        body = {
            "model": self.model,
            "messages": [{"role": turn.role, "content": turn.content} for turn in turns],
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "max_tokens": decoding.max_new_tokens,
            # Servers differ in how wide a seed they take; all take 31 bits.
            "seed": int.from_bytes(seed[:4]) >> 1,
        }
        return Ask(key, body, files.digest_json([body, key, sample, decoding.seed])[:32])

    def _send(self, body: dict[str, Any]) -> bytes:
        return self._client.chat.completions.with_raw_response.create(**body).content

    def _read(self, ask: Ask, content: bytes) -> tuple[int, Reply | str | UserError]:
        spent, reply = read_completion(content)
        if isinstance(reply, Reply) and len(self._secret) >= LONG_KEY and self._secret in reply.text:
            return spent, "an answer that repeats the key, which is to be written nowhere"
        return spent, reply

    def _line(self, answer: Reply) -> Told:
        return {"text": answer.text, "tokens": answer.tokens, "finished": answer.finished}

    def _answered(self, ask: Ask, line: Told) -> Reply:
        return Reply(**line)


def read_completion(content: bytes) -> tuple[int, Reply | str]:
    """The tokens that a chat completion has cost, and its first choice, or why it is of no use.

    A text that the server held back (``content_filter``) is an empty answer that did not finish.
    """
    (prompt, tokens), choice = read_choice(content)
    spent = prompt + tokens
    if isinstance(choice, str):
        return spent, choice
    message = choice.get("message")
    if not isinstance(message, dict):
        return spent, NO_CHOICE
    text, reason = message.get("content"), choice.get("finish_reason")
    if text is None and reason == "content_filter":
        text = ""
    if not isinstance(text, str) or not _is_unicode(text):
        return spent, "a reply whose content is not text"
    return spent, Reply(text, tokens, reason == "stop")


def read_choice(content: bytes) -> tuple[tuple[int, int], dict[str, Any] | str]:
    """The tokens of prompt and answer that a completion has cost, and its first choice, or why there is none."""
    try:
        told = json.loads(content)
    except (ValueError, RecursionError):
        return (0, 0), "a reply that is not JSON"
    usage = told.get("usage") if isinstance(told, dict) else None
    prompt, tokens = (_count(usage, name) for name in ("prompt_tokens", "completion_tokens"))
    if prompt is None or tokens is None:
        return (0, 0), "a reply that does not say how many tokens it cost (`usage`)"
    choices = told["choices"] if isinstance(told.get("choices"), list) else []
    choice = choices[0] if choices and isinstance(choices[0], dict) else NO_CHOICE
    return (prompt, tokens), choice


def _client(base_url: str, api_key: str, timeout: float) -> Any:
    try:
        import openai
    except ImportError:
        raise UserError(
            "endpoint: the package `openai` is not installed", remedy='`pip install "alignment[data]"` brings it.'
        ) from None
    # Its own retries are off: they neither stop when another request has failed for good nor know of nonsense.
    return openai.OpenAI(base_url=base_url, api_key=api_key, timeout=timeout, max_retries=0)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a response asks to wait, by ``Retry-After`` in either of its two forms."""
    told = headers.get("retry-after", "")
    try:
        return max(0.0, float(told))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(told).timestamp() - time())
    except ValueError:
        return None


def _count(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int and value >= 0 else None


def _is_unicode(text: str) -> bool:
    """JSON can spell half of a surrogate pair, which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
