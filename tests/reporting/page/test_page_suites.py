"""Suites on the page: a section with figures by group and every number; the ranking is of other measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from report_support import HOSTILE, Making, estimate

from alignment.reporting.page import report
from alignment.reporting.page.figures import Hues
from alignment.reporting.page.gather import gather
from alignment.reporting.page.suites import group, numbers

DECLARED = [
    {"name": name, "better": better, "doc": doc, "per": None, "exponential": False}
    for name, better, doc in (
        ("gold_helpfulness", "higher", HOSTILE),
        ("gold_safety", "higher", "safety"),
        ("gold_safety_low", "lower", "share that is unsafe"),
        ("tokens", None, "tokens"),
    )
]
VALUES = {"sft": (0.5, 0.9, 0.1, 30.0), "rl": (0.7, 0.8, 0.2, 20.0)}


def suite(groups: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    told = {
        model: {one["name"]: estimate(value) for one, value in zip(DECLARED, values, strict=True)}
        for model, values in VALUES.items()
    }
    less = {name: estimate(told["rl"][name]["estimate"] - told["sft"][name]["estimate"]) for name in told["sft"]}
    return {
        "kind": "rewards",
        "declared": DECLARED,
        "models": told,
        "groups": groups,
        "differences": {"rl": {"from": "sft", "measures": less, "groups": {}}},
    }


def made(root: Path, groups: dict[str, dict[str, dict[str, Any]]]) -> Making:
    making = Making(root)
    for name in VALUES:
        making.add(name, name, "policy")
    found = suite(groups)
    results = {
        "confidence": 0.95,
        "models": {
            model: {f"checks/{name}": one for name, one in measures.items()}
            for model, measures in found["models"].items()
        },
        "arms": {},
        **{part: {} for part in ("differences", "skills", "skill_differences")},
        "suites": {"checks": found},
    }
    rows = [
        {"suite": "checks", "model": model, "id": f"{place}", "gold_helpfulness": 0.1 * place, "gold_safety": 1.0}
        for model in VALUES
        for place in range(10)
    ]
    making.add(
        "versions",
        "evaluate",
        "evaluation",
        {"models.0": "sft", "models.1": "rl"},
        {"results.json": results, "examples.parquet": rows},
    )
    return making


def turns(count: int) -> dict[str, dict[str, Any]]:
    return {
        str(turn): {model: {"gold_helpfulness": estimate(values[0] / turn)} for model, values in VALUES.items()}
        for turn in range(1, count + 1)
    }


def panels(root: Path, groups: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    lineage = gather([made(root, groups).made["versions"]])
    return {panel.title: panel for panel in group(lineage, Hues()).panels}


def test_the_first_measure_is_a_line_over_labels_that_are_numbers(tmp_path: Path) -> None:
    panel = panels(tmp_path, {"turn": turns(12)})["checks (versions): gold_helpfulness by turn"]
    assert not panel.named
    (sft, rl) = panel.traces
    assert sft["name"] == "sft"
    assert sft["x"] == list(range(1, 13))
    assert rl["y"][:2] == [0.7, 0.35]
    assert len(rl["bars"]) == 12


def test_labels_that_are_words_have_points(tmp_path: Path) -> None:
    found = panels(tmp_path, {"category": {"hateful": turns(1)["1"], "criminal": turns(2)["2"]}})
    panel = found["checks (versions): gold_helpfulness by category"]
    assert panel.named
    assert panel.traces[0]["mode"] == "markers"
    assert panel.traces[0]["x"] == ["hateful", "criminal"]


def test_rewards_are_spread_and_move_together(tmp_path: Path) -> None:
    found = panels(tmp_path, {})
    spread = found["checks (versions): share of the answers by gold_helpfulness"]
    assert abs(sum(spread.traces[0]["y"]) - 1) < 1e-9
    both = found["checks (versions): gold_safety over gold_helpfulness"]
    assert [(one["x"], one["y"]) for one in both.traces] == [([0.5], [0.9]), ([0.7], [0.8])]
    assert both.traces[0]["sideways"]


def test_every_number_stands_in_a_table_and_nothing_is_markup(tmp_path: Path) -> None:
    told = numbers(gather([made(tmp_path, {}).made["versions"]]))
    assert "0.500 (0.480 … 0.520)" in told
    assert "rl − sft" in told
    assert "+0.200" in told
    assert HOSTILE not in told
    assert "&lt;/script&gt;" in told


def test_the_page_has_a_section_of_suites_and_its_ranking_no_columns_of_them(tmp_path: Path) -> None:
    page = report.page(gather([made(tmp_path, {"turn": turns(3)}).made["versions"]]), "title", 4)
    assert 'id="figures-suites"' in page
    assert "2 evaluated models" in page
    assert "checks/gold_helpfulness" not in page.partition("<script")[0]
    assert json.dumps("checks (versions): gold_helpfulness by turn")[1:-1] in page


def diverse(kinds: list[str], kind: str = "diversity") -> dict[str, Any]:
    """Self-BLEU of two models by kind of prompt: 1 less a tenth of the temperature times the kind's number."""
    by_kind = {
        f"{name}_temperature": {
            label: {model: {"self_bleu": estimate(1 - float(label) * n / 10)} for model in VALUES}
            for label in ("0.5", "1", "1.5")
        }
        for n, name in enumerate(kinds, 1)
    }
    whole = {model: {"self_bleu": estimate(0.5)} for model in VALUES}
    declared = [{"name": "self_bleu", "better": "lower", "doc": "…", "per": None, "exponential": False}]
    groups = {"temperature": by_kind[f"{kinds[0]}_temperature"], **by_kind}
    return {"kind": kind, "declared": declared, "models": whole, "groups": groups, "differences": {}}


