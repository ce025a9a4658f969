"""Measure judges of answers on held-out comparisons: accuracy by grade, calibration, thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignment import console, files, parts
from alignment.artifacts import Artifact, Outcome
from alignment.errors import UserError
from alignment.sampling.endpoint import EndpointSettings
from alignment.scoring.opening import ClassifierReading, refuse_seen, speaks
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, reference, text
from alignment.training.engine import EngineSettings

if TYPE_CHECKING:
    from alignment.chat.types import Comparison
    from alignment.evals.judging import Judge
    from alignment.evals.measurement import Dataset, Measured
    from alignment.evals.preferences import Pairs, Said
    from alignment.miniature.world import World
    from alignment.reporting.judge_plots import Points
    from alignment.training.engine import Engine

ALGORITHM_VERSION = 1
RESULTS = "results.json"
PAIRS = "pairs.parquet"
PLOTS = "plots.html"
LEFT_OUT = "left_out.jsonl"
ENSEMBLE = "ensemble"
POINTS = 1_000
"""Pairs of a dataset that are drawn one by one."""


class Settings(StrictSettings):
    """``stage=measure``."""

    models: list[str] = reference(
        "the judges, [a,b,…]: reward models, classifiers, gold:<aspect>, a policy or endpoint:<model> as an LLM judge",
        min_length=1,
    )
    names: list[str] | None = text(
        "a name for each of them, [a,b,…]; those of one name are the seeds of one arm; null takes the steps' names"
    )
    comparisons: list[str] = reference("datasets of comparisons to measure them on, [a,b,…]", min_length=1)
    split: Literal["valid", "test"] = identity("the split of all of them; no judge may have seen its prompts")
    count: int = identity("pairs of each dataset at most, the first of the split", ge=1)
    too_long: Literal["refuse", "leave_out"] = identity(
        "what becomes of a pair that a reward model or policy cannot see whole; leave_out spares it all judges, and "
        f"{LEFT_OUT} lists it; only training shortens prompts"
    )
    max_left_out: float = identity("greatest share of a dataset's pairs that may be left out", ge=0, le=1)
    ensembles: list[list[int]] | None = identity(
        "positions in `models`, from 0; the mean of their raw scores is one more judge"
    )
    thresholds: list[float] | None = identity(
        "probabilities below which an answer counts as unsafe; null takes 0.5 and 0.15 where scores are absolute"
    )
    aspect: Literal["helpfulness", "safety", "overall"] = identity("what an LLM judge compares")
    rubric: str | None = text("what an LLM judge is told; null takes the rubric of the aspect")
    classifier: ClassifierReading = identity("how classifiers are read")
    confidence: float = identity("of every interval", gt=0, lt=1)
    seed: int = identity("of the bootstrap", ge=0)
    engine: EngineSettings = execution("where and how judges run")
    endpoint: EndpointSettings = execution("how a server is asked, where one judges")

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "settings") -> Settings:
        """Validate, the rules between keys included."""
        settings: Settings = super().parse(values, where)
        _check_names(settings)
        for members in settings.ensembles or []:
            if len(set(members)) < max(2, len(members)) or not set(members) <= set(range(len(settings.models))):
                raise UserError(
                    f"ensembles: {members} is no ensemble",
                    remedy=f"Name two or more different positions in models, 0 to {len(settings.models) - 1}.",
                )
        for limit in settings.thresholds or []:
            if not 0 < limit < 1:
                raise UserError(f"thresholds: {limit} is no probability between 0 and 1")
        if settings.thresholds == []:
            raise UserError("thresholds: there is none in the list", remedy="thresholds=null takes those of Llama 2.")
        return settings


def _check_names(settings: Settings) -> None:
    names = settings.names
    if names is None:
        return
    if len(names) != len(settings.models):
        raise UserError(f"names: {len(names)} names for {len(settings.models)} models", remedy="Give one for each.")
    for name in names:
        if not name.strip() or "#" in name or (name == ENSEMBLE and settings.ensembles):
            raise UserError(
                f"names: {name!r} cannot be the name of a judge",
                cause=f"# numbers the seeds of an arm, and {ENSEMBLE!r} is what ensembles are called.",
            )


def run(settings: Settings, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """Write every measure (results.json), what was said of every pair (pairs.parquet) and figures (plots.html)."""
    from alignment.evals import measurement
    from alignment.reporting import judges
    from alignment.training.engine import resolve

    engine = resolve(settings.engine)
    models = _models(settings, inputs)
    datasets = _datasets(settings, inputs, models, out)
    judged = _judged(settings, models, datasets, engine, out)
    results = {
        "confidence": settings.confidence,
        "split": settings.split,
        **measurement.results(judged, datasets, settings.thresholds),
    }
    files.write_json(out / RESULTS, results)
    _write_pairs(out / PAIRS, judged, datasets)
    _write_plots(out / PLOTS, results, judged, datasets)
    judges.show(results)
    headline = f"{judged[0].label}/{datasets[0].name}/accuracy"
    notes = engine.notes() | {"pairs": {dataset.name: len(dataset.rows) for dataset in datasets}}
    return Outcome("evaluation", measurement.metrics(results), headline, notes=notes)


# ── who and what ─────────────────────────────────────────────────────────────────────────────────


def _models(settings: Settings, inputs: Mapping[str, Artifact]) -> list[Artifact]:
    """The judges' artifacts. Raises :class:`UserError` for one named twice, or without scores in an ensemble."""
    models = [inputs[f"models.{place}"] for place in range(len(settings.models))]
    _refuse_twice("models", settings.models, models)
    for place in {place for members in settings.ensembles or [] for place in members}:
        if speaks(models[place]):
            raise UserError(
                f"ensembles: {settings.models[place]} gives no scores", cause="An ensemble is a mean of raw scores."
            )
    return models


