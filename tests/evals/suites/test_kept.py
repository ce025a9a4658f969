"""Examples on disk and what they come to: means, ratios, groups, differences, seeds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from alignment.errors import UserError
from alignment.evals.suites import kept
from alignment.evals.suites.kept import Kept
from alignment.evals.suites.suite import Examined, Example, Measure

MEASURES = (
    Measure("right", "higher", "share that is right"),
    Measure("nll", "lower", "perplexity", per="tokens", exponential=True),
    Measure("tokens", None, "tokens"),
)


def examples(count: int = 60, seed: int = 0, gain: float = 0.0) -> list[Example]:
    """Two of each unit; the fifth of every five has no ``right``."""
    rng = np.random.default_rng(seed)
    found = []
    for place in range(count):
        tokens = float(rng.integers(1, 9))
        values = {"right": float(rng.random() < 0.5 + gain), "nll": tokens * float(rng.uniform(1, 2)), "tokens": tokens}
        if place % 5 == 4:
            del values["right"]
        groups = {"turn": str(place % 12 + 1)} if place % 2 else {}
        found.append(Example(f"e{place}", f"u{place // 2}", values, groups, {"answer": f"ä{place}"}))
    return found


def written(folder: Path, some: list[Example]) -> Kept:
    folder.mkdir()
    assert kept.write(folder, Examined(MEASURES, iter(some))) == len(some)
    return Kept.of(MEASURES, folder)


def test_examples_come_back_as_they_were(tmp_path: Path) -> None:
    some = examples()
    found = written(tmp_path / "a", some)
    assert found.ids == [one.id for one in some]
    assert found.units == [one.unit for one in some]
    assert found.groups == {"turn": [one.groups.get("turn") for one in some]}
    for measure in MEASURES:
        wanted = [one.values.get(measure.name, math.nan) for one in some]
        assert np.array_equal(found.values[measure.name], wanted, equal_nan=True)
    shown = list(kept.shown(tmp_path / "a"))
    assert [row["shown"] for row in shown] == [one.shown for one in some]
    assert not list((tmp_path / "a").glob("*.tmp*"))


def test_labels_that_are_numbers_stand_by_value(tmp_path: Path) -> None:
    assert written(tmp_path / "a", examples()).labels("turn") == ["2", "4", "6", "8", "10", "12"]


def test_a_value_that_is_no_number_names_its_example(tmp_path: Path) -> None:
    some = [*examples(4), Example("strange", "u", {"tokens": math.nan})]
    with pytest.raises(UserError, match="strange: its tokens is nan"):
        kept.write(tmp_path, Examined(MEASURES, some))
    assert not (tmp_path / kept.EXAMPLES).exists()


def test_means_and_ratios_are_of_the_examples_that_have_them(tmp_path: Path) -> None:
    some = examples()
    told = kept.told(written(tmp_path / "a", some), 0.95, 0)
    right = [one.values["right"] for one in some if "right" in one.values]
    assert told["measures"]["right"]["estimate"] == pytest.approx(np.mean(right))
    assert told["measures"]["right"]["examples"] == len(right) == 48
    nats = sum(one.values["nll"] for one in some) / sum(one.values["tokens"] for one in some)
    assert told["measures"]["nll"]["estimate"] == pytest.approx(math.exp(nats))
    of_two = [one.values["right"] for one in some if one.groups.get("turn") == "2" and "right" in one.values]
    assert told["groups"]["turn"]["2"]["right"]["estimate"] == pytest.approx(np.mean(of_two))
    for one in told["measures"].values():
        assert one["low"] < one["estimate"] < one["high"]


def test_a_group_without_a_measure_does_not_tell_it(tmp_path: Path) -> None:
    some = [
        Example("a", "a", {"right": 1.0}, {"kind": "x"}),
        Example("b", "b", {"tokens": 2.0}, {"kind": "y"}),
    ]
    told = kept.told(written(tmp_path / "a", some), 0.95, 0)
    assert set(told["groups"]["kind"]["x"]) == {"right"}
    assert set(told["groups"]["kind"]["y"]) == {"tokens"}


def test_a_difference_is_taken_example_by_example_in_any_order(tmp_path: Path) -> None:
    """The same models: no difference and no doubt about it, though each alone is unsure."""
    some = examples()
    one, turned = written(tmp_path / "a", some), written(tmp_path / "b", some[::-1])
    less = kept.differences(one, turned, 0.95, 0)["measures"]
    for name in ("right", "nll", "tokens"):
        assert less[name]["estimate"] == pytest.approx(0, abs=1e-12)
        assert less[name]["high"] - less[name]["low"] == pytest.approx(0, abs=1e-9)


def test_a_difference_is_that_of_the_means_on_what_both_have(tmp_path: Path) -> None:
    some, others = examples(), examples(seed=1)
    del others[0].values["right"]  # type: ignore[attr-defined]
    less = kept.differences(written(tmp_path / "a", some), written(tmp_path / "b", others), 0.95, 0)
    both = [place for place in range(1, 60) if place % 5 != 4]
    wanted = np.mean([some[p].values["right"] for p in both]) - np.mean([others[p].values["right"] for p in both])
    assert less["measures"]["right"]["estimate"] == pytest.approx(wanted)
    assert less["measures"]["right"]["examples"] == len(both)
    nats = [sum(e.values["nll"] for e in of) / sum(e.values["tokens"] for e in of) for of in (some, others)]
    assert less["measures"]["nll"]["estimate"] == pytest.approx(math.exp(nats[0]) - math.exp(nats[1]))


def test_other_examples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="e59: one model was examined on it"):
        kept.differences(written(tmp_path / "a", examples()), written(tmp_path / "b", examples(59)), 0.95, 0)


def test_seeds_of_an_arm_are_averaged_example_by_example(tmp_path: Path) -> None:
    some, others = examples(), examples(seed=1)
    found = kept.averaged([written(tmp_path / "a", some), written(tmp_path / "b", others[::-1])])
    wanted = [(a.values["tokens"] + b.values["tokens"]) / 2 for a, b in zip(some, others, strict=True)]
    assert found.values["tokens"].tolist() == pytest.approx(wanted)
    assert math.isnan(found.values["right"][4])


def test_an_interval_covers_the_truth_at_its_nominal_rate(tmp_path: Path) -> None:
    """200 worlds of 120 examples, two a unit and alike: the truth lies in the 90 % interval 90 % of the time.

    ± 0.064 is three standard errors of 200 such draws; intervals that took examples for units would cover 75 %.
    """
    inside = 0
    for world in range(200):
        rng = np.random.default_rng(world)
        unit = rng.normal(size=60).repeat(2)
        values = {"right": unit, "nll": unit, "tokens": np.ones(120)}
        one = Kept(MEASURES, [str(p) for p in range(120)], [str(p // 2) for p in range(120)], values, {})
        interval = kept.told(one, 0.9, world)["measures"]["right"]
        inside += interval["low"] <= 0 <= interval["high"]
    assert abs(inside / 200 - 0.9) < 0.064


def test_the_same_examples_make_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        written(tmp_path / name, examples())
    assert (tmp_path / "a" / kept.EXAMPLES).read_bytes() == (tmp_path / "b" / kept.EXAMPLES).read_bytes()
    told = [json.dumps(kept.told(Kept.of(MEASURES, tmp_path / name), 0.95, 0)) for name in ("a", "b")]
    assert told[0] == told[1]
