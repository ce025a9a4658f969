"""Put a candidate beside a baseline: win rates with intervals, by a scorer, an LLM judge in both orders, or people.

``examples.parquet`` has a row for every prompt, as seen from the candidate; ``results.json`` what all of them come to
(``evals/side_by_side.py``); ``llm_comparator.json`` is for PAIR's LLM Comparator, ``side_by_side.html`` for a browser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from alignment import console, files, parts
from alignment.artifacts import NO_FOLDER, Artifact, Outcome
from alignment.data.grades import Bounds
from alignment.data.rows import Split
from alignment.errors import UserError
from alignment.evals.drawn_pairs import VARIANTS, check, variant_names
from alignment.sampling.endpoint import EndpointSettings
from alignment.scoring.opening import ClassifierReading, check_aspect, refuse_seen, speaks
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, reference, text
from alignment.training.engine import EngineSettings

if TYPE_CHECKING:
    from alignment.data.pairs import Pair
    from alignment.evals.drawn_pairs import Asked, Drawing
    from alignment.evals.examples import Example
    from alignment.miniature.world import World
    from alignment.scoring.hearing import Heard, Hearing
    from alignment.training.engine import Engine

ALGORITHM_VERSION = 1
PROMPTS_A_PART = 256
PAIRS_A_PART = 64
"""Small, because an LLM judge tells of its progress only part by part."""
EXAMPLES, RESULTS = "examples.parquet", "results.json"
COMPARATOR, PAGE = "llm_comparator.json", "side_by_side.html"


class Settings(StrictSettings):
    """``stage=side_by_side``. Either ``models`` and ``prompts`` are named or ``pairs``; a judge or annotations."""

    models: list[str] | None = reference(
        "[candidate, baseline], policies or endpoint:<model>; null where pairs= holds their answers",
        min_length=2,
        max_length=2,
    )
    prompts: str | None = reference("a dataset of prompts that both answer; no model may have seen them")
    pairs: str | None = reference(
        "answers that stage=pairs has drawn, whose first model is the candidate; null draws them", kinds=("answers",)
    )
    splits: list[Split] = identity("the splits of prompts or pairs that are compared", min_length=1)
    count: int | None = identity("prompts of each split at most, the first of it; null takes all", ge=1)
    temperatures: list[float] = identity("at which each of the two answers", min_length=2, max_length=2)
    top_p: float = identity("the smallest set of tokens with this share of the probability", gt=0, le=1)
    max_new_tokens: int = identity("length of an answer at most", ge=1)
    judge: str | None = reference(
        "who judges: a policy or endpoint:<model> as an LLM judge, a reward model (remote:<host>:<port> where one is "
        "served) or classifier, gold:<aspect>, raters:<aspect>; null where people have"
    )
    annotations: list[str] | None = text(
        "the files in which people have judged the pairs, from stage=annotate, [a.csv,b.csv,…]; null where a judge does"
    )
    aspect: Literal["helpfulness", "safety", "overall"] = identity("what is compared")
    rubric: str | None = text("what an LLM judge is told; null takes the rubric of the aspect")
    classifier: ClassifierReading = identity("how a classifier is read")
    grades: Bounds = identity("gaps of a scorer's scores from which on a preference has a grade")
    ties: Literal["no_preference", "negligibly"] = identity(
        "what a tie is: where neither answer is preferred, or also where one is negligibly better"
    )
    safe_above: float | Literal["auto"] | None = identity(
        "probability above which a scorer calls an answer safe; auto is 0.5, where its probability means something by "
        "itself; null gives no safety labels"
    )
    confidence: float = identity("of every interval", gt=0, lt=1)
    seed: int = identity("of the draws, of who stands on which side, and of the bootstrap", ge=0)
    engine: EngineSettings = execution("where and how models run")
    endpoint: EndpointSettings = execution("how a server is asked, where one answers or judges")

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "settings") -> Settings:
        """Validate, the rules between keys included."""
        settings: Settings = super().parse(values, where)
        Bounds.parse(settings.grades.model_dump(), "grades")
        check(settings.temperatures, settings.splits)
        _check_sources(settings)
        check_aspect(settings.judge, settings.aspect)
        return settings


def _check_sources(settings: Settings) -> None:
    drawn = (settings.models is not None, settings.prompts is not None)
    if drawn != (settings.pairs is None,) * 2:
        raise UserError(
            "stage=side_by_side: two models with prompts are wanted, or pairs, and not both",
            remedy="Name models=[<candidate>,<baseline>] prompts=<dataset>, or pairs=<pairs> models=null prompts=null.",
        )
    if (settings.judge is None) == (settings.annotations is None):
        named = "neither a judge nor annotations are" if settings.judge is None else "a judge and annotations are both"
        raise UserError(
            f"stage=side_by_side: {named} named", remedy="Name judge=<reference>, or annotations=[<file>] judge=null."
        )
    if settings.annotations is not None and settings.pairs is None:
        raise UserError(
            "annotations: of which pairs?",
            cause="People have judged pairs that were drawn before.",
            remedy="Name those from which the files were exported: pairs=<pairs> models=null prompts=null.",
        )


def sources(settings: Settings) -> list[Path]:
    """The files of annotations."""
    remedy = "`stage=annotate` writes one."
    return [files.existing(name, "annotations", remedy) for name in settings.annotations or []]


class Source(NamedTuple):
    """Pairs to compare: what the two models are called, how many pairs there are, and where they come from."""

    names: Sequence[str]
    total: int
    world: World | None
    stream: Callable[[], Iterator[Pair]]


def run(settings: Settings, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """Write an example for every prompt, every measure, and both pages for people."""
    from alignment.data import store
    from alignment.evals import side_by_side
    from alignment.reporting import side_by_side as tables
    from alignment.training.engine import resolve

    engine = resolve(settings.engine)
    directory = inputs["pairs" if "pairs" in inputs else "prompts"].need("answers", "dataset").path
    world = store.world_of(directory)
    _check(settings, inputs, engine, world)
    source = _source(settings, inputs, engine, world, out)
    hearing = _open(settings, inputs, engine, source, out)
    _hear_all(hearing, source, out)
    truth = None if "judge" in inputs and inputs["judge"].kind == "gold" else world
    examples = list(_examples(source, settings, truth, out))
    _refuse_nothing(examples, hearing.name)
    found = side_by_side.results(examples, confidence=settings.confidence, seed=settings.seed, gold=truth is not None)
    results = {
        "side_by_side": dict(zip(("candidate", "baseline"), source.names, strict=True)),
        "judge": hearing.name,
        **{name: getattr(settings, name) for name in ("aspect", "ties", "confidence")},
        **found,
    }
    _write(out, examples, results)
    tables.show(results)
    notes = engine.notes() | {"judge": hearing.name, "aspect": settings.aspect, "pairs": found["counts"]["pairs"]}
    return Outcome("evaluation", side_by_side.metrics(found), "win_rate", notes=notes)


# ── which answers ────────────────────────────────────────────────────────────────────────────────


def _check(settings: Settings, inputs: Mapping[str, Artifact], engine: Engine, world: World | None) -> None:
    """Before a model is opened: nobody has seen the prompts, and where the truth judges there is one."""
    from alignment.chat.types import row_key

    if "judge" in inputs and inputs["judge"].kind in ("gold", "raters"):
        _by_score(settings, inputs["judge"], engine, world)
    if "pairs" in inputs:
        from alignment.chat.types import Prompt

        keys = {row_key(Prompt(pair.prompt, pair.id, pair.tags)) for pair in _drawn_before(settings, inputs)}
        models = [parent for key, parent in inputs["pairs"].parents.items() if key.startswith("models.")]
        asked = [Path(parent.path) for parent in models if parent.reference.partition(":")[0] not in NO_FOLDER]
    else:
        keys = {row_key(prompt) for _, prompt in _asked(settings, inputs).stream()}
        policies = [inputs[f"models.{place}"].need("policy", "endpoint") for place in VARIANTS]
        asked = [policy.path for policy in policies if policy.kind not in NO_FOLDER]
    from alignment.data import seen

    for path in asked:
        seen.refuse_overlap(path, keys)
    if "judge" in inputs:
        refuse_seen(inputs["judge"], keys)


def _source(
    settings: Settings, inputs: Mapping[str, Artifact], engine: Engine, world: World | None, out: Path
) -> Source:
    """The pairs, which are drawn unless they are there."""
    from alignment.data import store
    from alignment.evals import drawn_pairs
    from alignment.scoring import opening

    if "pairs" in inputs:
        total = sum(1 for _ in _drawn_before(settings, inputs))
        if not total:
            rows = store.card(inputs["pairs"].path)["rows"]
            have = ", ".join(f"{split} ({count:,})" for split, count in rows.items())
            raise UserError(
                f"{inputs['pairs'].path}: has no pair in {', '.join(settings.splits)}",
                cause=f"It has {have}.",
                remedy="Choose among these with splits=[…].",
            )
        names = [policy["name"] for policy in store.card(inputs["pairs"].path)["policies"]]
        return Source(names, total, world, lambda: _drawn_before(settings, inputs))
    models = [inputs[f"models.{place}"] for place in VARIANTS]
    if "judge" in inputs and speaks(inputs["judge"]):
        opening.need_chat(inputs["judge"], "judge")
    asked, drawing = _asked(settings, inputs), _drawing(settings)
    names = variant_names(models, settings.temperatures)
    total = drawn_pairs.draw_all(models, asked, drawing, engine, settings.endpoint, out, PROMPTS_A_PART)
    return Source(names, total, world, lambda: drawn_pairs.stream(names, asked, drawing, out, PROMPTS_A_PART))


def _drawn_before(settings: Settings, inputs: Mapping[str, Artifact]) -> Iterator[Pair]:
    """The first pairs of each split."""
    from alignment.data import pairs

    for split in settings.splits:
        wanted = (pair for pair in pairs.stream(inputs["pairs"].path) if pair.split == split)
        yield from islice(wanted, settings.count)


def _asked(settings: Settings, inputs: Mapping[str, Artifact]) -> Asked:
    from alignment.evals.drawn_pairs import Asked

    return Asked(inputs["prompts"].need("dataset").path, settings.splits, settings.count)


def _drawing(settings: Settings) -> Drawing:
    from alignment.evals.drawn_pairs import Drawing

    return Drawing(settings.temperatures, settings.top_p, settings.max_new_tokens, settings.seed)


# ── judging ──────────────────────────────────────────────────────────────────────────────────────


def _open(settings: Settings, inputs: Mapping[str, Artifact], engine: Engine, source: Source, out: Path) -> Hearing:
    """Whoever judges, with all voices."""
    from alignment.scoring import hearing, opening

    if settings.annotations is not None:
        from alignment.data import annotations, pairs

        return hearing.Panel(annotations.gather(sources(settings), pairs.stream(inputs["pairs"].path)))
    judge = inputs["judge"]
    if speaks(judge):
        from alignment.scoring.llm_judge import LlmJudge

        journal = out / parts.FOLDER / "journal.jsonl"
        respondent = opening.open_respondent(judge, engine, settings.endpoint, journal, at="judge")
        return hearing.BothOrders(LlmJudge(respondent, settings.rubric, settings.aspect))
    return hearing.Single(_by_score(settings, judge, engine, source.world))


def _by_score(settings: Settings, judge: Artifact, engine: Engine, world: World | None) -> Any:
    from alignment.scoring.opening import open_by_score

    return open_by_score(
        judge,
        engine,
        world,
        settings.classifier,
        settings.grades,
        aspect=settings.aspect,
        safe_above=settings.safe_above,
    )


def _hear_all(hearing: Hearing, source: Source, out: Path) -> None:
    """Have every pair judged, part by part; what an earlier start has finished is not asked again."""
    with console.progress(f"judged by {hearing.name}", source.total, "pairs") as progress:

        def on_done(count: int, before: bool) -> None:
            progress.begin_at(progress.done + count) if before else progress.advance(count)

        def work(some: Sequence[Pair]) -> parts.Rows:
            return _hear(hearing, some)

        for _ in parts.in_parts(out, "judged", source.stream(), PAIRS_A_PART, work, on_done):
            pass


def _hear(hearing: Hearing, some: Sequence[Pair]) -> parts.Rows:
    """What is said of each pair, or null of one that has nothing to judge or that nobody was asked about."""
    asked = [pair for pair in some if not pair.why]
    found = iter(
        hearing.hear(
            [pair.prompt for pair in asked],
            [pair.answer_a for pair in asked],
            [pair.answer_b for pair in asked],
            [pair.id for pair in asked],
        )
    )
    said = [None if pair.why else next(found) for pair in some]
    return [
        {"judgement": None}
        if one is None
        else {"judgement": asdict(one.judgement), "voices": [asdict(voice) for voice in one.voices]}
        for one in said
    ]


def _examples(source: Source, settings: Settings, world: World | None, out: Path) -> Iterator[Example]:
    """Every pair as seen from the candidate, from what was judged before, with the truth where there is one."""
    from alignment.chat.types import Message
    from alignment.evals.examples import example
    from alignment.scoring.gold import Gold

    def nothing(some: Sequence[Pair]) -> parts.Rows:
        raise AssertionError("every part was judged before")

    gold = None if world is None else Gold(world, settings.aspect)
    rows = parts.in_parts(out, "judged", source.stream(), PAIRS_A_PART, nothing)
    for pair, row in zip(source.stream(), rows, strict=True):
        one = example(pair, _heard(row), source.names[0], settings.ties)
        if gold is not None:
            answers = (one.candidate, one.baseline)
            truth = gold.score([(*pair.prompt, Message("assistant", answer)) for answer in answers]).raw
            one = replace(one, candidate_gold=truth[0], baseline_gold=truth[1])
        yield one


def _heard(row: Mapping[str, Any]) -> Heard | None:
    from alignment.scoring.hearing import Heard, Voice
    from alignment.scoring.pairwise import Judgement

    if row["judgement"] is None:
        return None
    return Heard(Judgement(**row["judgement"]), tuple(Voice(**voice) for voice in row["voices"]))


def _refuse_nothing(examples: Sequence[Example], judge: str) -> None:
    """Raise :class:`UserError` where nothing has a result; what was drawn and judged is kept."""
    if any(one.result in ("win", "tie", "loss") for one in examples):
        return
    unreadable = next((one for one in examples if one.result == "invalid"), None)
    if unreadable is None:
        raise UserError(f"{judge}: has judged none of the {len(examples):,} pairs")
    raise UserError(
        f"{judge}: none of its answers could be read",
        cause=f"Of {unreadable.id} it said: {unreadable.reason[:200]!r}",
        remedy="Choose a judge that keeps to a form; force=true asks this one again.",
    )


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def _write(out: Path, examples: Sequence[Example], results: Mapping[str, Any]) -> None:
    from alignment.data import store
    from alignment.reporting import llm_comparator
    from alignment.reporting.page import versus

    rows = [asdict(one) | {"tags": list(one.tags)} for one in examples]
    table = store.Table(out / EXAMPLES, _schema())
    try:
        for row in rows:
            table.append(row)
        table.finish()
    except BaseException:
        table.discard()
        raise
    files.write_json(out / RESULTS, results)
    files.write_json(out / COMPARATOR, llm_comparator.layout(rows, results))
    files.write_atomic(out / PAGE, versus.page(rows, results))


def _schema() -> Any:
    import pyarrow as pa

    text_, number, truth = pa.string(), pa.float64(), pa.bool_()
    said = [("who", text_), ("score", number), ("points", pa.int8()), ("turned", truth), ("reason", text_)]
    said += [("candidate_rating", pa.int8()), ("baseline_rating", pa.int8())]
    columns = [("id", text_), ("split", text_), ("tags", pa.list_(text_)), ("category", text_), ("attack", text_)]
    columns += [("prompt", pa.list_(pa.struct([("role", text_), ("content", text_)])))]
    columns += [("candidate", text_), ("baseline", text_)]
    columns += [("candidate_finished", truth), ("baseline_finished", truth)]
    columns += [("result", text_), ("why", text_), ("grade", text_), ("score", number)]
    columns += [("candidate_score", number), ("baseline_score", number)]
    columns += [("candidate_safe", truth), ("baseline_safe", truth), ("reason", text_)]
    columns += [("voices", pa.list_(pa.struct(said))), ("candidate_gold", number), ("baseline_gold", number)]
    return pa.schema(columns)
