"""Building, attention, files."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from alignment.errors import UserError
from alignment.gemma import core
from alignment.gemma.presets import SHAPES, TokenIds

FAMILIES = ["gemma1", "gemma2"]


def test_a_seed_means_one_model_and_the_random_state_stays():
    before = torch.get_rng_state()
    one, same, other = (core.build(tiny.GEMMA2, 48, TokenIds(), seed) for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.model.layers[0].mlp.up_proj.weight, other.model.layers[0].mlp.up_proj.weight)


@pytest.mark.parametrize("name", ["mini_small", "mini_gemma1"])
def test_a_fresh_model_is_fp32_tied_and_learns(name):
    model = core.build(SHAPES[name], 128, TokenIds(), seed=0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = torch.randint(3, 128, (4, 12), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    # A fresh model knows nothing: ln 128 = 4.85 nats; Gemma 2's wider embedding spreads its logits by about 1.
    assert losses[0] == pytest.approx(4.85, abs=0.4 if SHAPES[name].family == "gemma1" else 0.8)
    assert losses[-1] < 2.5


def test_control_ids_must_be_rows_of_the_embedding():
    with pytest.raises(UserError, match="do not fit a vocabulary of 48"):
        core.build(tiny.GEMMA2, 48, TokenIds(pad=0, eos=1, bos=48), seed=0)


@pytest.mark.parametrize(
    ("family", "device", "asked", "chosen"),
    [
        ("gemma1", "cpu", "auto", "sdpa"),
        ("gemma1", "cuda", "auto", "sdpa"),
        ("gemma2", "cpu", "auto", "eager"),
        ("gemma2", "cuda:1", "auto", "flex_attention"),
        ("gemma2", "cuda", "flash_attention_2", "flash_attention_2"),
        ("gemma1", "cpu", "eager", "eager"),
    ],
)
def test_attention_by_family_and_device(family, device, asked, chosen):
    settings = core.config(tiny.SHAPES[family], 48, TokenIds())
    assert core.attention_for(settings, device, asked) == chosen


@pytest.mark.parametrize(
    ("family", "device", "asked", "why"),
    [
        ("gemma2", "cpu", "sdpa", "sdpa cannot"),
        ("gemma2", "cuda", "sdpa", "sdpa cannot"),
        ("gemma2", "cpu", "flex_attention", "no backward pass"),
        ("gemma1", "cpu", "flash_attention_2", "written for CUDA"),
        ("gemma1", "cpu", "sdpaa", "Did you mean 'sdpa'"),
    ],
)
def test_a_wrong_attention_is_refused(family, device, asked, why):
    with pytest.raises(UserError, match=why):
        core.attention_for(core.config(tiny.SHAPES[family], 48, TokenIds()), device, asked)


def test_a_built_model_uses_the_attention_of_its_family():
    assert [tiny.model(tiny.SHAPES[family]).config._attn_implementation for family in FAMILIES] == ["sdpa", "eager"]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_saved_and_loaded_here_and_by_transformers(family, tmp_path):
    model, ids = tiny.model(tiny.SHAPES[family]), tiny.ids(2, 9)
    core.save(model, tmp_path, stop_ids=(1, 40), shard_size="20KB")
    stored = {name for file in tmp_path.glob("*.safetensors") for name in load_file(file)}
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert "lm_head.weight" not in stored
    assert "model.embed_tokens.weight" in stored
    settings = json.loads((tmp_path / "config.json").read_text())
    assert (settings["vocab_size"], settings["tie_word_embeddings"]) == (tiny.VOCABULARY, True)
    assert not {"auto_map", "_attn_implementation"} & settings.keys()
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [1, 40]

    before = torch.get_rng_state()
    loaded = core.load(tmp_path)
    assert torch.equal(before, torch.get_rng_state())
    assert not loaded.training
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert core.shape_of(loaded.config) == tiny.SHAPES[family]
    state = loaded.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    vanilla = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    torch.testing.assert_close(vanilla(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)
    assert AutoConfig.from_pretrained(tmp_path).to_dict()["head_dim"] == 8


def test_loaded_in_bfloat16(tmp_path):
    core.save(tiny.model(tiny.GEMMA2), tmp_path, stop_ids=(1,))
    assert {parameter.dtype for parameter in core.load(tmp_path, dtype="bfloat16").parameters()} == {torch.bfloat16}
    with pytest.raises(UserError, match="float16"):
        core.load(tmp_path, dtype="float16")


def damaged(tensors: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    norm = "model.layers.1.post_feedforward_layernorm.weight"
    if how == "lacks":
        del tensors[norm]
    elif how == "has another shape":
        tensors[norm] = tensors[norm][:-1].clone()
    elif how == "has a superfluous model.layers.9":
        tensors["model.layers.9.mlp.up_proj.weight"] = torch.zeros(2)
    elif how == "has a superfluous lm_head":
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    return tensors


@pytest.mark.parametrize(
    "how", ["lacks", "has another shape", "has a superfluous model.layers.9", "has a superfluous lm_head"]
)
def test_weights_that_are_not_the_configs_are_refused(how, tmp_path):
    core.save(tiny.model(tiny.GEMMA2), tmp_path, stop_ids=(1,))
    file = tmp_path / "model.safetensors"
    save_file(damaged(load_file(file), how), file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=how):
        core.load(tmp_path)


def test_a_truncated_or_missing_file_is_refused(tmp_path):
    core.save(tiny.model(tiny.GEMMA2), tmp_path, stop_ids=(1,))
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="is damaged"):
        core.load(tmp_path)
    file.unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        core.load(tmp_path)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (None, "no config.json"),
        ("{", "cannot be read"),
        ('{"model_type": "llama"}', "'llama'"),
        ('{"model_type": "gemma2", "tie_word_embeddings": false}', "tie_word_embeddings"),
    ],
)
def test_what_is_no_gemma_is_refused(config, why, tmp_path):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=why):
        core.load(tmp_path)


def test_four_bits_need_cuda(tmp_path):
    core.save(tiny.model(tiny.GEMMA2), tmp_path, stop_ids=(1,))
    with pytest.raises(UserError, match="do not run on cpu"):
        core.load(tmp_path, four_bit=True)


def test_a_tokenizer_must_fit_the_embedding():
    settings = core.config(tiny.GEMMA2, 48, TokenIds())
    core.check_fits(settings, SimpleNamespace(vocab_size=48))
    with pytest.raises(UserError, match="49 pieces does not fit a model of 48"):
        core.check_fits(settings, SimpleNamespace(vocab_size=49))
