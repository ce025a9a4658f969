"""Answers that a program finds right or wrong, by the references of their prompts (``scoring/checkable.py``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from alignment.artifacts import Artifact
from alignment.chat.types import Prompt, prompt_key
from alignment.evals.suites.subject import Asked, Subject
from alignment.evals.suites.suite import Examined, Example, Measure, Suite
from alignment.sampling.decoding import Decoding, Reply
from alignment.settings import identity, reference

if TYPE_CHECKING:
    from alignment.scoring.checkable import Checkable

MEASURES = (
    Measure("correct", "higher", "share of the answers that are right; of several instructions, the share obeyed"),
    Measure("strict", "higher", "share of the answers that are right in everything"),
    Measure("finished", "higher", "share of the answers that ended of their own accord"),
    Measure("tokens", None, "tokens of an answer"),
)


class Settings(Suite):
    """A check, and the prompts whose references it reads."""

    prompts: str = reference("a dataset of prompts with references", kinds=("dataset",))
    split: Literal["train", "valid", "test"] = identity("its split; no model may have seen its prompts")
    count: int | None = identity("prompts at most, the first of the split; null takes all", ge=1)
    check: Literal["exact", "gsm8k", "ifeval"] = identity("what is right: as check:<name> among the scorers")
    decoding: Decoding = identity("how answers are drawn; of several samples the mean counts")


def examine(settings: Settings, inputs: Mapping[str, Artifact], subject: Subject) -> Examined:
    """Draw answers and check them. Raises :class:`UserError` for a reference that cannot be read."""
    from alignment.scoring.checkable import Checkable

    prompts = subject.prompts(inputs["prompts"], settings.split, settings.count)
    check = Checkable(settings.check, prompts)
    replies = subject.replies("answers", [Asked(one.id, one.messages) for one in prompts], settings.decoding)
    return Examined(MEASURES, _examples(prompts, replies, check))


def _examples(prompts: Sequence[Prompt], replies: Sequence[Sequence[Reply]], check: Checkable) -> Iterator[Example]:
    from alignment.chat.types import Message

    for prompt, samples in zip(prompts, replies, strict=True):
        dialogues = [(*prompt.messages, Message("assistant", reply.text)) for reply in samples]
        right = check.score(dialogues).reported
        values = {
            "correct": sum(right) / len(right),
            "strict": sum(one == 1 for one in right) / len(right),
            "finished": sum(reply.finished for reply in samples) / len(samples),
            "tokens": sum(reply.tokens for reply in samples) / len(samples),
        }
        shown = {
            "prompt": [[turn.role, turn.content] for turn in prompt.messages],
            "answers": [reply.text for reply in samples],
            "reference": prompt.reference,
        }
        yield Example(prompt.id, prompt_key(prompt.messages), values, shown=shown)
