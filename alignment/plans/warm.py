"""Averaging the weights of reward models against one model and against an ensemble, under labels that are wrong.

WARM (arXiv 2401.12187): members share their pre-training and a head from linear probing, and differ in the order of
the data, the learning rate and dropout; a quarter of the labels is turned round.
"""

from __future__ import annotations

from alignment.plans.step import Step, laid
from alignment.settings import Settings as StrictSettings
from alignment.settings import identity, reference

NEXT = ("python -m alignment.run stage=show target=latest:averaged   members, their average, their ensemble",)


class Settings(StrictSettings):
    """The plan's numbers."""

    trunk: str = reference("the chat model from which every member starts")
    pairs: str = reference("comparisons to learn from and to be measured on")
    exchanged: float = identity("share of the training pairs that is turned round", ge=0, lt=1)
    groups: int = identity("averages, each of members of its own", ge=1)
    learning_rates: list[float] = identity("one for each member of a group", min_length=2)
    dropouts: list[float] = identity("dropout of each member, as many as learning rates")
    probe_rate: float = identity("learning rate of the linear probe that gives all members their head", gt=0)
    budget: dict[str, float] = identity("seconds that each step may take on two CPU cores")


def steps(settings: Settings) -> list[Step]:
    """A probe, the members of every group, their averages, and all of them measured on clean pairs."""
    probe = laid(
        "probe",
        "reward",
        settings.budget,
        model__weights=settings.trunk,
        data=settings.pairs,
        exchanged=settings.exchanged,
        part="head",
        optimisation__learning_rate=settings.probe_rate,
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
        comparisons=[settings.pairs],
    )
    return [probe, *members, *averages, measured]


def _group(numbers: Settings, group: int) -> list[Step]:
    members = []
    for place, (rate, dropout) in enumerate(zip(numbers.learning_rates, numbers.dropouts, strict=True)):
        step = laid(
            f"member_{group}_{place}",
            "reward",
            numbers.budget,
            model__weights=numbers.trunk,
            head__weights="step:probe",
            data=numbers.pairs,
            exchanged=numbers.exchanged,
            dropout=dropout,
            seed=100 * group + place,
            optimisation__learning_rate=rate,
        )
        members.append(step)
    return members


def _average(numbers: Settings, group: int, members: list[Step]) -> Step:
    models = [f"step:{member.name}" for member in members]
    return laid(f"average_{group}", "merge", numbers.budget, method="linear", models=models)
