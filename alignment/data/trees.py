"""Open-Assistant message trees: the paths from the opening message to an answer, or to a question; ranked answers.

A tree is a raw row as the project exports it, ``{"prompt": {"role", "text", "replies": […]}}``; or it is put
together of flat messages, a row each, which the recipe joins with ``group: message_tree_id``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

from alignment.chat.types import Message, Messages, Role
from alignment.data.rows import Kind, Raw
from alignment.errors import DataError

ENDS: Mapping[Kind, Role] = {"conversations": "assistant", "prompts": "user"}
_ROLES: Mapping[str, Role] = {"prompter": "user", "assistant": "assistant"}

Node = dict[str, Any]


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


@dataclass(frozen=True, slots=True)
class Pair:
    """Two ranked answers to one question; ``gap`` is the difference of their ranks, 0 where they share one."""

    prompt: Messages
    better: str
    worse: str
    gap: int
    dropped: str = ""


def paths(raw: Raw, *, best: bool, ends_with: Role) -> Found:
    """Every longest path that ends with ``ends_with``; or, with ``best``, the one along the best ranks.

    Longest: no path taken is the beginning of another, except that for prompts every question
    with its history counts. The best path goes to the lowest rank (0 is best, unranked last) among
    answers, and to the first question that was answered among questions.
    """
    root = _root(raw)
    every, unanswered = [], 0
    for node, path in _walk(root):
        ends, goes_on = _ROLES[node["role"]] == ends_with, _goes_on(node, ends_with)
        if ends and (ends_with == "user" or not goes_on):
            every.append(path)
        unanswered += ends_with == "assistant" and not ends and not goes_on
    if not best or len(every) < 2:
        return Found(every, f"{unanswered} questions without an answer left out" if unanswered and every else "")
    turns = tuple(_best(root, ends_with))
    chosen = next(path for path in every if path.turns == turns)
    return Found([chosen], f"1 of {len(every)} paths taken")


def pairs(raw: Raw, *, adjacent: bool) -> Iterator[Pair]:
    """The ranked answers to each question, two by two, the lower rank (0 is best) first; or neighbours alone."""
    for node, path in _walk(_root(raw)):
        if _ROLES[node["role"]] == "assistant":
            continue
        ranked = [reply for reply in node["replies"] if reply.get("rank") is not None]
        ranked.sort(key=lambda reply: reply["rank"])
        for better, worse in pairwise(ranked) if adjacent else combinations(ranked, 2):
            dropped = path.dropped or _refusal(better) or _refusal(worse)
            yield Pair(path.turns, better["text"], worse["text"], worse["rank"] - better["rank"], dropped)


def alone(raw: Raw) -> int:
    """The answers that are in no pair: those without a rank, and those without another one to be compared with."""
    count = 0
    for node, _ in _walk(_root(raw)):
        replies = node["replies"] if _ROLES[node["role"]] == "user" else []
        ranked = sum(reply.get("rank") is not None for reply in replies)
        count += len(replies) - (ranked if ranked > 1 else 0)
    return count


def _walk(node: Node, before: Messages = (), dropped: str = "") -> Iterator[tuple[Node, Path]]:
    """Every node with its path, a reply after what it replies to."""
    path = Path((*before, Message(_ROLES[node["role"]], node["text"])), dropped or _refusal(node))
    yield node, path
    for reply in node["replies"]:
        yield from _walk(reply, path.turns, path.dropped)


def _refusal(node: Node) -> str:
    """Why no path may go through a node, or an empty text."""
    if node.get("deleted"):
        return "deleted message in the path"
    return "message refused by the reviewers" if node.get("review_result") is False else ""


def _goes_on(node: Node, ends_with: Role) -> bool:
    """Whether a later node on some path through this one has the role that is wanted at the end."""
    return any(_ROLES[reply["role"]] == ends_with or _goes_on(reply, ends_with) for reply in node["replies"])


def _best(node: Node, ends_with: Role) -> Iterator[Message]:
    """The turns of the best path, cut after the last one that may end it."""
    yield Message(_ROLES[node["role"]], node["text"])
    replies = node["replies"]
    if not replies or (_ROLES[node["role"]] == ends_with and not _goes_on(node, ends_with)):
        return
    ranks = [reply.get("rank") if reply.get("rank") is not None else float("inf") for reply in replies]
    able = [n for n, reply in enumerate(replies) if _ROLES[reply["role"]] == ends_with or _goes_on(reply, ends_with)]
    if able:
        yield from _best(replies[min(able, key=lambda n: (ranks[n], n))], ends_with)


def _root(raw: Raw) -> Node:
    """The opening message with all that follows it. Raises :class:`DataError` for what is no tree."""
    root = _joined(raw) if raw.members else raw.column("prompt")
    _check(root, raw)
    return root


def _joined(raw: Raw) -> Node:
    """The tree of flat messages, by their ``message_id`` and ``parent_id``, each reply in the order of the rows."""
    nodes = {member.column("message_id"): {**member.value, "replies": []} for member in raw.members}
    roots = []
    for member in raw.members:
        node, parent = nodes[member.column("message_id")], member.column("parent_id")
        if parent is None:
            roots.append(node)
        elif parent in nodes:
            nodes[parent]["replies"].append(node)
        else:
            raise DataError(
                member.where,
                f"replies to {parent!r}, which is not among the {len(nodes)} rows joined with it",
                cause="Rows are joined as long as they follow one another.",
                remedy="Sort the file by the column in the source's `group`, or check that it is message_tree_id.",
            )
    if len(roots) != 1:
        raise DataError(
            raw.where,
            f"{len(roots)} of the {len(nodes)} messages joined open a conversation, where one is wanted",
            remedy="Check the source's `group`: message_tree_id joins the messages of one tree.",
        )
    return roots[0]


def _check(node: Any, raw: Raw) -> None:
    """Every node has a known role, a text, a list of replies and a rank or none. Raises :class:`DataError`."""
    if not isinstance(node, dict) or not {"role", "text", "replies"} <= node.keys():
        raise DataError(
            raw.where,
            "a node of the tree lacks role, text or replies",
            remedy="Check the recipe's `format`: one exported tree per row is wanted, or messages and a `group`.",
        )
    if node["role"] not in _ROLES or not isinstance(node["text"], str) or not isinstance(node["replies"], list):
        raise DataError(
            raw.where,
            f"a node of the tree has the role {node['role']!r} and a text of type {type(node['text']).__name__}",
            remedy="Roles are prompter and assistant; texts are text.",
        )
    if not isinstance(node.get("rank"), int | None):
        raise DataError(
            raw.where, f"a node of the tree has the rank {node['rank']!r}", remedy="Ranks are whole numbers, or null."
        )
    for reply in node["replies"]:
        _check(reply, raw)
