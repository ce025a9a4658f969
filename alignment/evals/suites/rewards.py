"""Answers under rewards: how helpfulness and safety are spread, by reward models, classifiers or the miniature's truth.

Llama 2 (arXiv 2307.09288, figure 11 and §4.2.3) shows how the whole distribution moves from one version to the next,
and that a mean hides the tail of unsafe answers: ``low`` counts it.

With ``prompting: raw`` prompts are beginnings of texts, which the model continues outside of any chat, and classifiers
read what has become of them: BOLD (Dhamala et al., arXiv 2101.11718; Llama 2, tables 46 to 50), ToxiGen (Hartvigsen et
al., arXiv 2203.09509; table 14). With ``auto`` models that know a chat are asked in it to complete them. ``by`` tells
the scores of groups of people apart, and how far the furthest of them are from each other (``gaps.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from alignment.artifacts import Artifact
from alignment.chat.types import Message, Messages, Prompt, prompt_key
from alignment.errors import UserError
from alignment.evals.suites import gaps
from alignment.evals.suites.subject import Asked, Continued, Subject
from alignment.evals.suites.suite import Better, Examined, Example, Measure, Suite
from alignment.sampling.decoding import Decoding, Reply
from alignment.scoring.opening import ClassifierReading
from alignment.settings import identity, later, reference

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
    prompting: Literal["raw", "auto"] | None = later(
        "raw: prompts are beginnings of texts, which the model continues, and classifiers read both as one text, or "
        "with classifier.text=answer the continuation alone; auto: in a chat where the model has a chat format, raw "
        "where not; null asks in a chat"
    )
    told: str | None = later("what stands before a prompt in a chat, such as `Complete the following: `; null: nothing")
    until: str | None = later("what ends a continuation, such as a newline, and is no part of it", min_length=1)
    by: list[str] | None = later(
        "what a prompt's tags tell, in their order, such as [domain,group]: scores are told by each, with the largest "
        "gap between two labels of the last; null tells the first tag, as skill",
        min_length=1,
        max_length=2,
    )
    least: int | None = later("groups of fewer prompts take no part in gaps; null: all do", ge=1)

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "suite") -> Settings:
        """Validate, the rules between keys included."""
        settings: Settings = super().parse(values, where)
        if settings.least is not None and settings.by is None:
            raise UserError(
                f"{where}.least={settings.least}: there are no groups between which gaps are taken",
                remedy=f"Name what the prompts' tags tell, {where}.by=[domain,group], or say {where}.least=null.",
            )
        return settings


def examine(settings: Settings, inputs: Mapping[str, Artifact], subject: Subject) -> Examined:
    """Draw answers and score them. Raises :class:`UserError` for a scorer that does not fit."""
    raw = settings.prompting == "raw" or (settings.prompting == "auto" and not subject.chats)
    if settings.prompting is not None:
        _need_classifiers(settings, inputs)
    if raw:
        subject.need_here()
    prompts = subject.prompts(inputs["prompts"], settings.split, settings.count)
    scorers = _scorers(settings, inputs, subject, prompts, raw=raw)
    if raw:
        replies = _continued(settings, prompts, subject)
    else:
        asked = [Asked(one.id, _asked(settings, one)) for one in prompts]
        replies = subject.replies("answers", asked, settings.decoding)
    measures = tuple(_measures(settings, scorers))
    examples = [*_examples(settings, prompts, replies, scorers, raw=raw)]
    if settings.by is None:
        return Examined(measures, examples)
    outer, inner = (None, *settings.by)[-2:]
    assert inner is not None
    apart, told = gaps.examples(examples, [*scorers], outer, inner, settings.least or 1)
    return Examined(measures, [*examples, *apart], {"gaps": told})


def _scorers(
    settings: Settings, inputs: Mapping[str, Artifact], subject: Subject, prompts: Sequence[Prompt], *, raw: bool
) -> dict[str, Scorer]:
    """By the names of their measures."""
    from alignment.data import store
    from alignment.evals.names import names_of
    from alignment.scoring.opening import open_scorer

    artifacts = _named(settings, inputs)
    world = store.world_of(inputs["prompts"].path)
    reading = settings.classifier
    # Where there is no chat, the answer is all that there is to read (_examples).
    text = "answer" if raw else reading.text
    return {
        name.replace(":", "_"): open_scorer(
            artifact, subject.engine, world, label=reading.label, text=text, prompts=prompts
        )
        for name, artifact in zip(names_of(artifacts), artifacts, strict=True)
    }


def _named(settings: Settings, inputs: Mapping[str, Artifact]) -> list[Artifact]:
    return [inputs[f"scorers.{place}"] for place in range(len(settings.scorers))]


def _need_classifiers(settings: Settings, inputs: Mapping[str, Artifact]) -> None:
    """Raise :class:`UserError` for what judges answers to questions, where texts are continued."""
    from alignment.gemma.heads import is_reward

    for one in _named(settings, inputs):
        if one.kind != "remote" and (one.kind != "foreign" or is_reward(one.path)):
            raise UserError(
                f"suite.scorers: {one.step or one.path} judges answers in a chat",
                cause=f"With suite.prompting={settings.prompting} texts are continued, and nobody asks anything.",
                remedy="Name a classifier of texts, dir:<folder>, hf:<name> or remote:<address>.",
            )


def _asked(settings: Settings, prompt: Prompt) -> Messages:
    """The turns of a prompt, in a chat."""
    if settings.told is None:
        return prompt.messages
    *before, last = prompt.messages
    return (*before, Message(last.role, settings.told + last.content))


def _continued(settings: Settings, prompts: Sequence[Prompt], subject: Subject) -> list[list[Reply]]:
    """How the model goes on from every prompt, which is one text; a blank that ends it belongs to the next word."""
    from alignment.chat.transcript import encoded
    from alignment.sampling.text_respondent import up_to

    long = next((one for one in prompts if len(one.messages) > 1), None)
    if long is not None:
        raise UserError(
            f"{long.id}: has {len(long.messages)} turns, and one text is continued", remedy="Say suite.prompting=null."
        )
    tokenizer = subject.policy.tokenizer
    given = [Continued(one.id, [tokenizer.bos_id, *encoded(_begun(one), tokenizer)]) for one in prompts]
    replies = subject.continuations("continuations", given, settings.decoding)
    if settings.until is None:
        return replies
    return [[up_to(settings.until, one, tokenizer) for one in some] for some in replies]


def _begun(prompt: Prompt) -> str:
    return prompt.messages[0].content.rstrip()


def _measures(settings: Settings, scorers: Mapping[str, Scorer]) -> Iterator[Measure]:
    """Of a reward more is better; of a classifier's label nobody knows where texts are continued."""
    higher: Better | None = "higher" if settings.prompting is None else None
    lower: Better | None = "lower" if settings.prompting is None else None
    for name, scorer in scorers.items():
        yield Measure(name, higher, "the score of an answer, as its scorer reports it")
        if settings.by is not None:
            yield gaps.measure(name, settings.by[-1])
        if scorer.absolute:
            yield Measure(
                f"{name}_low", lower, f"share of the answers whose probability is below {settings.low:g}", most=1
            )
    yield Measure("finished", higher, "share of the answers that ended of their own accord", most=1)
    yield Measure("tokens", None, "tokens of an answer")


def _examples(
    settings: Settings,
    prompts: Sequence[Prompt],
    replies: Sequence[Sequence[Reply]],
    scorers: Mapping[str, Scorer],
    *,
    raw: bool,
) -> Iterator[Example]:
    whole = raw and settings.classifier.text == "dialogue"
    flat = [
        (*prompt.messages, Message("assistant", _begun(prompt) * whole + reply.text))
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
                values[f"{name}_low"] = sum(one < settings.low for one in scores.probability[of]) / len(samples)
        groups = dict(zip(settings.by or ("skill",), prompt.tags, strict=False))
        shown = {
            "prompt": [[turn.role, turn.content] for turn in prompt.messages],
            "answers": [reply.text for reply in samples],
        }
        yield Example(prompt.id, prompt_key(prompt.messages), values, groups, shown)
