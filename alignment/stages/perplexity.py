"""Measure the loss of models on held-out rows: perplexity by arm and size, KL to a teacher, differences over seeds.

Models of one name are the seeds of one arm; pairs of arms are compared seed by seed on the same rows.
``results.json`` holds by dataset:

* ``datasets``: how many ``rows`` and ``tokens``;
* ``arms``: ``loss`` in nats a token, ``perplexity``, and with a teacher ``kl``, KL(teacher ‖ model) in nats a token;
* ``differences``, by ``a - b``: the loss of a less that of b, and the ``verdict``;
* ``shares``: of the gain of ``whole`` over ``base``, what ``part`` keeps;

and besides ``models`` (every model with the interval of chance among documents), ``parameters`` (by arm), ``lines``
(arms, the smallest first) and ``teacher``. What has an interval is ``estimate``, ``low``, ``high`` and ``seeds``;
``intervals`` says over what. ``rows.parquet`` has the NLL of every row under every model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignment import console, files, parts
from alignment.artifacts import Artifact, Outcome
from alignment.errors import UserError, nearest
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, reference, text
from alignment.training.engine import EngineSettings

if TYPE_CHECKING:
    from alignment.evals.held_out_rows import Common, Dataset
    from alignment.evals.perplexity import Asked, Losses, Measured, Teaching
    from alignment.training.engine import Engine
    from alignment.training.policies import Policy

ALGORITHM_VERSION = 1
RESULTS, ROWS, PLOTS = "results.json", "rows.parquet", "plots.html"
TEACHER = "teacher"


class Line(StrictSettings):
    """Arms that belong together in a figure: one way of training, at several sizes."""

    name: str = identity("what the line is called", min_length=1)
    arms: list[str] = identity("names among `names`", min_length=1)


class Settings(StrictSettings):
    """``stage=perplexity``."""

    models: list[str] = reference("the models to measure, [a,b,…]", kinds=("policy",), min_length=1)
    names: list[str] | None = text(
        "a name for each of them, [a,b,…]; those of one name are the seeds of one arm; null takes the steps' names"
    )
    teacher: str | None = reference(
        "a model whose perplexity is told too, and the KL divergence from it; null: none", kinds=("policy",)
    )
    data: list[str] = reference(
        "datasets to measure on, [a,b,…]: text, or conversations, whose answers are measured",
        kinds=("dataset",),
        min_length=1,
    )
    split: Literal["valid", "test"] = identity("the split of all of them; no model may have seen its prompts")
    count: int = identity("rows of each dataset at most, the first of the split", ge=1)
    block: int = identity("text: tokens per row at most; longer documents become several rows", ge=16)
    too_long: Literal["refuse", "leave_out"] = identity(
        "what becomes of a conversation longer than a model's context; *_left_out.jsonl lists what is left out"
    )
    lines: list[Line] | None = identity("arms that a figure joins, by size; null joins none")
    pairs: list[list[str]] = identity("arms to compare, [[a,b],…]: the loss of a less that of b, seed by seed")
    shares: list[list[str]] = identity(
        "gains to compare, [[part,whole,base],…]: what share of the gain of whole over base the arm part keeps"
    )
    confidence: float = identity("of every interval", gt=0, lt=1)
    seed: int = identity("of the bootstrap over documents, where an arm has one seed", ge=0)
    engine: EngineSettings = execution("where and how models run")

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "settings") -> Settings:
        """Validate, the rules between keys included."""
        settings: Settings = super().parse(values, where)
        names = settings.names
        if names is not None and len(names) != len(settings.models):
            raise UserError(f"names: {len(names)} names for {len(settings.models)} models", remedy="Give one for each.")
        for name in names or []:
            if not name.strip() or "#" in name or name == TEACHER:
                raise UserError(
                    f"names: {name!r} cannot be the name of an arm",
                    cause=f"# numbers the seeds of an arm, and {TEACHER!r} is what the teacher is called.",
                )
        for key, wanted in (("pairs", 2), ("shares", 3)):
            for some in getattr(settings, key):
                if len(set(some)) != wanted or len(some) != wanted:
                    raise UserError(f"{key}: {some} does not name {wanted} different arms")
        return settings


def run(settings: Settings, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """Write every measure (results.json), the loss of every row (rows.parquet) and figures (plots.html)."""
    from alignment.evals import perplexity
    from alignment.evals.names import names_of
    from alignment.reporting import perplexities, perplexity_plots
    from alignment.training.engine import resolve

    engine = resolve(settings.engine)
    models = _models(settings, inputs)
    arms = settings.names or names_of(models)
    asked = _asked(settings, arms)
    common = _common(settings, models, inputs.get("teacher"))
    datasets = _datasets(settings, inputs, models, common, out)
    measured, teacher = _measured(settings, models, arms, inputs.get("teacher"), datasets, engine, out)
    results = {
        "confidence": settings.confidence,
        "split": settings.split,
        "intervals": _over(arms),
        "lines": _lines(settings, measured),
        **perplexity.results(measured, teacher, {name: one.rows for name, one in datasets.items()}, asked),
    }
    files.write_json(out / RESULTS, results)
    _write_rows(out / ROWS, [*measured, *([teacher] if teacher else [])], datasets)
    files.write_atomic(out / PLOTS, perplexity_plots.page(results))
    perplexities.show(results)
    found = perplexity.metrics(results)
    notes = engine.notes() | {"rows": {name: len(one.rows.names) for name, one in datasets.items()}}
    return Outcome("evaluation", found, next(iter(found)), notes=notes)


# ── who and what ─────────────────────────────────────────────────────────────────────────────────


def _models(settings: Settings, inputs: Mapping[str, Artifact]) -> list[Artifact]:
    """The models' artifacts. Raises :class:`UserError` for one named twice: it would pass for two seeds."""
    models = [inputs[f"models.{place}"].need("policy") for place in range(len(settings.models))]
    found: dict[str, str] = {}
    for name, model in zip(settings.models, models, strict=True):
        if model.fingerprint in found:
            first = found[model.fingerprint]
            raise UserError(f"models: {first} and {name} are the same", remedy="Name each of them once.")
        found[model.fingerprint] = name
    return models


