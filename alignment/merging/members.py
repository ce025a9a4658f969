"""What is merged, found on disk: whole models, adapters as the models they make of their trunk, the common start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from alignment import files, parts
from alignment.artifacts import Artifact
from alignment.errors import UserError
from alignment.merging import adapters, ancestors, layout
from alignment.merging.adapters import Adapter
from alignment.merging.ancestors import Ancestor
from alignment.merging.layout import Layout


class Member(NamedTuple):
    """A model to merge. ``home`` has its config and tokenizer: itself, or an adapter's trunk."""

    model: Artifact
    home: Artifact
    layout: Layout
    adapter: Adapter | None


def trunk_of(models: Sequence[Artifact], init: Artifact | None) -> Artifact | None:
    """What adapters among the models were trained on: by the record of their run, or ``init``; None without any.

    Raises :class:`UserError` for adapters on several trunks, and where nothing tells.
    """
    lone = [model for model in models if adapters.is_adapter(model.path)]
    _need_one_trunk(lone)
    found = init
    for model in lone:
        own = ancestors.trunk_of(model.path)
        if own is not None and found is None:
            found = ancestors.found_again(own)
        if found is None:
            raise UserError(
                f"{model.path} is an adapter, and its trunk is not there",
                cause="No record beside it says what it was trained on."
                if own is None
                else f"It was trained on {own.name}, which is not where it was.",
                remedy="Name the model with init=<reference>.",
            )
        if own is not None and own.fingerprint != found.fingerprint:
            raise UserError(
                f"{model.path} is an adapter on another trunk than {found.path}",
                cause=f"It was trained on {own.name}, {own.fingerprint[:12]}; the other is {found.fingerprint[:12]}.",
                remedy="Merge adapters of one trunk, or the whole models, which lie beside the adapters of our runs.",
            )
    return found if lone else None


def _need_one_trunk(lone: Sequence[Artifact]) -> None:
    """Refuse adapters without a record whose configs name different trunks."""
    named = {adapters.read(model.path).trunk: model.path for model in lone if ancestors.trunk_of(model.path) is None}
    if len(named) > 1:
        (first, here), (other, there), *_ = named.items()
        raise UserError(
            f"{there} is an adapter on another trunk than {here}",
            cause=f"Their {adapters.CONFIG} name {other} and {first}.",
            remedy="Merge adapters of one trunk; where it is the same one by two names, write one of them into both.",
        )


def member(model: Artifact, trunk: Artifact | None, out: Path, place: int) -> Member:
    """A model by its headers; of an adapter those that its whole model will have."""
    if not adapters.is_adapter(model.path):
        return Member(model, model, layout.read(model.path), None)
    assert trunk is not None, "an adapter has one, or has been refused"
    adapter = adapters.read(model.path)
    whole = adapters.layout_over(adapter, layout.read(trunk.path), out / parts.FOLDER / f"whole_{place}")
    return Member(model, trunk, whole, adapter)


def trained(one: Member) -> list[Path]:
    """The folders that tell what a member was trained on: of an adapter its trunk's, and its own run's."""
    return [one.home.path] if one.adapter is None else [one.home.path, one.model.path, one.model.path.parent]


def multiply_out(members: Sequence[Member]) -> None:
    """Write the whole models that adapters make of their trunk."""
    added = [one for one in members if one.adapter is not None]
    for one in added:
        assert one.adapter is not None
        adapters.need_finite(one.adapter)
    if added:
        out = added[0].layout.directory.parent
        files.need_space(
            out, sum(shard.size for one in added for shard in one.layout.shards if not shard.path.is_file())
        )
    for one in added:
        if one.adapter is not None:
            adapters.write(one.adapter, layout.read(one.home.path), one.layout)


def start_of(models: Sequence[Artifact], init: Artifact | None, ancestor: Ancestor, method: str) -> Artifact | None:
    """The ancestor itself, whose weights slerp and liti need; an average does without, and only tells less."""
    if init is not None:
        return init.need("policy", "reward")
    own = next((model for model in models if model.fingerprint == ancestor.fingerprint), None)
    found = own or ancestors.found_again(ancestor)
    if found is not None and any((found.path / name).is_file() for name in (layout.SINGLE, layout.INDEX)):
        return found
    if method in ("slerp", "liti"):
        raise UserError(
            f"method={method} needs the weights of {ancestor.name}, from which the models were trained",
            cause="They are not where they were, or no longer what they were.",
            remedy="Name them with init=<reference>, or say method=linear, which does without.",
        )
    return None
