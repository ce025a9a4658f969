"""Ghost Attention: an instruction that is given once and obeyed to the end of a dialogue (Llama 2, §3.3).

1. An instruction is drawn for a dialogue: hobbies, languages, public figures, free text, combined at random.
2. :func:`everywhere` puts it before *every* user message, and answers are drawn with that.
3. The training row (:func:`training_row`) has it before the *first* user message only, and carries loss on the last
   answer alone: the answers before it may not obey, and are not to be learned.

Which answers are drawn anew decides what is learned. Where all are, those before the last mostly obey, and to go on
like them is enough: a model that has seen nothing else does not come back once an answer of its own has failed to obey.
Where only the last is, none before it obeys, and the instruction alone tells what is wanted (docs/experiments.md).

Half of the time the row says the instruction in its short form ("Always act as Napoleon from now." → "Figure:
Napoleon."). As in the paper this is a matter of the training row; answers are drawn with the full wording, which
says best what is wanted. All parts of an instruction are shortened, or none.

The instruction stands first and the message after one space. A system message stays where it is, without the
instruction: Gemma's format makes it the head of the first user turn, so that the model reads system message, blank
line, instruction, message.
"""

from __future__ import annotations

import math
import random
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from alignment.chat.types import OPENING, Conversation, Message, Messages, row_key
from alignment.data import lists
from alignment.errors import UserError
from alignment.settings import Settings, text

SHIPPED = "instructions.yaml"
MINIATURE = "miniature"
FREE = "free"
TAG = "ghost"

End = Literal["last", "random"]
Answers = Literal["last", "all", "mixed"]


@dataclass(frozen=True, slots=True)
class Instruction:
    """One part of what a dialogue is told: ``Instruction("figure", "Napoleon", "Act as Napoleon.", "Figure: …")``."""

    kind: str
    value: str
    full: str
    short: str


@dataclass(frozen=True, slots=True)
class Source:
    """Where instructions come from.

    ``obeys(instruction, answer)`` is the program that checks an answer, or None where none can; ``instructs(text)``
    says whether a message holds an instruction of this source already.
    """

    draw: Callable[[random.Random], tuple[Instruction, ...]]
    obeys: Callable[[Instruction, str], bool] | None = None
    instructs: Callable[[str], bool] = lambda text: False


@dataclass(frozen=True, slots=True)
class Assignment:
    """A dialogue (as far as it is used) with the instruction that was drawn for it.

    ``every``: all of its answers are drawn anew, and not the last alone.
    """

    dialogue: Conversation
    instructions: tuple[Instruction, ...]
    shortened: bool
    every: bool = False

    @property
    def turns(self) -> int:
        """User messages of the dialogue. The last of them is answered anew, and its answer trained."""
        return user_turns(self.dialogue.messages)

    @property
    def full(self) -> str:
        """What answers are drawn with."""
        return " ".join(part.full for part in self.instructions)

    @property
    def given(self) -> str:
        """What the training row says."""
        return " ".join(part.short for part in self.instructions) if self.shortened else self.full

    def prompt(self, turn: int, drawn: Mapping[int, str]) -> Messages:
        """What the answer of a turn (from 1) is drawn from, ``drawn`` being the answers drawn for earlier turns."""
        return everywhere(up_to(answered(self.dialogue.messages, drawn), turn), self.full)


# ── moving the instruction ───────────────────────────────────────────────────────────────────────


def everywhere(turns: Messages, instruction: str) -> Messages:
    """The turns with the instruction before every user message: for drawing answers."""
    return tuple(_told(turn, instruction) if turn.role == "user" else turn for turn in turns)


def first_only(turns: Messages, instruction: str) -> Messages:
    """The turns with the instruction before the first user message: for training."""
    first = next(place for place, turn in enumerate(turns) if turn.role == "user")
    return (*turns[:first], _told(turns[first], instruction), *turns[first + 1 :])


def training_row(assignment: Assignment, drawn: Mapping[int, str]) -> Conversation:
    """The row to learn from: ``drawn`` holds the new answers by turn (from 1), that of the last turn among them."""
    assert assignment.turns in drawn, "the answer that is trained has been drawn"
    turns = answered(assignment.dialogue.messages, drawn)
    kinds = (part.kind for part in assignment.instructions)
    opening = f"{OPENING}{row_key(assignment.dialogue)}"
    tags = tuple(dict.fromkeys((*assignment.dialogue.tags, TAG, *kinds, opening)))
    return replace(assignment.dialogue, messages=first_only(turns, assignment.given), tags=tags, train="last")


def up_to(turns: Messages, turn: int) -> Messages:
    """The beginning of a dialogue, up to and with the user message of a turn (from 1)."""
    places = [place for place, each in enumerate(turns) if each.role == "user"]
    return turns[: places[turn - 1] + 1]


def answered(turns: Messages, drawn: Mapping[int, str]) -> Messages:
    """The turns with other answers in some of them, by turn (from 1)."""
    written, turn = [], 0
    for each in turns:
        turn += each.role == "user"
        written.append(Message("assistant", drawn[turn]) if each.role == "assistant" and turn in drawn else each)
    return tuple(written)


def user_turns(turns: Messages) -> int:
    """The number of user messages."""
    return sum(turn.role == "user" for turn in turns)


def _told(turn: Message, instruction: str) -> Message:
    return Message("user", f"{instruction} {turn.content}")


# ── drawing the instruction ──────────────────────────────────────────────────────────────────────


