"""Roles on one trunk: step 0, the anchor, what moves and what does not, and the mathematics of separate trunks."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from test_roles import alone, batch, stir, trees, values_alone
from torch import Tensor, nn

from alignment.artifacts import Artifact, Parent
from alignment.errors import UserError
from alignment.gemma import branches, core, heads, roles, shared_roles
from alignment.gemma.shared_roles import Shared
from alignment.sampling.sampler import Sampler
from alignment.training import policies, rewards
from alignment.training.model_settings import AdapterSettings
from alignment.training.policies import Policy
from alignment.training.rewards import Reward

FAMILIES = ["gemma1", "gemma2"]
RANK, ALPHA = 3, 6.0
LORA = AdapterSettings(kind="lora", rank=RANK, alpha=ALPHA, dropout=0.0)


def trunk(family: str = "gemma2") -> core.CausalLM:
    return tiny.model(tiny.SHAPES[family])


def shared(family: str = "gemma2", seed: int = 0, **settings) -> Shared:
    torch.manual_seed(seed)
    return Shared(trunk(family), **({"rank": RANK, "alpha": ALPHA, "critic": "policy"} | settings))


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stage=reward leaves behind with an adapter: the merged model, and adapter and head beside it."""
    out = tmp_path_factory.mktemp("reward")
    torch.manual_seed(1)
    fresh = Reward(heads.with_head(trunk(), seed=5), None, "gemma2")
    # A dropout that training had, and that neither a score nor a value may have.
    reward = rewards.adapt(fresh, LORA.model_copy(update={"rank": 2, "dropout": 0.5}))
    for parameter in reward.model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, 0, 0.2)
    plain = Reward(heads.with_head(trunk(), seed=5), None, "gemma2")
    merged = rewards.merge_adapter(reward, plain, out)
    heads.save_reward(merged.model, out, heads.Scale(0.0, False, "gemma2"))
    return out


def separate(both: Shared, *, moves: bool = False, family: str = "gemma2") -> roles.Separate:
    """Trunks of their own, with adapters as stage=sft and stage=reward make them, and the factors of ``both``."""
    policy = policies.adapt(Policy(trunk(family), None, "gemma2"), LORA).model
    critic = rewards.adapt(Reward(roles.critic_from_policy(trunk(family)), None, "gemma2"), LORA).model
    apart = roles.Separate(policy, critic, trunk(family), moves=moves)
    theirs = dict(both.named_parameters())
    with torch.no_grad():
        for name, parameter in apart.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(theirs[name])
    return apart


def trained(both: roles.Roles) -> dict[str, Tensor]:
    return {name: one for name, one in both.named_parameters() if one.requires_grad}


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-6) -> None:
    """Within a share of the largest number that is wanted."""
    assert (found - wanted).abs().max() <= tolerance * max(1.0, wanted.detach().abs().max().item())


def loss_of(both: nn.Module, temperature: float = 0.7) -> Tensor:
    """A sum of both losses in which every token has a weight of its own."""
    logprobs_S, values_S = both(*batch(trees()), temperature)
    weights_S = torch.linspace(-1, 2, len(logprobs_S))
    return (weights_S * logprobs_S).mean() + (values_S - weights_S).square().mean()


def optimiser(both: roles.Roles, decay: float = 0.1) -> torch.optim.AdamW:
    groups = [{"params": group} for group in both.groups().values()]
    return torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-5, weight_decay=decay)


def steps(both: Shared, adam: torch.optim.AdamW, count: int) -> None:
    for _ in range(count):
        adam.zero_grad()
        loss_of(both).backward()
        adam.step()
        if both.moves:
            both.move_anchor(0.1)


