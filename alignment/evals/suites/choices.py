"""Multiple-choice questions, each in several formats: accuracy by likelihood, its mean and spread over the formats.

An example is a question in a format; the question is what the bootstrap resamples. ``spread`` is the standard
deviation of the accuracy over the formats. As ``σ = Σ_f w_f·m_f`` with ``w_f = (m_f − m̄)/(F·σ)``, it is a mean over
questions of ``Σ_f w_f·correct_f``: an example of its own for every question, from which it gets its interval (of first
order, as the delta method has it). ``probability`` is TruthfulQA's MC2 where choices are scored by their text (Lin et
al., arXiv 2109.07958): the share that the right ones have in the probability of all.

Axes: Q questions, F formats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import field_validator, model_validator

from alignment.artifacts import Artifact
from alignment.data import lists
from alignment.errors import UserError, nearest
from alignment.evals.suites.prompting import Asking, Form, Prompting, Question, Wording, read_answer
from alignment.evals.suites.subject import Asked, Continued, Subject
from alignment.evals.suites.suite import Examined, Example, Measure, Suite
from alignment.sampling.decoding import Decoding
from alignment.settings import Settings as StrictSettings
from alignment.settings import identity, reference

SPREAD = Measure("spread", "lower", "standard deviation of the accuracy over the formats")


class Gap(StrictSettings):
    """Two labels of a group whose accuracies are set against each other."""

    group: str = identity("one of suite.groups")
    first: str = identity("whose accuracy counts")
    second: str = identity("whose accuracy is taken off")


class Settings(Suite):
    """Questions, and how they are put."""

    questions: str = reference("a dataset of prompts with choices", kinds=("dataset",))
    split: Literal["train", "valid", "test"] = identity("its split; no model may have seen its questions")
    count: int | None = identity("questions at most, the first of the split; null takes all", ge=1)
    prompting: Prompting = identity(
        "chat: as turns; raw: as text, with worked questions in the formats that say so; few_shot: as text, in all"
    )
    shots: int = identity("worked questions, in the formats that have them", ge=0)
    worked: str | None = reference(
        "a dataset whose split train has the worked questions; null: that of the questions", kinds=("dataset",)
    )
    seed: int = identity("of the choice of worked questions", ge=0)
    formats: list[Form] = identity("ways of asking: letters, texts, twelve, or a list of your own", min_length=1)
    wording: Wording = identity("the words around a question")
    groups: list[str] = identity("what the tags of a question tell, in their order, to be told apart; [] for nothing")
    gap: Gap | None = identity("two groups whose accuracies are set against each other; null for none")
    decoding: Decoding | None = identity("how answers are drawn in formats that generate; null where none does")

    @field_validator("formats", mode="before")
    @classmethod
    def _named(cls, said: Any) -> Any:
        return formats_of(said) if isinstance(said, str) else said

    @model_validator(mode="after")
    def _fits(self) -> Settings:
        names = [form.name for form in self.formats]
        if len(set(names)) < len(names):
            raise ValueError(f"two formats are the same: {next(one for one in names if names.count(one) > 1)}")
        if any(form.scoring == "generate" for form in self.formats) and self.decoding is None:
            raise ValueError("a format generates, and suite.decoding does not say how")
        if self.decoding is not None and self.decoding.samples != 1:
            raise ValueError(f"decoding.samples={self.decoding.samples}: one answer is drawn to a question")
        if self.prompting == "few_shot" and not self.shots:
            raise ValueError("few_shot wants shots above 0")
        if self.gap is not None and self.gap.group not in self.groups:
            raise ValueError(f"gap.group={self.gap.group} is none of groups={self.groups}")
        return self


def formats_of(name: str) -> list[Any]:
    """A set of formats that comes with the program (lists/choice_formats.yaml). Raises ``ValueError`` for none."""
    sets = lists.read(lists.FOLDER / "choice_formats.yaml")
    if name not in sets:
        raise ValueError(f"there is no set of formats {name!r}. {nearest(name, list(sets))}")
    found: list[Any] = sets[name]
    return found


class Answered(NamedTuple):
    """What the model took. ``chosen`` is None for an answer that is no choice; ``share`` only of probabilities."""

    question: Question
    form: Form
    chosen: int | None
    share: float | None
    shown: Mapping[str, Any]

    @property
    def correct(self) -> bool:
        """Whether it is right."""
        return self.chosen in self.question.right


def examine(settings: Settings, inputs: Mapping[str, Artifact], subject: Subject) -> Examined:
    """Ask every question in every format."""
    answered = ask(settings, inputs, subject)
    examples = [_example(settings, one) for one in answered]
    notes: dict[str, Any] = {"formats": accuracies(answered)}
    if len(settings.formats) > 1:
        examples += spread(answered)
        found = list(notes["formats"].values())
        notes |= {"mean": float(np.mean(found)), "standard_deviation": float(np.std(found))}
    if settings.gap is not None:
        examples += _gap(settings, answered, settings.gap)
    return Examined(tuple(_measures(settings)), examples, notes)


def ask(settings: Settings, inputs: Mapping[str, Artifact], subject: Subject) -> list[Answered]:
    """All answers, question by question. Raises :class:`UserError` for a model that cannot be asked like this."""
    questions = [Question.of(one) for one in subject.prompts(inputs["questions"], settings.split, settings.count)]
    if settings.prompting == "chat":
        subject.need_chat("ask in text (suite.prompting=raw, or few_shot)")
    asking = Asking(settings.prompting, settings.wording, settings.shots, settings.seed, _worked(settings, inputs))
    found: dict[tuple[int, int], Answered] = {}
    places = [
        (at, number)
        for at in range(len(questions))
        for number, form in enumerate(settings.formats)
        if form.scoring != "generate"
    ]
    if places:
        found |= _by_likelihood(settings, questions, asking, subject, places)
    for number, form in enumerate(settings.formats):
        if form.scoring == "generate":
            drawn = _by_answer(settings, questions, asking, subject, form, f"answers-{number}")
            found |= {(at, number): one for at, one in enumerate(drawn)}
    return [found[key] for key in sorted(found)]


def accuracies(answered: Sequence[Answered]) -> dict[str, float]:
    """By format."""
    right: dict[str, list[bool]] = {}
    for one in answered:
        right.setdefault(one.form.name, []).append(one.correct)
    return {name: float(np.mean(values)) for name, values in right.items()}


def _worked(settings: Settings, inputs: Mapping[str, Artifact]) -> list[Question]:
    from alignment.chat.types import Prompt
    from alignment.data import store

    if not settings.shots or not (settings.prompting == "few_shot" or any(form.shots for form in settings.formats)):
        return []
    dataset = inputs.get("worked", inputs["questions"]).need("dataset")
    rows = list(store.stream(dataset.path, "train")) if store.card(dataset.path)["rows"].get("train") else []
    return [Question.of(row) for row in rows if isinstance(row, Prompt)]


def _by_likelihood(
    settings: Settings,
    questions: Sequence[Question],
    asking: Asking,
    subject: Subject,
    places: Sequence[tuple[int, int]],
) -> dict[tuple[int, int], Answered]:
    def read(some: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        tokenizer, rows, ends = subject.policy.tokenizer, [], [0]
        for at, number in some:
            question, form = questions[at], settings.formats[number]
            asked = asking.ids(form, question, tokenizer)
            for said in asking.answers(form, question, tokenizer):
                rows.append(([*asked, *said], [False] * len(asked) + [True] * len(said)))
            ends.append(len(rows))
        found = subject.read(rows, [questions[at].id for at, number in some for _ in questions[at].options])
        return [
            {"nll": [one.nll for one in found[begin:end]], "tokens": [one.tokens for one in found[begin:end]]}
            for begin, end in pairwise(ends)
        ]

    rows = subject.in_parts("choices", places, read)
    return {
        (at, number): _taken(questions[at], settings.formats[number], row["nll"], row["tokens"])
        for (at, number), row in zip(places, rows, strict=True)
    }


def _taken(question: Question, form: Form, nll: Sequence[float], tokens: Sequence[int]) -> Answered:
    """The likeliest choice, the first of several alike; by the form's own measure of likely."""
    below: Sequence[float] = {
        "text_per_token": tokens,
        "text_per_byte": [len(option.encode()) for option in question.options],
    }.get(form.scoring, [1] * len(nll))
    scores = [-one / over for one, over in zip(nll, below, strict=True)]
    chosen = max(range(len(scores)), key=lambda place: scores[place])
    share = None
    if form.scoring in ("label", "text"):
        most = max(scores)
        weights = [math.exp(one - most) for one in scores]
        share = sum(weights[place] for place in question.right) / sum(weights)
    return Answered(question, form, chosen, share, {"scores": [round(one, 4) for one in scores]})


