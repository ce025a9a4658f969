"""Recipes small enough to be read in the test that uses them."""

from __future__ import annotations

from typing import Any

from alignment.data.recipe import Recipe

PAIRS = {"format": "prompt_completion", "columns": {"prompt": "q", "completion": "a"}}
"""The part of a source that reads questions ``q`` and answers ``a``."""


def recipe_values(*sources: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A recipe for conversations, all of them for training and any number dropped, but for ``changes``."""
    shares = {"train": 1.0, "valid": 0.0, "test": 0.0}
    values = {"kind": "conversations", "sources": list(sources), "splits": shares, "seed": 0, "max_dropped": 1.0}
    return values | changes


def source(name: str = "s", path: str = "s.jsonl", reader: str = "jsonl", **changes: Any) -> dict[str, Any]:
    """A source of questions and answers in one file, but for ``changes``."""
    return (
        {"name": name, "licence": "MIT", "files": {"paths": [path], "reader": reader}, "expected_rows": None}
        | PAIRS
        | changes
    )


def parse(*sources: dict[str, Any], **changes: Any) -> Recipe:
    """A validated recipe."""
    return Recipe.parse(recipe_values(*sources, **changes), "test.yaml")
