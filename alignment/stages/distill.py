"""Train a student on a teacher's distribution: over given text or answers, or over what the student says itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignment import console, ranks
from alignment.artifacts import Artifact, Outcome
from alignment.distillation.settings import Divergence, Drawing, MiniLLM, Student
from alignment.errors import UserError
from alignment.sampling.endpoint import EndpointSettings
from alignment.sampling.served import Server, open_drawer
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, reference
from alignment.training.engine import EngineSettings
from alignment.training.model_settings import AdapterSettings
from alignment.training.optimisation import Optimisation, disk_for
from alignment.training.tracking import TrackerSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from alignment.distillation.matter import Read
    from alignment.training.distilled import Objective
    from alignment.training.engine import Engine
    from alignment.training.lessons import Matter, Plan, Source
    from alignment.training.policies import Policy
    from alignment.training.rows import Collator
    from alignment.training.teachers import Live, Telling

ALGORITHM_VERSION = 1


class Settings(StrictSettings):
    """``stage=distill``."""

    mode: Literal["offline", "live", "on_policy", "minillm"] = identity(
        "offline: from what a teacher left beside the data (stage=teach top_k=64); live: the teacher reads the data; "
        "on_policy: it reads answers of the student too (GKD); minillm: by policy gradient"
    )
    student: Student = identity("who learns")
    teacher: str | None = reference(
        "a policy of the student's tokenizer, or endpoint:<model> behind a vLLM server; null in mode offline"
    )
    data: str = reference("a dataset of conversations, of text, or (where all answers are drawn) of prompts")
    block: int | None = identity("text: tokens per row at most, longer documents become several rows", ge=16)
    too_long: Literal["refuse", "leave_out"] = identity(
        "what becomes of a conversation longer than the context; *_left_out.jsonl lists what is left out"
    )
    objective: Divergence = identity("what is minimised")
    drawing: Drawing | None = identity("how answers are drawn; null where none are")
    minillm: MiniLLM | None = identity("MiniLLM's numbers; null in other modes")
    top_k: int | None = identity("likeliest tokens that a teacher behind a server is asked for; null otherwise", ge=1)
    seed: int = identity("of a fresh student, a fresh adapter, the order of the rows, and what is drawn", ge=0)
    adapter: AdapterSettings = identity("train all weights, or a low-rank adapter")
    optimisation: Optimisation = identity("how the student is trained; of minillm the batch divides rollouts")
    server: Server = execution("what draws the student's answers, where it is not this process")
    endpoint: EndpointSettings = execution("how a server is asked, where the teacher is behind one")
    engine: EngineSettings = execution("where and how it runs")
    tracker: TrackerSettings = execution("where its metrics go")

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "settings") -> Settings:
        """Validate, the rules between keys included."""
        settings: Settings = super().parse(values, where)
        _check(settings)
        return settings


def _check(settings: Settings) -> None:
    """Raise :class:`UserError` for keys that do not go together, or would be accepted and not used."""
    mode, numbers = settings.mode, settings.objective
    if (settings.teacher is None) != (mode == "offline"):
        raise UserError(
            f"mode={mode} teacher={settings.teacher}",
            cause="Offline is learned from what a teacher left beside the data; the others ask a teacher.",
            remedy="Say teacher=null, or mode=live." if mode == "offline" else "Name a teacher, or say mode=offline.",
        )
    if (settings.drawing is not None) != (mode in ("on_policy", "minillm")):
        raise UserError(
            f"mode={mode} drawing={'null' if settings.drawing is None else '{…}'}",
            remedy="Answers are drawn by stage=distill/on_policy and stage=distill/minillm.",
        )
    if (settings.minillm is not None) != (mode == "minillm"):
        raise UserError(
            f"mode={mode} minillm={'null' if settings.minillm is None else '{…}'}",
            remedy="Say stage=distill/minillm, or minillm=null.",
        )
    if (numbers.beta is not None) != (numbers.divergence == "jsd"):
        raise UserError(
            f"objective.divergence={numbers.divergence} objective.beta={numbers.beta}",
            remedy="Say objective.beta=0.5 with jsd, and null with the others.",
        )
    if settings.student.weights is not None and settings.student.tokenizer is not None:
        raise UserError(
            f"student.tokenizer={settings.student.tokenizer}: the weights have their own",
            remedy="Say student.tokenizer=null.",
        )
    if settings.student.weights is None and settings.adapter.kind != "none":
        raise UserError(
            f"adapter.kind={settings.adapter.kind}: a fresh student has nothing to adapt",
            remedy="Say adapter.kind=none, or name student.weights.",
        )
    if settings.minillm is not None:
        _check_minillm(settings, settings.minillm)


def _check_minillm(settings: Settings, numbers: MiniLLM) -> None:
    asked, batch = settings.objective, settings.optimisation.batch
    if (asked.divergence, asked.temperature, asked.nll_weight) != ("reverse_kl", 1.0, 0.0):
        raise UserError(
            "mode=minillm: minimises the reverse KL at temperature 1, and nothing beside it",
            remedy="Say objective={divergence: reverse_kl, temperature: 1.0, nll_weight: 0.0}.",
        )
    if settings.drawing is not None and (settings.drawing.share, settings.drawing.temperature) != (1.0, 1.0):
        raise UserError(
            "mode=minillm: all answers are drawn, at temperature 1",
            remedy="Say drawing.share=1.0 drawing.temperature=1.0.",
        )
    if numbers.rollouts % batch:
        raise UserError(
            f"minillm.rollouts={numbers.rollouts}: is no multiple of optimisation.batch={batch}",
            remedy=f"Say for instance minillm.rollouts={batch * max(1, numbers.rollouts // batch)}.",
        )
    if settings.server.url is not None:
        raise UserError(
            f"server.url={settings.server.url}: what teacher and student say together is drawn here",
            remedy="Say server.url=null, or mode=on_policy.",
        )


def disk_needed_from(settings: Settings, folders: Mapping[str, Path]) -> int:
    """Bytes for the student and its checkpoints, by its own weights where they are there already."""
    rank = None if settings.adapter.kind == "none" else settings.adapter.rank
    folder = folders.get("student.weights")
    return disk_for(settings.optimisation, settings.student.shape, folder, rank=rank)


def run(settings: Settings, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """Train on the training split, measure on the validation split, write a model directory.

    An adapter is merged into the weights that are written, and also kept beside them in ``adapter/``.
    """
    import torch

    from alignment.data import seen
    from alignment.distillation import matter
    from alignment.training import policies, snapshots
    from alignment.training.distilled import train
    from alignment.training.engine import resolve
    from alignment.training.session import train_and_measure

    engine = resolve(settings.engine)
    snapshots.need_whole_models(settings.optimisation.snapshots, settings.adapter.kind)
    policy = _student(settings, inputs, engine)
    drawing = settings.drawing
    read = matter.read(
        inputs["data"].need("dataset").path,
        policy,
        out,
        block=settings.block,
        too_long=settings.too_long,
        max_new_tokens=None if drawing is None else drawing.max_new_tokens,
        always_drawn=drawing is not None and drawing.share == 1,
    )
    teacher = _teacher(settings, inputs, policy, read, engine, out)
    if settings.adapter.kind != "none":
        torch.manual_seed(settings.seed)
        policy = policies.adapt(policy, settings.adapter)
    collate = _collator(policy, engine)
    source, plan = _source(settings, policy, read.learned, teacher, collate, engine)
    outcome = train_and_measure(
        policy,
        title="distill",
        rows=read.learned.rows,
        held_out_rows=read.held.rows if len(read.held) else None,
        out=out,
        numbers=settings.optimisation,
        engine=engine,
        tracker_settings=settings.tracker,
        config=settings.model_dump(mode="json"),
        inputs=inputs,
        seed=settings.seed,
        train=partial(
            train,
            plan=plan,
            source=source,
            teacher=teacher,
            objective=_objective(settings),
            collate=collate,
        ),
    )
    snapshots.write(out, policies.trained(policy), partial(policies.save_policy, policy))
    if settings.adapter.kind != "none":
        policy = policies.merge_adapter(policy, inputs["student.weights"], out)
    policies.save_policy(policy, out)
    if read.keys:
        # What was only measured on is not seen: whoever tunes on the validation split may measure on it too.
        seen.write(out, read.keys, [artifact.path for artifact in inputs.values() if artifact.path.is_dir()])
    return _with_divergence(outcome, out, drawn=settings.drawing is not None)


def _with_divergence(outcome: Outcome, out: Path, *, drawn: bool) -> Outcome:
    """The divergence of the last logged steps beside the rest; of the student's own answers it is what tells most."""
    from alignment.training import team
    from alignment.training.tracking import METRICS, read_metrics

    def last() -> float:
        return [row["divergence"] for row in read_metrics(out / METRICS) if "divergence" in row][-1]

    metrics, notes = {**outcome.metrics, "divergence": team.from_main(last)}, dict(outcome.notes)
    if drawn:
        # Planned were the rows as they are written, and not what was drawn in their place.
        notes.pop("tokens_processed")
    return replace(outcome, metrics=metrics, notes=notes, headline="divergence" if drawn else outcome.headline)


