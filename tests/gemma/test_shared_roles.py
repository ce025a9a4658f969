"""Roles on one trunk: step 0, the anchor, what moves and what does not, and the mathematics of separate trunks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from on_one_trunk import ALPHA, FAMILIES, LORA, RANK, close, loss_of, optimiser, separate, shared, steps, trained, trunk
from safetensors.torch import load_file, save_file
from test_roles import alone, batch, stir, trees
from torch import nn

from alignment.gemma import core, roles
from alignment.gemma.shared_roles import Shared
from alignment.training import policies
from alignment.training.policies import Policy

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
