"""What ``stage=reward`` refuses: with the value, the cause and the remedy, with exit code 2, without a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import rewarding
import torch
from rewarding import ANSWERS, comparison, long_prompt, street, trained
from safetensors.torch import load_file, save_file

from alignment import run
from alignment.chat.types import Conversation, messages
from alignment.gemma.presets import Shape

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rewarding.policy(tmp_path_factory.mktemp("model"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return rewarding.pairs(tmp_path / "data", {"train": street(8)})


@pytest.fixture
def refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Refused:
    """Run the stage, and give what it said in one line."""

    def ask(model: Path, data: Path, *more: str) -> str:
        assert run.door(rewarding.arguments(tmp_path / "runs", model, data, *more)) == 2
        said = " ".join("".join(capfd.readouterr()).split())
        assert "Traceback" not in said
        assert not list((tmp_path / "runs").rglob("artifact.json"))
        return said

    return ask


# ── settings ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("margins=larg", "margins='larg': there is no such table Did you mean 'large'? Known: large, none, small."),
        ("margins={significantly: 3, better: -2, slightly: 1, negligibly: 0}", "margins.better=-2: input should be"),
        ("margins={better: 1, best: 3}", "margins.best: there is no such key"),
        ("margins=3", "margins=3"),
        ("safety_weight=-0.1", "safety_weight=-0.1"),
        ("exchanged=1", "exchanged=1"),
        ("part=neck", "'all' or 'head'"),
        ("too_long=cut", "'refuse', 'leave_out' or 'shorten'"),
        ("margin=small", "margin: stage=reward has no such key"),
        ("learning_rate=1e-5", "Did you mean optimisation.learning_rate?"),
        ("data=latest:labels", "latest:labels"),
        ("head.weights=reward", "'reward' is not a reference"),
    ],
)
def test_settings_that_mean_nothing(change: str, told: str, model: Path, data: Path, refused: Refused) -> None:
    assert told in refused(model, data, change)


def test_an_adapter_on_the_head_alone(model: Path, data: Path, refused: Refused) -> None:
    said = refused(model, data, "part=head", "adapter.kind=lora")
    assert "an adapter has no part in training the head" in said
    assert "adapter.kind=none" in said


# ── data ─────────────────────────────────────────────────────────────────────────────────────────


def test_data_that_holds_no_comparisons(model: Path, tmp_path: Path, refused: Refused) -> None:
    data = rewarding.drawing.dataset(tmp_path / "answers", "conversations", {"train": ANSWERS}).path
    said = refused(model, data)
    assert "holds no comparisons" in said
    assert "stage=label" in said


def test_a_model_in_the_place_of_data(model: Path, refused: Refused) -> None:
    assert "is not a dataset" in refused(model, model)


def test_no_training_split(model: Path, tmp_path: Path, refused: Refused) -> None:
    data = rewarding.pairs(tmp_path / "data", {"valid": street(8)})
    said = refused(model, data)
    assert "has no split 'train'" in said
    assert "valid (8 rows)" in said


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ({}, "none of its answers has a label"),
        ({"chosen_safe": True, "rejected_safe": True}, "all its labelled answers are safe"),
        ({"chosen_safe": False, "rejected_safe": None}, "all its labelled answers are unsafe"),
    ],
)
def test_a_safety_loss_without_both_kinds_of_answers(
    labels: dict[str, bool | None], told: str, model: Path, tmp_path: Path, refused: Refused
) -> None:
    data = rewarding.pairs(tmp_path / "data", {"train": [comparison(2 * n, **labels) for n in range(8)]})
    said = refused(model, data, "safety_weight=1.0")
    assert "safety_weight=1: " in said
    assert told in said
    trained(tmp_path / "without", model, data)


def too_long(tmp_path: Path, split: str = "train") -> Path:
    """Three pairs of ten are too long, and one of those even without its earlier turns."""
    long = [comparison(8, prompt=long_prompt(4)), comparison(9, prompt=long_prompt(5))]
    hopeless = comparison(10, rejected="No idea. " * 60)
    rows = {"train": street(7), "valid": street(7, 100)}
    rows[split] = [*rows[split], *long, hopeless]
    return rewarding.pairs(tmp_path / "data", {"train": rows["train"], "valid": rows["valid"]})


@pytest.mark.parametrize("split", ["train", "valid"])
def test_pairs_that_are_too_long(split: str, model: Path, tmp_path: Path, refused: Refused) -> None:
    said = refused(model, too_long(tmp_path, split))
    assert "3 pairs of 10 are too long, p-8 with " in said
    assert "The model's context is 96 tokens." in said
    assert "too_long=shorten" in said


@pytest.mark.parametrize(
    ("how", "most", "left"), [("leave_out", 0.29, 3), ("shorten", 0.09, 1)], ids=["leave_out", "shorten"]
)
def test_more_left_out_than_allowed(
    how: str, most: float, left: int, model: Path, tmp_path: Path, refused: Refused
) -> None:
    said = refused(model, too_long(tmp_path), f"too_long={how}", f"max_left_out={most}")
    assert f"{left} of 10 pairs do not fit, more than max_left_out={most}" in said
    (listed,) = (tmp_path / "runs").rglob("train_left_out.jsonl")
    assert str(listed) in said
    rows = [json.loads(line) for line in listed.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["p-8", "p-9", "p-10"]
    assert sum(not row["kept"] for row in rows) == left
    trained(tmp_path / "more", model, tmp_path / "data", f"too_long={how}", f"max_left_out={left / 10}")


def test_a_context_in_which_nothing_fits(tmp_path: Path, refused: Refused) -> None:
    narrow = Shape("gemma1", 16, 1, 16, 1, 1, head_dim=16, query_scale=16, context=12)
    model = rewarding.policy(tmp_path / "narrow", shape=narrow, schema="gemma1")
    data = rewarding.pairs(tmp_path / "data", {"train": street(8)})
    assert "8 pairs of 8 are too long" in refused(model, data)
    assert "8 of 8 pairs do not fit" in refused(model, data, "too_long=shorten")
    assert "there is no row to train on" in refused(model, data, "too_long=leave_out", "max_left_out=1")


# ── models ───────────────────────────────────────────────────────────────────────────────────────


def test_another_head_for_a_reward_model(model: Path, data: Path, tmp_path: Path, refused: Refused) -> None:
    made = trained(tmp_path / "made", model, data).path
    said = refused(made, data, f"head.weights=run:{made}")
    assert "is a reward model and has a head" in said
    assert "Start from a policy" in said


def test_a_head_that_does_not_fit(model: Path, data: Path, tmp_path: Path, refused: Refused) -> None:
    assert "A reward model gives one score." in refused(model, data, f"head.weights=dir:{model}")
    wide = Shape("gemma1", 48, 1, 16, 1, 1, head_dim=16, query_scale=16, context=96)
    other = trained(tmp_path / "other", rewarding.policy(tmp_path / "wide", shape=wide, schema="gemma1"), data).path
    said = refused(model, data, f"head.weights=run:{other}")
    assert "its head is for a width of 48, and the model's is 32" in said


def test_a_model_of_another_family(data: Path, tmp_path: Path, refused: Refused) -> None:
    other = tmp_path / "bert"
    other.mkdir()
    (other / "config.json").write_text(
        json.dumps({"model_type": "bert", "architectures": ["BertForSequenceClassification"]})
    )
    save_file({"weight": torch.zeros(2, 2)}, other / "model.safetensors")
    said = refused(other, data)
    assert "holds a model of type 'bert'" in said


def test_a_model_with_another_tokenizer(model: Path, data: Path, tmp_path: Path, refused: Refused) -> None:
    swapped, larger = tmp_path / "swapped", rewarding.policy(tmp_path / "larger", pieces=450)
    shutil.copytree(model, swapped)
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        if (larger / name).is_file():
            shutil.copy(larger / name, swapped / name)
    assert "A tokenizer of 450 pieces does not fit a model of 440" in refused(swapped, data)


@pytest.mark.parametrize("what", ["lost", "exchanged"])
def test_a_reward_model_whose_head_is_not_its_own(
    what: str, model: Path, data: Path, tmp_path: Path, refused: Refused
) -> None:
    made = trained(tmp_path / "made", model, data).path
    tensors = load_file(made / "model.safetensors")
    head = tensors.pop("score.weight")
    if what == "exchanged":
        tensors["score.weight"] = head + 1e-3
    save_file(tensors, made / "model.safetensors", {"format": "pt"})
    said = refused(made, data)
    assert ("lacks score.weight" if what == "lost" else "another head than the one that was trained") in said


def test_a_broken_model_stops_with_its_batch(model: Path, data: Path, tmp_path: Path, refused: Refused) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    said = refused(broken, data)
    assert "the loss is nan at step 1" in said
    (batch,) = (tmp_path / "runs").rglob("not_a_number_0.safetensors")
    assert str(batch) in said
    assert len(load_file(batch)["margin"]) == 8


def test_a_centre_without_answers_before_anything_is_trained(
    model: Path, data: Path, tmp_path: Path, refused: Refused
) -> None:
    said = refused(model, data, f"centre=dir:{data}")
    assert "holds no training conversations, but comparisons" in said
    assert "centre=null" in said
    only_valid = rewarding.drawing.dataset(tmp_path / "answers", "conversations", {"valid": ANSWERS}).path
    said += refused(model, data, f"centre=dir:{only_valid}")
    assert said.count("holds no training conversations") == 2
    long = Conversation((*long_prompt(6), *messages(("assistant", "The smith."))), "long")
    all_long = rewarding.drawing.dataset(tmp_path / "long", "conversations", {"train": [long]}).path
    said += refused(model, data, f"centre=dir:{all_long}")
    assert "all 1 conversations are longer than the model's context" in said
    assert "pairs/s" not in said
