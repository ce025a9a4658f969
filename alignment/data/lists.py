"""Lists in YAML that travel with the package (``data_recipes/lists``); a file of the user's may stand in for each."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from alignment import files
from alignment.errors import DataError, UserError, nearest

PACKAGE = Path(__file__).parents[1]
RECIPES = next(folder for folder in (PACKAGE / "_data_recipes", PACKAGE.parent / "data_recipes") if folder.is_dir())
FOLDER = RECIPES / "lists"
MEND = "Mend that line. A text that holds a colon, or begins with a sign, goes into quotes."


def locate(own: str | None, shipped: str, at: str) -> Path:
    """The user's file, or the shipped one for null; ``at`` is the key that names it.

    Raises :class:`UserError` where the file is not there.
    """
    if own is None:
        return FOLDER / shipped
    folder = files.typed(own).parent
    lonely = not next(folder.glob("*.yaml"), None)
    begin = f"No .yaml file is in {folder}. Begin with a copy of {FOLDER / shipped}." if lonely else ""
    return files.existing(own, at, begin)


def named(name: str, shipped: str, at: str) -> Path:
    """A list that comes with the program by its name, or a file like ``shipped``, which the key ``at`` names.

    Raises :class:`UserError` where there is none.
    """
    if name.endswith((".yaml", ".yml")):
        return locate(name, shipped, at)
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = [one.stem for one in FOLDER.glob(f"{Path(shipped).stem}*.yaml")]
        raise UserError(f"{at}={name}: no such list comes with the program", remedy=nearest(name, known))
    return path


def read(path: Path, remedy: str = f"Begin with a copy of one of {FOLDER}.") -> dict[str, Any]:
    """The keys of a YAML file, not validated. Raises :class:`DataError` with ``file:line`` for what is none."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _EachKeyOnce)
    except UnicodeDecodeError as error:
        raise DataError(str(path), f"byte {error.start} is not UTF-8", remedy="Save the file as UTF-8.") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        # What PyYAML lets through: a date that is none, a tag on a value that it does not fit, endless brackets.
        raise DataError(str(path), f"is not YAML: {type(error).__name__}: {error}", remedy=remedy) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise DataError(where, f"is not YAML: {getattr(error, 'problem', error)}", remedy=MEND) from None
    if not isinstance(values, dict):
        raise DataError(str(path), "holds no keys", remedy=remedy)
    return values


class _EachKeyOnce(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would silently keep the last, and one that is no plain value.

    Aliases are refused: a few lines of them stand for more than any memory holds, or for themselves.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(
                None, None, "an alias (*) is not read: write out what it stands for", mark
            )
        return super().compose_node(parent, index)

    def construct_scalar(self, node: yaml.ScalarNode) -> str:
        value = super().construct_scalar(node)
        if "\0" in value or value != value.encode(errors="replace").decode():
            raise yaml.constructor.ConstructorError(None, None, "an escape is no text", node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is not a plain value", key.start_mark)
            if key.value in seen:
                problem = f"the key {key.value!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)
