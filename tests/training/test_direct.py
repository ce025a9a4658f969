"""DPO through TRL's trainer: the loss is what we mean, the reference is where training began, resuming is exact."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from preferring import BETA, VOCABULARY, engine, fit, fresh, logprobs, pairs, run, weights
from torch import nn
from transformers import GemmaTokenizer
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from alignment.objectives.preference import dpo_loss
from alignment.training import direct
from alignment.training.pair_rows import PairRows
from alignment.training.rows import plan_steps
from alignment.training.tracking import read_metrics

# ── the loss ─────────────────────────────────────────────────────────────────────────────────────


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def test_the_loss_is_equation_7() -> None:
    """Against numpy in float64; and by hand: β 0.5, ratios 1 and −1, so −log σ(0.5 · 2) = log(1 + e⁻¹) = 0.313262."""
    rng = np.random.default_rng(1)
    values = rng.normal(-40, 20, (4, 50))
    chosen, rejected, reference_chosen, reference_rejected = values
    for beta in (0.05, 0.1, 1.0):
        gap = beta * ((chosen - reference_chosen) - (rejected - reference_rejected))
        found = dpo_loss(*torch.from_numpy(values), beta=beta)  # type: ignore[misc]
        assert found.numpy() == pytest.approx(np.logaddexp(0, -gap), rel=1e-12)
    by_hand = dpo_loss(*(torch.tensor([value]) for value in (-9.0, -21.0, -10.0, -20.0)), beta=0.5)
    assert by_hand.item() == pytest.approx(0.313262, abs=1e-6)


def test_the_gradient_raises_what_was_chosen_and_lowers_what_was_not() -> None:
    """∓β σ(−gap) of the loss: at the reference ∓β/2; where the pair is already right, less (§4 of the paper)."""
    at = torch.tensor([[-10.0, -10.0], [-4.0, -16.0]], dtype=torch.float64, requires_grad=True)
    reference = torch.full((2, 2), -10.0, dtype=torch.float64)
    dpo_loss(at[:, 0], at[:, 1], reference[:, 0], reference[:, 1], 0.2).sum().backward()
    # Of the second pair: gap 0.2 · 12 = 2.4, σ(−2.4) = 0.0831727.
    assert at.grad is not None
    assert at.grad.numpy() == pytest.approx(0.2 * np.array([[-0.5, 0.5], [-0.0831727, 0.0831727]]), rel=1e-6)


def vanilla(model: nn.Module, prompt: list[int], answer: list[int]) -> float:
    """log π(answer | prompt) of a plain forward, the answer in a row of its own."""
    logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[range(len(answer)), answer].sum().item()


@torch.no_grad()
def test_log_probabilities_are_those_of_answers_alone_whatever_stands_beside_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = fresh().double()
    wanted = np.array([[vanilla(model, one.prompt, side) for side in (one.chosen, one.rejected)] for one in pairs()])
    assert logprobs(fresh()) == pytest.approx(wanted, abs=1e-4)
    monkeypatch.setattr(direct, "TOKENS_A_BATCH", 60)
    assert logprobs(fresh()) == pytest.approx(wanted, abs=1e-4)
    monkeypatch.setattr(direct.branches, "shares_prompts", lambda model: False)
    assert logprobs(fresh()) == pytest.approx(wanted, abs=1e-4)


@torch.no_grad()
def test_measuring_leaves_dropout_out_and_the_model_as_it_was() -> None:
    training = fresh(adapter=True, adapter_dropout=0.5).train()
    with torch.no_grad():
        for name, parameter in training.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    assert np.array_equal(logprobs(training), logprobs(training))
    assert training.training


@pytest.mark.parametrize("micro", [None, 2])
def test_the_first_logged_loss_is_the_mean_over_the_batchs_pairs(
    tmp_path: Path, tokenizer_folder: Path, micro: int | None
) -> None:
    """Against Python floats over vanilla float64 logits, with another model as the reference."""
    reference = fresh(seed=9)
    run(tmp_path, tokenizer_folder, fresh(), engine(micro_batch=micro), logprobs(reference), steps=1)
    model, other, data = fresh().double(), reference.double(), pairs()
    loss, right, leads, scores = 0.0, 0.0, 0.0, 0.0
    with torch.no_grad():
        for place in next(plan_steps(PairRows.gather(data).lengths, 8, 1, 3, 2)):
            one = data[place]
            chosen, rejected = (
                BETA * (vanilla(model, one.prompt, side) - vanilla(other, one.prompt, side))
                for side in (one.chosen, one.rejected)
            )
            loss += softplus(-(chosen - rejected)) / 8
            right, leads = right + (chosen > rejected) / 8, leads + (chosen - rejected) / 8
            scores += (chosen + rejected) / 16
    (logged,) = read_metrics(tmp_path / "metrics.jsonl")
    assert abs(loss - math.log(2)) > 0.01, "the two models differ"
    assert logged["loss"] == pytest.approx(loss, abs=1e-5)
    assert logged["accuracy"] == pytest.approx(right)
    assert logged["lead"] == pytest.approx(leads, abs=1e-5)
    assert logged["score"] == pytest.approx(scores, abs=1e-5)


class Theirs(DPOTrainer):
    """TRL's own loss, on rows that are ids already."""

    def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: object) -> Dataset:
        return dataset


