"""Dialogues under an instruction that is given once: the questions of a dataset, one after the other.

The instruction stands before the first question, as Ghost Attention puts it there (``data/ghost.py``), and a program
says of every answer whether it obeys: the miniature's instructions, or those of a list (``verifiable.yaml``), each
with a check of ``scoring/instructions.py``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.chat.types import Message, Messages
from alignment.data import ghost, lists
from alignment.data.ghost import Instruction, Source
from alignment.data.rows import Row
from alignment.errors import UserError
from alignment.settings import Settings, identity, text

SHIPPED = "verifiable.yaml"


class Verifiable(Settings):
    """An instruction with the program that checks it."""

    kind: str = identity("what it is reported as; the parts of one instruction are of different kinds", min_length=1)
    full: str = text("the instruction", min_length=1)
    short: str = text("its short form", min_length=1)
    check: str = identity("the check by its name in IFEval, such as punctuation:no_comma")
    arguments: dict[str, Any] = identity("the check's arguments; {} for none")


class Verifiables(Settings):
    """``data_recipes/lists/verifiable.yaml``."""

    parts: list[float] = identity("weights of instructions of one, two, … parts", min_length=1)
    instructions: list[Verifiable] = identity("to draw from", min_length=1)


@dataclass(frozen=True, slots=True)
class Dialogue:
    """What is asked, and under which instruction; ``told`` is how it is said."""

    id: str
    instructions: tuple[Instruction, ...]
    told: str
    questions: tuple[str, ...]

    def turns(self, answers: Sequence[str]) -> Messages:
        """The dialogue after these answers, up to the next question; after as many as there are, up to the last."""
        written: list[Message] = []
        for place, question in enumerate(self.questions[: len(answers) + 1]):
            written += [Message("user", question), *(Message("assistant", one) for one in answers[place : place + 1])]
        return ghost.first_only(tuple(written), self.told)


def path_of(instructions: str | None) -> Path | None:
    """The file that holds the instructions; None for those of the miniature world."""
    return None if instructions == ghost.MINIATURE else lists.locate(instructions, SHIPPED, "suite.instructions")


def source_of(instructions: str | None) -> Source:
    """Where instructions come from, each with its check. Raises :class:`UserError` for a list that does not hold."""
    path = path_of(instructions)
    if path is None:
        return ghost.source_of(ghost.MINIATURE)
    return _listed(Verifiables.parse(lists.read(path), str(path)), path)


def _listed(found: Verifiables, path: Path) -> Source:
    from alignment.scoring.instructions import of_prompt

    kinds: dict[str, list[Instruction]] = {}
    checks = {}
    for one in found.instructions:
        if one.full in checks:
            raise UserError(f"{path}: {one.full!r} stands there twice")
        checks[one.full] = of_prompt(f"{path}: {one.full!r}", [one.check], json.dumps([one.arguments]))
        if not checks[one.full]:
            raise UserError(f"{path}: {one.full!r} has no check {one.check!r}", remedy="Name one of IFEval's.")
        kinds.setdefault(one.kind, []).append(Instruction(one.kind, one.full, one.full, one.short))
    weights_fit = all(weight >= 0 for weight in found.parts) and any(found.parts)
    if not weights_fit or len(found.parts) > len(kinds):
        raise UserError(
            f"parts={found.parts}: {len(kinds)} weights at most, of 0 and more, one of them above 0",
            cause=f"The parts of an instruction are of different kinds: {', '.join(kinds)}. ({path})",
        )

    def draw(rng: random.Random) -> tuple[Instruction, ...]:
        count = rng.choices(range(1, len(found.parts) + 1), found.parts)[0]
        return tuple(rng.choice(kinds[kind]) for kind in rng.sample(list(kinds), count))

    return Source(draw, lambda part, answer: all(obeys(answer) for obeys in checks[part.full]))


def questions_of(rows: Iterable[Row], source: Source, leave_out: Sequence[str]) -> list[tuple[Row, tuple[str, ...]]]:
    """The user messages of every row that is asked: none of its tags is left out, and it holds no instruction itself.

    Raises :class:`UserError` for rows without turns.
    """
    found = []
    for row in rows:
        turns = getattr(row, "messages", None)
        if turns is None:
            raise UserError(
                f"suite.questions: {row.id} has no turns",
                cause="Questions are the user messages of prompts or conversations.",
                remedy="Give a dataset whose recipe has kind: prompts or kind: conversations.",
            )
        asked = tuple(turn.content for turn in turns if turn.role == "user")
        if not set(leave_out) & set(row.tags) and not any(map(source.instructs, asked)):  # type: ignore[union-attr]
            found.append((row, asked))
    return found


def dialogues(
    rows: Sequence[tuple[Row, tuple[str, ...]]], source: Source, *, count: int, turns: int, shorten: float, seed: int
) -> tuple[list[Dialogue], list[Row]]:
    """``count`` dialogues of so many turns, and the rows whose questions are in them.

    A dialogue asks the questions of rows drawn for it, each row's in their order and no row twice; two dialogues may
    share rows. Raises :class:`UserError` where all rows together have too few questions for one dialogue.
    """
    there = sum(len(asked) for _, asked in rows)
    if there < turns:
        raise UserError(
            f"suite.turns={turns}: the rows that are asked have {there:,} user messages",
            cause="A dialogue asks no row's questions twice.",
            remedy="Give more rows, shorter dialogues, or leave fewer tags out.",
        )
    made, used = [], dict[int, Row]()
    for number in range(count):
        rng = random.Random(f"recall:{seed}:{number}")
        parts = source.draw(rng)
        short = rng.random() < shorten
        questions: list[str] = []
        for place in rng.sample(range(len(rows)), min(turns, len(rows))):
            row, asked = rows[place]
            questions += asked
            used[place] = row
            if len(questions) >= turns:
                break
        told = " ".join(part.short if short else part.full for part in parts)
        made.append(Dialogue(str(number), parts, told, tuple(questions[:turns])))
    return made, list(used.values())


def obeyed(source: Source, dialogue: Dialogue, answer: str) -> Mapping[str, bool]:
    """Whether an answer obeys, by the kinds of the dialogue's instructions."""
    assert source.obeys is not None, "these instructions can be checked"
    return {part.kind: source.obeys(part, answer) for part in dialogue.instructions}