def _refuse_twice(key: str, references: Sequence[str], artifacts: Sequence[Artifact]) -> None:
    """Two that are one would pass for two seeds, or for two datasets."""
    found: dict[str, str] = {}
    for name, artifact in zip(references, artifacts, strict=True):
        if artifact.fingerprint in found:
            first = found[artifact.fingerprint]
            raise UserError(f"{key}: {first} and {name} are the same", remedy="Name each of them once.")
        found[artifact.fingerprint] = name


def _arms(settings: Settings, models: Sequence[Artifact]) -> list[str]:
    """What the judges are called, without what tells the seeds of an arm apart; ensembles come last."""
    from alignment.evals.names import names_of

    return [*(settings.names or names_of(models)), *(ENSEMBLE for _ in settings.ensembles or [])]


def _datasets(
    settings: Settings, inputs: Mapping[str, Artifact], models: Sequence[Artifact], out: Path
) -> list[Dataset]:
    """The comparisons that all judges see whole; refuses a judge that has seen one of their prompts."""
    from alignment.data import store
    from alignment.evals import fitting, preferences
    from alignment.evals.arms import labels_of
    from alignment.evals.measurement import Dataset
    from alignment.evals.names import names_of

    sources = [inputs[f"comparisons.{place}"].need("dataset") for place in range(len(settings.comparisons))]
    _refuse_twice("comparisons", settings.comparisons, sources)
    readers = fitting.readers(models, labels_of(_arms(settings, models)), settings.rubric, settings.aspect)
    found: list[Dataset] = []
    lines = ""
    for name, source in zip(names_of(sources), sources, strict=True):
        comparisons = _comparisons(source, settings)
        pairs = preferences.Pairs.of(comparisons)
        for model in models:
            refuse_seen(model, pairs.prompts)
        left = fitting.unseen(name, comparisons, readers)
        lines += "".join(one.line() for some in left.values() for one in some)
        if lines and settings.too_long == "leave_out":
            files.write_atomic(out / LEFT_OUT, lines)
        fitting.check(left, len(comparisons), settings.too_long, settings.max_left_out)
        if left:
            console.say(f"  {name}: {len(left):,} pairs left out, which a judge cannot see whole", style="yellow")
            comparisons = [row for place, row in enumerate(comparisons) if place not in left]
            pairs = preferences.Pairs.of(comparisons)
        resamples = preferences.bootstrap(pairs, settings.confidence, settings.seed)
        found.append(Dataset(name, comparisons, pairs, resamples, store.world_of(source.path), len(left)))
    return found


def _comparisons(source: Artifact, settings: Settings) -> list[Comparison]:
    """The first pairs of the split."""
    from itertools import islice

    from alignment.chat.types import Comparison
    from alignment.data import store

    rows = list(islice(store.stream(source.path, settings.split), settings.count))
    comparisons = [row for row in rows if isinstance(row, Comparison)]
    if len(comparisons) < len(rows):
        raise UserError(
            f"{source.path} holds no comparisons", remedy="Give a dataset of stage=label, or of kind: comparisons."
        )
    if not comparisons:
        raise UserError(
            f"{source.path}: its split {settings.split!r} has no rows",
            remedy="Choose another split, or give this one a share in the recipe's `splits`.",
        )
    return comparisons


# ── judging ──────────────────────────────────────────────────────────────────────────────────────


def _judged(
    settings: Settings, models: Sequence[Artifact], datasets: Sequence[Dataset], engine: Engine, out: Path
) -> list[Measured]:
    """What every model says of every dataset, and then what the ensembles do."""
    from alignment.evals.arms import labels_of
    from alignment.evals.measurement import Measured

    ensembles = settings.ensembles or []
    arms = _arms(settings, models)
    labels = labels_of(arms)
    judged = [
        Measured(
            labels[place],
            arms[place],
            settings.models[place],
            _ask(settings, model, labels[place], datasets, engine, out, f"judged-{place}"),
        )
        for place, model in enumerate(models)
    ]
    return judged + [
        _ensemble(label, [judged[place] for place in members], datasets)
        for label, members in zip(labels[len(models) :], ensembles, strict=True)
    ]


