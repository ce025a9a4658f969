"""A teacher's answers to prompts: what it is told that whoever learns from it is not, and what becomes of each one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from alignment.chat.types import Conversation, Message, Messages, Prompt
from alignment.sampling.decoding import Reply
from alignment.settings import Settings, identity, text

if TYPE_CHECKING:
    from alignment.data.derive import Place
    from alignment.data.ledger import Verdict


class Guide(Settings):
    """What a teacher is told besides for some of the prompts."""

    name: str = identity("rows that are drawn so are tagged with guided:<name>", min_length=1)
    tags: list[str] = identity("of the rows that it is for: those with any of them", min_length=1)
    instruction: str = text("what stands before the first user message while the teacher answers", min_length=1)


def guide_for(tags: Sequence[str], guides: Sequence[Guide]) -> Guide | None:
    """The first guide that is for one of ``tags``."""
    return next((guide for guide in guides if set(guide.tags) & set(tags)), None)


def guided(turns: Messages, instruction: str) -> Messages:
    """The turns with ``instruction`` before the first user message, a blank line between."""
    place = next(place for place, turn in enumerate(turns) if turn.role == "user")
    told = Message("user", f"{instruction}\n\n{turns[place].content}")
    return (*turns[:place], told, *turns[place + 1 :])


class Asked(NamedTuple):
    """A prompt, and the turns that the teacher is given for it."""

    place: Place
    prompt: Prompt
    turns: Messages
    guide: Guide | None


@dataclass
class Seen:
    """What was drawn, whatever became of it."""

    answers: int = 0
    finished: int = 0
    tokens: int = 0
    guided: int = 0

    def add(self, asked: Asked, replies: Sequence[Reply]) -> None:
        """Count the answers to one prompt."""
        self.answers += len(replies)
        self.finished += sum(reply.finished for reply in replies)
        self.tokens += sum(reply.tokens for reply in replies)
        self.guided += asked.guide is not None

    def metrics(self) -> dict[str, float]:
        """The share of the answers that finished and their mean length; ``guided`` counts prompts."""
        return {
            "finished": self.finished / self.answers,
            "tokens": self.tokens / self.answers,
            "guided": float(self.guided),
        }


def verdicts(asked: Asked, replies: Sequence[Reply], unfinished: Literal["drop", "keep"]) -> list[Verdict]:
    """What becomes of each answer to a prompt: a row of its own, unless it is empty, cut off or said already.

    Rows have the prompt's id, with ``#0``, ``#1`` … where there are several samples, its tags, and the guide's.
    """
    from alignment.data.ledger import Verdict

    tags = asked.prompt.tags if asked.guide is None else (*asked.prompt.tags, f"guided:{asked.guide.name}")
    found, said = [], dict[str, str]()
    for number, reply in enumerate(replies):
        name = asked.prompt.id if len(replies) == 1 else f"{asked.prompt.id}#{number}"
        if not reply.text.strip():
            verdict = Verdict("dropped", name, by="teach", reason="empty answer")
        elif unfinished == "drop" and not reply.finished:
            verdict = Verdict("dropped", name, by="teach", reason="unfinished answer")
        elif reply.text in said:
            verdict = Verdict("dropped", name, by="teach", reason="the same answer", detail=f"as {said[reply.text]}")
        else:
            said[reply.text] = name
            row = Conversation((*asked.prompt.messages, Message("assistant", reply.text)), name, tags)
            verdict = Verdict("kept", name, row=row, split=asked.place.split, copies=1)
        found.append(verdict)
    return found
