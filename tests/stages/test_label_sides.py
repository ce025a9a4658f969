"""Which labelled comparisons are held out for ever, and what stops or refuses ``stage=label``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import drawing
import pytest
from drawing import POLICY, Speaker
from labelling import PAIRS, SCORER, Reporting, labelled, origins_of, rows_of, settings, truth
from pairs_support import pair

from alignment.chat.types import Messages, messages, prompt_key
from alignment.data.draw import uniform
from alignment.data.pairs import Pair
from alignment.errors import UserError
from alignment.stages import label

# ── held out for ever ────────────────────────────────────────────────────────────────────────────


def round_of(names: Sequence[str], split: str = "train") -> list[Pair]:
    return [pair(name, "Great.", "Poor.", split=split) for name in names]


def sides(out: Path) -> dict[str, str]:
    return {name: split for name, (split, _) in rows_of(out).items()}


def test_a_prompt_that_is_held_out_is_held_out_in_every_round(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = [f"n{number}" for number in range(400)]
    kept: dict[str, Any] = {"held_out__share": 0.1, "held_out__at_most": 1000}
    labelled(monkeypatch, tmp_path / "one", round_of(names[:200]), **kept)
    labelled(monkeypatch, tmp_path / "two", round_of(names[:99:-1]), **kept)
    one, two = sides(tmp_path / "one"), sides(tmp_path / "two")
    held = {name for name in one if one[name] == "test"}
    assert 8 <= len(held) <= 35
    assert {name: two[name] for name in names[100:200]} == {name: one[name] for name in names[100:200]}
    lowest = [name for name in names if uniform("held out", prompt_key(pair(name).prompt)) < 0.1]
    assert {name for name in two if two[name] == "test"} == set(lowest) & set(two)
    assert origins_of(tmp_path / "one")[min(held)]["split"] == "test"


def test_beyond_the_bound_what_is_held_out_is_not_trained_on_either(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = [f"n{number}" for number in range(200)]
    labelled(monkeypatch, tmp_path / "out", round_of(names), held_out__share=0.2, held_out__at_most=10)
    found = sides(tmp_path / "out")
    below = sorted(
        (name for name in names if uniform("held out", prompt_key(pair(name).prompt)) < 0.2),
        key=lambda name: uniform("held out", prompt_key(pair(name).prompt)),
    )
    assert len(below) > 20
    assert [found[name] for name in below] == ["test"] * 10 + ["valid"] * (len(below) - 10)
    assert {found[name] for name in names if name not in below} == {"train"}


def test_all_pairs_of_a_prompt_fall_on_one_side_and_test_stays_test(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ask = messages(("user", "The same?"))
    several = [pair(f"n{number}", "Great.", "Poor.", prompt=ask) for number in range(4)]
    tests = round_of([f"x{number}" for number in range(40)], "test")
    labelled(monkeypatch, tmp_path / "all", [*several, *tests], held_out__share=0.99, held_out__at_most=3)
    found = sides(tmp_path / "all")
    assert len({found[one.id] for one in several}) == 1
    assert {found[one.id] for one in tests} == {"test"}


# ── stopping, refusing ───────────────────────────────────────────────────────────────────────────


def test_stopped_anywhere_and_started_again_it_ends_with_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(label, "PAIRS_A_PART", 3)
    some = round_of([f"n{number}" for number in range(20)])
    labelled(monkeypatch, tmp_path / "whole", some, held_out__share=0.3)
    calls = 0

    class Tired(Reporting):
        """Stops for good at the third part, once."""

        def score(self, dialogues: Sequence[Messages]) -> Any:
            nonlocal calls
            calls += 1
            if calls == 3:
                raise KeyboardInterrupt
            return super().score(dialogues)

    out = tmp_path / "stopped"
    judges = [Tired(truth()._score), Tired(truth()._score)]
    with pytest.raises(KeyboardInterrupt):
        labelled(monkeypatch, out, some, judge=judges[0], held_out__share=0.3)
    assert not list(out.glob("*.parquet*"))
    labelled(monkeypatch, out, some, judge=judges[1], held_out__share=0.3)
    assert len(judges[0].judged) + len(judges[1].judged) == 2 * len(some), "nothing was judged twice"
    assert drawing.contents(out) == drawing.contents(tmp_path / "whole")


def test_what_interrupts_the_writing_leaves_no_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(label, "origin_of", broken)
    with pytest.raises(KeyboardInterrupt):
        labelled(monkeypatch, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.parquet*"))


def test_nothing_left_is_an_error_that_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no row is left\n.*no preference \(1\)"):
        labelled(monkeypatch, tmp_path / "out", [PAIRS[4]])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"judge": None}, "neither a judge nor annotations are named"),
        ({"annotations": "a.csv"}, "both named"),
        ({"judge": "gold:safety"}, "another aspect than aspect=helpfulness"),
        ({"grades__better": 0.7}, "do not fall"),
        ({"held_out__share": 1.0}, "held_out.share"),
        ({"ties": "keep"}, "ties"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        settings(**changes)


def test_only_pairs_are_judged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawing.let_speak(monkeypatch, Speaker(lambda *_: ""), truth())
    with pytest.raises(UserError, match="a answers is needed here"):
        label.run(settings(), {"pairs": replace(POLICY, path=tmp_path), "judge": SCORER}, tmp_path)
