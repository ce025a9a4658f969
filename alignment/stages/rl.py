"""Reinforcement learning from rewards: PPO with a critic, RLOO or REINFORCE, under a fixed or a moving anchor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignment import console, files
from alignment.artifacts import Artifact, Outcome
from alignment.errors import UserError
from alignment.rl.settings import Anchoring, Critic, Drawing, Estimating, Updating, Watching, check
from alignment.sampling.served import Server, open_drawer
from alignment.scoring.combine import RewardSettings
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, reference
from alignment.training.engine import EngineSettings
from alignment.training.model_settings import AdapterSettings
from alignment.training.tracking import TrackerSettings

if TYPE_CHECKING:
    import torch

    from alignment.chat.types import Prompt
    from alignment.gemma.roles import Roles
    from alignment.rl.loop import Course
    from alignment.sampling.drawer import Drawer
    from alignment.scoring.scorer import Scorer
    from alignment.training.engine import Engine
    from alignment.training.policies import Policy

ALGORITHM_VERSION = 1
PLOTS = "plots.html"
RECORDS = 64 * 2**20
"""Bytes at most for metrics, front, samples and figures."""
MINIATURE_VOCABULARY = 4_096
"""Pieces at most, where it is not there yet."""


class Settings(StrictSettings):
    """``stage=rl``."""

    policy: str = reference("the policy to start from", kinds=("policy",))
    attention: Literal["auto", "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3"] = execution(
        "attention kernel; auto chooses by model and device, and a wrong choice is refused"
    )
    prompts: str = reference("a dataset of prompts: train to learn from, valid to measure by", kinds=("dataset",))
    count: int | None = identity("training prompts at most, the first; null takes all", ge=1)
    reward: RewardSettings = identity("what an answer is worth")
    roles: Literal["separate", "shared"] = identity(
        "separate: policy, anchor and critic are models of their own; shared: adapters on one frozen trunk"
    )
    half_trunk: bool = identity("shared: keep the frozen projections in bf16, under bf16 arithmetic alone")
    adapter: AdapterSettings = identity("separate: train all weights or adapters; shared: the adapters' shape")
    drawing: Drawing = identity("how answers are drawn")
    server: Server = execution("what draws them, where it is not this process")
    estimating: Estimating = identity("from rewards to advantages")
    anchoring: Anchoring = identity("what the policy is held to")
    critic: Critic = identity("gae: the critic")
    updating: Updating = identity("how it learns")
    watching: Watching = identity("held-out prompts along the way")
    seed: int = identity("of the draws, of the order of prompts and minibatches, and of fresh adapters", ge=0)
    engine: EngineSettings = execution("where and how it runs")
    tracker: TrackerSettings = execution("where its metrics go")

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "settings") -> Settings:
        """Validate, the rules between keys included."""
        settings: Settings = super().parse(values, where)
        check(settings.drawing, settings.estimating, settings.anchoring, settings.critic, settings.updating)
        _check_use(settings)
        if settings.roles == "shared" and settings.adapter.kind != "lora":
            raise UserError(
                f"adapter.kind={settings.adapter.kind}: roles that share a trunk are adapters on it",
                remedy="Say adapter.kind=lora.",
            )
        if settings.adapter.dropout:
            raise UserError(
                f"adapter.dropout={settings.adapter.dropout:g}: the policy that learns would not be the one that drew",
                cause="At the start of every step their ratio is to be 1.",
                remedy="Say adapter.dropout=0.",
            )
        if settings.adapter.kind == "qlora":
            raise UserError("adapter.kind=qlora: is not for stage=rl", remedy="Say adapter.kind=lora or none.")
        return settings


def _check_use(settings: Settings) -> None:
    """Raise :class:`UserError` for what would be accepted and not used."""
    gae = settings.estimating.kind == "gae"
    if settings.half_trunk and settings.roles != "shared":
        raise UserError("half_trunk=true: only roles=shared has a frozen trunk", remedy="Say half_trunk=false.")
    if settings.critic.weights is not None and not (gae and settings.critic.init == "reward"):
        raise UserError(
            f"critic.weights={settings.critic.weights}: nothing begins with them here",
            remedy="Say critic.weights=null, or estimating.kind=gae critic.init=reward.",
        )
    if settings.watching.guard_drop and settings.watching.guard is None:
        raise UserError(
            f"watching.guard_drop={settings.watching.guard_drop:g}: there is no guard", remedy="Name watching.guard."
        )
    if not settings.drawing.stop and settings.reward.unfinished is not None:
        raise UserError(
            "drawing.stop=false: no answer ends, and every one would get reward.unfinished",
            remedy="Say reward.unfinished=null.",
        )


def disk_needed_from(settings: Settings, folders: Mapping[str, Path]) -> int:
    """Bytes for the policy and its checkpoints, by its own weights where they are there already.

    A checkpoint has what is trained, two moments of it, a moving anchor, and the best policy so far. Two are kept, and
    a third exists while it is being written. The best policy lies beside them once more.
    """
    weights, adapters = _bytes(folders.get("policy"), settings.adapter.rank)
    trained = adapters if settings.roles == "shared" or settings.adapter.kind == "lora" else weights
    checkpoint = 3 * trained * (2 if settings.estimating.kind == "gae" else 1)
    best = trained * (settings.watching.keep == "best")
    checkpoint += trained * (settings.anchoring.kind == "ema") + best
    return weights + 3 * checkpoint + best + RECORDS


def _bytes(folder: Path | None, rank: int) -> tuple[int, int]:
    """Of a model in fp32, and of adapters to it; without a folder those of the miniature, in which they are one."""
    from alignment.gemma.presets import parameter_counts, shape_named
    from alignment.training.optimisation import bytes_of

    if folder is not None:
        return bytes_of(folder, rank)
    weights = 4 * sum(parameter_counts(shape_named("mini"), MINIATURE_VOCABULARY))
    return weights, weights


def run(settings: Settings, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """Train, measure on the way, write a policy's directory, with metrics, front and samples (jsonl) and plots.html."""
    from alignment.chat.types import row_key
    from alignment.data import seen
    from alignment.rl import loop, state
    from alignment.rl.learner import Learner
    from alignment.rl.records import Records
    from alignment.training import policies, snapshots, team
    from alignment.training.engine import resolve
    from alignment.training.tracking import Tracker

    engine = resolve(settings.engine)
    prompts = _prompts(inputs["prompts"], "train", settings.count)
    policy = policies.open_policy(inputs["policy"], engine, attention=settings.attention)
    _check_lengths(prompts, policy, settings)
    roles = _roles(settings, inputs, policy, engine)
    course = _course(settings, inputs, policy, roles, prompts, engine, out)
    learner = Learner(
        roles,
        settings.updating,
        settings.critic,
        engine,
        samples=settings.drawing.samples,
        temperature=settings.drawing.temperature,
        pad_id=policy.tokenizer.pad_id,
        seed=settings.seed,
    )
    tracker = Tracker(settings.tracker, out, settings.model_dump(mode="json"), stage="rl", inputs=inputs)
    progress = loop.run(course, learner, Records(tracker, out))

    def save(folder: Path) -> None:
        policies.save_policy(policies.Policy(_final(settings, inputs, roles), policy.tokenizer, policy.schema), folder)

    snapshots.write(out, state.trained(learner), save)
    save(out)
    seen.write(out, map(row_key, prompts), [artifact.path for artifact in inputs.values() if artifact.path.is_dir()])
    best = progress.judgement.best_step if settings.watching.keep == "best" else None
    metrics = team.from_main(lambda: _report(out, best))
    tracker.finish(metrics)
    notes = engine.notes() | {
        "drawn": "here" if settings.server.url is None else f"vLLM at {settings.server.url}",
        "draws_dropped": getattr(course.drawer, "failures", 0),
        "ended": progress.judgement.ended or "all steps done",
        "steps": progress.step,
        "tokens_drawn": team.from_main(lambda: _drawn(out, settings.updating.batch)),
    }
    return Outcome("policy", metrics, "reward", tokens=policy.tokens, notes=notes)


