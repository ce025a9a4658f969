"""Multiple-choice questions of the world: one answer is true, all are in the same words, and pools stay apart."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from alignment.chat.types import messages
from alignment.data import recipe
from alignment.data.sources import Draw
from alignment.data.world import read
from alignment.errors import UserError
from alignment.miniature.choices import choices
from alignment.miniature.world import World


def test_one_answer_is_true_and_the_others_are_not(world: World) -> None:
    places, kinds = Counter(), Counter()
    for one in choices(world, 60, 3, split="test", options=4):
        told = json.loads(one.reference or "")
        task = world.understand(messages(("user", told["question"])))
        assert task is not None
        claims = [world.skill(task).claims(task, answer) for answer in told["options"]]
        assert [place for place, claim in enumerate(claims) if claim == {task.value}] == told["right"]
        assert len(set(told["options"])) == 4
        assert world.split(told["question"]) == "test"
        places[told["right"][0]] += 1
        kinds[one.tags] += 1
    assert set(places) == {0, 1, 2, 3}
    assert kinds == {("fact",): 20, ("sum",): 20, ("word",): 20}


def test_rows_depend_on_the_seed_and_not_on_how_many_are_drawn(world: World) -> None:
    few, many = (list(choices(world, count, 5, split="rl", options=3)) for count in (9, 30))
    assert few == many[:9]
    assert few != list(choices(world, 9, 6, split="rl", options=3))
    with pytest.raises(UserError, match="the miniature has no more than"):
        list(choices(world, 5_000, 0, split="valid", options=4))


def test_a_recipe_draws_them_and_null_leaves_fingerprints_alone() -> None:
    from pathlib import Path

    path = Path(__file__).parents[2] / "data_recipes" / "miniature_choices.yaml"
    loaded = recipe.load(path)
    source = loaded.sources[0].miniature
    assert source is not None
    rows = list(read(source, "prompts"))
    assert Counter(one.split for one in rows) == {"train": 60, "test": 300}
    assert all(len(json.loads(one.value.reference)["options"]) == 4 for one in rows)
    values = {"pool": "test", "rows": 3, "seed": 0}
    from alignment.settings import identity_values

    assert "choices" not in identity_values(Draw.parse(values))
    assert identity_values(Draw.parse(values | {"choices": 4}))["choices"] == 4


@pytest.mark.parametrize(("kind", "count"), [("prompts", 1), ("prompts", 7), ("conversations", 4)])
def test_other_numbers_and_kinds_are_refused(kind: str, count: int) -> None:
    world = {"seed": 0, "residents": 40, "noise": 0.0, "rater_noise": 0.0, "rater_taste": 0.0}
    mixture = dict.fromkeys(
        (
            "fact",
            "sum",
            "word",
            "unanswerable",
            "context",
            "follow_up",
            "unsafe",
            "borderline",
            "instruction",
            "smalltalk",
        ),
        1.0,
    )
    draw = {"pool": "test", "rows": 3, "seed": 0, "choices": count}
    source = {
        "name": "m",
        "licence": "MIT",
        "format": "miniature",
        "miniature": {"world": world | {"mixture": mixture}, "test": draw},
        "expected_rows": None,
    }
    values = {"kind": kind, "sources": [source], "splits": None, "seed": 0, "max_dropped": 0.0}
    with pytest.raises(UserError, match=r"test.choices=\d: is for prompts, and from 2 to 6"):
        recipe.Recipe.parse(values)
