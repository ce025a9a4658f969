"""The miniature, from nothing to a chat model.

text → tokenizer → base → first, a model of many imperfect conversations. It answers questions as a teacher, draws
answers under instructions that must last (Ghost Attention) and under safety pre-prompts; with careful demonstrations
that makes the mixture on which it goes on to be the SFT model.
"""

from __future__ import annotations

from typing import Any

from alignment.plans.step import Step
from alignment.settings import Settings as StrictSettings
from alignment.settings import identity

NEXT = (
    'python -m alignment.run stage=chat model=latest:sft prompt="…"   talk to it (leave prompt out for a conversation)',
    "python -m alignment.run stage=show target=latest:sft              where it comes from and what is inside",
    "python -m alignment.run stage=show target=latest:mixture          the data card of what it was trained on",
    "python -m alignment.run stage=sft --help                          what can be changed",
)


class Settings(StrictSettings):
    """The plan's numbers; null takes the stage's own value."""

    rows: int | None = identity("training rows of text and of conversations", ge=1)
    pieces: int | None = identity("size of the vocabulary", ge=366)
    pretrain_steps: int | None = identity("optimiser steps of the base model", ge=1)
    first_steps: int | None = identity("optimiser steps on conversations", ge=1)
    sft_steps: int | None = identity("optimiser steps on the mixture, after them", ge=1)
    questions: int | None = identity("questions that the teacher answers, of each kind at most", ge=1)
    gates: bool = identity("keep only drawn answers that obey, gain in safety and end; false for models that cannot")
    prompts: int | None = identity("prompts on which the result is measured", ge=1)
    budget: dict[str, float] = identity("seconds that each step may take on two CPU cores")


def steps(settings: Settings) -> list[Step]:
    """The steps in order; ``mini:<name>`` names them from anywhere."""

    def step(name: str, stage: str, /, *, on_demand: bool = False, open_gates: Any = None, **said: Any) -> Step:
        given = {key.replace("__", "."): value for key, value in said.items() if value is not None}
        given |= {} if settings.gates else open_gates or {}
        return Step(name, stage, given, settings.budget.get(name, 0.0), on_demand)

    pool = None
    if settings.rows is not None:
        pool = {"train": {"rows": settings.rows}, "valid": {"rows": 32}, "test": {"rows": 64}}
    asked = None if pool is None else {"train": {"rows": settings.rows}, "valid": {"rows": 32}}
    return [
        step("text", "data", recipe="miniature_text", recipe__sources__0__miniature=pool),
        step("tokenizer", "tokenizer", data="step:text", pieces=settings.pieces),
        step(
            "base",
            "pretrain",
            data="step:text",
            tokenizer="step:tokenizer",
            optimisation__steps=settings.pretrain_steps,
        ),
        step("conversations", "data", recipe="miniature_conversations", recipe__sources__0__miniature=pool),
        step("careful", "data", recipe="miniature_careful", recipe__sources__0__miniature=pool),
        step("dialogues", "data", recipe="miniature_dialogues", recipe__sources__0__miniature=asked),
        step("questions", "data", recipe="miniature_questions", recipe__sources__0__miniature=asked),
        step("prompts", "data", recipe="miniature_prompts"),
        step(
            "first",
            "sft",
            model__weights="step:base",
            data="step:conversations",
            optimisation__steps=settings.first_steps,
        ),
        step(
            "teach",
            "teach",
            teacher="step:first",
            prompts="step:questions",
            count=settings.questions,
            open_gates={"unfinished": "keep"},
        ),
        step(
            "ghost",
            "ghost",
            policy="step:first",
            dialogues="step:dialogues",
            count=settings.questions,
            open_gates={"keep": "all"},
        ),
        step(
            "preprompt",
            "preprompt",
            policy="step:first",
            prompts="step:questions",
            count=settings.questions,
            open_gates={"min_gain": None},
        ),
        step(
            "mixture",
            "data",
            recipe="miniature_mixture",
            tokenizer="step:tokenizer",
            recipe__sources__0__dataset="step:careful",
            recipe__sources__1__dataset="step:teach",
            recipe__sources__2__dataset="step:ghost",
            recipe__sources__3__dataset="step:preprompt",
        ),
        step(
            "sft",
            "sft",
            model__weights="step:first",
            data="step:mixture",
            optimisation__steps=settings.sft_steps,
        ),
        step(
            "samples",
            "evaluate",
            models=["step:sft"],
            prompts="step:prompts",
            conversations="step:conversations",
            reference="step:base",
            count=settings.prompts,
        ),
        step("subjects", "data", on_demand=True, recipe="miniature_subjects", recipe__sources__0__miniature=asked),
        step(
            "pairs",
            "pairs",
            on_demand=True,
            models=["step:sft", "step:first"],
            prompts="step:subjects",
            count=settings.questions,
        ),
        step("label", "label", on_demand=True, pairs="step:pairs"),
    ]
