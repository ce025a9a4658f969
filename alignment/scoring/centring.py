"""Where a reward model's scores are centred: on reference answers, whose mean becomes 0 in what is reported or mixed.

Bradley–Terry fixes scores up to a constant. Huang et al. (arXiv 2403.17031) choose it so that demonstrations score 0 on
average, which makes two reward models comparable; thresholds go on reading the raw score.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from alignment import console
from alignment.chat import tokenizers
from alignment.chat.types import Conversation, Messages
from alignment.data import store
from alignment.errors import UserError
from alignment.gemma import heads
from alignment.scoring.reward_model import RewardScorer

if TYPE_CHECKING:
    from alignment.training.engine import Engine

AT_MOST = 512
"""Answers that are enough: with scores of variance 1 the mean is then known to ± 0.09 (two standard errors)."""

Fits = Callable[[Messages], bool]
"""Whether a model can see a dialogue whole."""


class Centre(NamedTuple):
    """The mean raw score of ``answers`` reference answers; ``too_long`` others came before the last of them."""

    value: float
    answers: int
    too_long: int


def need_conversations(directory: Path, fits: Fits) -> None:
    """Refuse, before anything is trained, a dataset on which scores cannot be centred. Raises :class:`UserError`."""
    card = store.card(directory)
    if card["kind"] != "conversations" or not card["rows"].get("train"):
        raise UserError(
            f"centre={directory}: holds no training conversations, but {card['kind']}",
            cause="Scores are centred on answers to learn from.",
            remedy="Name a dataset of conversations, or centre=null.",
        )
    if not any(fits(row.messages) for row in store.stream(directory, "train") if isinstance(row, Conversation)):
        raise UserError(
            f"centre={directory}: all {card['rows']['train']:,} conversations are longer than the model's context",
            cause="An answer is scored with all that stands before it.",
            remedy="Name shorter conversations, or centre=null.",
        )


def centre_of(directory: Path, conversations: Path, engine: Engine) -> Centre:
    """The centre by the last answers of a dataset's first training conversations that the model can see whole.

    ``directory`` holds a reward model with its scale. Raises :class:`UserError` as :func:`need_conversations` does.
    """
    model, scale = heads.load_reward(directory, device=engine.device)
    assert scale is not None, "a model of ours says how its scores are read"
    scorer = RewardScorer(directory.name, model, tokenizers.load(directory), scale, engine)
    need_conversations(conversations, scorer.fits)
    dialogues: list[Messages] = []
    too_long = 0
    for row in store.stream(conversations, "train"):
        assert isinstance(row, Conversation), "the card says that these are conversations"
        if scorer.fits(row.messages):
            dialogues.append(row.messages)
        else:
            too_long += 1
        if len(dialogues) == AT_MOST:
            break
    if too_long:
        console.say(f"centred on {len(dialogues):,} answers; {too_long:,} are longer than the context", style="yellow")
    return Centre(fmean(scorer.score(dialogues).raw), len(dialogues), too_long)
