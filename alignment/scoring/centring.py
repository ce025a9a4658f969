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


def need_conversations(directory: Path) -> None:
    """Refuse, before anything is trained, a dataset on which scores cannot be centred. Raises :class:`UserError`."""
    card = store.card(directory)
    if card["kind"] != "conversations" or not card["rows"].get("train"):
        raise UserError(
            f"centre={directory}: holds no training conversations, but {card['kind']}",
            cause="Scores are centred on answers to learn from.",
            remedy="Name a dataset of conversations, or centre=null.",
        )


def centre_of(directory: Path, conversations: Path, engine: Engine) -> float:
    """The mean raw score of the last answers of a dataset's first training conversations.

    ``directory`` holds a reward model with its scale. Raises :class:`UserError` as :func:`need_conversations` does.
    """
    model, scale = heads.load_reward(directory, device=engine.device)
    assert scale is not None, "a model of ours says how its scores are read"
    scorer = RewardScorer(directory.name, model, tokenizers.load(directory), scale, engine)
    need_conversations(conversations)
    rows = islice(store.stream(conversations, "train"), AT_MOST)
    return fmean(scorer.score([row.messages for row in rows if isinstance(row, Conversation)]).raw)
