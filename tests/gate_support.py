"""Evaluations whose every value is planted, as stage=evaluate writes them, in a small store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from report_support import Making

from alignment.artifacts import Artifact
from alignment.chat.types import messages, prompt_key
from alignment.evals import arms, intervals, versions
from alignment.evals.intervals import Bootstrap

SETTINGS = {"split": "test", "temperature": 1.0, "against": "first", "engine": {"device": "cpu"}}
Values = Mapping[str, Mapping[str, Any]]


def opening(place: int) -> str:
    """Every tenth prompt opens as the one before it, and is drawn together with it."""
    return f"Question {place - (place % 10 == 9)}?"


def evaluate(
    making: Making,
    step: str,
    values: Values,
    *,
    names: Sequence[str] | None = None,
    seed: int = 0,
    compared: bool = True,
    kept: bool = True,
    more: Mapping[str, Mapping[str, float]] | None = None,
    prompts: str = "prompts",
    **settings: Any,
) -> Artifact:
    """An evaluation of the models that ``values[model][measure]`` names; those not made yet are made.

    ``names`` makes arms of them, ``compared`` says whether differences are told, ``kept`` whether the answers are;
    ``more`` are measures by model that are known of no prompt.
    """
    models = list(values)
    labels = arms.labels_of(names) if names else models
    columns = {
        label: {key: np.array(one, float) for key, one in values[of].items()}
        for label, of in zip(labels, models, strict=True)
    }
    count = len(next(iter(columns[labels[0]].values())))
    resamples = Bootstrap([prompt_key(messages(("user", opening(place)))) for place in range(count)], 0.95, seed)
    seeds = versions.seeds_of(labels, names)
    averaged = versions.averaged(columns, seeds)
    results: dict[str, Any] = {
        "confidence": 0.95,
        "models": {
            label: {key: _told(intervals.mean(one[~np.isnan(one)], 0.95, seed)) for key, one in measures.items()}
            for label, measures in columns.items()
        },
        "differences": versions.differences(averaged, versions.base_of([*averaged], "first"), resamples)
        if compared
        else {},
    }
    for model, told in (more or {}).items():
        results["models"][model].update({key: _told((one, one - 0.1, one + 0.2)) for key, one in told.items()})
    if len(averaged) < len(columns):
        results["arms"] = versions.arms(columns, seeds, resamples)
    for model in models:
        if model not in making.made:
            making.add(model, "sft", "policy")
    parents = {f"models.{place}": model for place, model in enumerate(models)} | {"prompts": prompts}
    written: dict[str, Any] = {"results.json": results}
    if kept:
        written["answers.parquet"] = [row for label in labels for row in _rows(label, columns[label], count)]
    return making.add(
        step,
        "evaluate",
        "evaluation",
        parents,
        written,
        settings={**SETTINGS, "seed": seed, "models": models, **settings},
    )


def _told(interval: Sequence[float]) -> dict[str, float]:
    return dict(zip(("estimate", "low", "high"), map(float, interval), strict=True))


def _rows(label: str, columns: Mapping[str, np.ndarray], count: int) -> list[dict[str, Any]]:
    return [
        {
            "model": label,
            "id": f"p-{place}",
            "prompt": [{"role": "user", "content": opening(place)}],
            "answer": "…",
            "finished": True,
            **{key: None if np.isnan(one[place]) else float(one[place]) for key, one in columns.items()},
        }
        for place in range(count)
    ]
