"""The command line taken apart: flags, the stage, and ``key=value`` pairs exactly as they were typed; dotted keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
        if not _is_text(argument):
            raise UserError(
                f"{argument.encode(errors='backslashreplace').decode()}: is not text",
                cause="It holds bytes that are not UTF-8, which no record can keep.",
                remedy="Rename the file or folder, or use a terminal in UTF-8.",
            )
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


def _is_text(argument: str) -> bool:
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


def lay(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; mappings are merged, everything else is replaced."""
    if isinstance(value, Mapping) and isinstance(at(values, key), dict):
        for inner, item in value.items():
            lay(values, f"{key}.{inner}", item)
        return
    *path, leaf = key.split(".")
    place: Any = values
    for part in path:
        place = place[_position(key, part, place)] if isinstance(place, list) else place.setdefault(part, {})
        if not isinstance(place, list | dict):
            raise UserError(
                f"{key}={value}: {part} is {place!r}, which has no parts",
                remedy=f"Say {key} alone, or all of {part} at once: '{part}={{…}}'.",
            )
    if isinstance(place, list):
        place[_position(key, leaf, place)] = value
    else:
        place[leaf] = value


def _position(key: str, part: str, among: list[Any]) -> int:
    if not (part.isdecimal() and part.isascii() and len(part) < 10 and int(part) < len(among)):
        raise UserError(f"{key}: {part!r} is no place in a list of {len(among)}", remedy="Places are counted from 0.")
    return int(part)


def at(values: Any, key: str) -> Any:
    """The value of a dotted key; None where there is none."""
    for part in key.split("."):
        if isinstance(values, list):
            values = values[int(part)] if part.isdecimal() and part in map(str, range(len(values))) else None
        else:
            values = values.get(part) if isinstance(values, Mapping) else None
    return values
