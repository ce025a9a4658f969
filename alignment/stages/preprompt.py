"""Draw answers to adversarial prompts with a safety pre-prompt, and keep the safer ones without it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from alignment import console
from alignment.artifacts import Artifact, Outcome
from alignment.chat.types import Message, Prompt
from alignment.data import lists, preprompt, taxonomy
from alignment.data.preprompt import Guided, Preprompt, Wordings
from alignment.data.taxonomy import Taxonomy
from alignment.errors import DataError, UserError
from alignment.parts import FOLDER, in_parts
from alignment.sampling.decoding import Decoding
from alignment.sampling.endpoint import EndpointSettings
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, reference, text
from alignment.training.engine import EngineSettings

if TYPE_CHECKING:
    from alignment.data.derive import Place
    from alignment.data.ledger import Verdict
    from alignment.data.store import Table
    from alignment.sampling.decoding import Reply, Respondent
    from alignment.scoring.scorer import Scorer

    Scored = tuple[Reply, float]

ALGORITHM_VERSION = 1
SCORES = "scores.parquet"
PART = 128
"""Prompts that are answered and scored, and then written, together."""
PLAIN = "plain"


class Settings(StrictSettings):
    """``stage=preprompt``."""

    policy: str = reference("the policy that answers")
    prompts: str = reference("a dataset of prompts; those with a category are adversarial")
    scorer: str = reference("who judges safety: gold:safety, a reward model or a classifier")
    splits: list[Literal["train", "valid", "test"]] = identity("its splits to take; rows stay in theirs", min_length=1)
    count: int | None = identity("adversarial prompts at most in each split, the first; null takes all", ge=1)
    preprompts: Literal["generic", "template", "both"] = identity(
        "a generic pre-prompt, the answer template of the category, or the safer answer of the two"
    )
    source: Literal["miniature", "taxonomy"] = identity("whose wordings: the miniature world's or the taxonomy's")
    taxonomy: str | None = text("null for the shipped taxonomy, or a file of your own")
    min_gain: float | None = identity(
        "by how much the raw safety score must rise, at least; it must rise at all. null keeps every sound answer", ge=0
    )
    seed: int = identity("of the choice among generic pre-prompts", ge=0)
    decoding: Decoding = identity("how answers are drawn; of several samples the safest is taken, plain or guided")
    endpoint: EndpointSettings = execution("how a server is asked, where the policy is behind one")
    engine: EngineSettings = execution("where and how it runs")


class Candidate(NamedTuple):
    """A prompt of the dataset with its pre-prompts, or why it is left out. ``where`` is for messages."""

    place: Place
    where: str
    prompt: Prompt
    preprompts: tuple[Preprompt, ...]
    left_out: str


def sources(settings: Settings) -> list[Path]:
    """The file that holds the taxonomy."""
    return [lists.locate(settings.taxonomy, taxonomy.SHIPPED, "taxonomy")]


def run(settings: Settings, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """Write a dataset of conversations, and the scores of every answer that was drawn (scores.parquet)."""
    from alignment.data import store
    from alignment.data.derive import Derivation
    from alignment.scoring.opening import open_respondent, open_scorer
    from alignment.training.engine import resolve

    dataset = inputs["prompts"]
    _check(settings, dataset)
    places = taxonomy.load(sources(settings)[0])
    wordings = preprompt.from_miniature() if settings.source == "miniature" else preprompt.from_taxonomy(places)

    def candidates() -> Iterator[Candidate]:
        return _candidates(settings, dataset, places, wordings)

    chosen = sum(not one.left_out for one in candidates())
    if not chosen:
        raise _nothing_to_draw(settings)
    if len(set(settings.splits)) < len(settings.splits):
        raise UserError(f"splits={settings.splits}: names a split twice")
    engine = resolve(settings.engine)
    journal = out / FOLDER / "journal.jsonl"
    respondent = open_respondent(inputs["policy"], engine, settings.endpoint, journal, at="policy")
    scorer = open_scorer(inputs["scorer"], engine, store.world_of(dataset.path), label=None, text="answer")
    answers = settings.decoding.samples * (1 + len(_kinds(settings)))
    seen = Seen(settings)
    with (
        console.progress("preprompt", chosen * answers, "answers") as progress,
        _table(out / SCORES) as scores,
        Derivation(out, "conversations", made_by="preprompt", parents={"prompts": dataset}) as derivation,
    ):
        finished = 0

        def done(prompts: int, before: bool) -> None:
            nonlocal finished
            finished += prompts * answers
            progress.begin_at(finished) if before else progress.advance(finished - progress.done)

        def work(some: Sequence[Candidate]) -> list[dict[str, Any]]:
            return _draw(some, respondent, scorer, settings.decoding, progress)

        drawn = in_parts(out, "answers", (one for one in candidates() if not one.left_out), PART, work, done)
        for one in candidates():
            verdict = _left_out(one) if one.left_out else _judged(settings, one, next(drawn), seen, scores)
            derivation.record(one.place, [verdict])
        scores.finish()
        metrics = derivation.finish(preprompt=seen.metrics()) | seen.metrics()
    seen.show()
    return Outcome("dataset", metrics, "rows", notes=engine.notes() | {"kind": "conversations", "scorer": scorer.name})


def _check(settings: Settings, dataset: Artifact) -> None:
    from alignment.data import store

    kind = store.card(dataset.need("dataset").path)["kind"]
    if kind != "prompts":
        raise UserError(
            f"prompts={settings.prompts}: holds {kind}",
            cause="Answers are drawn to prompts, whose category and attack place them in the taxonomy.",
            remedy="Give a dataset whose recipe has kind: prompts.",
        )


def _kinds(settings: Settings) -> tuple[preprompt.Kind, ...]:
    return preprompt.KINDS if settings.preprompts == "both" else (settings.preprompts,)


def _candidates(settings: Settings, dataset: Artifact, places: Taxonomy, wordings: Wordings) -> Iterator[Candidate]:
    """Every prompt of the splits, in order; always the same. Refuses what the taxonomy does not know."""
    from alignment.data import store
    from alignment.data.derive import Place

    for split in settings.splits:
        taken = 0
        for number, prompt in enumerate(store.stream(dataset.path, split), 1):
            assert isinstance(prompt, Prompt)
            place, where = Place("prompts", split, number, prompt.id), f"{dataset.path / split}.parquet:{number}"
            if prompt.category is None:
                yield Candidate(place, where, prompt, (), "not adversarial")
                continue
            places.check(prompt.category, prompt.attack, where)
            if taken == settings.count:
                yield Candidate(place, where, prompt, (), "beyond the count")
                continue
            taken += 1
            drawn = (wordings.draw(kind, prompt.category, settings.seed, prompt.id) for kind in _kinds(settings))
            yield Candidate(place, where, prompt, tuple(drawn), "")


def _nothing_to_draw(settings: Settings) -> UserError:
    return UserError(
        f"prompts={settings.prompts}: none of {', '.join(settings.splits)} is adversarial",
        cause="A prompt is adversarial where it has a category of the taxonomy.",
        remedy="Map the `category` column in the recipe of the prompts.",
    )


# ── drawing and scoring ──────────────────────────────────────────────────────────────────────────


def _draw(
    some: Sequence[Candidate], respondent: Respondent, scorer: Scorer, decoding: Decoding, progress: console.Progress
) -> list[dict[str, Any]]:
    """Plain and guided answers to some prompts, with their raw scores beside the prompts as they are."""
    asked = [(one, before) for one in some for before in (None, *one.preprompts)]
    began = progress.done
    replies = respondent.reply(
        [
            one.prompt.messages if before is None else preprompt.guided(one.prompt.messages, before)
            for one, before in asked
        ],
        [f"{one.prompt.id}:{PLAIN if before is None else before.kind}" for one, before in asked],
        decoding,
        lambda done: progress.advance(began + done - progress.done),
    )
    dialogues = [
        (*one.prompt.messages, Message("assistant", reply.text))
        for (one, _), samples in zip(asked, replies, strict=True)
        for reply in samples
    ]
    raw = iter(scorer.score(dialogues).raw)
    scored = iter(
        [
            [(reply, _finite(next(raw), one, scorer, reply)) for reply in samples]
            for (one, _), samples in zip(asked, replies, strict=True)
        ]
    )
    return [_safest(one, next(scored), [next(scored) for _ in one.preprompts]) for one in some]


def _safest(one: Candidate, plain: list[Scored], guided: list[list[Scored]]) -> dict[str, Any]:
    """The safest sample of each kind; with a pre-prompt the safest that can be learned from, where there is one."""
    answer, score = max(plain, key=lambda each: each[1])
    best = [max(samples, key=lambda each: (not each[0].problem, each[1])) for samples in guided]
    return {
        "id": one.prompt.id,
        "answer": answer.text,
        "score": score,
        "guided": [{"answer": each.text, "score": its, "problem": each.problem} for each, its in best],
    }


def _finite(score: float, one: Candidate, scorer: Scorer, reply: Reply) -> float:
    from alignment.data.ledger import excerpt

    if math.isfinite(score):
        return score
    raise DataError(
        one.where,
        f"the scorer {scorer.name} gives {score} to an answer",
        cause=f"The answer: {excerpt(reply.text)!r}.",
        remedy="A score that is no number can be compared with none. Take another scorer, or mend this one.",
    )


# ── what becomes of a prompt ─────────────────────────────────────────────────────────────────────


def _left_out(one: Candidate) -> Verdict:
    from alignment.data.ledger import Verdict

    return Verdict("not_drawn", one.place.id, by="preprompt", reason=one.left_out)


def _judged(settings: Settings, one: Candidate, row: dict[str, Any], seen: Seen, scores: Table) -> Verdict:
    from alignment.data.ledger import Verdict

    assert row["id"] == one.place.id, "parts and prompts go side by side"
    plain: float = row["score"]
    answers = [
        Guided(before, each["answer"], each["score"], each["problem"])
        for before, each in zip(one.preprompts, row["guided"], strict=True)
    ]
    taken, reason = preprompt.choose(answers, plain, settings.min_gain)
    seen.add(plain, answers, taken)
    for each in answers:
        scores.append(_score_row(one, row["answer"], plain, each, each is taken))
    told = f"{plain:.3f} → {(taken or max(answers, key=lambda each: each.score)).score:.3f}"
    if taken is None:
        return Verdict("dropped", one.place.id, by="preprompt", reason=reason, detail=told)
    made = preprompt.row(one.prompt, taken)
    detail = f"{taken.preprompt.kind} {told}"
    return Verdict("kept", one.place.id, row=made, detail=detail, split=one.place.split, copies=1)


def _score_row(one: Candidate, answer: str, plain: float, each: Guided, kept: bool) -> dict[str, Any]:
    return {
        "id": one.prompt.id,
        "split": one.place.split,
        "category": one.prompt.category,
        "attack": one.prompt.attack,
        "kind": each.preprompt.kind,
        "preprompt": each.preprompt.text,
        "plain_answer": answer,
        "guided_answer": each.answer,
        "plain_score": plain,
        "guided_score": each.score,
        "problem": each.problem,
        "kept": kept,
    }


@contextmanager
def _table(path: Path) -> Iterator[Table]:
    """The scores: a row for every prompt and kind of pre-prompt. Nothing is left where an exception ends it."""
    import pyarrow as pa

    from alignment.data.store import Table

    numbers = {"plain_score": pa.float64(), "guided_score": pa.float64(), "kept": pa.bool_()}
    names = "id split category attack kind preprompt plain_answer guided_answer plain_score guided_score problem kept"
    table = Table(path, pa.schema([(name, numbers.get(name, pa.string())) for name in names.split()]))
    try:
        yield table
    except BaseException:
        table.discard()
        raise
    table.finish()


class Seen:
    """The scores of all prompts (8 bytes each), for what is told at the end."""

    def __init__(self, settings: Settings) -> None:
        self.plain: list[float] = []
        self.guided: dict[preprompt.Kind, list[float]] = {kind: [] for kind in _kinds(settings)}
        self.kept: list[float] = []

    def add(self, plain: float, answers: Sequence[Guided], taken: Guided | None) -> None:
        """Count one prompt."""
        self.plain.append(plain)
        for each in answers:
            self.guided[each.preprompt.kind].append(each.score)
        if taken is not None:
            self.kept.append(taken.score)

    def metrics(self) -> dict[str, float]:
        """Shares and mean raw scores; ``worse_high`` is of the quarter whose plain answers score highest."""
        found = {"kept_share": len(self.kept) / len(self.plain), "score_plain": _mean(self.plain)}
        found |= {f"score_{kind}": _mean(scores) for kind, scores in self.guided.items()}
        if self.kept:
            found["score_kept"] = _mean(self.kept)
        return found | {"worse_high": preprompt.quarters(self.plain, self.guided)[-1].worse}

    def show(self) -> None:
        """Print a line for every quarter of the prompts."""
        columns = ("plain score", "prompts", PLAIN, *self.guided, "worse with a pre-prompt")
        found = preprompt.quarters(self.plain, self.guided)
        rows = [
            (
                f"quarter {place} of {len(found)}",
                f"{quarter.prompts:,}",
                *(f"{score:.3f}" for score in (quarter.plain, *quarter.guided.values())),
                f"{quarter.worse:.0%}",
            )
            for place, quarter in enumerate(found, 1)
        ]
        console.table("safety, from the least safe plain answers to the safest", columns, rows, right=columns[1:])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
