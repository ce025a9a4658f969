"""A release on the Hugging Face hub: only where it is asked for, private unless said otherwise."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alignment.errors import UserError

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
LOGIN = "Set HF_TOKEN to a token that may write there."


def check(repository: str, *, private: bool) -> None:
    """Before anything is written: that somebody is logged in, and that a repository that is there is as private.

    Raises :class:`UserError`.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    if not REPOSITORY.fullmatch(repository):
        raise UserError(f"push={repository}: is no repository", remedy="Name it as <organisation or user>/<name>.")
    token = get_token()
    if token is None:
        raise UserError(f"push={repository}: nobody is logged in to the hub", remedy=LOGIN)
    with _told(repository):
        try:
            found = HfApi(token=token).repo_info(repository)
        except RepositoryNotFoundError:
            return
    if private and not found.private:
        raise UserError(
            f"push={repository}: that repository is public",
            remedy="Say private=false where everybody may see it, or name another one.",
        )


def push(release: Path, repository: str, *, private: bool, message: str) -> str:
    """Upload the folder as one commit, making the repository where there is none; gives the commit's address.

    What the repository held before goes with the same commit: of old weights beside new ones, the old would be loaded.
    """
    from huggingface_hub import HfApi, get_token

    with _told(repository):
        api = HfApi(token=get_token())
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.upload_folder(repo_id=repository, folder_path=release, commit_message=message, delete_patterns="*")
    return str(done.commit_url)


@contextmanager
def _told(repository: str) -> Iterator[None]:
    """What the hub and the network raise, as a user reads it."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        yield
    except (HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled, ConnectionError) as error:
        raise UserError(
            f"push={repository}: the hub refuses, or cannot be reached",
            cause=(str(error).splitlines() or [type(error).__name__])[0],
            remedy=f"{LOGIN} The same command goes on with the upload; what is written is kept.",
        ) from None
