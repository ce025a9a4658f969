"""The command line taken apart: flags, the stage, and ``key=value`` pairs exactly as they were typed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from alignment.errors import UserError, nearest


@dataclass
class Request:
    """The command line, taken apart."""

    stage: str | None = None
    help: bool = False
    show_config: bool = False
    multirun: bool = False
    overrides: list[tuple[str, str]] = field(default_factory=list)
    """``(key, value)`` as typed, without ``stage``."""

    def value(self, key: str, default: str = "") -> str:
        """The last value given to ``key``."""
        return dict(self.overrides).get(key, default)


def read(arguments: Sequence[str]) -> Request:
    """Take a command line apart. Raises :class:`UserError` on what is neither a flag nor ``key=value``."""
    request, waiting = Request(), list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if argument in ("--help", "-h", "help"):
            request.help = True
        elif argument in ("-m", "--multirun"):
            request.multirun = True
        elif argument in ("--cfg", "-c"):
            if not waiting or waiting.pop(0) != "job":
                raise UserError("--cfg takes the word job", remedy="Say --cfg job.")
            request.show_config = True
        elif argument.startswith("-"):
            raise UserError(
                f"{argument}: there is no such flag",
                remedy=nearest(argument, ["--help", "--cfg job", "-m", "--multirun"]),
            )
        else:
            key, equals, value = argument.partition("=")
            if not equals or not key or key[0] in "+~":
                raise UserError(
                    f"{argument!r} is not of the form key=value",
                    cause="Keys are fixed: none can be added with + or removed with ~." if key[:1] in "+~" else "",
                    remedy="Quote a value that has spaces: prompt='Who lives here?'.",
                )
            if key == "stage":
                request.stage = value
            else:
                request.overrides.append((key, value))
    if request.stage is None and (request.overrides or request.show_config or request.multirun):
        raise UserError("stage=… is missing", remedy="`python -m alignment.run` alone lists the stages.")
    return request
