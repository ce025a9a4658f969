"""A recipe: which sources, in which declared format, pass which filters and become a dataset, and how it is split.

Everything is declared. A format is named and never guessed from a column's name, a row count that
is known is checked, and the share of rows that may be dropped has a bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from alignment.data import lists
from alignment.data.filters import use
from alignment.data.filters.use import Use
from alignment.data.rows import Kind
from alignment.data.sources import Source, check_repository, check_source, resolve
from alignment.errors import DataError, UserError, nearest
from alignment.files import digest_json
from alignment.settings import Settings, identity, place


class Shares(Settings):
    """How the prompts are divided; the three sum to one."""

    train: float = identity("share of the prompts for training", ge=0, le=1)
    valid: float = identity("share of the prompts for validation", ge=0, le=1)
    test: float = identity("share of the prompts that no training may see", ge=0, le=1)


class Blend(Settings):
    """How much of every source the training split gets; the sources' ``weight`` are the shares."""

    by: Literal["rows", "tokens"] = identity("what the shares count")
    size: int | None = identity(
        "training rows or tokens in all; null: so many that the first source gives each of its training rows once",
        ge=1,
    )
    replacement: bool = identity("a row may be drawn again; without it a source cannot give more than it has")


class Recipe(Settings):
    """The whole of a dataset. ``splits`` is null where the sources bring their own sides."""

    kind: Kind = identity("what its rows are")
    sources: list[Source] = identity("where they come from, in order", min_length=1)
    splits: Shares | None = identity("how the prompts are divided; null for sources that bring their own splits")
    seed: int = identity("of the division and of the draws", ge=0)
    max_dropped: float = identity("greatest share of the rows that may be dropped", ge=0, le=1)
    filters: list[Use] | None = identity(
        "what every row is looked at by, in order; `standard`, or a file's name, for a list kept elsewhere; null: none",
        default=None,
    )
    mixture: Blend | None = identity(
        "how much of each source is taken; null takes every row, or by its source's weight", default=None
    )
    deny: list[str] | None = identity(
        "patterns (`*` for anything) of sources that may not be used: names, repositories, files, values of `origin`",
        default=None,
    )
    root: str | None = place(
        "the folder of the files, relative to the recipe's; null is the recipe's own", default=None
    )

    @field_validator("filters", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if isinstance(value, list) and any(isinstance(one, str) for one in value):
            raise UserError(
                f"filters: {value}: a filter is not named alone",
                remedy="Write `- {filter: personal, action: change, options: {…}}`; docs/data.md has examples.",
            )
        return named_filters(value) if isinstance(value, str) else value

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "recipe") -> Recipe:
        """Validate a plain mapping, the rules between fields included. Raises :class:`UserError`."""
        recipe: Recipe = super().parse(values, where)
        recipe._check_splits(where)
        for number, source in enumerate(recipe.sources):
            check_source(source, recipe.kind, f"sources.{number}", where)
        recipe._check_denied(where)
        use.check(recipe.filters or [], recipe.kind, where)
        recipe._check_mixture(where)
        names = [source.name for source in recipe.sources]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"sources: {names.count(name)} of them are called {name!r}", remedy="Rename one.")
        return recipe

    def identity(self) -> dict[str, Any]:
        """What determines the dataset, beside the bytes of its sources: everything but ``root``."""
        return self.model_dump(exclude={"root"})

    def rooted(self, root: Path | str | None) -> Recipe:
        """This recipe with its files looked for below ``root``."""
        return self.model_copy(update={"root": None if root is None else str(root)})

    @property
    def digest(self) -> str:
        """SHA-256 of :meth:`identity`."""
        return digest_json(self.identity())

    @property
    def licences(self) -> tuple[str, ...]:
        """The licences of all sources, each once, in alphabetical order."""
        return tuple(sorted({source.licence for source in self.sources}))

    def _check_splits(self, where: str) -> None:
        if self.splits is None:
            outside = [source.name for source in self.sources if not source.brings_sides]
            if outside:
                raise UserError(
                    f"splits=null: {outside[0]!r} does not bring splits of its own",
                    cause=f"({where})",
                    remedy="Give the shares, for instance splits: {train: 0.9, valid: 0.05, test: 0.05}.",
                )
            return
        shares = (self.splits.train, self.splits.valid, self.splits.test)
        if not math.isclose(sum(shares), 1.0, abs_tol=1e-9):
            raise UserError(
                f"splits: {' + '.join(map(str, shares))} is {sum(shares):g}, not 1",
                cause=f"({where})",
                remedy="The three shares divide all prompts.",
            )

    def denied(self, name: str) -> str:
        """The pattern of the deny-list that a name falls under, or an empty text."""
        return next((pattern for pattern in self.deny or [] if fnmatchcase(name.casefold(), pattern.casefold())), "")

    def _check_denied(self, where: str) -> None:
        for number, source in enumerate(self.sources):
            names = [source.name, *(source.files.paths if source.files else [])]
            names += [source.hub.repository] if source.hub else []
            for name in names:
                if pattern := self.denied(name):
                    raise UserError(
                        f"sources.{number}: {name!r} is on the deny-list ({pattern!r})",
                        cause=f"({where})",
                        remedy="Take the source out of the recipe.",
                    )

    def _check_mixture(self, where: str) -> None:
        if self.mixture is None:
            return
        for number, source in enumerate(self.sources):
            if source.weight is None:
                raise UserError(
                    f"sources.{number}.weight: a mixture needs the weight of every source", cause=f"({where})"
                )


