"""Each real file through its recipe, with what came out pinned."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from alignment.data import recipe as recipes
from alignment.data import store
from alignment.data.build import build

from .test_build import check_laws

RECIPES = Path(__file__).parents[1] / "recipes"

PINNED = {
    "qlora_oasst_val": ({"train": 861, "valid": 52, "test": 40}, {"kept": 953}),
    "octopack_oasst": ({"train": 1065, "valid": 49, "test": 62}, {"kept": 752, "changed": 424, "dropped": 2}),
    "oasst_en100": ({"train": 458, "valid": 45, "test": 43}, {"kept": 100}),
    "wikitext2": ({"train": 439, "valid": 30, "test": 20}, {"changed": 1}),
    "gutenberg": ({"train": 755, "valid": 49, "test": 49}, {"changed": 6}),
    "pretrain_text": ({"train": 1194, "valid": 79, "test": 69}, {"changed": 7}),
}


@pytest.mark.parametrize("name", PINNED)
def test_a_real_file_gives_the_rows_it_always_gave(name: str, shared_data: Path, tmp_path: Path) -> None:
    recipe = recipes.load(RECIPES / f"{name}.yaml").rooted(shared_data)
    summary = build(recipe, tmp_path, base=RECIPES)
    rows, fates = PINNED[name]
    assert summary.rows == rows
    assert {fate: count for fate, count in summary.fates.items() if count} == fates
    check_laws(tmp_path, summary)


def test_marked_conversations_keep_their_turns(shared_data: Path, tmp_path: Path) -> None:
    recipe = recipes.load(RECIPES / "qlora_oasst_val.yaml").rooted(shared_data)
    summary = build(recipe, tmp_path, base=RECIPES)
    lengths = Counter(len(row.messages) for split in summary.rows for row in store.read(tmp_path, split))  # type: ignore[union-attr]
    # 517 questions, 414 with one earlier exchange, 22 with two: counted by the markers in the file.
    assert lengths == {2: 517, 4: 414, 6: 22}


def test_books_lose_their_licence_and_nothing_else(shared_data: Path, tmp_path: Path) -> None:
    recipe = recipes.load(RECIPES / "gutenberg.yaml").rooted(shared_data)
    summary = build(recipe, tmp_path, base=RECIPES)
    text = "\n".join(row.text for split in summary.rows for row in store.read(tmp_path, split))  # type: ignore[union-attr]
    assert "Down, down, down" in text
    assert "START OF TH" not in text
    assert "FULL LICENSE" not in text
    assert "\r" not in text
