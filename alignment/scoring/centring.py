"""Where a reward model's scores are centred: on reference answers, whose mean becomes 0 in what is reported or mixed.

Bradley–Terry fixes scores up to a constant. Huang et al. (arXiv 2403.17031) choose it so that demonstrations score 0 on
average, which makes two reward models comparable; thresholds go on reading the raw score.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from alignment.chat import tokenizers
from alignment.chat.types import Conversation
from alignment.data import store
from alignment.errors import UserError
from alignment.gemma import heads
from alignment.scoring.reward_model import RewardScorer

if TYPE_CHECKING:
    from alignment.training.engine import Engine

AT_MOST = 512
"""Answers that are enough: with scores of variance 1 the mean is then known to ± 0.09 (two standard errors)."""


def centre_of(directory: Path, conversations: Path, engine: Engine) -> float:
    """The mean raw score of the last answers of a dataset's first training conversations.

    ``directory`` holds a reward model with its scale. Raises :class:`UserError` for a dataset of another kind.
    """
    model, scale = heads.load_reward(directory, device=engine.device)
    assert scale is not None, "a model of ours says how its scores are read"
    scorer = RewardScorer(directory.name, model, tokenizers.load(directory), scale, engine)
    dialogues = []
    for row in islice(store.stream(conversations, "train"), AT_MOST):
        if not isinstance(row, Conversation):
            raise UserError(
                f"centre={conversations}: holds no conversations",
                cause="Scores are centred on answers to learn from.",
                remedy="Name a dataset of conversations, or centre=null.",
            )
        dialogues.append(row.messages)
    return fmean(scorer.score(dialogues).raw)
