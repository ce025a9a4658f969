"""The whole lineage is found by its records, wherever its store lies now; what is gone is known by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from report_support import Making, evaluate, whole

from alignment import artifacts
from alignment.reporting.page import layout, models
from alignment.reporting.page.gather import GONE, flat, gather


def test_a_lineage_has_parents_before_children_and_each_once(tmp_path: Path) -> None:
    making = whole(tmp_path / "runs")
    lineage = gather([making.made["versions"], making.made["judged"], making.made["versions"]])
    names = [node.name for node in lineage.nodes.values()]
    assert sorted(names) == sorted(
        ["lost", "sft", "prompts", "preference", "calm", "bold", "slerp", "versions", "gold:overall", "judged"]
    )
    seen: set[str] = set()
    for fingerprint, node in lineage.nodes.items():
        assert seen.issuperset(node.parents.values())
        seen.add(fingerprint)


def test_what_is_gone_is_named_and_what_has_no_folder_is_not_gone(tmp_path: Path) -> None:
    making = whole(tmp_path / "runs")
    shutil.rmtree(making.made["preference"].path)
    lineage = gather([making.made["versions"], making.made["judged"]])
    by_name = {node.name: node for node in lineage.nodes.values()}
    assert {node.name for node in lineage.gone} == {"lost", "preference"}
    assert by_name["preference"].artifact is None
    assert by_name["gold:overall"].kind == "gold"
    assert by_name["preference"].kind == GONE
    assert not by_name["gold:overall"].folder
    assert by_name["calm"].parents["reward.model"] == by_name["preference"].fingerprint


def test_a_store_that_was_moved_is_whole_and_an_impostor_is_not_taken(tmp_path: Path) -> None:
    making = whole(tmp_path / "runs")
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "runs", tmp_path / "elsewhere" / "runs")
    here = tmp_path / "elsewhere" / "runs" / "mini"
    versions = artifacts.load(here / making.made["versions"].path.name)
    assert [node.name for node in gather([versions]).gone] == ["lost"]

    other = Making(tmp_path / "runs", "other")
    stranger = other.add("sft", "sft", "policy")
    making.made["sft"].path.parent.mkdir(parents=True)
    shutil.move(stranger.path, making.made["sft"].path)
    lineage = gather([versions])
    assert stranger.fingerprint not in lineage.nodes
    assert [node.name for node in lineage.gone] == ["lost"]


def test_parts_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    making = Making(tmp_path)
    making.add("prompts", "data", "dataset")
    names = [f"model{place}" for place in range(12)]
    for name in ("sft", *names):
        making.add(name, "sft", "policy")
    node = gather([evaluate(making, "many", names)]).of_stage("evaluate")[0]
    assert node.parts("models") == [making.made[name].fingerprint for name in names]
    assert node.parts("model") == []


def test_twins_are_told_apart(tmp_path: Path) -> None:
    first, second = Making(tmp_path, "a").add("sft", "sft", "policy"), Making(tmp_path, "b").add("sft", "sft", "policy")
    lineage = gather([first, second])
    assert lineage.name(first.fingerprint) == f"sft-{first.fingerprint[:4]}"
    assert gather([first]).name(first.fingerprint) == "sft"


def test_settings_are_lines_of_text() -> None:
    values = {"a": {"b": None, "c": [1, 2]}, "d": [{"e": True}], "f": []}
    assert list(flat(values)) == [("a.b", "null"), ("a.c", "1, 2"), ("d.0.e", "true"), ("f", "none")]


# ── models ───────────────────────────────────────────────────────────────────────────────────────


def test_models_are_ranked_by_gold_and_keep_their_own_evaluation(tmp_path: Path) -> None:
    making = whole(tmp_path / "runs")
    again = evaluate(making, "again", ("bold", "calm"), golds=(0.45, 0.95), seed=1)
    lineage = gather([making.made["versions"], again])
    rows = models.measured(lineage)
    assert [(row.name, row.evaluation.name) for row in rows] == [
        ("calm", "again"),
        ("slerp", "versions"),
        ("bold", "versions"),
        ("calm", "versions"),
        ("bold", "again"),
        ("sft", "versions"),
    ]
    assert [row.model.name for row in rows if row.model] == [row.name for row in rows]
    assert models.columns(rows) == ["gold", "gold_safety", "reward_preference", "kl", "tokens", "finished"]
    letters = models.protocols(rows)
    assert sorted(letters.values()) == ["a", "b"], "another seed draws other answers"
    assert models.labels(rows, lineage)[:2] == ["calm (again)", "slerp"]


def test_arms_are_rows_of_their_own(tmp_path: Path) -> None:
    making = whole(tmp_path / "runs")
    path = making.made["versions"].path / "results.json"
    told = json.loads(path.read_text())
    told["arms"] = {
        "both": {"gold": {"estimate": 0.9, "low": 0.8, "high": 1.0, "seeds": [0.85, 0.95]}},
        "sft": {"gold": {"estimate": 0.4, "low": 0.3, "high": 0.5, "seeds": [0.4]}},
    }
    path.write_text(json.dumps(told))
    rows = models.measured(gather([making.made["versions"]]))
    assert (rows[0].name, rows[0].model, rows[0].seeds, rows[0].stage) == ("both", None, 2, "arm")
    assert [row.name for row in rows].count("sft") == 1, "an arm of one seed is that model"


def test_the_ranking_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lineage = gather([whole(tmp_path / "runs").made["versions"]])
    models.show(models.measured(lineage), lineage)
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines() if "±0" in line]
    assert [line[:2] for line in lines] == [["1", "slerp"], ["2", "bold"], ["3", "calm"], ["4", "sft"]]
    assert lines[0][2:] == ["0.700", "±0.020", "0.400", "±0.100", "1.500", "±0.050"]
    assert "reward: preference" in printed
    models.show([], lineage)
    assert "no gold, reward or KL was measured" in capsys.readouterr().out


# ── where things stand ───────────────────────────────────────────────────────────────────────────

DIAMOND = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"], "late": [], "e": ["d", "late", "a"]}


def test_layers_are_below_parents_and_sources_come_late() -> None:
    assert layout.layers(DIAMOND) == {"a": 0, "b": 1, "c": 1, "d": 2, "late": 2, "e": 3}


def test_boxes_of_a_layer_do_not_overlap_and_edges_arrive() -> None:
    many = {f"n{place}": [f"n{other}" for other in range(place) if (place * other) % 5 == 1] for place in range(45)}
    for parents in (DIAMOND, many):
        placed = layout.place(parents)
        for name, (x, row) in placed.boxes.items():
            others = [at for other, (at, layer) in placed.boxes.items() if layer == row and other != name]
            assert all(abs(x - at) > layout.BOX - 1e-9 for at in others)
            assert layout.BOX / 2 - 1e-9 <= x <= placed.width - layout.BOX / 2 + 1e-9
        for parent, child, points in placed.edges:
            assert points[0] == placed.boxes[parent]
            assert points[-1] == placed.boxes[child]
            assert [row for _, row in points] == list(range(points[0][1], points[-1][1] + 1))
        assert len(placed.edges) == sum(map(len, parents.values()))
        assert layout.place(parents) == placed


def test_lines_are_untangled() -> None:
    crossed = {"a": [], "b": [], "c": [], "x": ["c"], "y": ["b"], "z": ["a"]}
    boxes = layout.place(crossed).boxes
    assert (boxes["a"][0] < boxes["c"][0]) == (boxes["z"][0] < boxes["x"][0])
    assert layout.place({}).boxes == {}
