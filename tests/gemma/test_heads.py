"""The score head: how it begins, what lies on disk, and what is refused rather than drawn afresh."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from alignment.errors import UserError
from alignment.gemma import branches, core, heads
from alignment.gemma.branches import Tree
from alignment.gemma.heads import Scale
from alignment.gemma.presets import TokenIds

FAMILIES = ["gemma1", "gemma2"]
SCALE = Scale(0.75, True, "gemma2")
WIDTH = tiny.GEMMA2.width


def reward(family: str = "gemma2", seed: int = 0) -> heads.RewardModel:
    return heads.with_head(tiny.model(tiny.SHAPES[family]), seed)


# ── a fresh head ─────────────────────────────────────────────────────────────────────────────────


def test_a_fresh_head_has_the_deviation_one_over_the_root_of_width_plus_one() -> None:
    narrow = replace(tiny.GEMMA2, width=8, layers=1)
    policy = core.build(narrow, tiny.VOCABULARY, TokenIds(), 0)
    drawn = torch.cat([heads.with_head(policy, seed).score.weight.flatten() for seed in range(300)])
    # 300 · 8 draws know a standard deviation to 1/√4800 = 1.4 %; 1/√8 would be 6 % more, 1/9 two thirds less.
    assert drawn.std().item() == pytest.approx(1 / math.sqrt(8 + 1), rel=0.03)
    assert abs(drawn.mean().item()) < 3 / math.sqrt(9 * len(drawn))


def test_a_seed_means_one_head_and_the_random_state_stays() -> None:
    before = torch.get_rng_state()
    one, same, other = (reward(seed=seed).score.weight for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.shape == (1, WIDTH)
    assert one.dtype == torch.float32
    assert one.requires_grad


@pytest.mark.parametrize("family", FAMILIES)
def test_the_trunk_is_the_policys_own_and_the_policy_stays_one(family: str) -> None:
    policy = tiny.model(tiny.SHAPES[family])
    ids, before = tiny.ids(2, 7), policy.config.to_dict()
    logits = policy(ids).logits
    model = heads.with_head(policy, 0)
    assert model.model is policy.model
    assert model.score.bias is None
    assert not model.training
    assert policy.config.to_dict() == before
    assert torch.equal(policy(ids).logits, logits)
    assert model.config.num_labels == 1
    # Every parameter is a real one: nothing was left on the device without memory.
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


# ── on disk ──────────────────────────────────────────────────────────────────────────────────────

VANILLA = """
import json, sys
import torch
from transformers import AutoModelForSequenceClassification

rows, found = json.load(sys.stdin), []
for folder in sys.argv[1:]:
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    for side in ("left", "right"):
        for size in (1, 3, 8):
            logits = []
            for start in range(0, len(rows), size):
                some = rows[start : start + size]
                width = max(map(len, some))
                ids, mask = [], []
                for row in some:
                    pad, one = [0] * (width - len(row)), [1] * len(row)
                    ids.append(pad + row if side == "left" else row + pad)
                    mask.append(pad + one if side == "left" else one + pad)
                with torch.no_grad():
                    logits += model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).logits.tolist()
            found.append([type(model).__name__, f"{side} {size}", logits])
