"""Hallucination: facts that are told rightly, hedging where nothing can be known and where it can, and given texts.

The Gemma 2 report (arXiv 2408.00118, §4) adds "subsets of data that encourage better in-context attribution, hedging,
and refusals to minimize hallucinations"; this is what they are to improve. What is read of an answer, and by what, is
in ``knowing.py``. A right answer with a hedge is right; one that is neither right nor hedged counts as invented,
vague ones too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from alignment.artifacts import Artifact
from alignment.chat.types import Prompt, prompt_key
from alignment.errors import UserError
from alignment.evals.suites.subject import Asked, Subject
from alignment.evals.suites.suite import Examined, Example, Measure, Suite
from alignment.sampling.decoding import Decoding, Reply
from alignment.sampling.taught import guided
from alignment.settings import identity, reference, text

if TYPE_CHECKING:
    from alignment.evals.suites.knowing import Question

MEASURES = (
    Measure("correct", "higher", "share of the answers to answerable questions that are right", most=1),
    Measure("hedged", "higher", "share of the answers to unanswerable questions that own up to not knowing", most=1),
    Measure(
        "over_hedged",
        "lower",
        "share of the answers to answerable questions that own up to not knowing instead",
        most=1,
    ),
    Measure(
        "attributed", "higher", "where a text is given: share that says what it says, or that it is silent", most=1
    ),
    Measure("invented", "lower", "share of the answers that are neither right nor own up to not knowing", most=1),
    Measure("finished", "higher", "share of the answers that ended of their own accord", most=1),
    Measure("tokens", None, "tokens of an answer"),
)


class Settings(Suite):
    """Questions whose answers are known, or known not to exist."""

    prompts: str = reference("prompts with accepted answers as references, or the miniature's", kinds=("dataset",))
    split: Literal["train", "valid", "test"] = identity("its split; no model may have seen its prompts")
    count: int | None = identity("prompts at most, the first of the split; null takes all", ge=1)
    with_text: bool | None = identity("whether prompts bring the text to answer from; null: the miniature knows")
    told: str | None = text("what stands before every question; null for nothing")
    match: Literal["exact", "contains"] | None = identity(
        "whether an answer has to be an accepted one or to hold it, as whole words; null: the miniature knows"
    )
    hedges: str | None = text("null for the shipped phrases, a file of your own, or miniature: the world's truth")
    decoding: Decoding = identity("how answers are drawn; of several samples the mean counts")


def sources(settings: Settings) -> list[Path]:
    """The file that holds the phrases."""
    from alignment.evals.suites import knowing

    path = knowing.path_of(settings.hedges)
    return [] if path is None else [path]


def examine(settings: Settings, inputs: Mapping[str, Artifact], subject: Subject) -> Examined:
    """Draw answers and read them. Raises :class:`UserError` for references that cannot be read."""
    _check(settings)
    prompts = subject.prompts(inputs["prompts"], settings.split, settings.count)
    asked = _questions(settings, inputs["prompts"], prompts)
    told = settings.told
    turns = [one.messages if told is None else guided(one.messages, told) for one, _ in asked]
    wanted = [Asked(one.id, each) for (one, _), each in zip(asked, turns, strict=True)]
    replies = subject.replies("answers", wanted, settings.decoding)
    return Examined(MEASURES, _examples(asked, replies), {"questions": len(asked)})


def _check(settings: Settings) -> None:
    """Refuse settings that would be accepted and not used, and those that are missing."""
    from alignment.evals.suites import knowing

    own = settings.hedges == knowing.MINIATURE
    for key in ("with_text", "match"):
        if (getattr(settings, key) is None) != own:
            value = getattr(settings, key)
            raise UserError(
                f"suite.{key}={'null' if value is None else value}: does not go with suite.hedges={settings.hedges}",
                cause="The miniature's truth decides for itself (null); for references it has to be said.",
                remedy=f"Say suite.{key}=null." if own else f"Say suite.{key}, or suite.hedges=miniature.",
            )


def _questions(settings: Settings, dataset: Artifact, prompts: Sequence[Prompt]) -> list[tuple[Prompt, Question]]:
    """The prompts that are asked, with what is known of them."""
    from alignment.data import store
    from alignment.evals.suites import knowing

    path = knowing.path_of(settings.hedges)
    if path is not None:
        phrases = knowing.phrases_of(path)
        match, with_text = settings.match, settings.with_text
        assert match is not None
        assert with_text is not None
        return [(one, knowing.of_reference(one, match, phrases, with_text=with_text)) for one in prompts]
    world = store.world_of(dataset.path)
    if world is None:
        raise UserError(
            f"suite.hedges=miniature: {dataset.step or dataset.path} is not of the miniature",
            remedy="Say suite.hedges=null, with suite.match and suite.with_text.",
        )
    found = [(one, question) for one in prompts if (question := knowing.of_world(world, one)) is not None]
    if not found:
        raise UserError(
            f"{dataset.step or dataset.path}: none of its {len(prompts):,} prompts asks about people",
            remedy="Take more prompts (suite.count), or a mixture with fact, unanswerable and context.",
        )
    return found


def _examples(asked: Sequence[tuple[Prompt, Question]], replies: Sequence[Sequence[Reply]]) -> Iterator[Example]:
    for (prompt, question), samples in zip(asked, replies, strict=True):
        read = [question.read(reply.text) for reply in samples]
        share = 1 / len(samples)
        values = {
            "invented": share * sum(not one.right and not one.hedges for one in read),
            "finished": share * sum(reply.finished for reply in samples),
            "tokens": share * sum(reply.tokens for reply in samples),
        }
        hedged = share * sum(one.hedges for one in read)
        if question.answerable:
            values |= {"correct": share * sum(one.right for one in read), "over_hedged": hedged}
        else:
            values["hedged"] = hedged
        if question.with_text:
            values["attributed"] = share * sum(one.follows for one in read)
        shown = {
            "prompt": [[turn.role, turn.content] for turn in prompt.messages],
            "answers": [reply.text for reply in samples],
            "reference": prompt.reference,
        }
        yield Example(prompt.id, prompt_key(prompt.messages), values, {"question": question.label}, shown)
