"""A reward model and its parts: where it begins, what is added to it, and what is written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from alignment.artifacts import Artifact, foreign
from alignment.chat import tokenizers
from alignment.chat.train import train
from alignment.errors import UserError
from alignment.gemma import branches, core, heads
from alignment.gemma.branches import Tree
from alignment.gemma.heads import Scale
from alignment.gemma.presets import SHAPES, TokenIds
from alignment.training import policies, rewards
from alignment.training.engine import Engine, EngineSettings
from alignment.training.model_settings import AdapterSettings
from alignment.training.policies import Policy
from alignment.training.rewards import Reward

WORDS = ["the cat sat on the mat and looked at the moon over the river"] * 20
SETTINGS = EngineSettings(
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
)
ENGINE = Engine("cpu", False, False, 1, SETTINGS)
SCALE = Scale(0.25, False, "gemma2")
LORA = AdapterSettings(kind="lora", rank=2, alpha=8.0, dropout=0.0)


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("policy")
    tokenizer = tokenizers.load(train(WORDS, 400, out))
    model = core.build(SHAPES["mini_small"], tokenizers.padded_vocab(tokenizer.vocab_size), TokenIds(), 0)
    policies.save_policy(Policy(model, tokenizer, "gemma2"), out)
    return out


@pytest.fixture(scope="module")
def reward_folder(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model whose head is twice a fresh one's, so that it can be told from one."""
    out = tmp_path_factory.mktemp("reward")
    reward = begin(policy_folder, seed=7)
    with torch.no_grad():
        reward.model.score.weight.mul_(2)
    rewards.save(reward, out, SCALE)
    return out


def begin(folder: Path, head: Path | None = None, seed: int = 0, **more: object) -> Reward:
    taken = foreign(head, "dir:head") if head else None
    return rewards.begin(foreign(folder, "dir:trunk"), ENGINE, head=taken, head_seed=seed, **more)  # type: ignore[arg-type]


def score(model: torch.nn.Module) -> torch.Tensor:
    lines = branches.lay_out([Tree([2, 120, 300], [[301, 107, 1], [302, 303, 107, 1]])], pad_id=0)
    with torch.no_grad():
        return branches.scores(model, lines)


def test_a_policy_gets_a_fresh_head_by_its_seed(policy_folder: Path) -> None:
    one, same, other = (begin(policy_folder, seed=seed).model for seed in (3, 3, 4))
    assert torch.equal(heads.head_of(one), heads.head_of(same))
    assert not torch.equal(heads.head_of(one), heads.head_of(other))
    trunk = core.load(policy_folder).model.state_dict()
    assert all(torch.equal(trunk[name], value) for name, value in one.model.state_dict().items())


def test_a_reward_model_goes_on_with_its_own_head(reward_folder: Path) -> None:
    found = begin(reward_folder, seed=1)
    assert torch.equal(heads.head_of(found.model), heads.load_reward(reward_folder)[0].score.weight)
    assert found.schema == "gemma2"


def test_a_head_can_be_taken_from_another_reward_model(policy_folder: Path, reward_folder: Path) -> None:
    found = begin(policy_folder, reward_folder, seed=1)
    assert torch.equal(heads.head_of(found.model), heads.load_reward(reward_folder)[0].score.weight)
    assert heads.head_of(found.model).requires_grad


def test_a_head_for_a_reward_model_that_has_one_is_refused(reward_folder: Path) -> None:
    with pytest.raises(UserError, match="is a reward model and has a head"):
        begin(reward_folder, reward_folder)


def test_a_head_of_another_width_is_refused(reward_folder: Path, policy_folder: Path, tmp_path: Path) -> None:
    wide = Path(shutil.copytree(policy_folder, tmp_path / "wide"))
    core.save(core.build(replace(SHAPES["mini_small"], width=96), 448, TokenIds(), 0), wide, stop_ids=[1])
    with pytest.raises(UserError, match="for a width of 64, and the model's is 96"):
        begin(wide, reward_folder)


