"""What PyTorch raises where a device fails or a process is gone, and what the door makes of it."""

from __future__ import annotations

import pytest
import torch

from alignment import files, run
from alignment.errors import LostError, UserError
from alignment.training import faults

LOST = [
    torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
    torch.distributed.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:1, remote process exited"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
    RuntimeError("[../third_party/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.7]:1"),
]
OURS = [
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ZeroDivisionError("division by zero"),
]


@pytest.mark.parametrize("error", LOST, ids=str)
@pytest.mark.parametrize("debug", [[], ["debug=true"]])
def test_a_job_comes_back_from_what_is_nobodys_mistake(
    error: Exception, debug: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _through_the_door(error, debug, monkeypatch) == LostError.code == 86
    said = capsys.readouterr().err
    assert "process 0 on" in said
    assert str(error) in said, "with the traceback, for who has to look into it"
    assert "last checkpoint" in said


@pytest.mark.parametrize("error", OURS, ids=str)
def test_it_does_not_come_back_from_an_error_of_ours(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(type(error)):
        _through_the_door(error, [], monkeypatch)


def test_another_process_that_is_gone_is_told_by_the_same_code(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _through_the_door(LostError("another process of this run is gone"), ["debug=true"], monkeypatch) == 86
    assert _through_the_door(UserError("row 7 is damaged"), [], monkeypatch) == 2


def test_a_disk_that_is_full_is_no_device_that_failed() -> None:
    full = OSError(28, "No space left on device", "/shared/runs")
    assert faults.lost(full) is None
    assert files.disk_error(full) is not None


def _through_the_door(error: Exception, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a run in which this happens."""

    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(run, "_run", fail)
    return run.door(["stage=data", "recipe=miniature_text", *arguments])
