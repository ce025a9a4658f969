"""The adapter to TRL's reward trainer: the loss is what we mean, however a batch is cut, and resuming is exact."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import nn
from transformers import GemmaTokenizer
from transformers.models.gemma2.modeling_gemma2 import Gemma2MLP
from trl import RewardTrainer

from alignment.errors import UserError
from alignment.gemma import core, heads
from alignment.gemma.presets import Shape, TokenIds
from alignment.training import checkpoints, loop, preferences, rewards
from alignment.training.engine import Engine, EngineSettings
from alignment.training.held_out_pairs import side_scores
from alignment.training.loop import Trained
from alignment.training.model_settings import AdapterSettings
from alignment.training.optimisation import Optimisation
from alignment.training.pair_rows import PairRow, PairRows
from alignment.training.rewards import Reward
from alignment.training.rows import plan_steps
from alignment.training.tracking import Tracker, TrackerSettings, read_metrics

VOCABULARY = 64
SHAPE = Shape(
    "gemma2", 16, 2, 24, 2, 1, head_dim=8, query_scale=8, context=64, window=8, attention_cap=50.0, final_cap=30.0
)
NUMBERS = {
    "batch": 8,
    "epochs": None,
    "steps": 4,
    "learning_rate": 1e-2,
    "final_rate": 0.1,
    "warmup_share": 0.0,
    "warmup_at_least": 1,
    "weight_decay": 0.1,
    "beta1": 0.9,
    "beta2": 0.95,
    "epsilon": 1e-5,
    "clip_norm": 1.0,
    "length_window": 2,
    "snapshots": None,
    "checkpoint_steps": 2,
}
SAFETY_WEIGHT = 0.5


def pairs(count: int = 30) -> list[PairRow]:
    """Prompts and answers of many lengths; what is chosen has more of the token 5. All margins, all labels."""
    rng = np.random.default_rng(0)

    def ids(least: int, most: int) -> list[int]:
        return rng.integers(6, VOCABULARY, rng.integers(least, most)).tolist()

    return [
        PairRow(
            [2, *ids(1, 14)],
            [5, *ids(0, 9), 5, 1],
            [*ids(1, 12), 1],
            float(rng.choice([0.0, 1 / 3, 2 / 3, 1.0, 3.0])),
            int(rng.integers(-1, 2)),
            int(rng.integers(-1, 2)),
        )
        for _ in range(count)
    ]


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
    return Engine("cpu", settings.precision == "bf16", False, 1, settings)


def fresh(*, adapter: bool = False, dropout: float = 0.0, adapter_dropout: float = 0.0) -> nn.Module:
    """A reward model to train, the same at every call."""
    reward = Reward(heads.with_head(core.build(SHAPE, VOCABULARY, TokenIds(), 0), 0), None, "gemma2")  # type: ignore[arg-type]
    rewards.set_dropout(reward, dropout)
    if adapter:
        torch.manual_seed(5)
        reward = rewards.adapt(reward, AdapterSettings(kind="lora", rank=2, alpha=4.0, dropout=adapter_dropout))
    return reward.model


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    GemmaTokenizer().save_pretrained(folder)
    return folder


def run(
    out: Path,
    tokenizer_folder: Path,
    model: nn.Module,
    how: Engine,
    safety_weight: float = SAFETY_WEIGHT,
    **changes: object,
) -> Trained:
    out.mkdir(exist_ok=True)
    return preferences.train(
        model,
        PairRows.gather(pairs()),
        safety_weight=safety_weight,
        title="test",
        out=out,
        tokenizer_folder=tokenizer_folder,
        pad_id=0,
        numbers=Optimisation.parse({**NUMBERS, **changes}),
        engine=how,
        tracker=Tracker(TrackerSettings(wandb="off", project="test", every=1, upload="none"), out, {}),
        seed=3,
    )


def fit(
    out: Path, tokenizer_folder: Path, model: nn.Module | None = None, how: Engine | None = None, **changes: object
) -> nn.Module:
    model = model or fresh()
    trained = run(out, tokenizer_folder, model, how or engine(), **changes)  # type: ignore[arg-type]
    assert trained.loss == read_metrics(out / "metrics.jsonl")[-1]["loss"]
    return model


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def digest(model: nn.Module) -> str:
    return hashlib.sha256(weights(model).numpy().tobytes()).hexdigest()


def by_name(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


# ── the loss ─────────────────────────────────────────────────────────────────────────────────────


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def logit(model: nn.Module, prompt: list[int], answer: list[int]) -> float:
    return model(input_ids=torch.tensor([[*prompt, *answer]])).logits.item()


@pytest.mark.parametrize("micro", [None, 2])
@pytest.mark.parametrize("safety_weight", [0.0, 0.5])
@torch.no_grad()
def test_the_first_logged_loss_is_the_mean_over_the_batchs_pairs(
    tmp_path: Path, tokenizer_folder: Path, safety_weight: float, micro: int | None
) -> None:
    """Against Python floats over vanilla float64 logits, every answer in a row of its own."""
    with torch.enable_grad():
        run(tmp_path, tokenizer_folder, fresh(), engine(micro_batch=micro), safety_weight, steps=1)
    model, data = fresh().double(), pairs()
    ranking, safety, right, leads, scores = 0.0, 0.0, 0.0, 0.0, 0.0
    for place in next(plan_steps(PairRows.gather(data).lengths, 8, 1, 3, 2)):
        one = data[place]
        chosen, rejected = logit(model, one.prompt, one.chosen), logit(model, one.prompt, one.rejected)
        ranking += softplus(-(chosen - rejected - one.margin)) / 8
        for score, safe in ((chosen, one.chosen_safe), (rejected, one.rejected_safe)):
            safety += {-1: 0.0, 0: softplus(score), 1: softplus(-score)}[safe] / 16
            scores += score / 16
        right, leads = right + (chosen > rejected) / 8, leads + (chosen - rejected) / 8
    assert safety > 0.2, "some answers have labels"
    (logged,) = read_metrics(tmp_path / "metrics.jsonl")
    # fp32 against float64: relative error well below 1e-5.
    assert logged["loss"] == pytest.approx(ranking + safety_weight * safety, rel=1e-5)
    assert logged.get("safety_loss", 0.0) == pytest.approx(safety if safety_weight else 0.0, rel=1e-5)
    assert logged["accuracy"] == pytest.approx(right)
    assert logged["lead"] == pytest.approx(leads, abs=1e-5)
    assert logged["score"] == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_micro_batches_do_not_change_what_is_learned(tmp_path: Path, tokenizer_folder: Path, micro: int) -> None:
    whole = fit(tmp_path / "whole", tokenizer_folder)
    cut = fit(tmp_path / "cut", tokenizer_folder, how=engine(micro_batch=micro))
    # Four Adam steps of 1e-2 amplify fp32 rounding where a second moment is near zero.
    assert (weights(whole) - weights(cut)).abs().max() < 2e-4
    assert (weights(whole) - weights(fresh())).abs().max() > 1e-2


def test_without_shared_prompts_the_same_is_learned(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a flash kernel, which takes no trees."""
    shared = fit(tmp_path / "shared", tokenizer_folder)
    monkeypatch.setattr(preferences.branches, "shares_prompts", lambda model: False)
    apart = fit(tmp_path / "apart", tokenizer_folder)
    assert (weights(shared) - weights(apart)).abs().max() < 2e-4


