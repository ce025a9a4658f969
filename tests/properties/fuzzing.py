"""What the fuzzing tests share: a folder that nothing may leave, a bound of time, and two sizes of every test."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from alignment.errors import UserError
from alignment.files import disk_error

COMPUTING, WAITING = 20.0, 300.0
"""Seconds for one example, of this process and by the clock, on a busy machine; what takes longer hangs."""
SIZES: dict[str, int] = {}
"""Examples of every test in its thorough size, by name."""


def both(
    check: Callable[..., None], *, quick: int, thorough: int, before: Callable[[], Any] = bool, **drawn: Any
) -> tuple[Any, Any]:
    """The same test twice: with few examples, always the same, and with many, others every time (``make test-slow``).

    ``check(folder, **drawn)`` gets an empty folder, in which it also stands, and may write nowhere else; ``before`` is
    called outside of it.
    """

    def run(**values: Any) -> None:
        before()
        with sandbox() as folder:
            check(folder, **values)

    def sized(examples: int, name: str, repeatable: bool) -> Any:
        def test(**values: Any) -> None:
            run(**values)

        test.__name__ = test.__qualname__ = name
        test.__module__, test.__doc__ = check.__module__, check.__doc__
        configured = settings(
            max_examples=examples,
            derandomize=repeatable,
            database=None,
            deadline=None,
            # Not the phase that explains: it traces every line, which takes ten times as long.
            phases=[Phase.generate, Phase.shrink],
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        )
        return configured(given(**drawn)(test))

    SIZES[f"{check.__module__}.{check.__name__}"] = thorough
    name = f"test_{check.__name__}"
    return sized(quick, name, True), pytest.mark.slow(sized(thorough, f"{name}_thoroughly", False))


def told(work: Callable[[], Any]) -> Any:
    """What ``work`` gives; None where it is refused in words, as anything may be; the door tells OSErrors so too."""
    try:
        return work()
    except OSError as error:
        said = disk_error(error).problem
    except UserError as error:
        said = error.problem.strip()
    assert said, "a refusal says what is refused"
    return None


# ── what must not happen ─────────────────────────────────────────────────────────────────────────


class HangError(BaseException):
    """An example that takes too long; no code of ours catches it."""


class OutsideError(BaseException):
    """A touch of what lies outside of the folder; no code of ours catches it."""


WRITES = {
    "os.mkdir": (0,),
    "os.rename": (0, 1),
    "os.link": (1,),
    "os.symlink": (1,),
    "os.remove": (0,),
    "os.rmdir": (0,),
    "os.truncate": (0,),
    "os.chmod": (0,),
    "os.chown": (0,),
    "os.utime": (0,),
}
"""Audit events that change the disk, and which of their arguments are paths."""
NEVER = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "socket.connect",
    "socket.getaddrinfo",
)
_inside: list[Path] = []
_forbidden: list[Path] = []
_seen: list[str] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _inside:
        return
    if event == "open":
        path, mode, flags = arguments
        if not isinstance(path, int):
            writes = any(letter in (mode or "") for letter in "wax+") or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            _touched(event, path, None, bool(writes))
    elif event in WRITES:
        handle = next((one for one in reversed(arguments) if isinstance(one, int) and one > 2), None)
        for place in WRITES[event]:
            _touched(event, arguments[place], handle if event in ("os.remove", "os.rmdir") else None, True)
    elif event in NEVER:
        _tell(f"{event} {arguments[:2]!r}")


def _touched(event: str, path: Any, handle: int | None, writes: bool) -> None:
    if isinstance(path, int):
        return
    spelled = Path(os.fsdecode(path))
    if handle is not None and not spelled.is_absolute():
        spelled = Path(os.readlink(f"/proc/self/fd/{handle}")) / spelled
    found = Path(os.path.realpath(spelled.parent)) / spelled.name
    if any(os.path.realpath(found).startswith(f"{one}/") for one in _forbidden):
        _tell(f"{event} of {found}, which is somebody else's")
    harmless = found == Path("/dev/null") or "__pycache__" in found.parts
    if writes and not harmless and not any(found == one or found.is_relative_to(one) for one in _inside):
        _tell(f"{event} of {found}, which lies outside")


def _tell(what: str) -> None:
    _seen.append(what)
    raise OutsideError(what)


@contextmanager
def watched(*folders: Path, never_read: Sequence[Path] = ()) -> Iterator[None]:
    """Refuse every write outside of ``folders``, every read below ``never_read``, every process and connection.

    Only what Python does is seen, and not what a library does in C or Rust: :func:`sandbox` also looks afterwards.
    """
    if not getattr(sys, "_fuzzing_hook", False):
        sys.addaudithook(_hook)
        sys._fuzzing_hook = True  # type: ignore[attr-defined]
    _seen.clear()
    _forbidden[:] = [Path(os.path.realpath(one)) for one in never_read]
    _inside[:] = [Path(os.path.realpath(one)) for one in folders]
    try:
        yield
    finally:
        _inside.clear()
        _forbidden.clear()
    assert not _seen, f"something was caught that should have come through: {_seen}"


@contextmanager
def bounded(computing: float = COMPUTING, waiting: float = WAITING) -> Iterator[None]:
    """Raise :class:`HangError` in a body that takes longer."""

    def ring(number: int, _: object) -> None:
        raise HangError(
            f"more than {computing:g} s of work" if number == signal.SIGPROF else f"more than {waiting:g} s"
        )

    clocks = ((signal.SIGPROF, signal.ITIMER_PROF, computing), (signal.SIGALRM, signal.ITIMER_REAL, waiting))
    before = [signal.signal(number, ring) for number, _, _ in clocks]
    for _, clock, seconds in clocks:
        signal.setitimer(clock, seconds)
    try:
        yield
    finally:
        for (number, clock, _), handler in zip(clocks, before, strict=True):
            signal.setitimer(clock, 0)
            signal.signal(number, handler)


@contextmanager
def sandbox() -> Iterator[Path]:
    """An empty folder to stand in. Beside it lies ``outside``, where nothing may be read, made or changed."""
    home = Path(os.path.realpath(tempfile.mkdtemp(prefix="fuzz")))
    folder, outside, stood = home / "inside", home / "outside", Path.cwd()
    folder.mkdir()
    outside.mkdir()
    (outside / "kept").write_text("as it was")
    os.chdir(folder)
    try:
        with bounded(), watched(folder, never_read=[outside]):
            yield folder
        assert sorted(path.name for path in home.iterdir()) == ["inside", "outside"]
        assert [path.name for path in outside.iterdir()] == ["kept"]
        assert (outside / "kept").read_text() == "as it was"
    finally:
        os.chdir(stood)
        shutil.rmtree(home)
