"""What Llama 2 (arXiv 2307.09288, §5.1) observes beside its scores, on versions and models of one's own.

* Temperature: self-BLEU of several answers to creative and to factual prompts, from SFT to the version after PPO. After
  reinforcement learning the answers to factual prompts stay alike at higher temperatures.
* Time: who held an office in a year, asked of a model that has read a chronicle, with and without a thousand examples
  that tell the date on which they are asked.
* Tools: a calculator is described and was never trained; how many answers call it, and rightly.
"""

from __future__ import annotations

from typing import Any

from alignment.plans import llama2
from alignment.plans.step import Step, laid
from alignment.settings import Settings as StrictSettings
from alignment.settings import identity, reference, text

NEXT = (
    "python -m alignment.run stage=show target=latest:temperature     self-BLEU by version, temperature and prompt",
    "python -m alignment.run stage=show target=latest:tools           calls of a calculator by version",
    "python -m alignment.run stage=show target=latest:time            dated questions with and without examples",
)


class Time(StrictSettings):
    """Models that have read a chronicle."""

    chronicle: str = text("recipe of the text with the chronicle")
    tagged: str = text("recipe of the conversations with the time-tagged examples")
    untagged: str = reference("the conversations without them")
    tokenizer: str = reference("the tokenizer of all of them")
    pretrain_steps: int = identity("optimiser steps of the base model", ge=1)
    sft_steps: int = identity("optimiser steps of each chat model", ge=1)
    suite: str = text("the dated questions")


class Settings(StrictSettings):
    """The plan's numbers."""

    llama2: dict[str, Any] = identity("the numbers of pipeline=llama2, whose versions are compared")
    temperature: str = text("the suite of creative and factual prompts")
    tools: str = text("the suite in which a tool is described")
    time: Time
    budget: dict[str, float] = identity("seconds that each step may take on two CPU cores")


def steps(settings: Settings) -> list[Step]:
    """Llama 2's versions, then what is observed of them, then the models of time."""
    numbers = {key: value for key, value in settings.llama2.items() if key != "function"}
    versions = llama2.Settings.parse(numbers, "plan.llama2")
    names = [*(f"v{version}" for version in range(versions.versions + 1)), "ppo"]
    compared = [f"step:{name}" for name in names]
    return [
        *llama2.steps(versions),
        _compared(settings, "temperature", compared, settings.temperature),
        _compared(settings, "tools", compared, settings.tools),
        *_time(settings),
    ]


def _time(settings: Settings) -> list[Step]:
    numbers = settings.time
    data = {"chronicle": numbers.chronicle, "time_tagged": numbers.tagged}
    made = [laid(name, "data", settings.budget, recipe=recipe) for name, recipe in data.items()]
    made.append(
        laid(
            "chronicler",
            "pretrain",
            settings.budget,
            data="step:chronicle",
            tokenizer=numbers.tokenizer,
            optimisation__steps=numbers.pretrain_steps,
        )
    )
    for name, rows in (("undated", numbers.untagged), ("dated", "step:time_tagged")):
        made.append(
            laid(
                name,
                "sft",
                settings.budget,
                model__weights="step:chronicler",
                data=rows,
                optimisation__steps=numbers.sft_steps,
            )
        )
    return [*made, _compared(settings, "time", ["step:undated", "step:dated"], numbers.suite)]


def _compared(settings: Settings, name: str, models: list[str], suite: str) -> Step:
    """Models beside each other on one suite, each with the first."""
    return laid(name, "evaluate", settings.budget, preset="suites", models=models, suites=[suite])
