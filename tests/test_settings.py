"""Strict settings: what is refused, how it is said, and what belongs to the identity."""

from __future__ import annotations

from typing import Literal

import pytest

from alignment.errors import UserError
from alignment.settings import (
    Settings,
    describe,
    execution,
    identity,
    identity_values,
    later,
    place,
    raw_keys,
    reference,
    references,
    text,
)


class Inner(Settings):
    rate: float = identity("a rate", gt=0, le=1)
    workers: int = execution("how many", ge=0)


class Outer(Settings):
    inner: Inner = identity("nested")
    mode: Literal["a", "b"] | None = identity("a choice")
    model: str | None = reference("a model")
    models: list[str] = reference("models")
    prompt: str = text("what is asked")
    folder: str = place("where it lies")


GOOD = {
    "inner": {"rate": 1, "workers": 2},
    "mode": "a",
    "model": "latest:sft",
    "models": ["mini:base", "run:x"],
    "prompt": "Hi",
    "folder": "f",
}


def said(**changes: object) -> str:
    with pytest.raises(UserError) as caught:
        Outer.parse({**GOOD, **changes}, "stage=x")
    return str(caught.value)


def test_an_integer_is_a_float_but_a_string_is_not_a_number() -> None:
    assert Outer.parse(GOOD).inner.rate == 1.0
    assert "inner.rate='1'" in said(inner={"rate": "1", "workers": 2})


def test_errors_name_the_dotted_key_the_value_and_the_likeliest_meaning() -> None:
    assert "inner.rate=2" in said(inner={"rate": 2, "workers": 0})
    assert "inner.rate: a value is needed" in said(inner={"workers": 0})
    message = said(inner={"rate": 1, "wokers": 0, "workers": 0})
    assert "inner.wokers: there is no such key" in message
    assert "Did you mean 'workers'" in message
    assert "mode='c'" in said(mode="c")


def test_settings_are_frozen() -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError):
        Outer.parse(GOOD).prompt = "other"


def test_identity_leaves_out_execution_places_and_the_spelling_of_references() -> None:
    assert identity_values(Outer.parse(GOOD)) == {"inner": {"rate": 1.0}, "mode": "a", "prompt": "Hi"}


def test_references_are_found_by_dotted_key_and_nulls_are_left_out() -> None:
    assert references(Outer.parse(GOOD)) == {"model": "latest:sft", "models.0": "mini:base", "models.1": "run:x"}
    assert "model" not in references(Outer.parse({**GOOD, "model": None}))


def test_help_describes_every_key_with_type_and_bound() -> None:
    lines = {info.key: info for info in describe(Outer)}
    assert lines["inner.rate"].bounds == "> 0, ≤ 1"
    assert lines["mode"].type == "a | b | null"
    assert lines["inner.workers"].role == "execution"
    assert raw_keys(Outer) == {"model", "models", "prompt", "folder"}


class Listed(Settings):
    parts: list[Inner] = identity("several")


def test_a_key_inside_a_list_is_named_with_its_siblings() -> None:
    with pytest.raises(UserError) as caught:
        Listed.parse({"parts": [{"rate": 1, "workers": 0}, {"rate": 1, "wokers": 0, "workers": 0}]})
    assert "parts.1.wokers: there is no such key" in str(caught.value)
    assert "Did you mean 'workers'" in str(caught.value)


def test_a_field_that_came_later_leaves_old_fingerprints_alone() -> None:
    class Before(Settings):
        rows: int = identity("rows")

    class After(Before):
        turns: int | None = later("turns; null: as many as there are")

    assert identity_values(After.parse({"rows": 1})) == identity_values(Before.parse({"rows": 1}))
    assert identity_values(After.parse({"rows": 1, "turns": 2})) == {"rows": 1, "turns": 2}
