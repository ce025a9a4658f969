"""What the tests of roles on one trunk need: the roles, beside those on trunks of their own."""

from __future__ import annotations

import tiny
import torch
from test_roles import batch, trees
from torch import Tensor, nn

from alignment.gemma import core, roles
from alignment.gemma.shared_roles import Shared
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
