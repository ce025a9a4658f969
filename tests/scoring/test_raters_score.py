"""The miniature's people as a scorer: the truth, with errors and a taste for chatter."""

from __future__ import annotations

import numpy as np
import pytest

from alignment.chat.types import Message
from alignment.errors import UserError
from alignment.miniature import corpus
from alignment.miniature.world import World
from alignment.scoring.gold import NOISE, TASTE, Gold, Raters
from alignment.store import parse_reference


@pytest.fixture(scope="module")
def world() -> World:
    return World(seed=0, residents=40)


def test_they_err_about_the_truth_and_like_chatter(world: World) -> None:
    prompts = [one.messages for one in corpus.prompts(world, 300, 0, split="rl")]
    curt = [(*turns, Message("assistant", "I do not know.")) for turns in prompts]
    chatty = [(*turns, Message("assistant", "What a lovely, wonderful, great question! " * 8)) for turns in prompts]
    for dialogues in (curt, chatty):
        truth, seen = Gold(world).score(dialogues), Raters(world).score(dialogues)
        assert seen.probability == truth.raw
        assert seen.raw == seen.reported == Raters(world).score(dialogues).raw
    errors = [np.subtract(Raters(world).score(some).raw, Gold(world).score(some).raw) for some in (curt, chatty)]
    assert np.std(errors[0]) == pytest.approx(NOISE, rel=0.15)
    assert errors[1].mean() - errors[0].mean() > TASTE / 2


def test_nobody_rates_beauty() -> None:
    with pytest.raises(UserError, match="nobody rates that"):
        parse_reference("raters:beauty")
