"""The closing table of ``stage=rl``: what the policy was worth on held-out prompts along the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignment import console

Look = Mapping[str, Any]
"""A point of the KL–reward front, as ``front.jsonl`` has it."""


def show(points: Sequence[Look], kept: Look) -> None:
    """Print them, the kept one with a star."""
    columns = ("step", "KL to the start", "reward", *points[0]["others"])
    rows = [
        (
            f"{point['step']:,}{' *' if point is kept else ''}",
            f"{point['kl']:.3f}",
            f"{point['reward']:.3f}",
            *(f"{value:.3f}" for value in point["others"].values()),
        )
        for point in _some(points, kept)
    ]
    console.table("on held-out prompts (* is kept)", columns, rows, right=columns)


def _some(points: Sequence[Look], kept: Look, most: int = 12) -> list[Look]:
    """At most so many points, the first, the last and the kept one among them."""
    places = {round(place * (len(points) - 1) / (most - 1)) for place in range(most)} | {points.index(kept)}
    return [points[place] for place in sorted(places)]
