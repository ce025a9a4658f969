"""What one step draws, and what is known of it: answers, log-probabilities, values, rewards.

Axes: B answers (by prompt: the K answers to one prompt stand next to each other), T tokens of an answer, padded on the
right; S tokens of all answers of a forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from alignment.chat.types import Prompt
from alignment.gemma import branches
from alignment.gemma.branches import Lines, Spans, Tree

if TYPE_CHECKING:
    from alignment.scoring.combine import Judged


@dataclass
class Episodes:
    """``old_BT``, ``anchor_BT`` and ``values_BT`` (without a critic None) are of the policy before the step's update.

    ``weights_BT`` are importance weights, to be cut off at ``largest_weight``, where answers were drawn by something
    that differs from the policy by rounding; None where they were drawn by the policy itself.
    """

    prompts: list[Prompt]
    prompt_ids: list[list[int]]
    samples: int
    answers: list[list[int]]
    texts: list[str]
    finished: list[bool]
    drawn_BT: Tensor
    mask_BT: Tensor
    old_BT: Tensor
    anchor_BT: Tensor | None = None
    values_BT: Tensor | None = None
    weights_BT: Tensor | None = None
    largest_weight: float = float("inf")
    judged: Judged | None = None

    def tree(self, group: int) -> Tree:
        """A prompt with its answers."""
        first = group * self.samples
        return Tree(self.prompt_ids[group], self.answers[first : first + self.samples])

    def rows(self, groups: Sequence[int]) -> list[int]:
        """The answers of ``groups``, as rows of the padded tensors, in the order of a forward pass."""
        return [group * self.samples + sample for group in groups for sample in range(self.samples)]

    @property
    def prompts_of_answers(self) -> list[Prompt]:
        """The prompt of each answer."""
        return [prompt for prompt in self.prompts for _ in range(self.samples)]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each answer."""
        return [len(answer) for answer in self.answers]


@dataclass(frozen=True)
class Pass:
    """One forward pass: some groups laid out, and where their answers belong."""

    groups: list[int]
    rows: list[int]
    lines: Lines
    where: Spans

    def padded(self, values_S: Tensor, width: int) -> Tensor:
        """``[rows, width]`` of the values of all answer tokens; 0 behind an answer's end. Keeps gradients."""
        padded_BT = torch.zeros((len(self.rows), width), dtype=values_S.dtype, device=values_S.device)
        return padded_BT.index_put((self.where.answer_S, self.where.step_S), values_S)


def passes(
    episodes: Episodes,
    groups: Sequence[int],
    *,
    answers: int | None,
    tokens: int,
    pad_id: int,
    share: bool,
    device: str,
) -> Iterator[Pass]:
    """Forward passes over ``groups``, those alike in length together, of at most so many answers and tokens each.

    A single group may have more.
    """
    trees = {group: episodes.tree(group) for group in groups}
    some: list[int] = []
    held = 0
    for group in sorted(groups, key=lambda group: (-trees[group].tokens, group)):
        full = answers is not None and (len(some) + 1) * episodes.samples > answers
        if some and (full or held + trees[group].tokens > tokens):
            yield _pass(episodes, some, [trees[one] for one in some], pad_id, share, device)
            some, held = [], 0
        some.append(group)
        held += trees[group].tokens
    if some:
        yield _pass(episodes, some, [trees[one] for one in some], pad_id, share, device)


def _pass(episodes: Episodes, groups: list[int], trees: list[Tree], pad_id: int, share: bool, device: str) -> Pass:
    lines = branches.lay_out(trees, pad_id=pad_id, share=share)
    where = branches.spans(lines, trees)
    placed = {name: values.to(device) for name, values in lines.items()}
    return Pass(groups, episodes.rows(groups), placed, where.to(device))


def padded(rows: Sequence[Sequence[float]], width: int, device: str) -> Tensor:
    """``[rows, width]`` in fp32 of rows of any length up to ``width``, 0 behind their ends."""
    whole = torch.zeros((len(rows), width))
    for place, row in enumerate(rows):
        whole[place, : len(row)] = torch.tensor(row)
    return whole.to(device)