def test_margins_and_safety_labels_are_learned_from(tmp_path: Path, tokenizer_folder: Path) -> None:
    plain = fit(tmp_path / "plain", tokenizer_folder, safety_weight=0.0)
    safe = fit(tmp_path / "safe", tokenizer_folder, safety_weight=2.0)
    assert (weights(plain) - weights(safe)).abs().max() > 1e-3


def test_training_learns_the_pairs_and_the_forward_is_given_back(tmp_path: Path, tokenizer_folder: Path) -> None:
    model, data = fresh(), pairs()
    before = side_scores(model, data, pad_id=0, device="cpu").right.mean()
    fit(tmp_path, tokenizer_folder, model, steps=16)
    assert side_scores(model, data, pad_id=0, device="cpu").right.mean() > max(0.9, before)
    assert "forward" not in vars(model)
    assert model(input_ids=torch.tensor([[2, 5, 6]])).logits.shape == (1, 1)


# ── what TRL is not asked to do ──────────────────────────────────────────────────────────────────


def test_trl_neither_tokenises_nor_truncates_nor_collates(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("TRL touched our rows")

    monkeypatch.setattr("trl.trainer.reward_trainer._tokenize", never)
    monkeypatch.setattr("trl.trainer.reward_trainer.DataCollatorForPreference.torch_call", never)
    monkeypatch.setattr(RewardTrainer, "compute_loss", never)
    for name in ("map", "filter", "remove_columns", "rename_column"):
        monkeypatch.setattr(Dataset, name, never)
    fit(tmp_path, tokenizer_folder, steps=1)


def test_batches_are_counted_in_pairs_and_warm_up_lasts_at_least_so_many_steps(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    numbers = {"steps": 10, "warmup_share": 0.03, "warmup_at_least": 5, "checkpoint_steps": 100}
    trained = run(tmp_path, tokenizer_folder, fresh(), engine(micro_batch=4), **numbers)  # type: ignore[arg-type]
    assert (trained.steps, trained.amount, trained.resumed_from) == (10, 80, None)
    rates = [row["learning_rate"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert len(rates) == 10
    assert rates[:6] == pytest.approx([0.0, 2e-3, 4e-3, 6e-3, 8e-3, 1e-2])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    # The cosine from 1e-2 to a tenth of it, 4/5 of the way: 0.1 + 0.9 · (1 + cos 0.8π) / 2 = 0.18594.
    assert rates[9] == pytest.approx(1.8594e-3, rel=1e-3)


# ── resuming and stopping ────────────────────────────────────────────────────────────────────────

KINDS = {
    "plain": ({}, {}),
    "cut, bf16": ({}, {"micro_batch": 4, "precision": "bf16"}),
    "dropout": ({"dropout": 0.3}, {"micro_batch": 4}),
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
    assert (trained.resumed_from, trained.amount) == (2, 16)
    assert digest(model) == digest(undisturbed)
    assert digest(model) != digest(fresh(**made))
    whole, cut = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut"))
    assert [row["step"] for row in cut] == [1, 2, 3, 4], "no step is lost or counted twice"
    assert cut == whole


@pytest.mark.parametrize("micro", [None, 2])
def test_a_loss_that_is_no_number_stops_the_run_with_the_batch_saved(
    tmp_path: Path, tokenizer_folder: Path, micro: int | None
) -> None:
    model = fresh()
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = float("nan")
    with pytest.raises(UserError, match="the loss is nan at step 1") as caught:
        fit(tmp_path, tokenizer_folder, model, engine(micro_batch=micro))
    (file,) = tmp_path.rglob("not_a_number_*.safetensors")
    assert str(file) in str(caught.value.remedy)
    batch = load_file(file)
    data = pairs()
    places = next(plan_steps(PairRows.gather(data).lengths, 8, 4, 3, 2))[: micro or 8]
    assert torch.allclose(batch["margin"], torch.tensor([data[place].margin for place in places]))
    assert batch["safe"].tolist() == [
        label for place in places for label in (data[place].chosen_safe, data[place].rejected_safe)
    ]
    assert batch["input_ids"].ne(0).sum() == sum(data[place].tree.tokens for place in places)
    assert len(batch["line"]) == len(batch["column"]) == 2 * len(places)
    assert not checkpoints.newest_first(tmp_path / "checkpoints")


# ── what is trained, and how ─────────────────────────────────────────────────────────────────────


def test_dropout_is_on_while_training_where_it_was_asked_for_and_off_when_measured(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    without = fit(tmp_path / "without", tokenizer_folder)
    with_dropout = fit(tmp_path / "with", tokenizer_folder, fresh(dropout=0.4))
    assert (weights(without) - weights(with_dropout)).abs().max() > 1e-3
    data = pairs(8)
    measured = [side_scores(fresh(dropout=share), data, pad_id=0, device="cpu") for share in (0.0, 0.4)]
    assert np.array_equal(measured[0].chosen, measured[1].chosen)
    training = fresh(dropout=0.4).train()
    assert np.array_equal(side_scores(training, data, pad_id=0, device="cpu").chosen, measured[0].chosen)
    assert training.training, "a model is given back as it was"


def test_an_adapters_dropout_is_not_silenced(tmp_path: Path, tokenizer_folder: Path) -> None:
    """TRL's reward trainer sets every nn.Dropout to 0 unless it is told not to."""
    without = fit(tmp_path / "without", tokenizer_folder, fresh(adapter=True))
    with_dropout = fit(tmp_path / "with", tokenizer_folder, fresh(adapter=True, adapter_dropout=0.4))
    assert (weights(without) - weights(with_dropout)).abs().max() > 1e-3


def test_linear_probing_leaves_the_trunk_as_it_was(tmp_path: Path, tokenizer_folder: Path) -> None:
    model = fresh()
    rewards.freeze_trunk(Reward(model, None, "gemma2"))  # type: ignore[arg-type]
    fit(tmp_path, tokenizer_folder, model)
    before, after = by_name(fresh()), by_name(model)
    assert {name for name in after if not torch.equal(before[name], after[name])} == {"score.weight"}


def test_an_adapter_leaves_the_trunk_as_it_was_and_trains_the_head(tmp_path: Path, tokenizer_folder: Path) -> None:
    model = fit(tmp_path, tokenizer_folder, fresh(adapter=True))
    before, after = by_name(fresh(adapter=True)), by_name(model)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    head = "base_model.model.score.modules_to_save.default.weight"
    # 2 layers of 7 projections, two factors each, and the head.
    assert head in moved
    assert len(moved) == 2 * 7 * 2 + 1
    assert all("lora_" in name for name in moved - {head})


def test_an_adapter_merged_gives_the_scores_it_gave_and_its_folder_holds_the_head(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    model, data = fit(tmp_path, tokenizer_folder, fresh(adapter=True), learning_rate=0.1), pairs()
    wanted = side_scores(model, data, pad_id=0, device="cpu")
    plain = Reward(fresh(), None, "gemma2")  # type: ignore[arg-type]
    assert abs(side_scores(fresh(), data, pad_id=0, device="cpu").chosen - wanted.chosen).max() > 0.1
    merged = rewards.merge_adapter(Reward(model, None, "gemma2"), plain, tmp_path)  # type: ignore[arg-type]
    assert isinstance(merged.model, heads.RewardModel)
    found = side_scores(merged.model, data, pad_id=0, device="cpu")
    assert abs(found.chosen - wanted.chosen).max() < 1e-5
    assert abs(found.rejected - wanted.rejected).max() < 1e-5
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    (head,) = [value for name, value in stored.items() if "score" in name]
    assert torch.equal(head, heads.head_of(model))
    assert torch.equal(head, merged.model.score.weight)
    assert not any("embed_tokens" in name for name in stored)


@pytest.mark.parametrize("adapter", [False, True])
def test_checkpointed_activations_give_the_same_update(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch, adapter: bool
) -> None:
    calls: list[int] = []
    forward = Gemma2MLP.forward

    def counted(self: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return forward(self, *inputs)

    monkeypatch.setattr(Gemma2MLP, "forward", counted)
    kept = fit(tmp_path / "kept", tokenizer_folder, fresh(adapter=adapter), steps=2)
    once = len(calls)
    again = fit(
        tmp_path / "again", tokenizer_folder, fresh(adapter=adapter), engine(gradient_checkpointing=True), steps=2
    )
    assert once == 2 * 2
    assert len(calls) == 3 * once, "every layer is computed again in the backward pass"
    assert (weights(kept) - weights(again)).abs().max() < 1e-6
