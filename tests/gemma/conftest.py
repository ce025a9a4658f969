"""Fixtures of the tests of models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from on_one_trunk import LORA, trunk
from torch import nn

from alignment.gemma import heads
from alignment.training import rewards
from alignment.training.rewards import Reward


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stage=reward leaves behind with an adapter: the merged model, and adapter and head beside it."""
    out = tmp_path_factory.mktemp("reward")
    torch.manual_seed(1)
    fresh = Reward(heads.with_head(trunk(), seed=5), None, "gemma2")
    # A dropout that training had, and that neither a score nor a value may have.
    reward = rewards.adapt(fresh, LORA.model_copy(update={"rank": 2, "dropout": 0.5}))
    for parameter in reward.model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, 0, 0.2)
    plain = Reward(heads.with_head(trunk(), seed=5), None, "gemma2")
    merged = rewards.merge_adapter(reward, plain, out)
    heads.save_reward(merged.model, out, heads.Scale(0.0, False, "gemma2"))
    return out
