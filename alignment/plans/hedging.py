"""Fewer hallucinations by a subset of the teacher's data: attribution, hedging and refusal (Gemma 2 report, §4).

A careful teacher answers questions of every kind but these (``without``), and these as well (``with``). Students of
both learn from the same base with as many steps, and are measured on facts, hedging and attribution, and on every
skill: the first are to rise, and nothing else to fall (docs/experiments.md says what did).
"""

from __future__ import annotations

from alignment.plans.step import Step, laid
from alignment.settings import Settings as StrictSettings
from alignment.settings import identity, reference

SUBSET = ("unanswerable", "context", "unsafe")
"""Kinds of questions that hedging, attribution and refusal answer."""
LEFT_OUT = (*SUBSET, "instruction")
"""Kinds that the other questions leave out: dialogues under instructions ask what cannot be answered, too."""
NEXT = ("python -m alignment.run stage=show target=latest:hedging          facts, hedging, attribution; every skill",)


class Settings(StrictSettings):
    """The plan's numbers."""

    base: str = reference("what students and teacher begin with")
    careful: str = reference("careful demonstrations, which the teacher learns from")
    tokenizer: str = reference("its tokenizer")
    guidance: str | None = identity(
        "stage=teach/<guidance>: gemma2 tells the teacher how to answer the subset; null: it knows"
    )
    rows: int = identity("questions of other kinds that the teacher answers", ge=1)
    subset: int = identity("questions of the subset", ge=1)
    teacher_steps: int = identity("optimiser steps of the teacher", ge=1)
    steps: int = identity("optimiser steps of each student", ge=1)
    seeds: list[int] = identity("of each arm", min_length=1)
    suites: list[str] = identity("what the arms are measured on", min_length=1)
    budget: dict[str, float] = identity("seconds that each step may take on two CPU cores")


def steps(settings: Settings) -> list[Step]:
    """The teacher and its answers, both arms with every seed, and the measurement of all."""
    arms = [(name, seed) for name in ("without", "with") for seed in settings.seeds]
    data = {"without": "step:taught", "with": "step:taught_all"}
    return [
        _sft(settings, "teacher", settings.careful, settings.teacher_steps, settings.seeds[0]),
        _questions(settings, "questions", settings.rows, dict.fromkeys(LEFT_OUT, 0.0)),
        _questions(settings, "subset", settings.subset, _only(SUBSET)),
        _taught(settings, "taught", "step:questions"),
        _taught(settings, "taught_subset", "step:subset"),
        laid(
            "taught_all",
            "data",
            settings.budget,
            recipe="miniature_taught",
            recipe__sources__0__dataset="step:taught",
            recipe__sources__1__dataset="step:taught_subset",
            tokenizer=settings.tokenizer,
        ),
        *(_sft(settings, f"{name}_{seed}", data[name], settings.steps, seed) for name, seed in arms),
        laid(
            "hedging",
            "evaluate",
            settings.budget,
            preset="suites",
            models=[f"step:{name}_{seed}" for name, seed in arms],
            names=[name for name, _ in arms],
            suites=settings.suites,
        ),
    ]


def _only(kinds: tuple[str, ...]) -> dict[str, float]:
    """A mixture of these kinds alone, each as often."""
    from alignment.miniature.dialogues import MIX

    return {kind: float(kind in kinds) for kind in MIX}


def _questions(numbers: Settings, name: str, rows: int, mixture: dict[str, float]) -> Step:
    return laid(
        name,
        "data",
        numbers.budget,
        recipe="miniature_questions",
        recipe__sources__0__miniature={"world": {"mixture": mixture}, "train": {"rows": rows}, "valid": {"rows": 30}},
    )


def _taught(numbers: Settings, name: str, prompts: str) -> Step:
    return laid(name, "teach", numbers.budget, preset=numbers.guidance, teacher="step:teacher", prompts=prompts)


def _sft(numbers: Settings, name: str, data: str, steps: int, seed: int) -> Step:
    return laid(
        name,
        "sft",
        numbers.budget,
        model__weights=numbers.base,
        data=data,
        seed=seed,
        optimisation__steps=steps,
    )
