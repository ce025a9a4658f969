"""A chronicle of offices, and questions that say when they are asked."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from alignment.chat.types import messages
from alignment.data import recipe as recipes
from alignment.data import store
from alignment.data.build import build
from alignment.data.recipe import Recipe
from alignment.errors import UserError
from alignment.miniature import dates
from alignment.miniature.dates import FIRST, LAST, OFFICES, chronicle, conversations, holder, prompts, terms
from alignment.miniature.world import World
from alignment.run import RECIPES

WORLD = World(0, 40)


def test_every_year_of_an_office_has_one_holder() -> None:
    for office in OFFICES:
        found = terms(WORLD, office)
        assert found[0][1] == FIRST
        assert found[-1][2] == LAST
        for (name, begin, end), (next_name, next_begin, _) in pairwise(found):
            assert begin <= end == next_begin - 1
            assert name != next_name
        assert len(found) >= 5
    assert terms(World(1, 40), "mayor") != terms(WORLD, "mayor")


def test_all_that_the_chronicle_says_is_true() -> None:
    said = " ".join(text.text for text in chronicle(WORLD, 300, 0))
    years = [
        *re.findall(r"From (?P<year>\d+) to \d+ (?P<name>\w+) was the (?P<office>\w+)", said),
        *re.findall(r"In (\d+) (\w+) was the (\w+)", said),
        *((year, name, office) for year, office, name in re.findall(r"In (\d+) the (\w+) was (\w+)", said)),
        *((year, name, office) for name, office, year in re.findall(r"(\w+) became the (\w+) in (\d+)", said)),
    ]
    assert len(years) == 1200
    assert all(holder(WORLD, office, int(year)) == name for year, name, office in years)
    ends = re.findall(r"From \d+ to (\d+) (\w+) was the (\w+)", said)
    assert all(holder(WORLD, office, int(year)) == name for year, name, office in ends)


def test_no_year_of_an_office_is_both_learned_and_asked() -> None:
    def asked(text: str) -> tuple[str, str]:
        year = re.search(r"\d{4}", text)
        assert year is not None
        return year[0], next(office for office in OFFICES if office in text)

    learned = [*conversations(WORLD, 1000, 0, split="sft")]
    questions = [*prompts(WORLD, 300, 0, split="test")]
    assert len({row.messages[0].content for row in learned}) == 1000
    assert not {asked(row.messages[0].content) for row in learned} & {
        asked(row.messages[0].content) for row in questions
    }
    for row in questions[:50]:
        year, office = asked(row.messages[-1].content)
        assert row.reference == f"{holder(WORLD, office, int(year))} is the {office}."
    for talk in learned[:50]:
        year, office = asked(talk.messages[0].content)
        assert talk.messages[1].content == f"{holder(WORLD, office, int(year))} is the {office}."


def test_what_the_world_asks_otherwise_is_no_dated_question() -> None:
    question = dates._ASKS[0].format(year=1950, office="mayor")
    assert WORLD.understand(messages(("user", question))) is None


def test_recipes_draw_dated_rows_where_they_say_so(tmp_path: Path) -> None:
    values = recipes.read_yaml(RECIPES / "miniature_dated_questions.yaml")
    card = build(Recipe.parse(values), tmp_path / "asked", base=tmp_path)
    assert card.rows == {"test": 300}
    assert all("dates" in row.tags for row in store.read(tmp_path / "asked", "test"))  # type: ignore[union-attr]
    values = recipes.read_yaml(RECIPES / "miniature_dated_text.yaml")
    told = values["sources"][1]
    told["miniature"]["train"]["rows"] = 20
    build(Recipe.parse(values | {"sources": [told]}), tmp_path / "told", base=tmp_path)
    assert len(store.read(tmp_path / "told", "train")) == 20
    told["miniature"]["train"]["choices"] = 4
    with pytest.raises(UserError, match="dates=true: is for text, conversations and prompts"):
        Recipe.parse(values | {"sources": [told]})


def test_more_questions_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match="rows=5000: there are"):
        list(prompts(WORLD, 5000, 0, split="test"))
