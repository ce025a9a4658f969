"""What the best of several answers is worth: by how many are drawn, by temperature and by the prompts' tags.

K answers to a prompt tell what the best of fewer is worth: the mean over all subsets of N, by the weights with which
order statistics enter it, has no bias and scatters less than N answers drawn anew. Llama 2 (arXiv 2307.09288, §3.2.3,
figures 7 and 8) plots these curves: the maximum rises with N, the median does not.

Answers are ranked by their standing first (one that has ended is above all that have not), then by score; of equals
the first is the better. One that is not sound counts as the lowest score of its prompt, so that no temperature wins
by answers that never end, whatever a reward thinks of them.

Axes: T temperatures, P prompts, K answers to a prompt, N sizes of a subset (1 … K), C columns.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from alignment.chat.types import Prompt, row_key
from alignment.data.candidates import Candidate
from alignment.evals.intervals import Bootstrap
from alignment.evals.preferences import Measure, told

SOUND = 2
"""The standing of an answer that can be learned from."""
TAGS = 30
"""Tags that are told apart, the most frequent ones."""
ALL = "all prompts"
"""Stands for a tag that every prompt has."""


class Answers(NamedTuple):
    """What was drawn at one temperature. ``gold_PK`` is the truth, where it is known; it ranks nothing."""

    scores_PK: np.ndarray
    standing_PK: np.ndarray
    gold_PK: np.ndarray | None = None

    @property
    def sound_PK(self) -> np.ndarray:
        """Which of them can be learned from."""
        return self.standing_PK == SOUND


class Drawn:
    """What was drawn at one temperature, gathered prompt by prompt: 17 bytes an answer, and the prompts' tags."""

    def __init__(self) -> None:
        self.tags: list[tuple[str, ...]] = []
        self.keys: list[str] = []
        self.equal_answers = self.constant_scores = self.tokens = 0
        self._scores, self._standing, self._gold = array("d"), array("b"), array("d")

    def add(self, prompt: Prompt, candidates: Sequence[Candidate]) -> None:
        """The answers to one prompt, as many as to every other."""
        self.tags.append(prompt.tags)
        self.keys.append(row_key(prompt))
        self._scores.extend(one.score for one in candidates)
        self._standing.extend(one.standing for one in candidates)
        self._gold.extend(one.gold for one in candidates if one.gold is not None)
        self.tokens += sum(one.tokens for one in candidates)
        several = len(candidates) > 1
        self.equal_answers += several and len({one.answer for one in candidates}) == 1
        self.constant_scores += several and len({one.score for one in candidates}) == 1

    @property
    def answers(self) -> Answers:
        """As arrays."""
        shape = (len(self.tags), -1)
        scores_PK = np.array(self._scores).reshape(shape)
        gold_PK = np.array(self._gold).reshape(shape) if self._gold else None
        return Answers(scores_PK, np.array(self._standing).reshape(shape), gold_PK)

    def resamples(self, confidence: float, seed: int) -> Bootstrap:
        """Of prompts; those that open alike are drawn together."""
        return Bootstrap(self.keys, confidence, seed)


# ── order statistics ─────────────────────────────────────────────────────────────────────────────


def order_weights(samples: int, size: int, rank: int) -> np.ndarray:
    """How likely each of ``samples`` values, in rising order, is the ``rank``-th smallest (from 1) of ``size`` of them.

    ``[K]``: ``C(i−1, r−1) · C(K−i, n−r) / C(K, n)`` for the i-th smallest.
    """
    assert 1 <= rank <= size <= samples
    place_K = np.arange(1, samples + 1)
    below, above = _log_choose(place_K - 1, rank - 1), _log_choose(samples - place_K, size - rank)
    weights_K = np.exp(below + above - _log_choose(np.array(samples), size))
    return weights_K / weights_K.sum()


def best_weights(samples: int) -> np.ndarray:
    """``[N, K]``: the weights of values in rising order in the expected maximum of N of them."""
    return np.stack([order_weights(samples, size, size) for size in range(1, samples + 1)])


def median_weights(samples: int) -> np.ndarray:
    """``[N, K]``: those in the expected median; of an even number, the mean of the two in the middle."""
    sizes = range(1, samples + 1)
    return np.stack(
        [
            (order_weights(samples, size, (size + 1) // 2) + order_weights(samples, size, size // 2 + 1)) / 2
            for size in sizes
        ]
    )


def _log_choose(among: np.ndarray, chosen: int) -> np.ndarray:
    """``log C(among, chosen)``; −∞ where there are not so many. At least one of ``among`` has so many."""
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, among.max() + 1)))])
    enough = among >= chosen
    rest = np.where(enough, among - chosen, 0)
    return np.where(enough, log_factorials[among] - log_factorials[chosen] - log_factorials[rest], -np.inf)


# ── ranking ──────────────────────────────────────────────────────────────────────────────────────


def ranked(answers: Answers) -> np.ndarray:
    """``order_PK``: the places of each prompt's answers, the worst first."""
    later_PK = np.broadcast_to(-np.arange(answers.scores_PK.shape[1]), answers.scores_PK.shape)
    return np.lexsort((later_PK, answers.scores_PK, answers.standing_PK), axis=-1)


def lowest(drawn: Sequence[Answers]) -> np.ndarray:
    """``lowest_P``: the lowest score that any answer to a prompt got, at any of these temperatures."""
    return np.min([answers.scores_PK.min(1) for answers in drawn], axis=0)


