"""Train a reward model on comparisons: Bradley–Terry with margins by grade, and Llama 2's safety loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from alignment import console
from alignment.artifacts import Artifact, Outcome
from alignment.errors import UserError, nearest
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, reference
from alignment.training.engine import EngineSettings
from alignment.training.model_settings import AdapterSettings, ModelSettings
from alignment.training.optimisation import Optimisation, disk_for
from alignment.training.tracking import TrackerSettings

if TYPE_CHECKING:
    from alignment.data.rows import Split
    from alignment.gemma.heads import Scale
    from alignment.training.engine import Engine
    from alignment.training.kept_pairs import KeptPairs
    from alignment.training.rewards import Reward

ALGORITHM_VERSION = 1
HELD_OUT_PAIRS = 1_000
TABLES: dict[str, dict[str, float]] = {
    "none": {"significantly": 0.0, "better": 0.0, "slightly": 0.0, "negligibly": 0.0},
    "small": {"significantly": 1.0, "better": 2 / 3, "slightly": 1 / 3, "negligibly": 0.0},
    "large": {"significantly": 3.0, "better": 2.0, "slightly": 1.0, "negligibly": 0.0},
}
"""Llama 2's margins (arXiv 2307.09288, Table 27)."""


class Margins(StrictSettings):
    """By how much the chosen answer's score is to lead, by grade; ``none``, ``small`` and ``large`` are Llama 2's."""

    significantly: float = identity("margin of a pair graded significantly better", ge=0)
    better: float = identity("margin of a pair graded better", ge=0)
    slightly: float = identity("margin of a pair graded slightly better", ge=0)
    negligibly: float = identity("margin of a pair graded negligibly better; one without a grade has 0", ge=0)


class HeadSettings(StrictSettings):
    """Where the score head begins."""

    weights: str | None = reference("a reward model whose head is taken; null draws a fresh one")
    seed: int = identity("of a fresh head, whatever the run's own seed is: models to be averaged begin alike", ge=0)


class Settings(StrictSettings):
    """``stage=reward``."""

    model: ModelSettings = identity("the model to start from: a chat model, or a reward model to go on with")
    head: HeadSettings = identity("the score head")
    data: str = reference("a dataset of comparisons")
    margins: Margins = identity("margins by grade; also none, small or large")
    safety_weight: float = identity(
        "weight of the safety loss, where answers have safety labels; 0 leaves it out, and scores stay relative", ge=0
    )
    centre: str | None = reference("conversations whose answers score 0 on average once centred; null does not centre")
    too_long: Literal["refuse", "leave_out", "shorten"] = identity(
        "what becomes of a pair longer than the context; shorten drops its oldest turns; *_left_out.jsonl lists them"
    )
    max_left_out: float = identity("greatest share of the pairs that may be left out", ge=0, le=1)
    exchanged: float = identity("share of the training pairs to turn round, for experiments with noise", ge=0, lt=1)
    part: Literal["all", "head"] = identity("train the whole model, or the head alone (linear probing)")
    dropout: float = identity("dropout on attention weights; Llama 2 and Gemma have none", ge=0, lt=1)
    seed: int = identity("of the order of the pairs, of a fresh adapter and of dropout", ge=0)
    adapter: AdapterSettings = identity("train all weights, or a low-rank adapter on the policy's own trunk")
    optimisation: Optimisation = identity("how the model is trained; the batch is counted in pairs")
    engine: EngineSettings = execution("where and how it runs")
    tracker: TrackerSettings = execution("where its metrics go")

    @field_validator("margins", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, Mapping | Margins):
            return value
        if value not in TABLES:
            own = "A table of your own: 'margins={significantly: 2, better: 1, slightly: 0.5, negligibly: 0}'."
            raise UserError("there is no such table", remedy=f"{nearest(str(value), [*TABLES])} {own}")
        return TABLES[value]

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "settings") -> Settings:
        """Validate, the rules between keys included."""
        settings: Settings = super().parse(values, where)
        if settings.part == "head" and settings.adapter.kind != "none":
            raise UserError("part=head: an adapter has no part in training the head", remedy="Say adapter.kind=none.")
        return settings


