"""What reinforcement learning does in a world whose truth is known: rejection sampling, PPO, β, anchors, DPO.

From one chat model that knows its facts: pairs of its own answers, compared by the miniature's people; for every seed a
reward model, the best of several answers and a fine-tuning on them, PPO from there; RLOO from the chat model at
several β under a fixed anchor, and under one that moves; DPO on the same comparisons. Rejection sampling and PPO once
more by a reward model that is right more often: of many more pairs, compared by the truth. All are measured on the
same prompts, by gold and by KL.
"""

from __future__ import annotations

from typing import Any

from alignment.plans.step import Step, laid
from alignment.settings import Settings as StrictSettings
from alignment.settings import identity, reference

NEXT = ("python -m alignment.run stage=show target=latest:effects       gold, KL and differences by arm",)


class Known(StrictSettings):
    """The numbers of the arms ``rs_known`` and ``ppo_known``."""

    pairs: int = identity("prompts to which pairs of answers are drawn", ge=1)
    pool: int = identity("prompts to which the best answer is kept", ge=1)
    samples: int = identity("answers to each of them (K)", ge=2)
    rs_steps: int = identity("optimiser steps on the best answers", ge=1)
    ppo_steps: int = identity("batches of PPO", ge=1)
    beta: float = identity("its weight of the KL divergence", ge=0)
    learning_rate: float = identity("of PPO", gt=0, le=1)


class Settings(StrictSettings):
    """The plan's numbers."""

    shape: str = identity("size of the policy, by preset")
    reward_shape: str = identity("size of the reward models, by preset: larger, as Gemma 2's")
    tokenizer: str = reference("its tokenizer")
    text: str = reference("what it is pre-trained on")
    conversations: str = reference("what it is then fine-tuned on")
    pretrain_steps: int = identity("optimiser steps of the base model", ge=1)
    sft_steps: int = identity("optimiser steps of the chat model", ge=1)
    subjects: str = reference("prompts to which pairs of answers are drawn")
    judge: str = reference("who compares them")
    aspect: str = identity("what is compared")
    prompts: str = reference("prompts to learn from; the test split measures")
    count: int = identity("prompts to measure by", ge=1)
    seeds: list[int] = identity("of each arm", min_length=1)
    pool: int = identity("prompts to which the best answer is kept", ge=1)
    samples: int = identity("answers to each of them (K)", ge=2)
    rs_steps: int = identity("optimiser steps on the best answers", ge=1)
    rs_rate: float = identity("learning rate on them: gentle, or what the model knew is lost", gt=0, le=1)
    ppo_steps: int = identity("batches of PPO", ge=1)
    ppo_beta: float = identity("its weight of the KL divergence", ge=0)
    rloo_steps: int = identity("batches of RLOO", ge=1)
    learning_rate: float = identity("of every run of reinforcement learning", gt=0, le=1)
    betas: list[float] = identity("weights of the KL divergence to compare under a fixed anchor", min_length=1)
    ema_beta: float = identity("weight of the KL divergence under the moving anchor; one of betas", ge=0)
    ema_rate: float = identity("its rate μ", gt=0, le=1)
    dpo_beta: float = identity("DPO's β", gt=0)
    known: Known = identity("rejection sampling and PPO by a reward model of many pairs that the truth compares")
    budget: dict[str, float] = identity("seconds that each step may take on two CPU cores")


def steps(settings: Settings) -> list[Step]:
    """The chat model, its comparisons, every arm with every seed, and the measurement of all."""
    arms = [(name, seed) for name in _arms(settings) for seed in settings.seeds]
    models = ["step:chat", *(f"step:{name}_{seed}" for name, seed in arms)]
    return [
        *chat_steps(settings),
        *(step for seed in settings.seeds for step in _seed(settings, seed)),
        *_known_pairs(settings),
        *(step for seed in settings.seeds for step in _known(settings, seed)),
        laid(
            "effects",
            "evaluate",
            settings.budget,
            models=models,
            names=["chat", *(name for name, _ in arms)],
            prompts=settings.prompts,
            conversations=settings.conversations,
            rewards=[f"step:reward_{settings.seeds[0]}"],
            reference="step:chat",
            count=settings.count,
        ),
    ]


def _arms(numbers: Settings) -> list[str]:
    rloo = [f"rloo_{beta:g}" for beta in numbers.betas]
    return ["rs", "ppo", *rloo, f"ema_{numbers.ema_beta:g}", "dpo", "rs_known", "ppo_known"]


def chat_steps(numbers: Settings) -> list[Step]:
    """A chat model, and pairs of its answers with grades."""
    return [
        *_core(numbers, numbers.shape, "base", "chat"),
        *_core(numbers, numbers.reward_shape, "large_base", "large_chat"),
        laid(
            "pairs",
            "pairs",
            numbers.budget,
            models=["step:chat", "step:chat"],
            temperatures=[1.0, 1.0],
            prompts=numbers.subjects,
        ),
        laid("label", "label", numbers.budget, pairs="step:pairs", judge=numbers.judge, aspect=numbers.aspect),
    ]


