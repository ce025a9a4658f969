"""Which model others were all trained from: by the lineage that their records tell."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alignment import artifacts
from alignment.artifacts import Artifact, Parent
from alignment.errors import UserError

TRUNK = re.compile(r"model\.weights|policy|models\.\d+|init")
"""The inputs whose weights a model continues: of a training, and of a merge. Teachers and data are none."""


@dataclass(frozen=True)
class Ancestor:
    """A model that others descend from, by fingerprint; ``name`` for people."""

    fingerprint: str
    name: str


def descent(model: Artifact) -> tuple[dict[str, Ancestor], list[Parent]]:
    """The model and everything its weights come from, the nearest first; and what is no longer where it was.

    What is gone counts as an ancestor, since its fingerprint is known, but hides its own.
    """
    found = {model.fingerprint: Ancestor(model.fingerprint, model.step or model.path.name)}
    gone: list[Parent] = []
    queue = [model]
    while queue:
        for key, parent in queue.pop(0).parents.items():
            if not TRUNK.fullmatch(key) or parent.fingerprint in found:
                continue
            found[parent.fingerprint] = Ancestor(parent.fingerprint, Path(parent.path).name or parent.reference)
            record = _record(parent)
            if record is not None:
                queue.append(record)
            elif not parent.reference.startswith(("dir:", "hf:")):
                gone.append(parent)
    return found, gone


def common(models: Sequence[Artifact], init: Artifact | None) -> Ancestor:
    """The nearest ancestor of all ``models``: ``init`` where it is named, which foreign models cannot contradict.

    Raises :class:`UserError` where there is none, or where a model's lineage says that ``init`` is not one.
    """
    descents = [descent(model) for model in models]
    if init is not None:
        for model, (found, gone) in zip(models, descents, strict=True):
            if model.kind != "foreign" and init.fingerprint not in found and not gone:
                raise UserError(
                    f"{model.path} does not descend from {init.path}",
                    cause=f"Its weights come from {_listed([one.name for one in list(found.values())[1:]])}.",
                    remedy="Name with init= a model that all of them were trained from, or leave init=null.",
                )
        return Ancestor(init.fingerprint, init.step or init.path.name)
    first, *others = (found for found, _ in descents)
    shared = [one for one in first.values() if all(one.fingerprint in found for found in others)]
    if shared:
        return shared[0]
    gone = [parent for _, parents in descents for parent in parents]
    if gone:
        cause = f"The lineage breaks off where {gone[0].path} is no longer there."
    elif any(model.kind == "foreign" for model in models):
        cause = "A foreign directory has no lineage that would tell."
    else:
        cause = (
            "Their lineages do not meet. Weights that were not trained from the same ones have no meaning in between."
        )
    raise UserError(
        f"no common ancestor of {_listed([str(model.path) for model in models])} is known",
        cause=cause,
        remedy="Where there is one, name it: init=<reference>. `stage=show target=run:<path>` draws a lineage.",
    )


def _record(parent: Parent) -> Artifact | None:
    path = Path(parent.path)
    found = artifacts.load(path) if (path / artifacts.RECORD).is_file() else None
    return found if found is not None and found.fingerprint == parent.fingerprint else None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "nothing"
