"""Answers drawn and scored: from prompts to candidates, among which somebody chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from alignment.chat.types import Message, Prompt
from alignment.data.candidates import Candidate
from alignment.errors import UserError
from alignment.sampling.decoding import Decoding, Reply

if TYPE_CHECKING:
    from alignment.sampling.decoding import Respondent
    from alignment.scoring.combine import Reward
    from alignment.scoring.scorer import Scorer


@dataclass(frozen=True)
class Drawer:
    """Draws answers and has them scored. ``gold`` is beside the score, to be looked at, and decides nothing.

    An answer depends on (seed, prompt id, sample) and the temperature, and every temperature has the same noise: so
    temperatures are compared closely, and an answer drawn to compare them is the one that is drawn afterwards.
    """

    respondent: Respondent
    reward: Reward
    gold: Scorer | None
    iteration: int

    def draw(
        self, prompts: Sequence[Prompt], decoding: Decoding, on_progress: Callable[[int], None] | None = None
    ) -> list[list[Candidate]]:
        """``decoding.samples`` candidates for each prompt. Raises :class:`UserError` for a score that is not finite."""
        replies = self.respondent.reply(
            [prompt.messages for prompt in prompts], [prompt.id for prompt in prompts], decoding, on_progress
        )
        several = [prompt for prompt in prompts for _ in range(decoding.samples)]
        flat = [reply for some in replies for reply in some]
        truth = [None] * len(flat) if self.gold is None else _truth(self.gold, several, flat)
        drawn = [
            Candidate(
                iteration=self.iteration,
                policy=self.respondent.name,
                sample=place % decoding.samples,
                answer=reply.text,
                tokens=reply.tokens,
                finished=reply.finished,
                temperature=decoding.temperature,
                gold=gold,
                **scores,
            )
            for place, (reply, gold, scores) in enumerate(
                zip(flat, truth, _scores(self.reward, several, flat), strict=True)
            )
        ]
        return [drawn[first : first + decoding.samples] for first in range(0, len(drawn), decoding.samples)]


def check_room(prompts: Sequence[Prompt], respondent: Respondent, max_new_tokens: int) -> None:
    """Raise :class:`UserError` for prompts that leave a model of ours no room for an answer, before any is drawn."""
    from alignment.chat.render import prompt_ids
    from alignment.gemma.core import causal_lm
    from alignment.sampling.model_respondent import ModelRespondent

    if not isinstance(respondent, ModelRespondent):
        return
    context = causal_lm(respondent.model).config.max_position_embeddings
    tokens = {prompt.id: len(prompt_ids(prompt.messages, respondent.tokenizer)) for prompt in prompts}
    long = [name for name, count in tokens.items() if count + max_new_tokens > context]
    if not long:
        return
    longest = max(long, key=lambda name: tokens[name])
    room = context - tokens[longest]
    raise UserError(
        f"prompts: {len(long):,} of {len(prompts):,} leave no room for {max_new_tokens:,} tokens more",
        cause=f"{longest} has {tokens[longest]:,}, and {respondent.name} sees {context:,} at once.",
        remedy="Filter by length in the recipe" + (f", or say max_new_tokens={room}." if room > 0 else "."),
    )


def score_anew(reward: Reward, prompts: Sequence[Prompt], drawn: Sequence[Candidate]) -> list[Candidate]:
    """Candidates with what this reward gives them."""
    replies = [Reply(one.answer, one.tokens, one.finished) for one in drawn]
    return [replace(one, **scores) for one, scores in zip(drawn, _scores(reward, prompts, replies), strict=True)]


def _scores(reward: Reward, prompts: Sequence[Prompt], replies: Sequence[Reply]) -> list[dict[str, Any]]:
    """Score and parts of each reply."""
    scored = reward.score(
        prompts,
        [reply.text for reply in replies],
        [reply.tokens for reply in replies],
        [reply.finished for reply in replies],
    )
    return [
        {"score": float(score), "parts": {name: float(values[place]) for name, values in scored.parts.items()}}
        for place, score in enumerate(scored.score)
    ]


def _truth(gold: Scorer, prompts: Sequence[Prompt], replies: Sequence[Reply]) -> list[float]:
    return gold.score(
        [(*prompt.messages, Message("assistant", reply.text)) for prompt, reply in zip(prompts, replies, strict=True)]
    ).raw
