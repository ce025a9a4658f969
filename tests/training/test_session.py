"""What pretraining, fine-tuning and distillation share: the held-out loss is told once, however often a run starts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from alignment.training import policies, session
from alignment.training.held_out import HeldOut
from alignment.training.loop import Trained
from alignment.training.rows import TokenRows
from alignment.training.tracking import METRICS, TrackerSettings, read_metrics

ROWS = TokenRows.gather([([2, 5, 6], [False, True, True])])
LOSS = 1.5


def start(out: Path) -> None:
    """One start of a run of four steps. The loop keeps rows up to its last checkpoint, here that of the last step."""

    def train(*_: Any, tracker: Any, **__: Any) -> Trained:
        tracker.rewind(4)
        return Trained(4, 8, 1.0, 2.0, None)

    policy = SimpleNamespace(model=None, tokenizer=SimpleNamespace(pad_id=0), schema="gemma2", tokens=None)
    session.train_and_measure(
        cast(Any, policy),
        title="sft",
        rows=ROWS,
        held_out_rows=ROWS,
        out=out,
        numbers=cast(Any, SimpleNamespace(batch=1, length_window=1)),
        engine=cast(Any, SimpleNamespace(notes=dict)),
        tracker_settings=TrackerSettings(wandb="off", every=1, project="", upload="none"),
        config={},
        inputs={},
        seed=0,
        train=train,
    )


def _die(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_start_after_the_last_step_does_not_tell_the_loss_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "held_out", lambda *_, **__: HeldOut(np.array([LOSS * 2]), np.array([2])))
    monkeypatch.setattr(policies, "save_tokenizer", lambda *_: None)
    with monkeypatch.context() as dying:
        dying.setattr(session.Tracker, "finish", _die)
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path)
    start(tmp_path)
    assert read_metrics(tmp_path / METRICS) == [
        {"step": 0, session.HELD_OUT: LOSS},
        {"step": 4, session.HELD_OUT: LOSS},
    ]
