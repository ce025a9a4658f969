"""Scores to mean 0 and variance 1, over a batch or over all batches so far.

Of three whitenings this is Llama 2's, of an answer's score, before anything is subtracted from it (arXiv 2307.09288,
§3.2.3). Those of token rewards and of advantages belong to the loop. Axes: N answers, of all processes together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

Scope = Literal["none", "batch", "running"]

EPSILON = 1e-8
"""Added to the variance, so that scores which differ by rounding alone stay near 0."""


@dataclass(frozen=True)
class Statistics:
    """Of ``count`` numbers the mean and the sum of squared deviations from it."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values_N: np.ndarray) -> Statistics:
        """To the same bits whatever the order, and so whichever process held which answer. Equal values give 0."""
        if not len(values_N):
            return cls()
        # About the least of them: the mean of equal values is then exact.
        ordered_N = np.sort(values_N.astype(np.float64))
        about_N = ordered_N - ordered_N[0]
        shift = float(about_N.mean())
        return cls(len(values_N), float(ordered_N[0]) + shift, float(np.square(about_N - shift).sum()))

    def merged(self, other: Statistics) -> Statistics:
        """Of both sets of numbers together (Welford's update for batches: Chan, Golub and LeVeque, 1979)."""
        count = self.count + other.count
        if not self.count or not other.count:
            return other if other.count else self
        apart = other.mean - self.mean
        return Statistics(
            count,
            self.mean + apart * (other.count / count),
            self.squares + other.squares + apart**2 * (self.count * other.count / count),
        )

    @property
    def variance(self) -> float:
        """Of these numbers themselves, not an estimate for others like them; 0 where there are none."""
        return self.squares / self.count if self.count else 0.0


class Whitening:
    """``batch`` reads the statistics of the batch, ``running`` those of all batches so far and this one."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self._so_far = Statistics()

    def __call__(self, scores_N: np.ndarray, everywhere_N: np.ndarray) -> np.ndarray:
        """The scores of this process, whitened by the statistics of ``everywhere_N``, the batch of all processes.

        Where these do not vary the result is 0. Without whitening the scores are returned as they are.
        """
        if self.scope == "none":
            return scores_N
        statistics = Statistics.of(everywhere_N)
        if self.scope == "running":
            statistics = self._so_far = self._so_far.merged(statistics)
        if statistics.variance == 0:
            return np.zeros_like(scores_N)
        return (scores_N - statistics.mean) / np.sqrt(statistics.variance + EPSILON)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to go on to the same bits, as JSON can hold it."""
        return asdict(self._so_far)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state` was taken."""
        self._so_far = Statistics(**state)
