"""A recipe: which sources, in which declared format, become a dataset, and how it is split.

Everything is declared. A format is named and never guessed from a column's name, a row count that
is known is checked, and the share of rows that may be dropped has a bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from alignment.data import formats
from alignment.data.rows import Kind, Split
from alignment.errors import DataError, UserError, nearest
from alignment.files import digest_json
from alignment.miniature.settings import Miniature
from alignment.miniature.world import Split as Pool
from alignment.settings import Settings, identity, place, text


class Files(Settings):
    """Files of one layout."""

    paths: list[str] = text("files, relative to the recipe's root; `*` stands for any part of a name", min_length=1)
    reader: Literal["jsonl", "json", "csv", "parquet", "text"] = identity(
        "how the files are laid out; a name that ends with .gz is unpacked"
    )


class Hub(Settings):
    """A dataset repository on the Hugging Face hub, or a local directory of the same layout."""

    repository: str = text("<organisation>/<name>, or a directory")
    revision: str = text("commit or tag; a commit makes the dataset the same for ever", min_length=1)
    subset: str | None = text("the repository's configuration, or null where it has one only")
    split: str = text("the repository's split, such as train")


class Draw(Settings):
    """Rows that the miniature world writes for one split."""

    pool: Pool | None = identity("the pool that owns their questions; null for text, which asks none")
    rows: int = identity("how many are drawn; duplicates among them are dropped", ge=1)
    seed: int = identity("of the draw", ge=0)


class World(Settings):
    """Rows of the miniature world. It brings splits of its own: its pools have no question in common."""

    world: Miniature = identity("which world, and how imperfect its data is")
    train: Draw | None = None
    valid: Draw | None = None
    test: Draw | None = None

    def draws(self) -> dict[Split, Draw]:
        """The draws that are wanted, by split."""
        drawn: dict[Split, Draw | None] = {"train": self.train, "valid": self.valid, "test": self.test}
        return {split: draw for split, draw in drawn.items() if draw is not None}


class Source(Settings):
    """One origin of rows: exactly one of ``files``, ``hub`` and ``miniature``."""

    name: str = text("what the ledger and the card call it", min_length=1)
    licence: str = text("under which its rows may be used; travels with the dataset", min_length=1)
    format: str = identity("what a raw row looks like: " + ", ".join(formats.FORMATS))
    files: Files | None = None
    hub: Hub | None = None
    miniature: World | None = None
    columns: dict[str, str] | None = None
    """The format's name of a column → the source's."""
    options: dict[str, Any] | None = None
    """The format's own settings."""
    expected_rows: int | None = identity("rows in the source, checked; null where it is not known", ge=1)
    limit: int | None = None
    """Rows taken from the start; null takes all."""
    weight: float | None = None
    """How often a training row is taken: 0.5 draws half of them, 2 takes each twice; null is once."""

    def shape(self, kind: Kind) -> formats.Shape:
        """The format with its columns and options, as its function wants them."""
        options = formats.FORMATS[self.format].options.parse(self.options or {}, f"options of {self.name}")
        return formats.Shape(kind, self.columns or {}, options)


class Shares(Settings):
    """How the prompts are divided; the three sum to one."""

    train: float = identity("share of the prompts for training", ge=0, le=1)
    valid: float = identity("share of the prompts for validation", ge=0, le=1)
    test: float = identity("share of the prompts that no training may see", ge=0, le=1)