def _asked(settings: Settings, arms: Sequence[str]) -> Asked:
    """What is compared. Raises :class:`UserError` for an arm that is not there, and for seeds that have no pair."""
    from alignment.evals.perplexity import Asked, Share

    named = {"lines": [line.arms for line in settings.lines or []], "pairs": settings.pairs, "shares": settings.shares}
    for key, groups in named.items():
        for group in groups:
            for arm in group:
                if arm not in arms:
                    raise UserError(f"{key}: there is no arm {arm!r}", remedy=nearest(arm, [*dict.fromkeys(arms)]))
            counts = {arm: arms.count(arm) for arm in group}
            if key != "lines" and len({*counts.values()}) > 1:
                told = ", ".join(f"{arm} has {count}" for arm, count in counts.items())
                raise UserError(
                    f"{key}: {told} seeds",
                    cause="Arms are compared seed by seed.",
                    remedy="Name as many models of each.",
                )
    pairs = [(a, b) for a, b in settings.pairs]
    shares = [Share(*share) for share in settings.shares]
    return Asked(pairs, shares, settings.confidence, settings.seed)


def _over(arms: Sequence[str]) -> str:
    """What intervals are over."""
    counts = sorted({arms.count(arm) for arm in arms})
    if counts == [1]:
        return "bootstrap, over documents"
    several = " or ".join(str(count) for count in counts if count > 1)
    return f"Student's, over {several} seeds" + ("; bootstrap, over documents, of one seed" if counts[0] == 1 else "")


def _common(settings: Settings, models: Sequence[Artifact], teacher: Artifact | None) -> Common:
    from alignment.evals import held_out_rows

    everybody = dict(zip(settings.models, models, strict=True))
    if teacher is not None and settings.teacher is not None:
        everybody[settings.teacher] = teacher.need("policy")
    return held_out_rows.common(everybody, settings.block)


def _datasets(
    settings: Settings, inputs: Mapping[str, Artifact], models: Sequence[Artifact], common: Common, out: Path
) -> dict[str, Dataset]:
    """The first rows of every dataset; refuses a model that has seen one of their prompts."""
    from alignment.evals import held_out_rows
    from alignment.evals.names import names_of

    sources = [inputs[f"data.{place}"].need("dataset") for place in range(len(settings.data))]
    names = names_of(sources)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"data: {twice} is there twice", remedy="Name every dataset once.")
    return {
        name: held_out_rows.read(
            source.path,
            settings.split,
            common,
            models,
            count=settings.count,
            too_long=settings.too_long,
            left_out=out / name,
        )
        for name, source in zip(names, sources, strict=True)
    }