def _objective(settings: Settings) -> Objective:
    from alignment.training.distilled import Objective

    numbers, mini = settings.objective, settings.minillm
    return Objective(
        numbers.divergence,
        0.0 if numbers.beta is None else numbers.beta,
        numbers.temperature,
        numbers.nll_weight,
        clip=None if mini is None else mini.clip,
        single_step=mini is None or mini.single_step,
    )


# ── who learns, and who teaches ───────────────────────────────────────────────────────────────────


def _student(settings: Settings, inputs: dict[str, Artifact], engine: Engine) -> Policy:
    from alignment.training import policies

    asked = settings.student
    if "student.weights" in inputs:
        return policies.open_policy(
            inputs["student.weights"],
            engine,
            shape=asked.shape,
            schema=asked.chat_schema,
            attention=asked.attention,
            four_bit=settings.adapter.kind == "qlora",
        )
    if asked.shape is None:
        raise UserError("student.weights=null and student.shape=null", remedy="A fresh student needs a shape.")
    folder = inputs.get("student.tokenizer") or inputs.get("teacher")
    if folder is None or folder.kind == "endpoint":
        raise UserError(
            "student.weights=null and student.tokenizer=null",
            cause="A fresh student takes the tokenizer of a teacher that is a model here, and there is none.",
            remedy="Name the tokenizer that the teacher has: student.tokenizer=….",
        )
    return policies.fresh(folder.path, asked.shape, asked.chat_schema, settings.seed, engine)


