"""Counters of energy that devices have: RAPL's of processors, NVML's of NVIDIA's GPUs.

Every device says its ``joules`` since it was first asked, or None and, in ``why``, for what reason; ``cap`` is the
power that it may not exceed, in watts, where it tells one.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from alignment import ranks

POWERCAP = Path("/sys/class/powercap")


class Counter:
    """A counter that begins again at 0 now and then, as the joules since :meth:`read` was called first."""

    def __init__(self, wraps_at: float | None = None) -> None:
        """``wraps_at``: the joules at which it begins again; None for one that only a restarted driver sets back."""
        self._wraps_at, self._last, self.joules = wraps_at, math.nan, 0.0

    def read(self, now: float) -> None:
        """Take in what the counter says now, in joules. It must not have wrapped twice since the last call."""
        if not math.isnan(self._last):
            passed = now - self._last
            self.joules += passed if passed >= 0 else now if self._wraps_at is None else passed + self._wraps_at
        self._last = now


class Processors:
    """The processors of this machine and their memory, by RAPL: all that runs on them is counted.

    RAPL's zones are ``intel-rapl:<package>`` and, within, ``intel-rapl:<package>:<part>``; AMD's processors have the
    same names. Of the parts only DRAM is not in its package.
    """

    kind = "cpu"

    def __init__(self, name: str, root: Path | None = None) -> None:
        root = root or POWERCAP
        self.name, self.why = name, "its processors have no RAPL that can be read"
        self._zones = dict(filter(None, map(_zone, sorted(root.glob("intel-rapl:*"))))) if root.is_dir() else {}
        self.joules()

    def joules(self) -> float | None:
        """Since this object was made."""
        for zone, counter in self._zones.items():
            counter.read(_microjoules(zone / "energy_uj"))
        return sum(counter.joules for counter in self._zones.values()) if self._zones else None

    def cap(self) -> float | None:
        """Watts that may not be exceeded: RAPL's limits are of no use, being above what processors draw."""
        return None


def _zone(folder: Path) -> tuple[Path, Counter] | None:
    try:
        name = (folder / "name").read_text().strip()
        wraps_at = _microjoules(folder / "max_energy_range_uj")
        _microjoules(folder / "energy_uj")
    except OSError:  # Since 2020 the kernel lets root alone read it.
        return None
    return (folder, Counter(wraps_at)) if name.startswith("package") or name == "dram" else None


def _microjoules(path: Path) -> float:
    return int(path.read_text()) / 1e6


class Boards:
    """The GPUs of this machine by NVML, whose counters have to be read before anybody knows which one is taken."""

    def __init__(self) -> None:
        self.why, self._nvml = "nvidia-ml-py or NVIDIA's driver is not there", _nvml()
        self._counters: dict[str, Counter] = {}
        for index in range(self._asked("nvmlDeviceGetCount") or 0):
            uuid = self._asked("nvmlDeviceGetUUID", self._asked("nvmlDeviceGetHandleByIndex", index))
            if uuid is not None:
                self._counters[uuid] = Counter()
                self.joules(uuid)

    def joules(self, uuid: str) -> float | None:
        """Of a board since this object was made; None where it does not count (before Volta, and slices of a board)."""
        millijoules = self._of("nvmlDeviceGetTotalEnergyConsumption", uuid)
        if millijoules is None:
            return None
        self._counters[uuid].read(millijoules / 1e3)
        return self._counters[uuid].joules

    def cap(self, uuid: str) -> float | None:
        """Watts that a board may not exceed."""
        milliwatts = self._of("nvmlDeviceGetEnforcedPowerLimit", uuid)
        return None if milliwatts is None else milliwatts / 1e3

    def _of(self, question: str, uuid: str) -> int | None:
        if uuid not in self._counters:
            self.why = f"NVML knows no {uuid}" if self._counters else self.why
            return None
        return self._asked(question, self._asked("nvmlDeviceGetHandleByUUID", uuid))

    def _asked(self, question: str, *of: Any) -> Any:
        """NVML's answer, or None where it has none: a question that fails says why."""
        if self._nvml is None or None in of:
            return None
        try:
            return getattr(self._nvml, question)(*of)
        except self._nvml.NVMLError as error:
            self.why = f"NVML says: {error}"
            return None


@dataclass(frozen=True)
class Board:
    """One of the boards."""

    name: str
    uuid: str
    boards: Boards
    kind = "gpu"

    @property
    def why(self) -> str:
        """Why it does not tell."""
        return self.boards.why

    def joules(self) -> float | None:
        """Since the boards were first read."""
        return self.boards.joules(self.uuid)

    def cap(self) -> float | None:
        """Watts that it may not exceed."""
        return self.boards.cap(self.uuid)


def _nvml() -> ModuleType | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def gpu_in_use() -> tuple[str, str] | None:
    """Name and NVML's UUID of the GPU on which this process computes; None as long as it has opened none."""
    if "torch" not in sys.modules:
        return None
    import torch

    if not torch.cuda.is_initialized():
        return None
    # By rank and not by torch's current device, which every thread has for itself.
    local = ranks.local_rank()
    properties = torch.cuda.get_device_properties(local if local < torch.cuda.device_count() else 0)
    return properties.name, f"GPU-{properties.uuid}"
