"""Averaging the weights of reward models against one model and against an ensemble, under labels that are wrong.

WARM (arXiv 2401.12187): members share their pre-training and a head, and differ in the order of the data, the learning
rate and dropout; a quarter of the labels is turned round, and members see them several times, as there. What members
share is trained first: the head alone, as in the paper, or the whole model for one epoch, where pre-training by itself
leaves members that are too far apart to be averaged (linear mode connectivity, arXiv 1912.05671).
"""

from __future__ import annotations

from typing import Literal

from alignment.plans.step import Step, laid
from alignment.settings import Settings as StrictSettings
from alignment.settings import identity, reference, text

NEXT = ("python -m alignment.run stage=show target=latest:averaged   members, their average, their ensemble",)


class Settings(StrictSettings):
    """The plan's numbers."""

    trunk: str = reference("the chat model from which every member starts")
    recipe: str = text("the miniature's comparisons, by recipe")
    rows: int = identity("comparisons to learn from", ge=1)
    epochs: float = identity(
        "passes over them once members part: only noise that was learned can be averaged out", gt=0
    )
    exchanged: float = identity("share of the training pairs that is turned round", ge=0, lt=1)
    groups: int = identity("averages, each of members of its own", ge=1)
    learning_rates: list[float] = identity("one for each member of a group", min_length=2)
    dropouts: list[float] = identity("dropout of each member, as many as learning rates")
    shared: Literal["head", "all"] = identity("what all members share beside the trunk, trained before they part")
    shared_rate: float = identity("learning rate of that training", gt=0)
    first_seed: int = identity("of the first member; the others count on", ge=0)
    budget: dict[str, float] = identity("seconds that each step may take on two CPU cores")


def steps(settings: Settings) -> list[Step]:
    """What members share, the members of every group, their averages, and all of them measured on clean pairs."""
    few = {"train": {"rows": settings.rows}}
    pairs = laid("pairs", "data", settings.budget, recipe=settings.recipe, recipe__sources__0__miniature=few)
    shared = laid(
        "shared",
        "reward",
        settings.budget,
        model__weights=settings.trunk,
        data="step:pairs",
        exchanged=settings.exchanged,
        part=settings.shared,
        optimisation__learning_rate=settings.shared_rate,
    )
    groups = [_group(settings, number) for number in range(settings.groups)]
    averages = [_average(settings, number, members) for number, members in enumerate(groups)]
    members = [member for group in groups for member in group]
    size = len(settings.learning_rates)
    measured = laid(
        "averaged",
        "measure",
        settings.budget,
        models=[f"step:{step.name}" for step in [*members, *averages]],
        names=["member"] * len(members) + ["average"] * len(averages),
        ensembles=[list(range(size * number, size * number + size)) for number in range(settings.groups)],
        comparisons=["step:pairs"],
    )
    return [pairs, shared, *members, *averages, measured]


def _group(numbers: Settings, group: int) -> list[Step]:
    members = []
    for place, (rate, dropout) in enumerate(zip(numbers.learning_rates, numbers.dropouts, strict=True)):
        step = laid(
            f"member_{group}_{place}",
            "reward",
            numbers.budget,
            model__weights=numbers.trunk if numbers.shared == "head" else "step:shared",
            head__weights="step:shared" if numbers.shared == "head" else None,
            data="step:pairs",
            exchanged=numbers.exchanged,
            dropout=dropout,
            seed=numbers.first_seed + 100 * group + place,
            optimisation__learning_rate=rate,
            optimisation__epochs=numbers.epochs,
        )
        members.append(step)
    return members


def _average(numbers: Settings, group: int, members: list[Step]) -> Step:
    models = [f"step:{member.name}" for member in members]
    return laid(f"average_{group}", "merge", numbers.budget, method="linear", models=models)
