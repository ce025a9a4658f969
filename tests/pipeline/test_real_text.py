"""Real text from beginning to end: pieces, a base model, fine-tuning; held-out loss falls at every step."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests_support import QUIET, call

from alignment.store import Store

RECIPES = Path(__file__).parents[1] / "recipes"
SHORT = ("optimisation.checkpoint_steps=1000", "engine.micro_batch=4", *QUIET)
"""Conversations of 2,000 tokens: eager attention holds a square of them for every row of a forward pass."""


def made(store: Path, name: str, *arguments: str) -> None:
    done = call(store, *arguments, f"name={name}")
    assert done.returncode == 0, done.stdout + done.stderr


def data(store: Path, shared_data: Path, recipe: str) -> None:
    made(store, recipe, "stage=data", f"recipe={RECIPES / recipe}.yaml", f"recipe.root={shared_data}")


@pytest.mark.slow
def test_books_and_articles_to_a_chat_model(shared_data: Path, tmp_path: Path) -> None:
    store = tmp_path / "runs"
    data(store, shared_data, "pretrain_text")
    made(store, "pieces", "stage=tokenizer", "data=latest:pretrain_text", "pieces=4096")
    made(
        store,
        "base",
        "stage=pretrain",
        "data=latest:pretrain_text",
        "tokenizer=latest:pieces",
        "optimisation.steps=300",
        *SHORT,
    )
    for recipe in ("qlora_oasst_val", "octopack_oasst", "oasst_en100"):
        data(store, shared_data, recipe)
        made(
            store, f"sft_{recipe}", "stage=sft", "model=latest:base", f"data=latest:{recipe}", "too_long=leave_out",
            "optimisation.steps=20", "optimisation.batch=16", *SHORT,
        )  # fmt: skip
    for step in ("base", "sft_qlora_oasst_val", "sft_octopack_oasst", "sft_oasst_en100"):
        metrics = Store(store).latest(step).metrics
        print(step, metrics["held_out_loss_before"], "→", metrics["held_out_loss"])
        assert metrics["held_out_loss"] < metrics["held_out_loss_before"] - 0.1, step


def small(store: Path, shared_data: Path, vocabulary: str, *more: str) -> None:
    """Two steps of pretraining and of fine-tuning with a vocabulary that is not ours."""
    data(store, shared_data, "octopack_oasst")
    data(store, shared_data, "wikitext2")
    made(store, "pieces", "stage=tokenizer", f"extend={shared_data / 'sentencepiece_models' / vocabulary}")
    made(
        store, "base", "stage=pretrain", "data=latest:wikitext2", "tokenizer=latest:pieces", "shape=mini_small",
        "optimisation.steps=2", *SHORT,
    )  # fmt: skip
    made(
        store, "sft", "stage=sft", "model=latest:base", "data=latest:octopack_oasst", "too_long=leave_out",
        "optimisation.steps=2", "optimisation.batch=4", *SHORT, *more,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("vocabulary", ["gemma_export_vocab.spm", "gemma3_test_vocab.spm"])
def test_a_gemma_shaped_vocabulary_of_others_trains(shared_data: Path, tmp_path: Path, vocabulary: str) -> None:
    small(tmp_path / "runs", shared_data, vocabulary)
    assert Store(tmp_path / "runs").latest("sft").metrics["held_out_loss"] > 0


@pytest.mark.slow
def test_a_vocabulary_without_turns_is_refused_until_it_is_extended(shared_data: Path, tmp_path: Path) -> None:
    from alignment.chat import tokenizers
    from alignment.errors import UserError

    name = "test_sentencepiece_with_bytefallback.model"
    with pytest.raises(UserError, match="stage=tokenizer extend="):
        tokenizers.load(shared_data / "sentencepiece_models" / name)
    small(tmp_path / "runs", shared_data, name)


@pytest.mark.slow
def test_a_lora_adapter_trains_and_is_merged(shared_data: Path, tmp_path: Path) -> None:
    store = tmp_path / "runs"
    small(store, shared_data, "gemma_export_vocab.spm", "adapter.kind=lora", "adapter.rank=4")
    made_ = Store(store).latest("sft")
    assert (made_.path / "adapter" / "adapter_model.safetensors").is_file()
    answer = call(store, "stage=chat", "model=latest:sft", "prompt=Hi", "max_new_tokens=4")
    assert answer.returncode == 0, answer.stderr
