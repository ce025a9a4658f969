"""DPO through TRL's trainer: the loss is what we mean, the reference is where training began, resuming is exact."""

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
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from alignment.errors import UserError
from alignment.gemma import core
from alignment.gemma.presets import Shape, TokenIds
from alignment.objectives.preference import dpo_loss
from alignment.training import checkpoints, direct, loop, policies
from alignment.training.engine import Engine, EngineSettings
from alignment.training.loop import Trained
from alignment.training.model_settings import AdapterSettings
from alignment.training.optimisation import Optimisation
from alignment.training.pair_rows import PairRow, PairRows
from alignment.training.policies import Policy
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
    "checkpoint_steps": 2,
}
BETA = 0.3


def pairs(count: int = 30) -> list[PairRow]:
    """Prompts and answers of many lengths; what is chosen has more of the token 5."""
    rng = np.random.default_rng(0)

    def ids(least: int, most: int) -> list[int]:
        return rng.integers(6, VOCABULARY, rng.integers(least, most)).tolist()

    return [PairRow([2, *ids(1, 14)], [5, *ids(0, 9), 5, 1], [*ids(1, 12), 1], 0.0) for _ in range(count)]


def engine(**changes: object) -> Engine:
    values = {
        "device": "cpu",
        "precision": "fp32",
        "micro_batch": None,
        "layout": "auto",
        "gradient_checkpointing": False,
        "zero": 0,
        "loss_chunk": 16,
    }
    settings = EngineSettings.parse({**values, **changes})
    return Engine("cpu", settings.precision == "bf16", False, 1, settings)


def fresh(*, adapter: bool = False, adapter_dropout: float = 0.0, seed: int = 0) -> nn.Module:
    """A policy to train, the same at every call."""
    policy = Policy(core.build(SHAPE, VOCABULARY, TokenIds(), seed), None, "gemma2")  # type: ignore[arg-type]
    if adapter:
        torch.manual_seed(5)
        policy = policies.adapt(policy, AdapterSettings(kind="lora", rank=2, alpha=4.0, dropout=adapter_dropout))
    return policy.model


def logprobs(model: nn.Module, how: Engine | None = None) -> np.ndarray:
    return direct.pair_logprobs(model, pairs(), pad_id=0, engine=how or engine())


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    GemmaTokenizer().save_pretrained(folder)
    return folder


def run(
    out: Path,
    tokenizer_folder: Path,
    model: nn.Module,
    how: Engine | None = None,
    reference_PA: np.ndarray | None = None,
    **changes: object,
) -> Trained:
    out.mkdir(exist_ok=True)
    how = how or engine()
    return direct.train(
        model,
        PairRows.gather(pairs()),
        logprobs(fresh(), how) if reference_PA is None else reference_PA,
        beta=BETA,
        title="test",
        out=out,
        tokenizer_folder=tokenizer_folder,
        pad_id=0,
        numbers=Optimisation.parse({**NUMBERS, **changes}),
        engine=how,
        tracker=Tracker(TrackerSettings(wandb="off", project="test", every=1), out, {}),
        seed=3,
    )


def fit(
    out: Path, tokenizer_folder: Path, model: nn.Module | None = None, how: Engine | None = None, **changes: object
) -> nn.Module:
    model = model or fresh()
    run(out, tokenizer_folder, model, how, **changes)  # type: ignore[arg-type]
    return model


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def digest(model: nn.Module) -> str:
    return hashlib.sha256(weights(model).numpy().tobytes()).hexdigest()


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
