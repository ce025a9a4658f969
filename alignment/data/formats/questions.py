"""Formats of questions that are not a question and an answer: lists, topics, BOLD, reports of samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from alignment.chat.types import Conversation, Prompt, messages
from alignment.data.formats.shape import Shape
from alignment.data.rows import Candidate, Raw, Reading, one
from alignment.errors import DataError
from alignment.settings import Settings, identity


class BoldOptions(Settings):
    """Where a prompt's domain is said."""

    domain: str | None = identity(
        "of a file as it is published, {group: {who: [prompts]}}, the domain: `gender` of gender_prompt.json; null "
        "where rows have the columns domain, category, name and prompts, as on the hub",
        default=None,
        min_length=1,
    )


class ReportOptions(Settings):
    """How a sampled answer ended."""

    stops: list[str] = identity("control tokens left in the answers: one is cut off with all that follows it")


def read_plain(raw: Raw, shape: Shape) -> Reading:
    """A row that is the question itself, as in a file with a JSON text a line."""
    if not isinstance(raw.value, str):
        raise DataError(
            raw.where,
            f"a text is wanted, not {type(raw.value).__name__}",
            remedy="Rows with columns have another format, such as prompt_completion.",
        )
    return one(Prompt(messages(("user", raw.value)), id=""))


def read_topics(raw: Raw, shape: Shape) -> Reading:
    """Questions under headings, to any depth: ``{"Law": {"Tax": ["How …?", …]}}``; the headings become tags."""
    return Reading([Candidate(Prompt(messages(("user", text)), "", path)) for path, text in _leaves(raw, raw.value)])


def _leaves(raw: Raw, value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, dict):
        for heading, below in value.items():
            yield from _leaves(raw, below, (*path, heading))
    elif path and isinstance(value, list) and all(isinstance(text, str) for text in value):
        yield from ((path, text) for text in value)
    else:
        raise DataError(
            raw.where,
            f"under {' → '.join(path) or 'the row'} there is no list of questions: {str(value)[:60]!r}",
            remedy="An object is wanted whose innermost values are lists of texts.",
        )


def read_beginnings(raw: Raw, shape: Shape) -> Reading:
    """Texts to go on from: a column, or a file with one a line, in which ``\\n`` stands for a new line (ToxiGen)."""
    said = raw.value if isinstance(raw.value, str) else raw.column("prompt")
    if not isinstance(said, str):
        raise DataError(raw.where, f"a text is wanted, not {type(said).__name__}")
    lines = said.splitlines() if isinstance(raw.value, str) else [said]
    texts = [line.replace("\\n", "\n") for line in lines if line.strip()]
    return Reading([Candidate(Prompt(messages(("user", text)), "", tuple(shape.options.tags or ()))) for text in texts])


def read_bold(raw: Raw, shape: Shape) -> Reading:
    """BOLD's beginnings of sentences (Dhamala et al., arXiv 2101.11718); tags: domain, group, and whom it is about."""
    if shape.options.domain is not None:
        domain = shape.options.domain
        told = [((domain, *path), text) for path, text in _leaves(raw, raw.value)]
    else:
        path = tuple(f"{raw.text(column) or ''}" for column in ("domain", "category", "name"))
        told = list(_leaves(raw, raw.column("prompts"), path))
    if not all(len(path) == 3 and all(path) for path, _ in told):
        raise DataError(
            raw.where,
            f"does not say of every prompt its domain, its group and whom it is about: {str(raw.value)[:60]!r}",
            remedy="Of a published file say its domain in the source's options; a row of the hub has it as a column.",
        )
    return Reading([Candidate(Prompt(messages(("user", text)), "", path)) for path, text in told])


def read_sampling_report(raw: Raw, shape: Shape) -> Reading:
    """A report of Open-Assistant's model evaluation: answers sampled to each of a list of prompts.

    A conversation for every answer, tagged with the model and the sampling configuration; or the prompts.
    """
    model, asked = raw.text("model_name"), raw.column("prompts")
    try:
        if shape.kind == "prompts":
            return Reading([Candidate(Prompt(messages(("user", each["prompt"])), id="")) for each in asked])
        drawn = [
            (each["prompt"], result["sampling_config"], output)
            for each in asked
            for result in each["results"]
            for output in result["outputs"]
        ]
    except (TypeError, KeyError) as error:
        raise DataError(
            raw.where,
            f"is no sampling report: {error}",
            remedy="Each of its prompts has a `prompt` and `results` with `sampling_config` and `outputs`.",
        ) from None
    stops, candidates, cut = shape.options.stops, [], 0
    for prompt, configuration, output in drawn:
        answer = output[: min([output.find(stop) for stop in stops if stop in output], default=len(output))]
        cut += answer != output
        tags = tuple(tag for tag in (model, configuration) if tag)
        candidates.append(Candidate(Conversation(messages(("user", prompt), ("assistant", answer)), "", tags)))
    return Reading(candidates, f"{cut:,} of {len(drawn):,} answers cut at a control token" if cut else "")
