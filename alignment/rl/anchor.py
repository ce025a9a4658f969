"""The anchor under ZeRO 3: divided among the processes as the policy is, and moved part by part.

A policy is held to an anchor of its own size. Whole on every process it would take the room that ZeRO 3 has made.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from alignment.gemma import core
from alignment.gemma.branches import Lines, Spans
from alignment.gemma.roles import Separate, answer_logprobs, multiplied_out
from alignment.training import zero
from alignment.training.engine import Engine, autocast


class Reader(nn.Module):
    """A model that is asked for the log-probabilities of answers."""

    def __init__(self, model: nn.Module, engine: Engine, chunk_tokens: int) -> None:
        super().__init__()
        self.model = model
        self._how, self._chunk = engine, chunk_tokens

    def forward(self, lines: Lines, where: Spans, temperature: float) -> Tensor:
        """``logprobs_S`` in nats."""
        with autocast(self._how):
            return answer_logprobs(self.model, lines, where, temperature, self._chunk)


class DividedAnchor:
    """The anchor of roles with trunks of their own. Everything here is done by all processes together."""

    def __init__(self, roles: Separate, engine: Engine) -> None:
        self.roles = roles
        self.engine = zero.divided(Reader(roles.anchor, engine, roles.chunk_tokens), engine)

    @torch.no_grad()
    def logprobs(self, lines: Lines, where: Spans, temperature: float) -> Tensor:
        """``logprobs_S`` of the anchor."""
        found: Tensor = self.engine(lines, where, temperature)
        return found

    def whole(self) -> Any:
        """While the block lasts, the anchor is whole on every process."""
        return zero.whole(self.engine)

    @torch.no_grad()
    def move(self, rate: float) -> None:
        """anchor ← (1 − rate) anchor + rate policy, each process on its own part."""
        held = dict(self.roles.anchor.named_parameters())
        adapted = self.roles.policy is not core.causal_lm(self.roles.policy)
        if not adapted:
            for name, weight in core.causal_lm(self.roles.policy).named_parameters():
                # Alike in shape and in number of processes, they are divided alike.
                zero.own_part(held[name]).lerp_(zero.own_part(weight), rate)
            return
        with zero.gathering(list(self.roles.policy.parameters())):
            for name, acting in multiplied_out(self.roles.policy):
                part = zero.part_of(acting, held[name])
                zero.own_part(held[name])[: len(part)].lerp_(part, rate)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint needs of it, on rank 0; nothing of one that stands still."""
        return zero.on_main(dict(self.roles.anchor.named_parameters())) if self.roles.moves else {}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`state` gave."""
        held = dict(self.roles.anchor.named_parameters())
        assert state.keys() == (held.keys() if self.roles.moves else set()), "the state of another anchor"
        for name, weight in state.items():
            part = zero.part_of(weight, held[name])
            zero.own_part(held[name])[: len(part)].copy_(part)
