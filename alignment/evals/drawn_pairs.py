"""Two models answer the same prompts: pairs of answers on shuffled sides, drawn part by part, for somebody to compare.

One model is in memory at a time. What an earlier start has drawn is not drawn again (``parts.py``), and what a server
has answered is not paid for twice (``sampling/journal.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from alignment import console, parts
from alignment.artifacts import Artifact
from alignment.data.rows import Split
from alignment.errors import UserError
from alignment.sampling.endpoint import EndpointSettings

if TYPE_CHECKING:
    from alignment.chat.types import Prompt
    from alignment.data.pairs import Pair
    from alignment.sampling.decoding import Respondent
    from alignment.training.engine import Engine

VARIANTS = (0, 1)

EMPTY, EQUAL, AGAIN = "empty answer", "equal answers", "the same prompt again"


class Drawing(NamedTuple):
    """How both answers are drawn; ``seed`` also says who stands on which side."""

    temperatures: Sequence[float]
    top_p: float
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class Asked:
    """The prompts that are answered: of each split the first ``count``, or all."""

    directory: Path
    splits: Sequence[Split]
    count: int | None

    def stream(self) -> Iterator[tuple[Split, Prompt]]:
        """Prompts with their splits. Raises :class:`UserError` for a dataset of anything else."""
        from alignment.chat.types import Prompt
        from alignment.data import store

        for split in self.splits:
            for row in islice(store.stream(self.directory, split), self.count):
                if not isinstance(row, Prompt):
                    raise UserError(
                        f"{self.directory} holds no prompts", remedy="Give a dataset whose recipe has kind: prompts."
                    )
                yield split, row

    def total(self) -> int:
        """How many there are; every split is looked at, so that nothing fails after a model was opened."""
        from alignment.data import store

        for split in self.splits:
            next(replace(self, splits=[split]).stream(), None)
        rows = store.card(self.directory)["rows"]
        return sum(min(rows[split], self.count or rows[split]) for split in self.splits)


def check(temperatures: Sequence[float], splits: Sequence[Split]) -> None:
    """Raise :class:`UserError` for a temperature at which nothing can be drawn, or a split that is named twice."""
    for temperature in temperatures:
        if not 0 <= temperature <= 5:
            raise UserError(f"temperatures: {temperature} is not between 0 and 5")
    if len(set(splits)) < len(splits):
        raise UserError(f"splits: {splits} names one twice")


def variant_names(models: Sequence[Artifact], temperatures: Sequence[float]) -> list[str]:
    """What the two are called: by step; by temperature too where they are one model, by fingerprint where two."""
    plain = [model.step or model.path.name for model in models]
    if models[0].fingerprint == models[1].fingerprint:
        return [f"{name}@{temperature:g}" for name, temperature in zip(plain, temperatures, strict=True)]
    if plain[0] == plain[1]:
        return [f"{name}-{model.fingerprint[:4]}" for name, model in zip(plain, models, strict=True)]
    return plain


def draw_all(
    models: Sequence[Artifact],
    asked: Asked,
    drawing: Drawing,
    engine: Engine,
    endpoint: EndpointSettings,
    out: Path,
    size: int,
) -> int:
    """Have both models answer every prompt, ``size`` of them a part, and return how many prompts there are.

    Raises :class:`UserError` for a model without a chat format before anything is drawn.
    """
    from alignment.scoring.opening import need_chat

    for model in models:
        need_chat(model, "models")
    total = asked.total()
    for place in VARIANTS:
        _answer(place, models[place], asked, total, drawing, engine, endpoint, out, size)
    return total


def stream(names: Sequence[str], asked: Asked, drawing: Drawing, out: Path, size: int) -> Iterator[Pair]:
    """What :func:`draw_all` has drawn, beside its prompts."""

    def nothing(some: Sequence[Any]) -> parts.Rows:
        raise AssertionError("every part was drawn before")

    answers = [parts.in_parts(out, _folder(place), asked.stream(), size, nothing) for place in VARIANTS]
    last = ""
    for (split, prompt), *drawn in zip(asked.stream(), *answers, strict=True):
        pair = paired(prompt, split, drawn, names, drawing)
        # A prompt that its dataset holds several times stands there several times in a row.
        yield pair if prompt.id != last else replace(pair, why=AGAIN)
        last = prompt.id


def paired(
    prompt: Prompt, split: Split, drawn: Sequence[Mapping[str, Any]], names: Sequence[str], drawing: Drawing
) -> Pair:
    """The two answers to a prompt, on sides that a hash of seed and id has shuffled."""
    from alignment.data.draw import uniform
    from alignment.data.pairs import Pair

    a, b = VARIANTS if uniform("side", drawing.seed, prompt.id) < 0.5 else (1, 0)
    texts = [drawn[place]["answer"].strip() for place in VARIANTS]
    why = EMPTY if not all(texts) else EQUAL if texts[0] == texts[1] else ""
    return Pair(
        id=prompt.id,
        split=split,
        tags=prompt.tags,
        category=prompt.category,
        attack=prompt.attack,
        prompt=prompt.messages,
        answer_a=drawn[a]["answer"],
        answer_b=drawn[b]["answer"],
        model_a=names[a],
        model_b=names[b],
        temperature_a=drawing.temperatures[a],
        temperature_b=drawing.temperatures[b],
        finished_a=drawn[a]["finished"],
        finished_b=drawn[b]["finished"],
        why=why,
    )


def _answer(
    place: int,
    model: Artifact,
    asked: Asked,
    total: int,
    drawing: Drawing,
    engine: Engine,
    endpoint: EndpointSettings,
    out: Path,
    size: int,
) -> None:
    """Draw the answers of one variant, part by part."""
    from alignment.scoring.opening import open_respondent

    respondent = open_respondent(model, engine, endpoint, out / parts.FOLDER / f"journal-{place}.jsonl", at="models")
    with console.progress(f"pairs {respondent.name}", total, "answers") as progress:

        def on_done(count: int, before: bool) -> None:
            if before:
                progress.begin_at(progress.done + count)

        def work(some: Sequence[tuple[Split, Prompt]]) -> parts.Rows:
            return _draw(respondent, [prompt for _, prompt in some], place, drawing, progress)

        for _ in parts.in_parts(out, _folder(place), asked.stream(), size, work, on_done):
            pass


def _draw(
    respondent: Respondent, prompts: Sequence[Prompt], place: int, drawing: Drawing, progress: console.Progress
) -> parts.Rows:
    """One answer to each prompt. The variant's place is in the key: one model draws two different answers."""
    from alignment.sampling.decoding import Decoding

    decoding = Decoding(
        samples=1,
        temperature=drawing.temperatures[place],
        top_p=drawing.top_p,
        max_new_tokens=drawing.max_new_tokens,
        seed=drawing.seed,
    )
    before = progress.done
    replies = respondent.reply(
        [prompt.messages for prompt in prompts],
        [f"{prompt.id}/{place}" for prompt in prompts],
        decoding,
        on_progress=lambda done: progress.advance(before + done - progress.done),
    )
    return [{"answer": reply.text, "finished": reply.finished} for (reply,) in replies]


def _folder(place: int) -> str:
    return f"variant-{place}"
