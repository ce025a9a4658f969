"""How often one model's answers are preferred to another's: wins, ties, losses, slices, and what length explains.

Ties have two conventions, which stand beside each other: split evenly between the two (Gemma 1, arXiv 2403.08295), or
left out, win/(win+loss) (Llama 2's figures, arXiv 2307.09288). Intervals are bootstraps over prompts.
Axes: P pairs, K slices, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignment.evals.intervals import Bootstrap
from alignment.evals.preferences import TURNS, sigmoid, told

Measure = dict[str, Any]
Masks = Mapping[str, Mapping[str, np.ndarray]]

WIN, TIE, LOSS = 1.0, 0.5, 0.0
PLURAL = {"win": "wins", "tie": "ties", "loss": "losses"}
LENGTH_BINS = 4
"""Slices by the length of the prompt, with about as many pairs in each."""

PRECISION = 0.1
"""Of the normal priors on θ and φ (our choice), weak enough to matter only where one side always wins."""
STEPS, LONGEST_STEP, ENOUGH = 50, 2.0, 1e-9
"""Of Newton's method: how many at most, how far one goes, and below which change it has arrived."""


def slices(
    turns_P: np.ndarray, lengths_P: np.ndarray, named: Mapping[str, Sequence[str | None]] | None = None
) -> dict[str, dict[str, np.ndarray]]:
    """Masks (P) by kind and value: all, turns of the user, length of the prompt, and what else has a name (category).

    Values without a pair are left out, and so are kinds of names that no pair has.
    """
    capped_P = np.minimum(turns_P, len(TURNS))
    found: dict[str, dict[str, np.ndarray]] = {
        "all": {"all": np.ones(len(turns_P), bool)},
        "turns": {name: capped_P == number for number, name in enumerate(TURNS, 1)},
        "prompt_length": _by_length(lengths_P),
    }
    for kind, values in (named or {}).items():
        present = sorted({value for value in values if value})
        found[kind] = {name: np.array([value == name for value in values]) for name in present}
    there = {kind: {name: mask for name, mask in masks.items() if mask.any()} for kind, masks in found.items()}
    return {kind: masks for kind, masks in there.items() if masks}


def _by_length(lengths_P: np.ndarray) -> dict[str, np.ndarray]:
    """Quarters of the pairs by length; fewer where many prompts are equally long."""
    inner = np.quantile(lengths_P, np.arange(1, LENGTH_BINS) / LENGTH_BINS, method="lower")
    bounds = sorted({int(bound) for bound in inner if bound < lengths_P.max()})
    masks: dict[str, np.ndarray] = {}
    below = -1
    for bound in bounds:
        name = f"up to {bound:,}" if below < 0 else f"{below + 1:,} to {bound:,}"
        masks[name] = (lengths_P > below) & (lengths_P <= bound)
        below = bound
    masks["any" if below < 0 else f"over {below:,}"] = lengths_P > below
    return masks


def rates(result_P: np.ndarray, masks: Masks, resamples: Bootstrap) -> dict[str, dict[str, Measure]]:
    """Wins, ties and losses of every slice, and the win rate under both conventions; null where there is no pair.

    ``result_P`` holds :data:`WIN`, :data:`TIE` and :data:`LOSS`, NaN for a pair that was not judged, which counts
    nowhere. ``without_ties`` is null where every pair is a tie.
    """
    named = [(kind, name, mask) for kind, some in masks.items() for name, mask in some.items()]
    mask_PK = np.stack([mask for _, _, mask in named], axis=1)
    parts = {"win": result_P == WIN, "tie": result_P == TIE, "loss": result_P == LOSS}
    columns = {part: (is_P[:, None] & mask_PK).astype(float) for part, is_P in parts.items()}
    judged_PK = sum(columns.values())
    found = {part: resamples.ratios(column_PK, judged_PK) for part, column_PK in columns.items()}
    found["ties_split"] = resamples.ratios(columns["win"] + columns["tie"] / 2, judged_PK)
    found["without_ties"] = resamples.ratios(columns["win"], columns["win"] + columns["loss"])
    table: dict[str, dict[str, Measure]] = {kind: {} for kind in masks}
    for place, (kind, name, _) in enumerate(named):
        counts = {PLURAL[part]: int(column_PK[:, place].sum()) for part, column_PK in columns.items()}
        table[kind][name] = {"pairs": sum(counts.values()), **counts} | {
            measure: told(intervals[place]) for measure, intervals in found.items()
        }
    return table


def length_controlled(result_P: np.ndarray, gaps_P: np.ndarray, resamples: Bootstrap) -> Measure | None:
    """The win rate that would be seen if both answers were equally long, with its interval; null where nothing tells.

    Length-controlled AlpacaEval (arXiv 2404.04475, eq. 2), without its term for the prompt's difficulty, which needs
    many models: P(win) = σ(θ + φ · tanh(gap / std(gaps))), of which σ(θ) remains at a gap of 0. ``gaps_P`` are the
    candidate's length less the baseline's; a tie counts as half a win. ``length_effect`` is φ in logits. Null where
    every answer is longer, or every one shorter, than the other: then θ and φ cannot be told apart.
    """
    judged_P = np.isfinite(result_P)
    known_P = gaps_P[judged_P].astype(float)
    if not len(known_P) or known_P.min() >= 0 or known_P.max() <= 0:
        return None
    z_P = np.tanh(gaps_P / known_P.std())
    won_P = np.where(judged_P, result_P, 0.0)
    start = _fitted(judged_P[None].astype(float), won_P, z_P, np.zeros((1, 2)))

    def rate(times_RP: np.ndarray) -> np.ndarray:
        return sigmoid(_fitted(times_RP * judged_P, won_P, z_P, start)[:, 0])

    interval = resamples.interval_of_rows(rate)
    if interval is None:
        return None
    shorter = float((known_P < 0).mean())
    return interval._asdict() | {"length_effect": float(start[0, 1]), "candidate_shorter": shorter}


def _fitted(weights_RP: np.ndarray, won_P: np.ndarray, z_P: np.ndarray, start: np.ndarray) -> np.ndarray:
    """θ and φ (R, 2) of weighted logistic regressions with normal priors, by Newton's method."""
    ability_R, effect_R = (np.repeat(start[:, place], len(weights_RP) // len(start)) for place in (0, 1))
    for _ in range(STEPS):
        chance_RP = sigmoid(ability_R[:, None] + effect_R[:, None] * z_P)
        slope_RP = weights_RP * (chance_RP - won_P)
        bend_RP = weights_RP * chance_RP * (1 - chance_RP)
        first_R = slope_RP.sum(1) + PRECISION * ability_R
        second_R = slope_RP @ z_P + PRECISION * effect_R
        a_R, b_R, c_R = bend_RP.sum(1) + PRECISION, bend_RP @ z_P, bend_RP @ z_P**2 + PRECISION
        size_R = a_R * c_R - b_R**2
        step_R2 = np.stack([c_R * first_R - b_R * second_R, a_R * second_R - b_R * first_R], axis=1) / size_R[:, None]
        # Far from the solution Newton's step overshoots where the curve is flat.
        step_R2 /= np.maximum(np.abs(step_R2).max(1, keepdims=True) / LONGEST_STEP, 1.0)
        ability_R, effect_R = ability_R - step_R2[:, 0], effect_R - step_R2[:, 1]
        if np.abs(step_R2).max() < ENOUGH:
            break
    return np.stack([ability_R, effect_R], axis=1)
