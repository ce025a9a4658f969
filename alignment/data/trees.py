"""Open-Assistant message trees: the paths from the opening message to an answer, or to a question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from alignment.chat.types import Message, Messages, Role
from alignment.data.rows import Kind, Raw
from alignment.errors import DataError

ENDS: Mapping[Kind, Role] = {"conversations": "assistant", "prompts": "user"}
_ROLES: Mapping[str, Role] = {"prompter": "user", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Path:
    """The turns from the root to a node, and why the path cannot be used where a node on it forbids that."""

    turns: Messages
    dropped: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """The paths taken, and a note on those that were not."""

    paths: list[Path]
    left_out: str = ""


def paths(raw: Raw, *, best: bool, ends_with: Role) -> Found:
    """Every longest path that ends with ``ends_with``; or, with ``best``, the one along the best ranks.

    Longest: no path taken is the beginning of another, except that for prompts every question
    with its history counts. The best path goes to the lowest rank (0 is best, unranked last) among
    answers, and to the first question that was answered among questions.
    """
    root = raw.column("prompt")
    _check(root, raw)
    every = list(_walk(root, (), "", ends_with))
    if not best or len(every) < 2:
        return Found(every)
    turns = tuple(_best(root, ends_with))
    chosen = next(path for path in every if path.turns == turns)
    return Found([chosen], f"1 of {len(every)} paths taken")


def _walk(node: dict[str, Any], before: Messages, dropped: str, ends_with: Role) -> Iterator[Path]:
    role = _ROLES[node["role"]]
    turns = (*before, Message(role, node["text"]))
    dropped = (
        dropped
        or ("deleted message in the path" if node.get("deleted") else "")
        or ("message refused by the reviewers" if node.get("review_result") is False else "")
    )
    if role == ends_with and (role == "user" or not _goes_on(node, ends_with)):
        yield Path(turns, dropped)
    for reply in node["replies"]:
        yield from _walk(reply, turns, dropped, ends_with)


def _goes_on(node: dict[str, Any], ends_with: Role) -> bool:
    """Whether a later node on some path through this one has the role that is wanted at the end."""
    return any(_ROLES[reply["role"]] == ends_with or _goes_on(reply, ends_with) for reply in node["replies"])


def _best(node: dict[str, Any], ends_with: Role) -> Iterator[Message]:
    """The turns of the best path, cut after the last one that may end it."""
    yield Message(_ROLES[node["role"]], node["text"])
    replies = node["replies"]
    if not replies or (_ROLES[node["role"]] == ends_with and not _goes_on(node, ends_with)):
        return
    ranks = [reply.get("rank") if reply.get("rank") is not None else float("inf") for reply in replies]
    able = [n for n, reply in enumerate(replies) if _ROLES[reply["role"]] == ends_with or _goes_on(reply, ends_with)]
    if able:
        yield from _best(replies[min(able, key=lambda n: (ranks[n], n))], ends_with)


def _check(node: Any, raw: Raw) -> None:
    """Every node has a known role, a text and a list of replies. Raises :class:`DataError`."""
    if not isinstance(node, dict) or not {"role", "text", "replies"} <= node.keys():
        raise DataError(
            raw.where,
            "a node of the tree lacks role, text or replies",
            remedy="Check the recipe's `format`: oasst_trees wants one exported tree per row.",
        )
    if node["role"] not in _ROLES or not isinstance(node["text"], str) or not isinstance(node["replies"], list):
        raise DataError(
            raw.where,
            f"a node of the tree has the role {node['role']!r} and a text of type {type(node['text']).__name__}",
            remedy="Roles are prompter and assistant; texts are text.",
        )
    for reply in node["replies"]:
        _check(reply, raw)
