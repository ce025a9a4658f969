"""Where rows come from: files, a hub repository, the miniature world or another dataset, in a declared format."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from alignment.data import formats
from alignment.data.rows import Kind, Split
from alignment.errors import UserError, nearest
from alignment.files import typed
from alignment.miniature.raters import Aspect
from alignment.miniature.settings import Miniature
from alignment.miniature.world import Split as Pool
from alignment.settings import Settings, identity, later, reference, text

ORIGINS = ("files", "hub", "miniature", "dataset")


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
    subset: str | None = text(
        "the repository's configuration, or one of its folders (ending in /); null where it has one only"
    )
    split: str = text("the repository's split, such as train")


class Draw(Settings):
    """Rows that the miniature world writes for one split."""

    pool: Pool | None = identity("the pool that owns their questions; null for text, which asks none")
    rows: int = identity("how many are drawn; duplicates among them are dropped", ge=1)
    seed: int = identity("of the draw", ge=0)
    turns: int | None = None
    """Conversations are plain dialogues of two to that many turns; null draws them by the world's mixture."""
    instructed: bool | None = later("dialogues of ``turns`` are under an instruction of their first turn; null: plain")
    dates: bool | None = later("rows tell, ask or answer who held an office in a year; null: the mixture")
    choices: int | None = later("prompts are multiple-choice questions with that many answers; null: the mixture")
    aspect: Aspect | None = None
    """What comparisons are judged by. ``helpfulness``: whatever is asked; ``safety``: unsafe requests alone, with a
    label for each answer; null judges unsafe requests mostly for safety and the others for helpfulness."""


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
    """One origin of rows: exactly one of ``files``, ``hub``, ``miniature`` and ``dataset``."""

    name: str = text("what the ledger and the card call it", min_length=1)
    licence: str = text("under which its rows may be used; travels with the dataset", min_length=1)
    format: str = identity("what a raw row looks like: " + ", ".join(formats.FORMATS))
    files: Files | None = None
    hub: Hub | None = None
    miniature: World | None = None
    dataset: str | None = reference("another dataset artifact; its rows keep their sides", default=None)
    columns: dict[str, str] | None = None
    """The format's name of a column → the source's."""
    options: dict[str, Any] | None = None
    """The format's own settings."""
    expected_rows: int | None = identity("rows in the source, checked; null where it is not known", ge=1)
    limit: int | None = None
    """Rows taken from the start; null takes all."""
    weight: float | None = None
    """How often a training row is taken: 0.5 draws half of them, 2 takes each twice; null is once.
    In a mixture: the source's share of it, relative to the other weights."""
    group: str | None = None
    """A column whose equal values, one after the other, make one row of several."""
    scattered: bool | None = None
    """The rows of a group lie anywhere in the source, in several files too; all its rows are then held in memory."""
    origin: str | None = None
    """A column that says where a row came from before, for ``deny``."""

    @property
    def brings_sides(self) -> bool:
        """Whether its rows have their sides already."""
        return self.miniature is not None or self.dataset is not None

    def shape(self, kind: Kind) -> formats.Shape:
        """The format with its columns and options, as its function wants them."""
        options = formats.FORMATS[self.format].options.parse(self.options or {}, f"options of {self.name}")
        return formats.Shape(kind, self.columns or {}, options, self.name)


class EvaluationSet(Source):
    """A source that is only compared with: no row of it enters the dataset."""

    kind: Kind = identity("what its rows are")


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
        if root and not all(path.resolve().is_relative_to(folder) for path in matches):
            raise UserError(
                f"{spelling}: a file of that name is a link that leads out of {folder}",
                remedy="Put the file itself there: `cp -L` copies what links lead to.",
            )
        if not matches or not matches[0].is_file():
            beside = sorted(p.name for p in target.parent.iterdir()) if target.parent.is_dir() else []
            raise UserError(
                f"{target}: there is no such file",
                cause="Files are looked for beside the recipe; recipe.root=<folder> names another place.",
                remedy=nearest(target.name, beside) if beside else "",
            )
        found += [(path, str(Path(spelling).parent / path.name)) for path in matches]
    return found


