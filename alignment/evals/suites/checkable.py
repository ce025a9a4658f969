"""Answers that a program finds right or wrong, by the references of their prompts (``scoring/checkable.py``).

IFEval (Zhou et al., arXiv 2311.07911) counts by prompt (all its instructions are obeyed) and by instruction, strictly
and loosely: an instruction counts as obeyed, too, where the answer would obey it without its first line, its last line
or both, and without its asterisks. Each instruction is an example of its own there, in a group by its family.

``calculator``: a tool is described and was never trained; an answer is right whose first call of it comes to the
prompt's number (Llama 2, arXiv 2307.09288, §5.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Literal, Protocol

from alignment.artifacts import Artifact
from alignment.chat.types import Message, Messages, Prompt, prompt_key
from alignment.errors import UserError
from alignment.evals.suites import calls
from alignment.evals.suites.subject import Asked, Subject
from alignment.evals.suites.suite import Examined, Example, Measure, Suite
from alignment.sampling.decoding import Decoding, Reply
from alignment.scoring import instructions
from alignment.scoring.instructions import Obeys
from alignment.settings import identity, reference, text

CORRECT = Measure("correct", "higher", "share of the answers that are right", most=1)
CALLED = Measure("called", "higher", "share of the answers that call the calculator at all", most=1)
IFEVAL = (
    Measure("prompt_strict", "higher", "share of the answers that obey all instructions of their prompt", most=1),
    Measure("instruction_strict", "higher", "share of the instructions that are obeyed", most=1),
    Measure("prompt_loose", "higher", "share of prompts, first and last lines and asterisks overlooked", most=1),
    Measure(
        "instruction_loose", "higher", "share of instructions, first and last lines and asterisks overlooked", most=1
    ),
)
ALWAYS = (
    Measure("finished", "higher", "share of the answers that ended of their own accord", most=1),
    Measure("tokens", None, "tokens of an answer"),
)


class Settings(Suite):
    """A check, and the prompts whose references it reads."""

    prompts: str = reference("a dataset of prompts with references", kinds=("dataset",))
    split: Literal["train", "valid", "test"] = identity("its split; no model may have seen its prompts")
    tags: list[str] | None = text("prompts with one of these tags alone; null takes all")
    count: int | None = identity("prompts at most, the first of the split; null takes all", ge=1)
    before: str | None = text("put before the last question, such as what a tool does; null: nothing")
    check: Literal["exact", "gsm8k", "ifeval", "calculator"] = identity(
        "what is right: as check:<name> among the scorers; calculator: a call that comes to the reference's number"
    )
    decoding: Decoding = identity("how answers are drawn; of several samples the mean counts")


def examine(settings: Settings, inputs: Mapping[str, Artifact], subject: Subject) -> Examined:
    """Draw answers and check them. Raises :class:`UserError` for a reference that cannot be read."""
    prompts = _prompts(settings, inputs["prompts"], subject)
    examiner = _opened(settings.check, prompts)
    asked = [Asked(one.id, _asked(one.messages, settings.before)) for one in prompts]
    replies = subject.replies("answers", asked, settings.decoding)

    def examples() -> Iterator[Example]:
        for prompt, one, samples in zip(prompts, asked, replies, strict=True):
            values = {
                "finished": sum(reply.finished for reply in samples) / len(samples),
                "tokens": sum(reply.tokens for reply in samples) / len(samples),
            }
            shown = {
                "prompt": [[turn.role, turn.content] for turn in one.turns],
                "answers": [reply.text for reply in samples],
                "reference": prompt.reference,
            }
            yield from examiner.examples(prompt, values, samples, shown)

    return Examined((*examiner.measures, *ALWAYS), examples())


def _opened(check: str, prompts: Sequence[Prompt]) -> _Check:
    if check == "ifeval":
        return _Instructions(prompts)
    return _Calculator(prompts) if check == "calculator" else _Right(check, prompts)


def _prompts(settings: Settings, dataset: Artifact, subject: Subject) -> list[Prompt]:
    """The prompts that are asked for. Raises :class:`UserError` where there is none with the tags."""
    if settings.tags is None:
        return subject.prompts(dataset, settings.split, settings.count)
    everything = subject.prompts(dataset, settings.split, None)
    wanted = {*settings.tags}
    found = [*islice((one for one in everything if wanted & {*one.tags}), settings.count)]
    if not found:
        raise UserError(
            f"suite.tags: no prompt of the split {settings.split} has one of {', '.join(settings.tags)}",
            cause=f"They have {', '.join(sorted({tag for one in everything for tag in one.tags})[:20]) or 'none'}.",
            remedy="Name tags that are there, or suite.tags=null.",
        )
    return found


def _asked(turns: Messages, before: str | None) -> Messages:
    if before is None:
        return turns
    return (*turns[:-1], replace(turns[-1], content=f"{before}\n\n{turns[-1].content}"))


# ── the checks ───────────────────────────────────────────────────────────────────────────────────

Values = dict[str, float]


class _Check(Protocol):
    """What is measured of the answers to a prompt."""

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What it adds to what every check tells."""
        ...

    def examples(
        self, prompt: Prompt, values: Values, samples: Sequence[Reply], shown: Mapping[str, object]
    ) -> Iterator[Example]:
        """The examples of a prompt; ``values`` are those that every check tells."""
        ...


