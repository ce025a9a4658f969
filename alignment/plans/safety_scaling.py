"""What more safety data does, with helpfulness data unchanged (Llama 2, arXiv 2307.09288, §4.2.3, Figure 15).

From one base model: fine-tuning on all helpfulness data with 0, 1, 10, 25, 50 and 100 % of the safety data, over
several seeds. There, safety rises and its left tail vanishes, helpfulness stays, and borderline requests are refused
more often.
"""

from __future__ import annotations

from alignment.plans.step import Step, laid
from alignment.settings import Settings as StrictSettings
from alignment.settings import identity, reference

NEXT = ("python -m alignment.run stage=show target=latest:safety_scaling   violations, rewards and refusals by share",)


class Settings(StrictSettings):
    """The plan's numbers."""

    base: str = reference("the base model that is fine-tuned")
    helpful: str = identity("recipe of the helpfulness data alone")
    both: str = identity("recipe of the same with all safety data, which is its second source")
    safety_rows: int = identity("rows of all safety data", ge=1)
    shares: list[float] = identity("of the safety data, in percent, rising", min_length=2)
    epochs: float = identity("over helpfulness and safety data", gt=0)
    seeds: list[int] = identity("of each share", min_length=1)
    suites: list[str] = identity("what all of them are examined on", min_length=1)
    budget: dict[str, float] = identity("seconds that each step may take on two CPU cores")


def steps(settings: Settings) -> list[Step]:
    """The data of every share, a model of every share and seed, and all of them measured."""
    arms = [(share, seed) for share in settings.shares for seed in settings.seeds]
    return [
        *(_data(settings, share) for share in settings.shares),
        *(_tuned(settings, *arm) for arm in arms),
        laid(
            "safety_scaling",
            "evaluate",
            settings.budget,
            preset="suites",
            models=[f"step:{_name('tuned', share)}_{seed}" for share, seed in arms],
            names=[f"{share:g} % safety" for share, _ in arms],
            suites=settings.suites,
        ),
    ]


def _name(what: str, share: float) -> str:
    return f"{what}_{share:g}".replace(".", "_")


def _data(numbers: Settings, share: float) -> Step:
    if not share:
        return laid(_name("data", share), "data", numbers.budget, recipe=numbers.helpful)
    few = {"train": {"rows": max(1, round(numbers.safety_rows * share / 100))}}
    return laid(_name("data", share), "data", numbers.budget, recipe=numbers.both, recipe__sources__1__miniature=few)


def _tuned(numbers: Settings, share: float, seed: int) -> Step:
    return Step(
        f"{_name('tuned', share)}_{seed}",
        "sft",
        {
            "model.weights": numbers.base,
            "data": f"step:{_name('data', share)}",
            "optimisation.epochs": numbers.epochs,
            "optimisation.steps": None,
            "seed": seed,
        },
        numbers.budget["sft"],
    )
