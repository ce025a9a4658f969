"""A reward model that ``stage=serve`` serves, as a scorer, and as a reward function for TRL's trainers.

    from alignment.scoring.remote import trl_reward
    GRPOTrainer(model, reward_funcs=trl_reward("127.0.0.1:8400"), …)

Where the server wants a token, it is read from the environment (``ALIGNMENT_SERVE_TOKEN``).
"""

from __future__ import annotations

import http.client
import json
import math
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit

from alignment import signals
from alignment.chat.types import Message, Messages
from alignment.errors import UserError
from alignment.scoring.scorer import Scores

TOKEN = "ALIGNMENT_SERVE_TOKEN"
LONGEST_REPLY = 1 << 28
"""Bytes, 256 MiB; three numbers a dialogue take far less."""
LONGEST_WAIT = 30.0
"""Seconds between two attempts at most, whatever the server asks for."""
UNAVAILABLE = (502, 503, 504)
"""Statuses after which the same request may succeed."""
TOLD: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "fingerprint": str,
    "absolute": bool,
    "most_dialogues": int,
    "most_bytes": int,
}
"""What a server must say of itself, beside what is for people."""


class _UnavailableError(Exception):
    """An attempt that failed, and may not the next time. ``after``: seconds that the server asks to wait."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


class Remote:
    """Scores are exactly those of the scorer that is served. ``fingerprint`` says which it is.

    A request is tried ``attempts`` times: at first ``back_off`` seconds apart, then twice as long each time.
    """

    def __init__(self, address: str, *, attempts: int = 8, back_off: float = 0.5, timeout: float = 600.0) -> None:
        """``address`` is ``host:port`` or an URL. Raises :class:`UserError` where no scorer is served there."""
        self._url = _url(address)
        self.address = f"{self._url.scheme}://{self._url.netloc}"
        self._attempts, self._back_off, self._timeout = attempts, back_off, timeout
        self.about = self._ask("GET", "/about")
        wrong = [name for name, kind in TOLD.items() if not isinstance(self.about.get(name), kind)]
        if wrong:
            raise self._stranger(f"What it says of itself has no {wrong[0]}.")
        self.name: str = self.about["name"]
        self.absolute: bool = self.about["absolute"]
        self.fingerprint: str = self.about["fingerprint"]

    def score(self, dialogues: Sequence[Messages]) -> Scores:
        """As the protocol says, in as many requests as the server's limits ask for.

        Raises :class:`UserError` where the server refuses, cannot be reached in all attempts, or serves another model
        than it did at first.
        """
        found = Scores([], [], [])
        for body, count in self._requests(dialogues):
            reply = self._ask_it("/score", body)
            for values, name in zip(found, Scores._fields, strict=True):
                values += self._numbers(reply.get(name), count)
        return found

    def refuse_seen(self, keys: Iterable[str]) -> None:
        """Raise :class:`UserError` where the served model was trained on any of the prompts with these keys."""
        wanted = sorted(set(keys))
        # A key takes 16 digits, two quotation marks and a comma.
        at_once = max(1, (self.about["most_bytes"] - 64) // 19)
        shared = 0
        for start in range(0, len(wanted), at_once):
            reply = self._ask_it("/seen", json.dumps({"keys": wanted[start : start + at_once]}, separators=(",", ":")))
            if type(reply.get("seen")) is not int:
                raise self._stranger("It does not say how many prompts it was trained on.")
            shared += reply["seen"]
        if shared:
            raise UserError(
                f"{self.address}: {self.name} has been trained on {shared:,} of the {len(wanted):,} prompts it is to "
                "be measured on",
                cause="A model is measured on prompts that it has not seen.",
                remedy="Choose another split or dataset, or prompts whose recipe keeps them apart by prompt.",
            )

    def _requests(self, dialogues: Sequence[Messages]) -> Iterator[tuple[bytes, int]]:
        """Bodies within the server's limits, and how many dialogues are in each; one that is too large is by itself."""
        rows: list[bytes] = []
        size = 0
        for turns in dialogues:
            row = json.dumps([{"role": turn.role, "content": turn.content} for turn in turns]).encode()
            full = len(rows) == self.about["most_dialogues"] or size + len(row) + 64 > self.about["most_bytes"]
            if rows and full:
                yield b'{"dialogues": [%s]}' % b",".join(rows), len(rows)
                rows, size = [], 0
            rows.append(row)
            size += len(row) + 1
        if rows:
            yield b'{"dialogues": [%s]}' % b",".join(rows), len(rows)

    def _ask_it(self, path: str, body: bytes | str) -> dict[str, Any]:
        """A reply of the model that was served at first, and of no other."""
        reply = self._ask("POST", path, body)
        if reply.get("fingerprint") != self.fingerprint:
            raise UserError(
                f"{self.address}: another model is served now than at first",
                cause=f"It was {self.name} ({self.fingerprint[:12]}).",
                remedy="Start again, so that all scores are of one model.",
            )
        return reply

    def _ask(self, method: str, path: str, body: bytes | str | None = None) -> dict[str, Any]:
        """One reply, in as many attempts as are allowed."""
        for attempt in range(1, self._attempts + 1):
            try:
                return self._attempt(method, path, body)
            except _UnavailableError as error:
                problem = error
            if attempt < self._attempts:
                growing = min(LONGEST_WAIT, self._back_off * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
                signals.pause(max(problem.after, growing), f"while {self.address} did not answer")
        raise UserError(
            f"{self.address}: no answer in {self._attempts} attempt{'s' if self._attempts > 1 else ''}",
            cause=f"The last time: {problem}",
            remedy="`stage=serve target=<reward model>` serves one; it prints its address.",
        )

    def _attempt(self, method: str, path: str, body: bytes | str | None) -> dict[str, Any]:
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        bearer = token_from_environment()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {bearer}"} if bearer else {})
        connection = kind(self._url.hostname or "", self._url.port, timeout=self._timeout)
        try:
            connection.request(method, self._url.path.rstrip("/") + path, body, headers)
            response = connection.getresponse()
            content = response.read(LONGEST_REPLY + 1)
        except (OSError, http.client.HTTPException) as error:
            raise _UnavailableError(f"{type(error).__name__}: {error}") from None
        finally:
            connection.close()
        if len(content) > LONGEST_REPLY:
            raise self._stranger(f"Its reply is longer than {LONGEST_REPLY:,} bytes.")
        try:
            told = json.loads(content)
        except (ValueError, RecursionError):
            told = None
        if response.status == 200 and isinstance(told, dict):
            return told
        said = str(told["error"]) if isinstance(told, dict) and "error" in told else response.reason
        if response.status in UNAVAILABLE:
            raise _UnavailableError(f"status {response.status}: {said}", _seconds(response.headers.get("Retry-After")))
        if response.status == 401:
            raise UserError(f"{self.address}: {said}", remedy=f"Set {TOKEN} to the token that the server was given.")
        if response.status == 200 or not isinstance(told, dict):
            raise self._stranger(f"To {path} it answers with status {response.status} and no JSON object.")
        raise UserError(f"{self.address}: refuses the request", cause=f"It says, status {response.status}: {said}")

    def _numbers(self, values: Any, count: int) -> list[float]:
        right = isinstance(values, list) and len(values) == count
        if not right or not all(type(value) in (int, float) and math.isfinite(value) for value in values):
            raise self._stranger(f"Its answer to {count} dialogues is not as many numbers.")
        return [float(value) for value in values]

    def _stranger(self, cause: str) -> UserError:
        return UserError(
            f"{self.address}: does not answer as a served reward model",
            cause=cause,
            remedy="Give the address that `stage=serve` prints.",
        )


def token_from_environment() -> str | None:
    """The token of the environment, for who serves and for who asks; None where there is none.

    Raises :class:`UserError`, which does not show it, for what cannot stand in a request.
    """
    found = os.environ.get(TOKEN)
    if found is not None and not (found and all("!" <= character <= "~" for character in found)):
        raise UserError(
            f"{TOKEN} is {'set to something that no token can be' if found else 'set, and empty'}",
            cause="A service that was meant to be closed would be open.",
            remedy=f"Give it visible ASCII characters, or `unset {TOKEN}`.",
        )
    return found


def _url(address: str) -> SplitResult:
    """An address in its parts. Raises :class:`UserError` where no server can stand."""
    try:
        url = urlsplit(address if "://" in address else f"http://{address}")
        # As the resolver spells it; what it cannot spell raises a ValueError, like a port out of range.
        host = (url.hostname or "").encode("idna")
        sound = url.scheme in ("http", "https") and bool(host) and url.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise UserError(
            f"{address!r} is no address of a server",
            cause="It has a host, and a port from 1 to 65535.",
            remedy="Give the address that `stage=serve` prints.",
        )
    return url


def trl_reward(address: str) -> Callable[..., list[float]]:
    """A function for ``reward_funcs`` of TRL's trainers: the reported scores of what is served at ``address``.

    It takes conversational prompts and completions (lists of messages) and plain ones (strings: a user's message and
    the answer to it), and bears the model's name, under which TRL logs it.
    """
    remote = Remote(address)

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        dialogues = [
            (*_turns(prompt, "user"), *_turns(completion, "assistant"))
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        return remote.score(dialogues).reported

    reward.__name__ = remote.name
    return reward


def _turns(said: Any, role: Any) -> Messages:
    """TRL's prompt or completion as turns. Raises :class:`UserError` for a turn that is not text."""
    turns = [{"role": role, "content": said}] if isinstance(said, str) else said
    for turn in turns:
        if not isinstance(turn, Mapping) or not isinstance(turn.get("content"), str):
            raise UserError(f"a turn is not text: {str(turn)[:80]}", cause="A reward model reads role and content.")
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)


def _seconds(told: str | None) -> float:
    """``Retry-After`` in seconds, within bounds; 0 where it is missing or a date."""
    return min(LONGEST_WAIT, float(told)) if told is not None and told.isdecimal() else 0.0
