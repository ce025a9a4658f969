"""What a pool of iterations holds, and what it is worth above the best of the last one alone. Axis: P prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignment.data.candidates import CANDIDATES
from alignment.evals.intervals import Bootstrap
from alignment.evals.preferences import Measure, told

COLUMNS = ("prompt", "iteration", "answer", "finished", "score", "gold", "best", "kept")


def iterations(stood: Sequence[tuple[str, int]], rows: Mapping[int, int]) -> list[Measure]:
    """Each iteration's name, how many rows or prompts stood for election, and how many were kept; from 1, in order."""
    return [
        {"iteration": number, "name": name, "stood": count, "rows": rows[number]}
        for number, (name, count) in enumerate(stood, 1)
    ]


def gain(out: Path, iteration: int, keys: Sequence[str], unfinished: str, confidence: float, seed: int) -> Measure:
    """Over the prompts to which this iteration alone would have had a row: its means, the pool's, and the difference.

    ``keys`` are those of the prompts that it asked, by which they are resampled. The measures are ``reward``, what was
    chosen by, and ``gold`` where the truth is known.
    """
    filters = pc.field("best") | pc.field("kept")
    rows = pq.read_table(out / CANDIDATES, columns=[*COLUMNS], filters=filters).to_pylist()
    pool = {row["prompt"]: row for row in rows if row["kept"]}
    alone = {row["prompt"]: row for row in rows if row["best"] and row["iteration"] == iteration}
    prompts = [prompt for prompt, row in alone.items() if _learnable(row, unfinished)]
    found: Measure = {"prompts": len(prompts), "measures": {}}
    if not prompts:
        return found
    resamples = Bootstrap([keys[prompt] for prompt in prompts], confidence, seed)
    for name, column in (("reward", "score"), ("gold", "gold")):
        if all(best[prompt][column] is not None for best in (alone, pool) for prompt in prompts):
            alone_P, pool_P = (np.array([best[prompt][column] for prompt in prompts]) for best in (alone, pool))
            (difference,) = resamples.ratios((pool_P - alone_P)[:, None], np.ones((len(prompts), 1)))
            means = {"alone": float(alone_P.mean()), "pool": float(pool_P.mean())}
            found["measures"][name] = means | {"difference": told(difference)}
    return found


def _learnable(row: Mapping[str, Any], unfinished: str) -> bool:
    return bool(row["answer"].strip()) and (row["finished"] or unfinished == "keep")
