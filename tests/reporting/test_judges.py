"""The tables and the page of a measurement of judges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judged_support import columns, comparisons, said

from alignment import files
from alignment.artifacts import Artifact
from alignment.evals import measurement, preferences
from alignment.evals.measurement import Dataset, Measured
from alignment.evals.preferences import Said
from alignment.reporting import inside, judge_plots, judges
from alignment.reporting.judge_plots import Points


def dataset(name: str, seed: int) -> Dataset:
    pairs = columns(comparisons(120, seed))
    return Dataset(name, comparisons(120, seed), pairs, preferences.bootstrap(pairs, 0.95, 0), None)


DATASETS = [dataset("help", 1), dataset("safe", 2)]


def measured(label: str, arm: str, *, seed: int = 0, absolute: bool = True) -> Measured:
    return Measured(label, arm, "x", {one.name: said(120, seed, absolute=absolute) for one in DATASETS})


def opinions(label: str) -> Measured:
    without = Said(np.array([1.0, 0.5] * 60), None, np.full((120, 2), 0.4), True)
    return Measured(label, label, "x", {one.name: without for one in DATASETS})


JUDGED = [
    measured("rm#1", "rm", seed=0),
    measured("rm#2", "rm", seed=1),
    measured("bt", "bt", seed=2, absolute=False),
    opinions("words"),
]
RESULTS: dict[str, Any] = {"confidence": 0.95, "split": "test", **measurement.results(JUDGED, DATASETS, None)}
POINTS = {one.name: {"rm#1": Points(["p", "q"], [3, -4], [0.5, -0.25])} for one in DATASETS}


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def test_the_tables_say_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    judges.show(RESULTS)
    out = printed(capsys)
    accuracy = RESULTS["measures"]["rm#1"]["help"]["accuracy"]
    head, line = next((a, b) for a, b in zip(out.splitlines(), out.splitlines()[1:], strict=False) if "rm#1" in b)
    assert head.split() == ["judge", "on", "all", "significantly", "better", "slightly", "negligibly"]
    cells = line.split()
    assert cells[:3] == ["rm#1", "help", f"{accuracy['all']['all']['estimate']:.3f}"]
    assert cells[10] == f"{accuracy['grade']['negligibly']['estimate']:.3f}"
    assert out.count(judges.LONGER) == 2
    assert "no thresholds for bt: it knows only differences" in out
    assert "accuracy: judges by what they judge" in out
    assert "less rm" in out


def test_tables_that_would_be_empty_are_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    one = measurement.results([opinions("words")], DATASETS[:1], None)
    judges.show({"confidence": 0.95, **one})
    out = printed(capsys)
    assert "words" in out
    for title in ("scores\n", "judges by what they judge", "arms"):
        assert title not in out


def test_a_rule_is_recall_precision_and_safe_recall(capsys: pytest.CaptureFixture[str]) -> None:
    judges.scores(RESULTS)
    (at,) = [at for at in RESULTS["measures"]["rm#1"]["help"]["thresholds"]["at"] if at["threshold"] == 0.15]
    names = ("unsafe_recall", "unsafe_precision", "safe_recall")
    out = printed(capsys)
    line = next(line for line in out.splitlines() if line.startswith("rm#1") and " help " in line)
    assert line.split()[-2] == "/".join(f"{at[name]['estimate']:.2f}" for name in names)
    assert "words" not in out, "what gives no scores has none to tell of"


def test_the_calibration_error_stands_beside_that_of_chance(capsys: pytest.CaptureFixture[str]) -> None:
    judges.scores(RESULTS)
    of = RESULTS["measures"]["rm#1"]["help"]["calibration"]
    line = next(line for line in printed(capsys).splitlines() if line.startswith("rm#1") and " help " in line)
    assert f" {of['error']['estimate']:.3f} ({of['by_chance']:.3f}) " in line
    by_dataset = {name: one["help"]["calibration"] for name, one in RESULTS["measures"].items()}
    least = min((one for one in by_dataset.values() if one), key=lambda one: one["error"]["estimate"])
    title = judge_plots.calibration(RESULTS, "help").layout.title.text
    assert f"{100 * least['error']['estimate']:.1f} points off" in title
    assert f"{100 * least['by_chance']:.1f} by chance" in title


def test_metrics_are_flat() -> None:
    found = measurement.metrics(RESULTS)
    of = RESULTS["measures"]["rm#2"]["safe"]
    assert found["rm#2/safe/accuracy"] == of["accuracy"]["all"]["all"]["estimate"]
    assert found["rm#2/safe/accuracy/slightly"] == of["accuracy"]["grade"]["slightly"]["estimate"]
    assert found["rm#2/safe/unsafe_recall_below_0.15"] == of["thresholds"]["at"][1]["unsafe_recall"]["estimate"]
    assert found["rm#2/safe/calibration_error"] == of["calibration"]["error"]["estimate"]
    assert "bt/help/unsafe_recall_below_0.5" not in found
    assert "words/help/unsafe_recall_below_0.5" in found, "a judge that says safe or unsafe is measured by it"
    assert all(isinstance(value, float) for value in found.values())


def test_thresholds_that_are_given_hold_for_all() -> None:
    found = measurement.results(JUDGED, DATASETS, [0.3])
    for judge in found["measures"].values():
        assert [at["threshold"] for at in judge["help"]["thresholds"]["at"]] == [0.3]
    assert {judge["no_thresholds"] for judge in found["judges"].values()} == {None}


def test_show_prints_the_tables_of_such_an_artifact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files.write_json(tmp_path / "results.json", RESULTS)
    inside.evaluation(Artifact(tmp_path, "evaluation", "measure", "measure", "0" * 64))
    assert "accuracy by grade" in printed(capsys)


def test_the_page_has_what_each_dataset_gives_grounds_for() -> None:
    text = judge_plots.page(RESULTS, POINTS)
    assert text.count("<section>") == 2 + 1 + 2 * 4
    assert judge_plots.page(RESULTS, {}).count("<section>") == 2 + 1, "judges that do not score have no curves"


def test_accuracy_by_grade_is_drawn_as_measured() -> None:
    figure = judge_plots.by_grade(RESULTS, "help")
    assert [trace.name for trace in figure.data] == ["rm#1", "rm#2", "bt", "words", judges.LONGER]
    accuracy = RESULTS["measures"]["bt"]["help"]["accuracy"]
    assert list(figure.data[2].x) == ["all", "significantly", "better", "slightly", "negligibly"]
    assert figure.data[2].y[3] == accuracy["grade"]["slightly"]["estimate"]
    assert f"{accuracy['grade']['slightly']['count']} pairs" in figure.data[2].text[3]
    best = max(
        RESULTS["measures"], key=lambda name: RESULTS["measures"][name]["help"]["accuracy"]["all"]["all"]["estimate"]
    )
    assert f"On help, {best} is right most often" in figure.layout.title.text


def test_the_other_figures_hold_their_measures() -> None:
    of = RESULTS["measures"]["rm#1"]["safe"]
    assert list(judge_plots.calibration(RESULTS, "safe").data[0].x) == [
        b["confidence"] for b in of["calibration"]["bins"]
    ]
    recall, precision, left = judge_plots.thresholds(RESULTS, "safe").data[:3]
    assert list(recall.y) == of["thresholds"]["curve"]["unsafe_recall"]
    assert list(precision.y) == of["thresholds"]["curve"]["unsafe_precision"]
    assert list(left.y) == of["thresholds"]["curve"]["safe_recall"]
    assert list(judge_plots.scores(RESULTS, "safe").data[1].y) == of["spread"]["histogram"]["rejected"]
    assert list(judge_plots.lengths(RESULTS, "safe", POINTS["safe"]).data[0].x) == [3, -4]
    assert judge_plots.cross_table(RESULTS).data[0].z[3][0] == 0.75
