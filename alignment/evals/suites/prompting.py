"""How a multiple-choice question is put to a model: labels, separators, instruction, worked questions, chat or not.

The same question in other words finds other answers: Gemma 2's report gives the standard deviation of MMLU over
formats, up to 7 points. A :class:`Form` is one of them. Text is encoded apart from what follows it, as in a chat
(``chat/render.py``), so that what is asked is a prefix of every row in which it is answered.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from string import ascii_uppercase
from typing import Any, Literal

from pydantic import model_validator

from alignment.chat.render import prompt_ids
from alignment.chat.tokenizers import Tokenizer
from alignment.chat.transcript import encoded
from alignment.chat.types import Message, Messages, Prompt, prompt_key
from alignment.errors import UserError
from alignment.settings import Settings, identity

Prompting = Literal["chat", "raw", "few_shot"]


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, what there is to choose from, and which of it is right (``data/formats/multiple_choice.py``)."""

    id: str
    unit: str
    text: str
    options: tuple[str, ...]
    right: tuple[int, ...]
    tags: tuple[str, ...]
    marks: dict[str, int]

    @classmethod
    def of(cls, prompt: Prompt) -> Question:
        """The question of a prompt. Raises :class:`UserError` for one whose reference is no multiple choice."""
        told = told_of(prompt, "question", "options", "right")
        marks = {name: place for name, place in told.items() if name not in ("question", "options", "right")}
        right = tuple(told["right"])
        if not right:
            raise UserError(
                f"{prompt.id}: nobody says which choice is right", remedy="Map the column `answer` in the recipe."
            )
        unit = prompt_key(prompt.messages)
        return cls(prompt.id, unit, told["question"], tuple(told["options"]), right, prompt.tags, marks)


def told_of(
    prompt: Prompt,
    *keys: str,
    remedy: str = "The suite wants a dataset whose recipe has one of the formats multiple_choice, bbq, wino_bias or "
    "sentence_pair.",
) -> dict[str, Any]:
    """The JSON of a prompt's reference. Raises :class:`UserError` where it is not there, or has not these keys."""
    try:
        told = json.loads(prompt.reference or "")
        if not isinstance(told, dict) or not set(keys) <= told.keys():
            raise ValueError(f"it has not {', '.join(keys)}")
    except ValueError as error:
        raise UserError(
            f"{prompt.id}: its reference cannot be read",
            cause=f"{error}",
            remedy=remedy,
        ) from None
    return told


class Form(Settings):
    """One way of asking and of reading the answer."""

    labels: Literal["letters", "numbers", "none"] = identity(
        "what choices are called: A, B, …; 1, 2, …; none: they are not listed, and their text is the answer"
    )
    separator: str = identity("what stands between a label and its choice, as in `) `; unused without labels")
    instruction: bool = identity("whether the instruction comes first")
    shots: bool = identity("whether worked questions come first")
    scoring: Literal["label", "text", "text_per_token", "text_per_byte", "generate"] = identity(
        "what decides: the likelihood of the label, or of the choice's text, as it is or per token or byte; "
        "generate reads an answer that is drawn"
    )

    @model_validator(mode="after")
    def _has_labels(self) -> Form:
        if self.labels == "none" and self.scoring == "label":
            raise ValueError("without labels there is no label to score; say scoring=text")
        return self

    @property
    def name(self) -> str:
        """In short: ``A) label``, ``1. text_per_byte, instruction, shots``."""
        first = {"letters": "A", "numbers": "1", "none": ""}[self.labels]
        sign = first + self.separator.rstrip(" ").replace("\n", "↵") if first else "text alone"
        beside = [name for name in ("instruction", "shots") if getattr(self, name)]
        return ", ".join([f"{sign} {self.scoring}", *beside])

    def label(self, place: int) -> str:
        """What the choice at a place is called."""
        return ascii_uppercase[place] if self.labels == "letters" else str(place + 1)

    def answer(self, question: Question, place: int) -> str:
        """What is said where the choice at a place is taken."""
        labelled = self.scoring == "label" or (self.scoring == "generate" and self.labels != "none")
        return self.label(place) if labelled else question.options[place]

    def asked(self, question: Question) -> str:
        """The question with what there is to choose from."""
        if self.labels == "none":
            return question.text
        listed = [f"{self.label(place)}{self.separator}{text}" for place, text in enumerate(question.options)]
        return "\n".join([question.text, *listed])