def test_trls_own_loss_and_gradient_are_the_same(tmp_path: Path, tokenizer_folder: Path) -> None:
    """Its rows are padded, a prompt is computed for each answer; ours share lines and prompts."""
    reference, data = logprobs(fresh(seed=9)), pairs(8)
    sides = [{"prompt_ids": one.prompt, "chosen_ids": one.chosen, "rejected_ids": one.rejected} for one in data]
    theirs = [
        row | {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        for row, (chosen, rejected) in zip(sides, reference.tolist(), strict=False)
    ]
    made = Theirs(
        model=fresh(),
        args=DPOConfig(
            output_dir=str(tmp_path),
            beta=BETA,
            max_length=None,
            precompute_ref_log_probs=True,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
        ),
        train_dataset=Dataset.from_list(theirs),
        processing_class=GemmaTokenizer.from_pretrained(tokenizer_folder),
    )
    wanted = made.compute_loss(made.model, DataCollatorForPreference(pad_token_id=0)(theirs))
    wanted.backward()

    model = fresh()
    batch = direct.DirectCollator(0, True)(
        [
            row | {"reference_chosen": chosen, "reference_rejected": rejected}
            for row, (chosen, rejected) in zip(sides, reference.tolist(), strict=False)
        ]
    )
    logprobs_PA = direct.batch_logprobs(model, batch, 16).view(-1, 2)
    found = dpo_loss(*logprobs_PA.unbind(1), *batch["reference"].unbind(1), beta=BETA).mean()  # type: ignore[misc]
    found.backward()
    assert found.item() == pytest.approx(wanted.item(), abs=1e-5)
    for (name, mine), (_, other) in zip(model.named_parameters(), made.model.named_parameters(), strict=True):
        assert torch.allclose(mine.grad, other.grad, atol=1e-5), name


@pytest.mark.parametrize(("precision", "slack"), [("fp32", 1e-6), ("bf16", 5e-3)])
@pytest.mark.parametrize("adapter", [False, True])
def test_before_the_first_step_the_policy_is_its_reference(
    tmp_path: Path, tokenizer_folder: Path, precision: str, slack: float, adapter: bool
) -> None:
    run(tmp_path, tokenizer_folder, fresh(adapter=adapter), engine(precision=precision), steps=1)
    (logged,) = read_metrics(tmp_path / "metrics.jsonl")
    assert logged["loss"] == pytest.approx(math.log(2), abs=slack)
    assert logged["lead"] == pytest.approx(0, abs=2 * slack)
    assert logged["score"] == pytest.approx(0, abs=2 * slack)
    assert logged["grad_norm"] > 0


def test_a_reference_has_the_arithmetic_of_training() -> None:
    """In bf16 a policy would otherwise stand apart from its reference by rounding: by 0.04 nats here."""
    apart = np.abs(logprobs(fresh(), engine(precision="bf16")) - logprobs(fresh()))
    assert 0.01 < apart.max() < 0.2


def test_training_prefers_what_was_chosen_and_gives_the_forward_back(tmp_path: Path, tokenizer_folder: Path) -> None:
    model = fresh()
    run(tmp_path, tokenizer_folder, model, steps=16)
    ratios = logprobs(model) - logprobs(fresh())
    assert (ratios[:, 0] > ratios[:, 1]).mean() > 0.9
    losses = [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert losses[-1] < losses[0] - 0.1
    assert "forward" not in vars(model)
    assert model(input_ids=torch.tensor([[2, 5, 6]])).logits.shape == (1, 3, VOCABULARY)


@pytest.mark.parametrize("micro", [1, 4])
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
    monkeypatch.setattr(direct.branches, "shares_prompts", lambda model: False)
    apart = fit(tmp_path / "apart", tokenizer_folder)
    assert (weights(shared) - weights(apart)).abs().max() < 2e-4
