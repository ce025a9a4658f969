"""Distillation on the student's own answers: shares λ of them beside each other, over several seeds (GKD).

A small chat model goes on from a larger one's distribution: on written answers (λ = 0), on its own (λ = 1), or on
either by chance. What it is worth is the KL divergence to the teacher on answers that the student draws: at λ = 0 a
student is never taught where its own answers lead. (Agarwal et al., arXiv 2306.13649.)
"""

from __future__ import annotations

from alignment.plans.step import Step, laid
from alignment.settings import Settings as StrictSettings
from alignment.settings import identity, reference

NEXT = ("python -m alignment.run stage=show target=latest:on_policy       KL to the teacher by λ, gold, perplexity",)


class Settings(StrictSettings):
    """The plan's numbers."""

    shape: str = identity("size of the student, by preset")
    learning_rate: float = identity("of its pre-training", gt=0, le=1)
    teacher: str = reference("a larger chat model")
    tokenizer: str = reference("the tokenizer of both")
    text: str = reference("what the student is pre-trained on")
    conversations: str = reference("what it is then fine-tuned on, and distilled on")
    pretrain_steps: int = identity("optimiser steps of the base model", ge=1)
    sft_steps: int = identity("optimiser steps of the chat model", ge=1)
    shares: list[float] = identity("λ of each arm, the first to compare the others with", min_length=1)
    divergence: str = identity("what is minimised, as stage=distill has it")
    steps: int = identity("optimiser steps of distillation", ge=1)
    distill_rate: float = identity("learning rate of distillation", gt=0, le=1)
    seeds: list[int] = identity("of each arm", min_length=1)
    prompts: str = reference("prompts to measure by; the test split")
    count: int = identity("how many of them", ge=1)
    budget: dict[str, float] = identity("seconds that each step may take on two CPU cores")


def steps(settings: Settings) -> list[Step]:
    """A small chat model, every share of its own answers with every seed, and their KL to the teacher."""
    base = laid(
        "base",
        "pretrain",
        settings.budget,
        shape=settings.shape,
        tokenizer=settings.tokenizer,
        data=settings.text,
        optimisation__steps=settings.pretrain_steps,
        optimisation__learning_rate=settings.learning_rate,
    )
    student = laid(
        "student",
        "sft",
        settings.budget,
        model__weights="step:base",
        model__shape=settings.shape,
        data=settings.conversations,
        optimisation__steps=settings.sft_steps,
    )
    arms = [(share, seed) for share in settings.shares for seed in settings.seeds]
    taught = [_taught(settings, share, seed) for share, seed in arms]
    measured = laid(
        "on_policy",
        "evaluate",
        settings.budget,
        models=[*(f"step:{step.name}" for step in taught), "step:student"],
        names=[*(f"λ {share:g}" for share, _ in arms), "student"],
        prompts=settings.prompts,
        conversations=settings.conversations,
        reference=settings.teacher,
        count=settings.count,
    )
    return [base, student, *taught, measured]


def _taught(numbers: Settings, share: float, seed: int) -> Step:
    return laid(
        f"share_{share:g}_{seed}",
        "distill",
        numbers.budget,
        preset="on_policy",
        student__weights="step:student",
        teacher=numbers.teacher,
        data=numbers.conversations,
        objective__divergence=numbers.divergence,
        drawing__share=share,
        optimisation__steps=numbers.steps,
        optimisation__learning_rate=numbers.distill_rate,
        seed=seed,
    )