class Wording(Settings):
    """The words around a question."""

    instruction: str = identity("said first, in the formats that have an instruction")
    question: str = identity("outside of a chat, before the question, such as `Question: `; may be empty")
    answer: str = identity("outside of a chat, on a line of its own before the answer; empty: the answer goes on")


@dataclass(frozen=True)
class Asking:
    """Questions in every form, as this model is to be asked. ``worked`` are those that may come first, by subject."""

    prompting: Prompting
    wording: Wording
    shots: int
    seed: int
    worked: Sequence[Question]

    def turns(self, form: Form, question: Question) -> Messages:
        """As a chat: worked questions are turns before it."""
        said: list[Message] = []
        for one in self.before(form, question):
            said += [Message("user", form.asked(one)), Message("assistant", form.answer(one, one.right[0]))]
        said.append(Message("user", form.asked(question)))
        if form.instruction:
            said[0] = Message("user", f"{self.wording.instruction}\n\n{said[0].content}")
        return tuple(said)

    def text(self, form: Form, question: Question) -> str:
        """As text: worked questions stand above it, a blank line between."""
        parts = [self.wording.instruction] if form.instruction else []
        parts += [f"{self._open(form, one)} {form.answer(one, one.right[0])}" for one in self.before(form, question)]
        return "\n\n".join([*parts, self._open(form, question)])

    def ids(self, form: Form, question: Question, tokenizer: Tokenizer) -> list[int]:
        """What is asked, up to where the answer begins."""
        if self.prompting == "chat":
            return prompt_ids(self.turns(form, question), tokenizer)
        return [tokenizer.bos_id, *encoded(self.text(form, question), tokenizer)]

    def answers(self, form: Form, question: Question, tokenizer: Tokenizer) -> list[list[int]]:
        """Every choice as the model would say it; what closes a turn is no part of it."""
        space = "" if self.prompting == "chat" else " "
        return [encoded(space + form.answer(question, place), tokenizer) for place in range(len(question.options))]

    def before(self, form: Form, question: Question) -> list[Question]:
        """The worked questions of its subject (its first tag), or of all where that has too few. Never itself.

        Raises :class:`UserError` where there are too few of all.
        """
        if not (form.shots or self.prompting == "few_shot") or not self.shots:
            return []
        for subject in (question.tags[:1], None):
            if subject not in self._drawn:
                self._drawn[subject] = self._draw(subject)
            found = [one for one in self._drawn[subject] if one.unit != question.unit][: self.shots]
            if len(found) == self.shots:
                return found
        raise UserError(
            f"suite.shots={self.shots}: there are {len(self.worked)} worked questions, and none is shown to itself",
            cause="They are those of the split train of suite.worked, or of suite.questions where that is null.",
            remedy="Say fewer shots, or name a dataset with more in its split train.",
        )

    @cached_property
    def _drawn(self) -> dict[tuple[str, ...] | None, list[Question]]:
        return {}

    def _draw(self, subject: tuple[str, ...] | None) -> list[Question]:
        """Of a subject, or of all for None: one more than are shown where there are so many."""
        pool = [one for one in self.worked if subject is None or one.tags[:1] == subject]
        name = "" if subject is None else "".join(subject)
        return random.Random(f"shots:{self.seed}:{name}").sample(pool, min(len(pool), self.shots + 1))

    def _open(self, form: Form, question: Question) -> str:
        asked = f"{self.wording.question}{form.asked(question)}"
        return f"{asked}\n{self.wording.answer}" if self.wording.answer else asked


def read_answer(said: str, form: Form, question: Question) -> int | None:
    """The choice that an answer takes; None for one that is no choice and nothing else.

    A label, alone or in brackets, with or without its choice behind it; or the text of a choice. Case and the dot that
    ends it do not matter.
    """
    plain = _plain(said)
    # A label first: the text of one choice may be another's label.
    for place, option in enumerate(question.options if form.labels != "none" else ()):
        label = form.label(place)
        if plain in {_plain(one) for one in (label, f"({label})", f"{label})", f"{label}{form.separator}{option}")}:
            return place
    return next((place for place, option in enumerate(question.options) if plain == _plain(option)), None)


def _plain(text: str) -> str:
    return " ".join(text.split()).removesuffix(".").casefold()
