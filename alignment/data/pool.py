"""Which answer to a prompt becomes a row: the best of what was drawn now and of what earlier iterations kept.

Every prompt and every earlier row has its line in the ledger, whatever became of it. What is not the best is not
drawn, as rows are that a mixture leaves out; an answer is dropped only where nothing can be learned from the best.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from alignment.chat.types import Conversation, Message, Messages, Prompt
from alignment.data import candidates
from alignment.data.candidates import EMPTY, Candidate
from alignment.data.derive import Derivation, Place
from alignment.data.ledger import Verdict
from alignment.data.rows import Split

TAG = "reject"


class Pooled(NamedTuple):
    """A row of an earlier artifact, which stands for election again."""

    place: Place
    prompt: Prompt
    candidate: Candidate


def pooled(directory: Path, parent: str, iteration: int) -> list[Pooled]:
    """The rows of an artifact of ``stage=reject``, which the ledger calls ``parent``."""
    return [
        Pooled(
            Place(parent, one.split, one.number, one.prompt.id),
            one.prompt,
            replace(one.candidate, iteration=iteration),
        )
        for one in candidates.kept(directory)
    ]


class Election:
    """Chooses, prompt by prompt; the same prompt is one with the same turns. Of equals this iteration's answer wins.

    ``rows`` counts what was kept by iteration, ``tags`` by tag.
    """

    def __init__(
        self,
        derivation: Derivation,
        tables: candidates.Writer,
        pool: Iterable[Pooled],
        unfinished: Literal["drop", "keep"],
    ) -> None:
        self._derivation, self._tables, self._unfinished = derivation, tables, unfinished
        self._pool: dict[Messages, list[Pooled]] = {}
        for one in pool:
            self._pool.setdefault(one.prompt.messages, []).append(one)
        self.rows, self.tags = Counter[int](), Counter[str]()

    def leave_out(self, place: Place, reason: str) -> None:
        """A prompt that was not asked."""
        self._derivation.record(place, [_verdict("not_drawn", place, reason)])

    def elect(self, place: Place, prompt: Prompt, drawn: Sequence[Candidate]) -> None:
        """Choose among the answers drawn to a prompt, and what earlier iterations kept for it."""
        own, earlier = candidates.best(drawn), self._pool.pop(prompt.messages, [])
        bests = [own, *(one.candidate for one in earlier)]
        kept = self._choose(prompt, place.split, [*drawn, *bests[1:]], bests)
        for stood, candidate in zip((place, *(one.place for one in earlier)), bests, strict=True):
            self._record(stood, prompt, place.split, candidate, kept)

    def elect_rest(self) -> None:
        """Choose for the prompts that only earlier iterations have asked; a row stays in its split."""
        for earlier in self._pool.values():
            first = earlier[0]
            bests = [one.candidate for one in earlier]
            kept = self._choose(first.prompt, first.place.split, bests, bests)
            for one in earlier:
                self._record(one.place, first.prompt, first.place.split, one.candidate, kept)
        self._pool = {}

    def _choose(
        self, prompt: Prompt, split: Split, standing: Sequence[Candidate], bests: Sequence[Candidate]
    ) -> Candidate | None:
        winner = candidates.best(bests)
        lost = winner.problem == EMPTY or (winner.problem and self._unfinished == "drop")
        kept = None if lost else winner
        self._tables.add(split, prompt, standing, bests, kept)
        return kept

    def _record(self, place: Place, prompt: Prompt, split: Split, one: Candidate, kept: Candidate | None) -> None:
        """The line of a prompt or of an earlier row, ``one`` being its best answer, and the row where that is kept."""
        if kept is None:
            verdict = _verdict("dropped", place, one.problem)
        elif one is not kept:
            detail = f"iteration {kept.iteration}: {one.score:.3f} → {kept.score:.3f}"
            verdict = _verdict("not_drawn", place, "another answer is better", detail)
        else:
            made = row(prompt, one)
            verdict = Verdict("kept", made.id, row=made, split=split, copies=1)
            self.rows[one.iteration] += 1
            self.tags.update(set(made.tags))
        self._derivation.record(place, [verdict])


def row(prompt: Prompt, best: Candidate) -> Conversation:
    """What is learned from: the prompt's turns, id and tags, and loss on the answer alone."""
    tags = tuple(dict.fromkeys((*prompt.tags, TAG)))
    return Conversation((*prompt.messages, Message("assistant", best.answer)), prompt.id, tags, "last")


def _verdict(fate: Literal["dropped", "not_drawn"], place: Place, reason: str, detail: str = "") -> Verdict:
    return Verdict(fate, place.id, by="reject", reason=reason, detail=detail)
