"""What the policy is worth on prompts that it does not learn from: a point of the KL–reward front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from alignment.chat.render import answer_text, prompt_ids
from alignment.chat.types import Message, Prompt
from alignment.errors import UserError
from alignment.gemma.divergence import sequence_kl
from alignment.rl.control import Point
from alignment.rl.records import answers_kept
from alignment.rl.settings import Drawing
from alignment.sampling.sampler import Answer, Sampler
from alignment.scoring.combine import Reward
from alignment.scoring.scorer import Scorer
from alignment.training.policies import Policy

SEED = 1_000_003
"""Of the draws, the same at every measurement: differences between two points are of the policy alone."""


@dataclass(frozen=True)
class HeldOut:
    """The prompts, and what is measured on them: the reward itself, further scorers, the KL to ``start``."""

    prompts: Sequence[Prompt]
    reward: Reward
    others: Mapping[str, Scorer]
    start: nn.Module
    policy: Policy
    drawing: Drawing
    device: str

    def measure(self, model: nn.Module, step: int, out: Path) -> tuple[Point, list[dict[str, str | float]]]:
        """The point of ``model`` at ``step``, and every prompt with its answer and its scores.

        Raises :class:`UserError` where one of its numbers is none, with the answers saved below ``out``.
        """
        ids = [prompt_ids(prompt.messages, self.policy.tokenizer) for prompt in self.prompts]
        answers = self._answers(model, ids)
        texts = [answer_text(answer.ids, self.policy.tokenizer) for answer in answers]
        with answers_kept(out, self.prompts, texts):
            judged, others = self._judged(answers, texts)
            kl = self._kl(model, ids, answers, step)
        means = {name: float(values.mean()) for name, values in others.items()}
        rows: list[dict[str, str | float]] = [
            {
                "step": step,
                "prompt": prompt.messages[-1].content,
                "answer": text,
                "reward": float(judged[place]),
                "kl": float(kl[place]),
                **{name: float(values[place]) for name, values in others.items()},
            }
            for place, (prompt, text) in enumerate(zip(self.prompts, texts, strict=True))
        ]
        return Point(step, float(kl.mean()), float(judged.mean()), means), rows

    def _judged(self, answers: list[Answer], texts: list[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The combined score of every answer, and what each further scorer says of it."""
        judged = self.reward.score(
            self.prompts, texts, [len(answer.ids) for answer in answers], [answer.finished for answer in answers]
        ).score
        dialogues = [
            (*prompt.messages, Message("assistant", text)) for prompt, text in zip(self.prompts, texts, strict=True)
        ]
        others = {name: np.asarray(scorer.score(dialogues).reported) for name, scorer in self.others.items()}
        for name, values in others.items():
            if not np.isfinite(values).all():
                raise UserError(
                    f"{name} gives a score that is not a number", remedy="Leave it out of watching.rewards."
                )
        return judged, others

    def _kl(self, model: nn.Module, ids: list[list[int]], answers: list[Answer], step: int) -> np.ndarray:
        """To the start, in nats an answer."""
        drawn = [answer.ids for answer in answers]
        kl = sequence_kl(model, self.start, ids, drawn, self.device, self.drawing.temperature)
        if not np.isfinite(kl).all():
            raise UserError(
                f"the KL to the start is no number at step {step}",
                cause="A policy that gives nothing to what it draws, or weights that are not finite.",
                remedy="Lower updating.learning_rate; a checkpoint is from before.",
            )
        return kl

    def _answers(self, model: nn.Module, ids: list[list[int]]) -> list[Answer]:
        tokenizer = self.policy.tokenizer
        sampler = Sampler(model, stop_ids=self.policy.stop_ids, pad_id=tokenizer.pad_id)
        return sampler.draw(
            ids,
            [prompt.id for prompt in self.prompts],
            temperature=self.drawing.temperature,
            max_new_tokens=self.drawing.max_new_tokens,
            seed=SEED,
        )
