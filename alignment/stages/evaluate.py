"""Measure models on held-out prompts and on suites: gold and other rewards, KL to a reference, perplexity, and more.

Several models answer the same prompts with the same noise, and are compared prompt by prompt (``evals/versions.py``).
``stage=answer`` asks each of them and ``stage=assess`` examines each on each suite, once whoever compares them.

``results.json`` holds ``models`` (every measure with its interval), ``arms`` (where several models are the seeds of
one: the mean over them), and by model or arm ``differences`` (less that which ``against`` names), ``skills`` (mean gold
by tag) and ``skill_differences`` (less that one's, and whether the skill fell). ``suites`` has what
``evals/suites/comparing.py`` says, ``capabilities`` what ``evals/suites/capabilities.py`` makes of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignment import console, files
from alignment.artifacts import Artifact, Outcome
from alignment.errors import UserError
from alignment.sampling.endpoint import EndpointSettings
from alignment.scoring.opening import ClassifierReading
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, later, reference, text
from alignment.settings import place as file
from alignment.training.engine import EngineSettings

if TYPE_CHECKING:
    from alignment.evals.answers import Answers, Losses
    from alignment.evals.imported import Model
    from alignment.evals.intervals import Bootstrap, Interval

ALGORITHM_VERSION = 5
EXAMPLES, RESULTS = "examples.parquet", "results.json"
OF_ANSWERS = (
    *("prompts", "conversations", "rewards", "classifier", "reference", "split", "count"),
    *("temperature", "top_p", "max_new_tokens", "seed", "endpoint"),
)
"""Settings that say what models are asked. All else is taken from their answers, and nobody is asked again for it."""


class Settings(StrictSettings):
    """``stage=evaluate``."""

    models: list[str] = reference("the models to measure, [a,b,…]", min_length=1)
    names: list[str] | None = text(
        "a name for each of them, [a,b,…]; those of one name are the seeds of one arm; null takes the steps' names"
    )
    suites: list[str] = text("suites to examine every model on, [ghost,./mine.yaml,…]; [] for none")
    capabilities: dict[str, list[str]] | None = later(
        "suites by what they measure, {maths: [gsm8k]}; also <suite>/<measure> and <suite>/<group>/<label>; null: none"
    )
    imports: list[str] | None = file(
        "files of results measured elsewhere, .csv or .json, told beside those of here as imports/<measure>; or null"
    )
    prompts: str | None = reference("a dataset of prompts to draw answers for; null for suites alone")
    conversations: str | None = reference("a dataset of conversations for the perplexity of its answers; null skips it")
    rewards: list[str] | None = reference(
        "scorers whose reported score of every answer is measured beside gold, [a,b,…]; null measures none"
    )
    classifier: ClassifierReading = identity("how classifiers among the rewards are read")
    reference: str | None = reference(
        "the policy to which the KL is measured, at the temperature of the answers and with top_p=1; null skips it"
    )
    split: Literal["valid", "test"] = identity("the split of both datasets; no model may have seen its prompts")
    count: int = identity("prompts at most, the first of the split", ge=1)
    temperature: float = identity("at which answers are drawn; 0 takes the likeliest token", ge=0, le=5)
    top_p: float = identity("the smallest set of tokens with this share of the probability", gt=0, le=1)
    max_new_tokens: int = identity("length of an answer at most", ge=1)
    against: Literal["first", "previous"] = identity(
        "with which of several models, or arms, each later one is compared"
    )
    confidence: float = identity("of every interval", gt=0, lt=1)
    seed: int = identity("of the answers and of the bootstrap", ge=0)
    endpoint: EndpointSettings = execution("how a server is asked, where a suite's model or judge is behind one")
    engine: EngineSettings = execution("where and how it runs")


def sources(settings: Settings) -> list[Path]:
    """The files of results that were measured elsewhere. Raises :class:`UserError` for one that cannot be read."""
    from alignment.evals import imported

    paths = [files.existing(name, "imports") for name in settings.imports or []]
    for path in paths:
        imported.read(path)
    return paths


def asks(settings: Settings) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Every model's answers, and every suite of every model, made once whoever asks for it.

    Raises :class:`UserError` for unknown suites, and for as many names as there are no models.
    """
    from alignment.evals import elsewhere
    from alignment.evals.arms import labels_of
    from alignment.evals.suites import capabilities

    suites = _suite_names(settings.suites)
    capabilities.check(settings.capabilities or {}, [*suites, *([elsewhere.NAME] if settings.imports else [])])
    if settings.prompts is None and not suites:
        raise UserError("prompts=null suites=[]: there is nothing to measure", remedy="Name prompts or suites.")
    if settings.names is not None and len(settings.names) != len(settings.models):
        raise UserError(
            f"names: {len(settings.names)} names for {len(settings.models)} models", remedy="Give one for each."
        )
    labels = labels_of(settings.names or [])
    if len(set(labels)) < len(labels):
        alike = next(label for label in labels if labels.count(label) > 1)
        raise UserError(
            f"names: two models are called {alike}",
            cause="The seeds of an arm are numbered so.",
            remedy="Name it without #.",
        )
    found: dict[str, tuple[str, str, dict[str, Any]]] = {}
    if settings.prompts is not None:
        asked = settings.model_dump(include={*OF_ANSWERS})
        for place, model in enumerate(settings.models):
            found[f"answers.{place}"] = ("answer", f"answers-{_short(model)}", {"model": model, **asked})
    for suite, name in zip(settings.suites, suites, strict=True):
        for place, model in enumerate(settings.models):
            # Not its confidence and seed: intervals are taken anew from the examples, and nobody is asked twice.
            said = {"model": model, "suite": suite, "endpoint": settings.endpoint.model_dump()}
            found[f"suites.{name}.{place}"] = ("assess", f"{name}-{_short(model)}", said)
    return found


