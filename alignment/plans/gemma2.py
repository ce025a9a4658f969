"""Gemma 2's road (arXiv 2408.00118, §4): teacher's answers, fine-tuning, a larger reward model, REINFORCE, averages.

The reward model's trunk is larger than the policy and learns from dialogues of many turns. Reinforcement learning takes
the prompts of fine-tuning, once for each set of hyperparameters; the models are averaged, those of different
hyperparameters first, then what came of each phase.
"""

from __future__ import annotations

from alignment.plans.step import Step, laid
from alignment.settings import Settings as StrictSettings
from alignment.settings import identity, reference

NEXT = ("python -m alignment.run stage=show target=latest:table        the phases, the runs and their averages",)


class Run(StrictSettings):
    """Hyperparameters of one run of reinforcement learning."""

    learning_rate: float = identity("of the policy", gt=0, le=1)
    beta: float = identity("weight of the KL divergence", ge=0)
    seed: int = identity("of the draws and the order of the prompts", ge=0)


class Settings(StrictSettings):
    """The plan's numbers."""

    base: str = reference("the pre-trained policy")
    tokenizer: str = reference("the tokenizer of policy and reward model")
    text: str = reference("what the reward model's trunk is pre-trained on")
    conversations: str = reference("what both are first fine-tuned on")
    questions: str = reference("prompts of fine-tuning: the teacher answers them, and the policy learns from rewards")
    teacher: str = reference("who answers")
    prompts: str = reference("prompts whose test split measures")
    subjects: str = reference("prompts to which pairs of answers are drawn")
    judge: str = reference("who compares answers")
    reward_shape: str = identity("size of the reward model, by preset: larger than the policy")
    trunk_steps: int = identity("optimiser steps of its pre-training", ge=1)
    tune_steps: int = identity("optimiser steps of every first fine-tuning", ge=1)
    sft_steps: int = identity("optimiser steps on the teacher's answers", ge=1)
    rl_steps: int = identity("batches of every run of reinforcement learning", ge=1)
    runs: list[Run] = identity("the hyperparameters to average over", min_length=2)
    budget: dict[str, float] = identity("seconds that each step may take on two CPU cores")


def steps(settings: Settings) -> list[Step]:
    """Policy, reward model, runs, averages, and a table of all of them."""
    runs = [f"step:rl_{place}" for place in range(1, len(settings.runs) + 1)]
    return [
        *_policy(settings),
        *_judge(settings),
        *_learned(settings),
        laid("averaged", "merge", settings.budget, models=runs),
        laid("phases", "merge", settings.budget, models=["step:sft", "step:averaged"]),
        laid(
            "table",
            "evaluate",
            settings.budget,
            models=["step:sft", *runs, "step:averaged", "step:phases"],
            prompts=settings.prompts,
            conversations=settings.conversations,
            reference="step:sft",
        ),
    ]


def _policy(numbers: Settings) -> list[Step]:
    """Fine-tuned on conversations, then on what a teacher answers."""
    return [
        laid(
            "tuned",
            "sft",
            numbers.budget,
            model__weights=numbers.base,
            data=numbers.conversations,
            optimisation__steps=numbers.tune_steps,
        ),
        laid("teach", "teach", numbers.budget, teacher=numbers.teacher, prompts=numbers.questions),
        laid(
            "sft",
            "sft",
            numbers.budget,
            model__weights="step:tuned",
            data="step:teach",
            optimisation__steps=numbers.sft_steps,
        ),
    ]


def _judge(numbers: Settings) -> list[Step]:
    """A reward model on a trunk of its own, from pairs that the policy has drawn."""
    return [
        laid(
            "large_base",
            "pretrain",
            numbers.budget,
            shape=numbers.reward_shape,
            tokenizer=numbers.tokenizer,
            data=numbers.text,
            optimisation__steps=numbers.trunk_steps,
        ),
        laid(
            "large_tuned",
            "sft",
            numbers.budget,
            model__weights="step:large_base",
            data=numbers.conversations,
            optimisation__steps=numbers.tune_steps,
        ),
        laid("pairs", "pairs", numbers.budget, models=["step:sft", "step:tuned"], prompts=numbers.subjects),
        laid("label", "label", numbers.budget, pairs="step:pairs", judge=numbers.judge),
        laid("reward", "reward", numbers.budget, model__weights="step:large_tuned", data="step:label"),
    ]


def _learned(numbers: Settings) -> list[Step]:
    """One run for each set of hyperparameters, on the prompts of fine-tuning."""
    return [
        laid(
            f"rl_{place}",
            "rl",
            numbers.budget,
            policy="step:sft",
            prompts=numbers.questions,
            reward__model="step:reward",
            drawing__samples=1,
            estimating__kind="reinforce",
            estimating__baseline="running",
            anchoring__beta=run.beta,
            updating__learning_rate=run.learning_rate,
            updating__steps=numbers.rl_steps,
            seed=run.seed,
        )
        for place, run in enumerate(numbers.runs, 1)
    ]