def named_filters(name: str) -> list[Any]:
    """The filters of ``standard``, or of a file of the user's. Raises :class:`UserError` where there are none."""
    own = name if name.endswith((".yaml", ".yml")) else None
    shipped = sorted(path.stem.removeprefix("filters_") for path in lists.FOLDER.glob("filters_*.yaml"))
    if own is None and name not in shipped:
        raise UserError(f"filters: there is no list {name!r}", remedy=nearest(name, shipped))
    path = lists.locate(own, f"filters_{name}.yaml", "filters")
    values = lists.read(path)
    if set(values) != {"filters"} or not isinstance(values["filters"], list):
        raise DataError(str(path), "holds no list of filters", remedy="Its one key is `filters`.")
    return values["filters"]


def read_yaml(path: Path, what: str = "recipe") -> dict[str, Any]:
    """The keys of a recipe's file (or ``what`` else it is), not validated.

    Raises :class:`UserError`, with ``file:line`` for broken YAML.
    """
    begin = "A recipe names kind, sources, splits, seed, max_dropped."
    begin = begin if what == "recipe" else f"Begin with a copy of one of conf/{what}."
    try:
        return lists.read(path, begin)
    except OSError as error:
        known = sorted(other.stem for other in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        remedy = nearest(path.stem, known) if known else f"No .yaml file is in {path.parent}. {begin}"
        raise UserError(f"{what} {path}: {error.strerror}", remedy=remedy) from None


def root_of(values: Mapping[str, Any], path: Path) -> Path:
    """The folder below which a recipe file's sources lie: its own, or one in it. Raises :class:`UserError`.

    A file that came from elsewhere cannot open the disk to itself; who runs it can, with ``recipe.root=<folder>``.
    """
    said = values.get("root")
    if said is not None and (not isinstance(said, str) or said.startswith("/") or ".." in Path(said).parts):
        raise UserError(
            f"root={said!r}: leads out of the recipe's folder",
            cause=f"({path}) A recipe reads what lies beside it or below.",
            remedy="Leave it out, and say recipe.root=<folder> on the command line.",
        )
    return (path.parent / (said or ".")).resolve()


def load(path: Path) -> Recipe:
    """Read and validate a recipe file. Raises :class:`UserError` with the key, or as :func:`read_yaml`."""
    return Recipe.parse(read_yaml(path), str(path))


def local_files(recipe: Recipe, base: Path) -> list[Path]:
    """Every file the recipe reads, in order, so that a stage can put their digests into its fingerprint.

    ``base`` is the recipe's folder. Raises :class:`UserError` for a file that is not there.
    """
    everything = [*recipe.sources, *(one for each in recipe.filters or [] for one in each.against or [])]
    for source in everything:
        if source.hub:
            check_repository(source.hub, recipe.root, base)
    return [path for source in everything if source.files for path, _ in resolve(source.files, recipe.root, base)]
