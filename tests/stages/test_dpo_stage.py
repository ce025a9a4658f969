"""``stage=dpo`` from the command line: what is trained, what is written, what is refused, and how it goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rewarding
import torch
from rewarding import ANSWERS, comparison, long_prompt, street
from safetensors.torch import load_file

from alignment import run
from alignment.artifacts import Artifact
from alignment.chat.types import prompt_key
from alignment.data import seen
from alignment.gemma import core
from alignment.stages import dpo
from alignment.store import Store
from alignment.training import direct, loop
from alignment.training.pair_rows import PairRow
from alignment.training.tracking import read_metrics

SHORT = (
    "tracker=off",
    "tracker.every=1",
    "engine.precision=fp32",
    "optimisation={steps: 6, epochs: null, batch: 8, learning_rate: 3e-3, checkpoint_steps: 2}",
)
HELD = street(16, 100)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rewarding.policy(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rewarding.pairs(tmp_path_factory.mktemp("data"), {"train": street(32), "valid": HELD})


def arguments(store: Path, model: Path, data: Path, *more: str) -> list[str]:
    return ["stage=dpo", f"store={store}", f"model=dir:{model}", f"data=dir:{data}", *SHORT, *more]


def trained(store: Path, model: Path, data: Path, *more: str, name: str = "dpo") -> Artifact:
    assert run.door([*arguments(store, model, data, *more), f"name={name}"]) == 0
    return Store(store).latest(name)


@pytest.fixture(scope="module")
def made(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A policy that nobody changes."""
    return trained(tmp_path_factory.mktemp("made"), model, data)


# ── what is written ──────────────────────────────────────────────────────────────────────────────


def test_the_record_is_that_of_a_policy(made: Artifact, model: Path, data: Path) -> None:
    assert made.verify() == []
    assert (made.kind, made.headline) == ("policy", "accuracy")
    assert made.parents["data"].reference == f"dir:{data}"
    assert made.tokens is not None
    assert (made.tokens.schema, made.tokens.padded) == ("gemma2", core.read_config(model).vocab_size)
    assert not (made.path / "checkpoints").exists()
    assert not (made.path / "parts").exists()
    assert (made.metrics["pairs"], made.metrics["steps"]) == (32, 6)
    before, after = load_file(model / "model.safetensors"), load_file(made.path / "model.safetensors")
    assert before.keys() == after.keys()
    assert not torch.equal(before["model.norm.weight"], after["model.norm.weight"])


def test_it_has_seen_what_it_learned_from_and_not_what_it_was_measured_on(made: Artifact) -> None:
    assert set(seen.read(made.path)) == set(seen.numbers(prompt_key(one.prompt) for one in street(32)))


def test_it_begins_at_its_reference_and_learns_what_was_preferred(made: Artifact) -> None:
    rows = read_metrics(made.path / "metrics.jsonl")
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert rows[-1]["loss"] == made.metrics["loss"] < rows[0]["loss"] - 0.05
    assert made.metrics["accuracy"] > 0.9
    assert made.metrics["held_out_loss"] < math.log(2)
    lead = 0.1 * (made.metrics["chosen_log_ratio"] - made.metrics["rejected_log_ratio"])
    assert made.metrics["lead"] == pytest.approx(lead, rel=1e-6)


def test_without_held_out_pairs_the_loss_is_the_headline(model: Path, tmp_path: Path) -> None:
    alone = rewarding.pairs(tmp_path / "data", {"train": street(16)})
    made = trained(tmp_path, model, alone)
    assert made.headline == "loss"
    assert "accuracy" not in made.metrics


def test_a_larger_beta_stays_nearer_to_the_reference(made: Artifact, model: Path, data: Path, tmp_path: Path) -> None:
    near = trained(tmp_path, model, data, "beta=5", "optimisation.steps=24")
    far = trained(tmp_path, model, data, "beta=0.05", "optimisation.steps=24", name="far")
    moved = [abs(one.metrics["chosen_log_ratio"] - one.metrics["rejected_log_ratio"]) for one in (near, far)]
    assert moved[0] < 0.6 * moved[1]


def test_the_same_settings_give_the_same_bytes(made: Artifact, model: Path, data: Path, tmp_path: Path) -> None:
    again, other = trained(tmp_path, model, data), trained(tmp_path, model, data, "seed=1", name="other")
    assert (again.fingerprint, again.files) == (made.fingerprint, made.files)
    assert other.files["model.safetensors"] != made.files["model.safetensors"]


