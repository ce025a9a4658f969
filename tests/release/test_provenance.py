"""Descent from Gemma by every path, and whose licence is known."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from release.lineages import foreign, made, rows, traced

from alignment import artifacts
from alignment.artifacts import Artifact
from alignment.errors import UserError
from alignment.release import provenance

Given = tuple[str, Artifact]


def gemma(tmp_path: Path) -> Given:
    one = foreign(tmp_path / "weights")
    return one.step, one


def trained(store: Path, base: Given) -> Artifact:
    data = ("step:rows", rows(store))
    return made(store, "model", "sft", "policy", {"model.weights": base, "data": data})


def merged(store: Path, base: Given) -> Artifact:
    other = made(store, "other", "pretrain", "policy")
    return made(store, "merge", "merge", "policy", {"models.0": ("step:other", other), "models.1": base})


def taught(store: Path, teacher: Given) -> Artifact:
    answers = made(store, "teach", "teach", "dataset", {"prompts": ("p", rows(store)), "teacher": teacher})
    return trained_on(store, answers)


def trained_on(store: Path, data: Artifact) -> Artifact:
    base = made(store, "base", "pretrain", "policy")
    parents = {"model.weights": ("step:base", base), "data": ("step:data", data)}
    return made(store, "model", "sft", "policy", parents)


def pooled(store: Path, answers: Given) -> Artifact:
    return trained_on(store, made(store, "pool", "reject", "dataset", {"policy": answers}))


def compared(store: Path, answers: Given) -> Artifact:
    pairs = made(store, "pairs", "pairs", "answers", {"models.0": answers})
    labels = made(store, "label", "label", "dataset", {"pairs": ("step:pairs", pairs)})
    reward = made(store, "reward", "reward", "reward", {"data": ("step:label", labels)})
    base = made(store, "base", "pretrain", "policy")
    return made(store, "model", "rl", "policy", {"policy": ("b", base), "reward.model": ("r", reward)})


def distilled(store: Path, teacher: Given) -> Artifact:
    base = made(store, "base", "pretrain", "policy")
    return made(store, "model", "distill", "policy", {"model.weights": ("b", base), "teacher": teacher})


@pytest.mark.parametrize("path", [trained, merged, taught, pooled, compared, distilled])
def test_descent_goes_every_way(path: Callable[[Path, Given], Artifact], tmp_path: Path) -> None:
    model = path(tmp_path / "a", gemma(tmp_path))
    found = traced(tmp_path / "a", model)
    assert len(found.gemma) == 1
    assert found.gemma[0].startswith("dir:weights, ")
    assert found.unknown == ()
    harmless = path(tmp_path / "b", ("gold:overall", artifacts.named("gold", "overall")))
    assert traced(tmp_path / "b", harmless).gemma == ()


def hub(tmp_path: Path, name: str) -> Given:
    return f"hf:{name}", Artifact(tmp_path / "nowhere", "foreign", "", f"hf:{name}", "c" * 40)


@pytest.mark.parametrize(
    ("name", "descends"), [("google/gemma-2-2b@main", True), ("unsloth/gemma-2b-it", True), ("mistral/small", False)]
)
def test_hub_repositories_by_their_names(name: str, descends: bool, tmp_path: Path) -> None:
    assert bool(traced(tmp_path, trained(tmp_path, hub(tmp_path, name))).gemma) == descends


@pytest.mark.parametrize(("name", "descends"), [("gemma-3-27b-it", True), ("Gemma", True), ("gpt-9", False)])
def test_models_behind_a_server_by_their_names(name: str, descends: bool, tmp_path: Path) -> None:
    found = traced(tmp_path, taught(tmp_path, (f"endpoint:{name}", artifacts.named("endpoint", name))))
    assert bool(found.gemma) == descends
    assert bool(found.unknown) != descends, "whose terms they are under is not known of another"
    told = traced(tmp_path, artifacts.load(next(tmp_path.glob("lab/model-*"))), f"endpoint:{name}=CC0-1.0")
    assert (told.gemma, told.unknown) == ((), ())
    assert "CC0-1.0" in told.licences


def test_ours_is_no_gemma_whatever_its_shape(tmp_path: Path) -> None:
    base = made(tmp_path, "gemma_mini", "pretrain", "policy")
    (base.path / "config.json").write_text('{"model_type": "gemma2"}')
    assert traced(tmp_path, trained(tmp_path, ("step:gemma_mini", base))).gemma == ()


def test_a_foreign_folder_is_judged_by_config_and_name(tmp_path: Path) -> None:
    for name, kind, descends in (
        ("a", "gemma", True),
        ("b", "llama", False),
        ("my-Gemma", None, True),
        ("c", None, False),
    ):
        one = foreign(tmp_path / name, kind)
        found = traced(tmp_path / f"store-{name}", trained(tmp_path / f"store-{name}", (one.step, one)))
        assert bool(found.gemma) == descends, name
        assert bool(found.unknown) != descends, name


def test_the_user_says_otherwise(tmp_path: Path) -> None:
    base = gemma(tmp_path)
    model = trained(tmp_path / "store", base)
    found = traced(tmp_path / "store", model, f"{base[0]}=apache-2.0")
    assert (found.gemma, found.licences) == ((), ("MIT", "apache-2.0"))
    assert traced(tmp_path / "store", model, f"{base[0]}=gemma").gemma
    with pytest.raises(UserError, match="does not descend from dir:/other"):
        traced(tmp_path / "store", model, "dir:/other=mit")


@pytest.mark.parametrize("said", ["dir:/x", "dir:/x=", "dir:/x=unknown", "x=mit", "hf:google/gemma-2-9b=mit"])
def test_what_cannot_be_said(said: str) -> None:
    with pytest.raises(UserError, match=r"origins|is not a reference"):
        provenance.told([said])


def test_gemma_itself_and_a_gemma_that_is_gone(tmp_path: Path) -> None:
    reference, model = gemma(tmp_path)
    assert traced(tmp_path, model, reference=reference).gemma == ("dir:weights",)
    gone = foreign(tmp_path / "gemma-tuned")
    child = trained(tmp_path / "store", (gone.step, gone))
    shutil.rmtree(gone.path)
    assert traced(tmp_path / "store", child).gemma


def test_data_that_was_written_by_gemma(tmp_path: Path) -> None:
    model = trained_on(tmp_path, rows(tmp_path, licence="Gemma Terms of Use"))
    assert traced(tmp_path, model).gemma == ("the data of rows (rows_source)",)


# ── licences ─────────────────────────────────────────────────────────────────────────────────────


def test_sources_are_listed(tmp_path: Path) -> None:
    model = trained_on(tmp_path, rows(tmp_path, licence="CC-BY-NC-4.0, MIT"))
    (origin,) = traced(tmp_path, model).origins
    assert (origin.name, origin.into, origin.licence) == ("rows_source", "rows", "CC-BY-NC-4.0, MIT")
    assert origin.non_commercial


@pytest.mark.parametrize(
    ("licence", "forbids"),
    [("cc-by-nc-sa-4.0", True), ("Non-Commercial", True), ("NCSA", False), ("MIT", False), ("cc-by-4.0", False)],
)
def test_non_commercial_licences(licence: str, forbids: bool) -> None:
    assert provenance.Origin("x", "y", "a source", licence).non_commercial == forbids


@pytest.mark.parametrize("licence", ["unknown", "Unknown (scraped)", "?", "none", " other "])
def test_unknown_licences(licence: str, tmp_path: Path) -> None:
    found = traced(tmp_path, trained_on(tmp_path, rows(tmp_path, licence=licence)))
    assert found.unknown == ("rows_source, a source of rows",)


def test_a_lineage_that_breaks_off(tmp_path: Path) -> None:
    middle = trained_on(tmp_path, rows(tmp_path))
    model = made(tmp_path, "dpo", "dpo", "policy", {"model.weights": ("step:model", middle)})
    assert traced(tmp_path, model).unknown == ()
    shutil.rmtree(middle.path)
    (told,) = traced(tmp_path, model).unknown
    assert "model.weights of dpo" in told


def test_a_foreign_dataset_has_the_licence_of_its_recipe(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "pairs", None)
    declared = {"name": "pairs", "licence": "MIT", "dataset": folder.step, "hub": None}
    data = made(
        tmp_path / "store",
        "data",
        "data",
        "dataset",
        {"recipe.sources.0.dataset": (folder.step, folder)},
        settings={"recipe": {"sources": [declared]}},
    )
    found = traced(tmp_path / "store", trained_on(tmp_path / "store", data))
    assert (found.unknown, found.licences) == ((), ("MIT",))


def test_a_dataset_of_ours_brings_its_own(tmp_path: Path) -> None:
    inner = rows(tmp_path, "inner", "CC-BY-NC-4.0")
    declared = {"name": "pool", "licence": "Apache-2.0", "dataset": "step:inner", "hub": None}
    settings = {"recipe": {"sources": [declared]}}
    data = made(
        tmp_path, "mix", "data", "dataset", {"recipe.sources.0.dataset": ("step:inner", inner)}, settings=settings
    )
    assert traced(tmp_path, trained_on(tmp_path, data)).licences == ("CC-BY-NC-4.0",), "whatever a recipe says of it"
