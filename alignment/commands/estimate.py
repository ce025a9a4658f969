"""Say what a run would take: memory of each GPU by its parts, what passes between them, and the least that would do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast, get_args

from alignment import artifacts, console, files
from alignment.artifacts import Artifact
from alignment.errors import UserError
from alignment.estimate import hardware, jobs, memory
from alignment.estimate.arithmetic import ARITHMETIC, Attention, Model
from alignment.estimate.communication import bandwidth
from alignment.estimate.distillation import SAMPLER_ROWS, Teaching
from alignment.estimate.hardware import GIB
from alignment.estimate.jobs import Job
from alignment.estimate.memory import Phase, Way
from alignment.estimate.roles import Drawing, Roles
from alignment.gemma.presets import SHAPES, Shape, shape_named
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, place, text
from alignment.store import Store, parse_reference
from alignment.training.engine import EngineSettings, share_of

RELEASED_VOCABULARY, MINIATURE_VOCABULARY = 256_000, 4_096
"""Rows of the embedding in Gemma's released configs, and about those of the miniature's."""
LARGEST = 512
"""GPUs up to which the least that fits is looked for."""
ENGINES = {
    "ddp": (0, False),
    "zero1": (1, False),
    "zero2": (2, False),
    "zero3": (3, False),
    "zero3_offload": (3, True),
}
"""ZeRO's stage and whether it offloads, by the name of the engine."""


class ModelOf(StrictSettings):
    """``conf/model/*.yaml``; nothing but a shape is taken from it."""

    weights: str = text("read where shape is null: latest:<stage>, run:<path>, dir:<path> or mini:<name>")
    shape: str | None = identity("the shape, by preset; null takes that of the weights")
    chat_schema: str = text("no matter here")
    attention: Literal["auto", "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3"] = execution(
        "attention kernel; auto is what a GPU takes: flex_attention for Gemma 2, sdpa for Gemma 1"
    )


class Reinforcing(StrictSettings):
    """of=rl: who is there, and what is drawn."""

    roles: Literal["separate", "shared"] = identity(
        "a trunk for each role, or adapters on one (adapter_rank says which)"
    )
    half_trunk: bool = identity("shared: hold the trunk's projections in bf16")
    critic: bool = identity("whether there is one (gae), of the policy's shape")
    anchor: Literal["fixed", "ema"] = identity("whether the anchor stays, or follows the policy")
    rewards: list[str] = identity("shapes of the reward models, [a,b,…]; with shared roles the first is on their trunk")
    prompt: int = identity("tokens of a prompt", ge=1)
    answer: int = identity("tokens of an answer", ge=1)
    samples: int = identity("answers to every prompt", ge=1)
    draw_rows: int = execution("answers that are drawn at the same time on a GPU, at most", ge=1)
    drawn: Literal["here", "server"] = execution("who draws: the GPUs that learn, or a server")


class Distilling(StrictSettings):
    """of=distill: who teaches, and what is drawn."""

    mode: Literal["offline", "live", "on_policy", "minillm"] = identity("as of stage=distill")
    teacher: str | None = identity("shape of a teacher in memory; null where it is stored, or behind a server")
    top_k: int = identity("likeliest tokens that such a teacher has told", ge=1)
    tail_draws: int = identity("others that it has drawn beside them", ge=0)
    prompt: int = identity("on_policy, minillm: tokens of a prompt", ge=1)
    answer: int = identity("on_policy, minillm: tokens of an answer", ge=1)
    rollouts: int = identity("minillm: answers that are drawn at once, over all GPUs", ge=1)
    drawn: Literal["here", "server"] = execution("on_policy: who draws, the GPUs that learn or a server")