print(json.dumps(found))
"""
TREES = [
    Tree([2, 9, 8, 7, 6, 5], [[30, 31, 1], [32, 1]]),
    Tree([2, 40], [[41, 42, 43, 44, 45, 46, 47, 12, 13, 1]]),
    Tree([2, *range(10, 30)], [[3, 1], [4, 5, 6, 1], [1]]),
    Tree([2, 11, 12], [[13, 14, 1], [15, 15, 15, 1]]),
]


def test_vanilla_transformers_gives_our_raw_scores_in_a_fresh_process(tmp_path: Path) -> None:
    rows = [[*tree.prompt, *answer] for tree in TREES for answer in tree.answers]
    wanted = {}
    for family in FAMILIES:
        heads.save_reward(reward(family), tmp_path / family, SCALE)
        model, _ = heads.load_reward(tmp_path / family)
        with torch.no_grad():
            raw = branches.scores(model, branches.lay_out(TREES, pad_id=0)).tolist()
        assert len(raw) == 8
        assert max(raw) - min(raw) > 0.5, "scores that hardly differ would show nothing"
        wanted[type(model).__name__] = raw
    assert list(wanted) == ["GemmaForSequenceClassification", "Gemma2ForSequenceClassification"]
    done = subprocess.run(
        [sys.executable, "-c", VANILLA, *(str(tmp_path / family) for family in FAMILIES)],
        input=json.dumps(rows),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 2 * 6
    for kind, how, logits in found:
        assert [len(row) for row in logits] == [1] * 8
        assert [row[0] for row in logits] == pytest.approx(wanted[kind], abs=1e-5), (kind, how)


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded_is_the_same_bits_in_one_file_and_in_shards(family: str, tmp_path: Path) -> None:
    model = reward(family)
    heads.save_reward(model, tmp_path / "whole", SCALE)
    heads.save_reward(model, tmp_path / "shards", SCALE, shard_size="20KB")
    assert len(list((tmp_path / "whole").glob("*.safetensors"))) == 1
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for name in ("whole", "shards"):
        loaded, scale = heads.load_reward(tmp_path / name)
        assert scale == SCALE
        assert not loaded.training
        state = loaded.state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
        stored = {key for file in (tmp_path / name).glob("*.safetensors") for key in load_file(file)}
        assert "score.weight" in stored
        assert "lm_head.weight" not in stored
        assert heads.is_reward(tmp_path / name)


def test_a_new_scale_leaves_the_weights_and_the_digest_as_they_are(tmp_path: Path) -> None:
    heads.save_reward(reward(), tmp_path, Scale(0.0, False, "gemma1"), shard_size="20KB")
    digest = json.loads((tmp_path / "config.json").read_text())["reward"]["head_digest"]
    before = {file.name: file.read_bytes() for file in tmp_path.glob("*.safetensors")}
    heads.write_scale(tmp_path, SCALE)
    assert heads.read_scale(tmp_path) == SCALE
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["reward"] == {"centre": 0.75, "absolute": True, "schema": "gemma2", "head_digest": digest}
    assert before == {file.name: file.read_bytes() for file in tmp_path.glob("*.safetensors")}
    assert heads.load_reward(tmp_path)[1] == SCALE


def test_the_scale_survives_loading_and_saving_again(tmp_path: Path) -> None:
    heads.save_reward(reward(), tmp_path / "one", Scale(-1.25, False, "gemma1"))
    model, scale = heads.load_reward(tmp_path / "one")
    assert scale is not None
    heads.save_reward(model, tmp_path / "two", scale)
    assert heads.load_reward(tmp_path / "two")[1] == Scale(-1.25, False, "gemma1")


def test_a_strangers_reward_model_has_no_scale(tmp_path: Path) -> None:
    reward().save_pretrained(tmp_path)
    model, scale = heads.load_reward(tmp_path)
    assert scale is None
    assert model.score.weight.shape == (1, WIDTH)


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    heads.save_reward(reward(), folder, SCALE)
    return folder


def tensors_of(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    return spoil


def config_of(**values: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return spoil


def without_head(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["score.weight"]


def renamed(tensors: dict[str, torch.Tensor]) -> None:
    tensors["classifier.weight"] = tensors.pop("score.weight")


def redrawn(tensors: dict[str, torch.Tensor]) -> None:
    tensors["score.weight"] = torch.randn(tensors["score.weight"].shape) / math.sqrt(WIDTH + 1)


def nudged(tensors: dict[str, torch.Tensor]) -> None:
    tensors["score.weight"][0, 3] = torch.nextafter(tensors["score.weight"][0, 3], torch.tensor(9.0))


def with_bias(tensors: dict[str, torch.Tensor]) -> None:
    tensors["score.bias"] = torch.zeros(1)


def of_a_narrower_model(tensors: dict[str, torch.Tensor]) -> None:
    tensors["score.weight"] = tensors["score.weight"][:, :-1].clone()


TWO_LABELS = {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (tensors_of(without_head), r"lacks score\.weight"),
        (tensors_of(renamed), r"lacks score\.weight"),
        (tensors_of(redrawn), "another head than the one that was trained"),
        (tensors_of(nudged), "another head than the one that was trained"),
        (tensors_of(with_bias), r"superfluous score\.bias"),
        (tensors_of(of_a_narrower_model), r"another shape of score\.weight"),
        (config_of(**TWO_LABELS), "has 2 labels"),
        (config_of(reward={"centre": 0.0, "absolute": False, "schema": "gemma2"}), "another head"),
    ],
)
def test_a_head_that_was_not_trained_is_refused(spoil: Callable[[Path], None], why: str, saved: Path, tmp_path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "copy"))
    heads.load_reward(folder)
    spoil(folder)
    with pytest.raises(UserError, match=why):
        heads.load_reward(folder)


def test_a_lost_head_in_shards_is_refused(tmp_path: Path) -> None:
    heads.save_reward(reward(), tmp_path, SCALE, shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    (tmp_path / index["weight_map"]["score.weight"]).unlink()
    with pytest.raises(UserError, match="has no model-"):
        heads.load_reward(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_policy_is_no_reward_model(family: str, tmp_path: Path) -> None:
    core.save(tiny.model(tiny.SHAPES[family]), tmp_path, stop_ids=(1,))
    assert not heads.is_reward(tmp_path)
    assert heads.read_scale(tmp_path) is None
    with pytest.raises(UserError, match="has 2 labels"):
        heads.load_reward(tmp_path)
    config_of(id2label={"0": "reward"}, label2id={"reward": 0})(tmp_path)
    with pytest.raises(UserError, match=r"lacks score\.weight"):
        heads.load_reward(tmp_path)


def test_what_is_no_model_at_all_is_refused(tmp_path: Path) -> None:
    assert not heads.is_reward(tmp_path)
    with pytest.raises(UserError, match=r"no config\.json"):
        heads.load_reward(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        heads.is_reward(tmp_path)


def test_an_adapter_is_not_saved_as_a_model(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(reward(), LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS"))
    with pytest.raises(AssertionError, match="a plain reward model is saved"):
        heads.save_reward(adapted, tmp_path, SCALE)
    with torch.no_grad():
        adapted.get_base_model().score.modules_to_save["default"].weight.fill_(2.0)
    assert heads.head_of(adapted).unique().tolist() == [2.0], "the copy that is trained, not the one beneath it"


@pytest.mark.parametrize(
    "block", [{"centre": "x"}, {"centre": math.nan}, {"absolute": "false"}, {"schema": None}], ids=str
)
def test_a_scale_that_cannot_be_read_is_refused(block: dict[str, object], saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "copy"))
    config_of(reward={"centre": 0.0, "absolute": False, "schema": "gemma2", **block})(folder)
    with pytest.raises(UserError, match="cannot be read"):
        heads.read_scale(folder)


def test_a_model_of_ours_that_lost_its_record_is_refused(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "copy"))
    config_of(reward={"somebody": "else's"})(folder)
    assert heads.load_reward(folder)[1] is None, "a foreign model may have a block of its own"
    with pytest.raises(UserError, match="has lost what says how its scores are read"):
        heads.load_reward(folder, ours=True)
