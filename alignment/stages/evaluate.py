"""Measure models on held-out prompts and on suites: gold and other rewards, KL to a reference, perplexity, and more.

Several models answer the same prompts with the same noise, and are compared prompt by prompt (``evals/versions.py``).
``results.json`` holds ``models`` (every measure with its interval), ``arms`` (where several models are the seeds of
one: the mean over them), and by model or arm ``differences`` (less that which ``against`` names), ``skills`` (mean gold
by tag) and ``skill_differences`` (less that one's, and whether the skill fell). ``suites`` has what
``evals/suites/comparing.py`` says, of one artifact of ``stage=assess`` for every model and suite.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignment import console, files
from alignment.artifacts import Artifact, Outcome
from alignment.errors import UserError
from alignment.sampling.endpoint import EndpointSettings
from alignment.scoring.opening import ClassifierReading
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, reference, text
from alignment.training.engine import EngineSettings

if TYPE_CHECKING:
    import numpy as np

    from alignment.chat.types import Prompt
    from alignment.evals.intervals import Interval
    from alignment.sampling.sampler import Answer
    from alignment.scoring.scorer import Scorer
    from alignment.training.engine import Engine
    from alignment.training.policies import Policy

ALGORITHM_VERSION = 2
ANSWERS, EXAMPLES = "answers.parquet", "examples.parquet"
RESULTS = "results.json"


class Settings(StrictSettings):
    """``stage=evaluate``."""

    models: list[str] = reference("the models to measure, [a,b,…]", min_length=1)
    names: list[str] | None = text(
        "a name for each of them, [a,b,…]; those of one name are the seeds of one arm; null takes the steps' names"
    )
    suites: list[str] = text("suites to examine every model on, [ghost,./mine.yaml,…]; [] for none")
    prompts: str | None = reference("a dataset of prompts to draw answers for; null for suites alone")
    conversations: str | None = reference("a dataset of conversations for the perplexity of its answers; null skips it")
    rewards: list[str] | None = reference(
        "scorers whose reported score of every answer is measured beside gold, [a,b,…]; null measures none"
    )
    classifier: ClassifierReading = identity("how classifiers among the rewards are read")
    reference: str | None = reference("the policy to which the KL is measured; null skips it")
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


def asks(settings: Settings) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Every suite of every model, made once whoever asks for it."""
    names = _suite_names(settings.suites)
    found = {}
    for suite, name in zip(settings.suites, names, strict=True):
        for place, model in enumerate(settings.models):
            said = {
                "model": model,
                "suite": suite,
                "confidence": settings.confidence,
                "seed": settings.seed,
                "endpoint": settings.endpoint.model_dump(),
            }
            found[f"suites.{name}.{place}"] = ("assess", f"{name}-{_short(model)}", said)
    return found


def _short(model: str) -> str:
    """What a model's reference ends with, as a folder may be called."""
    last = model.rstrip("/").replace(":", "/").rpartition("/")[2]
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in last)


def run(settings: Settings, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """Write one row for every answer (answers.parquet) and example (examples.parquet), and all measures (results.json).

    What is not asked for is not written.
    """
    from alignment.evals.suites import comparing
    from alignment.training.engine import resolve

    engine = resolve(settings.engine)
    names = _names(settings, inputs)
    told, prompts = _nothing(settings, names), 0
    if "prompts" in inputs:
        told, prompts = _answered(settings, inputs, names, engine, out)
    suites = _suites(settings, inputs, names, out)
    _print(told, suites)
    if suites:
        told = comparing.merged(told, suites)
    files.write_json(out / RESULTS, told)
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
    settings: Settings, inputs: dict[str, Artifact], names: list[str], engine: Engine, out: Path
) -> tuple[dict[str, Any], int]:
    """Every model on the prompts; returns what results.json tells of it, and how many prompts there were."""
    from alignment.evals import answers
    from alignment.training import policies

    prompts = _prompts(settings, inputs)
    _check_conversations(inputs)
    scorers = _scorers(inputs, engine, settings.classifier, prompts)
    against = policies.open_policy(inputs["reference"], engine) if "reference" in inputs else None
    rows: list[dict[str, Any]] = []
    results: dict[str, dict[str, Interval]] = {}
    values: dict[str, dict[str, np.ndarray]] = {}
    for place, name in enumerate(names):
        policy = policies.open_policy(inputs[f"models.{place}"], engine)
        drawn, ids = _draw(policy, prompts, settings, f"evaluate {name}" if len(names) > 1 else "evaluate")
        measures = answers.scored(scorers, prompts, drawn, policy)
        if against is not None:
            measures["kl"] = answers.kl(policy, against, ids, drawn, engine)
        rows += answers.rows(name, prompts, drawn, policy, measures)
        values[name] = measures
        results[name] = _intervals(measures, drawn, settings)
        if "conversations" in inputs:
            results[name]["perplexity"] = _perplexity(policy, inputs["conversations"], settings, engine)
    answers.write(out / ANSWERS, rows)
    return _told(results, values, prompts, settings), len(prompts)


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


