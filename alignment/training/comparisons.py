"""Comparisons as ids: rendered, with margins by grade, and shortened or left out where they do not fit the context."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from alignment.chat.render import answer_ids, prompt_ids
from alignment.chat.tokenizers import Tokenizer
from alignment.chat.types import Comparison, Grade, Messages
from alignment.data.draw import uniform
from alignment.objectives.preference import UNKNOWN
from alignment.training.pair_rows import PairRow

TooLong = Literal["refuse", "leave_out", "shorten"]


@dataclass(frozen=True)
class Fit:
    """What became of a comparison that is longer than the context."""

    id: str
    tokens: int
    """Of its longer side."""
    reason: str
    turns_dropped: int = 0
    kept: bool = False


@dataclass
class Renderer:
    """Renders comparisons for one model. ``margins`` are by grade; a pair that nobody graded has 0.

    Of a pair that is too long, ``shorten`` drops the oldest exchanges (a system message stays), and leaves it out
    where its last question and an answer alone do not fit: an answer is never cut. ``fits`` lists what was done.
    """

    tokenizer: Tokenizer
    schema: str
    limit: int
    margins: Mapping[Grade, float]
    too_long: TooLong
    fits: list[Fit] = field(default_factory=list)

    def rows(self, comparisons: Iterable[Comparison]) -> Iterator[tuple[Comparison, PairRow]]:
        """The comparisons that fit, with their ids."""
        for one in comparisons:
            row = self._row(one)
            if row is not None:
                yield one, row

    @property
    def left_out(self) -> list[Fit]:
        """Those that did not fit."""
        return [fit for fit in self.fits if not fit.kept]

    def _row(self, one: Comparison) -> PairRow | None:
        prompt = prompt_ids(one.prompt, self.tokenizer)
        chosen, rejected = (answer_ids(text, self.tokenizer, self.schema) for text in (one.chosen, one.rejected))
        longest = max(len(chosen), len(rejected))
        if len(prompt) + longest > self.limit:
            shortened = self._shortened(one, len(prompt), longest)
            if shortened is None:
                return None
            prompt = shortened
        margin = 0.0 if one.grade is None else self.margins[one.grade]
        return PairRow(prompt, chosen, rejected, margin, _label(one.chosen_safe), _label(one.rejected_safe))

    def _shortened(self, one: Comparison, prompt: int, answer: int) -> list[int] | None:
        """The ids of the latest turns that fit beside the longer answer; None where none do, or none shall."""
        tokens = prompt + answer
        if self.too_long != "shorten":
            self.fits.append(Fit(one.id, tokens, "too long"))
            return None
        for dropped, turns in _later_turns(one.prompt):
            ids = prompt_ids(turns, self.tokenizer)
            if len(ids) + answer <= self.limit:
                self.fits.append(Fit(one.id, tokens, "earlier turns dropped", dropped, kept=True))
                return ids
        self.fits.append(Fit(one.id, tokens, "too long without its earlier turns"))
        return None


def exchanged(comparisons: Iterable[Comparison], share: float) -> Iterator[Comparison]:
    """A ``share`` of the comparisons, chosen by a hash of the id, the wrong way round: noise of a known amount.

    The same pairs are exchanged whatever the run's seed is; safety labels stay with their answers.
    """
    for one in comparisons:
        yield _reversed(one) if share and uniform("exchanged", one.id) < share else one


def _reversed(one: Comparison) -> Comparison:
    return Comparison(
        one.prompt,
        one.rejected,
        one.chosen,
        one.grade,
        one.source,
        one.id,
        chosen_safe=one.rejected_safe,
        rejected_safe=one.chosen_safe,
    )


def _later_turns(turns: Messages) -> Iterator[tuple[int, Messages]]:
    """Ever fewer turns: without the first exchange, without the first two … The last user turn stays."""
    system, spoken = (turns[:1], turns[1:]) if turns[0].role == "system" else ((), turns)
    for start in range(2, len(spoken), 2):
        yield start, (*system, *spoken[start:])


def _label(safe: bool | None) -> int:
    return UNKNOWN if safe is None else int(safe)
