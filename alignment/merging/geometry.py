"""How far models have moved from their start, in which directions, and where their merge lies: from dot products alone.

Of every tensor the dot products of θ_start, δ_1 … δ_M are known (``kernels.measure``), with δ_m = θ_m − θ_start. Where
a tensor has no start, the first model stands in its place. Axes: M models, V = M + 1 vectors, the start first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alignment.errors import UserError
from alignment.merging import coefficients
from alignment.merging.plan import Plan, Tensors, group_of

Sums = Mapping[str, Sequence[float]]
"""By tensor: the dot products of its V vectors, each pair once."""

STEPS = {"BF16": 2.0**-7, "F16": 2.0**-10}
"""The distance of two neighbours among narrow numbers, relative to the power of two below them."""
TYPICAL = math.sqrt(math.log(2) / 18)
"""The root mean square of rounding over that of the numbers, in steps: uniform within a step (1/√12), the numbers'
leading digits as they mostly are (Benford: the mean of x² is 3/(2 ln 2) times its power of two squared)."""


@dataclass(frozen=True)
class Layer:
    """‖result‖ of a layer's weights, and how far each model's are from it, in the models' order."""

    norm: float
    distances: tuple[float, ...]


@dataclass(frozen=True)
class Movement:
    """Of a group, or of all tensors that the start has. Angles in degrees by pair; None where one has not moved.

    ``coefficients``: what each task vector counts in the result; None where that is not one number for all groups.
    """

    start_norm: float
    task_norms: tuple[float, ...]
    angles: dict[str, float | None]
    result_norm: float
    coefficients: tuple[float, ...] | None


@dataclass(frozen=True)
class Rounding:
    """‖ε‖/‖δ‖ of the model of which it is largest: the rounding of its numbers as stored over its task vector."""

    share: float
    of: int


@dataclass(frozen=True)
class Geometry:
    """Of the whole model and of each group, in the model's order."""

    whole: Movement
    groups: dict[str, Movement]


def matrix(rows: Sequence[Sequence[float]], vectors: int) -> np.ndarray:
    """``[V, V]``: the sum of tensors' dot products, rounded once."""
    found = np.zeros((vectors, vectors))
    upper = np.triu_indices(vectors)
    found[upper] = [math.fsum(column) for column in zip(*rows, strict=True)] if rows else 0.0
    return found + np.triu(found, 1).T


def counted(plan: Plan, tensors: Tensors, sums: Sums, group: Sequence[Tensors]) -> tuple[float, ...]:
    """What each task vector of a tensor counts; ``group`` are the tensors that share its angle.

    Raises :class:`UserError` where two models have moved in opposite directions.
    """
    if tensors.start is None:
        return plan.weights
    if plan.coefficients is not None:
        return plan.coefficients
    dots_VV = matrix([sums[one.entry.name] for one in group if one.start is not None], len(plan.models) + 1)
    try:
        return tuple(coefficients.slerp(dots_VV[1:, 1:], plan.weights))
    except coefficients.Opposite as error:
        models = [str(model.directory) for model in plan.models]
        before, opposite = ", ".join(models[: error.model]), models[error.model]
        raise UserError(
            f"{opposite} has moved from the start against {before} in {tensors.group}",
            cause="Their task vectors are opposite there, and between opposite vectors no arc is the shortest.",
            remedy="Leave one of them out, or say method=linear, where what is opposite cancels out.",
        ) from None


def layers(plan: Plan, sums: Sums, counts: Mapping[str, Sequence[float]]) -> tuple[Layer, dict[str, Layer]]:
    """Norm and distances of the whole and by layer; ``counts`` by tensor, as :func:`counted` tells."""
    squares: dict[str, list[list[float]]] = {}
    for name in sorted(sums):
        squares.setdefault(group_of(name), []).append(
            _squares(matrix([sums[name]], len(plan.models) + 1), counts[name])
        )
    found = {name: _layer(squares[name]) for name in sorted(squares, key=_place)}
    return _layer([row for rows in squares.values() for row in rows]), found


