"""The plans of distillation: what is compared differs in what is compared, and everything measured was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignment import pipeline, run
from alignment.gemma.presets import parameter_counts, shape_named
from alignment.plans.step import Step
from alignment.stages import perplexity
from alignment.store import Store

TEXT = "mini:conversations"
"""Stands for text of one's own: planning looks at the name alone."""


def laid_out(plan: str, **changes: Any) -> dict[str, Step]:
    values = run.compose("pipeline", {"pipeline": plan})["pipeline"]
    return {step.name: step for step in pipeline.steps_of(values | changes)}


def worlds(**changes: Any) -> dict[str, Step]:
    """Both worlds; the changes are the second one's."""
    values = run.compose("pipeline", {"pipeline": "distillation"})["pipeline"]
    return laid_out("distillation", real=values["real"] | {"text": TEXT} | changes)


def planned(plan: str, steps: dict[str, Step], store: Path) -> dict[str, Any]:
    maker = pipeline.Maker(Store(store), run.compose, {})
    return {one.step.name: one.settings for one in maker.plan_all(plan, list(steps.values()))}


def test_ways_of_training_differ_in_nothing_else(tmp_path: Path) -> None:
    steps = worlds()
    settings = planned("distillation", steps, tmp_path)
    pairs = [name for name in steps if "_scratch_" in name]
    assert len(pairs) == 2 * 3 * 3
    for name in pairs:
        scratch, stored = settings[name], settings[name.replace("_scratch_", "_distilled_")]
        for other in filter(None, (stored, settings.get(name.replace("_scratch_", "_live_")))):
            assert other.optimisation == scratch.optimisation
            assert (other.data, other.block, other.seed) == (scratch.data, scratch.block, scratch.seed)
            assert (other.student.shape, other.student.tokenizer) == (scratch.shape, scratch.tokenizer)
            assert other.student.weights is scratch.weights is None
            assert other.objective.model_dump() == stored.objective.model_dump()
        assert (stored.mode, stored.teacher) == ("offline", None)
    live = {name: one for name, one in settings.items() if "_live_" in name}
    assert {(one.mode, one.teacher) for one in live.values()} == {
        ("live", "step:miniature_teacher"),
        ("live", "step:real_teacher"),
    }
    assert {name.split("_")[2] for name in live} == {"small"}


def test_the_teacher_reads_the_students_rows_as_they_do(tmp_path: Path) -> None:
    settings = planned("distillation", worlds(), tmp_path)
    for world in ("miniature", "real"):
        told, student = settings[f"{world}_told"], settings[f"{world}_distilled_tiny_1"]
        assert (told.answers, told.teacher, told.data) == ("given", f"step:{world}_teacher", settings_text(world))
        assert (told.block, told.top_k, told.top_k_temperature) == (student.block, 64, student.objective.temperature)
        assert told.tail_draws == 16
        assert student.data == f"step:{world}_told"


def settings_text(world: str) -> str:
    return {"miniature": "mini:text", "real": TEXT}[world]


def test_students_are_clearly_smaller_than_their_teacher() -> None:
    values = run.compose("pipeline", {"pipeline": "distillation"})["pipeline"]
    sizes = [parameter_counts(shape_named(one["shape"]), 2048).total for one in values["sizes"].values()]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 3
    assert sizes[-1] < parameter_counts(shape_named(values["teacher"]["shape"]), 2048).total / 2


def test_a_teacher_smaller_than_a_student_is_told_and_not_refused(capsys: pytest.CaptureFixture[str]) -> None:
    laid_out("distillation")
    assert "smaller" not in capsys.readouterr().out
    laid_out("distillation", teacher={"shape": "mini_slim", "learning_rate": 4e-3})
    assert capsys.readouterr().out.count("mini_slim is smaller than its student mini_small") == 1


def test_everything_that_is_measured_was_made_and_compared_seed_by_seed(tmp_path: Path) -> None:
    steps = worlds()
    for world in ("miniature", "real"):
        said = perplexity.Settings.parse({**run.compose("perplexity", {}), **steps[f"{world}_perplexity"].settings})
        assert said.names is not None
        by_arm: dict[str, list[str]] = {}
        for model, name in zip(said.models, said.names, strict=True):
            by_arm.setdefault(name, []).append(model)
            way, size = name.split()
            assert model.startswith(f"step:{world}_{way}_{size}_")
        assert {len(set(seeds)) for seeds in by_arm.values()} == {3}
        made = {f"step:{name}" for name in steps if name.split("_")[0] == world and name.count("_") == 3}
        assert set(said.models) == made
        assert sorted(map(tuple, said.pairs)) == sorted(
            [(f"distilled {size}", f"scratch {size}") for size in ("tiny", "slim", "small")]
            + [("live small", "scratch small")]
        )
        assert said.shares == [["distilled small", "live small", "scratch small"]]
        assert {line.name: line.arms for line in said.lines or []} == {
            "scratch": ["scratch tiny", "scratch slim", "scratch small"],
            "distilled": ["distilled tiny", "distilled slim", "distilled small"],
            "live": ["live small"],
        }
        assert said.teacher == f"step:{world}_teacher"
    assert steps["report"].settings["artifacts"] == ["step:miniature_perplexity", "step:real_perplexity"]


def test_a_world_without_text_is_left_out_and_one_without_a_tokenizer_makes_its_own() -> None:
    alone = laid_out("distillation")
    assert not [name for name in alone if name.startswith("real")]
    assert alone["report"].settings["artifacts"] == ["step:miniature_perplexity"]
    both = worlds()
    assert both["real_tokenizer"].settings == {"data": TEXT, "pieces": 2048}
    assert {step.settings["tokenizer"] for name, step in both.items() if name.startswith("real_scratch")} == {
        "step:real_tokenizer"
    }
    given = worlds(tokenizer="mini:tokenizer", held_out=["mini:text", "mini:dialogues"])
    assert "real_tokenizer" not in given
    assert given["real_perplexity"].settings["data"] == ["mini:text", "mini:dialogues"]
    assert both["real_perplexity"].settings["data"] == [TEXT]


def test_nothing_live_leaves_out_what_is_kept_of_it() -> None:
    steps = laid_out("distillation", live=None)
    assert not [name for name in steps if "_live_" in name]
    assert steps["miniature_perplexity"].settings["shares"] == []


def test_shares_of_own_answers_differ_in_share_and_seed_alone(tmp_path: Path) -> None:
    steps = laid_out("on_policy")
    settings = planned("on_policy", steps, tmp_path)
    taught = {name: one for name, one in settings.items() if name.startswith("share_")}
    assert len(taught) == 9
    assert {(one.drawing.share, one.seed) for one in taught.values()} == {
        (share, seed) for share in (0.0, 0.5, 1.0) for seed in (1, 2, 3)
    }
    rest = [one.model_dump(exclude={"seed": True, "drawing": {"share"}}) for one in taught.values()]
    assert all(one == rest[0] for one in rest)
    assert {one.student.weights for one in taught.values()} == {"step:student"}
    measured = settings["on_policy"]
    assert {measured.reference} == {one.teacher for one in taught.values()}
    assert measured.names[:3] == ["λ 0"] * 3, "the others are compared with λ = 0"
    assert measured.models[-1] == "step:student"


def test_the_whole_of_it_stays_under_twenty_minutes() -> None:
    assert sum(step.budget for step in worlds().values()) <= 20 * 60
