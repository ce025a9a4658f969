"""Energy: what counters say, what stands in for them, what a kill leaves, and what a step took in all its starts.

Counters here are folders and objects that say what a test puts into them; no test waits for a clock.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignment.energy import counters, meter
from alignment.energy.counters import Boards, Counter, Processors
from alignment.energy.meter import Meter
from alignment.energy.record import Stated
from alignment.errors import UserError

GRID = 0.5


# ── counters ─────────────────────────────────────────────────────────────────────────────────────


def zone(root: Path, folder: str, name: str, joules: float, wraps_at: float = 1000.0) -> Path:
    """A zone of RAPL's, in millionths of a joule as the kernel has them."""
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{int(wraps_at * 1e6)}\n")
    set_joules(path, joules)
    return path


def set_joules(path: Path, joules: float) -> None:
    (path / "energy_uj").write_text(f"{int(joules * 1e6)}\n")


def test_a_counter_that_wraps_goes_on_and_one_that_is_set_back_begins_again() -> None:
    wrapping, driver = Counter(wraps_at=100.0), Counter()
    for now in (90.0, 95.0, 5.0, 5.0):
        wrapping.read(now)
    for now in (90.0, 95.0, 7.0):
        driver.read(now)
    assert wrapping.joules == 5 + (5 - 95 + 100)
    assert driver.joules == 5 + 7


def test_packages_and_their_memory_are_counted_once(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 100)
    cores = zone(tmp_path, "intel-rapl:0:0", "core", 50)
    memory = zone(tmp_path, "intel-rapl:0:1", "dram", 10)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 990)
    whole = zone(tmp_path, "intel-rapl:2", "psys", 0)
    twin = zone(tmp_path, "intel-rapl-mmio:0", "package-0", 0)
    processors = Processors("a processor", tmp_path)
    assert processors.joules() == 0
    for path, joules in ((first, 130), (cores, 70), (memory, 14), (second, 5), (whole, 99), (twin, 30)):
        set_joules(path, joules)
    # 30 of the first package, 4 of its memory, and 990 to 5 over 1,000 of the second.
    assert processors.joules() == 30 + 4 + 15


@pytest.mark.parametrize("there", [False, True])
def test_what_cannot_be_read_is_not_counted(tmp_path: Path, there: bool) -> None:
    if there:
        (zone(tmp_path, "intel-rapl:0", "package-0", 1) / "energy_uj").unlink()
    processors = Processors("a processor", tmp_path / ("" if there else "nothing"))
    assert processors.joules() is None
    assert "RAPL" in processors.why


class Nvml:
    """NVML with two boards. ``mute`` names the questions that it has no answer to."""

    class NVMLError(Exception):
        pass

    def __init__(self, mute: tuple[str, ...] = ()) -> None:
        self.millijoules, self.mute = {"GPU-a": 5_000_000, "GPU-b": 9_000_000}, mute

    def __getattr__(self, question: str) -> Callable[..., Any]:
        answers = {
            "nvmlInit": lambda: None,
            "nvmlDeviceGetCount": lambda: len(self.millijoules),
            "nvmlDeviceGetHandleByIndex": lambda index: f"handle of {[*self.millijoules][index]}",
            "nvmlDeviceGetHandleByUUID": lambda uuid: f"handle of {uuid}",
            "nvmlDeviceGetUUID": lambda handle: handle.removeprefix("handle of "),
            "nvmlDeviceGetTotalEnergyConsumption": lambda handle: self.millijoules[handle.removeprefix("handle of ")],
            "nvmlDeviceGetEnforcedPowerLimit": lambda handle: 700_000,
        }
        if question in self.mute:
            raise self.NVMLError("Not Supported")
        return answers[question]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    board = Nvml()
    monkeypatch.setattr(counters, "_nvml", lambda: board)
    return board


def test_a_board_counts_by_itself_from_when_it_was_first_read(nvml: Nvml) -> None:
    boards = Boards()
    nvml.millijoules |= {"GPU-a": 5_250_000, "GPU-b": 9_000_001}
    assert boards.joules("GPU-a") == 250
    assert boards.joules("GPU-b") == pytest.approx(0.001)
    assert boards.cap("GPU-a") == 700


def test_a_board_that_does_not_count_says_why(nvml: Nvml) -> None:
    nvml.mute = ("nvmlDeviceGetTotalEnergyConsumption",)
    boards = Boards()
    assert boards.joules("GPU-a") is None
    assert boards.cap("GPU-a") == 700
    assert boards.why == "NVML says: Not Supported"
    nvml.mute = ()
    sliced = Boards()
    assert (sliced.joules("GPU-slice"), sliced.cap("GPU-slice")) == (None, None)
    assert sliced.why == "NVML knows no GPU-slice"


