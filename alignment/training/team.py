"""Several processes, one run: rank 0 leads, and the others do what it says, until it says that this was all.

Rank 0 alone reads the command line, plans, holds locks and speaks. What all of them have to do together it tells them
through the store by which PyTorch's processes find each other (at MASTER_ADDR and MASTER_PORT). An error in any process
ends them all and is said once, by rank 0; where rank 0 itself is gone, rank 1 says so.

Whoever reaches that port can write into the store, and a pickle runs what it says: messages are sealed with the run's
ALIGNMENT_TEAM_KEY, which the batch scripts draw for every job, and opened only where the seal is right.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import pickle
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import numpy as np

from alignment import console, ranks
from alignment.errors import LostError, UserError
from alignment.training import faults, lifelines

T = TypeVar("T")

TEAM_KEY = "ALIGNMENT_TEAM_KEY"
GATHERING = timedelta(minutes=10)
"""How long processes wait for each other at the start; nodes of a job do not all boot at once."""
POLL = 0.1
PATIENCE = 10.0
"""Seconds that a process has to come out of a computation which can no longer end, before it is ended."""
GREETING = 30.0
"""Seconds in which all of them, once they have found each other, are tied to rank 0 (``lifelines.py``)."""
FAREWELL = 600.0
"""Seconds that the others have to finish a stage after rank 0 has."""


SEAL = hashlib.sha256().digest_size


def packed(value: Any) -> bytes:
    """A message to another process of this run."""
    content = pickle.dumps(value)
    return _seal(content) + content


def unpacked(message: bytes) -> Any:
    """What another process of this run has packed. Raises :class:`UserError` for a message of anybody else."""
    seal, content = message[:SEAL], message[SEAL:]
    if not hmac.compare_digest(seal, _seal(content)):
        raise UserError(
            "a message came that no process of this run has sent",
            cause=f"{TEAM_KEY} is not the same in all of them, or somebody else writes to MASTER_PORT.",
            remedy=f"Start all processes with one {TEAM_KEY}; the scripts in jobs/ do.",
        )
    return pickle.loads(content)


def _seal(content: bytes) -> bytes:
    return hmac.digest(os.environ.get(TEAM_KEY, "").encode(), content, "sha256")


@dataclass(frozen=True)
class End:
    """The last message: nothing is left to do."""

    code: int


@dataclass(frozen=True)
class Trouble:
    """What stopped one process: an error that is told in words, or a fault of ours with its traceback."""

    rank: int
    host: str
    error: UserError | None
    trace: str

    def raised(self) -> UserError | RuntimeError:
        """As rank 0 raises it."""
        return self.error or RuntimeError(f"process {self.rank} on {self.host}:\n{self.trace}")


class Team:
    """This process among the others. ``complain`` shows an error to the user, on whichever process has to."""

    def __init__(self, complain: Callable[[UserError], None]) -> None:
        from torch.distributed import DistError, PrefixStore, rendezvous

        self._complain, self._lost = complain, DistError
        self._told, self._met, self._working, self._tied = 0, 0, False, False
        self._speaking = threading.Lock()
        try:
            store, _, _ = next(rendezvous("env://", timeout=GATHERING))
            self._store = PrefixStore("alignment", store)
            self._hold_on()
        except DistError as error:
            raise UserError(
                f"the {ranks.world()} processes have not come together within {GATHERING.seconds // 60} minutes",
                cause=str(error).splitlines()[0],
                remedy="MASTER_ADDR has to be an address of the first node that all nodes reach, and MASTER_PORT free.",
            ) from None
        self._tied = True
        threading.Thread(target=self._watch_others if ranks.is_main() else self._watch_main, daemon=True).start()

    def _hold_on(self) -> None:
        """Have every process tied to rank 0. Raises :class:`UserError` where one is gone before that."""
        if ranks.is_main():
            self._lines = lifelines.Lifelines(os.environ["MASTER_ADDR"], ranks.world(), _seal)
            self._put("lifelines", self._lines.port)
            if not self._lines.complete(GREETING):
                trouble = self._trouble(PATIENCE / 2)
                raise trouble.raised() if trouble else self._loss("one of the processes came and went again")
        else:
            port, address = self._awaited("lifelines"), os.environ["MASTER_ADDR"]
            try:
                self._line = lifelines.hold(address, port, ranks.rank(), _seal, GREETING)
            except UserError as error:
                self._report(error)
                raise

    # ── rank 0 ───────────────────────────────────────────────────────────────────────────────────

    def ask(self, message: Any, patience: float) -> list[Any]:
        """What every other process answers to ``message``, by rank. Raises the first trouble that one of them has."""
        self._tell(message)
        return self._answers(patience)

    @contextmanager
    def together(self, message: Any) -> Iterator[None]:
        """Do the block here while the others do what ``message`` says. Raises what stopped one of them."""
        self._tell(message)
        self._working = True
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            # What this process suffers of is mostly that another one has stopped.
            trouble = self._trouble(PATIENCE / 2)
            if trouble is not None:
                raise trouble.raised() from None
            if faults.is_lost_connection(error) or self._lines.gone is not None:
                raise self._loss(str(error).splitlines()[0]) from error
            raise
        finally:
            self._working = False
        self._answers(FAREWELL)

    def end(self, code: int) -> None:
        """Let the others go with this exit code, and wait until they have heard it."""
        with suppress(self._lost):
            self._tell(End(code))
            self._tell_end(code)

    def _tell_end(self, code: int) -> None:
        self._store.set("end", str(code))
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and not self._store.check([f"gone/{rank}" for rank in self._others()]):
            time.sleep(POLL)

    def _tell(self, message: Any) -> None:
        self._told += 1
        self._put(f"said/{self._told}", message)

    def _answers(self, patience: float) -> list[Any]:
        until, found = time.monotonic() + patience, []
        for rank in self._others():
            key = f"answer/{self._told}/{rank}"
            while not self._store.check([key]):
                self._need_others()
                if time.monotonic() > until:
                    raise UserError(
                        f"process {rank} does not answer", remedy="See whether its machine still runs, and start again."
                    )
                time.sleep(POLL)
            found.append(unpacked(self._store.get(key)))
        return found

    def _trouble(self, patience: float) -> Trouble | None:
        until = time.monotonic() + patience
        while not self._store.check(["trouble"]):
            if time.monotonic() >= until:
                return None
            time.sleep(POLL)
        return unpacked(self._store.get("trouble"))

    def _need_others(self) -> None:
        """Raise what stopped another process, if one has stopped, or that one is gone."""
        gone = self._lines.gone
        # One that is gone may have said why, or may have been let go by one that has.
        trouble = self._trouble(0 if gone is None else 1)
        if trouble is not None:
            raise trouble.raised()
        if gone is not None:
            raise self._loss(f"Process {gone} has ended without a word.")

    def _loss(self, cause: str) -> LostError:
        return LostError(
            "another process of this run is gone",
            cause=cause,
            remedy="It was killed, or its machine was lost; the same command goes on from the last checkpoint.",
        )

    def _watch_others(self) -> None:
        """Where another process has stopped and this one waits for it in a computation, speak and end it."""
        with suppress(self._lost):
            while True:
                time.sleep(5 * POLL)
                if not self._working:
                    continue
                try:
                    self._need_others()
                except (UserError, RuntimeError) as error:
                    time.sleep(PATIENCE)
                    if self._working:
                        failed = UserError("another process of this run has failed", cause=str(error))
                        told = error if isinstance(error, UserError) else failed
                        self._complain(told)
                        self._tell_end(told.code)
                        self._leave(told.code)

    # ── all of them ──────────────────────────────────────────────────────────────────────────────

    def exchange(self, value: Any) -> list[Any]:
        """The values of all processes, by rank. Everybody has to come here; there is no limit to the wait."""
        self._met += 1
        self._put(f"value/{self._met}/{ranks.rank()}", value)
        return [self._awaited(f"value/{self._met}/{rank}") for rank in range(ranks.world())]

    def from_main(self, work: Callable[[], Any]) -> Any:
        """What ``work`` gives, which rank 0 does while the others wait."""
        self._met += 1
        key = f"value/{self._met}/0"
        if ranks.is_main():
            value = work()
            self._put(key, value)
            return value
        return self._awaited(key)

    def _awaited(self, key: str) -> Any:
        """What another process puts there; none of them stops unheard meanwhile."""
        while not self._check(key):
            if ranks.is_main():
                self._need_others()
            elif self._check("end"):
                raise UserError("process 0 has ended")
            time.sleep(POLL / 10)
        return unpacked(self._store.get(key))

    # ── the others ───────────────────────────────────────────────────────────────────────────────

    def follow(self, work: Callable[[Any], Any]) -> int:
        """Do what rank 0 says, a message at a time; the exit code that it gives at the end."""
        for message in self._messages():
            if isinstance(message, End):
                self._store.set(f"gone/{ranks.rank()}", "")
                return message.code
            self._working = True
            try:
                answer = work(message)
            except Exception as error:
                self._report(error)
                return self._last_word()
            except BaseException:
                return self._last_word()
            self._working = False
            self._put(f"answer/{self._told}/{ranks.rank()}", answer)
        raise AssertionError("messages end with an End")

    def _messages(self) -> Iterator[Any]:
        while True:
            self._told += 1
            key = f"said/{self._told}"
            while not self._check(key):
                time.sleep(POLL)
            yield unpacked(self._store.get(key))

    def _check(self, key: str) -> bool:
        try:
            return self._store.check([key])
        except self._lost:
            if self._tied:
                self._without_main()
            raise

    def _report(self, error: Exception) -> None:
        """Tell rank 0, the first of us to have trouble alone, and let go of whoever waits for this process."""
        import torch

        told = error if isinstance(error, UserError) else faults.lost(error)
        trouble = Trouble(ranks.rank(), os.uname().nodename, told, "".join(traceback.format_exception(error)))
        with suppress(self._lost):
            if not self._store.check(["end"]) and self._store.add("troubles", 1) == 1:
                self._put("trouble", trouble)
        if torch.distributed.is_initialized():
            threading.Thread(target=torch.distributed.destroy_process_group, daemon=True).start()

    def _last_word(self) -> int:
        """Rank 0's exit code, once it has spoken."""
        until = time.monotonic() + 3 * PATIENCE
        while time.monotonic() < until:
            if self._check("end"):
                self._store.set(f"gone/{ranks.rank()}", "")
                return int(self._store.get("end"))
            time.sleep(POLL)
        return 2

    def _watch_main(self) -> None:
        """Where rank 0 has ended and this process waits for it in a computation, end it."""
        try:
            while not self._store.check(["end"]):
                time.sleep(5 * POLL)
            code = int(self._store.get("end"))
        except self._lost:
            self._without_main()
            return
        time.sleep(PATIENCE / 2)
        if self._working:
            self._leave(code)

    def _without_main(self) -> None:
        """Rank 0 is gone without a word. Both threads of this process may notice; one of them speaks."""
        if not self._speaking.acquire(blocking=False):
            time.sleep(PATIENCE)
        if ranks.rank() == 1:
            print("process 0 of this run is gone: the same command goes on from the last checkpoint", file=sys.stderr)
        self._leave(LostError.code)

    # ── both ─────────────────────────────────────────────────────────────────────────────────────

    def _put(self, key: str, value: Any) -> None:
        self._store.set(key, packed(value))  # type: ignore[arg-type]

    def _others(self) -> range:
        return range(1, ranks.world())

    @staticmethod
    def _leave(code: int) -> None:
        """End this process although it computes."""
        console.console().show_cursor()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@cache
