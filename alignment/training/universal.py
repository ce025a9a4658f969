"""A checkpoint read by another number of processes than wrote it.

Without DeepSpeed there is nothing to do: weights and optimiser are whole. DeepSpeed divides them by the number of
processes; its universal format has them parameter by parameter, and is made when it is needed, beside the checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

from torch import Tensor

from alignment import console, files, parts
from alignment.errors import UserError
from alignment.training import team
from alignment.training.engine import Engine

RECORD = "engine.json"
"""Which engine has written a checkpoint."""
STEPS = "global_step*"
"""Folders of DeepSpeed's in a checkpoint."""


def describe(checkpoint: Path, engine: Engine) -> None:
    """Write down with which engine the checkpoint is made; one that was made universal to begin from has served."""
    shutil.rmtree(_converted(checkpoint.parents[1]), ignore_errors=True)
    (checkpoint / RECORD).write_text(json.dumps({"zero": engine.settings.zero, "processes": engine.world}))


def fits(checkpoint: Path, engine: Engine) -> bool:
    """Whether the engine can read the checkpoint as it is. Raises :class:`UserError` where it cannot read it at all."""
    found = json.loads((checkpoint / RECORD).read_text())
    if found["zero"] != engine.settings.zero:
        raise UserError(
            f"{checkpoint}: was written under {_named(found['zero'])}, and this is {_named(engine.settings.zero)}",
            cause="Each divides the optimiser's state in its own way.",
            remedy="Go on with the same engine, or begin anew with force=true.",
        )
    return not engine.settings.zero or found["processes"] == engine.world


def fitting(checkpoint: Path, engine: Engine, out: Path) -> Path:
    """The checkpoint as this number of processes can read it: itself, or a universal one below ``out``."""
    if team.from_main(lambda: fits(checkpoint, engine)):
        return checkpoint
    return team.from_main(lambda: _trainers(checkpoint, _converted(out)))


def convert(source: Path, target: Path) -> None:
    """Make one of DeepSpeed's folders universal. Raises :class:`UserError` where the disk has no room for that."""
    files.make_folder(target.parent)
    # Fragments of all parameters stand beside what is put together from them.
    files.need_space(target.parent, 2 * files.size(source))
    from deepspeed.checkpoint import ds_to_universal

    wanted = Namespace(
        input_folder=str(source),
        output_folder=str(target),
        # In this process: others would be copies of one that holds connections.
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        # Of ZeRO 1 and 2, which do not say that they can be converted.
        inject_missing_state=True,
    )
    console.say("  a checkpoint of another number of processes is converted", style="dim")
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        ds_to_universal.main(wanted)


def divide_steps(model: Any) -> None:
    """Give each group of parameters a count of steps of its own.

    Reading a universal checkpoint, ZeRO 3 gives all groups one tensor to count in, and AdamW counts as often as there
    are groups: its correction of the moments then runs ahead.
    """
    optimiser = getattr(getattr(model, "optimizer", None), "optimizer", None)
    for state in optimiser.state.values() if optimiser is not None else ():
        if isinstance(state.get("step"), Tensor):
            state["step"] = state["step"].clone()


def _converted(out: Path) -> Path:
    return out / parts.FOLDER / "universal"


def _trainers(checkpoint: Path, folder: Path) -> Path:
    """A checkpoint of transformers' trainer, whose files lie beside DeepSpeed's folder."""
    shutil.rmtree(folder, ignore_errors=True)
    files.make_folder(folder)
    (source,) = checkpoint.glob(STEPS)
    convert(source, folder / f"{source.name}_universal")
    for path in checkpoint.iterdir():
        if path.is_file():
            shutil.copy2(path, folder)
    return folder


def _named(zero: int) -> str:
    return f"ZeRO {zero}" if zero else "no ZeRO"