def _ask(
    settings: Settings,
    model: Artifact,
    label: str,
    datasets: Sequence[Dataset],
    engine: Engine,
    out: Path,
    folder: str,
) -> dict[str, Said]:
    """What one model says, by dataset; it is opened once, but for gold, whose truth is that of the rows' world."""
    from alignment.evals import judging

    said = {}
    judge: Judge | None = None
    for place, dataset in enumerate(datasets):
        if judge is None or model.kind == "gold":
            judge = _open(settings, model, dataset.world, engine, out)
        with console.progress(f"{label} on {dataset.name}", len(dataset.rows), "pairs") as progress:

            def on_done(count: int, before: bool, progress: console.Progress = progress) -> None:
                progress.begin_at(progress.done + count) if before else progress.advance(count)

            said[dataset.name] = judging.ask(judge, dataset.rows, out, f"{folder}-{place}", on_done)
    return said


def _open(settings: Settings, model: Artifact, world: World | None, engine: Engine, out: Path) -> Judge:
    from alignment.evals.judging import ByOpinions, ByScores
    from alignment.scoring.opening import open_respondent, open_scorer

    if speaks(model):
        from alignment.scoring.llm_judge import LlmJudge

        journal = out / parts.FOLDER / "journal.jsonl"
        respondent = open_respondent(model, engine, settings.endpoint, journal, at="models")
        return ByOpinions(LlmJudge(respondent, settings.rubric, settings.aspect))
    reading = settings.classifier
    return ByScores(open_scorer(model, engine, world, label=reading.label, text=reading.text))


def _ensemble(label: str, members: Sequence[Measured], datasets: Sequence[Dataset]) -> Measured:
    from alignment.evals.measurement import Measured
    from alignment.evals.preferences import Said

    said = {dataset.name: Said.ensemble([member.said[dataset.name] for member in members]) for dataset in datasets}
    names = tuple(member.label for member in members)
    return Measured(label, ENSEMBLE, f"the mean of {', '.join(names)}", said, names)


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def _write_pairs(path: Path, judged: Sequence[Measured], datasets: Sequence[Dataset]) -> None:
    """One row for every judge, dataset and pair; null where a judge gives no score or an answer has no label."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    beside = path.with_name(path.name + files.TEMPORARY)
    tables = [_table(judge, dataset) for judge in judged for dataset in datasets]
    pq.write_table(pa.concat_tables(tables), beside, compression="zstd")
    beside.replace(path)


def _table(judge: Measured, dataset: Dataset) -> Any:
    import pyarrow as pa

    from alignment.evals.preferences import UNKNOWN

    pairs, said = dataset.pairs, judge.said[dataset.name]
    columns = {
        "judge": [judge.label] * len(pairs),
        "dataset": [dataset.name] * len(pairs),
        "id": list(pairs.ids),
        "prompt": list(pairs.prompts),
        "grade": pairs.grades,
        "source": pairs.sources,
        "turns": pairs.turns,
    }
    for place, side in enumerate(("chosen", "rejected")):
        columns[f"{side}_length"] = pairs.lengths_PA[:, place]
        columns[f"{side}_safe"] = [None if safe == UNKNOWN else bool(safe) for safe in pairs.safe_PA[:, place]]
        for name, values_PA in (("raw", said.raw_PA), ("probability", said.probability_PA)):
            column = [None] * len(pairs) if values_PA is None else values_PA[:, place]
            columns[f"{side}_{name}"] = pa.array(column, pa.float64())
    columns["disagreement"] = pa.array(
        [None] * len(pairs) if said.disagreement_P is None else said.disagreement_P, pa.float64()
    )
    columns["right"] = said.right_P
    return pa.table({name: _typed(name, column) for name, column in columns.items()})


def _typed(name: str, column: Any) -> Any:
    import pyarrow as pa

    return pa.array(column, pa.bool_()) if name.endswith("_safe") else column


def _write_plots(
    path: Path, results: Mapping[str, Any], judged: Sequence[Measured], datasets: Sequence[Dataset]
) -> None:
    from alignment.reporting import judge_plots

    points = {
        dataset.name: {
            judge.label: _points(dataset.pairs, judge.said[dataset.name])
            for judge in judged
            if judge.said[dataset.name].raw_PA is not None
        }
        for dataset in datasets
    }
    files.write_atomic(path, judge_plots.page(results, points))


def _points(pairs: Pairs, said: Said) -> Points:
    from alignment.evals.preferences import gaps
    from alignment.reporting.judge_plots import Points

    assert said.raw_PA is not None, "only judges with scores have gaps"
    longer, ahead = gaps(pairs.lengths_PA)[:POINTS].tolist(), gaps(said.raw_PA)[:POINTS].tolist()
    return Points(pairs.ids[:POINTS], longer, ahead)
