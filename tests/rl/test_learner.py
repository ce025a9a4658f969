"""What learns: gradients are those of the loss as it is written, however a batch is divided; rates, clips, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import rl_support as support
import torch
from safetensors.torch import load_file
from torch import Tensor

from alignment.errors import UserError
from alignment.gemma import core
from alignment.gemma.roles import Separate
from alignment.rl import learner as learning
from alignment.rl.advantages import Targets
from alignment.rl.episodes import Episodes, passes
from alignment.rl.learner import Learner

WHOLE = {"updating.minibatch": 8, "updating.clip_norm": 1e9}
NEAR = 2e-4


def targets_of(one: Episodes, kind: str) -> Targets:
    """Invented ones, in the form that the estimator gives."""
    generator = torch.Generator().manual_seed(7)
    advantages_BT = torch.randn(one.mask_BT.shape, generator=generator)
    if kind != "gae":
        advantages_BT = torch.where(one.mask_BT, advantages_BT[:, :1], torch.zeros(()))
    returns_BT = torch.randn(one.mask_BT.shape, generator=generator) if kind == "gae" else None
    return Targets(advantages_BT, returns_BT, "token" if kind == "gae" else "answer", torch.zeros(8), 0)


def near(who: Learner, one: Episodes, apart: float = 0.15) -> Episodes:
    """The old log-probabilities are the policy's but for noise, so that some ratios are clipped and others not."""
    read = replace(one)
    who.read(read, old=True)
    noise_BT = torch.randn(one.mask_BT.shape, generator=torch.Generator().manual_seed(3)) * apart
    return replace(one, old_BT=read.old_BT + noise_BT)


def gradients(who: Learner, one: Episodes, monkeypatch: pytest.MonkeyPatch, **more: Any) -> list[dict[str, Tensor]]:
    """Of every optimiser step of an update, by name; nothing is changed by them."""
    taken: list[dict[str, Tensor]] = []

    def take() -> None:
        taken.append({name: one.grad.clone() for name, one in who.roles.named_parameters() if one.grad is not None})

    with monkeypatch.context() as patched:
        patched.setattr(who.optimiser, "step", take)
        targets = more.pop("targets", None) or targets_of(one, "gae" if who.roles.has_critic else "rloo")
        who.update(one, targets, **({"step": 0, "beta_in_loss": 0.0, "out": Path()} | more))
    return taken


def close(found: dict[str, Tensor], wanted: dict[str, Tensor], within: float = NEAR) -> bool:
    """Relative to the largest gradient of the role."""
    assert found.keys() == wanted.keys()
    for role in ("policy.", "critic."):
        names = [name for name in wanted if name.startswith(role)]
        largest = max((float(wanted[name].abs().max()) for name in names), default=1.0)
        assert largest > 1e-4
        if any(float((found[name] - wanted[name]).abs().max()) > within * largest for name in names):
            return False
    return True


# ── the loss, written out ────────────────────────────────────────────────────────────────────────


