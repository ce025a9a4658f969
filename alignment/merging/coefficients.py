"""What models count in a merge, in float64: from weights, and from the dot products of task vectors.

A task vector is δ_m = θ_m − θ_start. Whatever the method, a merge is θ_start + Σ c_m δ_m, and the coefficients need no
weights but only the M × M dot products δ_k·δ_m: so they are known after one pass over the models. Axis: M models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

STRAIGHT = 1e-4
"""Below this sine of the angle between two vectors, the line between them is as good as the arc."""
OPPOSITE = 1e-2
"""Below this sine, two vectors that point apart leave no arc: rounding would be multiplied by its inverse."""


class Opposite(Exception):
    """The models before ``model`` and itself moved in opposite directions: between them lies no arc."""

    def __init__(self, model: int) -> None:
        super().__init__(model)
        self.model = model


def slerp(dots_MM: np.ndarray, weights_M: Sequence[float]) -> list[float]:
    """Spherical interpolation of M task vectors by WARP's recursion (arXiv 2406.16768, §3.2 and appendix B).

    In the order given, v_m = slerp(v_{m−1}, δ_m; λ_m) with λ_m = w_m / (w_1 + … + w_m), which is 1/m for equal weights;
    slerp(a, b; λ) = sin((1 − λ)Ω)/sin Ω · a + sin(λΩ)/sin Ω · b with Ω the angle between them. It is not associative.
    Where one of them is zero or sin Ω < 1e-4 they are interpolated linearly; of a model that counts nothing no angle is
    formed. Raises :class:`Opposite` for vectors within 0.6° of opposite.
    """
    coefficients_M = np.zeros(len(weights_M))
    counted = 0.0
    for place, weight in enumerate(weights_M):
        if not weight:
            continue
        counted += weight
        share = weight / counted
        product = float(coefficients_M @ dots_MM[place])
        length = math.sqrt(max(float(coefficients_M @ dots_MM @ coefficients_M), 0.0))
        before, own = _arc(product, length, math.sqrt(dots_MM[place, place]), share, place)
        coefficients_M *= before
        coefficients_M[place] = own
    return coefficients_M.tolist()


def _arc(product: float, one: float, other: float, share: float, place: int) -> tuple[float, float]:
    """What two vectors of these norms and this dot product are multiplied with."""
    if share == 1 or not one or not other:
        return 1 - share, share
    cosine = min(max(product / (one * other), -1.0), 1.0)
    sine = math.sqrt((1 - cosine) * (1 + cosine))
    if cosine < 0 and sine < OPPOSITE:
        raise Opposite(place)
    if sine < STRAIGHT:
        return 1 - share, share
    angle = math.acos(cosine)
    return math.sin((1 - share) * angle) / sine, math.sin(share * angle) / sine


def ema(count: int, rate: float) -> tuple[float, ...]:
    """The weights of an exponential moving average: θ ← θ_1, then θ ← (1 − μ)θ + μθ_m for the others in turn.

    ``rate`` is μ. (1 − μ)^(M−1) for the first, μ(1 − μ)^(M−m) for model m: they sum to 1.
    """
    first = (1 - rate) ** (count - 1)
    return (first, *(rate * (1 - rate) ** (count - place) for place in range(2, count + 1)))