class Settings(StrictSettings):
    """``stage=estimate``."""

    of: jobs.Stage = identity("the stage")
    model: ModelOf
    engine: EngineSettings
    gpus: int | list[int] = execution("how many, or several numbers of them: [8,64,…]")
    gpu: str = text("which: " + ", ".join(hardware.GPUS))
    usable: float = execution(
        "share of a GPU's memory for all this; CUDA, NCCL and fragments have the rest", gt=0, le=1
    )
    gpus_per_node: int = execution("that are linked directly", ge=1)
    network: float | None = execution(
        "GB/s of a node's network in one direction; null takes what such nodes have", gt=0
    )
    vocabulary: int | None = identity("rows of the embedding; null takes the weights', or Gemma's 256,000", ge=1)
    batch: int = identity(
        "rows an optimiser step, over all GPUs: conversations, pairs (reward, dpo), answers (rl)", ge=1
    )
    length: int = identity(
        "tokens of a row; of a pair, of its prompt and both answers (what is drawn: see rl.… and distill.…)", ge=2
    )
    adapter_rank: int | None = identity("rank of a LoRA on every projection; null trains all weights", ge=1)
    rl: Reinforcing
    distill: Distilling
    out: str | None = place("a file for the numbers; null writes none")

    @property
    def numbers(self) -> list[int]:
        """Of GPUs."""
        return [self.gpus] if isinstance(self.gpus, int) else self.gpus

    @property
    def draws(self) -> Reinforcing | Distilling | None:
        """What says how long prompts and answers are, where answers are drawn."""
        if self.of == "distill" and self.distill.mode in ("on_policy", "minillm"):
            return self.distill
        return self.rl if self.of == "rl" else None

    @property
    def tokens(self) -> int:
        """Of a row."""
        return self.length if self.draws is None else self.draws.prompt + self.draws.answer


def run(settings: Settings, inputs: dict[str, Artifact], store: Store) -> None:
    """Print one column for each number of GPUs. Raises :class:`UserError` for what no run could be."""
    gpu = hardware.gpu_named(settings.gpu)
    shape, vocabulary = _shape(settings, store)
    _check(settings, shape)
    model = Model(shape, vocabulary, settings.adapter_rank, score=settings.of == "reward")
    found = {}
    for gpus in settings.numbers:
        _check_processes(settings.engine, gpus)
        found[gpus] = _job(settings, model, gpus, settings.engine.zero, settings.engine.offload)
    room = settings.usable * gpu.memory
    _title(settings, model, found)
    _memory_table(settings, found, room)
    _traffic_table(settings, found, gpu)
    least = {name: _least(settings, model, room, *how) for name, how in ENGINES.items()}
    _least_table(settings, least)
    if settings.out is not None:
        target = Path(settings.out).expanduser()
        files.write_json(target, _numbers(settings, model, found, gpu, least))
        console.say(f"{target}: the same as numbers", style="")


# ── what is asked ────────────────────────────────────────────────────────────────────────────────


def _shape(settings: Settings, store: Store) -> tuple[Shape, int]:
    """Shape and vocabulary: of the preset, or of the weights that are named. No weight is read."""
    name = settings.model.shape
    if name is not None:
        return shape_named(name), settings.vocabulary or _usual(name)
    reference = parse_reference(settings.model.weights)
    if reference.scheme == "mini":
        return SHAPES["mini"], settings.vocabulary or MINIATURE_VOCABULARY
    if reference.scheme not in ("latest", "run", "dir"):
        raise UserError(
            f"model={reference}: nothing says its shape, and nothing is downloaded for an estimate",
            remedy="Say model.shape=…: " + ", ".join(SHAPES) + ".",
        )
    from alignment.gemma import core

    where = store.latest(reference.name).path if reference.scheme == "latest" else Path(reference.name).expanduser()
    config = core.read_config(where)
    return core.shape_of(config), settings.vocabulary or config.vocab_size


def _usual(shape: str) -> int:
    return MINIATURE_VOCABULARY if shape.startswith("mini") else RELEASED_VOCABULARY