def written_out(
    one: Episodes, targets: Targets, changes: dict[str, Any], rows: list[int], beta: float
) -> dict[str, Tensor]:
    """Gradients over vanilla float64 rows, each answer by itself."""
    some = support.numbers(changes)
    start = support.learner(changes).roles.double()
    assert isinstance(start, Separate)
    temperature, clip, level = some["drawing"].temperature, some["updating"].clip, targets.level
    terms = sum(one.lengths[row] for row in rows) if level == "token" else len(rows)
    tokens = sum(one.lengths[row] for row in rows)
    loss = torch.zeros((), dtype=torch.float64)

    def gain(log_ratio: Tensor, advantage: Tensor, weight: Tensor | float) -> Tensor:
        ratio = log_ratio.exp()
        return weight * torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)

    for row in rows:
        asked, said, length = one.prompt_ids[row // one.samples], one.answers[row], one.lengths[row]
        ids = torch.tensor([[*asked, *said]])
        logits = start.policy(ids, use_cache=False).logits[0, len(asked) - 1 : -1] / temperature
        logprobs = logits.double().log_softmax(-1)[range(length), said]
        log_ratio = logprobs - one.old_BT[row, :length]
        advantages = targets.advantages_BT[row, :length]
        weights = torch.ones(length) if one.weights_BT is None else one.weights_BT[row, :length]
        if level == "token":
            loss = loss - gain(log_ratio, advantages, weights).sum() / terms
        else:
            loss = loss - gain(log_ratio.sum(), advantages[0], weights.prod()) / terms
        if beta:
            assert one.anchor_BT is not None
            away = one.anchor_BT[row, :length] - logprobs
            loss = loss + beta * (away.exp() - 1 - away).sum() / terms
        if start.critic is not None:
            assert one.values_BT is not None
            assert targets.returns_BT is not None
            trunk = core.trunk(start.critic)
            hidden = trunk(input_ids=ids, use_cache=False).last_hidden_state[0, len(asked) - 1 : -1]
            values, old = (hidden @ start.critic.score.weight.T)[:, 0], one.values_BT[row, :length]
            held = old + (values - old).clamp(-some["critic"].clip, some["critic"].clip)
            returns = targets.returns_BT[row, :length]
            worse = torch.maximum((values - returns).square(), (held - returns).square())
            loss = loss + some["critic"].coefficient * 0.5 * worse.sum() / tokens
    loss.backward()
    return {name: weight.grad.float() for name, weight in start.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize(
    ("kind", "beta", "temperature", "weighed"),
    [("gae", 0.0, 0.7, False), ("gae", 0.2, 1.0, True), ("rloo", 0.0, 1.0, True), ("rloo", 0.2, 0.7, False)],
)
def test_gradients_are_those_of_the_loss_written_out(
    kind: str, beta: float, temperature: float, weighed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two minibatches of one epoch, each the mean over its own tokens or answers."""
    changes = {
        "estimating.kind": kind,
        "drawing.temperature": temperature,
        "updating.clip_norm": 1e9,
        "critic.coefficient": 0.4,
    }
    who = support.learner(changes)
    one = near(who, support.episodes())
    if weighed:
        weights_BT = torch.rand(one.mask_BT.shape, generator=torch.Generator().manual_seed(2)) + 0.5
        one = replace(one, weights_BT=weights_BT)
    targets = targets_of(one, kind)
    seen: list[list[int]] = []
    learn = Learner._learn

    def watched(self: Learner, episodes: Episodes, some: Targets, groups: list[int], *rest: Any, **more: Any) -> None:
        seen.append(groups)
        learn(self, episodes, some, groups, *rest, **more)

    monkeypatch.setattr(Learner, "_learn", watched)
    found = gradients(who, one, monkeypatch, targets=targets, beta_in_loss=beta)
    assert len(found) == 2
    assert sorted(group for groups in seen for group in groups) == [0, 1, 2, 3]
    for groups, one_step in zip(seen, found, strict=True):
        wanted = written_out(one, targets, changes, one.rows(groups), beta)
        assert close(one_step, wanted)


@pytest.mark.parametrize("micro", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("kind", ["gae", "rloo"])
def test_forward_passes_do_not_change_the_gradients(kind: str, micro: int, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"estimating.kind": kind, **WHOLE}
    whole, cut = support.learner(changes), support.learner(changes, support.engine(micro_batch=micro))
    one = near(whole, support.episodes())
    passed: list[int] = []
    monkeypatch.setattr(learning, "passes", lambda *given, **named: _counted(passed, *given, **named))
    (wanted,) = gradients(whole, one, monkeypatch, beta_in_loss=0.1)
    (found,) = gradients(cut, one, monkeypatch, beta_in_loss=0.1)
    assert passed[0] == 1
    assert passed[1] == -(-4 // max(1, micro // 2))
    assert close(found, wanted, 2e-5)


def _counted(passed: list[int], *given: Any, **named: Any) -> Any:
    every = list(passes(*given, **named))
    passed.append(len(every))
    return iter(every)


@pytest.mark.parametrize("kind", ["gae", "rloo"])
def test_without_shared_prompts_the_gradients_are_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a flash kernel, which takes no trees."""
    changes = {"estimating.kind": kind, **WHOLE}
    shared, alone = support.learner(changes), support.learner(changes)
    alone.share = False
    one = near(shared, support.episodes())
    (wanted,), (found,) = (gradients(who, one, monkeypatch) for who in (shared, alone))
    assert close(found, wanted, 2e-5)


def test_what_lies_behind_an_answers_end_teaches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"estimating.kind": "gae", **WHOLE}
    one = near(support.learner(changes), support.episodes())
    targets = targets_of(one, "gae")
    behind = torch.where(one.mask_BT, 0.0, torch.nan)
    assert targets.returns_BT is not None
    spoiled = replace(
        one,
        **{name: getattr(one, name) + behind for name in ("old_BT", "anchor_BT", "values_BT")},
        weights_BT=1 + behind,
    )
    other = Targets(targets.advantages_BT + behind, targets.returns_BT + behind, "token", targets.rewards_B, 0)
    (wanted,) = gradients(support.learner(changes), one, monkeypatch, targets=targets, beta_in_loss=0.1)
    (found,) = gradients(support.learner(changes), spoiled, monkeypatch, targets=other, beta_in_loss=0.1)
    assert support.same(found, wanted)


# ── steps ────────────────────────────────────────────────────────────────────────────────────────


def update(who: Learner, one: Episodes, step: int = 0, **more: Any) -> dict[str, float]:
    kind = "gae" if who.roles.has_critic else "rloo"
    return who.update(one, targets_of(one, kind), **({"step": step, "beta_in_loss": 0.0, "out": Path()} | more))


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_batch_is_gone_through_in_minibatches_epoch_after_epoch(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    who = support.learner({"updating.epochs": epochs, "updating.minibatch": 2})
    assert len(gradients(who, near(who, support.episodes()), monkeypatch)) == 4 * epochs == who.numbers.per_step


def test_gradients_do_not_pile_up_from_step_to_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a rate of 0 the second epoch over the same minibatch has the gradient of the first."""
    who = support.learner({**WHOLE, "updating.epochs": 2})
    first, second = gradients(who, near(who, support.episodes()), monkeypatch)
    assert close(second, first, 2e-5)


def test_each_role_is_clipped_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"estimating.kind": "gae", **WHOLE, "updating.clip_norm": 0.05, "critic.coefficient": 30.0}
    who = support.learner(changes)
    one = near(who, support.episodes())
    norms = update(support.learner({**changes, "updating.clip_norm": 1e9}), one)
    (found,) = gradients(who, one, monkeypatch)
    for role in ("policy", "critic"):
        norm = sum(float(one.square().sum()) for name, one in found.items() if name.startswith(role)) ** 0.5
        assert norm == pytest.approx(0.05, rel=1e-3)
        assert norms[f"gradient/{role}"] > 0.2, "what is logged is the norm before the clip"
    assert norms["gradient/critic"] != pytest.approx(norms["gradient/policy"], rel=0.2)


@pytest.mark.parametrize(
    ("schedule", "warmup", "wanted"),
    [
        ("constant", 0, [1, 1, 1, 1]),
        ("constant", 3, [0.25, 0.5, 0.75, 1]),
        ("linear", 0, [1, 0.75, 0.5, 0.25]),
        ("linear", 1, [0.5, 0.75, 0.5, 0.25]),
    ],
)
def test_rates_rise_and_fall_for_both_roles(schedule: str, warmup: int, wanted: list[float]) -> None:
    who = support.learner(
        {"estimating.kind": "gae", "updating.schedule": schedule, "updating.warmup_steps": warmup,
         "updating.learning_rate": 4e-3, "critic.learning_rate": 2e-3}
    )  # fmt: skip
    one = near(who, support.episodes())
    for step, share in enumerate(wanted):
        update(who, one, step)
        rates = {group["role"]: group["lr"] for group in who.optimiser.param_groups}
        assert rates == pytest.approx({"policy": 4e-3 * share, "critic": 2e-3 * share})


def test_while_the_critic_warms_up_the_policy_keeps_its_bits() -> None:
    who = support.learner(
        {"estimating.kind": "gae", "critic.warmup": 2, "updating.weight_decay": 0.1, "updating.epochs": 2}
    )
    one = near(who, support.episodes())
    before = support.weights(who.roles)
    for step in range(3):
        update(who, one, step, beta_in_loss=0.2)
        now = support.weights(who.roles)
        still = {name for name in now if torch.equal(now[name], before[name])}
        policy = {name for name in now if name.startswith("policy.")}
        assert still == (policy if step < 2 else set())


def test_without_a_critic_nothing_waits_for_it() -> None:
    who = support.learner({"critic.warmup": 2})
    before = support.weights(who.roles)
    update(who, near(who, support.episodes()))
    assert support.apart(before, support.weights(who.roles)) > 1e-4


def test_matrices_decay_and_norms_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a gradient: advantages of 0."""
    who = support.learner({"estimating.kind": "gae", "updating.weight_decay": 0.5, "critic.coefficient": 0.0, **WHOLE})
    one = near(who, support.episodes())
    nothing = Targets(torch.zeros_like(one.old_BT), torch.zeros_like(one.old_BT), "token", torch.zeros(8), 0)
    before = support.weights(who.roles)
    who.update(one, nothing, step=0, beta_in_loss=0.0, out=Path())
    for name, weight in who.roles.named_parameters():
        decayed = 1 - 3e-3 * 0.5 if weight.ndim > 1 else 1.0
        torch.testing.assert_close(weight, before[name] * decayed, atol=1e-7, rtol=1e-6)


def test_the_optimiser_is_the_one_that_was_asked_for() -> None:
    who = support.learner({"updating.beta1": 0.8, "updating.beta2": 0.9, "updating.epsilon": 1e-4})
    for group in who.optimiser.param_groups:
        assert (group["betas"], group["eps"]) == ((0.8, 0.9), 1e-4)
    held = {id(weight) for group in who.optimiser.param_groups for weight in group["params"]}
    assert held == {id(weight) for weight in who.roles.parameters()}


def test_an_adapter_alone_is_trained() -> None:
    who = support.learner({"estimating.kind": "gae"}, lora=2)
    before = support.weights(who.roles)
    update(who, near(who, support.episodes()))
    now = support.weights(who.roles)
    moved = {name for name in now if not torch.equal(now[name], before[name])}
    assert moved == {name for name in now if "lora_" in name or name.startswith("critic.")}


# ── ratios, and what stops a run ─────────────────────────────────────────────────────────────────


def test_before_the_first_step_the_ratio_is_1_and_afterwards_it_is_not_asked() -> None:
    who = support.learner({"updating.epochs": 2, "updating.learning_rate": 0.05})
    one = replace(support.episodes())
    who.read(one, old=True)
    measured = update(who, one)
    assert measured["update/first_ratio"] < 1e-5
    assert measured["update/kl_old"] > 1e-3, "the later ones have moved"


def test_a_ratio_that_is_not_1_is_told_wherever_it_stands_but_not_behind_an_end() -> None:
    who = support.learner({"updating.minibatch": 8}, support.engine(micro_batch=2))
    one = support.episodes()
    who.read(one, old=True)
    one.old_BT[1, 6] += 0.125
    one.old_BT[2, 5] += 77.0
    assert one.mask_BT[1, 6]
    assert not one.mask_BT[2, 5]
    assert update(who, one)["update/first_ratio"] == pytest.approx(0.125, abs=1e-5)


@pytest.mark.parametrize("micro", [None, 2])
def test_a_loss_that_is_no_number_stops_the_run_with_the_batch_saved(tmp_path: Path, micro: int | None) -> None:
    who = support.learner({"updating.minibatch": 8}, support.engine(micro_batch=micro))
    one = near(who, support.episodes())
    one.old_BT[5, 1] = torch.nan
    before = support.weights(who.roles)
    with pytest.raises(UserError, match="the loss is nan at step 3") as caught:
        update(who, one, 3, out=tmp_path)
    (file,) = tmp_path.rglob("not_a_number_*.safetensors")
    assert str(file) in str(caught.value.remedy)
    saved = load_file(file)["input_ids"].flatten().tolist()
    culprit = one.answers[5]
    assert any(saved[start : start + len(culprit)] == culprit for start in range(len(saved)))
    assert support.same(support.weights(who.roles), before)


@pytest.mark.parametrize("micro", [None, 2])
def test_a_gradient_that_is_no_number_stops_the_run_with_the_batch_saved(tmp_path: Path, micro: int | None) -> None:
    """All forward passes of the minibatch: any of them may be at fault."""
    who = support.learner({"updating.minibatch": 8}, support.engine(micro_batch=micro))
    one = near(who, support.episodes())
    before = support.weights(who.roles)
    weight = next(who.roles.parameters())
    weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(UserError, match="gradient's norm") as caught:
        update(who, one, out=tmp_path)
    (file,) = tmp_path.rglob("not_a_number_*.safetensors")
    assert str(file) in str(caught.value.remedy)
    saved = {name: ids.flatten().tolist() for name, ids in load_file(file).items() if name.startswith("input_ids")}
    assert len(saved) == (4 if micro else 1)
    for answer in one.answers:
        assert any(ids[start : start + len(answer)] == answer for ids in saved.values() for start in range(len(ids)))
    assert support.same(support.weights(who.roles), before)


def test_roles_learn_in_training_and_are_read_in_evaluation() -> None:
    who = support.learner({"estimating.kind": "gae"})
    modes: list[bool] = []
    who.roles.policy.register_forward_hook(lambda module, *_: modes.append(module.training))  # type: ignore[union-attr]
    core.trunk(who.roles.policy).register_forward_hook(lambda module, *_: modes.append(module.training))  # type: ignore[union-attr,arg-type]
    one = support.episodes()
    who.read(one, old=True)
    assert set(modes) == {False}
    modes.clear()
    update(who, one)
    assert set(modes) == {True}
