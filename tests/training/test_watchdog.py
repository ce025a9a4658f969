"""What hangs is seen and ended; what is lost is begun again, a few times; and either is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import wandb_support
import yaml
from wandb_support import closed, record_files

from alignment import signals
from alignment.artifacts import Artifact
from alignment.errors import UserError
from alignment.training import incidents, tracking, wandb_runs, watchdog
from alignment.training.tracking import Tracker, TrackerSettings, read_metrics
from alignment.training.watchdog import Watchdog

CONF = Path(__file__).parents[2] / "conf"
OFFLINE = TrackerSettings(wandb="offline", project="test", every=1, upload="none")

# ── what hangs ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def dog(tmp_path: Path) -> Iterator[tuple[Watchdog, list[int], threading.Event]]:
    """One that waits for 0.3 s; what it would leave with."""
    codes, left = list[int](), threading.Event()

    def leave(code: int) -> None:
        codes.append(code)
        left.set()

    (tmp_path / "begun").touch()
    one = Watchdog(tmp_path, 0.3 / 60, leave)
    yield one, codes, left
    one.stop()


def hanging(event: threading.Event) -> bool:
    return event.wait(20)


def test_without_a_step_it_ends_the_process_with_the_stacks(
    tmp_path: Path, dog: tuple[Watchdog, list[int], threading.Event], capsys: pytest.CaptureFixture[str]
) -> None:
    one, codes, left = dog
    began = time.monotonic()
    one.start()
    assert hanging(left)
    assert 0.3 <= time.monotonic() - began < 10
    assert codes == [signals.REQUEUE]
    stacks = (tmp_path / "parts" / "stacks-0.txt").read_text()
    # Of more than a hundred threads, which earlier tests may have left, faulthandler shows the first.
    assert "in hanging" in stacks or stacks.count("Thread 0x") >= 99
    assert "no step has ended for 0.005 minutes" in capsys.readouterr().out
    assert [one["why"] for one in incidents.told(tmp_path)["incidents"]] == ["no step has ended for 0.005 minutes"]


def test_steps_keep_it_quiet_and_it_leaves_nothing(tmp_path: Path) -> None:
    with watchdog.watching(tmp_path, 0.5 / 60):
        for _ in range(10):
            time.sleep(0.1)
            watchdog.alive()
        time.sleep(0.1)
    assert not list((tmp_path / "parts").iterdir())
    watchdog.alive()  # of nobody


def test_others_let_rank_0_speak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(watchdog, "GRACE", 0.5)
    left, began = threading.Event(), time.monotonic()
    one = Watchdog(tmp_path, 0.2 / 60, lambda code: left.set())
    one.start()
    assert hanging(left)
    assert time.monotonic() - began >= 0.7
    assert (tmp_path / "parts" / "stacks-1.txt").read_text()
    one.stop()
    assert capsys.readouterr().out == ""
    assert incidents.told(tmp_path) == {}


STUCK = """
import ctypes, sys
from pathlib import Path
from alignment.training import watchdog

watchdog.GRACE = 0.2
with watchdog.watching(Path(sys.argv[1]), 0.3 / 60):
    {hang}
"""


@pytest.mark.parametrize(
    ("hang", "code"),
    [
        ("__import__('time').sleep(60)", signals.REQUEUE),
        # With the interpreter's lock held no thread gets its turn; faulthandler's own has no need of it.
        ("ctypes.PyDLL(None).sleep(60)", 1),
    ],
)
def test_a_process_that_hangs_is_gone(hang: str, code: int, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", STUCK.format(hang=hang), str(tmp_path)], timeout=50)
    assert done.returncode == code
    assert "<string>" in (tmp_path / "parts" / "stacks-0.txt").read_text()


# ── why it ended ─────────────────────────────────────────────────────────────────────────────────


def test_what_ended_a_step_is_noted_once_there_is_something_of_it(tmp_path: Path) -> None:
    said = list[str]()

    def ends(error: BaseException) -> None:
        with pytest.raises(type(error)), incidents.recorded(tmp_path, lambda folder, why: said.append(why)):
            raise error

    ends(UserError("refused"))
    assert incidents.told(tmp_path) == {}
    (tmp_path / "model.safetensors").touch()
    ends(UserError("the loss is nan at step 3", cause="why", remedy="what"))
    ends(signals.Preempted(signal.SIGTERM, "after step 4 of 9"))
    ends(KeyboardInterrupt())
    ends(RuntimeError("broken\nin two lines"))
    wanted = [
        "the loss is nan at step 3",
        "SIGTERM: stopped after step 4 of 9",
        "Ctrl-C",
        "RuntimeError: broken",
    ]
    assert [one["why"] for one in incidents.told(tmp_path)["incidents"]] == wanted
    assert said == ["refused", *wanted]
    with open(tmp_path / incidents.FILE, "a") as file:
        file.write('{"at": "2026-')  # by a disk that was full
    assert len(incidents.told(tmp_path)["incidents"]) == 4


def test_no_secret_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    incidents.note(tmp_path, "nothing is here yet")
    assert "0123456789abcdef" not in incidents.reason(RuntimeError("refused: 0123456789abcdef"))
    (tmp_path / "metrics.jsonl").touch()
    incidents.note(tmp_path, "refused: 0123456789abcdef at https://me:word@host")
    assert [one["why"] for one in incidents.told(tmp_path)["incidents"]] == ["refused: … at https://…@host"]


# ── W&B ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "mini" / "sft-12345678"
    folder.mkdir(parents=True)
    return folder


def lose_wandb() -> None:
    """Kill the process to which W&B's library talks, and wait until it is gone."""
    found = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "pid=,args="], capture_output=True, text=True)
    lost = [int(line.split()[0]) for line in found.stdout.splitlines() if "wandb-core" in line or "gpu_stats" in line]
    assert lost
    for process in lost:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    time.sleep(0.2)