def precheck(settings: Settings, inputs: Mapping[str, Artifact]) -> None:
    """Before any model is asked: raise :class:`UserError` for one given twice, and for imports that tell of none."""
    from alignment.evals import elsewhere
    from alignment.evals.suites import capabilities

    if not all(f"models.{place}" in inputs for place in range(len(settings.models))):
        return
    suites = _imports(settings, inputs, _names(settings, inputs))
    of_imports = {
        name: [one for one in of if one.partition("/")[0] == elsewhere.NAME]
        for name, of in (settings.capabilities or {}).items()
    }
    if suites:
        capabilities.told({name: of for name, of in of_imports.items() if of}, suites)


def _short(model: str) -> str:
    """What a model's reference ends with, as a folder may be called."""
    last = model.rstrip("/").replace(":", "/").rpartition("/")[2]
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in last)


def run(settings: Settings, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """Write one row for every answer (answers.parquet) and example (examples.parquet), and all measures (results.json).

    What is not asked for is not written.
    """
    from alignment.evals import elsewhere
    from alignment.evals.suites import capabilities, comparing
    from alignment.reporting import evaluations
    from alignment.training.engine import resolve

    engine = resolve(settings.engine)
    names = _names(settings, inputs)
    told, prompts = _nothing(settings, names), 0
    if settings.prompts is not None:
        told, prompts = _answered(settings, inputs, names, out)
    suites = _suites(settings, inputs, names, out) | _imports(settings, inputs, names)
    if suites:
        told = comparing.merged(told, suites)
    if others := elsewhere.others(sources(settings), _known(settings, inputs, names)):
        console.say(f"  imports: lines of other models are left aside ({', '.join(others)})", style="yellow")
    if settings.capabilities is not None:
        told["capabilities"] = capabilities.told(settings.capabilities, suites)
    files.write_json(out / RESULTS, told)
    evaluations.show(told)
    metrics = {
        (measure if len(names) == 1 else f"{name}/{measure}"): one["estimate"]
        for name, measures_of in told["models"].items()
        for measure, one in measures_of.items()
    }
    for name, one in told["skill_differences"].items():
        metrics[f"{name}/skills_fallen"] = float(sum(skill["fell"] for skill in one["skills"].values()))
    headline = next((name for name in metrics if name.endswith("gold")), next(iter(metrics)))
    return Outcome("evaluation", metrics, headline, notes=engine.notes() | {"prompts": prompts})


def _answered(
    settings: Settings, inputs: dict[str, Artifact], names: list[str], out: Path
) -> tuple[dict[str, Any], int]:
    """Every model's answers; returns what results.json tells of them, and how many prompts there were."""
    from alignment.evals import answers
    from alignment.evals.intervals import Bootstrap

    folders = {name: inputs[f"answers.{place}"].path for place, name in enumerate(names)}
    answers.join(out / answers.ANSWERS, folders)
    found = {name: answers.read(folder) for name, folder in folders.items()}
    resamples = Bootstrap(found[names[0]].keys, settings.confidence, settings.seed)
    results = {name: _intervals(one, resamples) for name, one in found.items()}
    losses = {name: one for name, folder in folders.items() if (one := answers.read_held_out(folder)) is not None}
    told = _told(results, found, resamples, settings)
    _add_perplexities(told, losses, settings)
    return told, len(found[names[0]].ids)


def _suites(settings: Settings, inputs: dict[str, Artifact], names: list[str], out: Path) -> dict[str, dict[str, Any]]:
    """What the suites say of the models, by suite."""
    from alignment.evals.suites import comparing

    folders = {
        suite: {name: inputs[f"suites.{suite}.{place}"].path for place, name in enumerate(names)}
        for suite in _suite_names(settings.suites)
    }
    if folders:
        comparing.write_examples(out / EXAMPLES, folders)
    return {
        suite: comparing.told(of, settings.names, settings.against, settings.confidence, settings.seed)
        for suite, of in folders.items()
    }


def _imports(settings: Settings, inputs: Mapping[str, Artifact], names: list[str]) -> dict[str, dict[str, Any]]:
    """What was measured of the models elsewhere, as a suite."""
    from alignment.evals import elsewhere

    paths = sources(settings)
    if not paths:
        return {}
    models = _known(settings, inputs, names)
    return {elsewhere.NAME: elsewhere.told(paths, models, settings.names, settings.against)}


def _known(settings: Settings, inputs: Mapping[str, Artifact], names: list[str]) -> list[Model]:
    """The models, by all that results from elsewhere may call them."""
    from alignment.evals.imported import Model

    said = zip(names, settings.models, strict=True)
    models = ((name, spelling, inputs[f"models.{place}"]) for place, (name, spelling) in enumerate(said))
    return [Model.of(name, [(one.fingerprint, spelling, one.path)]) for name, spelling, one in models]


def _suite_names(suites: list[str]) -> list[str]:
    """What suites are called: by option, or by file. Raises :class:`UserError` for two of one name."""
    from alignment.evals import elsewhere

    names = [Path(suite).stem if suite.endswith((".yaml", ".yml")) else suite for suite in suites]
    if elsewhere.NAME in names:
        raise UserError(f"suites: {elsewhere.NAME} are results from elsewhere", remedy="Call your file otherwise.")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"suites: {twice} is there twice", remedy="Name every suite once.")
    return names