def curve_values(answers: Answers, lowest_P: np.ndarray) -> dict[str, np.ndarray]:
    """``[P, N]`` by name: the expected ``maximum`` and ``median`` of N answers, and the ``gold`` of the best one."""
    order_PK = ranked(answers)
    worth_PK = np.where(answers.sound_PK, answers.scores_PK, lowest_P[:, None])
    rising_PK = np.take_along_axis(worth_PK, order_PK, axis=1)
    best_NK = best_weights(order_PK.shape[1])
    values = {"maximum": rising_PK @ best_NK.T, "median": rising_PK @ median_weights(order_PK.shape[1]).T}
    if answers.gold_PK is not None:
        values["gold"] = np.take_along_axis(answers.gold_PK, order_PK, axis=1) @ best_NK.T
    return values


# ── results ──────────────────────────────────────────────────────────────────────────────────────


def tune(drawn: Mapping[float, Drawn], confidence: float, seed: int) -> list[Measure]:
    """The curves of every temperature, from the same prompts; what is lowest is so at any of them."""
    answers = {temperature: one.answers for temperature, one in drawn.items()}
    lowest_P = lowest(list(answers.values()))
    return [
        {
            "temperature": temperature,
            "prompts": len(one.tags),
            **_shares(one),
            **_curves(answers[temperature], lowest_P, one.resamples(confidence, seed)),
        }
        for temperature, one in drawn.items()
    ]


def best_temperature(tuning: Sequence[Measure]) -> float:
    """The temperature at which the best of all K scores highest; the first of equals."""
    best: float = max(tuning, key=lambda one: one["maximum"][-1]["estimate"])["temperature"]
    return best


def results(drawn: Drawn, rows: int, rows_by_tag: Mapping[str, int], confidence: float, seed: int) -> Measure:
    """What all prompts tell: curves, and by tag, beside the rows that the dataset has."""
    answers, resamples = drawn.answers, drawn.resamples(confidence, seed)
    prompts, samples = answers.scores_PK.shape
    return {
        "confidence": confidence,
        "prompts": prompts,
        "samples": samples,
        **_shares(drawn),
        "curves": _curves(answers, lowest([answers]), resamples),
        "tags": _by_tag(answers, drawn.tags, {**rows_by_tag, ALL: rows}, resamples),
    }


def metrics(results: Mapping[str, Any]) -> dict[str, float]:
    """The numbers for a record; ``one`` is what a single answer is worth, ``best`` the best of all K."""
    curves = results["curves"]
    found = {"best": curves["maximum"][-1]["estimate"], "one": curves["maximum"][0]["estimate"]}
    if "gold" in curves:
        found |= {"gold_best": curves["gold"][-1]["estimate"], "gold_one": curves["gold"][0]["estimate"]}
    return found | {name: results[name] for name in ("sound", "tokens", "equal_answers", "constant_scores")}


def _shares(drawn: Drawn) -> Measure:
    """Of the answers: the share that is sound, their mean length; of the prompts: where all answers or scores agree."""
    answers, prompts = drawn.answers, len(drawn.tags)
    return {
        "sound": float(answers.sound_PK.mean()),
        "tokens": drawn.tokens / answers.scores_PK.size,
        "equal_answers": drawn.equal_answers / prompts,
        "constant_scores": drawn.constant_scores / prompts,
    }


def _curves(answers: Answers, lowest_P: np.ndarray, resamples: Bootstrap) -> dict[str, list[Measure | None]]:
    """The means over prompts for N = 1 … K, with their intervals, by the names of :func:`curve_values`."""
    values = curve_values(answers, lowest_P)
    # All columns in one go: the intervals cost one product of matrices.
    columns_PC = np.concatenate(list(values.values()), axis=1)
    means = iter(map(told, resamples.ratios(columns_PC, np.ones_like(columns_PC))))
    return {name: [next(means) for _ in range(columns_PN.shape[1])] for name, columns_PN in values.items()}


def _by_tag(
    answers: Answers, tags: Sequence[Sequence[str]], rows: Mapping[str, int], resamples: Bootstrap
) -> dict[str, Measure]:
    """What one answer is worth and what the best of K is, for ``all`` prompts and for those of each frequent tag."""
    often = Counter(tag for some in tags for tag in dict.fromkeys(some))
    names = [tag for tag, _ in sorted(often.items(), key=lambda one: (-one[1], one[0]))[:TAGS]]
    masks_PC = np.stack([np.ones(len(tags)), *([tag in some for some in tags] for tag in names)], axis=1).astype(float)
    values = curve_values(answers, lowest([answers]))
    columns = {"one": values["maximum"][:, 0], "best": values["maximum"][:, -1]}
    if "gold" in values:
        columns |= {"gold_one": values["gold"][:, 0], "gold_best": values["gold"][:, -1]}
    found: dict[str, Measure] = {
        tag: {"prompts": int(mask_P.sum()), "rows": rows.get(tag, 0)}
        for tag, mask_P in zip((ALL, *names), masks_PC.T, strict=True)
    }
    for name, values_P in columns.items():
        intervals = resamples.ratios(values_P[:, None] * masks_PC, masks_PC)
        for tag, interval in zip(found, intervals, strict=True):
            found[tag][name] = told(interval)
    return found
