"""Policy, critic and anchor as one thing that a loop can train: what is drawn from, learned, and held to.

All of them read answers as trees (``gemma/branches.py``): a prompt is computed once for all answers to it. ``Separate``
has a trunk for each role; ``gemma/shared_roles.py`` has adapters on a single one. The mathematics is the same.

Axes: S tokens of all answers, N answers, D width.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from alignment.gemma import branches, core, heads
from alignment.gemma.branches import Lines, Spans
from alignment.objectives.tokens import gather_logprobs


class Outputs(NamedTuple):
    """``logprobs_S`` in nats at a temperature, and ``values_S`` of the states in which the tokens were chosen."""

    logprobs_S: Tensor
    values_S: Tensor | None


class Roles(nn.Module, ABC):
    """What the loop asks of them. As a module it holds what is trained, and nothing else, so that one engine has it."""

    has_critic: bool

    @abstractmethod
    def forward(self, lines: Lines, where: Spans, temperature: float) -> Outputs:
        """Log-probabilities of the policy and values of the critic, from which one backward pass reaches both."""

    @abstractmethod
    def values(self, lines: Lines, where: Spans) -> Tensor:
        """``values_S`` of the critic alone, where nothing else is wanted."""

    @abstractmethod
    def acting(self) -> AbstractContextManager[nn.Module]:
        """The model from which answers are drawn while the block lasts."""

    @abstractmethod
    def anchor_logprobs(self, lines: Lines, where: Spans, temperature: float) -> Tensor:
        """``logprobs_S`` of the anchor, without gradients."""

    @abstractmethod
    def move_anchor(self, rate: float) -> None:
        """anchor ← (1 − rate) anchor + rate policy, in fp32, on weights with adapters multiplied out (WARP, eq. 2)."""

    @property
    @abstractmethod
    def anchor(self) -> nn.Module:
        """What the policy is held to, as it is now."""

    @abstractmethod
    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Trained parameters by role: ``policy``, and ``critic`` where there is one."""

    @abstractmethod
    def anchor_state(self) -> dict[str, Tensor]:
        """What a checkpoint needs of a moving anchor; nothing of one that stands still."""

    @abstractmethod
    def load_anchor(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`anchor_state` gave."""

    @abstractmethod
    def plain_policy(self) -> core.CausalLM:
        """The policy as a plain Gemma in fp32, adapters merged, to be saved; a copy where it has adapters."""


class Separate(Roles):
    """A trunk for each role; policy and critic may each carry an adapter, and only that is trained then.

    ``anchor=None`` copies the policy as it is. A moving anchor (``moves``) follows the policy's weights with its
    adapter multiplied out; one that stands still needs no checkpoint.
    """

    def __init__(
        self,
        policy: nn.Module,
        critic: nn.Module | None,
        anchor: core.CausalLM | None = None,
        *,
        moves: bool = False,
        chunk_tokens: int = 1024,
    ) -> None:
        super().__init__()
        self.policy, self.critic = policy, critic
        self.has_critic, self.moves, self.chunk_tokens = critic is not None, moves, chunk_tokens
        anchor = plain_copy(policy) if anchor is None else anchor
        anchor.requires_grad_(False)
        # In a tuple, so that it is no part of the module: an engine has nothing to do with what is not trained.
        self._anchor = (anchor.eval(),)

    def forward(self, lines: Lines, where: Spans, temperature: float) -> Outputs:
        """As :class:`Roles` says."""
        logprobs_S = answer_logprobs(self.policy, lines, where, temperature, self.chunk_tokens)
        return Outputs(logprobs_S, self.values(lines, where) if self.has_critic else None)

    def values(self, lines: Lines, where: Spans) -> Tensor:
        """As :class:`Roles` says."""
        assert self.critic is not None, "there is a critic only where one was asked for"
        return answer_values(self.critic, lines, where)

    @contextmanager
    def acting(self) -> Iterator[nn.Module]:
        """The policy itself."""
        yield self.policy

    @torch.no_grad()
    def anchor_logprobs(self, lines: Lines, where: Spans, temperature: float) -> Tensor:
        """As :class:`Roles` says."""
        return answer_logprobs(self._anchor[0], lines, where, temperature, self.chunk_tokens)

    @torch.no_grad()
    def move_anchor(self, rate: float) -> None:
        """As :class:`Roles` says."""
        held = dict(self._anchor[0].named_parameters())
        for name, weight in multiplied_out(self.policy):
            held[name].lerp_(weight, rate)

    @property
    def anchor(self) -> nn.Module:
        """As :class:`Roles` says."""
        return self._anchor[0]

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """As :class:`Roles` says."""
        roles = {"policy": self.policy} | ({} if self.critic is None else {"critic": self.critic})
        return {role: [one for one in model.parameters() if one.requires_grad] for role, model in roles.items()}

    def anchor_state(self) -> dict[str, Tensor]:
        """As :class:`Roles` says."""
        return dict(self._anchor[0].named_parameters()) if self.moves else {}

    @torch.no_grad()
    def load_anchor(self, state: dict[str, Tensor]) -> None:
        """As :class:`Roles` says."""
        held = dict(self._anchor[0].named_parameters())
        assert state.keys() == (held.keys() if self.moves else set()), "the state of another anchor"
        for name, weight in state.items():
            held[name].copy_(weight)

    def plain_policy(self) -> core.CausalLM:
        """As :class:`Roles` says."""
        return self.policy if isinstance(self.policy, core.CausalLM) else plain_copy(self.policy)


def answer_logprobs(
    model: nn.Module, lines: Lines, where: Spans, temperature: float, chunk_tokens: int = 1024
) -> Tensor:
    """``logprobs_S`` of the answers' tokens in nats at ``temperature``; logits, in fp32, exist for them alone."""
    hidden_SD = branches.predictions(model, lines, where)
    weight_VD, softcap = core.head(model)
    # Log-probabilities are compared with each other: bf16 products would put ±0.03 into each of them.
    with torch.autocast(hidden_SD.device.type, enabled=False):
        return gather_logprobs(
            hidden_SD.float(),
            weight_VD.float(),
            where.ids_S,
            softcap=softcap,
            temperature=temperature,
            chunk_tokens=chunk_tokens,
        )


def answer_values(model: nn.Module, lines: Lines, where: Spans) -> Tensor:
    """``values_S`` of a critic (a trunk with a scalar head) in fp32: of the state before each token of an answer."""
    hidden_SD = branches.predictions(model, lines, where)
    with torch.autocast(hidden_SD.device.type, enabled=False):
        return (hidden_SD.float() @ heads.head_of(model).float().T).squeeze(-1)


def critic_from_policy(policy: core.CausalLM) -> heads.RewardModel:
    """A critic with a copy of the policy's trunk and a head of zeros, so that its first values are 0 everywhere."""
    critic = heads.with_head(copy.deepcopy(policy), seed=0)
    with torch.no_grad():
        critic.score.weight.zero_()
    return critic


@torch.no_grad()
def multiplied_out(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights that act, by their names in the plain model: W + (alpha / rank) · BA where there is an adapter."""
    for path, module in core.causal_lm(model).named_modules():
        if hasattr(module, "base_layer"):
            update = sum(module.get_delta_weight(adapter) for adapter in module.active_adapters)
            yield f"{path}.weight", module.base_layer.weight + update
    for name, weight in core.causal_lm(model).named_parameters():
        if ".base_layer." not in name and ".lora_" not in name:
            yield name, weight


def plain_copy(model: nn.Module) -> core.CausalLM:
    """A plain Gemma of its own with the weights that act in ``model``."""
    settings: Any = core.causal_lm(model).config
    with torch.device("meta"):
        plain = core.MODELS[settings.model_type](settings)
    weights = {name: weight.detach().clone() for name, weight in multiplied_out(model)}
    missing = plain.load_state_dict(weights, strict=False, assign=True)
    assert set(missing.missing_keys) <= {"lm_head.weight"}, missing
    assert not missing.unexpected_keys, missing
    plain.tie_weights()
    _rebuild_buffers(plain, core.causal_lm(model))
    return plain.eval()


def _rebuild_buffers(plain: nn.Module, like: nn.Module) -> None:
    """Rotary frequencies and the embedding's scale are not parameters: taken from the model that was copied."""
    buffers = {name.replace(".base_layer", ""): buffer for name, buffer in like.named_buffers()}
    for path, module in plain.named_modules():
        for name in module._buffers:
            module._buffers[name] = buffers[f"{path}.{name}" if path else name].detach().clone()