# ── step 0, and the anchor ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_at_step_0_the_ratio_is_1_bit_for_bit_and_a_fresh_critic_says_0(family: str, moves: bool) -> None:
    both = shared(family, moves=moves)
    logprobs_S, values_S = both(*batch(trees()), 0.7)
    assert torch.equal(logprobs_S, both.anchor_logprobs(*batch(trees()), 0.7))
    assert torch.equal(logprobs_S, roles.answer_logprobs(trunk(family), *batch(trees()), 0.7))
    torch.testing.assert_close(logprobs_S, alone(trunk(family), trees(), 0.7), atol=2e-5, rtol=0)
    assert values_S.abs().max() == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_off_is_the_anchor_whatever_was_learned(family: str) -> None:
    both = shared(family)
    stir(both)
    anchor_S = both.anchor_logprobs(*batch(trees()), 0.7)
    assert (both(*batch(trees()), 0.7).logprobs_S - anchor_S).abs().mean() > 0.05
    with both.policy.disable_adapter():
        assert torch.equal(both(*batch(trees()), 0.7).logprobs_S, anchor_S)
    assert torch.equal(roles.answer_logprobs(trunk(family), *batch(trees()), 0.7), anchor_S)
    assert not anchor_S.requires_grad
    assert both.anchor_state() == {}
    with pytest.raises(AssertionError, match="stands still"):
        both.move_anchor(0.1)


def test_every_weight_of_the_trunk_exists_once(reward_folder: Path) -> None:
    base = trunk()
    both = Shared(base, rank=RANK, alpha=ALPHA, critic="reward", reward=reward_folder / "adapter", moves=True)
    own = {one.data_ptr() for one in base.parameters()}
    models = [core.trunk(one) for one in (both.policy, both.critic, both.reward_model(), both._anchor[0])]
    for model in models:
        frozen = {one.data_ptr() for name, one in model.named_parameters() if "lora_" not in name}
        assert frozen <= own
        assert len(frozen) == 1 + 4 * (7 + 4) + 1, "embedding, projections and norms of four layers, the last norm"
    modules = [{id(one) for one in model.modules()} for model in models]
    assert not set.intersection(*modules), "a module is of one role, and so is its adapter"


# ── what moves ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("again", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("critic", ["policy", "reward"])
def test_every_adapter_moves_and_neither_trunk_nor_reward_does(critic: str, again: bool, reward_folder: Path) -> None:
    both = shared(critic=critic, reward=reward_folder / "adapter", moves=True)
    if again:
        checkpoint(both)
    scorer = both.reward_model()
    before = {name: one.clone() for name, one in both.named_parameters()}
    held = {name: one.clone() for name, one in scorer.named_parameters()}
    steps(both, optimiser(both, decay=0.0), 3)  # B is zero at first, so that A has no gradient in the first step
    for name, one in both.named_parameters():
        assert torch.equal(one, before[name]) != one.requires_grad, name
        assert one.requires_grad == ("lora_" in name or "modules_to_save" in name)
    assert all(torch.equal(one, held[name]) for name, one in scorer.named_parameters())
    assert both.groups().keys() == {"policy", "critic"}
    assert len(both.groups()["policy"]) == 4 * 7 * 2
    assert len(both.groups()["critic"]) == 4 * 7 * 2 + 1


def test_pefts_switch_is_the_trap_that_views_avoid() -> None:
    """`set_adapter` between two forward passes freezes the first adapter, and its parameters get no gradient."""
    model = policies.adapt(Policy(trunk(), None, "gemma2"), LORA).model
    model.add_adapter("critic", model.peft_config["default"])
    model.set_adapter("critic")
    assert not any(one.requires_grad for name, one in model.named_parameters() if ".default." in name)


