"""Steps that the miniature's plans are laid out of; a step has one name in all of them.

Each function lays out one part of the way, with the plan's numbers, and says in its steps' settings what it goes on
from: so a plan is a list of calls, and leaving a part out is leaving a call out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from alignment.plans.step import Step, laid
from alignment.settings import Settings as StrictSettings
from alignment.settings import identity


class Warp(StrictSettings):
    """The numbers of WARP (arXiv 2406.16768) in the miniature."""

    iterations: int = identity("each from the point where the one before it ended", ge=1)
    runs: int = identity("runs of each iteration that are merged", ge=2)
    steps: int = identity("batches of each run", ge=1)
    eta: float = identity("how far the next start goes from the last one towards the merged runs", ge=0, le=1)
    etas: list[float] = identity("of a sweep from the first start to the last merged runs; empty: none")
    beta: float = identity("weight of the KL divergence to the moving anchor", ge=0)
    rate: float = identity("by which the anchor moves, a batch", gt=0, le=1)
    learning_rate: float = identity("of every run", gt=0, le=1)


class Numbers(StrictSettings):
    """What the miniature's plans share; null takes the stage's own value."""

    rows: int | None = identity("training rows of text and of conversations", ge=1)
    pieces: int | None = identity("size of the vocabulary", ge=366)
    pretrain_steps: int | None = identity("optimiser steps of the base model", ge=1)
    sft_steps: int | None = identity("optimiser steps of the chat model", ge=1)
    questions: int | None = identity("questions that a model answers for others to learn from, of each kind", ge=1)
    gates: bool = identity("keep only drawn answers that obey, gain in safety and end; false for models that cannot")
    reward_steps: int | None = identity("optimiser steps of the reward models for helpfulness and for safety", ge=1)
    own_pairs: int | None = identity("prompts to which the chat model draws pairs of its own answers", ge=1)
    pool: int | None = identity("prompts to which the best of several answers is kept", ge=1)
    samples: int = identity("answers to each of them (K)", ge=2)
    rs_steps: int | None = identity("optimiser steps on these best answers", ge=1)
    ppo_steps: int | None = identity("batches of PPO", ge=1)
    ppo_warmup: int = identity("of them, those in which only the critic learns", ge=0)
    warp: Warp = identity("the runs that are merged")
    prompts: int | None = identity("prompts on which the result is measured", ge=1)
    budget: dict[str, float] = identity("seconds that each step may take on two CPU cores")


GENTLE = 3e-4
"""The learning rate of going on: at the rate of the first fine-tuning much of what a model knew is lost."""


class Layout:
    """Writes steps with a plan's numbers."""

    def __init__(self, numbers: Numbers) -> None:
        self.numbers = numbers

    def step(self, name: str, stage: str, /, *, on_demand: bool = False, gates_open: Any = None, **said: Any) -> Step:
        """As :func:`laid`; ``gates_open`` holds where the plan's gates are open."""
        step = laid(name, stage, self.numbers.budget, on_demand=on_demand, **said)
        return step if self.numbers.gates else replace(step, settings={**step.settings, **(gates_open or {})})

    def rows(
        self,
        name: str,
        recipe: str | None = None,
        *,
        test: bool = True,
        train: int | None = None,
        on_demand: bool = False,
    ) -> Step:
        """A dataset of the miniature's own, by its recipe, with the plan's number of rows, or ``train`` of them."""
        few: dict[str, Any] = {}
        if self.numbers.rows is not None:
            few = {"train": {"rows": self.numbers.rows}, "valid": {"rows": 32}}
            few |= {"test": {"rows": 64}} if test else {}
        if train is not None:
            few |= {"train": {"rows": train}}
        return self.step(
            name,
            "data",
            on_demand=on_demand,
            recipe=f"miniature_{recipe or name}",
            recipe__sources__0__miniature=few or None,
        )


# ── what the world writes, and the first models ──────────────────────────────────────────────────


def written(lay: Layout, *, careful: bool) -> list[Step]:
    """Text, conversations, comparisons, prompts; ``careful``: whether demonstrations and dialogues are needed too.

    The prompts to measure by are as many as ever: fewer would not tell models apart.
    """
    return [
        lay.rows("text"),
        lay.rows("conversations"),
        lay.step("prompts", "data", recipe="miniature_prompts"),
        lay.rows("more_subjects", "subjects", test=False, train=lay.numbers.own_pairs),
        lay.rows("helpful_pairs", "helpfulness"),
        lay.rows("safety_pairs", "safety"),
        lay.rows("careful", on_demand=not careful),
        lay.rows("dialogues", test=False, on_demand=not careful),
        lay.rows("questions", test=False, on_demand=not careful),
        lay.rows("subjects", test=False, on_demand=True),
        lay.rows("adversarial", test=False, on_demand=True),
    ]


def base(lay: Layout) -> list[Step]:
    """A tokenizer and a model of text."""
    return [
        lay.step("tokenizer", "tokenizer", data="step:text", pieces=lay.numbers.pieces),
        lay.step(
            "base",
            "pretrain",
            data="step:text",
            tokenizer="step:tokenizer",
            optimisation__steps=lay.numbers.pretrain_steps,
        ),
    ]


def tuned(lay: Layout, name: str, data: str, *, weights: str = "step:base", **said: Any) -> Step:
    """A model of conversations, some of which are imperfect."""
    said = {"optimisation__steps": lay.numbers.sft_steps} | said
    return lay.step(name, "sft", model__weights=weights, data=data, **said)