def _by_answer(
    settings: Settings, questions: Sequence[Question], asking: Asking, subject: Subject, form: Form, title: str
) -> Iterator[Answered]:
    assert settings.decoding is not None, "settings that generate say how"
    if settings.prompting == "chat":
        asked = [Asked(one.id, asking.turns(form, one)) for one in questions]
        drawn = subject.replies(title, asked, settings.decoding)
    else:
        tokenizer = subject.policy.tokenizer
        given = [Continued(one.id, asking.ids(form, one, tokenizer)) for one in questions]
        drawn = subject.continuations(title, given, settings.decoding)
    for question, replies in zip(questions, drawn, strict=True):
        # Outside of a chat nothing ends an answer but the end of its line.
        said = replies[0].text if settings.prompting == "chat" else replies[0].text.strip().split("\n")[0]
        yield Answered(question, form, read_answer(said, form, question), None, {"answer": said})


# ── what it comes to ─────────────────────────────────────────────────────────────────────────────


def _measures(settings: Settings) -> Iterator[Measure]:
    yield Measure("correct", "higher", "share of the questions answered rightly; the mean over formats", most=1)
    if len(settings.formats) > 1:
        yield SPREAD
    if any(form.scoring in ("label", "text") for form in settings.formats):
        yield Measure(
            "probability", "higher", "share that the right choices have in the probability of all (MC2)", most=1
        )
    if any(form.scoring == "generate" for form in settings.formats):
        yield Measure("invalid", "lower", "share of the drawn answers that are no choice; they count as wrong", most=1)
    if settings.gap is not None:
        one = settings.gap
        yield Measure("gap", None, f"accuracy where {one.group} is {one.first}, less that where it is {one.second}")
    yield Measure("chance", None, "share of the questions that guessing answers rightly")