def test_without_nvml_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "_nvml", lambda: None)
    boards = Boards()
    assert (boards.joules("GPU-a"), boards.cap("GPU-a")) == (None, None)
    assert "nvidia-ml-py" in boards.why


@pytest.mark.parametrize(("local_rank", "found"), [("1", "GPU-1"), ("3", "GPU-0")])
def test_the_gpu_of_a_rank_is_its_own_or_the_only_one_it_sees(
    monkeypatch: pytest.MonkeyPatch, local_rank: str, found: str
) -> None:
    import torch

    assert counters.gpu_in_use() is None, "no GPU has been opened"
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    named = lambda index: SimpleNamespace(name="a board", uuid=str(index))  # noqa: E731
    monkeypatch.setattr(torch.cuda, "get_device_properties", named)
    assert counters.gpu_in_use() == ("a board", found)


# ── the meter ────────────────────────────────────────────────────────────────────────────────────


class Clock:
    """What the meter takes for the time, in seconds."""

    def __init__(self) -> None:
        self.now, self.starts = 100.0, 0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        self.starts += 1
        return self.starts


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clock:
    """A clock of the test's, and a machine that has no counters."""
    told = Clock()
    monkeypatch.setattr(meter, "time", told)
    monkeypatch.setattr(counters, "POWERCAP", tmp_path / "nothing")
    monkeypatch.setattr(counters, "_nvml", lambda: None)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return told


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "sft-12345678"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def metered(out: Path, *, gpu: bool = False) -> Meter:
    return Meter(out, "a processor", gpu)


def worked(out: Path, clock: Clock, seconds: float, *, gpu: bool = False, error: Exception | None = None) -> None:
    """A session of so many seconds, which may end by an error."""
    try:
        with metered(out, gpu=gpu):
            clock.now += seconds
            if error is not None:
                raise error
    except UserError:
        pass


def test_stated_watts_times_hours_and_the_grids_factor(out: Path, clock: Clock) -> None:
    worked(out, clock, 1800)
    found = meter.of(out, Stated(watts=200, grid=GRID))
    assert (found.device, found.devices, found.sessions) == ("a processor", 1, 1)
    assert found.device_hours == 0.5
    # 200 W for half an hour.
    assert found.kwh == pytest.approx(0.1)
    assert found.kg_co2eq == pytest.approx(0.05)
    assert (found.how, found.grid_kg_per_kwh) == ("stated watts", GRID)
    assert "cooling" in found.excludes


def test_what_nobody_knows_is_not_guessed(out: Path, clock: Clock) -> None:
    worked(out, clock, 1800)
    found = meter.of(out, Stated(grid=GRID))
    assert (found.device_hours, found.kwh, found.kg_co2eq) == (0.5, None, None)
    assert found.how == "unknown: its processors have no RAPL that can be read, and watts= is not stated"