class _Right:
    """One number for each answer."""

    measures = (CORRECT,)

    def __init__(self, check: str, prompts: Sequence[Prompt]) -> None:
        from alignment.scoring.checkable import Checkable

        self._check = Checkable(check, prompts)

    def examples(
        self, prompt: Prompt, values: Values, samples: Sequence[Reply], shown: Mapping[str, object]
    ) -> Iterator[Example]:
        """One for the prompt."""
        dialogues = [(*prompt.messages, Message("assistant", reply.text)) for reply in samples]
        right = self._check.score(dialogues).reported
        values = {"correct": sum(right) / len(right), **values}
        yield Example(prompt.id, prompt_key(prompt.messages), values, shown=shown)


class _Calculator:
    """Whether the calculator is called, and with what comes to the right number."""

    measures = (CORRECT, CALLED)

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        from alignment.scoring.checkable import gsm8k

        self._right = {prompt.id: gsm8k(prompt) for prompt in prompts}

    def examples(
        self, prompt: Prompt, values: Values, samples: Sequence[Reply], shown: Mapping[str, object]
    ) -> Iterator[Example]:
        """One for the prompt."""
        made = [calls.called(reply.text) for reply in samples]
        right = sum(of[0] is not None and self._right[prompt.id](f"{of[0]:f}") for of in made if of)
        values = {"correct": right / len(made), "called": sum(map(bool, made)) / len(made), **values}
        yield Example(prompt.id, prompt_key(prompt.messages), values, shown=shown)


class _Instructions:
    """IFEval's four shares."""

    measures = IFEVAL

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self._obeys = {one.id: _read(one) for one in prompts}

    def examples(
        self, prompt: Prompt, values: Values, samples: Sequence[Reply], shown: Mapping[str, object]
    ) -> Iterator[Example]:
        """One for the prompt, and one for each of its instructions."""
        unit, obeys = prompt_key(prompt.messages), self._obeys[prompt.id]
        strict = {name: [obeyed(reply.text, one) for reply in samples] for name, one in obeys.items()}
        loose = {name: [loosely(reply.text, one) for reply in samples] for name, one in obeys.items()}
        yield Example(
            prompt.id,
            unit,
            {"prompt_strict": _all(strict), "prompt_loose": _all(loose), **values},
            shown=shown,
        )
        for name in obeys:
            each = {"instruction_strict": _mean(strict[name]), "instruction_loose": _mean(loose[name])}
            family = name.partition(":")[0]
            yield Example(f"{prompt.id}/{name}", unit, each, {"instruction": family})


def obeyed(answer: str, obeys: Obeys) -> bool:
    """Strictly: the answer as it is."""
    return obeys(answer)


def loosely(answer: str, obeys: Obeys) -> bool:
    """Loosely: any of the eight ways to read the answer."""
    return any(obeys(one) for one in variants(answer))


def variants(answer: str) -> list[str]:
    """An answer as it is, without its first line, its last, and both; and each of these without asterisks."""
    lines = answer.split("\n")
    cut = [answer, *("\n".join(some).strip() for some in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cut, *(one.replace("*", "") for one in cut)]


def _read(prompt: Prompt) -> dict[str, Obeys]:
    """The instructions of a prompt by their names, told apart by their places."""
    names = [f"{name}#{place}" for place, name in enumerate(instructions.named(prompt.tags), 1)]
    return dict(zip(names, instructions.of_prompt(prompt.id, prompt.tags, prompt.reference or ""), strict=True))


def _all(by_instruction: Mapping[str, Sequence[bool]]) -> float:
    """Share of the samples that obey every instruction."""
    return _mean([all(of) for of in zip(*by_instruction.values(), strict=True)])


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)
