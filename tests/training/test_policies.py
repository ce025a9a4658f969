"""A policy on disk: its parts fit each other, or it is refused in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from alignment.artifacts import foreign
from alignment.chat.train import train
from alignment.errors import UserError
from alignment.gemma import core
from alignment.gemma.presets import SHAPES, TokenIds
from alignment.training import policies
from alignment.training.engine import Engine, EngineSettings
from alignment.training.model_settings import AdapterSettings
from alignment.training.policies import Policy

WORDS = ["the cat sat on the mat and looked at the moon over the river"] * 20
ENGINE = Engine(
    "cpu",
    False,
    False,
    1,
    EngineSettings(
        device="cpu",
        precision="fp32",
        micro_batch=None,
        layout="auto",
        gradient_checkpointing=False,
        zero=0,
        processes="any",
        offload=False,
        gather=True,
        loss_chunk=64,
        watchdog_minutes=None,
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the shape mini_small in Hugging Face's layout, made by nobody's stage."""
    from alignment.chat import tokenizers

    out = tmp_path_factory.mktemp("model")
    tokenizer = tokenizers.load(train(WORDS, 400, out))
    model = core.build(SHAPES["mini_small"], tokenizers.padded_vocab(tokenizer.vocab_size), TokenIds(), 0)
    policies.save_policy(Policy(model, tokenizer, "gemma2"), out)
    return out


def test_a_folder_of_the_right_shape_opens(folder: Path) -> None:
    policy = policies.open_policy(foreign(folder, f"dir:{folder}"), ENGINE, shape="mini_small")
    assert policy.schema == "gemma2"
    assert policy.tokens.padded == 448
    assert set(policy.stop_ids) == {1, 107}


def test_another_shape_is_refused_with_the_number_that_differs(folder: Path) -> None:
    with pytest.raises(UserError, match="its width is 64, not 2304"):
        policies.open_policy(foreign(folder, "dir:x"), ENGINE, shape="gemma2_2b")


def test_a_tokenizer_beyond_the_embedding_is_refused(folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / "model")
    model = core.build(SHAPES["mini_small"], 384, TokenIds(), 0)
    core.save(model, tmp_path / "model", stop_ids=[1])
    with pytest.raises(UserError, match="does not fit a model of 384"):
        policies.open_policy(foreign(tmp_path / "model", "dir:x"), ENGINE)


def test_half_a_config_of_an_attempt_that_was_cut_off(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "config.json").read_text()
    (tmp_path / "config.json").write_text(whole[: len(whole) // 2])
    policies.save_policy(policies.open_policy(foreign(folder, "dir:x"), ENGINE), tmp_path)
    assert (tmp_path / "config.json").read_text() == whole


def test_an_adapter_is_merged_as_its_product(folder: Path, tmp_path: Path) -> None:
    """W + (alpha / rank) · BA: the merged model gives the adapted one's logits, and vanilla loading sees no adapter."""
    trunk = foreign(folder, "dir:x")
    adapter = AdapterSettings(kind="lora", rank=2, alpha=8.0, dropout=0.0)
    adapted = policies.adapt(policies.open_policy(trunk, ENGINE), adapter)
    trained = {name for name, parameter in adapted.model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    ids = torch.tensor([[2, 120, 300, 301]])
    wanted = adapted.model(ids).logits
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "README.md").write_text("---\nbase_model: half of")  # of an attempt that was cut off
    merged = policies.merge_adapter(adapted, trunk, tmp_path)
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    told = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert told["target_modules"] == sorted(policies.ADAPTED), "not as a set happens to come"
    assert told["base_model_name_or_path"] == folder.name, "and not where that lies on this machine"
    policies.save_policy(merged, tmp_path)
    again = policies.open_policy(foreign(tmp_path, "dir:y"), ENGINE)
    # fp32: the sum W + ΔW is formed once instead of two products.
    assert torch.allclose(again.model(ids).logits, wanted, atol=1e-4)
    assert not torch.allclose(policies.open_policy(trunk, ENGINE).model(ids).logits, wanted, atol=1e-2)


def test_a_schema_other_than_the_models_own_is_refused(folder: Path) -> None:
    from dataclasses import replace

    ours = replace(foreign(folder, "run:x"), kind="policy")
    policy = policies.open_policy(ours, ENGINE)
    ours = replace(ours, tokens=policy.tokens)
    with pytest.raises(UserError, match="was trained with gemma2"):
        policies.open_policy(ours, ENGINE, schema="gemma1")
