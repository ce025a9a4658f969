"""Questions to somebody else's server, several at a time; a run that is asked to stop does not wait for the answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from threading import Event, Thread
from time import monotonic
from typing import TypeVar

from alignment import signals

GRACE = 2.0
"""Seconds that answers under way still have where this process is asked to stop; otherwise they are paid for again."""

Question = TypeVar("Question")
Answer = TypeVar("Answer")


def ask_all(
    questions: Sequence[Question],
    answer: Callable[[Question], Answer],
    arrived: Callable[[Question, Answer], None],
    *,
    at_once: int,
    stop: Event,
    where: Callable[[int], str],
) -> None:
    """``answer`` every question in one of ``at_once`` threads; tell what ``arrived`` in this one, as it comes.

    After an error ``stop`` is set, nothing more is begun, what is under way is let finish, and the error is raised.
    Raises :class:`signals.Preempted` where this process is asked to stop, ``where`` saying how many answers are to
    come; then what is under way has ``GRACE`` seconds.
    """
    todo = deque(questions)
    come: SimpleQueue[tuple[Question, Answer | Exception]] = SimpleQueue()

    def work() -> None:
        while todo and not stop.is_set():
            try:
                question = todo.popleft()
            except IndexError:  # Another thread was faster.
                return
            try:
                come.put((question, answer(question)))
            except Exception as error:
                come.put((question, error))

    # Daemons: the end of the process waits for none of them, however long a server is silent.
    threads = [Thread(target=work, daemon=True) for _ in range(min(at_once, len(questions)))]
    for thread in threads:
        thread.start()
    left = len(questions)
    try:
        while left:
            signals.heed(where(left))
            try:
                question, told = come.get(timeout=signals.GLANCE)
            except Empty:
                continue
            if isinstance(told, Exception):
                raise told
            arrived(question, told)
            left -= 1
    except BaseException as error:
        stop.set()
        _let_finish(threads, None if isinstance(error, Exception) else GRACE)
        raise


def _let_finish(threads: Sequence[Thread], seconds: float | None) -> None:
    """Wait for them; all together for no longer than that."""
    until = None if seconds is None else monotonic() + seconds
    for thread in threads:
        thread.join(None if until is None else max(0.0, until - monotonic()))
