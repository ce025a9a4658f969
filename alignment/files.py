"""Files that are whole or not there: atomic writes, digests, locks, a look at the disk.

Everything that is written for keeps goes through here, so that a kill at any instant leaves
either the old content, the new content, or a temporary that the next start removes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from alignment.errors import UserError, nearest

TEMPORARY = ".partial"
"""Suffix of what is being written; nothing that carries it is ever read."""
SAFETENSORS_TEMPORARY = ".tmp??????"
"""What safetensors calls a file that it is writing."""
FULL = re.compile(r"No space left|os error 28|PytorchStreamWriter failed|\d+ requested and \d+ written")
"""What libraries with errors of their own say of a full disk: safetensors, torch, numpy."""
BETWEEN_LOOKS = 0.5
"""Seconds between two looks at a lock that another process holds."""


def typed(path: str) -> Path:
    """A path as a person types it: ``~`` is their home; that of nobody known stays as it is."""
    return Path(os.path.expanduser(path))


def existing(path: str, at: str, remedy: str = "") -> Path:
    """A file as a person types it; ``at`` is the key that names it.

    Raises :class:`UserError` where there is none, with ``remedy`` or else what lies beside it.
    """
    found = typed(path)
    if found.is_file():
        return found
    cause = "That is a folder." if found.is_dir() else ""
    beside = sorted(one.name for one in found.parent.glob(f"*{found.suffix}") if one.is_file())
    if not remedy and not found.parent.is_dir():
        remedy = f"There is no folder {found.parent} either: check the path."
    elif not remedy:
        where = found.parent.resolve()
        remedy = nearest(found.name, beside) if beside else f"{where} has no file that ends with {found.suffix}."
    raise UserError(f"{at}={path}: there is no such file", cause=cause, remedy=remedy)


def write_atomic(path: Path, content: str | bytes, *, mode: int = 0o666) -> None:
    """Replace ``path`` by ``content``: written beside, fsynced, renamed. ``mode`` is cut by the user's umask."""
    data = content.encode() if isinstance(content, str) else content
    # By process: one that has not yet noticed that its parent was killed may be writing the same.
    beside = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    with open(beside, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as readable JSON, atomically. Raises ``TypeError`` on what JSON cannot hold."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sync_folder(folder: Path) -> None:
    """Make the names inside ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Make every file below ``folder`` durable, then the names."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        else:
            sync_folder(path)
    sync_folder(folder)


def digest_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_folder(folder: Path, keep: Callable[[str], bool] = lambda name: True) -> dict[str, str]:
    """SHA-256 per file below ``folder``, by relative name, where ``keep(name)``; temporaries never."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.endswith(TEMPORARY) and keep(name):
            digests[name] = digest_file(path)
    return digests


def digest_json(value: Any) -> str:
    """The SHA-256 of a value's canonical JSON. What cannot be serialised raises ``TypeError``."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def remove_temporaries(folder: Path) -> None:
    """Remove what an earlier, interrupted run left half-written below ``folder``, by us or by safetensors."""
    for pattern in (f"*{TEMPORARY}", SAFETENSORS_TEMPORARY):
        for path in list(folder.rglob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Create ``folder``; a place that cannot be written is a :class:`UserError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Without a name where the file system has such files: a kill leaves nothing behind, and other processes of a
        # run, on other machines too, look at the same moment.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise disk_error(error, folder) from None


def size(folder: Path) -> int:
    """The bytes of all files below ``folder``, each once; one that goes while they are counted counts nothing."""
    sizes = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            found = path.lstat()
            sizes[found.st_dev, found.st_ino] = found.st_size if stat.S_ISREG(found.st_mode) else 0
    return sum(sizes.values())


def need_space(folder: Path, wanted: int) -> None:
    """Refuse to start what would not fit: ``wanted`` bytes on the disk that holds ``folder``."""
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise UserError(
            f"{folder}: {wanted / 2**20:,.0f} MiB are needed and {free / 2**20:,.0f} MiB are free",
            cause="A disk that fills on the way would stop the run half-way.",
            remedy="Free some space, run `stage=prune`, or choose another folder with store=<folder>.",
        )


def disk_error(error: OSError, path: Path | str | None = None) -> UserError:
    """An operating-system error as a user reads it: what was touched, why it failed, what to do."""
    where = path or error.filename or "the disk"
    remedies = {
        errno.ENOSPC: "The disk is full. Free some space or choose another folder with store=<folder>; "
        "the same command then goes on from the last whole checkpoint.",
        errno.EDQUOT: "The quota is used up. Free some space; the same command then goes on.",
        errno.EACCES: "There is no permission to write there. Choose another folder with store=<folder>.",
        errno.EROFS: "That file system is read-only. Choose another folder with store=<folder>.",
        errno.EPERM: "There is no permission to write there. Choose another folder with store=<folder>.",
        errno.ENOTDIR: "A part of this path is a file. Choose another folder with store=<folder>.",
        errno.EEXIST: "A file of this name is in the way. Choose another folder with store=<folder>.",
    }
    number = error.errno or (errno.ENOSPC if FULL.search(str(error)) else 0)
    remedy = remedies.get(number, "Check that the path exists and can be read and written.")
    told = error.strerror or (os.strerror(number) if number else error)
    return UserError(f"{where}: {told}", remedy=remedy)


def full_disk(error: BaseException) -> UserError | None:
    """A full disk as told by a library that has errors of its own (safetensors, torch, numpy), or None for all else."""
    if FULL.search(str(error)) is None:
        return None
    return disk_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


@contextlib.contextmanager
def exclusive(
    folder: Path, on_wait: Callable[[str], None], meanwhile: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Hold ``folder`` alone; a second process waits, after ``on_wait(holder)`` has told its user.

    ``meanwhile`` is called again and again while it waits, and may raise. The lock lies beside the folder and is
    released by the kernel when its holder dies.
    """
    lock = folder.with_name(f".{folder.name}.lock")
    with open(lock, "a+") as file:
        told = False
        while not _locked(file):
            if not told:
                file.seek(0)
                on_wait(file.read().strip() or "another process")
                told = True
            meanwhile()
            time.sleep(BETWEEN_LOOKS)
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield


def _locked(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
