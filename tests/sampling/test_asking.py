"""Several questions at a time, and that a run that is asked to stop waits for none of their answers."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from threading import Event, active_count, current_thread

import pytest

from alignment import signals
from alignment.sampling import asking


@pytest.fixture
def silence() -> Iterator[Event]:
    """What a server says nothing for; it ends with the test."""
    event = Event()
    yield event
    event.set()


def asked(
    answer: Callable[[int], str], count: int = 6, *, at_once: int = 2, arrived: Callable[[int, str], None] | None = None
) -> tuple[dict[int, str], Event]:
    found: dict[int, str] = {}
    stop = Event()
    asking.ask_all(
        range(count),
        answer,
        arrived or found.__setitem__,
        at_once=at_once,
        stop=stop,
        where=lambda left: f"with {left} to come",
    )
    return found, stop


def test_every_question_has_its_answer_and_is_told_of_here() -> None:
    tellers = set()

    def arrived(number: int, told: str) -> None:
        assert told == str(number)
        tellers.add((number, current_thread().name))

    asked(str, arrived=arrived)
    assert tellers == {(number, current_thread().name) for number in range(6)}
    assert asked(str, 0)[0] == {}


def test_an_error_is_raised_here_and_what_is_under_way_is_let_finish() -> None:
    begun, finished = [], []

    def answer(number: int) -> str:
        begun.append(number)
        if number == 1:
            raise ValueError("no")
        time.sleep(0.3)
        finished.append(number)
        return ""

    with pytest.raises(ValueError, match="no"):
        asked(answer, 50, at_once=3)
    assert set(finished) == set(begun) - {1}
    assert len(begun) < 10


def test_asked_to_stop_it_leaves_a_silent_server(monkeypatch: pytest.MonkeyPatch, silence: Event) -> None:
    """Of two under way one comes within the time of grace, the other never; no third one is begun."""
    begun, finished = [], []
    before = active_count()

    def answer(number: int) -> str:
        begun.append(number)
        monkeypatch.setattr(signals, "_asked", signal.SIGTERM)
        if number == 0:
            silence.wait()
        time.sleep(0.8)
        finished.append(number)
        return ""

    began = time.monotonic()
    with pytest.raises(signals.Preempted, match="SIGTERM: stopped with 6 to come"):
        asked(answer)
    assert time.monotonic() - began < asking.GRACE + 2
    assert (sorted(begun), finished) == ([0, 1], [1])
    silence.set()
    while active_count() > before:
        time.sleep(0.01)
    assert sorted(begun) == [0, 1]


def test_of_several_processes_none_leaves_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_asked", signal.SIGTERM)
    monkeypatch.setattr(signals.ranks, "world", lambda: 2)
    assert asked(str)[0] == {number: str(number) for number in range(6)}
