"""Measure models on held-out prompts and on suites: gold and other rewards, KL to a reference, perplexity, and more.

Several models answer the same prompts with the same noise, and are compared prompt by prompt (``evals/versions.py``).
``results.json`` holds ``models`` (every measure with its interval), ``arms`` (where several models are the seeds of
one: the mean over them), and by model or arm ``differences`` (less that which ``against`` names), ``skills`` (mean gold
by tag) and ``skill_differences`` (less that one's, and whether the skill fell). ``suites`` has what
``evals/suites/comparing.py`` says, of one artifact of ``stage=assess`` for every model and suite; ``capabilities`` what
``evals/suites/capabilities.py`` makes of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignment import console, files
from alignment.artifacts import Artifact, Outcome
from alignment.errors import UserError
from alignment.sampling.endpoint import EndpointSettings
from alignment.scoring.opening import ClassifierReading
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, later, reference, text
from alignment.training.engine import EngineSettings

if TYPE_CHECKING:
    import numpy as np

    from alignment.chat.types import Conversation, Prompt
    from alignment.evals.intervals import Bootstrap, Interval
    from alignment.sampling.sampler import Answer
    from alignment.scoring.scorer import Scorer
    from alignment.training.engine import Engine
    from alignment.training.policies import Policy

ALGORITHM_VERSION = 3
ANSWERS, EXAMPLES = "answers.parquet", "examples.parquet"
RESULTS = "results.json"


class Settings(StrictSettings):
    """``stage=evaluate``."""

    models: list[str] = reference("the models to measure, [a,b,…]", min_length=1)
    names: list[str] | None = text(
        "a name for each of them, [a,b,…]; those of one name are the seeds of one arm; null takes the steps' names"
    )
    suites: list[str] = text("suites to examine every model on, [ghost,./mine.yaml,…]; [] for none")
    capabilities: dict[str, list[str]] | None = later(
        "suites by what they measure, {maths: [gsm8k], code: []}; also <suite>/<group>/<label>; null: no such table"
    )
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
    """Every suite of every model, made once whoever asks for it. Raises :class:`UserError` for unknown suites."""
    from alignment.evals.suites import capabilities

    names = _suite_names(settings.suites)
    capabilities.check(settings.capabilities or {}, names)
    found = {}
    for suite, name in zip(settings.suites, names, strict=True):
        for place, model in enumerate(settings.models):
            # Not its confidence and seed: intervals are taken anew from the examples, and nobody is asked twice.
            said = {"model": model, "suite": suite, "endpoint": settings.endpoint.model_dump()}
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
    from alignment.evals.suites import capabilities, comparing
    from alignment.reporting import evaluations
    from alignment.training.engine import resolve

    engine = resolve(settings.engine)
    names = _names(settings, inputs)
    told, prompts = _nothing(settings, names), 0
    if "prompts" in inputs:
        told, prompts = _answered(settings, inputs, names, engine, out)
    suites = _suites(settings, inputs, names, out)
    if suites:
        told = comparing.merged(told, suites)
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
    settings: Settings, inputs: dict[str, Artifact], names: list[str], engine: Engine, out: Path
) -> tuple[dict[str, Any], int]:
    """Every model on the prompts; returns what results.json tells of it, and how many prompts there were."""
    from alignment.chat.types import prompt_key
    from alignment.evals import answers
    from alignment.evals.intervals import Bootstrap
    from alignment.training import policies

    prompts = _prompts(settings, inputs)
    conversations = _conversations(settings, inputs)
    scorers = _scorers(inputs, engine, settings.classifier, prompts)
    resamples = Bootstrap([prompt_key(prompt.messages) for prompt in prompts], settings.confidence, settings.seed)
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
        results[name] = _intervals(measures, drawn, resamples)
        if conversations:
            results[name]["perplexity"] = _perplexity(policy, conversations, settings, engine)
    answers.write(out / ANSWERS, rows)
    return _told(results, values, prompts, resamples, settings), len(prompts)


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
    """The prompts of the split; refuses a model that has seen one of them, or has no chat format to be asked in."""
    from alignment.chat.types import Prompt, row_key
    from alignment.data import seen, store
    from alignment.scoring.opening import need_chat

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
        need_chat(model, "models")
        seen.refuse_overlap(model.path, map(row_key, prompts))
    return prompts


def _conversations(settings: Settings, inputs: dict[str, Artifact]) -> list[Conversation]:
    """What the perplexity is measured on; refuses a model that was trained on one of them."""
    from alignment.chat.types import Conversation, row_key
    from alignment.data import seen, store

    if "conversations" not in inputs:
        return []
    dataset = inputs["conversations"].need("dataset")
    card, name = store.card(dataset.path), dataset.step or dataset.path
    if card["kind"] != "conversations":
        raise UserError(
            f"conversations={name}: holds {card['kind']}",
            remedy="Name a dataset of conversations, or conversations=null.",
        )
    if not card["rows"].get(settings.split):
        raise UserError(
            f"conversations={name}: has no row in the split {settings.split}",
            cause=f"It has {', '.join(split for split, rows in card['rows'].items() if rows)}.",
            remedy="Say split=… of both datasets, name other conversations, or conversations=null.",
        )
    rows = list(islice(store.stream(dataset.path, settings.split), settings.count))
    found = [row for row in rows if isinstance(row, Conversation)]
    for place in range(len(settings.models)):
        seen.refuse_overlap(inputs[f"models.{place}"].path, map(row_key, found))
    return found


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


def _intervals(measures: dict[str, np.ndarray], answers: list[Answer], resamples: Bootstrap) -> dict[str, Interval]:
    """Every measure's mean, how long the answers are, and how many ended; prompts are resampled, as for differences."""
    import numpy as np

    everything = dict(measures)
    everything["tokens"] = np.array([len(answer.ids) for answer in answers])
    everything["finished"] = np.array([answer.finished for answer in answers])
    values_PK = np.stack([*everything.values()], axis=1).astype(float)
    found = resamples.ratios(values_PK, np.ones_like(values_PK))
    return {name: one for name, one in zip(everything, found, strict=True) if one is not None}


