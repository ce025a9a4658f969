"""The miniature, from nothing to a chat model that was trained by rejection sampling and PPO.

text → tokenizer → base → first, a model of many imperfect conversations. It answers questions as a teacher, draws
answers under instructions that must last (Ghost Attention) and under safety pre-prompts; with careful demonstrations
that makes the mixture on which it goes on to be the SFT model. From that and from comparisons, mixed as Llama 2 does,
come a reward model for helpfulness and one for safety, measured on each other's pairs. A third learns from pairs of the
SFT model's own answers, which the truth has compared; by it the best of several answers are kept and learned from, and
then PPO is run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from alignment.plans.step import Step, laid
from alignment.settings import Settings as StrictSettings
from alignment.settings import identity

NEXT = (
    'python -m alignment.run stage=chat model=latest:ppo prompt="…"   talk to it (leave prompt out for a conversation)',
    "python -m alignment.run stage=show target=latest:ppo              where it comes from, what is inside, its plots",
    "python -m alignment.run stage=show target=latest:mixture          the data card of what it was trained on",
    "python -m alignment.run stage=show target=latest:judged           what the reward models are right about",
    "python -m alignment.run stage=show target=latest:versions         gold by skill: SFT, rejection sampling, PPO",
    "python -m alignment.run stage=rl --help                           what can be changed",
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
    own_pairs: int | None = identity("prompts to which the SFT model draws pairs of its own answers", ge=1)
    pool: int | None = identity("prompts to which the best of several answers is kept", ge=1)
    rs_steps: int | None = identity("optimiser steps on these best answers", ge=1)
    ppo_steps: int | None = identity("batches of PPO", ge=1)
    prompts: int | None = identity("prompts on which the result is measured", ge=1)
    budget: dict[str, float] = identity("seconds that each step may take on two CPU cores")


def steps(settings: Settings) -> list[Step]:
    """The steps in order; ``mini:<name>`` names them from anywhere."""
    lay = _Layout(settings)
    return [*_written(lay), *_first_models(lay), *_drawn(lay), *_final_model(lay), *_rewarded(lay), *_aligned(lay)]


class _Layout:
    """Writes steps with the plan's numbers."""

    def __init__(self, settings: Settings) -> None:
        self.numbers = settings

    def step(self, name: str, stage: str, /, *, on_demand: bool = False, gates_open: Any = None, **said: Any) -> Step:
        """As :func:`laid`; ``gates_open`` holds where the plan's gates are open."""
        step = laid(name, stage, self.numbers.budget, on_demand=on_demand, **said)
        return step if self.numbers.gates else replace(step, settings={**step.settings, **(gates_open or {})})

    def rows(self, name: str, recipe: str | None = None, *, test: bool = True, on_demand: bool = False) -> Step:
        """A dataset of the miniature's own, by its recipe, with the plan's number of rows."""
        few = None
        if self.numbers.rows is not None:
            few = {"train": {"rows": self.numbers.rows}, "valid": {"rows": 32}}
            few |= {"test": {"rows": 64}} if test else {}
        return self.step(
            name, "data", on_demand=on_demand, recipe=f"miniature_{recipe or name}", recipe__sources__0__miniature=few
        )


def _written(lay: _Layout) -> list[Step]:
    """What the world writes. The prompts to measure by are as many as ever: fewer would not tell models apart."""
    return [
        lay.rows("text"),
        lay.rows("conversations"),
        lay.rows("careful"),
        lay.rows("dialogues", test=False),
        lay.rows("questions", test=False),
        lay.step("prompts", "data", recipe="miniature_prompts"),
    ]


def _first_models(lay: _Layout) -> list[Step]:
    return [
        lay.step("tokenizer", "tokenizer", data="step:text", pieces=lay.numbers.pieces),
        lay.step(
            "base",
            "pretrain",
            data="step:text",
            tokenizer="step:tokenizer",
            optimisation__steps=lay.numbers.pretrain_steps,
        ),
        lay.step(
            "first",
            "sft",
            model__weights="step:base",
            data="step:conversations",
            optimisation__steps=lay.numbers.first_steps,
        ),
    ]