def geometry(plan: Plan, sums: Sums, counts: Mapping[str, Sequence[float]]) -> Geometry | None:
    """Norms and angles of the task vectors; None where the start has not been read."""
    if plan.start is None:
        return None
    vectors = len(plan.models) + 1
    dots_VV: dict[str, np.ndarray] = {}
    used: dict[str, tuple[float, ...]] = {}
    for group, tensors in plan.groups.items():
        begun = [one.entry.name for one in tensors if one.start is not None]
        if begun:
            dots_VV[group] = matrix([sums[name] for name in begun], vectors)
            used[group] = tuple(counts[begun[0]])
    names = sorted(dots_VV, key=_place)
    groups = {name: _movement(dots_VV[name], used[name]) for name in names}
    same = plan.coefficients
    whole = _movement(sum(dots_VV.values(), np.zeros((vectors, vectors))), same)
    length = math.hypot(*(group.result_norm for group in groups.values()))
    return Geometry(Movement(whole.start_norm, whole.task_norms, whole.angles, length, same), groups)


def rounding(plan: Plan, sums: Sums) -> Rounding | None:
    """How much of the largest part of a task vector is rounding of what the model is stored in; None for fp32.

    The start has none: training began at the very numbers of its file. ‖ε‖² is added up over the tensors that are
    narrow, with their typical rounding; a model that has not moved at all has no task vector to speak of.
    """
    narrow = [one for group in plan.groups.values() for one in group if one.entry.dtype in STEPS]
    if plan.start is None or not narrow:
        return None
    vectors = len(plan.models) + 1
    moved = matrix([sums[one.entry.name] for group in plan.groups.values() for one in group if one.start], vectors)
    shares = []
    for place in range(1, vectors):
        error = 0.0
        for one in narrow:
            if one.start is not None:
                dots_VV = matrix([sums[one.entry.name]], vectors)
                own = dots_VV[0, 0] + 2 * dots_VV[0, place] + dots_VV[place, place]
                error += (STEPS[one.entry.dtype] * TYPICAL) ** 2 * own
        shares.append(math.sqrt(max(error, 0.0) / moved[place, place]) if moved[place, place] else 0.0)
    largest = max(range(len(shares)), key=lambda place: shares[place])
    return Rounding(shares[largest], largest)


def _squares(dots_VV: np.ndarray, counts: Sequence[float]) -> list[float]:
    """‖result‖² and every ‖θ_m − result‖², with result = start + Σ c_m δ_m."""
    counts_M = np.asarray(counts, dtype=float)
    from_zero_V = np.concatenate([[1.0], counts_M])
    apart = [counts_M - np.eye(len(counts_M))[place] for place in range(len(counts_M))]
    squares = [from_zero_V @ dots_VV @ from_zero_V, *(one @ dots_VV[1:, 1:] @ one for one in apart)]
    return [max(float(square), 0.0) for square in squares]


def _layer(rows: Sequence[Sequence[float]]) -> Layer:
    norm, *distances = (math.sqrt(math.fsum(column)) for column in zip(*rows, strict=True))
    return Layer(norm, tuple(distances))


def _movement(dots_VV: np.ndarray, counts: tuple[float, ...] | None) -> Movement:
    tasks_MM = dots_VV[1:, 1:]
    norms_M = np.sqrt(np.diag(tasks_MM))
    angles: dict[str, float | None] = {}
    for one in range(len(norms_M)):
        for other in range(one + 1, len(norms_M)):
            lengths = norms_M[one] * norms_M[other]
            cosine = min(max(tasks_MM[one, other] / lengths, -1.0), 1.0) if lengths else None
            angles[f"{one},{other}"] = None if cosine is None else math.degrees(math.acos(cosine))
    counts_M = np.zeros(len(norms_M)) if counts is None else np.asarray(counts)
    result = math.sqrt(max(float(counts_M @ tasks_MM @ counts_M), 0.0))
    return Movement(math.sqrt(dots_VV[0, 0]), tuple(norms_M.tolist()), angles, result, counts)


def _place(name: str) -> list[tuple[bool, int, str]]:
    """The model's order: ``layers.10`` behind ``layers.9``."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]
