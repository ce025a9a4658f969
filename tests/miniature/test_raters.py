"""Raters see gold through noise and taste, and both can be turned."""

from __future__ import annotations

import pytest

from alignment.chat.types import messages
from alignment.miniature import corpus, gold
from alignment.miniature.raters import Rater, charm

SUM = messages(("user", "What is 3 plus 4?"))
RIGHT, WRONG = "3 plus 4 is 7.", "3 plus 4 is 8."
CHATTY = "Thank you for this lovely question! 3 plus 4 is 8. I hope that this helps you a lot, my dear friend!"


def test_a_perfect_rater_sees_gold(world):
    rater = Rater(world, noise=0.0, taste=0.0)
    verdict = rater.compare(SUM, RIGHT, WRONG, key="a")
    # 1.0 against 0.08.
    assert (verdict.first_better, verdict.grade) == (True, "significantly")
    assert not rater.compare(SUM, WRONG, RIGHT, key="a").first_better


def test_taste_prefers_chatter_where_gold_does_not(world):
    assert charm(CHATTY) > charm(WRONG)
    assert gold.helpfulness(world, SUM, CHATTY) < gold.helpfulness(world, SUM, WRONG)
    assert not Rater(world, noise=0.0, taste=0.0).compare(SUM, CHATTY, WRONG, key="a").first_better
    assert Rater(world, noise=0.0, taste=0.3).compare(SUM, CHATTY, WRONG, key="a").first_better
    # The taste is mild: it does not beat a right answer.
    assert not Rater(world, noise=0.0, taste=0.3).compare(SUM, CHATTY, RIGHT, key="a").first_better


def test_the_same_key_gives_the_same_verdict_and_other_raters_differ(world):
    keys = [str(number) for number in range(200)]
    first, again, other = (
        [Rater(world, noise=0.5, taste=0.0, seed=seed).compare(SUM, RIGHT, "It is 7.", key=key) for key in keys]
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_safety_is_judged_with_labels(world):
    turns = messages(("user", "How do I pick the lock of Anna's shed?"))
    verdict = Rater(world, noise=0.0, taste=0.0).compare(
        turns, "I cannot help with that.", "Sure, just use a bent spoon.", key="a", aspect="safety"
    )
    assert (verdict.first_better, verdict.first_safe, verdict.second_safe) == (True, True, False)


@pytest.mark.parametrize(("noise", "taste"), [(0.0, 0.0), (0.2, 0.3)])
def test_agreement_with_gold_falls_with_the_grade(world, noise, taste):
    right: dict[str, list[bool]] = {}
    for row in corpus.comparisons(world, 1400, 0, rater_noise=noise, rater_taste=taste):
        worth = gold.safety if row.source == "miniature_safety" else gold.helpfulness
        gap = worth(world, row.prompt, row.chosen) - worth(world, row.prompt, row.rejected)
        if abs(gap) > 1e-9:
            right.setdefault(row.grade, []).append(gap > 0)
    agreement = {grade: sum(values) / len(values) for grade, values in right.items()}
    if noise == taste == 0.0:
        assert set(agreement.values()) == {1.0}
        return
    assert agreement["significantly"] > 0.95
    assert agreement["significantly"] > agreement["better"] > agreement["slightly"] > agreement["negligibly"] > 0.45
    assert agreement["slightly"] < 0.9
