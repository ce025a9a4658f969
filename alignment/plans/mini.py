"""The miniature, from nothing to a chat model: text → tokenizer → base → conversations → SFT → samples."""

from __future__ import annotations

from typing import Any

from alignment.plans.step import Step
from alignment.settings import Settings as StrictSettings
from alignment.settings import identity

NEXT = (
    'python -m alignment.run stage=chat model=latest:sft prompt="…"   talk to it (leave prompt out for a conversation)',
    "python -m alignment.run stage=show target=latest:sft              where it comes from and what is inside",
    "python -m alignment.run stage=sft --help                          what can be changed",
)


class Settings(StrictSettings):
    """The plan's numbers; null takes the stage's own value."""

    rows: int | None = identity("training rows of text and of conversations", ge=1)
    pieces: int | None = identity("size of the vocabulary", ge=366)
    pretrain_steps: int | None = identity("optimiser steps of the base model", ge=1)
    sft_steps: int | None = identity("optimiser steps on conversations", ge=1)
    prompts: int | None = identity("prompts on which the result is measured", ge=1)
    budget: dict[str, float] = identity("seconds that each step may take on two CPU cores")


def steps(settings: Settings) -> list[Step]:
    """Seven steps; ``mini:<name>`` names them from anywhere."""

    def step(name: str, stage: str, /, **said: Any) -> Step:
        given = {key.replace("__", "."): value for key, value in said.items() if value is not None}
        return Step(name, stage, given, settings.budget.get(name, 0.0))

    pool = None
    if settings.rows is not None:
        pool = {"train": {"rows": settings.rows}, "valid": {"rows": 32}, "test": {"rows": 64}}
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
        step("prompts", "data", recipe="miniature_prompts"),
        step(
            "sft",
            "sft",
            model__weights="step:base",
            data="step:conversations",
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
    ]
