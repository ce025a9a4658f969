"""Roles on trunks of their own: log-probabilities and values as separate rows give them, anchors that stand or move."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from alignment.gemma import branches, core, heads, roles
from alignment.gemma.branches import Tree
from alignment.training.policies import ADAPTED

FAMILIES = ["gemma1", "gemma2"]
Shape = list[tuple[int, list[int]]]
# Gemma 2's window is 5: prompts and answers shorter than it, and several windows long.
RAGGED: Shape = [(9, [4]), (3, [2, 6]), (14, [1, 12, 3]), (1, [7, 7]), (6, [1, 1, 1]), (12, [9, 2])]


def trees(shape: Shape = RAGGED, seed: int = 0) -> list[Tree]:
    generator = torch.Generator().manual_seed(seed)

    def draw(length: int) -> list[int]:
        return torch.randint(3, tiny.VOCABULARY, (length,), generator=generator).tolist()

    return [Tree(draw(prompt), [draw(answer) for answer in answers]) for prompt, answers in shape]


def batch(some: list[Tree], *, share: bool = True) -> tuple[branches.Lines, branches.Spans]:
    lines = branches.lay_out(some, pad_id=0, share=share)
    return lines, branches.spans(lines, some)


def alone(model: nn.Module, some: list[Tree], temperature: float) -> Tensor:
    """Vanilla log-probabilities of every token of every answer, each answer in a row of its own."""
    found = []
    for tree in some:
        for answer in tree.answers:
            logits = model(torch.tensor([[*tree.prompt, *answer]]), use_cache=False).logits[0]
            logprobs = (logits[len(tree.prompt) - 1 : -1] / temperature).log_softmax(-1)
            found.append(logprobs[range(len(answer)), list(answer)])
    return torch.cat(found)


def values_alone(critic: nn.Module, some: list[Tree]) -> Tensor:
    """The head on the state before each token of an answer, in rows of their own."""
    found = []
    for tree in some:
        for answer in tree.answers:
            hidden = critic.model(input_ids=torch.tensor([[*tree.prompt, *answer]]), use_cache=False).last_hidden_state
            found.append(critic.score(hidden)[0, len(tree.prompt) - 1 : -1, 0])
    return torch.cat(found)


def critic(family: str, seed: int = 3) -> heads.RewardModel:
    return heads.with_head(tiny.model(tiny.SHAPES[family], seed), seed)


def lora(model: nn.Module, *, head: bool = False, seed: int = 0) -> nn.Module:
    """The model with an adapter that changes something: PEFT's B is zero at first."""
    torch.manual_seed(seed)
    config = LoraConfig(r=3, lora_alpha=6, target_modules=ADAPTED, modules_to_save=["score"] if head else None)
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, 0, 0.1)
    return adapted


# ── spans ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.integers(1, 14), st.lists(st.integers(1, 12), min_size=1, max_size=4)), min_size=1, max_size=5
    ),
    st.sampled_from([0.7, 1.0, 1.6]),
)
@example(RAGGED, 0.7)
@example([(1, [1])], 1.0)
@torch.no_grad()
def test_logprobs_and_values_are_those_of_rows_of_their_own(
    family: str, share: bool, shape: Shape, temperature: float
) -> None:
    model, some = tiny.model(tiny.SHAPES[family]), trees(shape)
    both = roles.Separate(model, critic(family))
    found = both(*batch(some, share=share), temperature)
    torch.testing.assert_close(found.logprobs_S, alone(model, some, temperature), atol=2e-5, rtol=0)
    torch.testing.assert_close(found.values_S, values_alone(both.critic, some), atol=2e-5, rtol=0)