def _example(settings: Settings, one: Answered) -> Example:
    values = {"correct": float(one.correct), "chance": len(one.question.right) / len(one.question.options)}
    if one.share is not None:
        values["probability"] = one.share
    if one.form.scoring == "generate":
        values["invalid"] = float(one.chosen is None)
    return Example(f"{one.question.id}|{one.form.name}", one.question.unit, values, grouped(settings, one), show(one))


def grouped(settings: Settings, one: Answered) -> dict[str, str]:
    """By format where there are several, and by what the tags tell."""
    told = dict(zip(settings.groups, one.question.tags, strict=False))
    return told | ({"format": one.form.name} if len(settings.formats) > 1 else {})


def show(one: Answered) -> dict[str, Any]:
    """What a person wants to see."""
    asked = {"question": one.question.text, "options": one.question.options, "right": one.question.right}
    return {**asked, "chosen": one.chosen, **one.shown}


def spread(answered: Sequence[Answered]) -> Iterator[Example]:
    """What every question adds to the standard deviation of the accuracy over the formats."""
    of, mean = by_question(answered), accuracies(answered)
    deviation = float(np.std(list(mean.values())))
    middle = float(np.mean(list(mean.values())))
    for name, some in of.items():
        value = 0.0
        if deviation:
            value = sum(one.correct * (mean[one.form.name] - middle) for one in some) / (len(mean) * deviation)
        yield Example(f"{name}|spread", some[0].question.unit, {"spread": value})


def _gap(settings: Settings, answered: Sequence[Answered], gap: Gap) -> Iterator[Example]:
    """``Σ ±correct·N/N_label / N``, the difference of the two accuracies, a question at a time."""
    label = {one.question.id: grouped(settings, one).get(gap.group, "") for one in answered}
    count = {name: sum(one == name for one in label.values()) for name in (gap.first, gap.second)}
    for name, found in count.items():
        if not found:
            raise UserError(
                f"suite.gap: no question has the {gap.group} {name}",
                remedy=f"There is {', '.join(sorted({one for one in label.values() if one}))}.",
            )
    both = sum(count.values())
    for name, some in by_question(answered).items():
        side = label[name]
        if side in count:
            right = sum(one.correct for one in some) / len(some)
            value = (right if side == gap.first else -right) * both / count[side]
            yield Example(f"{name}|gap", some[0].question.unit, {"gap": value})


def by_question(answered: Sequence[Answered]) -> dict[str, list[Answered]]:
    """The answers in every format, by the question's id."""
    found: dict[str, list[Answered]] = {}
    for one in answered:
        found.setdefault(one.question.id, []).append(one)
    return found
