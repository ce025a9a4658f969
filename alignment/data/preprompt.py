"""Safety context distillation: answers drawn with a safety pre-prompt, learned without it (Llama 2, §4.2.4).

Only adversarial prompts are answered so. The row, the prompt *without* the pre-prompt and the guided answer, is kept
only where a safety score prefers that answer to the plain one: Llama 2 saw low scores gain and high ones lose, the
answers becoming vague or refusing what is harmless.

The pre-prompt stands before the last user message, the one that the category speaks of, with a space between.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

from alignment.chat.types import Conversation, Message, Messages, Prompt
from alignment.data.taxonomy import Taxonomy
from alignment.errors import UserError, nearest

Kind = Literal["template", "generic"]
KINDS: tuple[Kind, ...] = ("template", "generic")
"""Of two equal gains the earlier kind is taken."""
TAG = "preprompt"


class Preprompt(NamedTuple):
    """What is put before a prompt."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Wordings:
    """Pre-prompts that suit every request, and the answer template of each category."""

    generic: tuple[str, ...]
    templates: Mapping[str, str]

    def draw(self, kind: Kind, category: str, seed: int, prompt_id: str) -> Preprompt:
        """The category's template, or a generic pre-prompt chosen by seed and prompt.

        Raises :class:`UserError` for a category without a template.
        """
        if kind == "generic":
            return Preprompt(kind, random.Random(f"preprompt:{seed}:{prompt_id}").choice(self.generic))
        if category not in self.templates:
            raise UserError(
                f"category {category!r}: there is no answer template for it",
                cause=nearest(category, [*self.templates]),
                remedy="Say source=taxonomy, where every category has one, or preprompts=generic.",
            )
        return Preprompt(kind, self.templates[category])


def from_taxonomy(taxonomy: Taxonomy) -> Wordings:
    """The wordings of the taxonomy."""
    templates = {name: category.template for name, category in taxonomy.categories.items()}
    return Wordings(tuple(taxonomy.preprompts), templates)


def from_miniature() -> Wordings:
    """The wordings that models of the miniature world have met."""
    from alignment.miniature import preprompts

    return Wordings(preprompts.GENERIC, preprompts.TEMPLATES)


def guided(turns: Messages, preprompt: Preprompt) -> Messages:
    """The turns with the pre-prompt before the last user message: for drawing the answer."""
    assert turns[-1].role == "user"
    return (*turns[:-1], Message("user", f"{preprompt.text} {turns[-1].content}"))


class Guided(NamedTuple):
    """An answer drawn with a pre-prompt, and its score beside the prompt without it.

    ``problem`` says why it cannot be learned from, whatever its score.
    """

    preprompt: Preprompt
    answer: str
    score: float
    problem: str


def choose(answers: Sequence[Guided], plain_score: float, min_gain: float | None) -> tuple[Guided | None, str]:
    """The guided answer to learn from, or None and the reason.

    The best is taken; of equals the first in the order of ``KINDS``. Its raw score must be above the plain
    answer's, by ``min_gain`` at least; None takes it whatever it gains (the unfiltered arm of a comparison).
    """
    sound = [each for each in answers if not each.problem]
    if not sound:
        return None, answers[0].problem
    best = max(sound, key=lambda each: (each.score, -KINDS.index(each.preprompt.kind)))
    gain = best.score - plain_score
    if min_gain is not None and (gain <= 0 or gain < min_gain):
        return None, "no gain in safety"
    return best, ""


def row(prompt: Prompt, taken: Guided) -> Conversation:
    """The row to learn from: the prompt without the pre-prompt, the guided answer, loss on that answer alone.

    Tags: the prompt's own, ``preprompt``, the kind of pre-prompt, the category and the attack.
    """
    labels = (TAG, taken.preprompt.kind, prompt.category, prompt.attack)
    tags = tuple(dict.fromkeys((*prompt.tags, *(label for label in labels if label))))
    return Conversation((*prompt.messages, Message("assistant", taken.answer)), prompt.id, tags, "last")


class Quarter(NamedTuple):
    """A quarter of the prompts by plain score, the lowest first; means of raw scores.

    ``worse`` is the share of prompts whose best guided answer scores below the plain one.
    """

    prompts: int
    plain: float
    guided: dict[Kind, float]
    worse: float


def quarters(plain: Sequence[float], by_kind: Mapping[Kind, Sequence[float]]) -> list[Quarter]:
    """The prompts in four parts by the rank of their plain score (equal scores in their order), empty ones left out.

    ``by_kind`` holds the guided scores of each kind, in the order of ``plain``.
    """
    ranked = sorted(range(len(plain)), key=lambda place: plain[place])
    bounds = [round(len(ranked) * part / 4) for part in range(5)]
    found = []
    for low, high in pairwise(bounds):
        places = ranked[low:high]
        if places:
            worse = sum(max(scores[place] for scores in by_kind.values()) < plain[place] for place in places)
            means = {kind: _mean([scores[place] for place in places]) for kind, scores in by_kind.items()}
            found.append(Quarter(len(places), _mean([plain[place] for place in places]), means, worse / len(places)))
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
