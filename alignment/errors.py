"""What a user sees when something is wrong: the value, the cause, the remedy. Never a traceback, never a secret."""

from __future__ import annotations

import os
import re

SECRET = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)
WHERE = re.compile(r"(path|file|dir|folder)$", re.IGNORECASE)
SHORTEST_SECRET = 8
"""Characters; a shorter value is a switch (``TOKENIZERS_PARALLELISM=false``) or a word that stands anywhere."""
PASSWORD = re.compile(r"://[^/@\s]+@")
"""Name and password in an address."""


def secrets_of_environment() -> dict[str, str]:
    """The environment's keys, tokens and passwords by name; where such a thing lies is none."""
    named = {name: value for name, value in os.environ.items() if SECRET.search(name) and not WHERE.search(name)}
    return {name: value for name, value in named.items() if len(value) >= SHORTEST_SECRET}


def without_secrets(text: str) -> str:
    """``text`` as it may be shown: servers and libraries repeat keys and addresses in what they say."""
    for secret in sorted(secrets_of_environment().values(), key=len, reverse=True):
        text = text.replace(secret, "…")
    return PASSWORD.sub("://…@", text)


class UserError(ValueError):
    """A mistake in what was asked for or given, told so that the reader can mend it.

    ``problem`` names the value that was refused, ``cause`` says why, ``remedy`` says what to do.
    ``run.py`` prints it and exits with ``code``; with ``debug=true`` the traceback is shown as well. No secret of the
    environment is in any of them, wherever they came from and wherever they go: a terminal, a record, a tracker.
    """

    code = 2
    """The exit code of a run that ends with it."""

    def __init__(self, problem: str, *, cause: str = "", remedy: str = "") -> None:
        self.problem, self.cause, self.remedy = map(without_secrets, (problem, cause, remedy))
        super().__init__("\n".join(part for part in (self.problem, self.cause, self.remedy) if part))

    def __reduce__(self) -> tuple[object, ...]:
        """From one process to another with everything it says."""
        return _again, (type(self), dict(self.__dict__))


def _again(kind: type[UserError], said: dict[str, str]) -> UserError:
    error = kind.__new__(kind)
    UserError.__init__(error, said["problem"], cause=said["cause"], remedy=said["remedy"])
    error.__dict__.update(said)
    return error


class LostError(UserError):
    """A device or a process that the run had is gone. Nothing is to be mended: the same command goes on.

    Batch scripts queue a job again on its code, a number of times (``jobs/lib.sh``).
    """

    code = 86


class DataError(UserError):
    """A row or file that cannot be used. ``where`` is ``file:line`` (or ``file`` alone)."""

    def __init__(self, where: str, problem: str, *, cause: str = "", remedy: str = "") -> None:
        self.where = where
        super().__init__(f"{where}: {problem}", cause=cause, remedy=remedy)


def nearest(value: str, known: list[str] | tuple[str, ...]) -> str:
    """A remedy that lists what there is, the likeliest meaning first: ``Did you mean 'sft'? Known: …``."""
    from difflib import get_close_matches

    names = sorted(known)
    close = get_close_matches(value, names, n=1)
    listed = ", ".join(names) if names else "nothing yet"
    return (f"Did you mean {close[0]!r}? " if close else "") + f"Known: {listed}."
