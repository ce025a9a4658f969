"""Rows of a dataset repository on the Hugging Face hub, or of a local directory of the same layout."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

import datasets
from datasets.exceptions import DatasetsError
from httpx2 import HTTPError
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from alignment.data.rows import Raw
from alignment.data.sources import Hub
from alignment.errors import DataError
from alignment.files import digest_folder, digest_json, typed


def commit(hub: Hub) -> str:
    """The commit that a repository's revision names now; for a local directory, the digest of its files.

    Raises :class:`DataError` where the hub cannot be asked.
    """
    folder = typed(hub.repository)
    if folder.is_dir():
        return digest_json(digest_folder(folder))
    if re.fullmatch(r"[0-9a-f]{40}", hub.revision):
        return hub.revision
    try:
        found = HfApi().dataset_info(hub.repository, revision=hub.revision).sha
    except (OSError, ValueError, HfHubHTTPError, HTTPError) as error:
        raise DataError(
            f"{hub.repository}@{hub.revision}",
            "the hub does not tell its commit",
            cause=str(error).split("\n")[0],
            remedy="Check the name, your login (HF_TOKEN) and the network; a whole commit as revision needs no asking.",
        ) from None
    assert found is not None
    return found


def read(hub: Hub) -> Iterator[Raw]:
    """The rows of one split, streamed and numbered from 1. Raises :class:`DataError` where it cannot be had.

    A subset that ends with ``/`` is a folder of the repository whose files are read, for repositories that
    declare no configurations; any other is a configuration. A local directory has no revisions: the recipe's
    is part of the rows' name there and nothing else.
    """
    part = f"/{hub.subset.strip('/')}" if hub.subset else ""
    name = f"{hub.repository}@{hub.revision}{part}/{hub.split}"
    folder = hub.subset if hub.subset and hub.subset.endswith("/") else None
    number = 0
    try:
        local = typed(hub.repository)
        rows = datasets.load_dataset(
            str(local) if local.is_dir() else hub.repository,
            None if folder else hub.subset,
            data_dir=folder,
            split=hub.split,
            revision=hub.revision,
            streaming=True,
        )
        for number, value in enumerate(rows, 1):
            yield Raw(name, number, dict(value), name)
    except StopIteration:
        pass  # what the library raises for a first file that is empty
    except (OSError, EOFError, zlib.error, ValueError, DatasetsError, HTTPError) as error:
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
        raise DataError(
            name, "holds no rows", remedy="Check the subset and the split, and that its files are not empty."
        )
