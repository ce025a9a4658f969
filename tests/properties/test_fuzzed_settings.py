"""Settings and command lines: composed and validated, or refused in words."""

from __future__ import annotations

import string
from functools import cache
from pathlib import Path

import fuzzing
import hostile
from hypothesis import strategies as st

from alignment import run
from alignment.command_line import Request
from alignment.errors import UserError
from alignment.settings import describe

FLAGS = ("--help", "-h", "--cfg", "job", "-m", "--multirun", "-x", "--", "help", "stage=")


@cache
def keys_of(stage: str) -> tuple[str, ...]:
    """The keys of a stage, and some that look like keys."""
    known = [info.key for part in (run.Door, run.settings_class(stage)) for info in describe(part)]
    beside = [
        f"{known[0]}.x",
        f"{known[-1]}.0.y",
        "pipeline.runs.0.beta",
        "models.7",
        "models.x",
        "a.b",
        ".",
        "",
        "seed.",
    ]
    return (*known, *run.GROUPS[1:], *beside)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """A stage, and up to four of its keys with anything."""
    stage = draw(st.sampled_from(run.options("stage")))
    option = st.sampled_from([*run.options("pipeline"), *run.options("model"), *run.options("engine")])
    overrides = st.tuples(st.sampled_from(keys_of(stage)), st.one_of(hostile.texts(), option))
    return Request(stage=stage, overrides=draw(st.lists(overrides, min_size=1, max_size=4)))


def settings_are_parsed_or_refused(folder: Path, request: Request) -> None:
    fuzzing.told(lambda: run._checked(request))


test_settings, test_settings_thoroughly = fuzzing.both(
    settings_are_parsed_or_refused, quick=60, thorough=2500, request=requests()
)


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """Flags, pairs and rubbish in any order; half of them begin with a stage that exists."""
    stage = draw(st.sampled_from(run.options("stage")))
    bytes_as_python_gives_them = st.binary(max_size=6).map(
        lambda some: some.replace(b"\0", b"").decode(errors="surrogateescape")
    )
    pair = st.builds("{}={}".format, st.sampled_from(keys_of(stage)), hostile.texts())
    one = st.one_of(pair, st.sampled_from(FLAGS), hostile.texts(), bytes_as_python_gives_them)
    rest = draw(st.lists(one.map(lambda said: said.replace("\0", "")), max_size=5))
    return [f"stage={stage}", *rest] if draw(st.booleans()) else rest


def command_lines_are_read_or_refused(folder: Path, line: list[str]) -> None:
    request = fuzzing.told(lambda: run.read(line))
    if request is not None and request.stage is not None:
        requests = fuzzing.told(lambda: run._sweep(request)) if request.multirun else [request]
        for single in (requests or [])[:3]:
            fuzzing.told(lambda single=single: run._checked(single))


test_command_lines, test_command_lines_thoroughly = fuzzing.both(
    command_lines_are_read_or_refused, quick=50, thorough=1500, line=command_lines()
)


def the_door_answers_with_a_number(folder: Path, line: list[str], flag: list[str]) -> None:
    """Through the door itself, where nothing runs: help, the configuration, and what is refused."""
    assert run.door([*line, *flag]) in (0, 2)


test_the_door, test_the_door_thoroughly = fuzzing.both(
    the_door_answers_with_a_number,
    quick=25,
    thorough=300,
    line=command_lines(),
    flag=st.sampled_from([["--help"], ["--cfg", "job"]]),
)


def names_of_artifacts_stay_in_the_store(folder: Path, name: str) -> None:
    from alignment.store import Store

    try:
        found = Store(folder / "runs").folder("solo", name, "f" * 64)
    except UserError:
        return
    assert found.parent == folder / "runs" / "solo"
    assert found.resolve().parent == (folder / "runs" / "solo").resolve()


test_names, test_names_thoroughly = fuzzing.both(
    names_of_artifacts_stay_in_the_store,
    quick=50,
    thorough=500,
    name=st.one_of(hostile.texts(), st.text(alphabet="./\\-~ " + string.ascii_lowercase, max_size=8)),
)
