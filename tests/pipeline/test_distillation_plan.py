"""The whole plans of distillation with numbers that teach nothing: every step ends, tables and page are there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests_support import QUIET, call

from alignment.store import Store

WORDS = ("the", "cat", "sat", "on", "mat", "and", "looked", "at", "moon", "over", "river", "until", "morning", "came")


def books(folder: Path) -> None:
    """Text files whose passages are all different."""
    folder.mkdir()
    for book in range(3):
        paragraphs = [
            " ".join(f"{WORDS[(book + line * word) % len(WORDS)]}{line if word % 9 == 0 else ''}" for word in range(90))
            for line in range(40)
        ]
        (folder / f"{book}.txt").write_text(f"Book {book}.\n\n" + "\n\n".join(paragraphs) + "\n")


def made(store: Path, *arguments: str) -> str:
    done = call(store, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_distillation_on_the_miniature_and_on_text_of_ones_own(tmp_path: Path) -> None:
    store = tmp_path / "runs"
    books(tmp_path / "books")
    few = [
        f"recipe.sources.0.miniature.{split}.rows={rows}"
        for split, rows in (("train", 300), ("valid", 40), ("test", 40))
    ]
    made(store, "stage=data", "recipe=miniature_text", *few, "name=small")
    made(store, "stage=data", "recipe=text_files", f"recipe.root={tmp_path / 'books'}", "name=books")
    texts = {"miniature": "latest:small", "real": "latest:books"}
    own = {"tokenizer": "null", "pieces": 448, "documents": 8, "steps": 3, "teacher_steps": 3}
    numbers = [
        f"pipeline.{world}.{key}={value}"
        for world, text in texts.items()
        for key, value in {"text": text, **own}.items()
    ]
    command = [
        "stage=pipeline",
        "pipeline=distillation",
        "pipeline.seeds=[1,2]",
        "pipeline.batch=4",
        "pipeline.teacher_batch=4",
        *numbers,
        *QUIET,
    ]
    told = made(store, *command)
    assert "the share of a gain that another arm keeps" in told
    for world in ("miniature", "real"):
        measured = Store(store).latest(f"{world}_perplexity")
        results = json.loads((measured.path / "results.json").read_text())
        (dataset,) = results["arms"]
        assert len(results["arms"][dataset]) == 7
        for pair in ("distilled tiny - scratch tiny", "live small - scratch small"):
            assert len(results["differences"][dataset][pair]["seeds"]) == 2
        first = [Store(store).latest(f"{world}_{way}_small_1") for way in ("scratch", "distilled", "live")]
        assert len({one.notes["tokens_processed"] for one in first}) == 1, "equal tokens"
        # Few pieces and many likeliest ones: what is stored is nearly the whole.
        losses = results["arms"][dataset]
        assert losses["distilled small"]["loss"]["estimate"] == pytest.approx(
            losses["live small"]["loss"]["estimate"], rel=0.02
        )
    page = (Store(store).latest("report").path / "report.html").read_text()
    assert "Perplexity on held-out rows" in page
    assert "books (real_perplexity)" in page
    again = made(store, *command)
    assert "made" not in [word for line in again.splitlines() for word in line.split()[1:2]], "all of it is reused"
    shown = made(store, "stage=show", "target=latest:real_perplexity")
    assert "live small - scratch small" in shown


@pytest.mark.slow
def test_shares_of_the_students_own_answers(smoke: Path, tmp_path: Path) -> None:
    store = tmp_path / "runs"
    shutil.copytree(smoke, store)
    parts = {"teacher": "sft", **{name: name for name in ("tokenizer", "text", "conversations", "prompts")}}
    made(
        store,
        "stage=pipeline",
        "pipeline=on_policy",
        *(f"pipeline.{key}=latest:{step}" for key, step in parts.items()),
        *("pipeline.pretrain_steps=2", "pipeline.sft_steps=2", "pipeline.steps=2", "pipeline.count=24"),
        "pipeline.seeds=[1]",
        *QUIET,
    )
    results = json.loads((Store(store).latest("on_policy").path / "results.json").read_text())
    assert {"λ 0", "λ 0.5", "λ 1", "student"} == set(results["models"])
    assert all(one["kl"]["estimate"] >= 0 for one in results["models"].values())
