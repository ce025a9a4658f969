"""How answers are drawn, and who draws them: a model here or a server elsewhere, behind one protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from alignment.chat.types import Messages
from alignment.settings import Settings, identity


class Decoding(Settings):
    """The numbers of every stage that draws answers."""

    samples: int = identity("answers drawn for every prompt", ge=1)
    temperature: float = identity("at which answers are drawn; 0 takes the likeliest token", ge=0, le=5)
    top_p: float = identity("the smallest set of tokens with this share of the probability", gt=0, le=1)
    max_new_tokens: int = identity("length of an answer at most", ge=1)
    seed: int = identity("of the draws", ge=0)


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer. ``finished``: it ended of its own accord.

    Only from a model of ours: ``ids`` (with the stop id), and ``logprob``, Σ log p of them at the temperature drawn.
    """

    text: str
    tokens: int
    finished: bool
    ids: tuple[int, ...] | None = None
    logprob: float | None = None

    @property
    def problem(self) -> str:
        """Why nothing can be learned from it, or an empty text."""
        if not self.text.strip():
            return "empty answer"
        return "" if self.finished else "unfinished answer"


class Respondent(Protocol):
    """Answers prompts. The same prompt under the same key gets the same answers, whatever else is asked."""

    name: str

    def reply(
        self,
        prompts: Sequence[Messages],
        keys: Sequence[str],
        decoding: Decoding,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Reply]]:
        """``decoding.samples`` answers to each prompt (turns that end with the user).

        ``keys`` are the prompts' ids, which decide the noise together with the seed. ``on_progress`` is told the
        number of answers that are finished.
        """
        ...