def drawn(lay: Layout, policy: str, *, on_demand: bool = False) -> list[Step]:
    """Answers of ``policy`` under instructions that last (Ghost Attention), and under safety pre-prompts."""
    count = lay.numbers.questions
    return [
        lay.step(
            "ghost",
            "ghost",
            on_demand=on_demand,
            policy=policy,
            dialogues="step:dialogues",
            count=count,
            gates_open={"keep": "all"},
        ),
        lay.step(
            "preprompt",
            "preprompt",
            on_demand=on_demand,
            policy=policy,
            prompts="step:questions",
            count=count,
            gates_open={"min_gain": None},
        ),
    ]


def taught(lay: Layout, teacher: str, *, on_demand: bool = False) -> Step:
    """What a teacher answers to questions of which no answer was written."""
    return lay.step(
        "teach",
        "teach",
        on_demand=on_demand,
        teacher=teacher,
        prompts="step:questions",
        count=lay.numbers.questions,
        gates_open={"unfinished": "keep"},
    )


def told(lay: Layout, teacher: str, *, on_demand: bool = False) -> Step:
    """What a teacher thinks of every token of the text: its likeliest ones, for others to learn from."""
    return lay.step("told", "teach", preset="text", on_demand=on_demand, teacher=teacher, data="step:text")


def mixture(lay: Layout, name: str, recipe: str, sources: list[str], *, on_demand: bool = False) -> Step:
    """Rows of several steps, by a recipe that says how much of each."""
    said = {f"recipe__sources__{place}__dataset": f"step:{source}" for place, source in enumerate(sources)}
    return lay.step(name, "data", on_demand=on_demand, recipe=recipe, tokenizer="step:tokenizer", **said)


# ── rewards ──────────────────────────────────────────────────────────────────────────────────────


def rewards(lay: Layout, policy: str) -> list[Step]:
    """Two reward models from the chat model, by Llama 2's mixtures, and what they are right about."""
    pairs = ["helpful_pairs", "safety_pairs"]
    few = lay.numbers.reward_steps
    return [
        lay.step("helpful_mixture", "data", recipe="miniature_help_mixture", **_sources(pairs)),
        lay.step("safety_mixture", "data", recipe="miniature_safety_mixture", **_sources(pairs[::-1])),
        reward(lay, "helpfulness", policy, "step:helpful_mixture", steps=few),
        reward(lay, "safety", policy, "step:safety_mixture", steps=few, safety_weight=1.0),
        lay.step(
            "judged",
            "measure",
            models=["step:helpfulness", "step:safety"],
            comparisons=["step:helpful_pairs", "step:safety_pairs"],
        ),
        reward(lay, "helpfulness_again", policy, "step:helpful_mixture", steps=few, on_demand=True, seed=1),
    ]


def _sources(names: list[str]) -> dict[str, Any]:
    return {f"recipe__sources__{place}__dataset": f"step:{name}" for place, name in enumerate(names)}


def reward(lay: Layout, name: str, policy: str, data: str, *, steps: int | None = None, **said: Any) -> Step:
    """A reward model that goes on from a policy; of one epoch, or of so many steps."""
    step = lay.step(name, "reward", model__weights=policy, data=data, **said)
    few = {} if steps is None else {"optimisation.steps": steps, "optimisation.epochs": None}
    return replace(step, settings={**step.settings, **few})


def preference(lay: Layout, policy: str) -> list[Step]:
    """Pairs of the policy's own answers, told apart by the truth, and the reward model that learns from them.

    The truth compares: the people of this world err too often for so few pairs (``pipeline=rl_effects`` asks them).
    """
    return [
        lay.step(
            "pairs",
            "pairs",
            models=[policy, policy],
            temperatures=[1.0, 1.0],
            prompts="step:more_subjects",
            count=lay.numbers.own_pairs,
        ),
        lay.step("label", "label", pairs="step:pairs", judge="gold:overall"),
        reward(lay, "preference", policy, "step:label"),
    ]


# ── policies that learn from them ────────────────────────────────────────────────────────────────


def best_of(lay: Layout, policy: str) -> list[Step]:
    """The best of several answers, and a fine-tuning on them."""
    return [
        lay.step(
            "pool",
            "reject",
            policy=policy,
            prompts="step:prompts",
            count=lay.numbers.pool,
            samples=lay.numbers.samples,
            temperatures=[1.0],
            gates_open={"unfinished": "keep"},
            reward__model="step:preference",
        ),
        tuned(
            lay,
            "rs",
            "step:pool",
            weights=policy,
            optimisation__steps=lay.numbers.rs_steps,
            optimisation__learning_rate=GENTLE,
        ),
    ]


def ppo(lay: Layout, policy: str) -> Step:
    """PPO with a critic of the policy's own trunk."""
    return lay.step(
        "ppo",
        "rl",
        policy=policy,
        prompts="step:prompts",
        reward__model="step:preference",
        estimating__kind="gae",
        estimating__whiten_advantages=True,
        critic__init="policy",
        critic__warmup=lay.numbers.ppo_warmup,
        anchoring__beta=0.1,
        updating__learning_rate=2e-4,
        updating__steps=lay.numbers.ppo_steps,
        watching__prompts=lay.numbers.prompts,
        watching__rewards=["gold:overall"],
    )


def compared(lay: Layout, models: list[str], reference: str, *, perplexity: bool = True) -> Step:
    """Every policy on the same held-out prompts, by the truth and by the reward that was learned from."""
    return lay.step(
        "versions",
        "evaluate",
        models=[f"step:{name}" for name in models],
        prompts="step:prompts",
        conversations="step:conversations",
        rewards=["step:preference"],
        reference=reference,
        count=lay.numbers.prompts,
    )