def _teacher(
    settings: Settings, inputs: dict[str, Artifact], policy: Policy, read: Read, engine: Engine, out: Path
) -> Live | Telling:
    from alignment.distillation.teachers import Stored
    from alignment.training import teachers

    if settings.teacher is None:
        return Stored(_store(settings, inputs["data"], policy, read))
    artifact = inputs["teacher"].need("policy", "endpoint")
    if (artifact.kind == "endpoint") != (settings.top_k is not None):
        raise UserError(
            f"teacher={settings.teacher} top_k={settings.top_k}",
            cause="A server tells its likeliest tokens; a model here gives its whole distribution.",
            remedy="Say for instance top_k=20 with a server, and top_k=null otherwise.",
        )
    if artifact.kind == "endpoint":
        return _served(settings, artifact, policy, out)
    _warn_of_a_small_teacher(artifact, policy)
    return teachers.open_live(
        artifact,
        policy,
        engine,
        attention=settings.student.attention,
        talks=read.kind != "text",
        named=settings.teacher,
    )


def _warn_of_a_small_teacher(artifact: Artifact, policy: Policy) -> None:
    from alignment.gemma import core
    from alignment.training.policies import parameters

    own, theirs = (
        parameters(config)["non_embedding"] for config in (policy.model.config, core.read_config(artifact.path))
    )
    if theirs < own:
        console.say(
            f"  the teacher is smaller than its student: {theirs:,} parameters and {own:,}, embeddings apart",
            style="yellow",
        )


