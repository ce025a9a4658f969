"""Policy, critic, reward and anchor on one frozen trunk: adapters and heads over the same weights.

Each role is a model of its own, a PEFT model like those that ``stage=sft`` and ``stage=reward`` train, but all of them
are *views*: modules of their own around the very parameters of one trunk. So no adapter is ever switched on or off.
PEFT's switch sets ``requires_grad`` as well, and then a critic stands still in silence (``tests/gemma/test_shared_*``);
and where activations are computed again in the backward pass, the adapter would be whichever was switched on last.

The anchor that stands still is the trunk without an adapter. One that moves is W + ΔW with ΔW ← (1 − μ) ΔW + μ s BA, a
matrix in fp32 beside W: averages of the factors A and B are not the factors of the average.

Axes: O outputs and I inputs of a projection.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from alignment.artifacts import Artifact
from alignment.errors import UserError
from alignment.gemma import core, heads, roles

ADAPTED = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTER = "default"
"""PEFT's name of a model's only adapter."""

Model = TypeVar("Model", bound=nn.Module)


class Shared(roles.Separate):
    """:class:`~alignment.gemma.roles.Roles` whose models hold the same frozen weights.

    ``trunk`` stands on its device; it is frozen, and is the anchor. The policy's adapter is fresh, of ``rank`` and with
    a scale of ``alpha / rank``. The critic's is fresh too, under a head of zeros (``"policy"``), or adapter and head
    are those of the reward model (``"reward"``); it may be absent (None). ``reward`` is a folder that
    :func:`reward_adapter` gave. Fresh factors come from torch's global generator.

    Adapters have no dropout here: the policy that is trained would not be the one that answered, and ratios would
    not begin at 1.

    ``half`` turns the trunk's adapted projections into bf16, and leaves embedding and norms in fp32. Under bf16
    autocast, which rounds them at each product anyway, this changes no bit of any role; it makes room for the ΔW of an
    anchor that moves.
    """

    def __init__(
        self,
        trunk: core.CausalLM,
        *,
        rank: int,
        alpha: float,
        critic: Literal["policy", "reward"] | None,
        reward: Path | None = None,
        moves: bool = False,
        half: bool = False,
        chunk_tokens: int = 1024,
    ) -> None:
        assert critic != "reward" or reward is not None, "a critic that begins as the reward model needs one"
        trunk.requires_grad_(False)
        if half:
            _replace(trunk, Half)
        policy = _fresh(view(trunk), rank, alpha)
        valued = None
        if critic == "policy":
            valued = _fresh(_under_zeros(view(trunk)), rank, alpha, trained=["score"])
        elif critic == "reward":
            valued = _trained(_under_zeros(view(trunk)), cast(Path, reward), further=True)
        anchor = view(trunk)
        if moves:
            _replace(anchor, Shifted)
        super().__init__(policy, valued, anchor, moves=moves, chunk_tokens=chunk_tokens)
        scored = None if reward is None else _trained(_under_zeros(view(trunk)), reward, further=False)
        # In a tuple, as the anchor is: the engine has nothing to do with what is not trained.
        self._reward = (scored,)

    @property
    def has_reward(self) -> bool:
        """Whether one of the roles is a reward model."""
        return self._reward[0] is not None

    def reward_model(self) -> heads.RewardModel:
        """The reward model, frozen, as a scorer holds it: no other role's adapter is ever in its modules."""
        (model,) = self._reward
        assert model is not None, "these roles were made without a reward model"
        return cast(heads.RewardModel, model.get_base_model())

    @torch.no_grad()
    def move_anchor(self, rate: float) -> None:
        """As :class:`~alignment.gemma.roles.Roles` says: the products are averaged, in fp32."""
        assert self.moves, "this anchor stands still"
        policy = core.causal_lm(self.policy)
        for path, shifted in self._shifted():
            a_RI, b_OR, scale = _factors(policy.get_submodule(path))
            shifted.update_OI.addmm_(b_OR, a_RI, beta=1 - rate, alpha=rate * scale)

    def anchor_state(self) -> dict[str, Tensor]:
        """As :class:`~alignment.gemma.roles.Roles` says: ΔW by the path of its projection."""
        return {path: shifted.update_OI for path, shifted in self._shifted()}

    @torch.no_grad()
    def load_anchor(self, state: dict[str, Tensor]) -> None:
        """As :class:`~alignment.gemma.roles.Roles` says."""
        held = self.anchor_state()
        assert state.keys() == held.keys(), "the state of another anchor"
        for path, update_OI in state.items():
            held[path].copy_(update_OI)

    @torch.no_grad()
    def plain_policy(self, onto: core.CausalLM | None = None) -> core.CausalLM:
        """As :class:`~alignment.gemma.roles.Roles` says.

        ``onto`` is the trunk as it was before ``half`` rounded it, read again: the update is added to *its* weights,
        in place. A difference between two models that are saved without it is partly that rounding.
        """
        if onto is None:
            return roles.plain_copy(self.policy)
        policy = core.causal_lm(self.policy)
        for _, path, projection in _projections(onto):
            a_RI, b_OR, scale = _factors(policy.get_submodule(path))
            projection.weight.addmm_(b_OR, a_RI, alpha=scale)
        return onto

    def _shifted(self) -> Iterator[tuple[str, Shifted]]:
        (anchor,) = self._anchor
        return ((path, module) for path, module in anchor.named_modules() if isinstance(module, Shifted))