# ── what goes in ─────────────────────────────────────────────────────────────────────────────────


def _prompts(dataset: Artifact, split: Literal["train", "valid"], count: int | None) -> list[Prompt]:
    from itertools import islice

    from alignment.chat.types import Prompt
    from alignment.data import store

    rows = store.card(dataset.need("dataset").path)["rows"]
    if not rows.get(split):
        raise UserError(
            f"{dataset.path} has no prompt in its split {split}",
            cause="Reinforcement learning draws answers to train prompts and measures itself on valid ones.",
            remedy="Give a dataset with both; its recipe's `splits` say how it is divided.",
        )
    prompts: list[Prompt] = []
    for row in islice(store.stream(dataset.path, split), count):
        if not isinstance(row, Prompt):
            raise UserError(f"{dataset.path} holds no prompts", remedy="Give a dataset whose recipe has kind: prompts.")
        prompts.append(row)
    return prompts


def _check_lengths(prompts: list[Prompt], policy: Policy, settings: Settings) -> None:
    """Before anything is drawn: every prompt leaves room for an answer."""
    from alignment.chat.render import prompt_ids

    room = policy.tokens_limit - settings.drawing.max_new_tokens
    for prompt in prompts:
        tokens = len(prompt_ids(prompt.messages, policy.tokenizer))
        if tokens > room:
            raise UserError(
                f"prompt {prompt.id} has {tokens:,} tokens",
                cause=f"The policy sees {policy.tokens_limit:,}, of which drawing.max_new_tokens="
                f"{settings.drawing.max_new_tokens} are for the answer.",
                remedy="Leave such prompts out by the recipe's `length` filter, or ask for shorter answers.",
            )


