"""Have a judge, or people, say which of two answers is better: comparisons with grades and safety labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignment import console, files, parts
from alignment.artifacts import Artifact, Outcome
from alignment.data.grades import Bounds
from alignment.data.rows import Split
from alignment.errors import UserError
from alignment.sampling.endpoint import EndpointSettings
from alignment.scoring.opening import ClassifierReading, check_aspect, speaks
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, reference, text
from alignment.training.engine import EngineSettings

if TYPE_CHECKING:
    from alignment.data.pairs import Pair
    from alignment.scoring.pairwise import Judgement, PairJudge, Preference

    Judged = Iterator[tuple[Pair, Judgement | None]]

ALGORITHM_VERSION = 2
PAIRS_A_PART = 64
"""Small, because an LLM judge tells of its progress only part by part."""
ORIGINS = "origins.parquet"
NOT_LABELLED = "not labelled"


class HeldOut(StrictSettings):
    """Which comparisons no model is ever trained on."""

    share: float = identity(
        "of the prompts, chosen by a hash of the prompt alone; the same share in every round keeps the same prompts",
        ge=0,
        lt=1,
    )
    at_most: int = identity("comparisons in the split test; what is held out beyond goes to valid", ge=0)


class Settings(StrictSettings):
    """``stage=label``. Either ``judge`` is named or ``annotations``."""

    pairs: str = reference("the pairs of answers: an artifact of stage=pairs", kinds=("answers",))
    judge: str | None = reference(
        "who judges: gold:<aspect>, raters:<aspect>, a reward model (remote:<host>:<port> where one is served) or "
        "classifier, a policy or endpoint:<model> as an LLM judge; null where people have"
    )
    annotations: str | None = text("the file in which people have judged, from stage=annotate; null where a judge does")
    aspect: Literal["helpfulness", "safety", "overall"] = identity("what is compared")
    rubric: str | None = text("what an LLM judge is told; null takes the rubric of the aspect")
    classifier: ClassifierReading = identity("how a classifier is read")
    grades: Bounds = identity("gaps of a scorer's scores from which on a preference has a grade")
    ties: Literal["drop", "negligibly"] = identity("what becomes of pairs without a preference")
    safe_above: float | Literal["auto"] | None = identity(
        "probability above which an answer is safe; auto is 0.5, where the judge's probability means something by "
        "itself; null gives no safety labels"
    )
    held_out: HeldOut = identity("the comparisons that are kept for measuring, for ever")
    engine: EngineSettings = execution("where and how a judge runs")
    endpoint: EndpointSettings = execution("how a server is asked, where one judges")

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "settings") -> Settings:
        """Validate, the rules between keys included."""
        settings: Settings = super().parse(values, where)
        Bounds.parse(settings.grades.model_dump(), "grades")
        if (settings.judge is None) == (settings.annotations is None):
            named = (
                "neither a judge nor annotations are" if settings.judge is None else "a judge and annotations are both"
            )
            raise UserError(
                f"stage=label: {named} named", remedy="Name judge=<reference>, or annotations=<file> judge=null."
            )
        check_aspect(settings.judge, settings.aspect)
        return settings


def sources(settings: Settings) -> list[Path]:
    """The file of annotations."""
    if settings.annotations is None:
        return []
    return [files.existing(settings.annotations, "annotations", "`stage=annotate` writes one.")]


def run(settings: Settings, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """Write comparisons, the ledger of the pairs, who wrote what (origins.parquet), and the card."""
    from alignment.data import pairs, store
    from alignment.data.derive import Derivation

    source = inputs["pairs"].need("answers")
    judge = open_judge(settings, inputs, out)
    total = sum(store.card(source.path)["rows"].values())
    judge_all(judge, pairs.stream(source.path), total, out)

    sides = hold_out(_judged(source.path, out), settings)
    tally = Counter[str]()
    origins = store.Table(out / ORIGINS, _origin_schema())
    try:
        with Derivation(out, "comparisons", made_by="label", parents={"pairs": source}) as derivation:
            _write(_judged(source.path, out), sides, settings, judge.name, derivation, origins, tally)
            origins.finish()
            policies = store.card(source.path)["policies"]
            metrics = derivation.finish(policies=policies, judge=judge.name, aspect=settings.aspect)
    except BaseException:
        origins.discard()
        raise
    notes = {"judge": judge.name, "aspect": settings.aspect, "policies": policies}
    return Outcome("dataset", {**metrics, **shares(tally)}, "rows", notes=notes)


# ── judging ──────────────────────────────────────────────────────────────────────────────────────


def open_judge(settings: Settings, inputs: dict[str, Artifact], out: Path) -> PairJudge:
    """Whoever judges, in one form."""
    from alignment.data import annotations, pairs, store
    from alignment.scoring.opening import open_by_score, open_respondent
    from alignment.scoring.pairwise import ByOpinion, ByPeople
    from alignment.training.engine import resolve

    directory = inputs["pairs"].path
    if settings.annotations is not None:
        return ByPeople(annotations.read(files.typed(settings.annotations), pairs.stream(directory)))
    artifact, engine = inputs["judge"], resolve(settings.engine)
    if speaks(artifact):
        from alignment.scoring.llm_judge import LlmJudge

        journal = out / parts.FOLDER / "journal.jsonl"
        respondent = open_respondent(artifact, engine, settings.endpoint, journal, at="judge")
        return ByOpinion(respondent.name, LlmJudge(respondent, settings.rubric, settings.aspect))
    return open_by_score(
        artifact,
        engine,
        store.world_of(directory),
        settings.classifier,
        settings.grades,
        aspect=settings.aspect,
        safe_above=settings.safe_above,
    )


def judge_all(judge: PairJudge, pairs: Iterator[Pair], total: int, out: Path) -> None:
    """Have every pair judged, part by part; what an earlier start has finished is not asked again."""
    with console.progress(f"label by {judge.name}", total, "pairs") as progress:

        def on_done(count: int, before: bool) -> None:
            progress.begin_at(progress.done + count) if before else progress.advance(count)

        for _ in parts.in_parts(out, "judged", pairs, PAIRS_A_PART, lambda some: _judge_part(judge, some), on_done):
            pass


def _judge_part(judge: PairJudge, some: Sequence[Pair]) -> parts.Rows:
    """A judgement of each pair, or null for one that has nothing to judge or that nobody was asked about."""
    asked = [pair for pair in some if not pair.why]
    judgements = judge.compare(
        [pair.prompt for pair in asked],
        [pair.answer_a for pair in asked],
        [pair.answer_b for pair in asked],
        [pair.id for pair in asked],
    )
    found = iter(judgements)
    said = [None if pair.why else next(found) for pair in some]
    return [{"judgement": None if one is None else asdict(one)} for one in said]


def _judged(directory: Path, out: Path) -> Judged:
    """Every pair beside its judgement, read from what was judged before."""
    from alignment.data import pairs
    from alignment.scoring.pairwise import Judgement

    def nothing(some: Sequence[Pair]) -> parts.Rows:
        raise AssertionError("every part was judged before")

    rows = parts.in_parts(out, "judged", pairs.stream(directory), PAIRS_A_PART, nothing)
    for pair, row in zip(pairs.stream(directory), rows, strict=True):
        said = row["judgement"]
        yield pair, None if said is None else Judgement(**said)


# ── what becomes of a pair ───────────────────────────────────────────────────────────────────────


def decide(pair: Pair, judgement: Judgement | None, settings: Settings) -> Preference | str:
    """The preference, or why there is none."""
    from alignment.scoring import pairwise

    if pair.why:
        return pair.why
    if judgement is None:
        return NOT_LABELLED
    return pairwise.decide(judgement, pair.id, ties=settings.ties, safety=settings.aspect == "safety")


def hold_out(judged: Judged, settings: Settings) -> dict[str, Split]:
    """The sides of the prompts that are held out, by key.

    A prompt is held out where the hash of its key is below the share, whatever the round, so that no later
    round trains on it. Those with the lowest hashes are ``test``, up to ``at_most`` comparisons; the rest is
    ``valid``.
    """
    from alignment.chat.types import prompt_key
    from alignment.data.draw import uniform

    counts = Counter[str]()
    for pair, judgement in judged:
        key = prompt_key(pair.prompt)
        if uniform("held out", key) < settings.held_out.share and not isinstance(
            decide(pair, judgement, settings), str
        ):
            counts[key] += 1
    sides: dict[str, Split] = {}
    total = 0
    for key in sorted(counts, key=lambda key: uniform("held out", key)):
        total += counts[key]
        sides[key] = "test" if total <= settings.held_out.at_most else "valid"
    return sides


def _write(
    judged: Judged,
    sides: Mapping[str, Split],
    settings: Settings,
    judge: str,
    derivation: Any,
    origins: Any,
    tally: Counter[str],
) -> None:
    from alignment.chat.types import prompt_key
    from alignment.data.derive import Place
    from alignment.data.ledger import Verdict

    numbers = Counter[Split]()
    for pair, judgement in judged:
        numbers[pair.split] += 1
        place = Place("pairs", pair.split, numbers[pair.split], pair.id)
        outcome = decide(pair, judgement, settings)
        if isinstance(outcome, str):
            fate: Literal["dropped", "not_drawn"] = "not_drawn" if outcome == NOT_LABELLED else "dropped"
            derivation.record(place, [Verdict(fate, pair.id, by="pairs" if pair.why else judge, reason=outcome)])
            continue
        assert judgement is not None
        row = comparison(pair, judgement, outcome, settings.aspect)
        split = pair.split if pair.split == "test" else sides.get(prompt_key(pair.prompt), pair.split)
        derivation.record(place, [Verdict("kept", row.id, row, split=split, copies=1)])
        origin = origin_of(pair, judgement, outcome, judge)
        origins.append({**origin, "split": split})
        _count(tally, row, origin)


def comparison(pair: Pair, judgement: Judgement, preference: Preference, aspect: str) -> Any:
    """The row of a pair."""
    from alignment.chat.types import Comparison

    answers = (pair.answer_a, pair.answer_b)
    safe = (judgement.first_safe, judgement.second_safe)
    chosen, other = (0, 1) if preference.first else (1, 0)
    return Comparison(
        prompt=pair.prompt,
        chosen=answers[chosen],
        rejected=answers[other],
        grade=preference.grade,
        source=f"label:{aspect}",
        id=pair.id,
        chosen_safe=safe[chosen],
        rejected_safe=safe[other],
    )


# ── who wrote what ───────────────────────────────────────────────────────────────────────────────


def _origin_schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [
            ("id", pa.string()),
            ("split", pa.string()),
            ("chosen_by", pa.string()),
            ("rejected_by", pa.string()),
            ("chosen_temperature", pa.float64()),
            ("rejected_temperature", pa.float64()),
            ("chosen_score", pa.float64()),
            ("rejected_score", pa.float64()),
            ("judge", pa.string()),
            ("agreement", pa.float64()),
            ("reason", pa.string()),
        ]
    )


def origin_of(pair: Pair, judgement: Judgement, preference: Preference, judge: str) -> dict[str, Any]:
    """Which policies wrote a comparison, and what its judge said."""
    chosen, other = (0, 1) if preference.first else (1, 0)
    models, temperatures = (pair.model_a, pair.model_b), (pair.temperature_a, pair.temperature_b)
    scores = (judgement.first_score, judgement.second_score)
    return {
        "id": pair.id,
        "chosen_by": models[chosen],
        "rejected_by": models[other],
        "chosen_temperature": temperatures[chosen],
        "rejected_temperature": temperatures[other],
        "chosen_score": scores[chosen],
        "rejected_score": scores[other],
        "judge": judge,
        "agreement": judgement.agreement,
        "reason": judgement.reason,
    }


def _count(tally: Counter[str], row: Any, origin: Mapping[str, Any]) -> None:
    tally["rows"] += 1
    tally[f"grade/{row.grade or 'none'}"] += 1
    tally[f"won/{origin['chosen_by']}"] += 1
    tally[f"won/{origin['rejected_by']}"] += 0
    if None not in (row.chosen_safe, row.rejected_safe):
        kinds = {
            (True, False): "preferred_only",
            (True, True): "both",
            (False, False): "neither",
            (False, True): "other_only",
        }
        tally["safety"] += 1
        tally[f"safe/{kinds[row.chosen_safe, row.rejected_safe]}"] += 1


def shares(tally: Counter[str]) -> dict[str, float]:
    """The tally as shares: of the rows, and for ``safe/…`` of those with both safety labels (Llama 2: 18, 47, 35 %)."""
    return {
        name: count / tally["safety" if name.startswith("safe/") else "rows"]
        for name, count in tally.items()
        if "/" in name
    }
