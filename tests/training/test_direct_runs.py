"""Training on preferences: what TRL is not asked to do, resuming, stopping, adapters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from preferring import digest, engine, fit, fresh, logprobs, run, weights
from safetensors.torch import load_file
from torch import nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2MLP
from trl import DPOTrainer

from alignment.errors import UserError
from alignment.training import checkpoints, loop
from alignment.training.tracking import read_metrics

# ── what TRL is not asked to do ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("adapter", [False, True])
def test_trl_neither_tokenises_nor_truncates_nor_collates_nor_loads_a_reference(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch, adapter: bool
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("TRL touched our rows")

    for name in ("_tokenize", "extract_prompt", "apply_chat_template", "create_model_from_path"):
        monkeypatch.setattr(f"trl.trainer.dpo_trainer.{name}", never)
    monkeypatch.setattr("trl.trainer.dpo_trainer.DataCollatorForPreference.torch_call", never)
    for name in ("compute_loss", "_compute_loss", "compute_ref_log_probs"):
        monkeypatch.setattr(DPOTrainer, name, never)
    for name in ("map", "filter", "remove_columns", "rename_column"):
        monkeypatch.setattr(Dataset, name, never)
    fit(tmp_path, tokenizer_folder, fresh(adapter=adapter), steps=1)


# ── resuming and stopping ────────────────────────────────────────────────────────────────────────

KINDS = {
    "plain": ({}, {}),
    "cut, bf16": ({}, {"micro_batch": 4, "precision": "bf16"}),
    "lora": ({"adapter": True, "adapter_dropout": 0.3}, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_and_resumed_is_bit_identical(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    made, settings = KINDS[kind]
    how = engine(**settings)
    undisturbed = fit(tmp_path / "whole", tokenizer_folder, fresh(**made), how)

    def stop(self: object, args: object, state: object, control: object, **_: object) -> None:
        if state.global_step == 3:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.Watcher, "on_step_end", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path / "cut", tokenizer_folder, fresh(**made), how)
    assert [path.name for path in checkpoints.newest_first(tmp_path / "cut" / "checkpoints")] == ["checkpoint-2"]
    model = fresh(**made)
    # Another run in this process must not lend its random state.
    torch.manual_seed(99)
    trained = run(tmp_path / "cut", tokenizer_folder, model, how)
    assert (trained.steps, trained.resumed_from, trained.amount) == (4, 2, 16)
    assert digest(model) == digest(undisturbed)
    assert digest(model) != digest(fresh(**made))
    whole, cut = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut"))
    assert [row["step"] for row in cut] == [1, 2, 3, 4], "no step is lost or counted twice"
    assert cut == whole


def test_a_loss_that_is_no_number_stops_the_run_with_the_batch_saved(tmp_path: Path, tokenizer_folder: Path) -> None:
    reference = logprobs(fresh())
    reference[4, 1] = np.nan
    with pytest.raises(UserError, match="the loss is nan at step") as caught:
        run(tmp_path, tokenizer_folder, fresh(), reference_PA=reference, steps=8)
    (file,) = tmp_path.rglob("not_a_number_*.safetensors")
    assert str(file) in str(caught.value.remedy)
    batch = load_file(file)
    assert batch["reference"].shape == (8, 2)
    assert int(batch["reference"].isnan().sum()) == 1
    assert not (tmp_path / "checkpoints" / "checkpoint-8").exists()


# ── adapters ─────────────────────────────────────────────────────────────────────────────────────


def test_an_adapter_alone_is_trained_and_no_copy_of_it_stays(tmp_path: Path, tokenizer_folder: Path) -> None:
    """TRL gives a PEFT model a second adapter as its reference."""
    model = fit(tmp_path, tokenizer_folder, fresh(adapter=True))
    before = {name: parameter.detach() for name, parameter in fresh(adapter=True).named_parameters()}
    after = {name: parameter.detach() for name, parameter in model.named_parameters()}
    assert after.keys() == before.keys()
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    # 2 layers of 7 projections, two factors each.
    assert len(moved) == 2 * 7 * 2
    assert all("lora_" in name for name in moved)
    assert list(model.peft_config) == ["default"]  # type: ignore[union-attr,arg-type]
    stored = load_file(tmp_path / "checkpoints" / "checkpoint-4" / "adapter_model.safetensors")
    assert len(stored) == 2 * 7 * 2


def test_an_adapters_dropout_is_not_silenced(tmp_path: Path, tokenizer_folder: Path) -> None:
    """TRL sets every nn.Dropout to 0 unless it is told not to."""
    without = fit(tmp_path / "without", tokenizer_folder, fresh(adapter=True))
    with_dropout = fit(tmp_path / "with", tokenizer_folder, fresh(adapter=True, adapter_dropout=0.4))
    assert (weights(without) - weights(with_dropout)).abs().max() > 1e-3


@pytest.mark.parametrize("adapter", [False, True])
def test_checkpointed_activations_give_the_same_update(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch, adapter: bool
) -> None:
    calls: list[int] = []
    forward = Gemma2MLP.forward

    def counted(self: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return forward(self, *inputs)

    reference = logprobs(fresh())
    monkeypatch.setattr(Gemma2MLP, "forward", counted)
    kept, again = fresh(adapter=adapter), fresh(adapter=adapter)
    run(tmp_path / "kept", tokenizer_folder, kept, reference_PA=reference, steps=2)
    once = len(calls)
    run(tmp_path / "again", tokenizer_folder, again, engine(gradient_checkpointing=True), reference, steps=2)
    assert once == 2 * 2
    assert len(calls) == 3 * once, "every layer is computed again in the backward pass"
    assert (weights(kept) - weights(again)).abs().max() < 1e-6