def disk_needed_from(settings: Settings, folders: Mapping[str, Path]) -> int:
    """Bytes for the model and its checkpoints, by its own weights where they are there already."""
    rank = None if settings.adapter.kind == "none" else settings.adapter.rank
    # Of a head alone the moments are nothing.
    moments = 0 if settings.part == "head" else 2
    folder = folders.get("model.weights")
    return disk_for(settings.optimisation, settings.model.shape, folder, rank=rank, moments=moments)


def run(settings: Settings, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """Train on the training split, measure on the validation split, write a reward model's directory.

    An adapter is merged into the weights that are written, and also kept beside them in ``adapter/``.
    """
    import torch

    from alignment.chat.types import prompt_key
    from alignment.data import seen
    from alignment.scoring import centring
    from alignment.scoring.reward_model import fits
    from alignment.training import rewards, snapshots
    from alignment.training.engine import resolve

    engine = resolve(settings.engine)
    snapshots.need_whole_models(settings.optimisation.snapshots, settings.adapter.kind)
    reward = _begin(settings, inputs, engine)
    dataset = inputs["data"].need("dataset")
    if "centre" in inputs:
        sees = partial(fits, tokenizer=reward.tokenizer, schema=reward.schema, limit=reward.tokens_limit)
        centring.need_conversations(inputs["centre"].need("dataset").path, sees)
    learned, held = (_pairs(dataset, split, reward, settings, out) for split in ("train", "valid"))
    _check_labels(settings, learned, dataset)
    torch.manual_seed(settings.seed)
    rewards.set_dropout(reward, settings.dropout)
    if settings.part == "head":
        rewards.freeze_trunk(reward)
    if settings.adapter.kind != "none":
        reward = rewards.adapt(reward, settings.adapter)
    trained, metrics = _train(reward, learned, settings, inputs, engine, out)
    rewards.set_dropout(reward, 0.0)
    if settings.adapter.kind != "none":
        reward = rewards.merge_adapter(reward, _begin(settings, inputs, engine, in_full=True), out)
    scale = _save(reward, settings, inputs, engine, out)
    metrics |= {"centre": scale.centre} | _measured(reward, held[:HELD_OUT_PAIRS], engine)
    # What was only measured on is not seen: whoever tunes on the validation split may measure on it too.
    seen.write(out, (prompt_key(one.prompt) for one, _ in learned), [artifact.path for artifact in inputs.values()])
    headline = "accuracy" if "accuracy" in metrics else "loss"
    return Outcome("reward", metrics, headline, tokens=reward.tokens, notes=engine.notes() | trained)


def _begin(settings: Settings, inputs: dict[str, Artifact], engine: Engine, *, in_full: bool = False) -> Reward:
    """The model as it is before anything is trained; ``in_full`` also where an adapter is trained on 4-bit weights."""
    from alignment.training import rewards

    return rewards.begin(
        inputs["model.weights"],
        engine,
        head=inputs.get("head.weights"),
        head_seed=settings.head.seed,
        shape=settings.model.shape,
        schema=settings.model.chat_schema,
        attention=settings.model.attention,
        four_bit=settings.adapter.kind == "qlora" and not in_full,
    )


# ── pairs ────────────────────────────────────────────────────────────────────────────────────────


def _pairs(dataset: Artifact, split: Split, reward: Reward, settings: Settings, out: Path) -> KeptPairs:
    """The pairs of a split that fit the context, as ids; what became of the others is listed beside the model."""
    from alignment.training.comparisons import Renderer
    from alignment.training.kept_pairs import kept_pairs

    margins: Any = settings.margins.model_dump()
    renderer = Renderer(reward.tokenizer, reward.schema, reward.tokens_limit, margins, settings.too_long)
    exchange = settings.exchanged if split == "train" else 0.0
    return kept_pairs(dataset.path, split, renderer, out, max_left_out=settings.max_left_out, exchange=exchange)


def _check_labels(settings: Settings, pairs: KeptPairs, dataset: Artifact) -> None:
    """The safety loss needs answers of both kinds: with labels of one kind alone it moves every score to one side."""
    if not settings.safety_weight:
        return
    labels = {safe for one, _ in pairs for safe in (one.chosen_safe, one.rejected_safe) if safe is not None}
    if labels != {True, False}:
        have = "none of its answers has a label" if not labels else f"all its labelled answers are {_told(labels)}"
        raise UserError(
            f"safety_weight={settings.safety_weight:g}: {dataset.path} cannot teach it",
            cause=f"The safety loss learns from answers labelled safe and unsafe; {have}.",
            remedy="Say safety_weight=0, or give comparisons with answers of both kinds.",
        )


def _told(labels: set[bool]) -> str:
    return "safe" if True in labels else "unsafe"


# ── training and measuring ───────────────────────────────────────────────────────────────────────


def _train(
    reward: Reward, pairs: KeptPairs, settings: Settings, inputs: dict[str, Artifact], engine: Engine, out: Path
) -> tuple[dict[str, Any], dict[str, float]]:
    """Notes and metrics of the training."""
    from alignment.training import preferences
    from alignment.training.pair_rows import PairRows
    from alignment.training.session import train_on_pairs

    return train_on_pairs(
        reward,
        PairRows.gather(row for _, row in pairs),
        partial(preferences.train, safety_weight=settings.safety_weight),
        title="reward",
        out=out,
        numbers=settings.optimisation,
        engine=engine,
        tracker_settings=settings.tracker,
        config=settings.model_dump(mode="json"),
        inputs=inputs,
        seed=settings.seed,
    )


def _save(reward: Reward, settings: Settings, inputs: dict[str, Artifact], engine: Engine, out: Path) -> Scale:
    """Write the model, and how its scores are read."""
    from alignment.gemma import heads
    from alignment.gemma.heads import Scale
    from alignment.scoring import centring
    from alignment.training import rewards, snapshots, team

    plain = Scale(0.0, settings.safety_weight > 0, reward.schema)
    held = {name: weight for name, weight in reward.model.named_parameters() if weight.requires_grad}
    # Their scores have no centre: what they are kept for is an average of them, which has its own.
    snapshots.write(out, held, lambda folder: rewards.save(reward, folder, plain))
    rewards.save(reward, out, plain)

    def centred() -> Scale:
        if "centre" in inputs:
            centre = centring.centre_of(out, inputs["centre"].need("dataset").path, engine)
            heads.write_scale(out, replace(plain, centre=centre.value))
        return heads.read_scale(out) or plain

    return team.from_main(centred)


def _measured(reward: Reward, pairs: KeptPairs, engine: Engine, confidence: float = 0.95) -> dict[str, float]:
    """Accuracy on held-out pairs, in all and by grade; printed with intervals over prompts."""
    from alignment.data.grades import GRADES
    from alignment.evals import preferences
    from alignment.training.held_out_pairs import side_scores

    if not pairs:
        return {}
    scores = side_scores(reward.model, [row for _, row in pairs], pad_id=reward.tokenizer.pad_id, device=engine.device)
    columns = preferences.Pairs.of([one for one, _ in pairs])
    table = preferences.accuracy(columns, scores.right, preferences.bootstrap(columns, confidence, 0))
    found = table["all"] | {grade: table["grade"][grade] for grade in GRADES if grade in table["grade"]}
    rows = [
        (name, one["count"], f"{one['estimate']:.3f}", f"{one['low']:.3f} … {one['high']:.3f}")
        for name, one in found.items()
    ]
    console.table("accuracy on held-out pairs", ("grade", "pairs", "right", "interval"), rows, right=("pairs", "right"))
    return {"accuracy" if name == "all" else f"accuracy_{name}": one["estimate"] for name, one in found.items()}
