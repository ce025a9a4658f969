"""Several answers to one prompt in one line, the prompt computed once.

A tree is a prompt and its answers. Its tokens lie behind each other: prompt, first answer, second answer … Every
answer sees the prompt and itself, at the positions it would have alone, so that its score is what it would be in a
row of its own; two answers of a comparison, or the K samples of a prompt, pay for their prompt once. Several trees
share a line, which leaves little to pad.

Axes: B lines, T tokens, N answers (of all trees, in order), S tokens of all answers, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from alignment.gemma import core, heads

Lines = dict[str, Tensor]
"""``input_ids_BT``, ``position_ids_BT``; ``line_N`` and ``column_N``, where each answer's last token stands; and for
trees with shared prompts ``tree_BT`` (−1 is padding) and ``branch_BT`` (0 is the prompt)."""

MULTIPLE = 8
"""Lines are as long as a multiple of it: vector units want whole lines."""
LITTLE = 0.1
"""The share of padding that is not worth a wider line."""
STEPS = 32
"""A wider line is wider by this part of the longest tree."""


class Tree(NamedTuple):
    """Ids of a prompt, and of each answer to it with what closes it."""

    prompt: Sequence[int]
    answers: Sequence[Sequence[int]]

    @property
    def tokens(self) -> int:
        """Length in a line."""
        return len(self.prompt) + sum(map(len, self.answers))


def shares_prompts(model: nn.Module) -> bool:
    """Whether the model's attention can take trees; flash kernels know no such mask."""
    return not core.trunk(model).config._attn_implementation.startswith("flash")


def lay_out(trees: Sequence[Tree], *, pad_id: int, share: bool = True) -> Lines:
    """Trees into lines of which little is padding.

    ``share=False`` gives every answer a prompt of its own, all in one line: flash kernels tell texts apart by their
    positions in a batch of one line alone, and in a longer batch they would see each other.
    """
    assert all(len(answer) for tree in trees for answer in tree.answers), "an answer has at least what closes it"
    if share:
        members = _arranged([tree.tokens for tree in trees])
    else:
        trees = _apart(trees)
        members = [list(range(len(trees)))]
    width = max(sum(trees[place].tokens for place in line) for line in members)
    width = -(-width // MULTIPLE) * MULTIPLE
    shape = (len(members), width)
    ids_BT, positions_BT = np.full(shape, pad_id, np.int64), np.zeros(shape, np.int64)
    tree_BT, branch_BT = np.full(shape, -1, np.int64), np.zeros(shape, np.int64)
    ends: dict[int, list[tuple[int, int]]] = {}
    for line, places in enumerate(members):
        start = 0
        for place in places:
            tree = trees[place]
            spans = [(0, tree.prompt), *enumerate(tree.answers, 1)]
            ends[place] = []
            for branch, ids in spans:
                end, first = start + len(ids), 0 if branch == 0 else len(tree.prompt)
                ids_BT[line, start:end] = ids
                positions_BT[line, start:end] = np.arange(first, first + len(ids))
                tree_BT[line, start:end], branch_BT[line, start:end] = place, branch
                if branch:
                    ends[place].append((line, end - 1))
                start = end
        # Padding counts on from 0, so that packed attention takes it for a text of its own.
        positions_BT[line, start:] = np.arange(width - start)
    places_N2 = np.array([end for place in range(len(trees)) for end in ends[place]], dtype=np.int64)
    lines = {"input_ids": ids_BT, "position_ids": positions_BT, "line": places_N2[:, 0], "column": places_N2[:, 1]}
    lines |= {"tree": tree_BT, "branch": branch_BT} if share else {}
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in lines.items()}


def scores(model: nn.Module, lines: Lines) -> Tensor:
    """``scores_N`` in fp32: the head on each answer's last token, whatever the precision of the trunk."""
    hidden_BTD = _hidden_states(model, lines)
    hidden_ND = hidden_BTD[lines["line"], lines["column"]]
    with torch.autocast(hidden_ND.device.type, enabled=False):
        return (hidden_ND.float() @ heads.head_of(model).float().T).squeeze(-1)


class Spans(NamedTuple):
    """Every token of every answer, in order: where the position that predicts it stands, and what it is.

    The first token of an answer is predicted by its prompt's last. ``answer_S`` and ``step_S`` say whose token it is,
    and the how manieth.
    """

    line_S: Tensor
    column_S: Tensor
    ids_S: Tensor
    answer_S: Tensor
    step_S: Tensor

    def to(self, device: str | torch.device) -> Spans:
        """The same on another device."""
        return Spans(*(one.to(device) for one in self))


