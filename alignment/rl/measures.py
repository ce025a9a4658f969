"""What is worth knowing of a batch: rewards by part, KL both ways, entropy, lengths, the critic.

Axes: B answers, T tokens, N answers of all processes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from alignment.objectives.policy import explained_variance
from alignment.objectives.tokens import kl_k1, kl_k3, kl_reverse, masked_mean, masked_sum
from alignment.rl.advantages import Targets
from alignment.rl.episodes import Episodes
from alignment.scoring.combine import Gather


class Sums(defaultdict[str, float]):
    """Numbers by name, to which others are added."""

    def __init__(self) -> None:
        super().__init__(float)

    def add(self, **more: float) -> None:
        """Add each number to the one of its name."""
        for name, value in more.items():
            self[name] += value


def of_batch(episodes: Episodes, found: Targets, gather: Gather) -> dict[str, float]:
    """Means over the answers of all processes; the critic's are of this one.

    ``kl/…`` is in nats an answer, ``entropy`` in nats a token.
    """
    judged, mask_BT = episodes.judged, episodes.mask_BT
    assert judged is not None, "first judged"
    assert episodes.anchor_BT is not None, "first read"
    old_BT, anchor_BT = episodes.old_BT, episodes.anchor_BT
    columns = {
        "score/mean": judged.score,
        "reward/total": judged.total,
        "reward/with_kl": _numbers(found.rewards_B),
        **{f"reward/{name}": part for name, part in judged.parts.items()},
        # k1 may be negative on a batch; k3 and the reverse cannot. All three are estimates, of nats an answer.
        "kl/anchor": _numbers(masked_sum(kl_k1(old_BT, anchor_BT), mask_BT, -1)),
        "kl/anchor_k3": _numbers(masked_sum(kl_k3(old_BT, anchor_BT), mask_BT, -1)),
        "kl/reverse": _numbers(masked_sum(kl_reverse(old_BT, anchor_BT), mask_BT, -1)),
        # −log π of what was drawn is an unbiased estimate of the entropy.
        "entropy": -_numbers(masked_mean(old_BT, mask_BT, -1)),
        "length/mean": np.asarray(episodes.lengths, dtype=np.float64),
        "length/unfinished": 1.0 - np.asarray(episodes.finished, dtype=np.float64),
        "advantage/mean": _numbers(masked_mean(found.advantages_BT, mask_BT, -1)),
        "advantage/size": _numbers(masked_mean(found.advantages_BT.abs(), mask_BT, -1)),
    }
    if episodes.weights_BT is not None:
        columns["drawn/weight"] = _numbers(masked_mean(episodes.weights_BT, mask_BT, -1))
    everywhere = {name: gather(np.asarray(values, dtype=np.float64)) for name, values in columns.items()}
    row = {name: float(values.mean()) for name, values in everywhere.items()}
    row["score/spread"] = float(everywhere["score/mean"].std())
    row["advantage/idle"] = float(gather(np.array([found.idle / len(episodes.answers)])).mean())
    if episodes.values_BT is not None and found.returns_BT is not None:
        row["critic/explained"] = float(explained_variance(episodes.values_BT, found.returns_BT, mask_BT))
        row["critic/value"] = float(masked_mean(episodes.values_BT, mask_BT))
    return row


def of_time(seconds: Mapping[str, float], row: Mapping[str, float], answers: int) -> dict[str, float]:
    """Seconds by phase, answer tokens a second by phase, and answers a second."""
    tokens, whole = row["length/mean"] * answers, sum(seconds.values())
    rates = {f"tokens_per_second/{name}": tokens / max(spent, 1e-9) for name, spent in seconds.items()}
    return (
        {f"seconds/{name}": spent for name, spent in seconds.items()} | rates | {"episodes_per_second": answers / whole}
    )


def of_update(sums: dict[str, float]) -> dict[str, float]:
    """The measures of an update, from sums over all processes."""
    terms = max(sums["terms"], 1.0)
    measures = {
        "loss/policy": sums["policy_loss"] / terms,
        "update/clipped": sums["clipped"] / terms,
        "update/kl_old": sums["drift"] / terms,
        "update/first_ratio": sums["first_ratio"],
    }
    if "value_terms" in sums:
        measures |= {
            "loss/critic": sums["value_loss"] / sums["value_terms"],
            "update/value_clipped": sums["value_clipped"] / sums["value_terms"],
        }
    return measures


def _numbers(values: Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()
