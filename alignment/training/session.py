"""What stages that train share: measure, train, measure again, and say what came of it; or train on pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from alignment import console
from alignment.artifacts import Artifact, Outcome
from alignment.training import policies, team
from alignment.training.engine import Engine
from alignment.training.held_out import held_out
from alignment.training.loop import Trained
from alignment.training.optimisation import Optimisation
from alignment.training.pair_rows import PairRows
from alignment.training.policies import Policy
from alignment.training.rewards import Reward
from alignment.training.rows import TokenRows, planned_tokens
from alignment.training.supervised import train
from alignment.training.tracking import Tracker, TrackerSettings, read_metrics

HELD_OUT = "held_out_loss"


def train_and_measure(
    policy: Policy,
    *,
    title: str,
    rows: TokenRows,
    held_out_rows: TokenRows | None,
    out: Path,
    numbers: Optimisation,
    engine: Engine,
    tracker_settings: TrackerSettings,
    config: Mapping[str, Any],
    inputs: Mapping[str, Artifact],
    seed: int,
    train: Callable[..., Trained] = train,
) -> Outcome:
    """Train the policy's model in place. The headline is the loss on held-out rows, in nats per token.

    ``train`` is another than ``supervised.train`` where the rows are learned from in another way.
    """
    tracker = Tracker(tracker_settings, out, config, stage=title, inputs=inputs)
    pad_id = policy.tokenizer.pad_id
    before = _loss_before(policy, held_out_rows, pad_id, engine, tracker)
    policies.save_tokenizer(policy.tokenizer, policy.schema, out)
    trained = train(
        policy.model,
        rows,
        title=title,
        out=out,
        tokenizer_folder=out,
        pad_id=pad_id,
        numbers=numbers,
        engine=engine,
        tracker=tracker,
        seed=seed,
    )
    metrics = {
        "loss": trained.loss,
        "steps": float(trained.steps),
        "rows": float(len(rows)),
        "trained_tokens": float(rows.trained_tokens),
    }
    if held_out_rows is not None:
        after = held_out(policy.model, held_out_rows, pad_id=pad_id, engine=engine).mean
        metrics |= {f"{HELD_OUT}_before": before, HELD_OUT: after, "perplexity": math.exp(min(after, 700))}
        if not _recorded(tracker, trained.steps):
            tracker.log(trained.steps, {HELD_OUT: after})
    tracker.finish(metrics)
    rate = trained.amount / max(trained.seconds, 1e-9)
    console.say(f"  {trained.steps:,} steps, {rate:,.0f} real tokens/s", style="dim")
    notes = engine.notes() | {"tokens_per_second": round(rate), "resumed_from_step": trained.resumed_from}
    if held_out_rows is not None:
        notes["held_out_rows"] = len(held_out_rows)
    notes["tokens_processed"] = planned_tokens(rows.lengths, numbers.batch, trained.steps, seed, numbers.length_window)
    return Outcome(
        "policy", metrics, HELD_OUT if held_out_rows is not None else "loss", tokens=policy.tokens, notes=notes
    )


def train_on_pairs(
    learner: Policy | Reward,
    rows: PairRows,
    train: Callable[..., Trained],
    *,
    title: str,
    out: Path,
    numbers: Optimisation,
    engine: Engine,
    tracker_settings: TrackerSettings,
    config: Mapping[str, Any],
    inputs: Mapping[str, Artifact],
    seed: int,
) -> tuple[dict[str, Any], dict[str, float]]:
    """Train the learner's model in place on comparisons; notes and metrics of it."""
    tracker = Tracker(tracker_settings, out, config, stage=title, inputs=inputs)
    policies.save_tokenizer(learner.tokenizer, learner.schema, out)
    trained = train(
        learner.model,
        rows,
        title=title,
        out=out,
        tokenizer_folder=out,
        pad_id=learner.tokenizer.pad_id,
        numbers=numbers,
        engine=engine,
        tracker=tracker,
        seed=seed,
    )
    metrics = {"loss": trained.loss, "steps": float(trained.steps), "pairs": float(len(rows))}
    tracker.finish(metrics)
    rate = trained.amount / max(trained.seconds, 1e-9)
    console.say(f"  {trained.steps:,} steps, {rate:,.0f} pairs/s", style="dim")
    tokens = planned_tokens(rows.lengths, numbers.batch, trained.steps, seed, numbers.length_window)
    told = {"pairs_per_second": round(rate), "resumed_from_step": trained.resumed_from, "tokens_processed": tokens}
    return told, metrics


def _loss_before(policy: Policy, rows: TokenRows | None, pad_id: int, engine: Engine, tracker: Tracker) -> float:
    """The held-out loss before training; a resumed run reads it from the first one's metrics."""
    if rows is None:
        return math.nan
    if recorded := _recorded(tracker, 0):
        return recorded[0]
    loss = held_out(policy.model, rows, pad_id=pad_id, engine=engine).mean
    tracker.log(0, {HELD_OUT: loss})
    return loss


def _recorded(tracker: Tracker, step: int) -> list[float]:
    """The held-out loss at a step, where an earlier start has written it: a rewind leaves what stands at its step."""
    return team.from_main(
        lambda: [row[HELD_OUT] for row in read_metrics(tracker.path) if row["step"] == step and HELD_OUT in row]
    )
