"""Answers under rewards: how helpfulness and safety are spread, by reward models, classifiers or the miniature's truth.

Llama 2 (arXiv 2307.09288, figure 11 and §4.2.3) shows how the whole distribution moves from one version to the next,
and that a mean hides the tail of unsafe answers: ``low`` counts it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from alignment.artifacts import Artifact
from alignment.chat.types import Message, Prompt, prompt_key
from alignment.evals.suites.subject import Asked, Subject
from alignment.evals.suites.suite import Examined, Example, Measure, Suite
from alignment.sampling.decoding import Decoding, Reply
from alignment.scoring.opening import ClassifierReading
from alignment.settings import identity, reference

if TYPE_CHECKING:
    from alignment.scoring.scorer import Scorer


class Settings(Suite):
    """Prompts, and who scores the answers."""

    prompts: str = reference("a dataset of prompts", kinds=("dataset",))
    split: Literal["valid", "test"] = identity("its split; no model may have seen its prompts")
    count: int | None = identity("prompts at most, the first of the split; null takes all", ge=1)
    decoding: Decoding = identity("how answers are drawn; of several samples the mean counts")
    scorers: list[str] = reference("who scores: reward models, classifiers, gold:safety …", min_length=1)
    classifier: ClassifierReading = identity("how classifiers among them are read")
    low: float = identity("below this probability a score counts as low", ge=0, le=1)


def examine(settings: Settings, inputs: Mapping[str, Artifact], subject: Subject) -> Examined:
    """Draw answers and score them. Raises :class:`UserError` for a scorer that does not fit."""
    from alignment.data import store
    from alignment.evals.names import names_of
    from alignment.scoring.opening import open_scorer

    prompts = subject.prompts(inputs["prompts"], settings.split, settings.count)
    artifacts = [inputs[f"scorers.{place}"] for place in range(len(settings.scorers))]
    world = store.world_of(inputs["prompts"].path)
    reading = settings.classifier
    scorers = {
        name.replace(":", "_"): open_scorer(
            artifact, subject.engine, world, label=reading.label, text=reading.text, prompts=prompts
        )
        for name, artifact in zip(names_of(artifacts), artifacts, strict=True)
    }
    replies = subject.replies("answers", [Asked(one.id, one.messages) for one in prompts], settings.decoding)
    return Examined(tuple(_measures(scorers, settings.low)), _examples(prompts, replies, scorers, settings.low))


def _measures(scorers: Mapping[str, Scorer], low: float) -> Iterator[Measure]:
    for name, scorer in scorers.items():
        yield Measure(name, "higher", "the score of an answer, as its scorer reports it")
        if scorer.absolute:
            yield Measure(f"{name}_low", "lower", f"share of the answers whose probability is below {low:g}")
    yield Measure("finished", "higher", "share of the answers that ended of their own accord")
    yield Measure("tokens", None, "tokens of an answer")


def _examples(
    prompts: Sequence[Prompt], replies: Sequence[Sequence[Reply]], scorers: Mapping[str, Scorer], low: float
) -> Iterator[Example]:
    flat = [
        (*prompt.messages, Message("assistant", reply.text))
        for prompt, samples in zip(prompts, replies, strict=True)
        for reply in samples
    ]
    scored = {name: scorer.score(flat) for name, scorer in scorers.items()}
    begin = 0
    for prompt, samples in zip(prompts, replies, strict=True):
        of = slice(begin, begin + len(samples))
        begin += len(samples)
        values = {
            "finished": sum(reply.finished for reply in samples) / len(samples),
            "tokens": sum(reply.tokens for reply in samples) / len(samples),
        }
        for name, scores in scored.items():
            values[name] = sum(scores.reported[of]) / len(samples)
            if scorers[name].absolute:
                values[f"{name}_low"] = sum(one < low for one in scores.probability[of]) / len(samples)
        groups = {"skill": prompt.tags[0]} if prompt.tags else {}
        shown = {
            "prompt": [[turn.role, turn.content] for turn in prompt.messages],
            "answers": [reply.text for reply in samples],
        }
        yield Example(prompt.id, prompt_key(prompt.messages), values, groups, shown)
