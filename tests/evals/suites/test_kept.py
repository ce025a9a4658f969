"""Examples on disk and what they come to: means, ratios, groups, differences, seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.errors import UserError
from alignment.evals.intervals import Bootstrap
from alignment.evals.suites import kept
from alignment.evals.suites.kept import Kept
from alignment.evals.suites.suite import Examined, Example, Measure

MEASURES = (
    Measure("right", "higher", "share that is right", most=1),
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


def test_a_group_that_comes_late_is_null_before_and_the_bytes_are_those_of_one_that_was_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In batches of ten: ``attack`` first appears in the second, ``kind`` in the fifth."""
    monkeypatch.setattr(kept, "ROWS_A_BATCH", 10)
    late = {13: {"attack": "direct"}, 17: {"attack": "logic"}, 45: {"kind": "x", "attack": "direct"}}
    some = [Example(f"e{p}", f"u{p}", {"tokens": float(p)}, late.get(p, {}), {"answer": p}) for p in range(60)]
    found = written(tmp_path / "a", some)
    assert found.groups == {name: [late.get(place, {}).get(name) for place in range(60)] for name in ("attack", "kind")}
    assert found.values["tokens"].tolist() == list(range(60))
    assert [row["shown"] for row in kept.shown(tmp_path / "a")] == [one.shown for one in some]
    assert [path.name for path in (tmp_path / "a").iterdir()] == [kept.EXAMPLES]
    known = kept._schema({"attack", "kind"}, [measure.name for measure in MEASURES])
    monkeypatch.setattr(kept, "_schema", lambda groups, measures: known)
    written(tmp_path / "b", some)
    assert (tmp_path / "a" / kept.EXAMPLES).read_bytes() == (tmp_path / "b" / kept.EXAMPLES).read_bytes()


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
    """The same models: no difference, and of a share the doubt that thirty units leave, though each alone is unsure."""
    some = examples()
    one, turned = written(tmp_path / "a", some), written(tmp_path / "b", some[::-1])
    less = kept.differences(one, turned, 0.95, 0)["measures"]
    # None of thirty units is unlike: at most 1 − 0.025^(1/30) of all are, either way.
    for name, doubt in (("right", 1 - 0.025 ** (1 / 30)), ("nll", 0), ("tokens", 0)):
        found = [less[name][bound] for bound in ("estimate", "low", "high")]
        assert found == pytest.approx([0, -doubt, doubt], abs=1e-9)


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


def test_groups_that_the_answers_decide_are_told_and_not_compared(tmp_path: Path) -> None:
    """What says little has other prompts in its group than what says much: their difference would be of prompts."""
    one, other = [replace(each, groups={**each.groups, "length": "0"}) for each in examples()], examples(seed=1)
    other = [replace(each, groups={**each.groups, "length": "08"[place < 9]}) for place, each in enumerate(other)]
    found, base = written(tmp_path / "a", one), written(tmp_path / "b", other)
    assert set(kept.told(found, 0.95, 0)["groups"]) == {"turn", "length"}
    assert set(kept.differences(found, base, 0.95, 0)["groups"]) == {"turn"}


def test_other_examples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="e59: one model was examined on it"):
        kept.differences(written(tmp_path / "a", examples()), written(tmp_path / "b", examples(59)), 0.95, 0)


def test_seeds_of_an_arm_are_averaged_example_by_example(tmp_path: Path) -> None:
    some, others = examples(), examples(seed=1)
    found = kept.averaged([written(tmp_path / "a", some), written(tmp_path / "b", others[::-1])])
    wanted = [(a.values["tokens"] + b.values["tokens"]) / 2 for a, b in zip(some, others, strict=True)]
    assert found.values["tokens"].tolist() == pytest.approx(wanted)
    assert math.isnan(found.values["right"][4])


def test_a_value_that_one_seed_lacks_is_the_mean_of_the_others(tmp_path: Path) -> None:
    """As where a judge's reply about one seed's answer could not be read."""
    some, others = examples(), examples(seed=1)
    del others[0].values["right"]  # type: ignore[attr-defined]
    found = kept.averaged([written(tmp_path / "a", some), written(tmp_path / "b", others)])
    assert found.values["right"][0] == some[0].values["right"]
    assert found.values["right"][1] == (some[1].values["right"] + others[1].values["right"]) / 2
    assert math.isnan(found.values["right"][4]), "none has it"
    assert kept.told(found, 0.95, 0)["measures"]["right"]["examples"] == 48


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


