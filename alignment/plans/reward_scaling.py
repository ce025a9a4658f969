"""Reward models of several sizes on several amounts of data (Llama 2, arXiv 2307.09288, Figure 6)."""

from __future__ import annotations

from alignment.plans.step import Step, laid
from alignment.settings import Settings as StrictSettings
from alignment.settings import identity, reference

NEXT = ("python -m alignment.run stage=show target=latest:scaling   accuracy by size and by data",)


class Settings(StrictSettings):
    """The plan's numbers."""

    shapes: list[str] = identity("sizes of the model, by preset, the smallest first", min_length=1)
    tokenizer: str = reference("the tokenizer of all sizes")
    text: str = reference("what every size is pretrained on")
    conversations: str = reference("what every size is then fine-tuned on")
    pretrain_steps: int = identity("optimiser steps of every base model", ge=1)
    sft_steps: int = identity("optimiser steps of every chat model", ge=1)
    pairs: list[int] = identity("training comparisons, the fewest first", min_length=1)
    seeds: list[int] = identity("of each arm", min_length=1)
    batch: int = identity("pairs a step: small, so that few pairs make enough steps", ge=1)
    budget: dict[str, float] = identity("seconds that each step may take on two CPU cores")


def steps(settings: Settings) -> list[Step]:
    """A chat model of every size, reward models from it on every amount of data, and all of them measured."""
    data = [_pairs(settings, rows) for rows in settings.pairs]
    chats = [step for shape in settings.shapes for step in _chat(settings, shape)]
    arms = [(shape, rows, seed) for rows in settings.pairs for shape in settings.shapes for seed in settings.seeds]
    trained = [_reward(settings, *arm) for arm in arms]
    measured = laid(
        "scaling",
        "measure",
        settings.budget,
        models=[f"step:{step.name}" for step in trained],
        names=[f"{shape} {rows}" for shape, rows, _ in arms],
        comparisons=[f"step:pairs_{max(settings.pairs)}"],
    )
    return [*data, *chats, *trained, measured]


def _pairs(numbers: Settings, rows: int) -> Step:
    few = {"train": {"rows": rows}}
    return laid(
        f"pairs_{rows}",
        "data",
        numbers.budget,
        recipe="miniature_helpfulness",
        recipe__sources__0__miniature=few,
    )


def _chat(numbers: Settings, shape: str) -> list[Step]:
    base = laid(
        f"base_{shape}",
        "pretrain",
        numbers.budget,
        shape=shape,
        tokenizer=numbers.tokenizer,
        data=numbers.text,
        optimisation__steps=numbers.pretrain_steps,
    )
    chat = laid(
        f"chat_{shape}",
        "sft",
        numbers.budget,
        model__weights=f"step:{base.name}",
        data=numbers.conversations,
        optimisation__steps=numbers.sft_steps,
    )
    return [base, chat]


def _reward(numbers: Settings, shape: str, rows: int, seed: int) -> Step:
    return laid(
        f"reward_{shape}_{rows}_{seed}",
        "reward",
        numbers.budget,
        model__weights=f"step:chat_{shape}",
        data=f"step:pairs_{rows}",
        seed=seed,
        optimisation__batch=numbers.batch,
    )
