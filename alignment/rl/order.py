"""Which prompts each step takes: a function of the step and the seed, so that nothing about it has to be saved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np


def prompts_of(step: int, *, count: int, a_step: int, seed: int) -> list[int]:
    """Indices of the ``a_step`` prompts of ``step`` (from 0), out of ``count``.

    Epoch after epoch all prompts are taken once, in an order of its own; an epoch's rest begins the next step.
    """
    assert count > 0, "there is a prompt to take"
    first = step * a_step
    places = range(first, first + a_step)
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(count) for epoch in {p // count for p in places}}
    return [int(orders[place // count][place % count]) for place in places]


def keys_of(ids: Sequence[str]) -> list[str]:
    """Names for the noise of a step's draws: a prompt that comes twice in one step gets other answers."""
    seen: Counter[str] = Counter()
    keys = []
    for one in ids:
        keys.append(f"{one}#{seen[one]}" if seen[one] else one)
        seen[one] += 1
    return keys


def minibatches(groups: int, size: int, *, step: int, epoch: int, seed: int) -> list[list[int]]:
    """Groups of answers in minibatches of ``size`` groups, in an order that step, epoch and seed decide."""
    order = np.random.default_rng([seed, step, epoch, 1]).permutation(groups).tolist()
    return [order[start : start + size] for start in range(0, groups, size)]