def _drawn(lay: _Layout) -> list[Step]:
    """What the first model draws, and the mixture it goes into."""
    count = lay.numbers.questions
    return [
        lay.step(
            "teach",
            "teach",
            teacher="step:first",
            prompts="step:questions",
            count=count,
            gates_open={"unfinished": "keep"},
        ),
        lay.step(
            "ghost", "ghost", policy="step:first", dialogues="step:dialogues", count=count, gates_open={"keep": "all"}
        ),
        lay.step(
            "preprompt",
            "preprompt",
            policy="step:first",
            prompts="step:questions",
            count=count,
            gates_open={"min_gain": None},
        ),
        lay.step(
            "mixture",
            "data",
            recipe="miniature_mixture",
            tokenizer="step:tokenizer",
            recipe__sources__0__dataset="step:careful",
            recipe__sources__1__dataset="step:teach",
            recipe__sources__2__dataset="step:ghost",
            recipe__sources__3__dataset="step:preprompt",
        ),
    ]


def _final_model(lay: _Layout) -> list[Step]:
    return [
        lay.step(
            "sft",
            "sft",
            model__weights="step:first",
            data="step:mixture",
            optimisation__steps=lay.numbers.sft_steps,
        ),
        lay.step(
            "samples",
            "evaluate",
            models=["step:sft"],
            prompts="step:prompts",
            conversations="step:conversations",
            reference="step:base",
            count=lay.numbers.prompts,
        ),
    ]


def _rewarded(lay: _Layout) -> list[Step]:
    """Two reward models from the chat model, by Llama 2's mixtures, and what they are right about."""
    return [
        lay.rows("helpful_pairs", "helpfulness"),
        lay.rows("safety_pairs", "safety"),
        lay.step(
            "helpful_mixture",
            "data",
            recipe="miniature_help_mixture",
            recipe__sources__0__dataset="step:helpful_pairs",
            recipe__sources__1__dataset="step:safety_pairs",
        ),
        lay.step(
            "safety_mixture",
            "data",
            recipe="miniature_safety_mixture",
            recipe__sources__0__dataset="step:safety_pairs",
            recipe__sources__1__dataset="step:helpful_pairs",
        ),
        _reward(lay, "helpfulness", "step:helpful_mixture"),
        _reward(lay, "safety", "step:safety_mixture", safety_weight=1.0),
        lay.step(
            "judged",
            "measure",
            models=["step:helpfulness", "step:safety"],
            comparisons=["step:helpful_pairs", "step:safety_pairs"],
        ),
        _reward(lay, "helpfulness_again", "step:helpful_mixture", on_demand=True, seed=1),
    ]


def _reward(lay: _Layout, name: str, data: str, **said: Any) -> Step:
    return lay.step(name, "reward", model__weights="step:sft", data=data, centre="step:careful", **said)


def _aligned(lay: _Layout) -> list[Step]:
    """The SFT model's own pairs, a reward model that knows them, the best of several answers, PPO, and a table.

    The truth compares: the people of this world err too often for so few pairs (pipeline=rl_effects asks them).
    """
    rule: dict[str, Any] = {"reward__model": "step:preference"}
    return [
        lay.rows("subjects", test=False),
        lay.rows("adversarial", test=False, on_demand=True),
        lay.step(
            "pairs",
            "pairs",
            models=["step:sft", "step:sft"],
            temperatures=[1.0, 1.0],
            prompts="step:subjects",
            count=lay.numbers.own_pairs,
        ),
        lay.step("label", "label", pairs="step:pairs", judge="gold:overall"),
        lay.step("preference", "reward", model__weights="step:sft", data="step:label", centre="step:careful"),
        lay.step(
            "pool",
            "reject",
            policy="step:sft",
            prompts="step:prompts",
            count=lay.numbers.pool,
            samples=2,
            gates_open={"unfinished": "keep"},
            **rule,
        ),
        lay.step(
            "rs",
            "sft",
            model__weights="step:sft",
            data="step:pool",
            optimisation__steps=lay.numbers.rs_steps,
            # Gentle: at the rate of the first fine-tuning much of what the model knew is lost.
            optimisation__learning_rate=3e-4,
        ),
        lay.step(
            "ppo",
            "rl",
            policy="step:rs",
            prompts="step:prompts",
            estimating__kind="gae",
            estimating__whiten_advantages=True,
            updating__steps=lay.numbers.ppo_steps,
            watching__prompts=lay.numbers.prompts,
            **rule,
        ),
        lay.step(
            "versions",
            "evaluate",
            models=["step:sft", "step:rs", "step:ppo"],
            prompts="step:prompts",
            conversations="step:conversations",
            reference="step:sft",
            against="previous",
            count=lay.numbers.prompts,
        ),
    ]
