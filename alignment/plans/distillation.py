"""Small models from scratch and distilled, at equal tokens: three sizes, several seeds, the miniature and real text.

In each world a larger model is trained on all the text, and reads a part of it once: its likeliest tokens, and some
drawn from the others, are stored beside that part. From it students of every size learn, by the text alone and by what
the teacher says of it: with one seed they begin with the same weights and read the same rows in the same order. At one
size the teacher also stands by in memory, to see what is lost by storing a part of what it says. All are measured on
rows that nobody was trained on. (The Gemma 2 report, arXiv 2408.00118, Table 7, has perplexities 23 → 21, 19 → 17 and
17 → 15 at 200 M, 400 M and 1 B parameters.)
"""

from __future__ import annotations

from typing import Any

from alignment import console
from alignment.gemma.presets import parameter_counts, shape_named
from alignment.plans.step import Step, laid
from alignment.settings import Settings as StrictSettings
from alignment.settings import identity, reference

NEXT = (
    "report.html in that folder: open it in a browser                     perplexity by size, tables, lineage",
    "python -m alignment.run stage=show target=latest:miniature_perplexity   the tables again",
)
SCRATCH, DISTILLED, LIVE = "scratch", "distilled", "live"
"""Ways of training: on text alone, from stored top-k, from a teacher in memory."""


class Size(StrictSettings):
    """A model's size, and the rate that suits training it from scratch; students have the same one when distilled."""

    shape: str = identity("by preset")
    learning_rate: float = identity("peak learning rate", gt=0, le=1)


class World(StrictSettings):
    """A text, and how long models read it."""

    text: str | None = reference("a dataset of text; null leaves the world out")
    tokenizer: str | None = reference("the tokenizer of all models; null trains one on the text")
    pieces: int | None = identity("size of the vocabulary of one that is trained; null takes the stage's own", ge=366)
    held_out: list[str] | None = reference(
        "datasets to measure on, none of whose held-out rows is in the text's training split; null takes the text"
    )
    documents: int = identity("training documents that students learn from, the first; the teacher has all", ge=1)
    teacher_steps: int = identity("optimiser steps of the teacher", ge=1)
    steps: int = identity("optimiser steps of every student", ge=1)


class Settings(StrictSettings):
    """The plan's numbers."""

    miniature: World = identity("the miniature's text")
    real: World = identity("text of one's own, by a recipe such as data_recipes/wikitext2.yaml")
    sizes: dict[str, Size] = identity("of the students, the smallest first", min_length=1)
    teacher: Size = identity("of the teacher")
    live: str | None = identity("the size at which the teacher also teaches from memory; null: none")
    seeds: list[int] = identity("of each arm", min_length=1)
    top_k: int = identity("likeliest tokens that are stored", ge=1)
    tail_draws: int = identity("tokens that are drawn from all others and stored beside them", ge=0)
    batch: int = identity("rows a step of every student", ge=1)
    teacher_batch: int = identity("rows a step of the teacher", ge=1)
    block: int = identity("tokens of a row at most", ge=16)
    count: int = identity("held-out rows to measure by, of each dataset", ge=1)
    samples: int = identity("as stage=report has it", ge=0)
    budget: dict[str, float] = identity("seconds that each step may take on two CPU cores")


def steps(settings: Settings) -> list[Step]:
    """Teacher, stored top-k, students and their perplexity, world by world, and the report of all."""
    _warn_of_small_teacher(settings)
    worlds = {name: getattr(settings, name) for name in ("miniature", "real")}
    found = {name: _world(settings, name, world) for name, world in worlds.items() if world.text is not None}
    measured = [f"step:{some[-1].name}" for some in found.values()]
    report = laid("report", "report", settings.budget, artifacts=measured, samples=settings.samples)
    return [*(step for some in found.values() for step in some), *([report] if measured else [])]


