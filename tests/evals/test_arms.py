"""Arms of seeds: paired by position, paired by prompt, with the interval that pairing gives."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from judged_support import columns, comparisons, said

from alignment.evals import arms, preferences

ROWS = comparisons(400)
PAIRS = columns(ROWS)
RESAMPLES = preferences.bootstrap(PAIRS, 0.95, 0)
RIGHT = [said(400, seed).right_P for seed in range(5)]


def test_seeds_of_an_arm_are_numbered() -> None:
    assert arms.labels_of(["big", "small", "big", "one"]) == ["big#1", "small", "big#2", "one"]


def test_an_arm_is_the_mean_of_its_seeds() -> None:
    found = arms.compare({"none": RIGHT[:2], "large": RIGHT[2:4]}, PAIRS, RESAMPLES)
    large = found["large"]
    assert large["seeds"] == pytest.approx([float(seed.mean()) for seed in RIGHT[2:4]])
    assert large["accuracy"]["all"]["estimate"] == pytest.approx(statistics.fmean(large["seeds"]))
    some = [place for place, row in enumerate(ROWS) if row.grade == "slightly"]
    wanted = statistics.fmean(float(seed[place]) for seed in RIGHT[2:4] for place in some)
    assert large["accuracy"]["slightly"]["estimate"] == pytest.approx(wanted)
    assert large["accuracy"]["slightly"]["count"] == len(some)
    assert found["none"]["difference"] is None


def test_differences_are_those_of_seeds_in_the_same_place() -> None:
    found = arms.compare({"none": RIGHT[:2], "large": RIGHT[2:4]}, PAIRS, RESAMPLES)["large"]["difference"]
    each = [float(RIGHT[2].mean() - RIGHT[0].mean()), float(RIGHT[3].mean() - RIGHT[1].mean())]
    assert found["seeds"] == pytest.approx(each)
    assert found["accuracy"]["all"]["estimate"] == pytest.approx(statistics.fmean(each))
    graded = [place for place, row in enumerate(ROWS) if row.grade == "better"]
    wanted = statistics.fmean(float(RIGHT[2 + seed][place] - RIGHT[seed][place]) for seed in (0, 1) for place in graded)
    assert found["accuracy"]["better"]["estimate"] == pytest.approx(wanted)


def test_many_members_are_compared_with_few_averages_by_their_means() -> None:
    found = arms.compare({"member": RIGHT[:3], "average": RIGHT[3:]}, PAIRS, RESAMPLES)["average"]["difference"]
    assert found["seeds"] is None, "seeds that have no partner are not paired"
    wanted = statistics.fmean(float(one.mean()) for one in RIGHT[3:]) - statistics.fmean(
        float(one.mean()) for one in RIGHT[:3]
    )
    assert found["accuracy"]["all"]["estimate"] == pytest.approx(wanted)


def test_pairs_that_both_arms_judge_alike_add_no_doubt() -> None:
    """Two judges that differ on 20 of 400 pairs: far closer than either's own interval tells."""
    other = RIGHT[0].copy()
    other[:20] = 1 - other[:20]
    found = arms.compare({"a": [RIGHT[0]], "b": [other]}, PAIRS, RESAMPLES)["b"]

    def width(one: dict[str, float]) -> float:
        return one["high"] - one["low"]

    assert width(found["difference"]["accuracy"]["all"]) < width(found["accuracy"]["all"])
    same = arms.compare({"a": [RIGHT[0]], "b": [RIGHT[0].copy()]}, PAIRS, RESAMPLES)["b"]["difference"]
    assert same["accuracy"]["all"] == {"estimate": 0, "low": 0, "high": 0}


def test_the_cross_table_has_judges_in_rows() -> None:
    def measured(value: float) -> preferences.Measure:
        return {"accuracy": {"all": {"all": {"estimate": value}}}}

    found = arms.cross_table(
        {"h": {"help": measured(1), "safe": measured(2)}, "s": {"help": measured(3), "safe": measured(4)}}
    )
    assert (found["judges"], found["datasets"]) == (["h", "s"], ["help", "safe"])
    assert np.array([[one["estimate"] for one in row] for row in found["accuracy"]]).tolist() == [[1, 2], [3, 4]]
