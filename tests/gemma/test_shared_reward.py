"""Roles on one trunk: what acts, what scores, what is saved, a trunk in bf16, and whose adapter a reward's is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from on_one_trunk import FAMILIES, close, shared, trained, trunk
from safetensors.torch import load_file, save_file
from test_roles import batch, stir, trees, values_alone
from torch import Tensor, nn

from alignment.artifacts import Artifact, Parent
from alignment.errors import UserError
from alignment.gemma import branches, heads, roles, shared_roles
from alignment.sampling.sampler import Sampler
from alignment.training import policies

# ── what acts, what scores, what is saved ────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_what_acts_draws_what_the_merged_policy_draws(family: str) -> None:
    both = shared(family)
    stir(both)
    plain = both.plain_policy()
    assert type(plain) is type(trunk(family))
    assert {one.dtype for one in plain.parameters()} == {torch.float32}
    prompts = [tiny.ids(1, length, seed=length)[0].tolist() for length in (9, 4, 14)]
    names = ["a", "b", "c"]

    def drawn(model: nn.Module):
        sampler = Sampler(model, stop_ids=[1], pad_id=0)
        return sampler.draw(prompts, names, samples=3, max_new_tokens=12, seed=0, temperature=0.9)

    with both.acting() as actor:
        found = drawn(actor)
    wanted, frozen = drawn(plain), drawn(trunk(family))
    assert [one.ids for one in found] == [one.ids for one in wanted] != [one.ids for one in frozen]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.logprobs, other.logprobs, atol=5e-5, rtol=0)
    some = [branches.Tree(prompts[one.prompt], [one.ids]) for one in found]
    logprobs_S = both(*batch(some), 0.9).logprobs_S
    told_S = torch.tensor([one for answer in found for one in answer.logprobs])
    torch.testing.assert_close(logprobs_S, told_S, atol=5e-5, rtol=0)


@torch.no_grad()
def test_the_reward_scores_as_the_merged_one_on_disk_whoever_trains_beside_it(reward_folder: Path) -> None:
    both = shared(reward=reward_folder / "adapter")
    both.train()
    merged, _ = heads.load_reward(reward_folder, ours=True)
    lines = branches.lay_out(trees(), pad_id=0)
    wanted = branches.scores(merged, lines)
    assert wanted.std() > 0.1
    found = branches.scores(both.reward_model(), lines)
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)
    stir(both)
    assert torch.equal(branches.scores(both.reward_model(), lines), found)
    assert both.reward_model().config.max_position_embeddings == tiny.GEMMA2.context
    assert branches.shares_prompts(both.reward_model())
    assert not any(one.requires_grad for one in both.reward_model().parameters())
    with pytest.raises(AssertionError, match="without a reward model"):
        shared().reward_model()


def test_a_critic_that_begins_as_the_reward_has_its_adapter_and_its_head(reward_folder: Path) -> None:
    both = shared(critic="reward", reward=reward_folder / "adapter")
    both.train()
    merged, _ = heads.load_reward(reward_folder, ours=True)
    with torch.no_grad():
        wanted = values_alone(merged, trees())
    found = both(*batch(trees()), 1.0).values_S
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)
    scorer = {id(one) for one in both.reward_model().parameters() if one.dim() == 2}
    assert not any(id(one) in scorer for one in both.groups()["critic"]), "a copy, which is trained by itself"
    assert {len(one) for name, one in trained(both).items() if "critic" in name and "lora_A" in name} == {2}


@pytest.mark.parametrize("part", ["score.weight", "model.layers.2.mlp.up_proj.lora_B.weight"])
def test_an_adapter_of_which_a_part_is_missing_is_refused(part: str, reward_folder: Path, tmp_path: Path) -> None:
    folder = copied(reward_folder / "adapter", tmp_path)
    stored = load_file(folder / "adapter_model.safetensors")
    stored.pop(f"base_model.model.{part}")
    save_file(stored, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match=re.escape(part)):
        shared(reward=folder)


def copied(folder: Path, out: Path) -> Path:
    for path in folder.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    return out


# ── a trunk in bf16 ──────────────────────────────────────────────────────────────────────────────


def under_autocast(work: Callable[[], list[Tensor]]) -> list[Tensor]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return work()


def test_half_a_trunk_changes_no_bit_under_autocast(reward_folder: Path) -> None:
    def work(half: bool) -> list[Tensor]:
        both = shared(critic="reward", reward=reward_folder / "adapter", moves=True, half=half)
        stir(both)
        both.move_anchor(0.5)
        found = both(*batch(trees()), 0.7)
        (found.logprobs_S.mean() + found.values_S.square().mean()).backward()
        scores = branches.scores(both.reward_model(), batch(trees())[0])
        gradients = [one.grad for one in trained(both).values()]
        return [*found, both.anchor_logprobs(*batch(trees()), 0.7), scores, *gradients]

    for one, other in zip(under_autocast(lambda: work(True)), under_autocast(lambda: work(False)), strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
def test_half_a_trunk_is_the_rounded_trunk_in_fp32() -> None:
    both, rounded = shared(half=True), trunk()
    for _, _, projection in shared_roles._projections(rounded):
        projection.weight.copy_(projection.weight.bfloat16().float())
    assert torch.equal(both.anchor_logprobs(*batch(trees()), 0.7), roles.answer_logprobs(rounded, *batch(trees()), 0.7))
    assert torch.equal(both(*batch(trees()), 0.7).logprobs_S, both.anchor_logprobs(*batch(trees()), 0.7))
    kinds = {name.rpartition(".")[0].rpartition(".")[2]: one.dtype for name, one in both._anchor[0].named_parameters()}
    half = {name for name, dtype in kinds.items() if dtype == torch.bfloat16}
    assert half == set(shared_roles.ADAPTED)


@torch.no_grad()
def test_the_policy_is_saved_on_the_weights_as_they_were_where_they_are_given() -> None:
    both, whole = shared(half=True), shared()
    for model in (both, whole):
        stir(model)
    wanted = whole.plain_policy().state_dict()
    for name, weight in both.plain_policy(onto=trunk()).state_dict().items():
        close(weight, wanted[name])
    rounded = both.plain_policy().state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    assert 1e-4 < (rounded[name] - wanted[name]).abs().max() < 1e-2
    assert rounded[name].dtype == torch.float32
    with both.acting() as actor:
        drawn = Sampler(actor, stop_ids=[1], pad_id=0).draw([[2, 5]], ["a"], max_new_tokens=4, seed=0)
    assert len(drawn[0].ids) > 0


# ── whose adapter it is ──────────────────────────────────────────────────────────────────────────


def artifacts(folder: Path) -> tuple[Artifact, Artifact]:
    policy = Artifact(Path("sft"), "policy", "sft", "sft", "a" * 64)
    parents = {"model.weights": Parent("latest:sft", "a" * 64, "sft"), "data": Parent("latest:data", "d" * 64, "data")}
    return Artifact(folder, "reward", "reward", "helpfulness", "b" * 64, parents=parents), policy


def test_a_rewards_adapter_is_found_beside_it(reward_folder: Path) -> None:
    reward, policy = artifacts(reward_folder)
    assert shared_roles.reward_adapter(reward, policy) == reward_folder / "adapter"


def test_one_that_stands_on_another_trunk_is_refused(reward_folder: Path) -> None:
    reward, policy = artifacts(reward_folder)
    with pytest.raises(UserError, match=r"helpfulness: its adapter was trained on latest:sft \(aaaaaaaa\).*cccccccc"):
        shared_roles.reward_adapter(reward, replace(policy, fingerprint="c" * 64))
    for other in (
        replace(reward, parents={"data": reward.parents["data"]}),
        replace(reward, kind="foreign", parents={}),
    ):
        with pytest.raises(UserError, match="a model that no record names"):
            shared_roles.reward_adapter(other, policy)


def test_one_without_an_adapter_is_refused(tmp_path: Path) -> None:
    reward, policy = artifacts(tmp_path)
    with pytest.raises(UserError, match="without an adapter") as caught:
        shared_roles.reward_adapter(reward, policy)
    assert "stage=reward/lora model.weights=" in str(caught.value)
    with pytest.raises(UserError, match="a reward is needed here"):
        shared_roles.reward_adapter(policy, policy)


def test_adapters_stand_where_the_other_stages_put_theirs() -> None:
    assert shared_roles.ADAPTED == policies.ADAPTED


def test_a_view_has_modules_of_its_own_and_no_weight() -> None:
    model = trunk()
    other = shared_roles.view(model)
    assert {id(one) for one in other.parameters()} == {id(one) for one in model.parameters()}
    assert other.lm_head.weight is other.model.embed_tokens.weight
    other.model.layers[0].mlp.up_proj = nn.Identity()
    assert isinstance(model.model.layers[0].mlp.up_proj, nn.Linear)