def _check(settings: Settings, shape: Shape) -> None:
    """Refuse what a stage would refuse, and what has no GPU."""
    engine, rl = settings.engine, settings.rl
    if not settings.numbers:
        raise UserError("gpus=[]: no number of GPUs is given", remedy="Say gpus=64, or gpus=[8,64].")
    for gpus in settings.numbers:
        if gpus < 1:
            raise UserError(f"gpus={gpus}: a run has one GPU or more")
    if engine.device == "cpu":
        raise UserError("engine.device=cpu: what is estimated is the memory of GPUs", remedy="Say engine.device=auto.")
    if engine.offload and not engine.zero:
        raise UserError("engine.offload=true: nothing but ZeRO offloads", remedy="Say engine=zero3_offload.")
    if settings.tokens > shape.context:
        key = "length" if settings.draws is None else f"{settings.of}.prompt + {settings.of}.answer"
        raise UserError(f"{key}={settings.tokens:,}: the model sees {shape.context:,} tokens at once")
    if settings.of == "distill":
        _check_distilling(settings.distill)
    if settings.of != "rl":
        return
    for name in rl.rewards:
        shape_named(name)
    if settings.batch % rl.samples:
        raise UserError(f"batch={settings.batch}: does not divide into groups of rl.samples={rl.samples}")
    if rl.roles == "shared" and settings.adapter_rank is None:
        raise UserError(
            "rl.roles=shared: roles on one trunk are adapters",
            remedy="Say adapter_rank=16 or so, or rl.roles=separate.",
        )
    if rl.half_trunk and (rl.roles == "separate" or engine.precision == "fp32" or engine.zero):
        raise UserError(
            "rl.half_trunk=true: is of shared roles under bf16 autocast without ZeRO", remedy="Say rl.half_trunk=false."
        )


def _check_distilling(distill: Distilling) -> None:
    mode, teacher = distill.mode, distill.teacher
    if mode == "offline" and teacher is not None:
        raise UserError(
            f"distill.mode=offline distill.teacher={teacher}: what a stored teacher told is read, and not itself",
            remedy="Say distill.teacher=null.",
        )
    if mode == "minillm" and (teacher is None or distill.drawn == "server"):
        raise UserError(
            f"distill.mode=minillm distill.teacher={teacher or 'null'} distill.drawn={distill.drawn}",
            cause="Answers are drawn here, together with the teacher.",
            remedy="Say distill.drawn=here, and the teacher's shape.",
        )


def _check_processes(engine: EngineSettings, gpus: int) -> None:
    """As ``training/fit.py``, for GPUs that nobody has yet."""
    if engine.processes == "one" and gpus > 1:
        raise UserError(
            f"gpus={gpus}: this engine is for one process", remedy="Say engine=ddp, zero1, zero2, zero3, or gpus=[1]."
        )
    if engine.processes == "several" and gpus == 1:
        raise UserError("gpus=1: this engine is for several processes", remedy="Say engine=gpu, or more GPUs.")