def checkpoint(both: Shared) -> None:
    both.train()
    for model in (both.policy, both.critic):
        core.trunk(model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def test_activations_computed_again_are_those_of_the_same_role() -> None:
    one, other = shared(), shared()
    stir(one)
    stir(other)
    checkpoint(other)
    for both in (one, other):
        loss_of(both).backward()
    for name, parameter in trained(one).items():
        wanted = trained(other)[name].grad
        assert wanted.abs().max() > 0
        close(parameter.grad, wanted)


def test_without_a_critic_there_are_no_values() -> None:
    both = shared(critic=None)
    assert not both.has_critic
    assert both.groups().keys() == {"policy"}
    assert both(*batch(trees()), 1.0).values_S is None


# ── as with trunks of their own ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", FAMILIES)
def test_one_step_is_that_of_separate_trunks_with_the_same_adapters(family: str) -> None:
    both = shared(family)
    stir(both)
    apart = separate(both, family=family)
    for one, other in zip(both(*batch(trees()), 0.7), apart(*batch(trees()), 0.7), strict=True):
        assert other.std() > 0.1
        close(one, other)
    for model in (both, apart):
        loss_of(model).backward()
    assert trained(both).keys() == trained(apart).keys()
    for name, parameter in trained(apart).items():
        assert parameter.grad.abs().max() > 0
        close(trained(both)[name].grad, parameter.grad)
        assert both.get_parameter(name).grad is not parameter.grad
    for model in (both, apart):
        optimiser(model).step()
    for name, parameter in trained(apart).items():
        close(trained(both)[name], parameter)


def test_a_moving_anchor_is_that_of_separate_trunks_and_not_an_average_of_factors() -> None:
    both = shared(moves=True)
    stir(both)
    apart = separate(both, moves=True)
    a_RI, b_OR = (torch.zeros(shape) for shape in ((RANK, 24), (40, RANK)))
    path = "model.layers.1.mlp.up_proj"
    for step in range(4):
        for model in (both, apart):
            stir(model, step)
            model.move_anchor(0.2)
        adapted = core.causal_lm(both.policy).get_submodule(path)
        a_RI.lerp_(adapted.lora_A["default"].weight.detach(), 0.2)
        b_OR.lerp_(adapted.lora_B["default"].weight.detach(), 0.2)
    base, merged = trunk().state_dict(), apart.anchor_state()
    for name, update_OI in both.anchor_state().items():
        assert update_OI.dtype == torch.float32
        close(update_OI, merged[f"{name}.weight"] - base[f"{name}.weight"])
    close(both.anchor_logprobs(*batch(trees()), 0.7), apart.anchor_logprobs(*batch(trees()), 0.7), 5e-6)
    wanted, of_factors = both.anchor_state()[path], ALPHA / RANK * b_OR @ a_RI
    assert (of_factors - wanted).norm() > 0.2 * wanted.norm(), "averaging the factors is another thing"


def test_small_moves_of_the_anchor_are_not_rounded_away() -> None:
    """A hundred steps of 0.001 towards a policy that stands: 1 − 0.999^100 of its update, on weights that dwarf it."""
    both = shared(moves=True)
    with torch.no_grad():
        for parameter in both.groups()["policy"]:
            nn.init.normal_(parameter, 0, 1e-4)
    for _ in range(100):
        both.move_anchor(1e-3)
    path = "model.layers.0.self_attn.q_proj"
    update = core.causal_lm(both.policy).get_submodule(path).get_delta_weight("default")
    assert update.abs().max() < 1e-6, "beside weights of 0.3, whose neighbours in fp32 are 3e-8 away"
    torch.testing.assert_close(both.anchor_state()[path], (1 - 0.999**100) * update, rtol=1e-4, atol=0)


# ── killed and resumed ───────────────────────────────────────────────────────────────────────────


def test_killed_and_resumed_it_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    undisturbed = shared(moves=True)
    steps(undisturbed, optimiser(undisturbed), 4)

    killed = shared(moves=True)
    adam = optimiser(killed)
    steps(killed, adam, 2)
    save_file({name: one.detach() for name, one in trained(killed).items()}, tmp_path / "trained")
    save_file(killed.anchor_state(), tmp_path / "anchor")
    torch.save(adam.state_dict(), tmp_path / "adam")

    resumed = shared(seed=99, moves=True)
    with torch.no_grad():
        for name, one in load_file(tmp_path / "trained").items():
            resumed.get_parameter(name).copy_(one)
    resumed.load_anchor(load_file(tmp_path / "anchor"))
    adam = optimiser(resumed)
    adam.load_state_dict(torch.load(tmp_path / "adam"))
    steps(resumed, adam, 2)

    for name, one in undisturbed.named_parameters():
        assert torch.equal(one, resumed.get_parameter(name)), name
    for path, update_OI in undisturbed.anchor_state().items():
        assert torch.equal(update_OI, resumed.anchor_state()[path]), path
    with pytest.raises(AssertionError, match="another anchor"):
        shared().load_anchor(undisturbed.anchor_state())


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