def drawn(root: Path, found: dict[str, Any]) -> dict[str, Any]:
    making = Making(root)
    for name in VALUES:
        making.add(name, name, "policy")
    results = {"confidence": 0.95, "models": {}, "suites": {"varied": found}}
    making.add("versions", "evaluate", "evaluation", {"models.0": "sft", "models.1": "rl"}, {"results.json": results})
    return {panel.title: panel for panel in group(gather([making.made["versions"]]), Hues()).panels}


def test_self_bleu_is_drawn_over_temperature_with_a_line_for_every_model_and_kind(tmp_path: Path) -> None:
    found = drawn(tmp_path, diverse(["creative", "factual"]))
    title = "varied (versions): self_bleu by temperature (creative solid, factual dotted)"
    assert [*found] == [title, "varied (versions): self_bleu by temperature"], "the kinds have no figures besides"
    panel = found[title]
    assert (panel.x, panel.named) == ("temperature", False)
    lines = [(one["name"], one["dash"], one["told"][0]) for one in panel.traces]
    assert lines == [(model, *kind) for model in VALUES for kind in (("solid", "creative"), ("dot", "factual"))]
    assert [one["x"] for one in panel.traces] == [[0.5, 1.0, 1.5]] * 4
    assert [one["y"] for one in panel.traces[:2]] == [[0.95, 0.9, 0.85], [0.9, 0.8, 0.7]]
    assert len(panel.traces[0]["bars"]) == 3
    assert len({one["hue"] for one in panel.traces[:2]}) == 1, "a model has one colour"


def test_kinds_that_dashes_do_not_tell_apart_and_groups_of_other_suites_have_figures_of_their_own(
    tmp_path: Path,
) -> None:
    many = drawn(tmp_path / "a", diverse([f"k{n}" for n in range(5)]))
    assert "varied (versions): self_bleu by k4_temperature" in many
    assert not any("solid" in title for title in many)
    other = drawn(tmp_path / "b", diverse(["warm"], kind="checkable"))
    assert "varied (versions): self_bleu by warm_temperature" in other
