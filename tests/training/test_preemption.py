"""Asked to stop, a run ends at a step's end with all that it needs, and goes on to the same bits and the same rows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from preempted import Ran, ran

from alignment import files, parts, run, signals
from alignment.training import checkpoints

NUMBER = {"SIGUSR1": signal.SIGUSR1, "SIGTERM": signal.SIGTERM}


@pytest.fixture
def listening() -> Iterator[None]:
    signals.listen()
    yield
    signals.restore()


def tell(number: int = signal.SIGUSR1) -> None:
    os.kill(os.getpid(), number)


# ── the flag ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", NUMBER)
def test_a_signal_is_remembered_and_the_first_one_counts(name: str, listening: None) -> None:
    assert signals.asked() == 0
    signals.heed("nowhere")
    tell(NUMBER[name])
    tell(signal.SIGTERM)
    assert signals.asked() == NUMBER[name]
    with pytest.raises(signals.Preempted, match=f"{name}: stopped after this") as stopped:
        signals.heed("after this")
    assert not isinstance(stopped.value, Exception), "nothing that handles errors may hold it"


def test_one_of_several_processes_does_not_end_alone(listening: None, monkeypatch: pytest.MonkeyPatch) -> None:
    tell()
    monkeypatch.setenv("WORLD_SIZE", "2")
    signals.heed("after this")


def test_what_was_there_before_is_there_again() -> None:
    before = [signal.getsignal(number) for number in signals.LISTENED]
    signals.listen()
    tell()
    signals.restore()
    assert [signal.getsignal(number) for number in signals.LISTENED] == before
    assert signals.asked() == 0


def test_the_door_ends_with_a_code_of_its_own(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def stopped(*_: Any) -> None:
        raise signals.Preempted(signal.SIGTERM, "after step 3 of 9")

    monkeypatch.setattr(run, "_checked", stopped)
    assert run.door(["stage=sft"]) == signals.REQUEUE == 85
    assert "SIGTERM: stopped after step 3 of 9. The same command goes on" in capsys.readouterr().out


# ── parts ────────────────────────────────────────────────────────────────────────────────────────


def doubled(out: Path, stop_in: int | None = None) -> tuple[list[int], list[list[int]]]:
    """All rows, and what was worked on."""
    worked: list[list[int]] = []

    def work(some: Any) -> parts.Rows:
        if stop_in == len(worked):
            tell()
        worked.append(list(some))
        return [{"twice": 2 * one} for one in some]

    return [row["twice"] for row in parts.in_parts(out, "p", range(7), 2, work)], worked


def test_parts_end_after_the_one_that_is_worked_on(tmp_path: Path, listening: None) -> None:
    with pytest.raises(signals.Preempted, match="after part 2 of p"):
        doubled(tmp_path, stop_in=1)
    assert sorted(path.name for path in tmp_path.glob("parts/p/*")) == ["000000.jsonl", "000001.jsonl"]
    signals.restore()
    assert doubled(tmp_path) == ([0, 2, 4, 6, 8, 10, 12], [[4, 5], [6]])


@pytest.mark.parametrize("damage", ["cut off", "a byte", "empty", "another seal"])
def test_a_damaged_part_is_named_and_made_again(tmp_path: Path, damage: str, capsys: Any) -> None:
    rows, _ = doubled(tmp_path)
    path = tmp_path / "parts/p/000001.jsonl"
    whole = path.read_bytes()
    changed = {"cut off": whole[:-3], "a byte": b"[" + whole[1:], "empty": b"", "another seal": whole[:-1] + b"g"}
    path.write_bytes(changed[damage])
    assert doubled(tmp_path) == (rows, [[2, 3]])
    assert "000001.jsonl is made again: it is damaged" in capsys.readouterr().out.replace("\n", "")
    assert path.read_bytes() == whole


# ── trainers ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return ran(tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize(("moment", "stops"), [("step", 5), ("save", 4), ("twice", 5)])
def test_a_trainer_stops_with_a_checkpoint_and_goes_on_to_the_same_bits_and_rows(
    moment: str, stops: int, tmp_path: Path, undisturbed: Ran, listening: None
) -> None:
    """Rows are of two steps each, and checkpoints of four: the stop after step 5 is between two of either.

    A signal that comes while step 4 is saved is heeded at the end of step 5.
    """
    with pytest.raises(signals.Preempted, match="SIGUSR1: stopped after step 5 of 8"):
        ran(tmp_path, tell={stops: moment})
    last = checkpoints.last_whole(tmp_path / "checkpoints")
    assert last is not None
    assert checkpoints.step_of(last) == 5
    assert not list(tmp_path.rglob("*.partial"))
    signals.restore()
    again = ran(tmp_path)
    assert again.resumed == 5
    assert torch.equal(again.weights, undisturbed.weights)
    assert again.rows == undisturbed.rows


@pytest.mark.parametrize("moment", ["step", "save"])
def test_a_signal_after_the_last_step_changes_nothing(
    moment: str, tmp_path: Path, undisturbed: Ran, listening: None
) -> None:
    done = ran(tmp_path, tell={8: moment})
    assert torch.equal(done.weights, undisturbed.weights)
    assert done.rows == undisturbed.rows
    assert signals.asked() == signal.SIGUSR1, "what comes next in this process hears of it"


def test_a_kill_between_two_rows_leaves_the_next_row_as_it_was(tmp_path: Path, undisturbed: Ran) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        ran(tmp_path, every_checkpoint=3, tell={5: "killed"})
    again = ran(tmp_path, every_checkpoint=3)
    assert again.resumed == 3
    assert again.rows == undisturbed.rows


# ── a process of its own ─────────────────────────────────────────────────────────────────────────

SLOW = """
import sys, time
from pathlib import Path
from alignment import parts, run, signals
from alignment.artifacts import Outcome
from alignment.stages import tokenizer