def unfit(dialogue: Conversation, source: Source, min_turns: int) -> str:
    """Why a dialogue gets no instruction, or an empty text."""
    if user_turns(dialogue.messages) < min_turns:
        return f"fewer than {min_turns} user turns"
    if any(source.instructs(turn.content) for turn in dialogue.messages if turn.role != "assistant"):
        # It might contradict ours half-way, and then no answer could obey both.
        return "instruction of its own"
    return ""


def assign(
    dialogue: Conversation,
    source: Source,
    *,
    seed: int,
    shorten: float,
    min_turns: int,
    max_turns: int,
    end: End,
    answers: Answers,
) -> Assignment:
    """Draw what a dialogue is told, in what form, and where it ends; ``seed`` and the dialogue's id decide.

    With ``end`` last it is used up to its last turn, or that of number ``max_turns``; with random, up to a turn
    drawn from ``min_turns`` to there. With ``answers`` mixed all answers are drawn for half of the dialogues.
    """
    rng = random.Random(f"ghost:{seed}:{dialogue.id}")
    told = source.draw(rng)
    shortened = rng.random() < shorten
    last = min(user_turns(dialogue.messages), max_turns)
    if end == "random":
        last = rng.randint(min(min_turns, last), last)
    kept = dialogue.messages[: len(up_to(dialogue.messages, last)) + 1]
    every = rng.random() < 0.5 if answers == "mixed" else answers == "all"
    return Assignment(replace(dialogue, messages=kept), told, shortened, every)


# ── sources of instructions ──────────────────────────────────────────────────────────────────────


def path_of(instructions: str | None, at: str = "instructions") -> Path | None:
    """The file that holds the instructions, which the key ``at`` names; None for those of the miniature world."""
    return None if instructions == MINIATURE else lists.locate(instructions, SHIPPED, at)


def source_of(instructions: str | None) -> Source:
    """The shipped lists for null, the miniature world's instructions, or lists by path. Raises :class:`UserError`."""
    path = path_of(instructions)
    return _miniature() if path is None else Source(Lists.parse(lists.read(path), str(path)).draw)


def _miniature() -> Source:
    """Instructions whose obedience a program sees in any answer."""
    from alignment.miniature import instructions as world

    def draw(rng: random.Random) -> tuple[Instruction, ...]:
        told = world.draw(rng)
        return tuple(Instruction(each.kind, each.value, rng.choice(each.wordings), each.short) for each in told)

    def obeys(part: Instruction, answer: str) -> bool:
        return world.obeys(world.Instruction(part.kind, part.value), answer)  # type: ignore[arg-type]

    return Source(draw, obeys, lambda text: bool(world.split(text)[0]))


class Kind(Settings):
    """One kind of instruction: wordings around a value."""

    full: list[str] = text("wordings, with {value} for the value", min_length=1)
    short: str = text("the short form, with {value} for the value")
    values: list[str] = text("what may stand there", min_length=1)


class Free(Settings):
    """One instruction in its own words."""

    full: str = text("the instruction", min_length=1)
    short: str = text("its short form", min_length=1)


class Lists(Settings):
    """``data_recipes/lists/instructions.yaml``. A program cannot tell whether an answer obeys these."""

    parts: list[float] = text("weights of instructions of one, two, … parts", min_length=1)
    kinds: dict[str, Kind] = text("kinds of instruction, by name")
    free: list[Free] = text("instructions in their own words; a kind of its own")

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "instructions") -> Lists:
        """Validate a plain mapping, the rules between its keys included. Raises :class:`UserError`."""
        found: Lists = super().parse(values, where)
        if FREE in found.kinds:
            raise UserError(f"kinds.{FREE}: is the name of the free instructions", cause=f"({where})")
        weights = all(0 <= weight < math.inf for weight in found.parts) and any(found.parts)
        if not weights or len(found.parts) > len(found.names):
            raise UserError(
                f"parts={found.parts}: {len(found.names)} weights at most, of 0 and more, one of them above 0",
                cause=f"The parts of an instruction are of different kinds: {', '.join(found.names)}. ({where})",
            )
        for name, kind in found.kinds.items():
            for place, wording in enumerate((*kind.full, kind.short)):
                key = f"kinds.{name}.short" if place == len(kind.full) else f"kinds.{name}.full.{place}"
                if not _has_value(wording):
                    raise UserError(
                        f"{key}={wording!r}: {{value}} must stand in it, and no other braces", cause=f"({where})"
                    )
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """The kinds, the free instructions among them where there are any."""
        return (*self.kinds, FREE) if self.free else tuple(self.kinds)

    def draw(self, rng: random.Random) -> tuple[Instruction, ...]:
        """One or more instructions of different kinds."""
        count = rng.choices(range(1, len(self.parts) + 1), self.parts)[0]
        return tuple(self._one(name, rng) for name in rng.sample(self.names, count))

    def _one(self, name: str, rng: random.Random) -> Instruction:
        if name == FREE:
            chosen = rng.choice(self.free)
            return Instruction(FREE, chosen.full, chosen.full, chosen.short)
        kind = self.kinds[name]
        value = rng.choice(kind.values)
        return Instruction(name, value, rng.choice(kind.full).format(value=value), kind.short.format(value=value))


def _has_value(wording: str) -> bool:
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(wording) if field is not None]
    except ValueError:
        return False
    return bool(fields) and set(fields) == {"value"}
