"""Models that are trained here: what stands there often is known by heart, and real books can be examined."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests_support import QUIET, call

RECIPES = Path(__file__).parents[2] / "recipes"


def made(store: Path, *arguments: str) -> None:
    done = call(store, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def results(store: Path, name: str) -> dict[str, Any]:
    (folder,) = store.glob(f"*/{name}-*")
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_what_is_planted_more_often_is_known_better_and_by_the_larger_model(tmp_path: Path) -> None:
    """Passages that stand there once, 10 and 100 times, to two sizes (Carlini et al., arXiv 2202.07646)."""
    store = tmp_path / "runs"
    made(store, "stage=data", "recipe=miniature_planted", "name=words")
    made(store, "stage=tokenizer", "data=latest:words", "name=pieces")
    made(store, "stage=pipeline", "pipeline=memorisation", "pipeline.tokenizer=latest:pieces", *QUIET)
    found = {size: results(store, f"{size}_known") for size in ("mini_small", "mini")}
    for told in found.values():
        copies = told["groups"]["copies"]
        rates = [copies[label]["approximate"]["estimate"] for label in ("1", "10", "100")]
        assert rates[0] <= rates[1] < rates[2]
        assert copies["100"]["exact"]["low"] > copies["10"]["exact"]["high"]
        assert told["measures"]["approximate"]["estimate"] >= told["measures"]["exact"]["estimate"]
    small, large = (found[size]["measures"]["exact"]["estimate"] for size in ("mini_small", "mini"))
    assert large > small


@pytest.mark.slow
def test_real_books_are_examined(shared_data: Path, tmp_path: Path) -> None:
    store = tmp_path / "runs"
    made(store, "stage=data", f"recipe={RECIPES / 'gutenberg.yaml'}", f"recipe.root={shared_data}", "name=books")
    made(store, "stage=tokenizer", "data=latest:books", "name=pieces")
    pretrain = ("shape=mini_small", "tokenizer=latest:pieces", "data=latest:books", "optimisation.steps=150")
    made(store, "stage=pretrain", *pretrain, "name=reader", *QUIET)
    suite = ("suite=memorisation", "suite.data=latest:books", "suite.count=200", "suite.prefix_tokens=[10,50]")
    made(store, "stage=assess", "model=latest:reader", *suite, "name=known")
    told = results(store, "known")
    assert told["notes"]["documents"] == 200
    assert told["notes"]["measured"] + told["notes"]["too_short"] == 200
    assert told["measures"]["exact"]["examples"] == 2 * told["notes"]["measured"] > 300
    assert told["measures"]["exact"]["estimate"] < 0.05
    assert 0.3 < told["measures"]["edited"]["estimate"] < 1
    assert [*told["groups"]["prefix"]] == ["10", "50"]
