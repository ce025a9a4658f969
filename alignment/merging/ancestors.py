"""Which model others were all trained from: by the lineage that their records tell."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from alignment import artifacts
from alignment.artifacts import Artifact, Parent
from alignment.errors import UserError

TRUNK = re.compile(r"model\.weights|model|policy|models\.\d+|init")
"""The inputs whose weights a model continues: of a training, a merge, an export. Teachers and data are none."""
MERGE = "merge.json"
"""Where a merge says what its models had in common."""


@dataclass(frozen=True)
class Ancestor:
    """A model that others descend from, by fingerprint; ``name`` for people, ``parent`` where a record names it."""

    fingerprint: str
    name: str
    parent: Parent | None = None


def descent(model: Artifact, below: tuple[str, ...] = ()) -> tuple[list[Ancestor], list[Parent]]:
    """The model and everything *all* its weights come from, the nearest first; and what is no longer where it was.

    A training continues one model. A merge begins where its ``init`` says, or where its models' descents meet. What is
    gone counts as an ancestor, since its fingerprint is known, but hides its own. ``below`` are the fingerprints of
    those whose descent this is a part of; records that others wrote may lead in a circle.
    """
    if model.fingerprint in below:
        raise UserError(
            f"{model.path} descends from itself", remedy="Its record was changed; run its stage again with force=true."
        )
    own = Ancestor(model.fingerprint, model.step or model.path.name)
    parents = {key: parent for key, parent in model.parents.items() if TRUNK.fullmatch(key)}
    if not parents:
        return [own], []
    starts = [parents["init"]] if "init" in parents else [*parents.values()]
    found = [_descent_of(_where_it_is(parent, model), (*below, model.fingerprint)) for parent in starts]
    gone = [parent for _, parents_gone in found for parent in parents_gone]
    shared = _shared([ancestors for ancestors, _ in found])
    return [own, *(shared or _remembered(model))], gone


def common(models: Sequence[Artifact], init: Artifact | None) -> Ancestor:
    """The nearest ancestor of all ``models``: ``init`` where it is named, which foreign models cannot contradict.

    Of one model it is what it began as. Raises :class:`UserError` where there is none, or where a model's lineage says
    that ``init`` is not one.
    """
    descents = [descent(model) for model in models]
    if init is not None:
        for model, (found, gone) in zip(models, descents, strict=True):
            known = {one.fingerprint for one in found}
            if model.kind != "foreign" and init.fingerprint not in known and not gone:
                raise UserError(
                    f"{model.path} does not descend from {init.path}",
                    cause=f"Its weights come from {_listed([one.name for one in found[1:]])}.",
                    remedy="Name with init= a model that all of them were trained from, or leave init=null.",
                )
        return Ancestor(init.fingerprint, init.step or init.path.name)
    shared = _shared([found for found, _ in descents])
    if len(models) == 1:
        shared = shared[1:]
    if shared:
        return shared[0]
    gone = [parent for _, parents in descents for parent in parents]
    if gone:
        cause = f"The lineage breaks off where {gone[0].path} is no longer there."
    elif any(model.kind == "foreign" for model in models):
        cause = "A foreign directory has no lineage that would tell."
    elif len(models) == 1:
        cause = "It was trained from nothing."
    else:
        cause = (
            "Their lineages do not meet. Weights that were not trained from the same ones have no meaning in between."
        )
    raise UserError(
        f"no common ancestor of {_listed([str(model.path) for model in models])} is known",
        cause=cause,
        remedy="Where there is one, name it: init=<reference>. `stage=show target=run:<path>` draws a lineage.",
    )


def found_again(ancestor: Ancestor) -> Artifact | None:
    """The model itself, where it still is what it was when others were trained from it; a foreign one is digested."""
    parent = ancestor.parent
    if parent is None or not Path(parent.path).is_dir():
        return None
    record = _record(parent)
    if record is not None:
        return record
    foreign = _foreign(parent)
    return foreign if foreign is not None and foreign.fingerprint == ancestor.fingerprint else None


def trunk_of(adapter: Path) -> Ancestor | None:
    """What an adapter was trained on, by the record of the run in whose folder it lies; None where there is none."""
    if not (adapter.parent / artifacts.RECORD).is_file():
        return None
    run = artifacts.load(adapter.parent)
    found = next((_where_it_is(parent, run) for key, parent in run.parents.items() if TRUNK.fullmatch(key)), None)
    return None if found is None else Ancestor(found.fingerprint, Path(found.path).name, found)


def _foreign(parent: Parent) -> Artifact | None:
    path = Path(parent.path)
    if parent.reference.startswith("hf:"):
        # The hub names a snapshot's folder after its commit.
        return Artifact(path, "foreign", "", parent.reference, path.name)
    return artifacts.foreign(path, parent.reference) if parent.reference.startswith("dir:") else None


def _descent_of(parent: Parent, below: tuple[str, ...]) -> tuple[list[Ancestor], list[Parent]]:
    own = Ancestor(parent.fingerprint, Path(parent.path).name or parent.reference, parent)
    record = _record(parent)
    if record is None:
        return [own], [] if parent.reference.startswith(("dir:", "hf:")) else [parent]
    found, gone = descent(record, below)
    return [own, *found[1:]], gone


def _where_it_is(parent: Parent, child: Artifact) -> Parent:
    """With the path at which it lies now: a store that was moved as a whole still has both in it."""
    path = Path(parent.path)
    moved = child.path.parent.parent / path.parent.name / path.name
    return parent if _record(parent) is not None or not moved.is_dir() else replace(parent, path=str(moved))


def _shared(descents: Sequence[Sequence[Ancestor]]) -> list[Ancestor]:
    """Where several descents meet, and on from there."""
    first, *others = descents
    known = [{one.fingerprint for one in other} for other in others]
    for place, one in enumerate(first):
        if all(one.fingerprint in fingerprints for fingerprints in known):
            return [*first[place:]]
    return []


def _remembered(model: Artifact) -> list[Ancestor]:
    """What a merge said that its models had in common, for when they are gone."""
    told = model.path / MERGE
    return [Ancestor(**json.loads(told.read_text())["ancestor"])] if told.is_file() else []


def _record(parent: Parent) -> Artifact | None:
    path = Path(parent.path)
    found = artifacts.load(path) if (path / artifacts.RECORD).is_file() else None
    return found if found is not None and found.fingerprint == parent.fingerprint else None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "nothing"