def _suite_names(suites: list[str]) -> list[str]:
    """What suites are called: by option, or by file. Raises :class:`UserError` for two of one name."""
    names = [Path(suite).stem if suite.endswith((".yaml", ".yml")) else suite for suite in suites]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"suites: {twice} is there twice", remedy="Name every suite once.")
    return names


def _nothing(settings: Settings, names: list[str]) -> dict[str, Any]:
    """What is told where no prompts are answered. Raises :class:`UserError` where nothing at all is asked."""
    if settings.prompts is None and not settings.suites:
        raise UserError("prompts=null suites=[]: there is nothing to measure", remedy="Name prompts or suites.")
    models: dict[str, Any] = {name: {} for name in names}
    return {"confidence": settings.confidence, "models": models} | {
        part: {} for part in ("differences", "skills", "skill_differences")
    }


def _names(settings: Settings, inputs: dict[str, Artifact]) -> list[str]:
    """What the models are called; refuses one that is given twice."""
    from alignment.evals.arms import labels_of
    from alignment.evals.names import names_of

    if settings.names is not None:
        if len(settings.names) != len(settings.models):
            raise UserError(
                f"names: {len(settings.names)} names for {len(settings.models)} models", remedy="Give one for each."
            )
        return labels_of(settings.names)
    names = names_of([inputs[f"models.{place}"] for place in range(len(settings.models))])
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"models: {twice} is there twice", remedy="Name every model once.")
    return names


def _prompts(settings: Settings, inputs: dict[str, Artifact]) -> list[Prompt]:
    """The prompts of the split; refuses a model that has seen one of them."""
    from alignment.chat.types import Prompt, row_key
    from alignment.data import seen, store

    dataset = inputs["prompts"].need("dataset")
    prompts = []
    for row in store.stream(dataset.path, settings.split):
        if not isinstance(row, Prompt):
            raise UserError(f"{dataset.path} holds no prompts", remedy="Give a dataset whose recipe has kind: prompts.")
        prompts.append(row)
        if len(prompts) == settings.count:
            break
    if not prompts:
        raise UserError(
            f"{dataset.path} has no prompt in its split {settings.split}",
            remedy="Say split=valid or split=test, whichever it has; its recipe's `splits` say how it is divided.",
        )
    for place in range(len(settings.models)):
        model = inputs[f"models.{place}"].need("policy")
        seen.refuse_overlap(model.path, map(row_key, prompts))
    return prompts


def _check_conversations(inputs: dict[str, Artifact]) -> None:
    """Before anything is drawn: what the perplexity is measured on are conversations."""
    from alignment.data import store

    if "conversations" in inputs:
        dataset = inputs["conversations"].need("dataset")
        kind = store.card(dataset.path)["kind"]
        if kind != "conversations":
            raise UserError(
                f"conversations={dataset.step or dataset.path}: holds {kind}",
                remedy="Name a dataset of conversations, or conversations=null.",
            )


def _scorers(
    inputs: dict[str, Artifact], engine: Engine, reading: ClassifierReading, prompts: list[Prompt]
) -> dict[str, Scorer]:
    """By the names of their measures: gold where the prompts are the miniature's own, and the rewards asked for."""
    from alignment.data import store
    from alignment.evals.names import names_of
    from alignment.scoring.gold import Gold
    from alignment.scoring.opening import open_scorer

    world = store.world_of(inputs["prompts"].path)
    golds = [] if world is None else [Gold(world, aspect) for aspect in ("overall", "helpfulness", "safety")]
    scorers: dict[str, Scorer] = {gold.name: gold for gold in golds}
    rewards = [artifact for key, artifact in inputs.items() if key.startswith("rewards.")]
    for name, artifact in zip(names_of(rewards), rewards, strict=True):
        scorers[f"reward_{name}"] = open_scorer(
            artifact, engine, world, label=reading.label, text=reading.text, prompts=prompts
        )
    return scorers