def test_an_adapter_is_merged_and_kept(model: Path, data: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    made = trained(tmp_path, model, data, "adapter={kind: lora, rank: 4, alpha: 8}", "optimisation.learning_rate=1e-2")
    rows = read_metrics(made.path / "metrics.jsonl")
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert made.metrics["accuracy"] > 0.9
    found, before = load_file(made.path / "model.safetensors"), load_file(model / "model.safetensors")
    moved = {name for name in before if not torch.equal(found[name], before[name])}
    assert moved == {name for name in before if name.rsplit(".", 2)[-2].endswith("_proj")}
    wrapped: Any = PeftModel.from_pretrained(core.load(model), made.path / "adapter")
    ids = torch.tensor([[2, 300, 310, 320, 1]])
    assert torch.allclose(wrapped(ids).logits, core.load(made.path)(ids).logits, atol=1e-5)


def test_zephyrs_values_are_a_preset() -> None:
    values = run.configure(run.read(["stage=dpo/zephyr"]))
    wanted = {"batch": 128, "epochs": 2, "learning_rate": 5e-7, "final_rate": 0.0, "warmup_share": 0.1, "beta2": 0.999}
    assert values["beta"] == 0.05
    assert {key: values["optimisation"][key] for key in wanted} == wanted


# ── stopped and started again ────────────────────────────────────────────────────────────────────


class Counted:
    """Stands in the place of :func:`direct.pair_logprobs`: counts the pairs, and stops for good after some calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, patience: int | None = None) -> None:
        self._plain, self._patience, self.asked = direct.pair_logprobs, patience, list[int]()
        monkeypatch.setattr(direct, "pair_logprobs", self)

    def __call__(self, model: torch.nn.Module, rows: Sequence[PairRow], **more: Any) -> np.ndarray:
        if len(self.asked) == self._patience:
            raise KeyboardInterrupt
        self.asked.append(len(rows))
        return self._plain(model, rows, **more)


@pytest.mark.parametrize("at", ["reference", "training", "measuring"])
def test_stopped_anywhere_it_ends_with_the_same_bits(
    at: str, made: Artifact, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference of 32 and 16 pairs comes in four parts and two; what has been computed is not computed again."""
    monkeypatch.setattr(dpo, "PAIRS_A_PART", 8)

    def stop(self: object, args: object, state: Any, control: object, **_: object) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        first = Counted(patch, {"reference": 3, "training": None, "measuring": 6}[at])
        if at == "training":
            patch.setattr(loop.Watcher, "on_step_end", stop)
        assert run.door([*arguments(tmp_path, model, data), "name=dpo"]) == 130
    assert first.asked == [8] * {"reference": 3, "training": 6, "measuring": 6}[at]
    again = Counted(monkeypatch)
    ended = trained(tmp_path, model, data)
    assert again.asked == ([8, 8, 8, 16] if at == "reference" else [16])
    assert ended.files == made.files
    assert ended.metrics == made.metrics


# ── what is refused, and what is listed ──────────────────────────────────────────────────────────


def refused(capfd: pytest.CaptureFixture[str], store: Path, model: Path, data: Path, *more: str) -> str:
    """What was said, in one line."""
    assert run.door(arguments(store, model, data, *more)) == 2
    said = " ".join("".join(capfd.readouterr()).split())
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("beta=0", "beta=0"),
        ("beta=-0.1", "beta=-0.1"),
        ("too_long=cut", "'refuse', 'leave_out' or 'shorten'"),
        ("margins=small", "margins: stage=dpo has no such key"),
        ("max_left_out=2", "max_left_out=2"),
    ],
)
def test_settings_that_mean_nothing(
    change: str, told: str, model: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert told in refused(capfd, tmp_path, model, data, change)


def test_data_that_cannot_be_learned_from(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    answers = rewarding.drawing.dataset(tmp_path / "answers", "conversations", {"train": ANSWERS}).path
    assert "holds no comparisons" in refused(capfd, tmp_path, model, answers)
    held_only = rewarding.pairs(tmp_path / "held", {"valid": street(8)})
    assert "has no split 'train'" in refused(capfd, tmp_path, model, held_only)
    assert "is not a dataset" in refused(capfd, tmp_path, model, model)


def test_a_reward_model_is_no_policy(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        rewarding.Given.instead(patch)
        made = rewarding.trained(tmp_path, model, data)
    assert "a policy is needed here, and this is of kind reward" in refused(
        capfd, tmp_path, made.path, data, f"model=run:{made.path}"
    )


@pytest.mark.parametrize(("how", "left"), [("refuse", 2), ("leave_out", 2), ("shorten", 1)])
def test_pairs_that_are_too_long(
    how: str, left: int, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of ten pairs one is too long, and one is so even without its earlier turns."""
    rows = [*street(8), comparison(8, prompt=long_prompt(4)), comparison(9, chosen="The baker. " * 60)]
    data = rewarding.pairs(tmp_path / "data", {"train": rows, "valid": HELD})
    said = refused(capfd, tmp_path, model, data, f"too_long={how}")
    if how == "refuse":
        assert "2 pairs of 10 are too long, p-8 with " in said
        return
    assert f"{left} of 10 pairs do not fit, more than max_left_out=0.05" in said
    made = trained(tmp_path, model, data, f"too_long={how}", "max_left_out=0.2")
    assert made.metrics["pairs"] == 10 - left
    listed = [json.loads(line) for line in (made.path / "train_left_out.jsonl").read_text().splitlines()]
    assert [(row["id"], row["kept"]) for row in listed] == [("p-8", left == 1), ("p-9", False)]