def test_only_policies_and_reward_models_are_begun_with(policy_folder: Path, reward_folder: Path) -> None:
    dataset = Artifact(policy_folder, "dataset", "data", "data", "f" * 64)
    with pytest.raises(UserError, match="a policy or reward is needed here"):
        rewards.begin(dataset, ENGINE, head=None, head_seed=0)
    policy = Artifact(policy_folder, "policy", "sft", "sft", "f" * 64)
    with pytest.raises(UserError, match="a reward is needed here"):
        rewards.begin(policy, ENGINE, head=policy, head_seed=0)


def test_another_shape_and_another_schema_are_refused(policy_folder: Path) -> None:
    with pytest.raises(UserError, match="its width is 64, not 2304"):
        begin(policy_folder, shape="gemma2_2b")
    plain = begin(policy_folder)
    ours = replace(foreign(policy_folder, "run:x"), kind="policy", tokens=plain.tokens)
    with pytest.raises(UserError, match="was trained with gemma2"):
        rewards.begin(ours, ENGINE, head=None, head_seed=0, schema="gemma1")
    assert plain.tokens_limit == SHAPES["mini_small"].context


def test_what_is_saved_is_a_reward_model_with_its_tokenizer(reward_folder: Path) -> None:
    assert heads.is_reward(reward_folder)
    assert heads.read_scale(reward_folder) == SCALE
    assert tokenizers.load(reward_folder).bos_id == 2
    assert (reward_folder / "chat_template.jinja").is_file()
    again = begin(reward_folder)
    assert torch.equal(score(again.model), score(heads.load_reward(reward_folder)[0]))


def test_an_adapter_stands_on_the_trunk_and_trains_the_head(policy_folder: Path, tmp_path: Path) -> None:
    adapted = rewards.adapt(begin(policy_folder, seed=3), LORA)
    trained = {name for name, parameter in adapted.model.named_parameters() if parameter.requires_grad}
    # 4 layers of 7 projections, two factors each, and the head.
    assert len([name for name in trained if "lora_" in name]) == 4 * 7 * 2
    assert {name for name in trained if "lora_" not in name} == {
        "base_model.model.score.modules_to_save.default.weight"
    }
    assert torch.equal(score(adapted.model), score(begin(policy_folder, seed=3).model))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
        heads.head_of(adapted.model).mul_(-1.5)
    wanted = score(adapted.model)
    merged = rewards.merge_adapter(adapted, begin(policy_folder, seed=3), tmp_path)
    told = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert told["target_modules"] == sorted(policies.ADAPTED), "not as a set happens to come"
    assert told["modules_to_save"] == ["classifier", "score"]
    assert torch.allclose(score(merged.model), wanted, atol=1e-5)
    assert not torch.allclose(wanted, -1.5 * score(begin(policy_folder, seed=3).model), atol=1e-2)
    rewards.save(merged, tmp_path, SCALE)
    assert torch.allclose(score(heads.load_reward(tmp_path)[0]), wanted, atol=1e-5)


def test_freezing_leaves_the_head_alone_to_be_trained(policy_folder: Path) -> None:
    reward = begin(policy_folder)
    rewards.freeze_trunk(reward)
    trained = [name for name, parameter in reward.model.named_parameters() if parameter.requires_grad]
    assert trained == ["score.weight"]


def test_dropout_is_set_on_every_layer_and_refused_where_the_kernel_has_none(policy_folder: Path) -> None:
    for reward in (begin(policy_folder), rewards.adapt(begin(policy_folder), LORA)):
        for share in (0.2, 0.0):
            rewards.set_dropout(reward, share)
            layers = core.trunk(reward.model).layers
            assert [layer.self_attn.attention_dropout for layer in layers] == [share] * 4
    core.trunk(reward.model).config._attn_implementation = "flex_attention"
    rewards.set_dropout(reward, 0.0)
    with pytest.raises(UserError, match=r"dropout=0\.1: flex_attention has no dropout"):
        rewards.set_dropout(reward, 0.1)