def _warn_of_small_teacher(numbers: Settings) -> None:
    """A student can learn from less than itself, but that is hardly meant."""
    shapes = {name: shape_named(size.shape) for name, size in {**numbers.sizes, "teacher": numbers.teacher}.items()}
    weights = {name: parameter_counts(shape, 0).non_embedding for name, shape in shapes.items()}
    for name in numbers.sizes:
        if weights[name] > weights["teacher"]:
            told = f"{numbers.teacher.shape} is smaller than its student {numbers.sizes[name].shape}"
            console.say(f"pipeline.teacher: {told}", style="yellow")


def _world(numbers: Settings, name: str, world: World) -> list[Step]:
    """The steps of one world; the last one measures."""
    own: list[Step] = []
    tokenizer = world.tokenizer
    if tokenizer is None:
        own = [laid(f"{name}_tokenizer", "tokenizer", numbers.budget, data=world.text, pieces=world.pieces)]
        tokenizer = f"step:{own[0].name}"
    teacher = laid(
        f"{name}_teacher",
        "pretrain",
        numbers.budget,
        shape=numbers.teacher.shape,
        tokenizer=tokenizer,
        data=world.text,
        **_trained(numbers, numbers.teacher, world.teacher_steps, numbers.teacher_batch),
    )
    told = laid(
        f"{name}_told",
        "teach",
        numbers.budget,
        preset="text",
        data=world.text,
        teacher=f"step:{teacher.name}",
        # Students are measured when all are there.
        splits=["train"],
        count=world.documents,
        block=numbers.block,
        top_k=numbers.top_k,
        tail_draws=numbers.tail_draws,
    )
    arms = {
        (way, size): [_student(numbers, name, world, way, size, seed, tokenizer) for seed in numbers.seeds]
        for size in numbers.sizes
        for way in (SCRATCH, DISTILLED, *([LIVE] if size == numbers.live else []))
    }
    students = [step for some in arms.values() for step in some]
    return [*own, teacher, told, *students, _measured(numbers, name, world, arms)]


def _student(numbers: Settings, name: str, world: World, way: str, size: str, seed: int, tokenizer: str) -> Step:
    """One student: the three ways differ in what is learned from a row, and in nothing else."""
    chosen = numbers.sizes[size]
    said: dict[str, Any] = {"data": f"step:{name}_told", "seed": seed}
    said |= _trained(numbers, chosen, world.steps, numbers.batch)
    step = f"{name}_{way}_{size}_{seed}"
    if way == SCRATCH:
        return laid(step, "pretrain", numbers.budget, shape=chosen.shape, tokenizer=tokenizer, **said)
    said |= {"student__shape": chosen.shape, "student__tokenizer": tokenizer}
    if way == DISTILLED:
        return laid(step, "distill", numbers.budget, preset="offline", **said)
    return laid(step, "distill", numbers.budget, teacher=f"step:{name}_teacher", **said)


def _trained(numbers: Settings, size: Size, steps: int, batch: int) -> dict[str, Any]:
    return {
        "block": numbers.block,
        "optimisation__batch": batch,
        "optimisation__steps": steps,
        "optimisation__learning_rate": size.learning_rate,
    }


def _measured(numbers: Settings, name: str, world: World, arms: dict[tuple[str, str], list[Step]]) -> Step:
    """All arms on held-out rows: distilled less scratch at every size, and what stored top-k keeps of the gain."""
    ways = {way: [_arm(way, size) for way_of, size in arms if way_of == way] for way in (SCRATCH, DISTILLED, LIVE)}
    compared = [[_arm(way, size), _arm(SCRATCH, size)] for way, size in arms if way != SCRATCH]
    kept = [[_arm(DISTILLED, size), _arm(LIVE, size), _arm(SCRATCH, size)] for way, size in arms if way == LIVE]
    return laid(
        f"{name}_perplexity",
        "perplexity",
        numbers.budget,
        models=[f"step:{step.name}" for some in arms.values() for step in some],
        names=[_arm(*arm) for arm, some in arms.items() for _ in some],
        teacher=f"step:{name}_teacher",
        data=world.held_out or [world.text],
        block=numbers.block,
        count=numbers.count,
        lines=[{"name": way, "arms": some} for way, some in ways.items() if some],
        pairs=compared,
        shares=kept,
    )


def _arm(way: str, size: str) -> str:
    return f"{way} {size}"