def test_what_is_measured_goes_before_what_is_stated(
    out: Path, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = zone(tmp_path / "powercap", "intel-rapl:0", "package-0", 900)
    monkeypatch.setattr(counters, "POWERCAP", tmp_path / "powercap")
    with metered(out) as counting:
        clock.now += 60
        set_joules(package, 990)
        counting.note()
        # Between two beats the counter wraps.
        clock.now += 60
        set_joules(package, 80)
    found = meter.of(out, Stated(watts=1000, grid=GRID))
    assert found.kwh == pytest.approx((90 + 90) / 3.6e6)
    assert (found.how, found.device_hours) == ("measured", pytest.approx(120 / 3600))


@pytest.mark.parametrize(
    ("mute", "watts", "kwh", "how"),
    [
        ((), 1000.0, 0.5, "measured"),
        (("nvmlDeviceGetTotalEnergyConsumption",), 1000.0, 2.0, "stated watts"),
        (("nvmlDeviceGetTotalEnergyConsumption",), None, 1.4, "power cap"),
        (("nvmlInit",), None, None, "unknown: "),
        (("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetEnforcedPowerLimit"), None, None, "unknown: NVML says"),
    ],
)
def test_a_gpu_counts_or_is_taken_at_what_is_stated_or_at_its_cap(
    out: Path,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    mute: tuple[str, ...],
    watts: float | None,
    kwh: float | None,
    how: str,
) -> None:
    board = Nvml(mute)
    monkeypatch.setattr(counters, "_nvml", lambda: None if "nvmlInit" in mute else board)
    monkeypatch.setattr(meter, "gpu_in_use", lambda: ("NVIDIA H200", "GPU-b"))
    with metered(out, gpu=True):
        clock.now += 7200
        board.millijoules |= {"GPU-a": 6_000_000_000, "GPU-b": 9_000_000 + 1_800_000_000}
    found = meter.of(out, Stated(watts=watts, grid=GRID))
    assert found.device == "NVIDIA H200"
    assert found.kwh == (None if kwh is None else pytest.approx(kwh))
    assert found.how.startswith(how)
    assert "host's processors" in found.excludes


def test_a_step_that_takes_no_gpu_counts_processors_although_an_earlier_one_has_opened_one(
    out: Path, clock: Clock, nvml: Nvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "gpu_in_use", lambda: ("NVIDIA H200", "GPU-b"))
    worked(out, clock, 3600, gpu=False)
    assert meter.of(out, Stated()).device == "a processor"


@pytest.mark.parametrize(
    ("settings", "may"),
    [
        (SimpleNamespace(), False),
        (SimpleNamespace(engine=SimpleNamespace(device="cpu")), False),
        (SimpleNamespace(engine=SimpleNamespace(device="auto")), True),
        (SimpleNamespace(device="cpu", engine=SimpleNamespace(device="cuda")), False),
        (SimpleNamespace(device="cuda", engine=SimpleNamespace(device="cpu")), True),
    ],
)
def test_a_gpu_is_counted_where_the_settings_let_it_be_taken(settings: object, may: bool) -> None:
    assert meter.may_use_gpu(settings) == may


def test_sessions_add_up_those_that_failed_included(out: Path, clock: Clock) -> None:
    worked(out, clock, 900, error=UserError("the loss is nan"))
    worked(out, clock, 1800)
    found = meter.of(out, Stated(watts=100, grid=GRID))
    assert (found.sessions, found.device_hours) == (2, 0.75)
    assert found.kwh == pytest.approx(0.075)


def test_sessions_that_know_and_do_not_know_are_together_not_known(
    out: Path, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked(out, clock, 900)
    package = zone(tmp_path / "powercap", "intel-rapl:0", "package-0", 0)
    monkeypatch.setattr(counters, "POWERCAP", tmp_path / "powercap")
    with metered(out):
        set_joules(package, 36)
    found = meter.of(out, Stated())
    assert found.kwh is None
    assert found.how.startswith("unknown: ")
    assert found.how.endswith("; measured")
    assert meter.of(out, Stated(watts=400)).kwh == pytest.approx(0.1 + 1e-5)


def test_ranks_count_their_own_gpus_and_a_machines_processors_once(
    out: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines of two ranks: at first four processes on processors; then two, each with a GPU."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank % 2))
        worked(out, clock, 3600)
    found = meter.of(out, Stated(watts=100))
    assert (found.devices, found.device_hours, found.kwh) == (2, 2.0, pytest.approx(0.2))
    monkeypatch.setattr(meter, "gpu_in_use", lambda: ("NVIDIA H200", "GPU-b"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        worked(out, clock, 1800, gpu=True)
    found = meter.of(out, Stated(watts=100))
    assert (found.device, found.devices, found.sessions) == ("NVIDIA H200", 2, 2)
    assert found.device_hours == 2.0 + 2 * 0.5


def test_what_is_refused_before_anything_was_written_leaves_nothing(out: Path, clock: Clock) -> None:
    (out / "config.json").unlink()
    worked(out, clock, 90, error=UserError("no"))
    with contextlib.suppress(UserError), metered(out) as counting:
        counting.note()
        raise UserError("no")
    out.rmdir()


def test_a_full_disk_is_told_by_the_step_and_not_hidden_by_the_meter(
    out: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(meter.files, "write_json", full)
    with pytest.raises(UserError, match="the step's own"), metered(out):
        raise UserError("the step's own")
    with pytest.raises(OSError, match="No space left"), metered(out):
        pass


def test_it_beats_by_itself(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is there before the step ends, and told anew while it runs."""
    monkeypatch.setattr(meter, "SECONDS_BETWEEN_BEATS", 0.01)
    with metered(out):
        seen: set[float] = set()
        until = time.monotonic() + 60
        while len(seen) < 2 and time.monotonic() < until:
            seen |= {json.loads(path.read_text())["hours"] for path in (out / meter.FOLDER).glob("*.json")}
            time.sleep(0.005)
    assert len(seen) > 1
    assert meter.of(out, Stated()).device_hours >= max(seen)


KILLED = """
import sys, time
from pathlib import Path
from alignment.energy import meter
meter.SECONDS_BETWEEN_BEATS = 0.01
with meter.Meter(Path(sys.argv[1]), "a processor", False):
    time.sleep(600)
"""


def test_a_kill_loses_what_came_after_the_last_beat_and_no_more(out: Path) -> None:
    killed = subprocess.Popen([sys.executable, "-c", KILLED, str(out)])
    while not list((out / meter.FOLDER).glob("*.json")):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (session,) = (json.loads(path.read_text()) for path in (out / meter.FOLDER).glob("*.json"))
    with metered(out):
        pass
    found = meter.of(out, Stated())
    assert found.sessions == 2
    assert found.device_hours >= session["hours"] > 0
