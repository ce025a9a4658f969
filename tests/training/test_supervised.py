"""The adapter to TRL: the loss is the one we mean, however the batch is cut, and a resume changes nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import GemmaTokenizer
from trl import SFTTrainer

from alignment.errors import UserError
from alignment.gemma import core
from alignment.gemma.presets import Shape, TokenIds
from alignment.training import checkpoints, loop, supervised
from alignment.training.engine import Engine, EngineSettings, batch_arithmetic
from alignment.training.held_out import held_out
from alignment.training.optimisation import Optimisation, total_steps
from alignment.training.rows import TokenRows, plan_steps
from alignment.training.tracking import Tracker, TrackerSettings, read_metrics

VOCABULARY = 64
SHAPE = Shape(
    "gemma2", 16, 2, 24, 2, 1, head_dim=8, query_scale=8, context=64, window=8, attention_cap=50.0, final_cap=30.0
)
NUMBERS = {
    "batch": 8,
    "epochs": None,
    "steps": 6,
    "learning_rate": 1e-2,
    "final_rate": 0.1,
    "warmup_share": 0.0,
    "warmup_at_least": 1,
    "weight_decay": 0.1,
    "beta1": 0.9,
    "beta2": 0.95,
    "epsilon": 1e-8,
    "clip_norm": 1.0,
    "length_window": 2,
    "snapshots": None,
    "checkpoint_steps": 2,
}


def rows(count: int = 40) -> TokenRows:
    rng = np.random.default_rng(0)
    lengths = rng.integers(6, 30, count)
    return TokenRows.gather((rng.integers(3, VOCABULARY, n), np.arange(n) > n // 3) for n in lengths)


def engine(**changes: object) -> Engine:
    values = {
        "device": "cpu",
        "precision": "fp32",
        "micro_batch": None,
        "layout": "auto",
        "gradient_checkpointing": False,
        "processes": "any",
        "zero": 0,
        "offload": False,
        "gather": True,
        "loss_chunk": 16,
        "watchdog_minutes": None,
    }
    settings = EngineSettings.parse({**values, **changes})
    return Engine("cpu", settings.precision == "bf16", settings.layout == "packed", 1, settings)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    GemmaTokenizer().save_pretrained(folder)
    return folder


def fit(out: Path, tokenizer_folder: Path, how: Engine, model: nn.Module | None = None, **changes: object) -> nn.Module:
    out.mkdir(exist_ok=True)
    model = model or core.build(SHAPE, VOCABULARY, TokenIds(), 0)
    trained = supervised.train(
        model,
        rows(),
        title="test",
        out=out,
        tokenizer_folder=tokenizer_folder,
        pad_id=0,
        numbers=Optimisation.parse({**NUMBERS, **changes}),
        engine=how,
        tracker=Tracker(TrackerSettings(wandb="off", project="test", every=1, upload="none"), out, {}),
        seed=3,
    )
    assert trained.loss == read_metrics(out / "metrics.jsonl")[-1]["loss"]
    return model


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def digest(model: nn.Module) -> str:
    return hashlib.sha256(weights(model).numpy().tobytes()).hexdigest()


def test_the_first_logged_loss_is_the_mean_over_the_batchs_trained_tokens(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    """Against a float64 cross-entropy over the planned rows, each row alone and unpadded."""
    fit(tmp_path, tokenizer_folder, engine(micro_batch=2))
    model = core.build(SHAPE, VOCABULARY, TokenIds(), 0).double()
    data, nll, tokens = rows(), 0.0, 0
    for index in next(plan_steps(data.lengths, 8, 6, 3, 2)):
        ids, trained = data.row(index)
        logits = model(torch.tensor(ids[None].astype(np.int64))).logits[0, :-1]
        losses = nn.functional.cross_entropy(logits, torch.tensor(ids[1:].astype(np.int64)), reduction="none")
        nll += losses[torch.tensor(trained[1:])].sum().item()
        tokens += int(trained[1:].sum())
    # fp32 against float64 over a few hundred tokens: relative error well below 1e-5.
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["loss"] == pytest.approx(nll / tokens, rel=1e-5)


@pytest.mark.parametrize("how", [{"micro_batch": 2}, {"layout": "packed"}, {"micro_batch": 4, "layout": "packed"}])
def test_micro_batches_and_packing_do_not_change_what_is_learned(
    tmp_path: Path, tokenizer_folder: Path, how: dict[str, object]
) -> None:
    whole = fit(tmp_path / "whole", tokenizer_folder, engine())
    cut = fit(tmp_path / "cut", tokenizer_folder, engine(**how))
    # Six Adam steps of 1e-2 amplify fp32 rounding where a second moment is near zero.
    assert (weights(whole) - weights(cut)).abs().max() < 2e-4
    assert (weights(whole) - weights(core.build(SHAPE, VOCABULARY, TokenIds(), 0))).abs().max() > 1e-2


def test_training_lowers_the_held_out_loss_and_the_forward_is_given_back(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    model = core.build(SHAPE, VOCABULARY, TokenIds(), 0)
    before = held_out(model, rows(), pad_id=0, engine=engine()).mean
    fit(tmp_path, tokenizer_folder, engine(), model, steps=12)
    assert held_out(model, rows(), pad_id=0, engine=engine()).mean < before - 0.05
    assert model(torch.tensor([[2, 5, 6]])).logits.shape == (1, 3, VOCABULARY)


def test_trl_neither_tokenises_nor_truncates_nor_collates(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("TRL touched our rows")

    monkeypatch.setattr(SFTTrainer, "_prepare_dataset", never)
    monkeypatch.setattr(SFTTrainer, "compute_loss", never)
    monkeypatch.setattr("trl.trainer.sft_trainer.DataCollatorForLanguageModeling.torch_call", never)
    fit(tmp_path, tokenizer_folder, engine(), steps=1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("micro", [None, 4])
def test_stopped_and_resumed_is_bit_identical(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch, precision: str, micro: int | None
) -> None:
    how = engine(precision=precision, micro_batch=micro)
    undisturbed = fit(tmp_path / "whole", tokenizer_folder, how)

    def stop(self: object, args: object, state: object, control: object, **_: object) -> None:
        if state.global_step == 5:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.Watcher, "on_step_end", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path / "cut", tokenizer_folder, how)
    assert [path.name for path in checkpoints.newest_first(tmp_path / "cut" / "checkpoints")] == [
        "checkpoint-4",
        "checkpoint-2",
    ]
    # Another run in this process must not lend its random state.
    torch.manual_seed(99)
    resumed = fit(tmp_path / "cut", tokenizer_folder, how)
    assert digest(resumed) == digest(undisturbed)
    whole, cut = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut"))
    assert [row["step"] for row in cut] == [1, 2, 3, 4, 5, 6], "no step is lost or counted twice"
    assert [row["loss"] for row in cut] == [row["loss"] for row in whole]


def test_a_run_that_was_killed_after_its_last_checkpoint_has_nothing_left_to_do(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    undisturbed = fit(tmp_path, tokenizer_folder, engine())
    assert checkpoints.newest_first(tmp_path / "checkpoints")[0].name == "checkpoint-6"
    assert digest(fit(tmp_path, tokenizer_folder, engine())) == digest(undisturbed)


def test_a_truncated_checkpoint_is_passed_over_and_the_result_is_the_same(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    undisturbed = fit(tmp_path, tokenizer_folder, engine())
    broken = tmp_path / "checkpoints" / "checkpoint-6" / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[:-100])
    assert digest(fit(tmp_path, tokenizer_folder, engine())) == digest(undisturbed)


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path: Path, tokenizer_folder: Path) -> None:
    model = core.build(SHAPE, VOCABULARY, TokenIds(), 0)
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = float("nan")
    with pytest.raises(UserError, match="the loss is nan at step 1"):
        fit(tmp_path, tokenizer_folder, engine(), model)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    assert batch_arithmetic(64, engine(micro_batch=16)) == (16, 4)
    assert batch_arithmetic(8, engine(micro_batch=16)) == (8, 1)
    with pytest.raises(UserError, match="micro_batch=3 does not divide"):
        batch_arithmetic(8, engine(micro_batch=3))


def test_steps_come_from_epochs_or_from_steps_and_not_from_both() -> None:
    def numbers(**changes: object) -> Optimisation:
        return Optimisation.parse({**NUMBERS, **changes})

    assert total_steps(numbers(), 100) == 6
    assert total_steps(numbers(steps=None, epochs=2), 9) == 3
    for both in ({"epochs": 1}, {"steps": None}):
        with pytest.raises(UserError, match="One of them"):
            total_steps(numbers(**both), 9)
    with pytest.raises(UserError, match="no row"):
        total_steps(numbers(), 0)


def test_weights_that_are_not_finite_are_never_kept(tokenizer_folder: Path, tmp_path: Path) -> None:
    """The loss of a step is finite, its gradient is not: no checkpoint comes of it, and the step's batch is saved."""
    model = core.build(SHAPE, VOCABULARY, TokenIds(), 0)
    model.model.norm.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(UserError, match="is not finite after step 1") as caught:
        fit(tmp_path / "run", tokenizer_folder, engine(micro_batch=4), model, steps=2, checkpoint_steps=1)
    assert checkpoints.last_whole(tmp_path / "run" / "checkpoints") is None
    (file,) = tmp_path.rglob("not_a_number_0.safetensors")
    assert str(file) in str(caught.value.remedy)
    saved, data = load_file(file), rows()
    ids = torch.cat([saved["input_ids"].flatten(), saved["input_ids.1"].flatten()])
    places = next(plan_steps(data.lengths, 8, 2, 3, 2))
    assert ids.ne(0).sum() == sum(data.lengths[place] for place in places), "both micro-batches of the step"
