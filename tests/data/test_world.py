"""The miniature world as a source: its own splits, and its recipes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from alignment.chat.types import prompt_key
from alignment.data import recipe as recipes
from alignment.data import store
from alignment.data.build import Surroundings, build
from alignment.data.recipe import Recipe
from alignment.data.rows import Kind
from alignment.errors import UserError

from .examples import recipe_values, source
from .test_build import THIRDS, check_laws

RECIPES = Path(__file__).parents[2] / "data_recipes"
KINDS: tuple[Kind, ...] = ("conversations", "prompts", "comparisons", "text")


def shipped(kind: str, rows: int = 120) -> dict[str, Any]:
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
    # How careful people were may differ, what careful ones were asked, and how much of it was unsafe.
    own = {"miniature_careful": {"noise", "mixture"}, "miniature_helpfulness": {"mixture"}}
    own |= {f"miniature_{name}": {"noise", "mixture"} for name in ("adversarial", "help_only", "help_and_safety")}
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


@pytest.mark.parametrize("aspect", ["helpfulness", "safety"])
def test_a_shipped_recipe_gives_comparisons_by_one_aspect(aspect: str, tmp_path: Path) -> None:
    summary = build(Recipe.parse(shipped(aspect)), tmp_path / "out", base=tmp_path)
    check_laws(tmp_path / "out", summary)
    rows = [row for split in summary.rows for row in store.read(tmp_path / "out", split)]
    assert len(rows) > 350
    assert {row.source for row in rows} == {f"miniature_{aspect}"}  # type: ignore[union-attr]
    labelled = {row.chosen_safe is not None and row.rejected_safe is not None for row in rows}  # type: ignore[union-attr]
    assert labelled == {aspect == "safety"}


def test_all_reward_models_are_trained_and_measured_on_as_many_pairs() -> None:
    for aspect in ("helpfulness", "safety"):
        drawn = recipes.load(RECIPES / f"miniature_{aspect}.yaml").sources[0].miniature
        assert drawn is not None
        told = {split: (draw.pool, draw.rows, draw.aspect) for split, draw in drawn.draws().items()}
        assert told == {
            "train": ("comparisons", 4000, aspect), "valid": ("valid", 400, aspect), "test": ("test", 1200, aspect),
        }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("prompts", {"aspect": "safety"}, r"sources\.0\.miniature\.valid\.aspect='safety': is for comparisons"),
        ("conversations", {"aspect": "helpfulness"}, r"valid\.aspect='helpfulness': is for comparisons"),
        ("comparisons", {"aspect": "honesty"}, r"valid\.aspect='honesty'"),
        ("comparisons", {"turns": 3}, r"valid\.turns=3: is for conversations"),
        ("conversations", {"instructed": True}, r"valid\.instructed=true: is for dialogues of several turns"),
    ],
)
def test_what_is_drawn_must_suit_the_kind(kind: Kind, change: dict[str, Any], says: str) -> None:
    values = shipped(kind)
    values["sources"][0]["miniature"]["valid"] |= change
    with pytest.raises(UserError, match=says):
        Recipe.parse(values)


def test_safety_is_judged_of_unsafe_requests_which_there_have_to_be() -> None:
    values = shipped("safety")
    values["sources"][0]["miniature"]["world"]["mixture"]["unsafe"] = 0.0
    with pytest.raises(UserError, match=r"train\.aspect='safety': the world's mixture has no unsafe request"):
        Recipe.parse(values)


@pytest.mark.parametrize(
    ("name", "first", "share"), [("help_mixture", "helpfulness", 1.0), ("safety_mixture", "safety", 1 / 9)]
)
def test_the_mixtures_of_reward_models_are_llama_2s(name: str, first: str, share: float, tmp_path: Path) -> None:
    for aspect in ("helpfulness", "safety"):
        build(Recipe.parse(shipped(aspect)), tmp_path / aspect, base=tmp_path)
    recipe = recipes.load(RECIPES / f"miniature_{name}.yaml")
    datasets = {place: tmp_path / source.name for place, source in enumerate(recipe.sources)}
    summary = build(recipe, tmp_path / "out", surroundings=Surroundings(tmp_path, datasets=datasets))
    check_laws(tmp_path / "out", summary)
    parts = {aspect: store.card(tmp_path / aspect)["rows"] for aspect in ("helpfulness", "safety")}
    taken = Counter(row.source for row in store.read(tmp_path / "out", "train"))  # type: ignore[union-attr]
    whole = parts[first]["train"]
    other = ({"helpfulness", "safety"} - {first}).pop()
    assert taken == {f"miniature_{first}": whole, f"miniature_{other}": round(whole * share)}
    for split in ("valid", "test"):
        assert summary.rows[split] == sum(part[split] for part in parts.values())


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
