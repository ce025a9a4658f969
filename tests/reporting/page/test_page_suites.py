"""Suites on the page: a section with figures by group and every number; the ranking is of other measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_support import HOSTILE, Making, estimate
from safetensors.numpy import save_file

from alignment.reporting.page import report
from alignment.reporting.page.figures import Hues
from alignment.reporting.page.gather import gather
from alignment.reporting.page.suites import group, numbers
from alignment.reporting.page.texts import gathered

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
        {
            "suite": "checks",
            "model": model,
            "id": f"{place}",
            "unit": f"{place}",
            "by_turn": f"{place}",
            "shown": json.dumps({"prompt": [["user", f"Question {place}? {HOSTILE}"]], "answers": [f"{model} says"]}),
            "gold_helpfulness": 0.1 * place + 0.05 * (model == "rl"),
            "gold_safety": 1.0,
        }
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


def test_every_prompt_is_a_point_before_and_after(tmp_path: Path) -> None:
    (moved, same) = panels(tmp_path, {})["checks (versions): gold_helpfulness of rl over that of sft"].traces
    assert moved["x"] == pytest.approx([0.1 * place for place in range(10)])
    assert moved["y"] == pytest.approx([0.1 * place + 0.05 for place in range(10)])
    assert same["x"] == same["y"] == pytest.approx([0, 0.95])


def test_examples_of_suites_stand_among_what_models_said(tmp_path: Path) -> None:
    lineage = gather([made(tmp_path, {}).made["versions"]])
    found = gathered([], {}, lineage, 4)
    assert [(one.name, one.group) for one in found.said] == [("sft", "checks (versions)"), ("rl", "checks (versions)")]
    assert len(found.prompts) == 4
    first = next(iter(found.prompts))
    assert found.prompts[first] == {"turns": [["user", f"Question 0? {HOSTILE}"]], "tags": ["checks", "0"]}
    assert found.said[1].answers[first] == {
        "text": "rl says",
        "scores": [["gold_helpfulness", 0.05], ["gold_safety", 1.0]],
    }


def test_shares_of_prompts_won_and_capabilities_have_tables(tmp_path: Path) -> None:
    making = made(tmp_path, {})
    path = making.made["versions"].path / "results.json"
    results = json.loads(path.read_text())
    results["suites"]["checks"]["wins"] = {"rl": {"over": "sft", "measures": {"gold_safety": estimate(0.75)}}}
    results["capabilities"] = {
        "maths": {
            "of": ["checks"],
            "models": {"sft": estimate(0.31), "rl": estimate(0.42)},
            "differences": {"rl": {"from": "sft", **estimate(0.11)}},
        },
        "code": {"of": [], "models": {}, "differences": {}},
    }
    path.write_text(json.dumps(results))
    told = numbers(gather([making.made["versions"]]))
    assert "rl over sft" in told
    assert "0.750 (0.730 … 0.770)" in told
    assert "By capability (versions)" in told
    assert "+0.110 (0.090 … 0.130)" in told
    assert "nothing here" in told


def alone(making: Making, step: str, model: str, value: float, stage: str, made_of: Any) -> None:
    """What ``stage=assess`` or ``stage=redteam`` says of one model, with groups by copies."""
    results = {
        "kind": "memorisation" if stage == "assess" else "redteam",
        "confidence": 0.95,
        "declared": [{"name": "exact", "better": "lower", "doc": "share", "per": None, "exponential": False}],
        "measures": {"exact": estimate(value)},
        "groups": {"copies": {copies: {"exact": estimate(value * int(copies))} for copies in ("1", "10")}},
    } | ({} if made_of is None else {"made_of": made_of})
    kind = "evaluation" if stage == "assess" else "dataset"
    making.add(step, stage, kind, {"model": model}, {"results.json": results})  # type: ignore[arg-type]


def test_what_no_evaluation_compares_stands_beside_each_other_by_suite(tmp_path: Path) -> None:
    making = Making(tmp_path)
    for place, name in enumerate(("small", "large"), start=1):
        weights = {"weight": np.zeros((place, 100), np.float32)}
        save_file(weights, making.add(name, "pretrain", "policy").path / "model.safetensors")
        alone(making, f"{name}_known", name, 0.02 * place, "assess", {"settings": 1})
    alone(making, "large_other", "large", 0.5, "assess", {"settings": 2})
    for name in ("small", "large"):
        alone(making, f"{name}_attacked", name, 0.1, "redteam", None)
    lineage = gather([*making.made.values()])
    found = {panel.title: panel for panel in group(lineage, Hues()).panels}
    size = found["memorisation (small, large): known by heart by size"]
    assert (size.traces[0]["x"], size.traces[0]["y"]) == ([100.0, 200.0], [0.02, 0.04])
    copies = found["memorisation (small, large): exact by copies"]
    assert [(one["name"], one["y"]) for one in copies.traces] == [("small", [0.02, 0.2]), ("large", [0.04, 0.4])]
    assert [one["name"] for one in found["redteam (small, large): exact by copies"].traces] == ["small", "large"]
    assert "memorisation (large): exact by copies" in found
    assert numbers(lineage).count("<h3>") == 3


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