def spans(lines: Lines, trees: Sequence[Tree]) -> Spans:
    """Where the tokens of the answers stand that :func:`lay_out` has put into ``lines``."""
    shared = "tree" in lines
    line_N, last_N = lines["line"].tolist(), lines["column"].tolist()
    rows: list[np.ndarray] = []
    number = 0
    for tree in trees:
        opening = last_N[number] - len(tree.answers[0])
        for ids in tree.answers:
            first = last_N[number] - len(ids) + 1
            columns = np.arange(first - 1, first + len(ids) - 1)
            columns[0] = opening if shared else first - 1
            steps = np.arange(len(ids))
            rows.append(
                np.stack([np.full_like(steps, line_N[number]), columns, ids, np.full_like(steps, number), steps])
            )
            number += 1
    return Spans(*torch.from_numpy(np.concatenate(rows, axis=1)).unbind(0))


def predictions(model: nn.Module, lines: Lines, where: Spans) -> Tensor:
    """``hidden_SD`` of the positions that predict the answers' tokens, after the final norm."""
    return _hidden_states(model, lines)[where.line_S, where.column_S]


def padding(lines: Lines, trees: Sequence[Tree]) -> float:
    """The share of a batch that is padding."""
    trees = trees if "tree" in lines else _apart(trees)
    return 1 - sum(tree.tokens for tree in trees) / lines["input_ids"].numel()


def _apart(trees: Sequence[Tree]) -> list[Tree]:
    """Every answer with its prompt, as a tree of its own."""
    return [Tree(tree.prompt, [answer]) for tree in trees for answer in tree.answers]


def _hidden_states(model: nn.Module, lines: Lines) -> Tensor:
    if "tree" not in lines:
        return core.hidden_states(model, lines["input_ids"], position_ids=lines["position_ids"])
    trunk = core.trunk(model)
    outputs = trunk(
        input_ids=lines["input_ids"],
        attention_mask=_masks(trunk.config, lines),
        position_ids=lines["position_ids"],
        use_cache=False,
    )
    return outputs.last_hidden_state


def _masks(config: Any, lines: Lines) -> Any:
    """Who sees whom, in the form that the attention takes; Gemma 2 wants one mask for each kind of layer."""
    whole = _mask(config._attn_implementation, lines, None)
    if not hasattr(config, "layer_types"):
        return whole
    local = _mask(config._attn_implementation, lines, config.sliding_window)
    return {"full_attention": whole, "sliding_attention": local}


def _mask(attention: str, lines: Lines, window: int | None) -> Any:
    """A token sees what stands before it in its tree, of the prompt or of its own branch, not further than ``window``.

    Padding sees itself, so that no row of the softmax is empty.
    """
    tree_BT, branch_BT, positions_BT = lines["tree"], lines["branch"], lines["position_ids"]
    if attention == "flex_attention":
        return _block_mask(tree_BT, branch_BT, positions_BT, window)
    distance_BTT = positions_BT[:, :, None] - positions_BT[:, None, :]
    seen_BTT = (branch_BT[:, None, :] == 0) | (branch_BT[:, None, :] == branch_BT[:, :, None])
    seen_BTT &= tree_BT[:, None, :] == tree_BT[:, :, None]
    seen_BTT &= distance_BTT >= 0
    if window is not None:
        seen_BTT &= distance_BTT < window
    if attention == "sdpa":
        return seen_BTT[:, None]
    kind = tree_BT.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
    mask_BTT = torch.zeros(seen_BTT.shape, dtype=dtype, device=tree_BT.device)
    return mask_BTT.masked_fill_(~seen_BTT, torch.finfo(dtype).min)[:, None]


def _block_mask(tree_BT: Tensor, branch_BT: Tensor, positions_BT: Tensor, window: int | None) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(line: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = positions_BT[line, query] - positions_BT[line, key]
        of_prompt = branch_BT[line, key] == 0
        near = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        same_branch = branch_BT[line, key] == branch_BT[line, query]
        return (tree_BT[line, query] == tree_BT[line, key]) & (of_prompt | same_branch) & near

    count, width = tree_BT.shape
    return create_block_mask(seen, count, None, width, width, device=str(tree_BT.device))


def _arranged(lengths: Sequence[int]) -> list[list[int]]:
    """Places by line: the narrowest lines that leave little padding, at the last a single one."""
    width = longest = max(lengths)
    step = max(MULTIPLE, longest // STEPS // MULTIPLE * MULTIPLE)
    tried = []
    while True:
        lines = first_fit(lengths, width)
        widest = max(sum(lengths[place] for place in places) for places in lines)
        padded = 1 - sum(lengths) / (-(-widest // MULTIPLE) * MULTIPLE * len(lines))
        tried.append((padded, lines))
        if padded <= LITTLE or len(lines) == 1:
            return min(tried, key=lambda one: one[0])[1]
        width = -(-(width + 1) // step) * step


def first_fit(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Places by line, longest first, each into the first line of ``width`` that still has room."""
    lines: list[list[int]] = []
    room: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place], reverse=True):
        line = next((number for number, left in enumerate(room) if left >= lengths[place]), None)
        if line is None:
            lines.append([])
            room.append(width)
            line = len(lines) - 1
        lines[line].append(place)
        room[line] -= lengths[place]
    return lines