def _nothing(settings: Settings, names: list[str]) -> dict[str, Any]:
    """What is told where no prompts are answered."""
    models: dict[str, Any] = {name: {} for name in names}
    return {"confidence": settings.confidence, "models": models} | {
        part: {} for part in ("differences", "skills", "skill_differences")
    }


def _names(settings: Settings, inputs: Mapping[str, Artifact]) -> list[str]:
    """What the models are called; refuses one that is given twice."""
    from alignment.evals.arms import labels_of
    from alignment.evals.names import names_of

    if settings.names is not None:
        return labels_of(settings.names)
    names = names_of([inputs[f"models.{place}"] for place in range(len(settings.models))])
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"models: {twice} is there twice", remedy="Name every model once.")
    return names


def _intervals(found: Answers, resamples: Bootstrap) -> dict[str, Interval]:
    """The mean of every number of an answer; prompts are resampled, as for differences."""
    import numpy as np

    values_PK = np.stack([*found.columns.values()], axis=1)
    intervals = resamples.ratios(values_PK, np.ones_like(values_PK))
    told = {name: one for name, one in zip(found.columns, intervals, strict=True) if one is not None}
    everything, finished_P = np.ones(len(values_PK), bool), found.said["finished"]
    return told | {"finished": resamples.bounded(told["finished"], everything, finished_P, 0, 1)}


