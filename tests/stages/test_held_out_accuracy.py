"""What ``stage=reward`` tells of held-out pairs: accuracies by grade, intervals over prompts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from judged_support import comparison

from alignment import console
from alignment.evals.intervals import Bootstrap
from alignment.stages import reward
from alignment.training import held_out_pairs
from alignment.training.held_out_pairs import SideScores

PROMPTS, COPIES = 40, 5


def test_pairs_of_a_prompt_are_resampled_together(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        comparison(f"{prompt}-{copy}", question=f"Question {prompt}?", grade="better" if prompt % 4 else "slightly")
        for prompt in range(PROMPTS)
        for copy in range(COPIES)
    ]
    # All pairs of a prompt are judged alike.
    right = np.repeat(np.random.default_rng(0).integers(0, 2, PROMPTS), COPIES).astype(float)
    monkeypatch.setattr(held_out_pairs, "side_scores", lambda *_, **__: SideScores(right, np.full(len(right), 0.5)))
    shown: list[tuple[Any, ...]] = []
    monkeypatch.setattr(console, "table", lambda title, columns, rows, **_: shown.extend(rows))
    model: Any = SimpleNamespace(model=None, tokenizer=SimpleNamespace(pad_id=0))
    engine: Any = SimpleNamespace(device="cpu")
    metrics = reward._measured(model, [(row, None) for row in rows], engine)  # type: ignore[misc]
    slight = right.reshape(PROMPTS, COPIES)[::4].mean()
    assert metrics["accuracy"] == pytest.approx(right.mean())
    assert metrics["accuracy_slightly"] == pytest.approx(slight)
    assert list(metrics) == ["accuracy", "accuracy_better", "accuracy_slightly"]
    assert [row[:2] for row in shown] == [("all", 200), ("better", 150), ("slightly", 50)]
    once = right[::COPIES, None]
    (wanted,) = Bootstrap(range(PROMPTS), 0.95, 0).ratios(once, np.ones_like(once))
    assert wanted is not None
    assert shown[0][2:] == (f"{wanted.estimate:.3f}", f"{wanted.low:.3f} … {wanted.high:.3f}")
    assert reward._measured(model, [], engine) == {}
