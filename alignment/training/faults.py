"""Errors in which neither the program nor its user is to blame: a GPU that fails, a process that is gone.

What PyTorch raises then becomes a :class:`~alignment.errors.LostError`, on which a job queues again. Importable without
torch.
"""

from __future__ import annotations

import os
import sys
import traceback

from alignment import ranks
from alignment.errors import LostError

OF_A_DEVICE = "CUDA error"
"""Begins what CUDA and its libraries report as a plain RuntimeError; a full memory is told otherwise."""
OF_A_KERNEL = "device-side assert"
"""A kernel refused its input, an index that is out of range, and would do so again."""
OF_A_CONNECTION = ("Connection closed by peer", "Connection reset", "remote process exited")
"""As gloo and NCCL tell that the other side of a connection has closed."""


def lost(error: Exception) -> LostError | None:
    """How it is told that this process's device, or its way to the others, has failed; None for any other error."""
    torch = sys.modules.get("torch")
    if torch is None or OF_A_KERNEL in str(error):
        return None
    kinds = torch.AcceleratorError, torch.distributed.DistError
    if not isinstance(error, kinds) and not (_is_of_a_device(error) or is_lost_connection(error)):
        return None
    return LostError(
        f"process {ranks.rank()} on {os.uname().nodename}: its device has failed, or its connection to another process",
        cause="".join(traceback.format_exception(error)).rstrip(),
        remedy="The same command goes on from the last checkpoint. Where it fails again on this machine, try another.",
    )


def is_lost_connection(error: Exception) -> bool:
    """Whether a computation of several processes has ended because another one did."""
    return any(words in str(error) for words in OF_A_CONNECTION)


def _is_of_a_device(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and str(error).startswith(OF_A_DEVICE)
