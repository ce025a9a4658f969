"""Train a model from scratch, or further, on plain text."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from alignment.artifacts import Artifact, Outcome
from alignment.errors import UserError
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, reference
from alignment.training.engine import EngineSettings
from alignment.training.optimisation import Optimisation, disk_for
from alignment.training.tracking import TrackerSettings

if TYPE_CHECKING:
    from alignment.chat.tokenizers import Tokenizer
    from alignment.data.rows import Split
    from alignment.training.engine import Engine
    from alignment.training.policies import Policy
    from alignment.training.rows import TokenRows

ALGORITHM_VERSION = 1
HELD_OUT_ROWS = 512


class Settings(StrictSettings):
    """``stage=pretrain``."""

    shape: str = identity("the shape of the model, by preset (gemma2_2b, mini, …)")
    weights: str | None = reference("weights to go on from, with their own tokenizer; null starts from scratch")
    tokenizer: str | None = reference("the tokenizer of a model that starts from scratch")
    data: str = reference("a dataset of text")
    block: int = identity("tokens per row at most; longer documents become several rows", ge=16)
    seed: int = identity("of the weights and of the order of the rows", ge=0)
    optimisation: Optimisation = identity("how the model is trained")
    engine: EngineSettings = execution("where and how it runs")
    tracker: TrackerSettings = execution("where its metrics go")


def disk_needed(settings: Settings) -> int:
    """Bytes for the model and its checkpoints."""
    return disk_for(settings.optimisation, settings.shape)


def run(settings: Settings, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """Train on the training split, measure on the validation split, write a model directory."""
    from alignment.training import policies, snapshots
    from alignment.training.engine import resolve
    from alignment.training.session import train_and_measure

    engine = resolve(settings.engine)
    dataset = inputs["data"].need("dataset")
    policy = _start(settings, inputs, engine)
    limit = policy.tokens_limit
    if settings.block > limit:
        raise UserError(f"block={settings.block} is more than the context of {settings.shape}, {limit}")
    outcome = train_and_measure(
        policy,
        title="pretrain",
        rows=_rows(dataset, "train", policy.tokenizer, settings.block),
        held_out_rows=_held_out_rows(dataset, policy.tokenizer, settings.block),
        out=out,
        numbers=settings.optimisation,
        engine=engine,
        tracker_settings=settings.tracker,
        config=settings.model_dump(mode="json"),
        inputs=inputs,
        seed=settings.seed,
    )
    snapshots.write(out, policies.trained(policy), partial(policies.save_policy, policy))
    policies.save_policy(policy, out)
    return outcome


def _start(settings: Settings, inputs: dict[str, Artifact], engine: Engine) -> Policy:
    from alignment.training import policies

    if "weights" in inputs:
        return policies.open_policy(inputs["weights"], engine, shape=settings.shape)
    if "tokenizer" not in inputs:
        raise UserError(
            "weights=null and tokenizer=null", remedy="A model from scratch needs a tokenizer: tokenizer=…."
        )
    return policies.fresh(inputs["tokenizer"].path, settings.shape, "auto", settings.seed, engine)


def _rows(dataset: Artifact, split: Split, tokenizer: Tokenizer, block: int, most: int | None = None) -> TokenRows:
    from alignment.data.pieces import pieces
    from alignment.training.rows import TokenRows

    return TokenRows.gather((piece.ids, piece.mask) for piece in pieces(dataset.path, split, tokenizer, block, most))


def _held_out_rows(dataset: Artifact, tokenizer: Tokenizer, block: int) -> TokenRows | None:
    """Rows of the validation split, or None where the dataset has none."""
    from alignment.data import store

    if "valid" not in store.card(dataset.path)["rows"]:
        return None
    return _rows(dataset, "valid", tokenizer, block, HELD_OUT_ROWS)