def _perplexity(policy: Policy, rows: Sequence[Conversation], settings: Settings, engine: Engine) -> Interval:
    """exp of the mean NLL per answer token, of the conversations that the model can see whole; prompts resampled."""
    import numpy as np

    from alignment.chat.render import render
    from alignment.chat.types import prompt_key
    from alignment.evals.intervals import Bootstrap, Interval
    from alignment.training.held_out import held_out
    from alignment.training.rows import TokenRows

    rendered = {
        place: render(row.messages, policy.tokenizer, policy.schema, row.train) for place, row in enumerate(rows)
    }
    whole = {place: one for place, one in rendered.items() if len(one.ids) <= policy.tokens_limit}
    if not whole:
        raise UserError(
            f"conversations: none of {len(rows):,} fits into the {policy.tokens_limit:,} tokens that the model sees",
            remedy="Name shorter ones, or conversations=null.",
        )
    loss = held_out(policy.model, TokenRows.gather([*whole.values()]), pad_id=policy.tokenizer.pad_id, engine=engine)
    resamples = Bootstrap([prompt_key(rows[place].messages) for place in whole], settings.confidence, settings.seed)
    (nats,) = resamples.ratios(loss.nll[:, None], loss.tokens[:, None])
    assert nats is not None, "an answer has tokens"
    return Interval(*(float(np.exp(bound)) for bound in nats))


def _told(
    results: dict[str, dict[str, Interval]],
    values: dict[str, dict[str, np.ndarray]],
    prompts: list[Prompt],
    resamples: Bootstrap,
    settings: Settings,
) -> dict[str, Any]:
    """What results.json holds; ``values[model][measure]`` are those of every prompt."""
    from alignment.evals import versions

    told: dict[str, Any] = {
        "confidence": settings.confidence,
        "models": {
            name: {measure: interval._asdict() for measure, interval in measures.items()}
            for name, measures in results.items()
        },
    }
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
