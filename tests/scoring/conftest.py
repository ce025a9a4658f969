"""Reward models that several files of this room score with."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_reward

from alignment.gemma.heads import Scale
from alignment.scoring.reward_model import RewardScorer


@pytest.fixture(scope="session")
def reward_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma 1 that was centred on 0.75 and trained on comparisons alone."""
    return tiny_reward.build(tmp_path_factory.mktemp("reward"), "gemma1", Scale(0.75, False, "gemma1"))


@pytest.fixture(scope="session")
def reward_scorer(reward_folder: Path) -> RewardScorer:
    return RewardScorer.load(tiny_reward.ours(reward_folder), tiny_reward.ENGINE)
