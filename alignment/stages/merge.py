"""Average models that share their ancestor: policies, or reward models (WARM, arXiv 2401.12187)."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignment import console, files
from alignment.artifacts import Artifact, Outcome, Tokens
from alignment.errors import UserError
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, reference
from alignment.store import parse_reference
from alignment.training.engine import EngineSettings

if TYPE_CHECKING:
    from alignment.merging.ancestors import Ancestor
    from alignment.merging.checkpoint import Merged
    from alignment.merging.plan import Plan

ALGORITHM_VERSION = 1
RESULTS = "merge.json"


class Settings(StrictSettings):
    """``stage=merge``."""

    models: list[str] = reference("the models to merge, [a,b,…]: all policies or all reward models", min_length=2)
    method: Literal["linear"] = identity("linear: the weighted average of the weights")
    weights: list[float] | None = identity("one for each model, which sum to 1; null is equal ones")
    init: str | None = reference("the ancestor of all models, where their lineage does not tell; null finds it there")
    centre: str | None = reference(
        "conversations whose answers score 0 on average once centred, for reward models; null does not centre"
    )
    memory_mib: int = execution("memory of all buffers together, whatever the models' size", ge=8)
    threads: int | None = execution("that read, compute and write; null takes every core", ge=1)
    engine: EngineSettings = execution("where the scores to centre are computed")

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "settings") -> Settings:
        """Validate, the rules between keys included."""
        settings: Settings = super().parse(values, where)
        if settings.weights is not None:
            from alignment.merging import plan

            plan.check_weights(settings.weights, len(settings.models))
        return settings


def disk_needed(settings: Settings) -> int:
    """Bytes for the merged weights, where the first model lies in a folder that is named."""
    first = parse_reference(settings.models[0])
    folder = Path(first.name).expanduser()
    shards = folder.glob("*.safetensors") if first.scheme in ("run", "dir") else ()
    return sum(shard.stat().st_size for shard in shards) + 64 * 2**20


def run(settings: Settings, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """Check that the models belong together, stream their average, and write a model directory and merge.json."""
    from alignment.data import seen
    from alignment.merging import ancestors, checkpoint

    models = [inputs[f"models.{place}"] for place in range(len(settings.models))]
    kind = _kind(models, settings)
    tokens = _shared_tokens(models)
    ancestor = ancestors.common(models, inputs.get("init"))
    plan = _planned(models, inputs.get("init"), settings)
    threads = settings.threads or len(os.sched_getaffinity(0))
    began = time.monotonic()
    with console.progress("merge", plan.bytes_written >> 20, "MiB") as progress:
        merged = checkpoint.merge(
            plan,
            out,
            memory=settings.memory_mib << 20,
            threads=threads,
            on_progress=lambda done: progress.advance((done >> 20) - progress.done),
        )
    seconds = time.monotonic() - began
    rate = (merged.bytes - merged.before) / 1e6 / max(seconds, 1e-9)
    metrics = {
        "spread": merged.spread,
        "models": float(len(models)),
        "tensors": float(merged.tensors),
        "numbers": float(merged.numbers),
        "seconds": seconds,
    }
    if kind == "reward":
        metrics["centre"] = _write_scale(models, tokens, settings, inputs, out)
    seen.write(out, [], [model.path for model in models])
    _write(models, plan, ancestor, merged, settings, out)
    console.say(f"  {len(models)} models, {merged.numbers:,} numbers, {rate:,.0f} MB/s written", style="dim")
    notes = {
        "method": settings.method,
        "weights": [*plan.weights],
        "ancestor": ancestor.name,
        "threads": threads,
        "megabytes_per_second": round(rate),
        "resumed_from_bytes": merged.before or None,
    }
    return Outcome(kind, metrics, "spread", tokens=tokens, notes=notes)


# ── what belongs together ────────────────────────────────────────────────────────────────────────


def _kind(models: Sequence[Artifact], settings: Settings) -> Literal["policy", "reward"]:
    """What all the models are."""
    from alignment.gemma import heads

    for place, model in enumerate(models):
        model.need("policy", "reward")
        twin = next((other for other in models[:place] if other.fingerprint == model.fingerprint), None)
        if twin is not None:
            raise UserError(
                f"{model.path} and {twin.path} are the same model",
                cause="An average with itself changes nothing but the weights of the others.",
                remedy="Name it once, and say how much it counts with weights=.",
            )
    rewards = [heads.is_reward(model.path) for model in models]
    if any(rewards) != all(rewards):
        raise UserError(
            f"{models[rewards.index(True)].path} is a reward model and {models[rewards.index(False)].path} is none",
            cause="A score head has no counterpart in a policy.",
            remedy="Merge policies with policies, and reward models with reward models.",
        )
    if settings.centre is not None and not all(rewards):
        raise UserError(f"centre={settings.centre}: policies have no scores to centre", remedy="Say centre=null.")
    return "reward" if all(rewards) else "policy"


def _shared_tokens(models: Sequence[Artifact]) -> Tokens:
    """The vocabulary and chat schema of all models."""
    first, *others = [(model.path, _tokens(model)) for model in models]
    for path, tokens in others:
        for what, mine, theirs in (
            ("tokenizer", tokens.digest, first[1].digest),
            ("chat schema", tokens.schema, first[1].schema),
        ):
            if mine != theirs:
                raise UserError(
                    f"{path} has another {what} than {first[0]}",
                    cause=f"{mine[:12]} and {theirs[:12]}: the same weights stand for different text.",
                    remedy="Merge models that were trained with one tokenizer and one chat schema.",
                )
    return first[1]


def _tokens(model: Artifact) -> Tokens:
    from alignment.gemma import core, heads
    from alignment.training import policies

    if model.tokens is not None:
        return model.tokens
    tokenizer, schema = policies.vocabulary_of(model, shape=None, schema="auto")
    scale = heads.read_scale(model.path)
    padded = core.read_config(model.path).vocab_size
    return Tokens(tokenizer.digest, tokenizer.vocab_size, padded, schema if scale is None else scale.schema)


def _planned(models: Sequence[Artifact], init: Artifact | None, settings: Settings) -> Plan:
    """The merge, with everything about it that headers and configs can tell checked."""
    from alignment.gemma import core, heads
    from alignment.merging import layout, plan

    configs = {model.path: core.read_config(model.path) for model in models}
    plan.check_configs({path: config.to_dict() for path, config in configs.items()})
    merge = plan.linear([layout.read(model.path) for model in models], settings.weights)
    config = configs[models[0].path]
    kinds: Mapping[str, Any] = heads.REWARD_MODELS if heads.is_reward(models[0].path) else core.MODELS
    core.check_tensors(models[0].path, kinds[config.model_type], config)
    if kinds is heads.REWARD_MODELS and config.num_labels != 1:
        raise UserError(f"{models[0].path} has {config.num_labels} labels", cause="A reward model gives one score.")
    for model in models if kinds is heads.REWARD_MODELS else ():
        heads.check_head(model.path, ours=model.kind == "reward")
    if init is not None:
        plan.check_ancestor(layout.read(init.need("policy", "reward").path), merge.models[0])
    return merge


# ── what is written ──────────────────────────────────────────────────────────────────────────────


def _write_scale(
    models: Sequence[Artifact], tokens: Tokens, settings: Settings, inputs: Mapping[str, Artifact], out: Path
) -> float:
    """Say how the merged scores are read. Their centre is measured: it is not the average of the models' centres."""
    from alignment.gemma import heads
    from alignment.gemma.heads import Scale
    from alignment.training.engine import resolve

    scales = [heads.read_scale(model.path) for model in models]
    absolute = all(scale is not None and scale.absolute for scale in scales)
    centre = 0.0
    heads.write_scale(out, Scale(centre, absolute, tokens.schema))
    if settings.centre is not None:
        from alignment.scoring import centring

        conversations = inputs["centre"].need("dataset").path
        centre = centring.centre_of(out, conversations, resolve(settings.engine)).value
        heads.write_scale(out, Scale(centre, absolute, tokens.schema))
    return centre


def _write(
    models: Sequence[Artifact], plan: Plan, ancestor: Ancestor, merged: Merged, settings: Settings, out: Path
) -> None:
    """merge.json: who was merged, and how far apart they are, layer by layer."""
    members = [
        {"model": model.step or model.path.name, "fingerprint": model.fingerprint, "weight": weight}
        for model, weight in zip(models, plan.weights, strict=True)
    ]
    told = {"method": settings.method, "models": members, "ancestor": asdict(ancestor), **merged.record()}
    files.write_json(out / RESULTS, told)
