"""What margins, mixtures and the safety loss do to a reward model, each over several seeds, paired.

Llama 2 (arXiv 2307.09288): margins (Tables 27 and 28), specialised models (Tables 7 and 8), the safety loss (Table 29).
"""

from __future__ import annotations

from typing import Any

from alignment.plans.step import Step, laid
from alignment.settings import Settings as StrictSettings
from alignment.settings import identity, reference

NEXT = (
    "python -m alignment.run stage=show target=latest:margins       margins: none, small, large",
    "python -m alignment.run stage=show target=latest:specialised   models for helpfulness and for safety",
    "python -m alignment.run stage=show target=latest:auxiliary     with and without the safety loss",
)
MARGINS = ("none", "small", "large")


class Settings(StrictSettings):
    """The plan's numbers."""

    trunk: str = reference("the chat model from which every reward model starts")
    centre: str = reference("conversations on which scores are centred")
    helpful_pairs: str = reference("comparisons by helpfulness")
    safety_pairs: str = reference("comparisons by safety, with labels")
    helpful_mixture: str = reference("what a helpfulness model is trained on")
    safety_mixture: str = reference("what a safety model is trained on")
    seeds: list[int] = identity("of each arm", min_length=1)
    budget: dict[str, float] = identity("seconds that each step may take on two CPU cores")


def steps(settings: Settings) -> list[Step]:
    """Three comparisons of reward models, each arm with every seed."""
    return [*_margins(settings), *_specialised(settings), *_auxiliary(settings)]


def _margins(numbers: Settings) -> list[Step]:
    arms = [(margin, seed) for margin in MARGINS for seed in numbers.seeds]
    trained = [
        _reward(numbers, f"margin_{margin}_{seed}", data=numbers.helpful_pairs, margins=margin, seed=seed)
        for margin, seed in arms
    ]
    return [*trained, _measure(numbers, "margins", trained, [margin for margin, _ in arms], [numbers.helpful_pairs])]


def _specialised(numbers: Settings) -> list[Step]:
    helpful = [
        _reward(numbers, f"helpfulness_{seed}", data=numbers.helpful_mixture, seed=seed) for seed in numbers.seeds
    ]
    safe = [
        _reward(numbers, f"safety_{seed}", data=numbers.safety_mixture, seed=seed, safety_weight=1.0)
        for seed in numbers.seeds
    ]
    names = ["helpfulness"] * len(helpful) + ["safety"] * len(safe)
    pairs = [numbers.helpful_pairs, numbers.safety_pairs]
    return [*helpful, *safe, _measure(numbers, "specialised", [*helpful, *safe], names, pairs)]


def _auxiliary(numbers: Settings) -> list[Step]:
    without = [
        _reward(numbers, f"no_safety_loss_{seed}", data=numbers.safety_mixture, seed=seed) for seed in numbers.seeds
    ]
    names = ["without"] * len(without) + ["with"] * len(without)
    references = [f"step:{step.name}" for step in without] + [f"step:safety_{seed}" for seed in numbers.seeds]
    measured = laid(
        "auxiliary",
        "measure",
        numbers.budget,
        models=references,
        names=names,
        comparisons=[numbers.safety_pairs],
        # Given, since scores that know differences alone have no threshold of their own: that is what is shown.
        thresholds=[0.5, 0.15],
    )
    return [*without, measured]


def _reward(numbers: Settings, name: str, **said: Any) -> Step:
    return laid(name, "reward", numbers.budget, model__weights=numbers.trunk, centre=numbers.centre, **said)


def _measure(numbers: Settings, name: str, trained: list[Step], names: list[str], pairs: list[str]) -> Step:
    models = [f"step:{step.name}" for step in trained]
    return laid(name, "measure", numbers.budget, models=models, names=names, comparisons=pairs)
