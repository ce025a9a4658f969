"""Merge models that share their ancestor: averages (WARM, Gemma 2), and WARP's slerp and linear interpolation.

WARM is arXiv 2401.12187, Gemma 2 2408.00118, WARP 2406.16768. A run that trained an adapter leaves a whole model and is
merged like any other, so on W + BA; a directory that holds only an adapter is made one first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignment import console, files
from alignment.artifacts import Artifact, Outcome, Tokens
from alignment.errors import UserError
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, reference
from alignment.training.engine import EngineSettings

if TYPE_CHECKING:
    from alignment.merging.ancestors import Ancestor
    from alignment.merging.checkpoint import Merged
    from alignment.merging.members import Member
    from alignment.merging.plan import Plan

ALGORITHM_VERSION = 2
RESULTS, FIGURES = "merge.json", "plots.html"
WORTH_A_WORD = 1.0
"""Seconds from which on a merge is told to take as long as it does."""
ROUNDED = 0.05
"""The share of a task vector that may be rounding before it is said aloud."""
ORDER = "v_1 = δ_1, v_m = slerp(v_(m−1), δ_m; λ_m) with λ_m = w_m / (w_1 + … + w_m), in the order of the models"

KEYS: dict[str, tuple[str, ...]] = {
    "linear": ("weights",),
    "slerp": ("weights",),
    "liti": ("eta",),
    "ema": ("rate",),
}
"""What each method takes of the keys that not all of them take."""


class Settings(StrictSettings):
    """``stage=merge``."""

    models: list[str] = reference(
        "what to merge, [a,b,…]: policies or reward models, in the order that slerp and ema go by; one for liti",
        min_length=1,
    )
    method: Literal["linear", "slerp", "liti", "ema"] = identity(
        "linear: the weighted average of the weights; slerp: on the sphere, of what was learned since the start, by "
        "WARP's recursion; liti: part of the way from the start; ema: θ ← (1 − μ)θ + μθ_m in the order of the models"
    )
    weights: list[float] | None = identity("one for each model, which sum to 1; null is equal ones")
    eta: float | None = identity("liti: the part of the way, 0 the start and 1 the model; η in WARP", ge=0, le=1)
    rate: float | None = identity("ema: what each model after the first counts; μ", gt=0, le=1)
    groups: Literal["layer", "tensor"] = identity("what has an angle of its own; embedding and final norm always do")
    init: str | None = reference("the ancestor of all models, where their lineage does not tell; null finds it there")
    centre: str | None = reference(
        "conversations whose answers score 0 on average once centred, for reward models; null does not centre"
    )
    memory_mib: int = execution("memory of all buffers together, whatever the models' size", ge=8)
    threads: int | None = execution("that read, compute and write; null takes every core", ge=1)
    device: Literal["cpu", "cuda"] = execution("where sums are formed; disks are slower than either")
    engine: EngineSettings = execution("where the scores to centre are computed")

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "settings") -> Settings:
        """Validate, the rules between keys included."""
        settings: Settings = super().parse(values, where)
        for key in ("weights", "eta", "rate"):
            _check_key(settings, key)
        count = len(settings.models)
        if (count == 1) != (settings.method == "liti"):
            raise UserError(
                f"method={settings.method} with {count} {'model' if count == 1 else 'models'}",
                cause="liti goes from the start to one model; the other methods need two and more.",
                remedy="Several η are several merges; several models are merged first.",
            )
        if settings.weights is not None:
            from alignment.merging import plan

            plan.check_weights(settings.weights, count)
        return settings


def _check_key(settings: Settings, key: str) -> None:
    """What a method needs is there, and nothing is given that it would not use."""
    taken, given = key in KEYS[settings.method], getattr(settings, key) is not None
    if given and not taken:
        users = " and ".join(method for method, keys in KEYS.items() if key in keys)
        raise UserError(f"{key}={getattr(settings, key)}: method={settings.method} has no {key}; it is for {users}")
    if taken and not given and key != "weights":
        raise UserError(f"method={settings.method} needs {key}", remedy=f"Say {key}=0.3, for example.")


def disk_needed_from(settings: Settings, folders: Mapping[str, Path]) -> int:
    """Bytes for the merged weights, by the first model that is there already."""
    there = (folders[key] for key in sorted(folders) if key.startswith("models."))
    sizes = (sum(shard.stat().st_size for shard in folder.glob("model*.safetensors")) for folder in there)
    return max(sizes, default=0) + 64 * 2**20


def run(settings: Settings, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """Check that the models belong together, stream their merge, and write a model directory, merge.json and plots."""
    from alignment.data import seen
    from alignment.merging import ancestors, checkpoint, members

    models = [inputs[f"models.{place}"].need("policy", "reward") for place in range(len(settings.models))]
    device = _device(settings)
    trunk = members.trunk_of(models, inputs.get("init"))
    init = inputs.get("init") or trunk
    merging = [members.member(model, trunk, out, place) for place, model in enumerate(models)]
    kind = _kind(merging, settings)
    ancestor = ancestors.common(models, init)
    start = members.start_of(models, init, ancestor, settings.method)
    tokens = _shared_tokens([member.home for member in merging], start)
    plan = _planned(merging, start, settings)
    threads = settings.threads or len(os.sched_getaffinity(0))
    _say_forecast(plan, threads, settings)
    began = time.monotonic()
    members.multiply_out(merging)
    with console.progress("merge", plan.bytes_written >> 20, "MiB") as progress:
        merged = checkpoint.merge(
            plan,
            out,
            memory=settings.memory_mib << 20,
            threads=threads,
            on_progress=lambda done: progress.advance((done >> 20) - progress.done),
            device=device,
        )
    seconds = time.monotonic() - began
    metrics = {
        "spread": merged.spread,
        "models": float(len(models)),
        "tensors": float(merged.tensors),
        "numbers": float(merged.numbers),
        "seconds": seconds,
    }
    if kind == "reward":
        metrics["centre"] = _write_scale(merging, tokens, settings, inputs, out)
    seen.write(out, [], [path for member in merging for path in members.trained(member)])
    _write(merging, plan, ancestor, merged, settings, out)
    rate = (merged.bytes - merged.before) / 1e6 / max(seconds, 1e-9)
    _say_result(models, merged, rate, angles=settings.method == "slerp")
    notes = {
        "method": settings.method,
        "weights": [*plan.weights],
        "ancestor": ancestor.name,
        "device": device,
        "threads": threads,
        "megabytes_per_second": round(rate),
        "resumed_from_bytes": merged.before or None,
    }
    return Outcome(kind, metrics, "spread", tokens=tokens, notes=notes)


# ── what belongs together ────────────────────────────────────────────────────────────────────────


def _device(settings: Settings) -> str:
    import torch

    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: this machine has no CUDA device", remedy="Say device=cpu.")
    return settings.device


def _kind(members: Sequence[Member], settings: Settings) -> Literal["policy", "reward"]:
    """What all the models are."""
    from alignment.gemma import heads

    models = [member.model for member in members]
    for place, model in enumerate(models):
        model.need("policy", "reward")
        twin = next((other for other in models[:place] if other.fingerprint == model.fingerprint), None)
        if twin is not None:
            raise UserError(
                f"{model.path} and {twin.path} are the same model",
                cause="A merge with itself changes nothing but the weights of the others.",
                remedy="Name it once, and say how much it counts with weights=.",
            )
    rewards = [heads.is_reward(member.home.path) for member in members]
    if any(rewards) != all(rewards):
        raise UserError(
            f"{models[rewards.index(True)].path} is a reward model and {models[rewards.index(False)].path} is none",
            cause="A score head has no counterpart in a policy.",
            remedy="Merge policies with policies, and reward models with reward models.",
        )
    if settings.centre is not None and not all(rewards):
        raise UserError(f"centre={settings.centre}: policies have no scores to centre", remedy="Say centre=null.")
    return "reward" if all(rewards) else "policy"


def _shared_tokens(models: Sequence[Artifact], start: Artifact | None) -> Tokens:
    """The vocabulary and chat schema of all models; the start, which may not chat yet, has the same vocabulary."""
    first, *others = [(model.path, _tokens(model)) for model in models]
    both: tuple[str, ...] = ("tokenizer", "chat schema")
    checked = [(path, tokens, both) for path, tokens in others]
    if start is not None and (start.tokens is not None or any(start.path.glob("tokenizer.*"))):
        checked.append((start.path, _tokens(start), ("tokenizer",)))
    for path, tokens, shared in checked:
        for what, mine, theirs in (
            ("tokenizer", tokens.digest, first[1].digest),
            ("chat schema", tokens.schema, first[1].schema),
        ):
            if what in shared and mine != theirs:
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


def _planned(members: Sequence[Member], start: Artifact | None, settings: Settings) -> Plan:
    """The merge, with everything about it that headers and configs can tell checked."""
    from alignment.gemma import core, heads
    from alignment.merging import plan

    configs = {member.home.path: core.read_config(member.home.path) for member in members}
    plan.check_configs({path: config.to_dict() for path, config in configs.items()})
    merge = _laid_out(members, start, settings)
    first = members[0].home
    config = configs[first.path]
    kinds: Mapping[str, Any] = heads.REWARD_MODELS if heads.is_reward(first.path) else core.MODELS
    core.check_tensors(first.path, kinds[config.model_type], config)
    if kinds is heads.REWARD_MODELS and config.num_labels != 1:
        raise UserError(f"{first.path} has {config.num_labels} labels", cause="A reward model gives one score.")
    for member in members if kinds is heads.REWARD_MODELS else ():
        heads.check_head(member.home.path, ours=member.model.kind == "reward")
    return merge


def _laid_out(members: Sequence[Member], start: Artifact | None, settings: Settings) -> Plan:
    """The plan of the method; models are compared with each other before they are with their start."""
    from alignment.merging import coefficients, layout, plan

    layouts = [member.layout for member in members]
    begun = None if start is None else layout.read(start.path)
    if settings.method == "liti":
        assert begun is not None, "it has been asked for"
        assert settings.eta is not None, "it has been asked for"
        return plan.liti(layouts[0], begun, settings.eta, settings.groups)
    if settings.method == "slerp":
        assert begun is not None, "it has been asked for"
        return plan.slerp(layouts, settings.weights, begun, settings.groups)
    weights: Sequence[float] | None = settings.weights
    if settings.method == "ema":
        assert settings.rate is not None, "it has been asked for"
        weights = coefficients.ema(len(layouts), settings.rate)
    return plan.linear(layouts, weights, begun, settings.groups)


# ── what is said ─────────────────────────────────────────────────────────────────────────────────


def _say_forecast(plan: Plan, threads: int, settings: Settings) -> None:
    from alignment.merging.plan import forecast

    told = forecast(plan, threads)
    if told.seconds < WORTH_A_WORD:
        return
    console.say(
        f"  reads {told.read / 1e9:,.2f} GB and writes {told.written / 1e9:,.2f} GB within {settings.memory_mib} MiB, "
        f"about {console.duration(told.seconds)} with {threads} {'thread' if threads == 1 else 'threads'}",
        style="dim",
    )


def _say_result(models: Sequence[Artifact], merged: Merged, rate: float, *, angles: bool) -> None:
    counted = f"{len(models)} {'model' if len(models) == 1 else 'models'}"
    console.say(f"  {counted}, {merged.numbers:,} numbers, {rate:,.0f} MB/s written", style="dim")
    if angles and merged.straight:
        console.say(
            f"  {merged.straight} of {len(merged.layers)} groups have no angle, since a model has not moved there or "
            "two have moved alike: they were averaged",
            style="dim",
        )
    if merged.rounding is not None and merged.rounding.share > ROUNDED:
        console.say(
            f"  {merged.rounding.share:.0%} of what {models[merged.rounding.of].path} has learned is about the size of "
            "the rounding of its file: angles read larger than they are, up to 90°. Merge what training wrote in fp32.",
            style="yellow",
        )


# ── what is written ──────────────────────────────────────────────────────────────────────────────


def _write_scale(
    members: Sequence[Member], tokens: Tokens, settings: Settings, inputs: Mapping[str, Artifact], out: Path
) -> float:
    """Say how the merged scores are read. Their centre is measured: it is not the average of the models' centres."""
    from alignment.gemma import heads
    from alignment.gemma.heads import Scale
    from alignment.training.engine import resolve

    scales = [heads.read_scale(member.home.path) for member in members]
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
    members: Sequence[Member], plan: Plan, ancestor: Ancestor, merged: Merged, settings: Settings, out: Path
) -> None:
    """merge.json and its plots: who was merged, how far apart they are, and which way they went, layer by layer."""
    from alignment.reporting import merges

    names = [member.model.step or member.model.path.name for member in members]
    weighed = [
        {"model": name, "fingerprint": member.model.fingerprint, "weight": weight}
        for name, member, weight in zip(names, members, plan.weights, strict=True)
    ]
    told: dict[str, Any] = {"method": settings.method}
    told |= {key: getattr(settings, key) for key in ("eta", "rate") if key in KEYS[settings.method]}
    told |= {"order": ORDER} if settings.method == "slerp" else {}
    told |= {
        "groups": settings.groups,
        "models": weighed,
        "ancestor": {"fingerprint": ancestor.fingerprint, "name": ancestor.name},
        **merged.record(),
        "rounding": None
        if merged.rounding is None
        else {"share": merged.rounding.share, "of": names[merged.rounding.of]},
    }
    files.write_json(out / RESULTS, told)
    files.write_atomic(out / FIGURES, merges.page(told))