def reward_adapter(reward: Artifact, trunk: Artifact) -> Path:
    """The folder with the adapter and the head of a reward model that was trained on ``trunk``.

    Raises :class:`UserError` for one that has no adapter, and for one that was trained on another model or on one that
    no record names: its adapter would add to weights that it has never seen.
    """
    reward.need("reward")
    called = reward.step or str(reward.path)
    folder = reward.path / "adapter"
    remedy = "Train it with stage=reward/lora model.weights=<this policy>, or say roles=separate."
    if not (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{called}: a reward model without an adapter cannot share a trunk",
            cause="All its weights were trained, or it was merged by others.",
            remedy=remedy,
        )
    parent = reward.parents.get("model.weights")
    if parent is None or parent.fingerprint != trunk.fingerprint:
        stood = f"{parent.reference} ({parent.fingerprint[:8]})" if parent else "a model that no record names"
        raise UserError(
            f"{called}: its adapter was trained on {stood}, and the policy is {trunk.fingerprint[:8]}",
            cause="With roles=shared both stand on the same weights.",
            remedy=remedy,
        )
    return folder


def view(model: Model) -> Model:
    """The model with modules of its own around the same parameters and buffers.

    What is put in the place of a module here changes nothing there; a weight exists once.
    """
    same: Mapping[int, Tensor] = {id(one): one for one in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, dict(same))


class Shifted(nn.Module):
    """A frozen projection, and ΔW beside it: x Wᵀ + x ΔWᵀ. It is never added into W, where fp32 would round it away."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.register_buffer("update_OI", torch.zeros_like(base.weight, dtype=torch.float32))

    update_OI: Tensor

    def forward(self, x: Tensor) -> Tensor:
        result = self.base(x)
        return (result + functional.linear(x.to(self.update_OI.dtype), self.update_OI)).to(result.dtype)


class Half(nn.Linear):
    """A frozen projection kept in bf16, which computes in the precision of what it is given."""

    compute_dtype = torch.float32
    """PEFT makes adapters of this type; of the weight's it would round the factors that it draws."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features, bias=False, device="meta")
        self.weight = nn.Parameter(base.weight.detach().bfloat16(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        # Autocast takes bf16 as it is; widening first would be undone by it.
        autocast = torch.is_autocast_enabled(x.device.type)
        return functional.linear(x, self.weight if autocast else self.weight.to(x.dtype))


def _replace(model: nn.Module, kind: type[Shifted] | type[Half]) -> None:
    # By name, so that nothing here keeps the weights that are replaced.
    for parent, name in [(parent, path.rpartition(".")[2]) for parent, path, _ in _projections(model)]:
        setattr(parent, name, kind(getattr(parent, name)))


def _projections(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """What adapters stand on: (the module that holds it, its path, the projection)."""
    for path, module in model.named_modules():
        for name in ADAPTED:
            if isinstance(projection := getattr(module, name, None), nn.Linear):
                yield module, f"{path}.{name}", projection


def _factors(adapted: Any) -> tuple[Tensor, Tensor, float]:
    """``a_RI``, ``b_OR`` in fp32 and the scale of a projection's adapter."""
    a_RI, b_OR = adapted.lora_A[ADAPTER].weight, adapted.lora_B[ADAPTER].weight
    return a_RI.float(), b_OR.float(), adapted.scaling[ADAPTER]


def _under_zeros(trunk: core.CausalLM) -> heads.RewardModel:
    """The trunk under a head of zeros, so that the first values of a fresh critic are 0 everywhere."""
    model = heads.with_head(trunk, seed=0)
    nn.init.zeros_(model.score.weight)
    return model


def _fresh(model: nn.Module, rank: int, alpha: float, *, trained: list[str] | None = None) -> PeftModel:
    """A fresh adapter on every projection; B is zero, so that nothing changes yet."""
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=0.0,
        target_modules=ADAPTED,
        modules_to_save=trained,
        task_type="SEQ_CLS" if trained else "CAUSAL_LM",
    )
    return cast(PeftModel, get_peft_model(cast(Any, model), config))


def _trained(model: heads.RewardModel, folder: Path, *, further: bool) -> PeftModel:
    """Adapter and head as they were saved; ``further`` makes them trainable. Raises :class:`UserError` for a part."""
    config: Any = PeftConfig.from_pretrained(str(folder))
    config.lora_dropout, config.inference_mode = 0.0, not further
    adapted = cast(PeftModel, get_peft_model(cast(Any, model), config))
    stored = load_file(folder / "adapter_model.safetensors")
    different = get_peft_model_state_dict(adapted).keys() ^ stored.keys()
    if different:
        raise UserError(
            f"{folder} does not hold the adapter and the head of a reward model on this trunk: {min(different)}",
            cause="A factor that is not there would stay as it was drawn.",
            remedy="Copy the model again, or train it again with stage=reward.",
        )
    set_peft_model_state_dict(adapted, stored)
    return adapted.train(further)
