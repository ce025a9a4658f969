"""Which pairs every judge can see whole, counted with each judge's own tokenizer before anything is asked.

Judges are compared on the same pairs: what one of them cannot see is measured for none of them. A prompt is never
shortened here, as training may do it, since the labels were given for all of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from alignment.artifacts import NO_FOLDER, Artifact
from alignment.chat.render import answer_ids, prompt_ids
from alignment.chat.tokenizers import Tokenizer
from alignment.chat.types import Comparison
from alignment.errors import UserError
from alignment.gemma import core
from alignment.gemma.heads import is_reward
from alignment.scoring import llm_judge
from alignment.scoring.gold import Aspect
from alignment.scoring.opening import speaks
from alignment.training.policies import vocabulary_of

TooLong = Literal["refuse", "leave_out"]


@dataclass(frozen=True)
class Unseen:
    """A pair that is longer than what a judge sees at once, in that judge's tokens."""

    dataset: str
    id: str
    judge: str
    tokens: int
    """Of the longer side; of the whole question and room for the reply, where the judge is asked in words."""
    context: int
    reason: str = "too long"

    def line(self) -> str:
        """The same as a line of JSON."""
        return json.dumps(asdict(self)) + "\n"


@dataclass(frozen=True)
class Reader:
    """How a judge reads a pair. ``rubric`` is what it is told, where it is asked in words."""

    tokenizer: Tokenizer
    schema: str
    context: int
    rubric: str | None

    @classmethod
    def of(cls, judge: Artifact, rubric: str) -> Reader | None:
        """None for who is not read here: what has no folder, and classifiers, which have limits of their own."""
        if judge.kind in NO_FOLDER:
            return None
        words = speaks(judge)
        if not words and judge.kind != "reward" and not is_reward(judge.path):
            return None
        tokenizer, schema = vocabulary_of(judge, shape=None, schema="auto")
        context: int = core.read_config(judge.path).max_position_embeddings
        return cls(tokenizer, schema, context, rubric if words else None)

    @property
    def key(self) -> tuple[str, str, str | None]:
        """Readers of one key count the same."""
        return self.tokenizer.digest, self.schema, self.rubric

    def tokens(self, pair: Comparison) -> int:
        """What the longer of the pair's two readings takes."""
        if self.rubric is not None:
            orders = ((pair.chosen, pair.rejected), (pair.rejected, pair.chosen))
            asked = (llm_judge.ask(pair.prompt, first, second, self.rubric) for first, second in orders)
            return max(len(prompt_ids(turns, self.tokenizer)) for turns in asked) + llm_judge.JUDGING.max_new_tokens
        answers = (len(answer_ids(text, self.tokenizer, self.schema)) for text in (pair.chosen, pair.rejected))
        return len(prompt_ids(pair.prompt, self.tokenizer)) + max(answers)


def readers(judges: Sequence[Artifact], labels: Sequence[str], rubric: str | None, aspect: Aspect) -> dict[str, Reader]:
    """The judges that are read here, by label; ``labels`` may go on with those of ensembles."""
    told = llm_judge.RUBRICS[aspect] if rubric is None else rubric
    found = {label: Reader.of(judge, told) for label, judge in zip(labels, judges, strict=False)}
    return {label: reader for label, reader in found.items() if reader is not None}


def unseen(dataset: str, rows: Sequence[Comparison], readers: Mapping[str, Reader]) -> dict[int, list[Unseen]]:
    """The pairs that judges cannot see whole, by their places among ``rows``; ``readers`` by the judges' labels."""
    counted: dict[tuple[str, str, str | None], list[int]] = {}
    for reader in readers.values():
        if reader.key not in counted:
            counted[reader.key] = [reader.tokens(row) for row in rows]
    found: dict[int, list[Unseen]] = {}
    for place, row in enumerate(rows):
        for label, reader in readers.items():
            tokens = counted[reader.key][place]
            if tokens > reader.context:
                found.setdefault(place, []).append(Unseen(dataset, row.id, label, tokens, reader.context))
    return found


def check(found: Mapping[int, Sequence[Unseen]], count: int, too_long: TooLong, max_left_out: float) -> None:
    """Raise :class:`UserError` where pairs of a dataset may not be left out, or not so many of its ``count``."""
    if not found:
        return
    pairs, first = len(found), next(iter(found.values()))[0]
    told = f"{first.dataset}: {pairs:,} of {count:,} pairs are too long for a judge"
    cause = f"{first.id} has {first.tokens:,} tokens for {first.judge}, which sees {first.context:,} at once."
    if too_long == "refuse":
        remedy = "Say too_long=leave_out, for all judges alike, or filter by length in the recipe."
        raise UserError(told, cause=cause, remedy=remedy)
    if pairs > max_left_out * count or pairs == count:
        limit = "all of them" if pairs == count else f"more than max_left_out={max_left_out:g}"
        raise UserError(
            f"{told}, {limit}", cause=cause, remedy="Filter by length in the recipe, or choose other judges."
        )