def _job(settings: Settings, model: Model, gpus: int, zero: int, offload: bool) -> Job:
    """The stage on so many GPUs. Raises :class:`UserError` where the batch does not divide among them."""
    engine, rl = settings.engine, settings.rl
    way = Way(
        ARITHMETIC["fp32" if engine.precision == "fp32" else "autocast"],
        _attention(settings.model.attention, model.shape),
        engine.gradient_checkpointing,
        engine.loss_chunk,
        gpus=gpus,
        zero=zero,
        offload=offload,
        gather=engine.gather,
    )
    if settings.of != "rl":
        share, rows = share_of(settings.batch, gpus, engine)
        teaching = _teaching(settings, model, gpus, share) if settings.of == "distill" else None
        return Job(settings.of, model, way, rows, settings.tokens, share // rows, teaching=teaching)
    groups, _ = share_of(settings.batch // rl.samples, gpus, engine.model_copy(update={"micro_batch": None}))
    together = groups if engine.micro_batch is None else max(1, min(groups, engine.micro_batch // rl.samples))
    shared = rl.roles == "shared"
    critic = Model(model.shape, model.vocabulary, model.rank, score=True) if rl.critic else None
    judges = [Model(shape_named(name), _usual(name), score=True) for name in rl.rewards]
    if shared and judges:
        judges[0] = Model(model.shape, model.vocabulary, model.rank, score=True)
    roles = Roles(
        model, critic, tuple(judges), shared=shared, follows=rl.anchor == "ema",
        start=rl.anchor == "ema" and not shared, half=rl.half_trunk, judge_here=shared and bool(judges),
    )  # fmt: skip
    rows = min(rl.draw_rows, groups * rl.samples)
    drawing = Drawing(groups, rl.samples, rl.prompt, rl.answer, rows, elsewhere=rl.drawn == "server")
    passes = -(-groups // together)
    return Job("rl", model, way, together * rl.samples, rl.prompt + rl.answer, passes, roles, drawing)


def _teaching(settings: Settings, student: Model, gpus: int, share: int) -> Teaching:
    """Teacher and student read the same pieces, and have as many rows for them."""
    asked = settings.distill
    together = asked.mode == "minillm"
    teacher = None if asked.teacher is None else Model(shape_named(asked.teacher), student.vocabulary)
    if settings.draws is None:
        return Teaching(teacher, asked.top_k, asked.tail_draws)
    answers = -(-asked.rollouts // gpus) if together else share
    rows = min(SAMPLER_ROWS, answers)
    drawing = Drawing(answers, 1, asked.prompt, asked.answer, rows, elsewhere=asked.drawn == "server")
    return Teaching(teacher, asked.top_k, 0, drawing, together=together)


def _attention(asked: str, shape: Shape) -> Attention:
    """Flash kernels save what flex_attention saves."""
    if asked == "auto":
        return "flex_attention" if shape.family == "gemma2" else "sdpa"
    if asked == "sdpa" and shape.family == "gemma2":
        raise UserError("model.attention=sdpa would compute a Gemma 2 wrongly", remedy="Leave model.attention=auto.")
    return cast(Attention, asked) if asked in get_args(Attention) else "flex_attention"


def _least(settings: Settings, model: Model, room: float, zero: int, offload: bool) -> int | None:
    """The smallest power of two of GPUs that divides the batch and on which an engine has room; None where none has."""
    groups = settings.batch // (settings.rl.samples if settings.of == "rl" else 1)
    gpus = 1 if zero else 2
    while gpus <= LARGEST:
        if groups % gpus == 0 and jobs.fullest(_job(settings, model, gpus, zero, offload)).total <= room:
            return gpus
        gpus *= 2
    return None


# ── what is said ─────────────────────────────────────────────────────────────────────────────────


def _title(settings: Settings, model: Model, found: dict[int, Job]) -> None:
    engine = next(name for name, how in ENGINES.items() if how == (settings.engine.zero, settings.engine.offload))
    shape = settings.model.shape or settings.model.weights
    trained = "all trained" if model.rank is None else f"{model.trained:,} trained"
    console.say(f"{settings.of} of {shape}, {model.held:,} parameters ({trained}), engine {engine}", style="bold")
    rows = ", ".join(f"{gpus}: {job.passes} x {job.rows}" for gpus, job in found.items())
    console.say(f"  forward passes x rows of each GPU in a step: {rows}", style="dim")


def _memory_table(settings: Settings, found: dict[int, Job], room: float) -> None:
    """A line for each part at the moment when a GPU is fullest; then a line for each moment."""
    full = {gpus: jobs.fullest(job) for gpus, job in found.items()}
    columns = [f"{gpus} x {settings.gpu}" for gpus in found]
    rows: list[tuple[str, ...]] = []
    for part in memory.PARTS:
        sizes = [phase.parts.get(part, 0.0) for phase in full.values()]
        if any(sizes):
            rows.append((part, *map(_gib, sizes)))
    rows.append(("together", *(_gib(phase.total) for phase in full.values())))
    rows.append((f"fits {settings.gpu}", *("yes" if phase.total <= room else "NO" for phase in full.values())))
    rows.append(("at the moment", *(phase.name for phase in full.values())))
    title = f"GiB of each GPU when it is fullest, of {_gib(room)} ({settings.usable:.0%} of what it has)"
    console.table(title, ("", *columns), rows, right=columns)
    moments: dict[str, list[Phase]] = {}
    for job in found.values():
        for phase in jobs.phases(job):
            moments.setdefault(phase.name, []).append(phase)
    rows = [(name, *(_gib(phase.total) for phase in phases)) for name, phases in moments.items()]
    caches = [phase.parts[memory.CACHE] for phase in moments.get("draw", [])]
    rows += [("  of draw the KV cache", *map(_gib, caches))] if caches else []
    console.table("GiB at each moment of a step", ("", *columns), rows, right=columns)


def _traffic_table(settings: Settings, found: dict[int, Job], gpu: hardware.Gpu) -> None:
    sent = {gpus: jobs.traffic(job) for gpus, job in found.items()}
    rates = {gpus: _rate(settings, gpu, gpus) for gpus in found}
    rows = [
        ("gradients, GB", *(f"{one.gradients / 1e9:,.1f}" for one in sent.values())),
        ("weights, GB", *(f"{one.weights / 1e9:,.1f}" for one in sent.values())),
    ]
    if any(one.rollout for one in sent.values()):
        rows.append(("weights to draw from, GB", *(f"{one.rollout / 1e9:,.1f}" for one in sent.values())))
    rows.append(("at GB/s", *(f"{rate / 1e9:,.0f}" for rate in rates.values())))
    rows.append(("seconds", *(f"{sent[gpus].total / rates[gpus]:,.2f}" for gpus in found)))
    rows.append(("kW at the power cap", *(f"{gpus * gpu.power / 1000:,.1f}" for gpus in found)))
    columns = [f"{gpus} x {settings.gpu}" for gpus in found]
    console.table("sent by each GPU in a step", ("", *columns), rows, right=columns)


def _least_table(settings: Settings, least: dict[str, int | None]) -> None:
    rows = [(name, f"{gpus} x {settings.gpu}" if gpus else f"none up to {LARGEST}") for name, gpus in least.items()]
    console.table("the least that it fits, of powers of two that divide the batch", ("engine", "GPUs"), rows)


def _rate(settings: Settings, gpu: hardware.Gpu, gpus: int) -> float:
    network = None if settings.network is None else settings.network * hardware.GB
    return bandwidth(gpu, gpus, settings.gpus_per_node, network)


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f}" if size >= 0.05 * GIB or size == 0 else f"{size / GIB:,.3f}"


def _rounded(parts: Mapping[str, float]) -> dict[str, int]:
    return {part: round(size) for part, size in parts.items()}


def _numbers(
    settings: Settings, model: Model, found: dict[int, Job], gpu: hardware.Gpu, least: dict[str, int | None]
) -> dict[str, Any]:
    """Everything in bytes and seconds."""
    runs = []
    for gpus, job in found.items():
        sent, full = jobs.traffic(job), jobs.fullest(job)
        runs.append(
            {
                "gpus": gpus,
                "bytes": round(full.total),
                "fits": full.total <= settings.usable * gpu.memory,
                "fullest": full.name,
                "parts": _rounded(full.parts),
                "phases": {phase.name: _rounded(phase.parts) for phase in jobs.phases(job)},
                "sent_bytes": _rounded(asdict(sent)),
                "seconds": sent.total / _rate(settings, gpu, gpus),
            }
        )
    return {
        "parameters": model.held,
        "trained": model.trained,
        "gpu": settings.gpu,
        "gpu_bytes": gpu.memory,
        "usable": settings.usable,
        "runs": runs,
        "least": least,
        "versions": artifacts.versions(),
    }