def _store(settings: Settings, dataset: Artifact, policy: Policy, read: Read) -> Any:
    from alignment.data.topk import Store
    from alignment.data.topk_fit import need_fit

    store = Store.open(dataset.path)
    rows = ((one.name, one.targets) for part in (read.learned, read.held) for one in map(part.row, range(len(part))))
    need_fit(store, policy.tokens, temperature=settings.objective.temperature, block=settings.block, rows=rows)
    return store


def _served(settings: Settings, artifact: Artifact, policy: Policy, out: Path) -> Telling:
    from alignment.distillation.teachers import Served
    from alignment.parts import FOLDER
    from alignment.sampling.served_topk import ServedTopK

    if settings.objective.temperature != 1:
        raise UserError(
            f"objective.temperature={settings.objective.temperature:g}: a server tells of its tokens at temperature 1",
            cause="What all others share at another temperature does not follow from that.",
            remedy="Say objective.temperature=1.0, or name a teacher that is a model here.",
        )
    if settings.mode == "minillm":
        raise UserError(
            f"mode=minillm teacher={settings.teacher}: answers are drawn together with the teacher",
            remedy="Name a teacher that is a model here, or say mode=on_policy.",
        )
    assert settings.top_k is not None, "checked by the caller"
    model = artifact.step.removeprefix("endpoint:")
    # Each process asks about its own rows.
    journal = out / FOLDER / f"journal-{ranks.rank()}.jsonl"
    server = ServedTopK.from_environment(
        model, journal, settings.endpoint, k=settings.top_k, tokenizer=policy.tokenizer
    )
    return Served(server)


def _collator(policy: Policy, engine: Engine) -> Collator:
    from alignment.gemma import branches
    from alignment.training.rows import Collator

    return Collator(policy.tokenizer.pad_id, engine.packed, one_line=not branches.shares_prompts(policy.model))


def _source(
    settings: Settings, policy: Policy, matter: Matter, teacher: Live | Telling, collate: Collator, engine: Engine
) -> tuple[Source, Callable[[int], Plan]]:
    """Where the rows of a step come from, and in which order."""
    from alignment.distillation.sources import OnPolicy, Phases, Written
    from alignment.training.lessons import by_phases, by_rows
    from alignment.training.teachers import Live

    numbers, drawing, mini = settings.optimisation, settings.drawing, settings.minillm

    def rows(steps: int) -> Plan:
        return by_rows(matter.rows.lengths, numbers.batch, steps, settings.seed, numbers.length_window)

    if drawing is None:
        return Written(matter), rows
    if mini is None:
        drawer = open_drawer(
            settings.server, stop_ids=policy.stop_ids, pad_id=policy.tokenizer.pad_id, device=engine.device
        )
        return OnPolicy(matter, drawer, drawing.share, drawing.temperature, drawing.max_new_tokens, settings.seed), rows
    assert isinstance(teacher, Live), "checked where the teacher was opened"
    phases = Phases(
        matter,
        teacher,
        collate,
        engine,
        policy.stop_ids,
        teacher_share=mini.teacher_share,
        rollouts=mini.rollouts,
        steps_a_phase=mini.epochs * mini.rollouts // numbers.batch,
        max_new_tokens=drawing.max_new_tokens,
        length_normalised=mini.length_normalised,
        single_step=mini.single_step,
        seed=settings.seed,
    )
    return phases, lambda steps: by_phases(mini.rollouts, numbers.batch, mini.epochs, steps, settings.seed)