@pytest.mark.parametrize("share", [True, False])
def test_spans_say_whose_token_and_the_how_manieth(share: bool) -> None:
    some = [Tree([3, 4], [[5, 6, 7], [8]]), Tree([9], [[10, 11]])]
    lines, where = batch(some, share=share)
    assert where.ids_S.tolist() == [5, 6, 7, 8, 10, 11]
    assert where.answer_S.tolist() == [0, 0, 0, 1, 2, 2]
    assert where.step_S.tolist() == [0, 1, 2, 0, 0, 1]
    # The last of the prompt predicts the first of each answer; after it each token predicts the next.
    assert lines["input_ids"][where.line_S, where.column_S].tolist() == [4, 5, 6, 4, 9, 10]
    positions = lines["position_ids"][where.line_S, where.column_S]
    assert positions.tolist() == [1, 2, 3, 1, 0, 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_rows_of_their_own(family: str) -> None:
    """Each token's log-probability and value under a weight of its own, so that one in another's place shows."""
    some = trees()

    def gradients(logprobs_S: Tensor, values_S: Tensor, both: roles.Separate) -> list[Tensor]:
        weights_S = torch.linspace(-1, 1, len(logprobs_S))
        (weights_S * logprobs_S).sum().add((weights_S.flip(0) * values_S).sum()).backward()
        return [parameter.grad for parameter in both.parameters()]

    def made() -> roles.Separate:
        return roles.Separate(tiny.model(tiny.SHAPES[family]), critic(family))

    rows, lines = made(), made()
    wanted = gradients(alone(rows.policy, some, 0.7), values_alone(rows.critic, some), rows)
    found = gradients(*lines(*batch(some), 0.7), lines)
    largest = max(gradient.abs().max() for gradient in wanted)
    assert largest > 1
    for one, other in zip(wanted, found, strict=True):
        assert torch.allclose(one, other, atol=2e-5 * largest), (one - other).abs().max() / largest


@torch.no_grad()
def test_logprobs_are_the_same_however_few_logits_exist_at_once() -> None:
    model = tiny.model(tiny.GEMMA2)
    lines, where = batch(trees())
    whole = roles.answer_logprobs(model, lines, where, 0.7)
    torch.testing.assert_close(roles.answer_logprobs(model, lines, where, 0.7, chunk_tokens=5), whole)


# ── step 0 ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_at_step_0_the_ratio_is_1_and_a_fresh_critic_says_0(family: str, moves: bool, adapted: bool) -> None:
    """Bit for bit, for all weights; with an adapter that is merged in the anchor, beyond rounding."""
    policy: nn.Module = tiny.model(tiny.SHAPES[family])
    valued = roles.critic_from_policy(policy)
    both = roles.Separate(lora(policy) if adapted else policy, valued, moves=moves)
    found = both(*batch(trees()), 0.7)
    difference = found.logprobs_S - both.anchor_logprobs(*batch(trees()), 0.7)
    assert difference.abs().max() <= (2e-5 if adapted else 0)
    assert found.values_S.abs().max() == 0
    assert found.logprobs_S.std() > 0.3
    with both.acting() as actor:
        assert actor is both.policy


def test_a_critic_from_the_policy_has_a_trunk_of_its_own() -> None:
    policy = tiny.model(tiny.GEMMA2)
    valued = roles.critic_from_policy(policy)
    shared = {id(one) for one in policy.parameters()} & {id(one) for one in valued.parameters()}
    assert not shared
    assert valued.score.weight.requires_grad


# ── anchors ──────────────────────────────────────────────────────────────────────────────────────


def stir(both: roles.Roles, seed: int = 0) -> None:
    """Move everything that is trained, as an optimiser would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameters in both.groups().values():
            for parameter in parameters:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)


@pytest.mark.parametrize("adapted", [False, True])
def test_an_anchor_that_stands_does_not_follow_and_needs_no_checkpoint(adapted: bool) -> None:
    policy: nn.Module = tiny.model(tiny.GEMMA2)
    both = roles.Separate(lora(policy) if adapted else policy, None)
    before = both.anchor_logprobs(*batch(trees()), 0.7)
    stir(both)
    found = both(*batch(trees()), 0.7)
    assert torch.equal(both.anchor_logprobs(*batch(trees()), 0.7), before)
    assert (found.logprobs_S - before).abs().mean() > 0.05
    assert found.values_S is None
    assert both.anchor_state() == {}
    both.load_anchor({})
    assert not before.requires_grad


@pytest.mark.parametrize("adapted", [False, True])
def test_a_moving_anchor_is_the_average_of_the_weights_that_act(adapted: bool) -> None:
    """anchor ← 0.9 anchor + 0.1 policy, three times, against the sum written out."""
    policy: nn.Module = tiny.model(tiny.GEMMA2)
    both = roles.Separate(lora(policy) if adapted else policy, None, moves=True)

    def acting() -> dict[str, Tensor]:
        model = copy.deepcopy(both.policy)
        model = model.merge_and_unload() if adapted else model
        return {name: weight.clone() for name, weight in model.named_parameters()}

    seen = [acting()]
    for step in range(3):
        stir(both, step)
        seen.append(acting())
        both.move_anchor(0.1)
    for name, weight in both.anchor_state().items():
        wanted = 0.9**3 * seen[0][name] + 0.1 * (0.81 * seen[1][name] + 0.9 * seen[2][name] + seen[3][name])
        torch.testing.assert_close(weight, wanted, atol=2e-6, rtol=0)
    moved = both.anchor_state()["model.layers.0.mlp.up_proj.weight"] - seen[0]["model.layers.0.mlp.up_proj.weight"]
    assert moved.abs().max() > 1e-3


def test_a_moving_anchor_comes_back_from_its_checkpoint() -> None:
    def made() -> roles.Separate:
        return roles.Separate(tiny.model(tiny.GEMMA1), None, moves=True)

    one, other = made(), made()
    stir(one)
    one.move_anchor(0.3)
    other.load_anchor({name: weight.clone() for name, weight in one.anchor_state().items()})
    assert torch.equal(one.anchor_logprobs(*batch(trees()), 1.0), other.anchor_logprobs(*batch(trees()), 1.0))
    with pytest.raises(AssertionError, match="another anchor"):
        other.load_anchor({})


# ── what is trained, what is saved ───────────────────────────────────────────────────────────────


def test_one_backward_over_the_sum_reaches_policy_and_critic_and_not_the_anchor() -> None:
    both = roles.Separate(lora(tiny.model(tiny.GEMMA2)), lora(critic("gemma2"), head=True))
    found = both(*batch(trees()), 1.0)
    (found.logprobs_S.mean() + found.values_S.square().mean()).backward()
    groups = both.groups()
    assert groups.keys() == {"policy", "critic"}
    assert len(groups["policy"]) == 4 * 7 * 2
    assert len(groups["critic"]) == 4 * 7 * 2 + 1, "the head is trained with the critic's adapter"
    assert all(one.grad is not None and one.grad.abs().max() > 0 for group in groups.values() for one in group)
    trained = {id(one) for group in groups.values() for one in group}
    assert all(one.grad is None for one in both.parameters() if id(one) not in trained)
    held = {id(one) for one in both.parameters()}
    assert not any(id(one) in held or one.requires_grad for one in both._anchor[0].parameters())


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_plain_policy_is_the_one_that_acts(family: str, tmp_path) -> None:
    """Merged, and as transformers reads it from disk."""
    policy = lora(tiny.model(tiny.SHAPES[family]))
    plain = roles.Separate(policy, None).plain_policy()
    ids = tiny.ids(2, 20)
    wanted = policy(ids).logits
    assert (wanted - tiny.model(tiny.SHAPES[family])(ids).logits).abs().max() > 0.05
    assert isinstance(plain, core.CausalLM)
    torch.testing.assert_close(plain(ids).logits, wanted, atol=2e-5, rtol=0)
    core.save(plain, tmp_path, stop_ids=[1])
    torch.testing.assert_close(core.load(tmp_path)(ids).logits, wanted, atol=2e-5, rtol=0)
    assert policy.active_adapters == ["default"], "the policy itself keeps its adapter"


@torch.no_grad()
def test_a_plain_copy_shares_no_weight() -> None:
    model = tiny.model(tiny.GEMMA2)
    other = roles.plain_copy(model)
    before = model(tiny.ids(1, 8)).logits
    for parameter in other.parameters():
        parameter.zero_()
    assert torch.equal(model(tiny.ids(1, 8)).logits, before)