def _draw(
    policy: Policy, prompts: list[Prompt], settings: Settings, title: str
) -> tuple[list[Answer], list[list[int]]]:
    from alignment.chat.render import prompt_ids
    from alignment.sampling.sampler import Sampler

    ids = [prompt_ids(prompt.messages, policy.tokenizer) for prompt in prompts]
    sampler = Sampler(policy.model, stop_ids=policy.stop_ids, pad_id=policy.tokenizer.pad_id)
    with console.progress(title, len(prompts), "answers") as progress:
        answers = sampler.draw(
            ids,
            [prompt.id for prompt in prompts],
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_new_tokens=settings.max_new_tokens,
            seed=settings.seed,
            on_progress=lambda done, _: progress.advance(done - progress.done),
        )
    return answers, ids


def _intervals(measures: dict[str, np.ndarray], answers: list[Answer], settings: Settings) -> dict[str, Interval]:
    from alignment.evals import intervals

    everything = dict(measures)
    everything["tokens"] = [len(answer.ids) for answer in answers]  # type: ignore[assignment]
    everything["finished"] = [float(answer.finished) for answer in answers]  # type: ignore[assignment]
    return {name: intervals.mean(values, settings.confidence, settings.seed) for name, values in everything.items()}


def _perplexity(policy: Policy, dataset: Artifact, settings: Settings, engine: Engine) -> Interval:
    """exp of the mean NLL per answer token on held-out conversations."""
    import numpy as np

    from alignment.chat.render import render
    from alignment.chat.types import Conversation
    from alignment.data import store
    from alignment.evals import intervals
    from alignment.training.held_out import held_out
    from alignment.training.rows import TokenRows

    split = settings.split if settings.split in store.card(dataset.path)["rows"] else "valid"
    rendered = []
    for row in store.stream(dataset.need("dataset").path, split):
        assert isinstance(row, Conversation), "conversations: names a dataset of conversations"
        one = render(row.messages, policy.tokenizer, policy.schema, row.train)
        if len(one.ids) <= policy.tokens_limit:
            rendered.append(one)
        if len(rendered) == settings.count:
            break
    loss = held_out(policy.model, TokenRows.gather(rendered), pad_id=policy.tokenizer.pad_id, engine=engine)
    nats = intervals.ratio(loss.nll, loss.tokens, settings.confidence, settings.seed)
    return intervals.Interval(*(float(np.exp(bound)) for bound in nats))


def _told(
    results: dict[str, dict[str, Interval]],
    values: dict[str, dict[str, np.ndarray]],
    prompts: list[Prompt],
    settings: Settings,
) -> dict[str, Any]:
    """What results.json holds; ``values[model][measure]`` are those of every prompt."""
    from alignment.chat.types import prompt_key
    from alignment.evals import versions
    from alignment.evals.intervals import Bootstrap

    told: dict[str, Any] = {
        "confidence": settings.confidence,
        "models": {
            name: {measure: interval._asdict() for measure, interval in measures.items()}
            for name, measures in results.items()
        },
    }
    resamples = Bootstrap([prompt_key(prompt.messages) for prompt in prompts], settings.confidence, settings.seed)
    seeds = versions.seeds_of(list(values), settings.names)
    arms = versions.averaged(values, seeds)
    if len(arms) < len(values):
        told["arms"] = versions.arms(values, seeds, resamples)
    if not all("gold" in measures for measures in values.values()):
        return told | {"differences": {}, "skills": {}, "skill_differences": {}}
    tags, bases = [prompt.tags for prompt in prompts], versions.base_of(list(arms), settings.against)
    overall = {name: measures["gold"] for name, measures in arms.items()}
    return told | {
        "differences": versions.differences(arms, bases, resamples),
        "skills": versions.by_skill(overall, tags),
        "skill_differences": versions.skill_differences(overall, tags, bases, resamples),
    }


def _print(told: dict[str, Any], suites: dict[str, dict[str, Any]]) -> None:
    from alignment.reporting import suites as shown
    from alignment.reporting import versions

    measured = {name: measures for name, measures in told["models"].items() if measures}
    if len(measured) > 1:
        versions.show(told)
    elif measured:
        rows = [
            (name, measure, f"{one['estimate']:.3f}", f"{one['low']:.3f} … {one['high']:.3f}")
            for name, measures in measured.items()
            for measure, one in measures.items()
        ]
        console.table("", ("model", "measure", "mean", "interval"), rows, right=("mean",))
    shown.show(suites)