def check_repository(hub: Hub, root: str | None, base: Path) -> None:
    """Refuse a repository that is a directory here and lies outside of the ``root`` that a recipe is given."""
    local, folder = typed(hub.repository), (base / root if root else base).resolve()
    if root and local.is_dir() and not local.resolve().is_relative_to(folder):
        raise UserError(
            f"{hub.repository}: lies outside of {folder}",
            cause="It is a directory of this machine, and a recipe that is given a root reads below it only.",
            remedy="recipe.root=<folder> names another root; a repository of the hub is read where no directory here "
            "has its name.",
        )


def check_source(source: Source, kind: Kind, key: str, where: str) -> None:
    """The rules between a source's fields. Raises :class:`UserError` with the dotted key."""

    def refuse(problem: str, remedy: str = "") -> UserError:
        return UserError(f"{key}{problem}", cause=f"({where})", remedy=remedy)

    origins = [name for name in ORIGINS if getattr(source, name) is not None]
    if len(origins) != 1:
        listed = ", ".join(ORIGINS)
        raise refuse(f": exactly one of {listed} is needed, not {' and '.join(origins) or 'none'}")
    if source.format not in formats.FORMATS:
        raise refuse(f".format={source.format!r}: there is no such format", nearest(source.format, [*formats.FORMATS]))
    for origin in ("miniature", "dataset"):
        if (source.format == origin) != (getattr(source, origin) is not None):
            raise refuse(f".format={source.format!r}: a {origin} source has the format {origin}, and no other has")
    form = formats.FORMATS[source.format]
    if kind not in form.columns:
        able = [name for name, other in formats.FORMATS.items() if kind in other.columns]
        raise refuse(f".format={source.format!r}: does not give {kind}", f"Formats that do: {', '.join(able)}.")
    if source.miniature:
        _check_draws(source.miniature, kind, refuse)
    given, needed = set(source.columns or {}), set(form.columns[kind])
    for name in sorted(needed - given):
        raise refuse(f".columns.{name}: a column is needed", f"Say how {source.name} calls it, as in `{name}: {name}`.")
    beside = set(form.may_map(kind))
    for name in sorted(given - needed - beside):
        remedy = nearest(name, sorted(needed | beside))
        raise refuse(f".columns.{name}: {source.format} for {kind} has no such column", remedy)
    form.options.parse(source.options or {}, f"{key}.options of {where}")
    if source.scattered and source.group is None:
        raise refuse(".scattered: there is no group whose rows could be gathered", "Name the column as `group`.")
    if source.limit is not None and source.limit < 1:
        raise refuse(f".limit={source.limit}: must be 1 or more", "Leave it out to take all rows.")
    if source.weight is not None and not 0 < source.weight < math.inf:
        raise refuse(f".weight={source.weight}: must be above 0", "Leave the source out to take none of it.")


def _check_draws(world: World, kind: Kind, refuse: Callable[..., UserError]) -> None:
    """Every draw suits the kind of row."""
    for split, draw in world.draws().items():
        at = f".miniature.{split}"
        if (draw.pool is None) != (kind == "text"):
            pools = ", ".join(get_args(Pool))
            remedy = "Text asks nothing; its pool is null." if kind == "text" else f"The pools are {pools}."
            raise refuse(f"{at}.pool={draw.pool!r}: cannot be drawn from for {kind}", remedy)
        if draw.turns is not None and (kind != "conversations" or draw.turns < 2):
            raise refuse(f"{at}.turns={draw.turns}: is for conversations, of two turns or more")
        if draw.instructed and draw.turns is None:
            raise refuse(f"{at}.instructed=true: is for dialogues of several turns", f"Give {at}.turns too.")
        if draw.dates and (kind == "comparisons" or draw.turns is not None or draw.choices is not None):
            raise refuse(f"{at}.dates=true: is for text, conversations and prompts, without turns or choices")
        if draw.choices is not None and (kind != "prompts" or not 2 <= draw.choices <= 6):
            raise refuse(f"{at}.choices={draw.choices}: is for prompts, and from 2 to 6")
        if draw.aspect is not None and kind != "comparisons":
            raise refuse(f"{at}.aspect={draw.aspect!r}: is for comparisons", "Leave it out.")
        if draw.aspect == "safety" and world.world.mixture.unsafe == 0:
            raise refuse(
                f"{at}.aspect='safety': the world's mixture has no unsafe request to judge",
                "Give mixture.unsafe a weight above 0.",
            )
