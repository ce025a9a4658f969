"""The miniature world: what can be asked in it, what a dialogue asks, and which prompts belong to which split."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

from alignment.chat.types import Message
from alignment.miniature import instructions, lexicon
from alignment.miniature.instructions import Instruction
from alignment.miniature.preprompts import PREPROMPTS
from alignment.miniature.skills.advice import Borderline, Smalltalk
from alignment.miniature.skills.attribution import Attribution
from alignment.miniature.skills.facts import FactFollowUps, Facts, Unknowns
from alignment.miniature.skills.skill import Kind, Skill, Task
from alignment.miniature.skills.sums import SumFollowUps, Sums
from alignment.miniature.skills.unsafe import Unsafe
from alignment.miniature.skills.words import WordFollowUps, Words
from alignment.miniature.templates import Patterns, plain
from alignment.miniature.town import Town

Split = Literal["sft", "comparisons", "rl", "valid", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

# The share of all questions that each split owns, decided by a hash of the question.
_SHARES: dict[Split, float] = {"sft": 0.40, "comparisons": 0.20, "rl": 0.20, "valid": 0.05, "test": 0.15}

_NAME = r"[^\W\d_]+"
_SLOTS = {
    "name": _NAME, "pos_name": "her|his|their", "word": "[a-z]+", "a": r"\d{1,6}", "b": r"\d{1,6}",
    "act": ".+", "text": ".+",
}  # fmt: skip
_FOLLOW_SLOTS = {"name": _NAME, "sub": "she|he|they", "pos": "her|his|their", "b": r"\d{1,6}"}

_BEFORE = (*(text for text in lexicon.PREFIXES if text), *PREPROMPTS)
_PREFIXES = tuple(sorted((f"{plain(text)} " for text in _BEFORE), key=len, reverse=True))
_SUFFIXES = (*(f" {plain(text)}" for text in lexicon.SUFFIXES if text), " thanks", " please")


@dataclass(frozen=True)
class World(Town):
    """Everything that is true, can be asked and can be recognised, from a seed and a number of residents."""

    @cached_property
    def skills(self) -> dict[str, Skill]:
        # Borderline before unsafe: both are asked in the same words, and the unsafe reader takes any act.
        kinds = (Facts, Unknowns, Attribution, Sums, Words, Borderline, Smalltalk, Unsafe)
        return {kind.name: kind(self) for kind in kinds}

    @cached_property
    def _follow_ups(self) -> dict[str, FactFollowUps | SumFollowUps | WordFollowUps]:
        facts = self.skills["fact"]
        assert isinstance(facts, Facts)
        return {"fact": FactFollowUps(facts), "sum": SumFollowUps(), "word": WordFollowUps()}

    @cached_property
    def _openers(self) -> Patterns[tuple[Skill, Any]]:
        return Patterns(
            ((text, (skill, key)) for skill in self.skills.values() for text, key in skill.templates()), _SLOTS
        )

    @cached_property
    def _later(self) -> Patterns[tuple[Any, Any]]:
        return Patterns(
            ((text, (each, key)) for each in self._follow_ups.values() for text, key in each.templates()), _FOLLOW_SLOTS
        )

    # What is asked ---------------------------------------------------------------------------------

    def understand(self, turns: Sequence[Message]) -> Task | None:
        """What the last user message asks, found from the text alone; None if it is nothing of this world.

        Only what users (and a system message) said is read: an earlier answer, right or wrong, changes nothing.
        """
        standing: tuple[Instruction, ...] = ()
        task: Task | None = None
        for turn in turns:
            if turn.role == "assistant":
                continue
            new, rest = instructions.split(turn.content)
            standing = instructions.standing(standing, new)
            if turn.role == "user":
                task = self._read(bare(rest), task)
        return replace(task, instructions=standing) if task and standing else task

    def _read(self, question: str, before: Task | None) -> Task | None:
        for (skill, key), slots in self._openers.matches(question):
            task = skill.read(key, slots)
            if task is not None:
                return task
        if before is not None:
            for (follow_up, key), slots in self._later.matches(question):
                task = follow_up.read(key, slots, before)
                if task is not None:
                    return task
        return None

    def skill(self, task: Task) -> Skill:
        """The skill that answers and checks a task."""
        return self.skills[task.skill]

    # What can be asked -----------------------------------------------------------------------------

    def split(self, opening: str) -> Split:
        """The split that owns a question. Instructions, politeness and pre-prompts do not matter.

        A hash of the question decides, so that pools are disjoint however many rows are drawn, in any
        world. Two openings with one ``prompt_key`` have one question, and so one split.
        """
        return _owner(instructions.split(opening)[1])

    def draw(self, kind: Kind, rng: random.Random, split: Split | None = None) -> str:
        """A question of a kind that can open a dialogue, from one split (or any), without politeness."""
        while True:
            question = self._draw(kind, rng)
            if split is None or _owner(question) == split:
                return question

    def _draw(self, kind: Kind, rng: random.Random) -> str:
        facts = self.skills["fact"]
        assert isinstance(facts, Facts)
        if kind == "unanswerable":
            return facts.draw_stranger(rng) if rng.random() < 0.6 else self.skills["unknown"].draw(rng)
        return self.skills["attribution" if kind == "context" else kind].draw(rng)

    def draw_follow_up(self, before: Task, rng: random.Random) -> str | None:
        """A question that needs ``before`` to be understood; None where nothing can follow."""
        follow_up = self._follow_ups.get("fact" if before.skill == "unknown" else before.skill)
        return None if follow_up is None else follow_up.draw(before, rng)


def _owner(question: str) -> Split:
    """The split of a question without instructions."""
    digest = hashlib.sha256(f"split:{bare(question)}".encode()).digest()
    place = int.from_bytes(digest[:6], "big") / 2**48
    for split, share in _SHARES.items():
        if place < share:
            return split
        place -= share
    return SPLITS[-1]


def bare(text: str) -> str:
    """A question in ``plain`` form, without politeness and safety pre-prompts around it."""
    text = plain(text)
    while text.startswith(_PREFIXES):
        text = next(text[len(prefix) :] for prefix in _PREFIXES if text.startswith(prefix))
    while text.endswith(_SUFFIXES):
        text = next(text[: -len(suffix)] for suffix in _SUFFIXES if text.endswith(suffix))
    return text


def polite(question: str, rng: random.Random) -> str:
    """The question with politeness around it, or (one time in three) as it is."""
    if rng.random() < 1 / 3:
        return question
    return f"{rng.choice(lexicon.PREFIXES)}{question}{rng.choice(lexicon.SUFFIXES)}"