def work(some):
    if "early" in sys.argv:
        Path(sys.argv[1]).touch()
        time.sleep(0.4)
    return [{"n": one} for one in some]

def stage(settings, inputs, out):
    rows = list(parts.in_parts(out, "p", range(3), 1, work))
    (out / "rows").write_text(str(rows))
    if "late" in sys.argv:
        Path(sys.argv[1]).touch()
        time.sleep(0.4)
    return Outcome("evaluation", {"rows": 3.0}, "rows")

tokenizer.run = stage
run.main(sys.argv[3:])
"""


def started(tmp_path: Path, *, late: bool = False) -> tuple[subprocess.Popen[str], Path]:
    """A stage in place of ``tokenizer``, once it works on its first part; or on nothing any more."""
    sign, store = tmp_path / "sign", tmp_path / "runs"
    sign.unlink(missing_ok=True)
    data = tmp_path / "data"
    data.mkdir(exist_ok=True)
    (data / "config.json").write_text("{}")
    command = [sys.executable, "-c", SLOW, str(sign), "late" if late else "early"]
    running = subprocess.Popen(
        [*command, "stage=tokenizer", f"data=dir:{data}", f"store={store}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "CI": "true"},
    )
    until = time.monotonic() + 60
    while not sign.exists() and running.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.01)
    return running, store


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 85), (signal.SIGINT, 130)])
def test_a_process_ends_with_the_code_that_says_how_it_was_stopped(number: int, code: int, tmp_path: Path) -> None:
    running, store = started(tmp_path)
    running.send_signal(number)
    if number != signal.SIGINT:
        running.send_signal(signal.SIGTERM)
    said, _ = running.communicate(timeout=60)
    assert running.returncode == code, said
    (folder,) = (path for path in store.glob("solo/*") if path.is_dir())
    assert not (folder / "artifact.json").exists()
    told = json.loads((folder / "incidents.jsonl").read_text())["why"]
    assert told == "Ctrl-C" if code == 130 else told.startswith(f"{signal.Signals(number).name}: stopped after part 1")
    again, _ = started(tmp_path)
    said, _ = again.communicate(timeout=60)
    assert again.returncode == 0, said
    record = json.loads((folder / "artifact.json").read_text())
    assert [one["why"] for one in record["notes"]["incidents"]] == [told]
    assert list(record["files"]) == ["rows"]
    assert not [path for path in folder.iterdir() if path.name not in ("rows", "artifact.json")]


def test_a_signal_when_all_is_saved_leaves_a_finished_artifact_and_no_trace(tmp_path: Path) -> None:
    running, store = started(tmp_path, late=True)
    until = time.monotonic() + 60
    # To the very end: past the record, while the interpreter goes.
    while running.poll() is None and time.monotonic() < until:
        running.send_signal(signal.SIGTERM)
        running.send_signal(signal.SIGUSR1)
        time.sleep(0.002)
    said, _ = running.communicate(timeout=60)
    assert running.returncode == 0, said
    (record,) = store.glob("solo/*/artifact.json")
    assert json.loads(record.read_text())["notes"] == {}


def test_who_waits_for_another_can_be_stopped(tmp_path: Path, listening: None) -> None:
    with (
        files.exclusive(tmp_path / "a", on_wait=lambda holder: None),
        pytest.raises(signals.Preempted),
        files.exclusive(tmp_path / "a", on_wait=lambda holder: tell(), meanwhile=lambda: signals.heed("waiting")),
    ):
        raise AssertionError("it is held")


# ── heartbeat ────────────────────────────────────────────────────────────────────────────────────


def test_a_heart_beats_now_and_then_says_how_fast_and_rests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(signals.time, "monotonic", lambda: now)
    signals.begin(tmp_path)
    path = tmp_path / signals.HEARTBEAT

    def beat(step: int, at: float) -> dict[str, Any]:
        nonlocal now
        now = at
        signals.beat(step, 50, "steps")
        return {name: value for name, value in json.loads(path.read_text()).items() if name in ("step", "rate")}

    assert beat(10, 100.0) == {"step": 10, "rate": None}
    assert beat(11, 104.0) == {"step": 10, "rate": None}
    assert beat(20, 105.0) == {"step": 20, "rate": 2.0}
    told = json.loads(path.read_text())
    assert (told["steps"], told["unit"], told["rank"]) == (50, "steps", 0)
    # Other work begins: (5 − 1) pairs in 2 s are not steps.
    assert beat(1, 106.0)["rate"] is None
    signals.beat(1, 0, "pairs")
    assert json.loads(path.read_text())["steps"] is None
    signals.rest()
    signals.beat(30, 50, "steps")
    assert not path.exists()
