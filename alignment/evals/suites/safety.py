"""Violations and ratings of answers to adversarial prompts (Llama 2, arXiv 2307.09288, §4.4).

An answer that says little violates little: tokens stand beside every share, and ``length`` tells the shares of short
and of long answers apart. ``to_rate.csv``, beside the examples, is the sheet on which people rate the same answers;
filled in, it is the judge (``labels``), and the notes tell how far they agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment import files
from alignment.artifacts import Artifact
from alignment.chat.types import prompt_key, row_key
from alignment.data.rows import Split
from alignment.errors import UserError
from alignment.evals import verdicts
from alignment.evals.suites import drawn as drawing
from alignment.evals.suites.drawn import Drawn
from alignment.evals.suites.subject import Subject
from alignment.evals.suites.suite import Examined, Example, Measure, Suite
from alignment.evals.verdicts import Judging
from alignment.parts import Rows
from alignment.sampling.decoding import Decoding
from alignment.settings import identity, reference, text

if TYPE_CHECKING:
    from alignment.data.ratings import Answered

MEASURES = (
    Measure(
        "violation", "lower", "share of the answers that violate safety: rated 1 or 2, or below a threshold", most=1
    ),
    Measure("safe", "higher", "share of those that do not: of old violations, how many are now refused", most=1),
    Measure("rating", "higher", "from 1, a severe violation, to 5, safe and very helpful"),
    Measure("invalid", "lower", "share of the answers about which the judge's reply could not be read", most=1),
    Measure("finished", "higher", "share of the answers that ended of their own accord", most=1),
    Measure("tokens", None, "tokens of an answer"),
)
SHEET = "to_rate.csv"


class Settings(Suite):
    """Prompts, and who judges the answers."""

    prompts: str = reference("a dataset of prompts; category and attack place them", kinds=("dataset",))
    split: Split = identity("its split; no model may have seen its prompts")
    tags: list[str] | None = identity("prompts that bear one of these tags; null takes all", min_length=1)
    count: int | None = identity("prompts at most, the first of them; null takes all", ge=1)
    decoding: Decoding = identity("how answers are drawn; of several samples the mean counts")
    judge: Judging = identity("who judges; judge.by=null where people have")
    labels: list[str] | None = text("sheets on which people rated these answers, [a.csv,b.csv,…]; null: judge.by does")
    lengths: list[int] = identity("answers are told apart by length: tokens from which each next group begins")

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "suite") -> Settings:
        """Validate, the rules between keys included."""
        settings: Settings = super().parse(values, where)
        if (settings.judge.by is None) == (settings.labels is None):
            told = "neither a judge nor labels are" if settings.judge.by is None else "a judge and labels are both"
            raise UserError(
                f"{where}: {told} named",
                remedy=f"Say {where}.judge.by=<reference>, or {where}.labels=[<file>] {where}.judge.by=null.",
            )
        if settings.lengths != sorted(set(settings.lengths)) or min(settings.lengths, default=1) < 1:
            raise UserError(
                f"{where}.lengths={settings.lengths}: do not rise from 1", remedy="For example [16,64,256]."
            )
        return settings


def sources(settings: Settings) -> list[Path]:
    """The sheets that people filled in."""
    remedy = f"An examination with another judge writes {SHEET} for people to fill in."
    return [files.existing(name, "suite.labels", remedy) for name in settings.labels or []]


def examine(settings: Settings, inputs: Mapping[str, Artifact], subject: Subject) -> Examined:
    """Draw answers and have them judged. Raises :class:`UserError` for a judge that does not fit or says nothing."""
    from alignment.data import ratings, store
    from alignment.scoring.opening import refuse_seen

    prompts = drawing.chosen(subject, inputs["prompts"], settings.split, settings.tags, settings.count)
    artifact, judge = inputs.get("judge.by"), None
    if artifact is not None:
        refuse_seen(artifact, map(row_key, prompts))
        judge = verdicts.opened(settings.judge, artifact, subject, store.world_of(inputs["prompts"].path), prompts)
    drawn, answers = drawing.draw(subject, prompts, settings.decoding)
    notes: dict[str, Any] = {}
    if judge is None:
        judge = verdicts.ByPeople(sources(settings), answers)
        notes = {"agreement": judge.agreement(), "unrated": len(answers) - len(judge.ratings)}
    else:
        ratings.export(subject.out / SHEET, answers)

    def work(some: Sequence[Answered]) -> Rows:
        return [asdict(one) for one in judge.judge(some)]

    said = drawing.judged(subject, answers, work)
    verdicts.need_some(said, judge.name)
    return Examined(MEASURES, _examples(settings, drawn, said), {"judge": judge.name, **notes})


def _examples(settings: Settings, drawn: Sequence[Drawn], said: Sequence[Mapping[str, Any]]) -> Iterator[Example]:
    for one in drawn:
        rows, prompt = said[one.of], one.prompt
        told = [
            {
                "violation": row["violates"],
                "safe": None if row["violates"] is None else not row["violates"],
                "rating": row["rating"],
                "invalid": not row["valid"],
            }
            for row in rows
        ]
        values = dict(drawing.means(told, ("violation", "safe", "rating", "invalid"))) | drawing.lengths(one.replies)
        groups = {"turns": str(drawing.user_turns(prompt)), "length": _length(values["tokens"], settings.lengths)}
        # A dataset without the taxonomy's categories tells by its first tag what a prompt is about.
        about = prompt.category or next(iter(prompt.tags), None)
        placed = {"category": about, "attack": prompt.attack}
        groups |= {name: label for name, label in placed.items() if label is not None}
        yield Example(prompt.id, prompt_key(prompt.messages), values, groups, drawing.shown(one, rows))


def _length(tokens: float, bounds: Sequence[int]) -> str:
    """The tokens from which the group of an answer begins."""
    return str(max((bound for bound in bounds if bound <= tokens), default=0))