def shares(events: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share where so many of ``count`` prompts have the event."""
    values = {"right": np.arange(count) < events, "nll": np.ones(count), "tokens": np.ones(count)}
    names = [str(place) for place in range(count)]
    found = kept.told(Kept(MEASURES, names, names, {n: v.astype(float) for n, v in values.items()}, {}), 0.95, 0)
    return found["measures"]["right"]["low"], found["measures"]["right"]["high"]


def test_an_interval_of_a_share_covers_it_however_rare_it_is() -> None:
    """Of 200 prompts, by the binomial distribution of their events: 93 % of the time at worst, at shares near 0.24.

    That is the bootstrap's. Where it has few events it covered 63 % at 0.005, and 85 % just above 0.015.
    """
    intervals = [shares(events, 200) for events in range(101)]
    assert intervals[0] == pytest.approx((0, 1 - 0.025 ** (1 / 200)))
    assert shares(200, 200) == pytest.approx((0.025 ** (1 / 200), 1))
    # Clopper and Pearson's, as scipy 1.17 has them: stats.binomtest(3, 200).proportion_ci().
    assert intervals[3] == pytest.approx((0.0031041, 0.0432083), abs=1e-7)
    assert shares(197, 200) == pytest.approx((1 - 0.0432083, 1 - 0.0031041), abs=1e-7)

    def coverage(share: float) -> float:
        chance = [math.comb(200, n) * share**n * (1 - share) ** (200 - n) for n in range(101)]
        return sum(of for of, (low, high) in zip(chance, intervals, strict=True) if low <= share <= high)

    covered = [coverage(share) for share in np.arange(0.001, 0.3, 0.001) + 1e-5]
    assert min(covered) == pytest.approx(0.93, abs=0.002)
    assert min(covered[:60]) > 0.95, "shares below 0.06"
    assert 0.95 < sum(covered) / len(covered) < 0.98


def of_right(value_P: Sequence[float], units: Sequence[str] | None = None) -> Kept:
    names = [str(place) for place in range(len(value_P))]
    values = {"right": np.asarray(value_P, float), "nll": np.ones(len(names)), "tokens": np.ones(len(names))}
    return Kept(MEASURES, names, list(units or names), values, {})


def bounds(found: dict[str, Any]) -> tuple[float, float]:
    return found["measures"]["right"]["low"], found["measures"]["right"]["high"]


def test_what_a_unit_says_twice_counts_once() -> None:
    units = [str(place // 2) for place in range(80)]
    once = bounds(kept.told(of_right([1.0] + [0.0] * 39), 0.95, 0))
    assert bounds(kept.told(of_right([1.0, 1.0] + [0.0] * 78, units), 0.95, 0)) == once
    assert once[1] == pytest.approx(0.1315859, abs=1e-6)
    # A unit of two minds is half of one, and all others may yet be of one.
    half = bounds(kept.told(of_right([1.0, 0.0] + [0.0] * 78, units), 0.95, 0))
    none = 1 - 0.025 ** (1 / 40)
    assert half[1] == pytest.approx(1 / 80 + math.hypot((once[1] - 1 / 40) / 2, none))


def test_units_of_different_sizes_have_the_bootstraps_interval() -> None:
    units = ["0", "0", *map(str, range(1, 40))]
    one = of_right([1.0, 1.0] + [0.0] * 39, units)
    (plain,) = Bootstrap(units, 0.95, 0).ratios(one.values["right"][:, None], np.ones((41, 1)))
    assert plain is not None
    assert bounds(kept.told(one, 0.95, 0)) == plain[1:]


def test_an_interval_of_a_difference_covers_it_however_rare_the_examples_that_differ() -> None:
    """Of 200 prompts, by the trinomial distribution of those that only the one has and that only the other has.

    At least 95 % where 10 or fewer are expected to differ; the bootstrap's covered 84 % at 0.01 against 0.002.
    """
    found: dict[tuple[int, int], tuple[float, float]] = {}
    for only_own, only_base in (pair for pair in product(range(26), repeat=2) if sum(pair) <= 25):
        own, base = np.zeros(200), np.zeros(200)
        own[:only_own], base[only_own : only_own + only_base] = 1, 1
        found[only_own, only_base] = bounds(kept.differences(of_right(own), of_right(base), 0.95, 0))
    assert found[0, 0] == pytest.approx((-1 + 0.025 ** (1 / 200), 1 - 0.025 ** (1 / 200)))
    assert found[1, 0][0] < 0 < found[1, 0][1], "one example tells nothing"
    assert found[9, 0][0] > 0 > found[0, 9][1]
    for plus, minus in ((0.005, 0.005), (0.01, 0), (0.01, 0.002), (0.02, 0.005), (0.02, 0.02), (0.04, 0.01)):
        inside = sum(
            math.comb(200, a) * math.comb(200 - a, b) * plus**a * minus**b * (1 - plus - minus) ** (200 - a - b)
            for (a, b), (low, high) in found.items()
            if low <= plus - minus <= high
        )
        assert inside > 0.95, (plus, minus)


@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize("share", [0.005, 0.01, 0.02, 0.04])
def test_an_interval_of_an_arm_covers_its_share_at_least_nominally(seeds: int, share: float) -> None:
    """Of 100 prompts, of which half are hopeless for every seed; the bootstrap's covers 62 % at 0.005 with two."""
    rng, inside, worlds = np.random.default_rng(seeds), 0, 300
    for _ in range(worlds):
        chance = np.where(rng.random(100) < 0.5, 0, 2 * share)
        own = [of_right(rng.random(100) < chance) for _ in range(seeds)]
        low, high = bounds(kept.told(kept.averaged(own), 0.95, 0))
        inside += low <= share <= high
    # Three standard errors of so many draws below 95 %.
    assert inside / worlds > 0.95 - 3 * math.sqrt(0.95 * 0.05 / worlds)


def test_what_is_no_share_keeps_its_interval() -> None:
    """Nothing says how far tokens could be from those that were seen."""
    names = [str(place) for place in range(50)]
    values = {"right": np.full(50, np.nan), "nll": np.ones(50), "tokens": np.ones(50)}
    found = kept.told(Kept(MEASURES, names, names, values, {}), 0.95, 0)["measures"]
    assert (found["tokens"]["low"], found["tokens"]["high"]) == (1, 1)


def test_the_same_examples_make_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        written(tmp_path / name, examples())
    assert (tmp_path / "a" / kept.EXAMPLES).read_bytes() == (tmp_path / "b" / kept.EXAMPLES).read_bytes()
    told = [json.dumps(kept.told(Kept.of(MEASURES, tmp_path / name), 0.95, 0)) for name in ("a", "b")]
    assert told[0] == told[1]
