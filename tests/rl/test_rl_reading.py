"""What is read of a batch before it is learned from: log-probabilities at the temperature drawn at, anchor, values."""

from __future__ import annotations

from dataclasses import replace

import pytest
import rl_support as support
import torch
from torch import nn

from alignment.gemma import core
from alignment.rl import learner as learning
from alignment.rl.episodes import Episodes
from alignment.rl.learner import Learner
from alignment.sampling.drawer import OwnDrawer


def drawn(who: Learner, temperature: float) -> Episodes:
    """What the sampler draws, as the loop makes episodes of it."""
    one = support.episodes()
    pieces = support.tokenizer()
    drawer = OwnDrawer((pieces.eos_id, pieces.end_of_turn_id), pieces.pad_id)
    with who.roles.acting() as model:
        answers = drawer.draw(
            model, one.prompt_ids, ["a", "b", "c", "d"], samples=2, temperature=temperature, max_new_tokens=14, seed=1
        )
    lengths = [len(answer.ids) for answer in answers]
    new = support.episodes(lengths)
    drawn_BT = torch.zeros_like(new.drawn_BT)
    for row, answer in enumerate(answers):
        drawn_BT[row, : lengths[row]] = torch.tensor(answer.logprobs)
    return replace(new, answers=[answer.ids for answer in answers], drawn_BT=drawn_BT, old_BT=drawn_BT)


@pytest.mark.parametrize("lora", [0, 3])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_what_is_read_is_what_the_sampler_drew_at(temperature: float, lora: int) -> None:
    """At the temperature drawn at (of which TRL and others have lost sight), beyond the windows of the attention."""
    who = support.learner({"drawing.temperature": temperature, "estimating.kind": "gae"}, lora=lora)
    if lora:
        for name, weight in who.roles.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(weight, 0, 0.1)
    one = drawn(who, temperature)
    assert len(set(one.lengths)) > 2
    assert max(one.lengths) > 6
    who.read(one, old=True)
    assert float((one.old_BT - one.drawn_BT).abs().max()) < 1e-4
    assert float(one.drawn_BT.min()) < -2


@pytest.mark.parametrize("tokens", [1, 60, 4096])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_anchor_and_values_are_read_at_every_temperature_and_division(
    temperature: float, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against rows of their own. The anchor has the temperature too; values know none."""
    monkeypatch.setitem(learning.TOKENS_A_PASS, "cpu", tokens)
    who = support.learner({"drawing.temperature": temperature, "estimating.kind": "gae"})
    with torch.no_grad():
        for weight in who.roles.policy.parameters():  # type: ignore[union-attr]
            weight.mul_(1.2)
    one = support.episodes()
    old_BT = one.old_BT.clone()
    who.read(one, old=False)
    assert torch.equal(one.old_BT, old_BT), "what the sampler said stays"
    vanilla = support.learner({"estimating.kind": "gae"}).roles
    for row, length in enumerate(one.lengths):
        asked, said = one.prompt_ids[row // 2], one.answers[row]
        ids = torch.tensor([[*asked, *said]])
        with torch.no_grad():
            logits = vanilla.policy(ids, use_cache=False).logits[0, len(asked) - 1 : -1] / temperature  # type: ignore[union-attr,operator]
            wanted = logits.log_softmax(-1)[range(length), said]
            hidden = core.trunk(vanilla.critic)(input_ids=ids, use_cache=False).last_hidden_state  # type: ignore[arg-type]
            values = (hidden[0, len(asked) - 1 : -1] @ vanilla.critic.score.weight.T)[:, 0]  # type: ignore[union-attr]
        torch.testing.assert_close(one.anchor_BT[row, :length], wanted, atol=1e-4, rtol=0)  # type: ignore[index]
        torch.testing.assert_close(one.values_BT[row, :length], values, atol=1e-4, rtol=0)  # type: ignore[index]
    for read_BT in (one.anchor_BT, one.values_BT):
        assert not read_BT[~one.mask_BT].any()  # type: ignore[index]
