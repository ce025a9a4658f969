"""One model's answers to held-out prompts: what they are worth, how far they are from a reference, and its perplexity.

``stage=evaluate prompts=…`` makes one of these for each model and puts them beside each other, so that a model that was
asked once is not asked again. ``answers.parquet`` has a row an answer with its measures, ``held_out.parquet`` one for
every held-out conversation (``evals/answers.py``); ``left_out.jsonl`` lists those that are longer than its context.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignment import allocator, console, files
from alignment.artifacts import Artifact, Outcome
from alignment.errors import UserError
from alignment.sampling.endpoint import EndpointSettings
from alignment.scoring.opening import ClassifierReading
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, reference
from alignment.training.engine import EngineSettings

if TYPE_CHECKING:
    from alignment.chat.render import Rendered
    from alignment.chat.types import Conversation, Prompt
    from alignment.evals.suites.subject import Subject
    from alignment.scoring.scorer import Scorer

ALGORITHM_VERSION = 1
LEFT_OUT = "left_out.jsonl"


class Settings(StrictSettings):
    """``stage=answer``."""

    model: str = reference(
        "the model to ask: a policy, a folder of the same layout, or endpoint:<model>", kinds=("policy", "endpoint")
    )
    prompts: str = reference("a dataset of prompts to draw answers for", kinds=("dataset",))
    conversations: str | None = reference("a dataset of conversations for the perplexity of its answers; null skips it")
    rewards: list[str] | None = reference("scorers whose reported score of every answer is kept beside gold, [a,b,…]")
    classifier: ClassifierReading = identity("how classifiers among the rewards are read")
    reference: str | None = reference(
        "the policy to which the KL is measured, at the temperature of the answers and with top_p=1; null skips it"
    )
    split: Literal["valid", "test"] = identity(
        "the split of both datasets; the model may have seen none of its prompts"
    )
    count: int = identity("prompts at most, the first of the split", ge=1)
    temperature: float = identity("at which answers are drawn; 0 takes the likeliest token", ge=0, le=5)
    top_p: float = identity("the smallest set of tokens with this share of the probability", gt=0, le=1)
    max_new_tokens: int = identity("length of an answer at most", ge=1)
    seed: int = identity("of the answers", ge=0)
    endpoint: EndpointSettings = execution("how a server is asked, where the model is behind one")
    engine: EngineSettings = execution("where and how it runs")

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "settings") -> Settings:
        """Validate, the rules between keys included."""
        settings: Settings = super().parse(values, where)
        if settings.reference is not None and (settings.temperature == 0 or settings.top_p < 1):
            raise UserError(
                f"temperature={settings.temperature:g} top_p={settings.top_p:g}: the KL of such answers is no KL",
                cause="It is the mean over the model's own distribution, which greedy or cut draws are not.",
                remedy="Draw above temperature 0 and with top_p=1, or say reference=null.",
            )
        return settings


def precheck(settings: Settings, inputs: Mapping[str, Artifact]) -> None:
    """Raise :class:`UserError` for a model of which what is asked cannot be had. No weight is read."""
    from alignment.scoring.opening import need_chat
    from alignment.training.policies import need_same_tokens

    model = inputs.get("model")
    if model is None:
        return
    need_chat(model)
    inner = [f"{key}=null" for key in ("reference", "conversations") if getattr(settings, key) is not None]
    if model.kind == "endpoint" and inner:
        raise UserError(
            f"model={model.step}: is behind a server",
            cause="KL and perplexity are of probabilities, which a server does not give.",
            remedy=f"Say {' '.join(inner)}.",
        )
    if "reference" in inputs:
        need_same_tokens(model, inputs["reference"].need("policy"), "reference", "reference=null")


def run(settings: Settings, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """Write the answers (answers.parquet), and the losses on held-out conversations (held_out.parquet)."""
    from alignment.evals import answers
    from alignment.evals.suites.subject import Subject
    from alignment.training.engine import resolve

    engine = resolve(settings.engine)
    subject = Subject(inputs["model"], engine, settings.endpoint, out)
    precheck(settings, inputs)
    prompts = subject.prompts(inputs["prompts"], settings.split, settings.count)
    conversations = _conversations(settings, inputs, subject)
    notes = ({} if subject.served else engine.notes()) | {"prompts": len(prompts)}
    with allocator.keeping():
        whole = _whole(subject, conversations)
        answers.write(out, _answered(settings, inputs, subject, prompts))
        if whole:
            losses = subject.likelihoods("perplexity", [(one.ids, one.mask) for _, one in whole])
            answers.write_held_out(out, [row for row, _ in whole], losses)
            notes |= {"conversations": len(whole), "left_out": len(conversations) - len(whole)}
    found = answers.read(out)
    metrics = {name: float(values_P.mean()) for name, values_P in found.columns.items()}
    return Outcome("evaluation", metrics, next(iter(metrics)), notes=notes)


def _conversations(settings: Settings, inputs: Mapping[str, Artifact], subject: Subject) -> list[Conversation]:
    """What the perplexity is measured on; refuses a model that was trained on one of them."""
    from alignment.chat.types import Conversation, row_key
    from alignment.data import store

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
    rows = islice(store.stream(dataset.path, settings.split), settings.count)
    found = [row for row in rows if isinstance(row, Conversation)]
    subject.refuse_seen(map(row_key, found))
    return found


def _answered(
    settings: Settings, inputs: Mapping[str, Artifact], subject: Subject, prompts: Sequence[Prompt]
) -> Iterator[dict[str, Any]]:
    """A row for every answer, drawn and measured in parts that are kept."""
    from alignment.evals import answers
    from alignment.evals.suites.kept import need_finite
    from alignment.sampling.decoding import Decoding
    from alignment.training.policies import open_policy

    scorers = _scorers(settings, inputs, subject, prompts)
    against = open_policy(inputs["reference"], subject.engine) if "reference" in inputs else None
    how = Decoding(samples=1, **{key: getattr(settings, key) for key in Decoding.model_fields if key != "samples"})
    subject.need_room([one.messages for one in prompts], [one.id for one in prompts], how)

    def ask(some: Sequence[Prompt]) -> list[dict[str, Any]]:
        replies = subject.respondent.reply([one.messages for one in some], [one.id for one in some], how)
        rows = answers.rows(some, [one for (one,) in replies])
        measures = answers.scored(scorers, some, rows)
        if against is not None:
            said = [one.ids or () for (one,) in replies]
            measures["kl"] = answers.kl(
                subject.policy, against, some, said, subject.engine, settings.temperature
            ).tolist()
        for place, row in enumerate(rows):
            own = {name: float(values[place]) for name, values in measures.items()}
            need_finite(row["id"], own)
            row |= own
        return rows

    return subject.in_parts("answers", prompts, ask)


def _scorers(
    settings: Settings, inputs: Mapping[str, Artifact], subject: Subject, prompts: Sequence[Prompt]
) -> dict[str, Scorer]:
    """By the names of their measures: gold where the prompts are the miniature's own, and the rewards asked for."""
    from alignment.data import store
    from alignment.evals.names import names_of
    from alignment.scoring.gold import Gold
    from alignment.scoring.opening import open_scorer

    world, reading = store.world_of(inputs["prompts"].path), settings.classifier
    golds = [] if world is None else [Gold(world, aspect) for aspect in ("overall", "helpfulness", "safety")]
    scorers: dict[str, Scorer] = {gold.name: gold for gold in golds}
    rewards = [inputs[f"rewards.{place}"] for place in range(len(settings.rewards or []))]
    for name, artifact in zip(names_of(rewards), rewards, strict=True):
        scorers[f"reward_{name}"] = open_scorer(
            artifact, subject.engine, world, label=reading.label, text=reading.text, prompts=prompts
        )
    return scorers


