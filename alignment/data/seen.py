"""Which prompts a model has been trained on, carried from artifact to artifact.

Every training stage writes ``seen.npy``: the prompt keys (``chat.types.prompt_key``) of its rows and of
everything its parents were trained on, as sorted 64-bit numbers. An evaluation refuses a model that has
seen its prompts, whatever became of the datasets in between.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from alignment import ranks
from alignment.errors import UserError

FILE = "seen.npy"


def numbers(keys: Iterable[str]) -> np.ndarray:
    """Prompt keys as sorted, distinct 64-bit numbers."""
    return np.unique(np.fromiter((int(key, 16) for key in keys), dtype=np.uint64))


def write(out: Path, keys: Iterable[str], parents: Iterable[Path]) -> None:
    """Record the keys of this training and those of the artifacts it started from."""
    if not ranks.is_main():
        return
    inherited = [read(parent) for parent in parents]
    np.save(out / FILE, np.unique(np.concatenate([numbers(keys), *inherited])), allow_pickle=False)


def read(artifact: Path) -> np.ndarray:
    """The keys that an artifact has seen; none for what was made without prompts, or by others."""
    path = artifact / FILE
    return np.load(path, allow_pickle=False) if path.is_file() else np.zeros(0, np.uint64)


def refuse_overlap(model: Path, keys: Iterable[str]) -> None:
    """Raise :class:`UserError` where a model was trained on any of the prompts it is to be measured on."""
    wanted = numbers(keys)
    shared = np.intersect1d(wanted, read(model), assume_unique=True)
    if len(shared):
        raise UserError(
            f"{model} has been trained on {len(shared):,} of the {len(wanted):,} prompts it is to be measured on",
            cause="A model is measured on prompts that it has not seen.",
            remedy="Choose another split or dataset, or prompts whose recipe keeps them apart by prompt.",
        )
