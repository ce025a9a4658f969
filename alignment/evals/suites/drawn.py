"""Answers that a suite has drawn, one by one, and how those of a prompt come together again as its example."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from alignment.artifacts import Artifact
from alignment.chat.types import Messages, Prompt
from alignment.data.rows import Split
from alignment.errors import UserError
from alignment.evals.suites.subject import Asked, Subject
from alignment.parts import Rows
from alignment.sampling.decoding import Decoding, Reply

if TYPE_CHECKING:
    from alignment.data.ratings import Answered

PART = 64
"""Answers that are judged, and then kept, together."""


class Drawn(NamedTuple):
    """A prompt with its samples; ``of`` are their places among all answers."""

    prompt: Prompt
    replies: list[Reply]
    of: slice


def chosen(
    subject: Subject, dataset: Artifact, split: Split, tags: Sequence[str] | None, count: int | None
) -> list[Prompt]:
    """The first prompts of a split that bear one of the tags; null takes all. Raises :class:`UserError` for none."""
    found = subject.prompts(dataset, split, None if tags else count)
    if tags is None:
        return found
    bearing = [prompt for prompt in found if not set(tags).isdisjoint(prompt.tags)]
    if not bearing:
        have = sorted({tag for prompt in found for tag in prompt.tags})
        raise UserError(
            f"{dataset.path}: no prompt of its split {split} is tagged {' or '.join(tags)}",
            cause=f"Tags there: {', '.join(have[:20]) or 'none'}.",
            remedy="Name tags of the dataset in the suite's YAML.",
        )
    return bearing[:count]


def draw(
    subject: Subject, prompts: Sequence[Prompt], decoding: Decoding, before: Messages = ()
) -> tuple[list[Drawn], list[Answered]]:
    """Answers to every prompt, by prompt and in one line. Turns ``before`` it are for the model alone."""
    from alignment.data.ratings import Answered

    replies = subject.replies("answers", [Asked(one.id, (*before, *one.messages)) for one in prompts], decoding)
    drawn: list[Drawn] = []
    answers: list[Answered] = []
    for prompt, samples in zip(prompts, replies, strict=True):
        drawn.append(Drawn(prompt, samples, slice(len(answers), len(answers) + len(samples))))
        answers += [Answered(f"{prompt.id}/{n}", prompt.messages, one.text) for n, one in enumerate(samples)]
    return drawn, answers


def judged(
    subject: Subject, answers: Sequence[Answered], judge: Callable[[Sequence[Answered]], Rows]
) -> list[dict[str, Any]]:
    """What is said of every answer, in parts that are kept."""
    return list(subject.in_parts("judged", answers, judge, PART))


def means(rows: Sequence[Mapping[str, float | None]], names: Sequence[str]) -> Iterator[tuple[str, float]]:
    """The mean of every value over the samples of a prompt that have it."""
    for name in names:
        found = [float(value) for row in rows if (value := row.get(name)) is not None]
        if found:
            yield name, sum(found) / len(found)


def lengths(replies: Sequence[Reply]) -> dict[str, float]:
    """What every example tells of its answers besides."""
    return {
        "finished": sum(reply.finished for reply in replies) / len(replies),
        "tokens": sum(reply.tokens for reply in replies) / len(replies),
    }


def user_turns(prompt: Prompt) -> int:
    """How often the user speaks."""
    return sum(turn.role == "user" for turn in prompt.messages)


def shown(drawn: Drawn, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a person sees of an example: the turns, the answers, and what was said of each."""
    return {
        "prompt": [[turn.role, turn.content] for turn in drawn.prompt.messages],
        "answers": [reply.text for reply in drawn.replies],
        "judged": [dict(row) for row in rows],
    }
