"""The miniature world as a source: its own splits, and its recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignment.chat.types import prompt_key
from alignment.data import recipe as recipes
from alignment.data import store
from alignment.data.build import build
from alignment.data.recipe import Recipe
from alignment.data.rows import Kind
from alignment.errors import UserError

from .examples import recipe_values, source
from .test_build import THIRDS, check_laws

RECIPES = Path(__file__).parents[2] / "data_recipes"
KINDS: tuple[Kind, ...] = ("conversations", "prompts", "comparisons", "text")


def shipped(kind: Kind, rows: int = 120) -> dict[str, Any]:
    """The values of a shipped recipe with fewer rows in every split."""
    values = recipes.read_yaml(RECIPES / f"miniature_{kind}.yaml")
    (own,) = values["sources"]
    for split in ("train", "valid", "test"):
        own["miniature"][split]["rows"] = rows
    own["expected_rows"] = 3 * rows
    return values


@pytest.mark.parametrize("kind", KINDS)
def test_a_shipped_recipe_gives_a_dataset(kind: Kind, tmp_path: Path) -> None:
    summary = build(Recipe.parse(shipped(kind)), tmp_path / "one", base=tmp_path)
    assert (summary.kind, list(summary.rows)) == (kind, ["train", "valid", "test"])
    check_laws(tmp_path / "one", summary)
    assert store.card(tmp_path / "one")["recipe"]["sources"][0]["miniature"]["world"]["residents"] == 40
    build(Recipe.parse(shipped(kind)), tmp_path / "two", base=tmp_path)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_there_are_prompts_enough_to_measure_by() -> None:
    draws = recipes.load(RECIPES / "miniature_prompts.yaml").sources[0].miniature
    assert draws is not None
    assert draws.draws()["test"].rows >= 1500


def test_all_shipped_recipes_are_of_one_world() -> None:
    paths = {path.stem: path for path in RECIPES.glob("miniature_*.yaml")}
    worlds = {name: recipes.load(path).sources[0].miniature for name, path in paths.items()}
    # How careful people were may differ, and what careful ones were asked.
    own = {"miniature_careful": {"noise", "mixture"}}
    told = {name: source.world.model_dump() for name, source in worlds.items() if source}
    one = told["miniature_prompts"]
    for name, world in told.items():
        left_out = own.get(name, {"noise"})
        assert {key: world[key] for key in world.keys() - left_out} == {key: one[key] for key in one.keys() - left_out}


@pytest.mark.parametrize(("kind", "pool"), [("text", "sft"), ("conversations", None)])
def test_a_pool_must_suit_the_kind(kind: Kind, pool: str | None) -> None:
    values = shipped(kind)
    values["sources"][0]["miniature"]["train"]["pool"] = pool
    with pytest.raises(UserError, match=rf"sources\.0\.miniature\.train\.pool={pool!r}"):
        Recipe.parse(values)


def test_a_prompt_that_a_file_shares_with_the_world_stays_on_its_side(tmp_path: Path, write) -> None:
    values = shipped("conversations")
    build(Recipe.parse(values), tmp_path / "alone", base=tmp_path)
    known = [row.messages[0].content for row in store.read(tmp_path / "alone", "test")]  # type: ignore[union-attr]
    write("s.jsonl", *({"q": question.upper(), "a": f"answer {n}"} for n, question in enumerate(known)))

    first = recipe_values(values["sources"][0], source(), splits=THIRDS)
    build(Recipe.parse(first), tmp_path / "first", base=tmp_path)
    assert {line.split for line in store.entries(tmp_path / "first", source="s")} == {"test"}

    last = Recipe.parse(recipe_values(source(), values["sources"][0], splits=THIRDS))
    summary = build(last, tmp_path / "last", base=tmp_path)
    check_laws(tmp_path / "last", summary)
    assert summary.sources["miniature"]["reasons"]["its prompt is in another split"] > 0
    sides = [{prompt_key(row.messages) for row in store.read(tmp_path / "last", split)} for split in summary.rows]  # type: ignore[union-attr]
    assert not sides[0] & sides[2]