def _course(
    settings: Settings,
    inputs: dict[str, Artifact],
    policy: Policy,
    roles: Roles,
    prompts: list[Prompt],
    engine: Engine,
    out: Path,
) -> Course:
    from alignment.data import store
    from alignment.rl.held_out import HeldOut
    from alignment.rl.loop import Course
    from alignment.scoring.combine import open_reward

    dataset = inputs["prompts"]
    world = store.world_of(dataset.path)
    held = _prompts(dataset, "valid", settings.watching.prompts)
    shared = _scorer_on_the_trunk(inputs, policy, roles, engine)
    reward = open_reward(settings.reward, inputs, engine, [*prompts, *held], world, shared)
    others, guard = _others(settings, inputs, engine, [*prompts, *held], world)
    start = _start(settings, inputs, policy, roles, engine)
    return Course(
        policy=policy,
        prompts=prompts,
        reward=reward,
        held_out=HeldOut(held, reward, others, start, policy, settings.drawing, engine.device),
        drawer=_drawer(settings, policy, engine),
        drawing=settings.drawing,
        estimating=settings.estimating,
        anchoring=settings.anchoring,
        updating=settings.updating,
        watching=settings.watching,
        guard=guard,
        starts_at_anchor="anchoring.weights" not in inputs,
        seed=settings.seed,
        out=out,
    )


def _start(
    settings: Settings, inputs: dict[str, Artifact], policy: Policy, roles: Roles, engine: Engine
) -> torch.nn.Module:
    """The policy to which the KL is measured, as it is now; no second copy where one is held anyway."""
    from alignment.training import policies
    from alignment.training.roles import need_same_tokens

    if "watching.reference" in inputs:
        need_same_tokens(inputs["watching.reference"], "watching.reference", policy)
        other = policies.open_policy(inputs["watching.reference"], engine, attention=settings.attention)
        return other.model.requires_grad_(False)
    if settings.roles == "shared":
        return policy.model  # The trunk, without any adapter.
    if settings.anchoring.kind == "fixed" and "anchoring.weights" not in inputs:
        return roles.anchor
    return policies.open_policy(inputs["policy"], engine, attention=settings.attention).model.requires_grad_(False)


