"""How different the answers to one prompt are, by temperature and by what is asked.

Llama 2 (arXiv 2307.09288, §5.1 and figure 21) draws 25 answers to each of 10 creative and 10 factual prompts at many
temperatures: self-BLEU falls as the temperature rises, and after reinforcement learning much less so for factual
prompts, whose answers stay the same. Each kind of prompt is a group by temperature of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Literal

from alignment.artifacts import Artifact
from alignment.chat.types import Prompt, prompt_key
from alignment.errors import UserError
from alignment.evals.suites import repetition
from alignment.evals.suites.subject import Asked, Subject
from alignment.evals.suites.suite import Examined, Example, Measure, Suite
from alignment.sampling.decoding import Decoding, Reply
from alignment.settings import Settings as StrictSettings
from alignment.settings import identity, reference, text

MEASURES = (
    Measure("self_bleu", "lower", "of an answer with the others to its prompt as references; 1: all are the same"),
    Measure("distinct_1", "higher", "different words among all words of the answers to a prompt"),
    Measure("distinct_2", "higher", "different pairs of words among all of them"),
    Measure("distinct_3", "higher", "different triples of words among all of them"),
    Measure("different", "higher", "different answers to a prompt, by answers"),
    Measure("words", None, "words of an answer"),
    Measure("words_deviation", None, "standard deviation of that among the answers to a prompt"),
    Measure("tokens", None, "tokens of an answer"),
    Measure("finished", "higher", "share of the answers that ended of their own accord", most=1),
)


class Kind(StrictSettings):
    """Prompts of one kind, by their tags."""

    name: str = text("what they are called, such as creative", min_length=1)
    tags: list[str] = text("a prompt of this kind has one of these tags", min_length=1)
    count: int = identity("prompts at most, the first of the split", ge=1)


class Settings(Suite):
    """Prompts, and how answers to them are drawn."""

    prompts: str = reference("a dataset of tagged prompts", kinds=("dataset",))
    split: Literal["train", "valid", "test"] = identity("its split; no model may have seen its prompts")
    kinds: list[Kind] = identity("which prompts are compared; one belongs to the first kind that fits", min_length=1)
    samples: int = identity("answers to each prompt at each temperature", ge=2)
    temperatures: list[float] = identity("at which they are drawn", min_length=1)
    top_p: float = identity("the smallest set of tokens with this share of the probability", gt=0, le=1)
    max_new_tokens: int = identity("length of an answer at most", ge=1)
    seed: int = identity("of the draws", ge=0)

    def decoding(self, temperature: float) -> Decoding:
        """How answers are drawn at one of the temperatures. Raises :class:`UserError` for one that is out of bounds."""
        said = {"samples": self.samples, "temperature": temperature, "top_p": self.top_p}
        said |= {"max_new_tokens": self.max_new_tokens, "seed": self.seed}
        decoding: Decoding = Decoding.parse(said, "suite.temperatures")
        return decoding


def examine(settings: Settings, inputs: dict[str, Artifact], subject: Subject) -> Examined:
    """Draw answers at every temperature. Raises :class:`UserError` for kinds of which there is no prompt."""
    decodings = {f"{temperature:g}": settings.decoding(temperature) for temperature in settings.temperatures}
    chosen = of_kinds(subject.prompts(inputs["prompts"], settings.split, None), settings.kinds)
    asked = [Asked(prompt.id, prompt.messages) for _, prompt in chosen]
    drawn = {label: subject.replies(f"answers at {label}", asked, decoding) for label, decoding in decodings.items()}
    notes = {"prompts": {kind.name: sum(name == kind.name for name, _ in chosen) for kind in settings.kinds}}
    return Examined(MEASURES, _examples(chosen, drawn), notes)


def of_kinds(prompts: Sequence[Prompt], kinds: Sequence[Kind]) -> list[tuple[str, Prompt]]:
    """The first prompts of every kind, the kinds in turn. Raises :class:`UserError` for a kind that has none."""
    found: dict[str, list[Prompt]] = {kind.name: [] for kind in kinds}
    if len(found) < len(kinds):
        raise UserError("suite.kinds: two of them have the same name", remedy="Name each of them differently.")
    for prompt in prompts:
        kind = next((one for one in kinds if {*one.tags} & {*prompt.tags}), None)
        if kind is not None and len(found[kind.name]) < kind.count:
            found[kind.name].append(prompt)
    empty = next((kind for kind in kinds if not found[kind.name]), None)
    if empty is not None:
        tags = sorted({tag for prompt in prompts for tag in prompt.tags})
        raise UserError(
            f"suite.kinds: there is no prompt of the kind {empty.name!r}, with a tag among {', '.join(empty.tags)}",
            cause=f"The prompts have the tags {', '.join(tags[:20]) or '(none)'}.",
            remedy="Name tags that are there; a recipe maps them (`tags` in its `columns`).",
        )
    # In turn, so that every group is met early.
    rounds = zip_longest(*([(name, prompt) for prompt in some] for name, some in found.items()))
    return [one for some in rounds for one in some if one is not None]


def _examples(chosen: Sequence[tuple[str, Prompt]], drawn: dict[str, list[list[Reply]]]) -> Iterator[Example]:
    for place, (kind, prompt) in enumerate(chosen):
        for label, replies in drawn.items():
            groups = {"temperature": label, "kind": kind, f"{kind}_temperature": label}
            shown = {
                "prompt": [[turn.role, turn.content] for turn in prompt.messages],
                "answers": [reply.text for reply in replies[place]],
            }
            values = measured(replies[place])
            yield Example(f"{prompt.id}@{label}", prompt_key(prompt.messages), values, groups, shown)


def measured(replies: Sequence[Reply]) -> dict[str, float]:
    """The measures of the answers to one prompt at one temperature."""
    answers = [repetition.words(reply.text) for reply in replies]
    count = len(answers)
    mean = sum(map(len, answers)) / count
    found = {
        "self_bleu": repetition.self_bleu(answers),
        "different": len({reply.text for reply in replies}) / count,
        "words": mean,
        "words_deviation": math.sqrt(sum((len(tokens) - mean) ** 2 for tokens in answers) / (count - 1)),
        "tokens": sum(reply.tokens for reply in replies) / count,
        "finished": sum(reply.finished for reply in replies) / count,
    }
    by_order = {f"distinct_{n}": repetition.distinct(answers, n) for n in (1, 2, 3)}
    return found | {name: value for name, value in by_order.items() if value is not None}
