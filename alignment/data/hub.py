"""Rows of a dataset repository on the Hugging Face hub, or of a local directory of the same layout."""

from __future__ import annotations

from collections.abc import Iterator

import datasets
from datasets.exceptions import DatasetsError

from alignment.data.recipe import Hub
from alignment.data.rows import Raw
from alignment.errors import DataError


def read(hub: Hub) -> Iterator[Raw]:
    """The rows of one split, streamed and numbered from 1. Raises :class:`DataError` where it cannot be had."""
    name = f"{hub.repository}@{hub.revision}/{hub.split}"
    number = 0
    try:
        rows = datasets.load_dataset(hub.repository, hub.subset, split=hub.split, revision=hub.revision, streaming=True)
        for number, value in enumerate(rows, 1):
            yield Raw(name, number, dict(value), name)
    except (OSError, ValueError, DatasetsError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{name}:{number + 1}" if number else name,
            "cannot be read from the hub",
            cause=str(error).split("\n")[0],
            remedy="Check the repository, revision, subset and split, the network, and HF_TOKEN for a "
            "gated repository.",
        ) from None
    if number == 0:
        raise DataError(name, "holds no rows", remedy="Check the split's name.")