def _scorer_on_the_trunk(
    inputs: dict[str, Artifact], policy: Policy, roles: Roles, engine: Engine
) -> dict[str, Scorer]:
    """The reward model where it is an adapter on the policy's trunk, for its key: it is not read a second time."""
    from alignment.gemma import heads
    from alignment.gemma.shared_roles import Shared
    from alignment.scoring.reward_model import RewardScorer
    from alignment.scoring.scorer import name_of

    if not isinstance(roles, Shared) or not roles.has_reward or "critic.weights" in inputs:
        return {}
    artifact = inputs["reward.model"]
    scale = heads.check_head(artifact.path, ours=True)
    assert scale is not None, "a reward model of ours says how its scores are read"
    return {"model": RewardScorer(name_of(artifact), roles.reward_model(), policy.tokenizer, scale, engine)}


def _drawer(settings: Settings, policy: Policy, engine: Engine) -> Drawer:
    stop_ids = policy.stop_ids if settings.drawing.stop else ()
    return open_drawer(settings.server, stop_ids=stop_ids, pad_id=policy.tokenizer.pad_id, device=engine.device)


def _others(
    settings: Settings, inputs: dict[str, Artifact], engine: Engine, prompts: list[Prompt], world: Any
) -> tuple[dict[str, Scorer], str | None]:
    """The scorers that only look on, by name, and the guard's name."""
    from alignment.evals.names import names_of
    from alignment.scoring.opening import open_scorer

    keys = [key for key in inputs if key.startswith("watching.") and key != "watching.reference"]
    reading = settings.reward.classifier
    names = names_of([inputs[key] for key in keys])
    scorers = {
        name: open_scorer(inputs[key], engine, world, label=reading.label, text=reading.text, prompts=prompts)
        for key, name in zip(keys, names, strict=True)
    }
    guard = next((name for key, name in zip(keys, names, strict=True) if key == "watching.guard"), None)
    return scorers, guard


def _roles(settings: Settings, inputs: dict[str, Artifact], policy: Policy, engine: Engine) -> Roles:
    import torch

    from alignment.training import roles

    torch.manual_seed(settings.seed)
    return roles.open_roles(
        policy,
        inputs,
        engine,
        kind=settings.roles,
        adapter=settings.adapter,
        critic=settings.critic.init if settings.estimating.kind == "gae" else None,
        moves=settings.anchoring.kind == "ema",
        half=settings.half_trunk,
        attention=settings.attention,
    )


def _final(settings: Settings, inputs: dict[str, Artifact], roles: Roles) -> torch.nn.Module:
    """The policy as a plain model in fp32; what was rounded to make room is read again."""
    from alignment.gemma import core
    from alignment.gemma.shared_roles import Shared

    if isinstance(roles, Shared) and settings.half_trunk:
        return roles.plain_policy(core.load(inputs["policy"].path))
    return roles.plain_policy()


# ── what came of it ──────────────────────────────────────────────────────────────────────────────


def _report(out: Path, best: int | None) -> dict[str, float]:
    """The closing table, from the points on held-out prompts, and the page of figures; the kept policy's numbers."""
    from alignment.reporting import rl_plots, rl_tables
    from alignment.rl import records
    from alignment.training.tracking import METRICS

    points = records.read(out / records.FRONT)
    kept = next((point for point in points if point["step"] == best), points[-1])
    rl_tables.show(points, kept)
    if console.is_main_process():
        metrics, samples = records.read(out / METRICS), records.read(out / records.SAMPLES)
        files.write_atomic(out / PLOTS, rl_plots.page(metrics, points, samples, kept=kept["step"]))
        console.say(f"  {out / PLOTS} shows the way there, with samples of what was said", style="dim")
    return {"reward": kept["reward"], "kl": kept["kl"], "steps": float(points[-1]["step"])} | {
        f"held_out/{name}": value for name, value in kept["others"].items()
    }


def _drawn(out: Path, answers: int) -> int:
    """Tokens of all answers that were learned from, ``answers`` a step."""
    from alignment.training.tracking import METRICS, read_metrics

    lengths = (row["length/mean"] for row in read_metrics(out / METRICS) if "length/mean" in row)
    return round(sum(length * answers for length in lengths))
