"""Models beside each other on the same prompts: how far each is from another, and which skills fell.

Every prompt is answered by every model with the same noise, so a difference is taken prompt by prompt, which is much
narrower than two intervals beside each other. What is returned can be held by JSON. Axes: P prompts, K columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from alignment.evals.intervals import Bootstrap, Interval

Against = Literal["first", "previous"]
Told = dict[str, Any]

FINISHED = "finished"
"""The measure that is a share."""
FEWEST = 10
"""Prompts of a skill below which it is not said to have fallen: a bootstrap of so few values is too sure of itself."""


def base_of(names: Sequence[str], against: Against) -> dict[str, str]:
    """For every model but the first: the one that it is compared with."""
    return {name: names[0 if against == "first" else place] for place, name in enumerate(names[1:])}


def seeds_of(labels: Sequence[str], names: Sequence[str] | None) -> dict[str, list[str]]:
    """The models of every arm, from a label and a name for each model; without names every model is an arm."""
    found: dict[str, list[str]] = {}
    for label, name in zip(labels, names or labels, strict=True):
        found.setdefault(name, []).append(label)
    return found


def averaged(
    values: Mapping[str, Mapping[str, np.ndarray]], seeds: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, np.ndarray]]:
    """The mean over an arm's models, prompt by prompt, by arm and measure."""
    return {
        arm: {measure: np.mean([values[label][measure] for label in labels], axis=0) for measure in values[labels[0]]}
        for arm, labels in seeds.items()
    }


def arms(
    values: Mapping[str, Mapping[str, np.ndarray]], seeds: Mapping[str, Sequence[str]], resamples: Bootstrap
) -> dict[str, Told]:
    """Every measure of every arm: its mean over the seeds with its interval, and each seed's own mean beside it.

    Intervals are those of chance among prompts, the seeds being given.
    """
    told: dict[str, Told] = {}
    for arm, measures in averaged(values, seeds).items():
        told[arm] = {
            measure: interval._asdict() | {"seeds": [float(values[label][measure].mean()) for label in seeds[arm]]}
            for measure, interval in _means(measures, resamples, 0).items()
        }
    return told


def differences(
    values: Mapping[str, Mapping[str, np.ndarray]], bases: Mapping[str, str], resamples: Bootstrap
) -> dict[str, Told]:
    """The mean of every measure less that of the base, by model, from ``values[model][measure]`` (P each)."""
    told: dict[str, Told] = {}
    for name, base in bases.items():
        less = {measure: values[name][measure] - values[base][measure] for measure in values[name]}
        found = _means(less, resamples, -1)
        told[name] = {"from": base, "measures": {measure: interval._asdict() for measure, interval in found.items()}}
    return told


def _means(values: Mapping[str, np.ndarray], resamples: Bootstrap, least: float) -> dict[str, Interval]:
    """The mean of every measure, from ``values[measure]`` (P); that of a share lies between ``least`` and 1."""
    columns_PK = np.stack(list(values.values()), axis=1)
    found = zip(values, resamples.ratios(columns_PK, np.ones_like(columns_PK)), strict=True)
    means = {measure: interval for measure, interval in found if interval}
    if FINISHED in means:
        share_P = values[FINISHED]
        means[FINISHED] = resamples.bounded(means[FINISHED], np.ones(len(share_P), bool), share_P, least, 1)
    return means


def by_skill(values: Mapping[str, np.ndarray], tags: Sequence[Sequence[str]]) -> dict[str, dict[str, float]]:
    """The mean for every model and skill, from ``values[model]`` (P) and every prompt's tags."""
    masks = _masks(tags)
    if not masks:
        return {}
    return {
        name: {skill: float(values_P[mask].mean()) for skill, mask in masks.items()}
        for name, values_P in values.items()
    }


def skill_differences(
    values: Mapping[str, np.ndarray],
    tags: Sequence[Sequence[str]],
    bases: Mapping[str, str],
    resamples: Bootstrap,
) -> dict[str, Told]:
    """By model and skill: the mean less that of the base, and whether the skill fell.

    It fell where the whole interval lies below 0. Of forty skills that did not change, one such is to be expected at
    95 %.
    """
    masks = _masks(tags)
    told: dict[str, Told] = {}
    if not masks:
        return told
    mask_PK = np.stack(list(masks.values()), axis=1)
    prompts_K = mask_PK.sum(0)
    for name, base in bases.items():
        less_P = values[name] - values[base]
        found = resamples.ratios(less_P[:, None] * mask_PK, mask_PK)
        skills = {
            skill: interval._asdict() | {"prompts": int(prompts), "fell": bool(interval.high < 0 and prompts >= FEWEST)}
            for skill, interval, prompts in zip(masks, found, prompts_K, strict=True)
            if interval
        }
        told[name] = {"from": base, "skills": skills}
    return told


def _masks(tags: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """Which prompts carry which tag (P), tags in alphabetical order."""
    return {
        skill: np.array([skill in some for some in tags]) for skill in sorted({tag for some in tags for tag in some})
    }