def told(out: Path) -> wandb_support.Told:
    (path,) = record_files(out)
    return closed(path)


def test_a_lost_wandb_is_begun_again_and_told_everything(out: Path) -> None:
    tracker = Tracker(OFFLINE, out, {"seed": 3}, stage="sft")
    tracker.log(1, {"loss": 3.0})
    tracker.table("samples", 1, [{"answer": "é"}])
    lose_wandb()
    tracker.log(2, {"loss": 2.0})
    tracker.log(3, {"loss": 1.0})
    lose_wandb()
    tracker.finish({"loss": 1.0})
    tracking.abandon(out, "for this test")
    found = told(out)
    assert found.rows == read_metrics(out / "metrics.jsonl") == [{"step": n, "loss": 4.0 - n} for n in (1, 2, 3)]
    assert [row["step"] for row in found.media] == [1]
    assert (found.summary["loss"], found.summary["stopped"]) == (1.0, "for this test")
    why = [one["why"] for one in incidents.told(out)["incidents"]]
    assert [line.rpartition(", ")[2] for line in why] == ["time 1 of at most 3", "time 2 of at most 3"]


def test_a_wandb_that_is_lost_too_often_ends_the_run(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker(OFFLINE, out, {})
    tracker.log(1, {"loss": 3.0})

    def never(open_run: Callable[[], None]) -> None:
        raise ConnectionResetError("Connection lost")

    monkeypatch.setattr(Tracker, "_open", never)
    lose_wandb()
    with pytest.raises(UserError, match="W&B's process was gone 4 times"):
        tracker.log(2, {"loss": 2.0})
    assert [row["step"] for row in read_metrics(out / "metrics.jsonl")] == [1, 2], "what stands on disk stays there"


def test_wandb_has_less_time_than_the_watchdog_and_the_warning_leave() -> None:
    warning = yaml.safe_load((CONF / "launcher" / "slurm.yaml").read_text())["warning"]
    assert min(watchdog.GRACE, warning / 2) > tracking.GRACE


class Silent:
    """A run of a W&B that cannot be reached: it takes what it is told, and never has done with it."""

    upload = "none"

    def __init__(self) -> None:
        self.asked, self.over = list[str](), threading.Event()

    def summarise(self, _: object) -> None:
        self.asked.append("numbers")

    def give(self, _: object) -> None:
        self.asked.append("artifact")

    def fail(self, why: str) -> None:
        self.asked.append(why)
        self.over.wait()

    def finish(self) -> None:
        self.over.wait()


@pytest.fixture
def silent(out: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Silent]:
    run = Silent()
    monkeypatch.setattr(tracking, "GRACE", 0.3)
    monkeypatch.setattr(tracking, "PATIENCE", 0.3)
    monkeypatch.setitem(tracking._live, out, run)
    yield run
    run.over.set()


def test_a_wandb_that_does_not_answer_keeps_no_watchdog(
    out: Path, silent: Silent, capsys: pytest.CaptureFixture[str]
) -> None:
    left = list[int]()
    one = Watchdog(out, 0.1 / 60, left.append)
    one.start()
    one._thread.join(20)
    one.stop()
    assert left == [signals.REQUEUE]
    assert silent.asked == ["no step has ended for 0.00166667 minutes"]
    said = " ".join(capsys.readouterr().out.split())
    assert "W&B may lack the end of sft-12345678: it has not taken everything within 0 s" in said
    assert "for `wandb sync`" in said


def test_a_wandb_that_does_not_answer_keeps_no_finished_artifact_waiting(
    out: Path, silent: Silent, capsys: pytest.CaptureFixture[str]
) -> None:
    tracking.leave_open(out, silent)  # type: ignore[arg-type]
    began = time.monotonic()
    tracking.conclude(Artifact(out, "policy", "sft", "sft", "12345678" * 8))
    assert time.monotonic() - began < 10
    assert silent.asked == ["numbers", "artifact"]
    assert "W&B may lack the end of sft-12345678" in capsys.readouterr().out


def test_weights_that_are_sent_have_the_time_that_they_take(out: Path) -> None:
    (out / "model.safetensors").write_bytes(bytes(1000))
    made = Artifact(out, "policy", "sft", "sft", "12345678" * 8, files={"model.safetensors": "0" * 64})
    assert wandb_runs.bytes_sent(made, "models") == 1000
    assert wandb_runs.bytes_sent(made, "none") == 0


def test_a_wandb_that_is_lost_at_the_end_is_told_and_nothing_more(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Tracker(OFFLINE, out, {})
    tracker.log(1, {"loss": 3.0})
    tracker.finish({"loss": 3.0})
    lose_wandb()
    tracking.conclude(Artifact(out, "policy", "sft", "sft", "12345678" * 8))
    assert "W&B may lack the end of sft-12345678: " in capsys.readouterr().out
    wandb_runs.forget_process()
