"""How prompts are put to models with a chat format, and to base models that have none; worked questions before them.

Base models are shown the turns as text. Questions that are answered already stand before what is asked (few-shot), as
turns of a chat or as text: six of them in Llama 2's TruthfulQA (arXiv 2307.09288, appendix A.4.8).
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Literal

from alignment.chat.transcript import Transcript
from alignment.chat.types import Message, Messages
from alignment.data import lists
from alignment.errors import UserError
from alignment.evals.suites.subject import Subject
from alignment.settings import Settings, identity, text

Prompting = Literal["chat", "raw", "few_shot", "auto"]
ABOUT = (
    "chat: in turns; raw: written out as text; few_shot: as text, behind the worked questions; auto: in a chat where "
    "the model has a chat format, as text where not; null: chat"
)
QUESTIONS = Transcript("Question:", "Answer:")
SPEAKERS = Transcript("User:", "Assistant:")
SHIPPED = "worked_questions.yaml"


class Worked(Settings):
    """Questions with answers that stand before what is asked, the same for all."""

    questions: str | None = text("a file of them; null for those that come with the program")
    shots: int = identity("how many of them are drawn", ge=1)
    seed: int = identity("of that draw", ge=0)


class Pair(Settings):
    """A question and its answer."""

    question: str = text("as somebody asks it", min_length=1)
    answer: str = text("as the model should answer", min_length=1)


class File(Settings):
    """What a file of worked questions holds."""

    questions: list[Pair] = identity("the questions with their answers", min_length=1)


def check(prompting: Prompting | None, worked: Worked | None, where: str) -> None:
    """Raise :class:`UserError` where worked questions are wanted and missing, or the other way round."""
    if (prompting == "few_shot") and worked is None:
        raise UserError(
            f"{where}.prompting=few_shot: there are no worked questions",
            remedy=f"Say {where}.worked={{questions: null, shots: 6, seed: 0}}, or {where}.prompting=raw.",
        )
    if prompting == "raw" and worked is not None:
        raise UserError(
            f"{where}.prompting=raw: asks without worked questions, and {where}.worked names some",
            remedy=f"Say {where}.prompting=few_shot, or {where}.worked=null.",
        )


def sources(worked: Worked | None) -> list[Path]:
    """The file of worked questions. Raises :class:`UserError` where it is not there."""
    return [] if worked is None else [lists.locate(worked.questions, SHIPPED, "suite.worked.questions")]


def before(worked: Worked | None) -> Messages:
    """The turns that stand before what is asked. Raises :class:`UserError` for a file with too few questions."""
    if worked is None:
        return ()
    (path,) = sources(worked)
    pairs = File.parse(lists.read(path, f"Begin with a copy of {lists.FOLDER / SHIPPED}."), str(path)).questions
    if len(pairs) < worked.shots:
        raise UserError(
            f"suite.worked.shots={worked.shots}: {path} has {len(pairs)} questions", remedy="Say fewer, or add some."
        )
    drawn = random.Random(f"worked:{worked.seed}").sample(pairs, worked.shots)
    return tuple(turn for one in drawn for turn in (Message("user", one.question), Message("assistant", one.answer)))


def asked(subject: Subject, prompting: Prompting | None, transcript: Transcript) -> Subject:
    """The model as it is to be asked. Raises :class:`UserError` for one that cannot be asked so."""
    if prompting in (None, "chat"):
        subject.need_chat("say suite.prompting=auto")
        return subject
    if prompting == "auto" and subject.chats:
        return subject
    return subject.in_text(transcript)