def _core(numbers: Settings, shape: str, base: str, chat: str) -> list[Step]:
    """A model of a size that knows its facts and has learned to answer."""
    return [
        laid(
            base,
            "pretrain",
            numbers.budget,
            shape=shape,
            tokenizer=numbers.tokenizer,
            data=numbers.text,
            optimisation__steps=numbers.pretrain_steps,
        ),
        laid(
            chat,
            "sft",
            numbers.budget,
            model__weights=f"step:{base}",
            data=numbers.conversations,
            optimisation__steps=numbers.sft_steps,
        ),
    ]


def _seed(numbers: Settings, seed: int) -> list[Step]:
    """All arms of one seed."""
    reward: dict[str, Any] = {"reward__model": f"step:reward_{seed}"}
    ppo: dict[str, Any] = {
        "estimating__kind": "gae",
        "estimating__whiten_advantages": True,
        "critic__init": "policy",
        "critic__warmup": 5,
        "updating__steps": numbers.ppo_steps,
        "anchoring__beta": numbers.ppo_beta,
    }
    return [
        reward_step(numbers, seed),
        *_best(numbers, f"pool_{seed}", f"rs_{seed}", seed, numbers, **reward),
        _learned(numbers, f"ppo_{seed}", seed, policy=f"step:rs_{seed}", **ppo, **reward),
        *anchored_steps(numbers, seed),
        laid(
            f"dpo_{seed}",
            "dpo",
            numbers.budget,
            model__weights="step:chat",
            data="step:label",
            beta=numbers.dpo_beta,
            seed=seed,
        ),
    ]


def reward_step(numbers: Settings, seed: int) -> Step:
    """The reward model of one seed."""
    return laid(
        f"reward_{seed}", "reward", numbers.budget, model__weights="step:large_chat", data="step:label", seed=seed
    )


def anchored_steps(numbers: Settings, seed: int) -> list[Step]:
    """RLOO of one seed: ``rloo_<β>_<seed>`` under a fixed anchor, ``ema_<β>_<seed>`` under one that moves."""
    rloo: dict[str, Any] = {
        "reward__model": f"step:reward_{seed}",
        "estimating__kind": "rloo",
        "updating__steps": numbers.rloo_steps,
    }
    moving: dict[str, Any] = {
        "anchoring__kind": "ema",
        "anchoring__rate": numbers.ema_rate,
        "anchoring__beta": numbers.ema_beta,
    }
    return [
        *(_learned(numbers, f"rloo_{beta:g}_{seed}", seed, anchoring__beta=beta, **rloo) for beta in numbers.betas),
        _learned(numbers, f"ema_{numbers.ema_beta:g}_{seed}", seed, **moving, **rloo),
    ]


def _known_pairs(numbers: Settings) -> list[Step]:
    """Many pairs of the chat model's answers, compared by the truth."""
    return [
        laid(
            "known_subjects",
            "data",
            numbers.budget,
            recipe="miniature_subjects",
            recipe__sources__0__miniature={"train": {"rows": numbers.known.pairs}},
        ),
        laid(
            "known_pairs",
            "pairs",
            numbers.budget,
            models=["step:chat", "step:chat"],
            temperatures=[1.0, 1.0],
            prompts="step:known_subjects",
        ),
        laid("known_label", "label", numbers.budget, pairs="step:known_pairs", judge="gold:overall"),
    ]


def _known(numbers: Settings, seed: int) -> list[Step]:
    """Rejection sampling and PPO after it, by a reward model of those."""
    known = numbers.known
    reward: dict[str, Any] = {"reward__model": f"step:reward_known_{seed}"}
    return [
        laid(
            f"reward_known_{seed}",
            "reward",
            numbers.budget,
            model__weights="step:chat",
            data="step:known_label",
            seed=seed,
        ),
        *_best(numbers, f"pool_known_{seed}", f"rs_known_{seed}", seed, known, **reward),
        _learned(
            numbers,
            f"ppo_known_{seed}",
            seed,
            policy=f"step:rs_known_{seed}",
            estimating__kind="gae",
            estimating__whiten_advantages=True,
            critic__init="policy",
            critic__warmup=5,
            updating__steps=known.ppo_steps,
            anchoring__beta=known.beta,
            rate=known.learning_rate,
            **reward,
        ),
    ]


def _best(numbers: Settings, pool: str, tuned: str, seed: int, of: Settings | Known, **reward: Any) -> list[Step]:
    """The best of several answers of the chat model, and a fine-tuning on them."""
    return [
        laid(
            pool,
            "reject",
            numbers.budget,
            policy="step:chat",
            prompts=numbers.prompts,
            count=of.pool,
            samples=of.samples,
            temperatures=[1.0],
            seed=seed,
            **reward,
        ),
        laid(
            tuned,
            "sft",
            numbers.budget,
            model__weights="step:chat",
            data=f"step:{pool}",
            seed=seed,
            optimisation__steps=of.rs_steps,
            optimisation__learning_rate=numbers.rs_rate,
        ),
    ]


def _learned(
    numbers: Settings, name: str, seed: int, *, policy: str = "step:chat", rate: float | None = None, **said: Any
) -> Step:
    return laid(
        name,
        "rl",
        numbers.budget,
        policy=policy,
        prompts=numbers.prompts,
        updating__learning_rate=numbers.learning_rate if rate is None else rate,
        watching__rewards=["gold:overall"],
        seed=seed,
        **said,
    )