def team() -> Team:
    """The one of this process. It is opened with :func:`open_team`."""
    assert _opened, "there are several processes, and they have been brought together"
    return _opened[0]


_opened: list[Team] = []


def open_team(complain: Callable[[UserError], None]) -> Team:
    """Bring the processes together. Raises :class:`UserError` where one of them does not come."""
    _opened.append(Team(complain))
    return _opened[0]


def exchange(value: Any) -> list[Any]:
    """The values of all processes, by rank; of one process its own alone."""
    return team().exchange(value) if ranks.world() > 1 else [value]


def meet() -> None:
    """Go on when all processes are here."""
    exchange(None)


def from_main(work: Callable[[], T]) -> T:
    """What ``work`` gives, which rank 0 does while the others wait, however long it takes."""
    if ranks.world() == 1:
        return work()
    value: T = team().from_main(work)
    return value


def divided(rows: Sequence[T], work: Callable[[list[T]], np.ndarray]) -> np.ndarray:
    """What ``work`` gives for each of ``rows``, along its first axis; each process does its share, and all get all."""
    world = ranks.world()
    shares = exchange(work(list(rows[ranks.rank() :: world])))
    found = np.zeros((len(rows), *shares[0].shape[1:]))
    for rank, share in enumerate(shares):
        found[rank::world] = share
    return found
