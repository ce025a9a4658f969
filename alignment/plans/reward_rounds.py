"""Reward models over rounds: each goes on from the one before with comparisons of a newer policy's answers.

Llama 2 (arXiv 2307.09288, §3.2.1) collects a batch of comparisons with every new policy, because a reward model loses
accuracy on answers unlike those it learned from. The matrix shows it: the model trained through round i on the held-out
pairs of round j.
"""

from __future__ import annotations

from alignment.plans.step import Step, laid
from alignment.settings import Settings as StrictSettings
from alignment.settings import identity, reference

NEXT = ("python -m alignment.run stage=show target=latest:rounds   the matrix of models and rounds",)


class Settings(StrictSettings):
    """The plan's numbers."""

    base: str = reference("the base model, of which the first round's policy has learned little")
    conversations: str = reference("what that policy is fine-tuned on")
    early_steps: int = identity("optimiser steps of the first round's policy", ge=1)
    later: list[str] = reference("the policies of the rounds after it, in order", min_length=1)
    prompts: str = reference("prompts to draw pairs of answers for")
    judge: str = reference("who says which answer is better")
    trunk: str = reference("the chat model from which reward models start")
    seeds: list[int] = identity("of each arm", min_length=1)
    baselines: list[str] = reference(
        "judges to measure beside them: a public reward model dir:… or hf:…, endpoint:<model> as an LLM judge"
    )
    budget: dict[str, float] = identity("seconds that each step may take on two CPU cores")


def steps(settings: Settings) -> list[Step]:
    """The rounds' pairs, a chain of reward models for every seed, and the matrix."""
    early = laid(
        "early",
        "sft",
        settings.budget,
        model__weights=settings.base,
        data=settings.conversations,
        optimisation__steps=settings.early_steps,
    )
    policies = ["step:early", *settings.later]
    collected = [step for number, policy in enumerate(policies, 1) for step in _round(settings, number, policy)]
    rounds = range(1, len(policies) + 1)
    trained = [_reward(settings, number, seed) for seed in settings.seeds for number in rounds]
    arms = [(number, seed) for number in rounds for seed in settings.seeds]
    measured = laid(
        "rounds",
        "measure",
        settings.budget,
        models=[*(f"step:reward_{number}_{seed}" for number, seed in arms), *settings.baselines],
        names=[*(f"through {number}" for number, _ in arms), *settings.baselines],
        comparisons=[f"step:round_{number}" for number in rounds],
    )
    return [early, *collected, *trained, measured]


def _round(numbers: Settings, number: int, policy: str) -> list[Step]:
    drawn = laid(f"pairs_{number}", "pairs", numbers.budget, models=[policy, policy], prompts=numbers.prompts)
    label = laid(f"round_{number}", "label", numbers.budget, pairs=f"step:{drawn.name}", judge=numbers.judge)
    return [drawn, label]


def _reward(numbers: Settings, number: int, seed: int) -> Step:
    """The model trained through a round: the one before it, trained on this round's pairs."""
    return laid(
        f"reward_{number}_{seed}",
        "reward",
        numbers.budget,
        model__weights=numbers.trunk if number == 1 else f"step:reward_{number - 1}_{seed}",
        data=f"step:round_{number}",
        seed=seed,
    )