# ── measuring ────────────────────────────────────────────────────────────────────────────────────


def _measured(
    settings: Settings,
    models: Sequence[Artifact],
    arms: Sequence[str],
    teacher: Artifact | None,
    datasets: Mapping[str, Dataset],
    engine: Engine,
    out: Path,
) -> tuple[list[Measured], Measured | None]:
    """Every model read once, and the teacher; what an earlier start has read is not read again."""
    from alignment.evals.arms import labels_of
    from alignment.evals.perplexity import Losses, Measured, Teaching
    from alignment.gemma import core
    from alignment.gemma.presets import parameter_counts
    from alignment.training.policies import open_policy

    taught = None if teacher is None else open_policy(teacher, engine)
    beside = {} if taught is None else {name: Teaching(taught.model) for name in datasets}
    everybody = [*models, *([teacher] if teacher is not None else [])]
    labels = [*labels_of(arms), TEACHER]
    with console.progress("perplexity", len(everybody), "models") as progress:

        def work(some: Sequence[int]) -> list[dict[str, Any]]:
            (place,) = some
            if taught is not None and place == len(models):
                return [_read(taught, {}, datasets, engine)]
            return [_read(open_policy(models[place], engine), beside, datasets, engine)]

        def done(some: int, before: bool) -> None:
            progress.begin_at(progress.done + some) if before else progress.advance(some)

        found = []
        for place, read in enumerate(parts.in_parts(out, "models", range(len(everybody)), 1, work, done)):
            config = core.read_config(everybody[place].path)
            parameters = parameter_counts(core.shape_of(config), config.vocab_size).total
            losses = {name: Losses.of(**columns) for name, columns in read.items()}
            _need_finite(labels[place], losses)
            found.append(Measured(labels[place], [*arms, TEACHER][place], parameters, losses))
    return found[: len(models)], found[-1] if teacher is not None else None


def _read(
    policy: Policy, teachers: Mapping[str, Teaching], datasets: Mapping[str, Dataset], engine: Engine
) -> dict[str, dict[str, Any]]:
    """One model's losses by dataset, as JSON holds them."""
    from alignment.evals.perplexity import read

    return {
        name: read(
            policy.model,
            dataset.tokens,
            pad_id=policy.tokenizer.pad_id,
            engine=engine,
            teacher=teachers.get(name),
        ).columns()
        for name, dataset in datasets.items()
    }


def _need_finite(label: str, losses: Mapping[str, Losses]) -> None:
    """Raise :class:`UserError` for a model whose losses are no numbers."""
    if not all(one.finite for one in losses.values()):
        raise UserError(
            f"{label}: gives losses that are no numbers",
            cause="Its weights hold NaN or infinity, or its activations overflow.",
            remedy="Try engine.precision=fp32, or look at the run that trained it.",
        )


def _lines(settings: Settings, measured: Sequence[Measured]) -> dict[str, list[str]]:
    """The arms of every line, the smallest first; without lines every arm stands for itself."""
    sizes = {one.arm: one.parameters for one in measured}
    lines = {line.name: line.arms for line in settings.lines or []} or {arm: [arm] for arm in sizes}
    return {name: sorted(arms, key=lambda arm: sizes[arm]) for name, arms in lines.items()}


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def _write_rows(path: Path, measured: Sequence[Measured], datasets: Mapping[str, Dataset]) -> None:
    """One row for every model, dataset and row: its trained tokens, their NLL, and KL(teacher ‖ model) of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for one in measured:
        for name, (_, rows) in datasets.items():
            losses = one.losses[name]
            count = len(rows.names)
            columns = {
                "model": [one.label] * count,
                "dataset": [name] * count,
                "row": list(rows.names),
                "tokens": rows.tokens_R,
                "nll": losses.nll_R,
                "kl": pa.array([None] * count if losses.kl_R is None else losses.kl_R, pa.float64()),
            }
            tables.append(pa.table(columns))
    beside = path.with_name(path.name + files.TEMPORARY)
    pq.write_table(pa.concat_tables(tables), beside, compression="zstd")
    beside.replace(path)
