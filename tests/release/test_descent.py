"""Lineages are followed through all parents of all kinds, to where they end."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from release import lineages
from release.lineages import lineage, made

from alignment import artifacts
from alignment.artifacts import Artifact
from alignment.release import descent


def chain(store: Path) -> Artifact:
    """text → base → sft (with rows) → ppo (with a judge's truth)."""
    base = made(store, "base", "pretrain", "policy", {"data": ("step:text", lineages.rows(store, "text"))})
    data = ("latest:rows", lineages.rows(store))
    sft = made(store, "sft", "sft", "policy", {"model.weights": ("step:base", base), "data": data})
    gold = artifacts.named("gold", "overall")
    return made(store, "ppo", "rl", "policy", {"policy": ("step:sft", sft), "reward.model": ("gold:overall", gold)})


def names(nodes: tuple[descent.Node, ...]) -> list[str]:
    return [node.name for node in nodes]


def test_parents_come_first(tmp_path: Path) -> None:
    nodes = lineage(tmp_path, chain(tmp_path))
    assert names(nodes) == ["text", "base", "rows", "sft", "gold:overall", "ppo"]
    assert {node.name: node.uses for node in nodes}["rows"] == (descent.Use("sft", "data"),)
    assert nodes[-1].uses == ()
    assert not any(node.gone for node in nodes)
    assert [node.name for node in descent.trunk(nodes)] == ["sft", "base"]


def test_what_has_moved_is_found_by_its_fingerprint(tmp_path: Path) -> None:
    model = chain(tmp_path / "old")
    shutil.move(tmp_path / "old", tmp_path / "new")
    moved = artifacts.load(tmp_path / "new" / model.path.relative_to(tmp_path / "old"))
    assert names(lineage(tmp_path / "new", moved)) == ["text", "base", "rows", "sft", "gold:overall", "ppo"]
    nodes = lineage(tmp_path / "elsewhere", moved)
    assert (nodes[0].name, nodes[0].gone) == ("step:sft", True), "and what it came from is hidden"
    assert names(nodes) == ["step:sft", "gold:overall", "ppo"]


def test_another_artifact_in_the_same_place_is_another(tmp_path: Path) -> None:
    model = chain(tmp_path)
    sft = Path(model.parents["policy"].path)
    artifacts.finish(replace(artifacts.load(sft), fingerprint="f" * 64))
    assert lineage(tmp_path, model)[0].gone


def test_a_folder_that_is_ours_after_all_is_followed(tmp_path: Path) -> None:
    model = chain(tmp_path)
    given = artifacts.foreign(model.path, f"dir:{model.path}")
    child = made(tmp_path, "again", "sft", "policy", {"model.weights": (f"dir:{model.path}", given)})
    nodes = lineage(tmp_path, child)
    assert names(nodes) == ["text", "base", "rows", "sft", "gold:overall", "ppo", "again"]
    assert [node.name for node in descent.trunk(nodes)] == ["ppo", "sft", "base"]
    (model.path / "something.txt").write_text("other weights")
    assert lineage(tmp_path, child)[0].gone, "it is no longer what was read"


def test_a_release_of_ours_is_followed(tmp_path: Path) -> None:
    model = chain(tmp_path)
    (model.path / "release").mkdir()
    (model.path / "release" / "config.json").write_text("{}")
    artifacts.finish(model)
    given = artifacts.foreign(model.path / "release", f"dir:{model.path}/release")
    assert names(lineage(tmp_path, given, given.step))[-2:] == ["gold:overall", "ppo"]
    (model.path / "release" / "config.json").write_text('{"changed": 1}')
    given = artifacts.foreign(model.path / "release", f"dir:{model.path}/release")
    assert names(lineage(tmp_path, given, given.step)) == ["dir:release"]


def test_foreign_folders_that_are_gone_or_changed(tmp_path: Path) -> None:
    stranger = lineages.foreign(tmp_path / "stranger")
    child = made(tmp_path, "sft", "sft", "policy", {"model.weights": (stranger.step, stranger)})
    (node, _) = lineage(tmp_path, child)
    assert (node.name, node.gone, node.ours) == ("dir:stranger", False, False)
    (tmp_path / "stranger" / "weights.bin").write_text("2")
    assert lineage(tmp_path, child)[0].gone
    shutil.rmtree(tmp_path / "stranger")
    assert lineage(tmp_path, child)[0].gone


def test_a_served_scorer_is_found_in_the_store(tmp_path: Path) -> None:
    scorer = made(tmp_path, "helpful", "reward", "reward", {"data": ("step:rows", lineages.rows(tmp_path))})
    served = artifacts.named("remote", "10.0.0.7:8000", scorer.fingerprint)
    child = made(tmp_path, "ppo", "rl", "policy", {"reward.model": ("remote:10.0.0.7:8000", served)})
    assert names(lineage(tmp_path, child)) == ["rows", "helpful", "ppo"]
    unknown = artifacts.named("remote", "10.0.0.7:8000", "e" * 64)
    other = made(tmp_path, "ppo2", "rl", "policy", {"reward.model": ("remote:10.0.0.7:8000", unknown)})
    assert names(lineage(tmp_path, other)) == ["remote:a served scorer", "ppo2"], "without the address"


def test_evaluations_are_no_part_of_a_model(tmp_path: Path) -> None:
    other = made(tmp_path, "other", "sft", "policy")
    model = made(tmp_path, "sft", "sft", "policy")
    told = made(tmp_path, "versions", "evaluate", "evaluation", {"models.0": ("step:other", other)})
    parents = {"model": ("step:sft", model), "evaluations.0": ("step:versions", told)}
    assert names(lineage(tmp_path, made(tmp_path, "export", "export", "policy", parents))) == ["sft", "export"]


def test_references_are_shown_without_folders(tmp_path: Path) -> None:
    assert descent.shown("dir:/home/somebody/models/x/") == "dir:x"
    assert descent.shown("run:runs/mini/sft-1") == "run:sft-1"
    assert descent.shown("hf:google/gemma-2-2b@main") == "hf:google/gemma-2-2b@main"
