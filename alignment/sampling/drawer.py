"""Who draws a policy's answers while it learns: our own sampler, or a server that is handed its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from alignment.sampling.sampler import Answer, Sampler


class Drawer(Protocol):
    """Draws answers from a policy as it is now.

    ``exact``: the log-probabilities that it gives are the policy's own up to rounding. Where they are not, the policy
    computes its own, and importance weights make up for the difference.
    """

    @property
    def exact(self) -> bool:
        """Whether ratios may be formed with the log-probabilities that come with the answers."""
        ...

    def draw(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        prompt_ids: Sequence[str],
        *,
        samples: int,
        temperature: float,
        max_new_tokens: int,
        seed: int,
    ) -> list[Answer]:
        """``samples`` answers to each prompt (ids), ordered by prompt and sample."""
        ...


@dataclass(frozen=True)
class OwnDrawer:
    """The one sampler, in this process. Without ``stop_ids`` every answer has all of its tokens."""

    stop_ids: tuple[int, ...]
    pad_id: int
    exact: bool = True

    def draw(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        prompt_ids: Sequence[str],
        *,
        samples: int,
        temperature: float,
        max_new_tokens: int,
        seed: int,
    ) -> list[Answer]:
        """As the protocol says."""
        return Sampler(model, stop_ids=self.stop_ids, pad_id=self.pad_id).draw(
            prompts,
            prompt_ids,
            samples=samples,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            seed=seed,
        )