class Recipe(Settings):
    """The whole of a dataset. ``splits`` is null where the sources are miniature and bring their own."""

    kind: Kind = identity("what its rows are")
    sources: list[Source] = identity("where they come from, in order", min_length=1)
    splits: Shares | None = identity("how the prompts are divided; null for sources that bring their own splits")
    seed: int = identity("of the division and of the draws", ge=0)
    max_dropped: float = identity("greatest share of the rows that may be dropped", ge=0, le=1)
    root: str | None = place(
        "the folder of the files, relative to the recipe's; null is the recipe's own", default=None
    )

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "recipe") -> Recipe:
        """Validate a plain mapping, the rules between fields included. Raises :class:`UserError`."""
        recipe: Recipe = super().parse(values, where)
        recipe._check_splits(where)
        for number, source in enumerate(recipe.sources):
            _check_source(source, recipe.kind, f"sources.{number}", where)
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
            outside = [source.name for source in self.sources if source.miniature is None]
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


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys of a recipe file, not validated. Raises :class:`UserError`, with ``file:line`` for broken YAML."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = sorted(other.stem for other in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise UserError(f"recipe {path}: {error.strerror}", remedy=nearest(path.stem, known)) from None
    except UnicodeDecodeError as error:
        raise DataError(str(path), f"byte {error.start} is not UTF-8", remedy="Save the recipe as UTF-8.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise DataError(where, f"is not YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(values, dict):
        raise DataError(str(path), "holds no keys", remedy="A recipe names kind, sources, splits, seed, max_dropped.")
    return values


def load(path: Path) -> Recipe:
    """Read and validate a recipe file. Raises :class:`UserError` with the key, or as :func:`read_yaml`."""
    return Recipe.parse(read_yaml(path), str(path))


def local_files(recipe: Recipe, base: Path) -> list[Path]:
    """Every file the recipe reads, in order, so that a stage can put their digests into its fingerprint.

    ``base`` is the recipe's folder. Raises :class:`UserError` for a file that is not there.
    """
    return [path for source in recipe.sources if source.files for path, _ in resolve(source.files, recipe.root, base)]


def resolve(files: Files, root: str | None, base: Path) -> list[tuple[Path, str]]:
    """The files meant, each with the name that the ledger gives it (as the recipe spells it).

    Where ``root`` is given, it is a boundary: neither an absolute path nor ``..`` leads out of it.
    Without one, paths are relative to ``base`` or absolute.
    """
    folder = (base / root if root else base).resolve()
    if root and not folder.is_dir():
        raise UserError(f"root={root}: there is no such folder", remedy=f"It is looked for from {base}.")
    found: list[tuple[Path, str]] = []
    for spelling in files.paths:
        target = folder / spelling
        if root and (Path(spelling).is_absolute() or not target.resolve().is_relative_to(folder)):
            raise UserError(
                f"{spelling}: lies outside of {folder}",
                cause="A recipe that is given a root reads files below it only.",
                remedy="Write the path relative to the root, or move the file there.",
            )
        matches = sorted(target.parent.glob(target.name)) if "*" in target.name else [target]
        if not matches or not matches[0].is_file():
            beside = sorted(p.name for p in target.parent.iterdir()) if target.parent.is_dir() else []
            raise UserError(f"{target}: there is no such file", remedy=nearest(target.name, beside))
        found += [(path, str(Path(spelling).parent / path.name)) for path in matches]
    return found


def _check_source(source: Source, kind: Kind, key: str, where: str) -> None:
    """The rules between a source's fields. Raises :class:`UserError` with the dotted key."""

    def refuse(problem: str, remedy: str = "") -> UserError:
        return UserError(f"{key}{problem}", cause=f"({where})", remedy=remedy)

    origins = [name for name in ("files", "hub", "miniature") if getattr(source, name) is not None]
    if len(origins) != 1:
        raise refuse(f": exactly one of files, hub and miniature is needed, not {' and '.join(origins) or 'none'}")
    if source.format not in formats.FORMATS:
        raise refuse(f".format={source.format!r}: there is no such format", nearest(source.format, [*formats.FORMATS]))
    if (source.format == "miniature") != (source.miniature is not None):
        raise refuse(f".format={source.format!r}: a miniature source has the format miniature, and no other has")
    form = formats.FORMATS[source.format]
    if kind not in form.columns:
        able = [name for name, other in formats.FORMATS.items() if kind in other.columns]
        raise refuse(f".format={source.format!r}: does not give {kind}", f"Formats that do: {', '.join(able)}.")
    for split, draw in source.miniature.draws().items() if source.miniature else ():
        if (draw.pool is None) != (kind == "text"):
            pools = ", ".join(get_args(Pool))
            remedy = "Text asks nothing; its pool is null." if kind == "text" else f"The pools are {pools}."
            raise refuse(f".miniature.{split}.pool={draw.pool!r}: cannot be drawn from for {kind}", remedy)
    given, needed = set(source.columns or {}), set(form.columns[kind])
    for name in sorted(needed - given):
        raise refuse(f".columns.{name}: a column is needed", f"Say how {source.name} calls it, as in `{name}: {name}`.")
    for name in sorted(given - needed - set(form.optional)):
        remedy = nearest(name, sorted(needed | set(form.optional)))
        raise refuse(f".columns.{name}: {source.format} for {kind} has no such column", remedy)
    form.options.parse(source.options or {}, f"{key}.options of {where}")
    if source.limit is not None and source.limit < 1:
        raise refuse(f".limit={source.limit}: must be 1 or more", "Leave it out to take all rows.")
    if source.weight is not None and not 0 < source.weight < math.inf:
        raise refuse(f".weight={source.weight}: must be above 0", "Leave the source out to take none of it.")
