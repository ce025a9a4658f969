"""The three readings of a score, thresholds, and which scorer a reference opens."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import tiny_reward

from alignment import artifacts
from alignment.artifacts import Artifact
from alignment.chat.types import messages
from alignment.errors import UserError
from alignment.miniature.world import World
from alignment.scoring.gold import Gold
from alignment.scoring.opening import open_scorer
from alignment.scoring.reward_model import RewardScorer
from alignment.scoring.scorer import Scores, name_of, sigmoid, threshold

READING = {"label": None, "text": "dialogue"}


class Bare:
    """A scorer that never scores."""

    name = "bare"

    def __init__(self, absolute: bool) -> None:
        self.absolute = absolute

    def score(self, dialogues: object) -> Scores:
        raise AssertionError("a threshold needs no score")


def test_what_the_user_says_is_the_threshold_even_where_it_is_zero() -> None:
    assert threshold(Bare(False), 0.0, 0.5) == 0.0
    assert threshold(Bare(True), 0.15, 0.5) == 0.15


def test_where_nobody_says_one_only_an_absolute_scorer_has_a_threshold() -> None:
    assert threshold(Bare(True), None, 0.15) == 0.15
    with pytest.raises(UserError, match=r"bare: .*no threshold of their own\n.*0\.15.*\n.*(\n.*)?safety_weight=1"):
        threshold(Bare(False), None, 0.15)


def test_sigmoid_is_right_at_the_ends() -> None:
    assert sigmoid(0.0) == 0.5
    assert sigmoid(math.log(3)) == pytest.approx(0.75, rel=1e-12)
    assert sigmoid(-math.log(3)) == pytest.approx(0.25, rel=1e-12)
    assert (sigmoid(-1e4), sigmoid(1e4)) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("step", "name"),
    [("helpful", "helpful"), ("hf:org/judge@main", "judge"), ("dir:/some/judge/", "judge"), ("dir:judge", "judge")],
)
def test_names_come_from_the_reference(step: str, name: str) -> None:
    assert name_of(Artifact(Path("/x/y"), "foreign", "", step, "")) == name


def test_gold_is_absolute_and_its_own_probability() -> None:
    world = World(seed=0, residents=40)
    gold = open_scorer(artifacts.named("gold", "safety"), tiny_reward.ENGINE, world, **READING)
    assert isinstance(gold, Gold)
    scores = gold.score([messages(("user", "What is 2 + 3?"), ("assistant", "5."))])
    assert gold.absolute
    assert scores.raw == scores.reported == scores.probability
    assert 0 <= scores.probability[0] <= 1


def test_a_reward_model_is_opened_as_one_whoever_wrote_it(reward_folder: Path) -> None:
    for artifact in (tiny_reward.ours(reward_folder), tiny_reward.theirs(reward_folder)):
        assert isinstance(open_scorer(artifact, tiny_reward.ENGINE, None, **READING), RewardScorer)


def test_what_scores_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2"}')
    with pytest.raises(UserError, match="is no classifier"):
        open_scorer(tiny_reward.theirs(tmp_path), tiny_reward.ENGINE, None, **READING)
