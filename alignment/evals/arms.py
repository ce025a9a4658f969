"""Judges beside each other: the cross table, and arms of several seeds with their differences.

An arm is what is compared (a margin, a size, a mixture); its seeds are the judges that carry its name. Two arms are
compared seed by seed and prompt by prompt. Axes: P pairs, S seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignment.evals.intervals import Bootstrap
from alignment.evals.preferences import Measure, Pairs, accuracy, slices, told


def labels_of(names: Sequence[str]) -> list[str]:
    """Names that tell all judges apart: the seeds of an arm are numbered from 1."""
    seen: dict[str, int] = {}
    labels = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        labels.append(name if list(names).count(name) == 1 else f"{name}#{seen[name]}")
    return labels


def cross_table(measures: Mapping[str, Mapping[str, Measure]]) -> Measure:
    """Accuracy of every judge (a row) on every dataset (a column), from ``measures[judge][dataset]``."""
    judges = list(measures)
    datasets = list(measures[judges[0]])
    values = [[measures[judge][dataset]["accuracy"]["all"]["all"] for dataset in datasets] for judge in judges]
    return {"judges": judges, "datasets": datasets, "accuracy": values}


def compare(arms: Mapping[str, Sequence[np.ndarray]], pairs: Pairs, resamples: Bootstrap) -> dict[str, Measure]:
    """The mean of every arm over its seeds, and its difference to the first arm; ``arms`` holds ``right_P`` by seed.

    Intervals are those of chance among prompts, the seeds being given; each seed's own value stands beside them, and
    its own difference where both arms have as many.
    """
    first = next(iter(arms.values()))
    compared: dict[str, Measure] = {}
    for name, seeds in arms.items():
        compared[name] = {
            "seeds": [float(right_P.mean()) for right_P in seeds],
            "accuracy": _by_grade(accuracy(pairs, np.mean(seeds, axis=0), resamples)),
            "difference": None if seeds is first else difference(seeds, first, pairs, resamples),
        }
    return compared


def difference(arm: Sequence[np.ndarray], first: Sequence[np.ndarray], pairs: Pairs, resamples: Bootstrap) -> Measure:
    """Accuracy of ``arm`` less that of ``first``, on all pairs and by grade."""
    less_P = np.mean(arm, axis=0) - np.mean(first, axis=0)
    paired = len(arm) == len(first)
    found = slices(pairs)
    masks = found["all"] | found["grade"]
    masks_PK = np.stack(list(masks.values()), axis=1)
    intervals = resamples.ratios(less_P[:, None] * masks_PK, masks_PK)
    by_grade = {value: told(interval) for value, interval in zip(masks, intervals, strict=True)}
    seeds = [float((a - b).mean()) for a, b in zip(arm, first, strict=True)] if paired else None
    return {"seeds": seeds, "accuracy": by_grade}


def _by_grade(table: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {**table["all"], **table["grade"]}