def _whole(subject: Subject, conversations: Sequence[Conversation]) -> list[tuple[Conversation, Rendered]]:
    """The conversations that the model sees whole, as it sees them; the others are listed."""
    from alignment.chat.render import render

    if not conversations:
        return []
    policy, limit = subject.policy, subject.policy.tokens_limit
    rendered = [(row, render(row.messages, policy.tokenizer, policy.schema, row.train)) for row in conversations]
    whole = [(row, one) for row, one in rendered if len(one.ids) <= limit]
    if not whole:
        raise UserError(
            f"conversations: none of {len(conversations):,} fits into the {limit:,} tokens that the model sees",
            remedy="Name shorter ones, or conversations=null.",
        )
    _list_long(subject, {row.id: len(one.ids) for row, one in rendered}, limit)
    return whole


def _list_long(subject: Subject, tokens: Mapping[str, int], limit: int) -> None:
    """Tell of the conversations, by their ids, that have more tokens than the model sees, and list them."""
    long = {name: count for name, count in tokens.items() if count > limit}
    if not long:
        return
    lines = (json.dumps({"id": name, "tokens": count, "reason": "too long"}) + "\n" for name, count in long.items())
    files.write_atomic(subject.out / LEFT_OUT, "".join(lines))
    console.say(
        f"  no perplexity on {len(long):,} of {len(tokens):,} conversations: they have more than the {limit:,} tokens "
        f"that the model sees ({LEFT_OUT})",
        style="yellow",
    )