def _add_perplexities(told: dict[str, Any], losses: Mapping[str, Losses], settings: Settings) -> None:
    """Every model's perplexity, with the conversations that it is of, and its difference where both read the same."""
    for name, one in losses.items():
        of = {"examples": len(one.units), "conversations": files.digest_json(one.units)}
        told["models"][name]["perplexity"] = _perplexity(one, settings)._asdict() | of
    if len({tuple(one.units) for one in losses.values()}) > 1:
        read = ", ".join(f"{name} {len(one.units):,}" for name, one in losses.items())
        console.say(f"  perplexities of different conversations are not compared; read were: {read}", style="yellow")
    for name, one in told["differences"].items():
        base = losses.get(one["from"])
        less = _perplexity_less(losses.get(name), base, settings)
        if less is not None and base is not None:
            one["measures"]["perplexity"] = less._asdict() | {"examples": len(base.units)}


def _perplexity(losses: Losses, settings: Settings) -> Interval:
    """exp of the mean NLL per answer token; prompts are resampled."""
    import numpy as np

    from alignment.evals.intervals import Bootstrap, Interval

    resamples = Bootstrap(losses.units, settings.confidence, settings.seed)
    (nats,) = resamples.ratios(losses.nll_N[:, None], losses.tokens_N[:, None])
    assert nats is not None, "an answer has tokens"
    return Interval(*(float(np.exp(bound)) for bound in nats))


def _perplexity_less(own: Losses | None, base: Losses | None, settings: Settings) -> Interval | None:
    """The difference of two perplexities, on the same conversations; None where they were not both measured on them."""
    import numpy as np

    from alignment.evals.intervals import Bootstrap

    if own is None or base is None or own.units != base.units:
        return None
    columns_NK = np.stack([own.nll_N, own.tokens_N, base.nll_N, base.tokens_N], axis=1)
    resamples = Bootstrap(own.units, settings.confidence, settings.seed)
    (less,) = resamples.interval(
        columns_NK.astype(float),
        lambda sums: (np.exp(sums[..., 0] / sums[..., 1]) - np.exp(sums[..., 2] / sums[..., 3]))[..., None],
    )
    return less


def _told(
    results: Mapping[str, Mapping[str, Interval]],
    found: Mapping[str, Answers],
    resamples: Bootstrap,
    settings: Settings,
) -> dict[str, Any]:
    """What results.json holds of the models' answers."""
    from alignment.evals import versions

    told: dict[str, Any] = {
        "confidence": settings.confidence,
        "models": {
            name: {measure: interval._asdict() for measure, interval in measures.items()}
            for name, measures in results.items()
        },
    }
    values = {name: one.columns for name, one in found.items()}
    seeds = versions.seeds_of(list(values), settings.names)
    arms = versions.averaged(values, seeds)
    if len(arms) < len(values):
        told["arms"] = versions.arms(values, seeds, resamples)
    bases = versions.base_of(list(arms), settings.against)
    told["differences"] = versions.differences(arms, bases, resamples)
    if not all("gold" in measures for measures in values.values()):
        return told | {"skills": {}, "skill_differences": {}}
    tags, overall = next(iter(found.values())).tags, {name: measures["gold"] for name, measures in arms.items()}
    return told | {
        "skills": versions.by_skill(overall, tags),
        "skill_differences": versions.skill_differences(overall, tags, bases, resamples),
    }
