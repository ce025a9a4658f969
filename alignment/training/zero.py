"""DeepSpeed's ZeRO as the trainers here use it: its configuration, its beginning, and the way out of it.

Weights stay fp32 and are their own masters; bf16 is autocast inside the forward pass, as without DeepSpeed. So one
engine computes what another does, and what is saved is what was learned.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

if not torch.cuda.is_available():
    # DeepSpeed, where installed, would otherwise look for an accelerator and print that there is none.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

from torch import Tensor, nn

from alignment import ranks
from alignment.training.engine import Engine


def config(engine: Engine, *, universal: bool = False) -> dict[str, Any] | None:
    """DeepSpeed's configuration, or None where ZeRO is off. ``universal``: a checkpoint of another size is read."""
    settings = engine.settings
    if not settings.zero:
        return None
    cuda = engine.device == "cuda"
    zero: dict[str, Any] = {"stage": settings.zero, "overlap_comm": cuda, "contiguous_gradients": True}
    if settings.offload:
        where = {"device": "cpu", "pin_memory": cuda}
        zero |= {"offload_optimizer": where} | ({"offload_param": where} if settings.zero == 3 else {})
    return {
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        # Its own Adam for CPUs would be compiled first.
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
    } | ({"checkpoint": {"load_universal": True}} if universal else {})


def begin(engine: Engine) -> bool:
    """Make Accelerate ready for DeepSpeed in these processes. Returns whether it is to take its state as it is.

    On CPUs Accelerate knows either several processes or DeepSpeed, and silently trains without the other; there both
    are said to it.
    """
    if not engine.settings.zero:
        return False
    import deepspeed
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    # The one counts accumulation beside DeepSpeed and says so; the other, that there is no tensor parallelism.
    for name in ("accelerate.accelerator", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # A kernel for processes of one machine, which would be compiled first.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    if engine.device == "cuda":
        return False
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState(cpu=True)
    PartialState._shared_state.update(distributed_type=DistributedType.DEEPSPEED, _cpu=False)
    return True


def need_engine(model: nn.Module, engine: Engine, processes: int) -> None:
    """What trains is what was asked for: the processes, and ZeRO's stage. ``model`` is as Accelerate wrapped it."""
    asks: Any = getattr(model, "zero_optimization_stage", lambda: 0)
    stage = asks()
    found = processes, torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1, stage
    asked = engine.world, engine.world, engine.settings.zero
    assert found == asked, f"(Accelerate's processes, PyTorch's, ZeRO's stage) are {found} and not {asked}"
    wrapped = isinstance(model, nn.parallel.DistributedDataParallel)
    # One process that a launcher has started is wrapped as well, and averages with nobody.
    fits = wrapped == (engine.world > 1 and not stage) or engine.world == 1
    assert fits, f"{type(model).__name__} trains in {engine.world} processes"


def end(model: nn.Module, engine: Engine) -> None:
    """Leave DeepSpeed: afterwards ``model``, which it had wrapped, is plain, and whole on every process."""
    if not engine.settings.zero:
        return
    from transformers.integrations import deepspeed as integration

    wrapped: Any = model
    plain: nn.Module = wrapped.module
    whole = _gathered(plain)
    wrapped.destroy()
    _replace(plain, whole)
    # Models that are loaded from here on would be divided as well.
    integration.unset_hf_deepspeed_config()
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)


def is_divided(weight: Tensor) -> bool:
    """Whether ZeRO 3 has divided a weight among the processes."""
    return hasattr(weight, "ds_id")


def own_part(weight: Tensor) -> Tensor:
    """What this process holds of a weight."""
    return weight.ds_tensor if is_divided(weight) else weight  # type: ignore[attr-defined]


def gathering(weights: list[nn.Parameter]) -> Any:
    """While the block lasts, these weights are whole on every process; every process has to come here."""
    divided = [weight for weight in weights if is_divided(weight)]
    if not divided:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(divided)


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """While the block lasts, all weights of an engine's model are whole, and its modules plain ones.

    Every process has to come here; inside, each computes what it likes. ``model`` is as DeepSpeed wrapped it.
    """
    engine: Any = model
    if not any(is_divided(weight) for weight in engine.module.parameters()):
        yield
        return
    from trl.models.utils import add_hooks, remove_hooks

    # The hooks of the modules would divide each weight again behind its first use.
    with gathering(list(engine.module.parameters())):
        remove_hooks(engine)
        try:
            yield
        finally:
            add_hooks(engine)


def divided(model: nn.Module) -> nn.Module:
    """A model that is read and not trained, its weights divided as ZeRO 3 does; it computes in lockstep everywhere."""
    import deepspeed

    # With a threshold of 0 no weight is kept whole as well, and what a process holds of one is all that there is of it.
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
    settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero}
    engine, *_ = deepspeed.initialize(model=model, config=settings)
    engine.eval()
    return engine


def hold_count(model: nn.Module, role: str) -> None:
    """Set the optimiser's count of steps back for the parameters of a role, whose gradients were 0 so far.

    Its moments have not moved either: it is as if they had not been stepped.
    """
    around: Any = model.optimizer
    adam = around.optimizer
    if hasattr(around, "sub_group_to_group_id"):
        groups = [
            adam.param_groups[around.sub_group_to_group_id[i]] for i in range(len(around.fp32_partitioned_groups_flat))
        ]
        held = [
            flat
            for flat, group in zip(around.fp32_partitioned_groups_flat, groups, strict=True)
            if group["role"] == role
        ]
    else:
        held = [weight for group in adam.param_groups if group["role"] == role for weight in group["params"]]
    for weight in held:
        adam.state[weight]["step"].zero_()


def part_of(whole_weight: Tensor, weight: Tensor) -> Tensor:
    """This process's part of ``whole_weight``, as ``weight`` is divided; empty where others hold all of it."""
    size = weight.ds_tensor.numel()  # type: ignore[attr-defined]
    return whole_weight.flatten()[ranks.rank() * size :][:size]


def on_main(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of weights, whole, on rank 0 and in the memory of its CPU; nothing on the others, which come here too."""
    found = {}
    for name, weight in weights.items():
        with gathering([weight] if isinstance(weight, nn.Parameter) else []):
            if ranks.is_main():
                found[name] = weight.detach().cpu().clone().contiguous()
    return found


def _gathered(model: nn.Module) -> dict[int, nn.Parameter]:
    """For every divided parameter of the model, by its id, a whole one in its place."""
    whole: dict[int, nn.Parameter] = {}
    for parameter in model.parameters():
        if is_divided(parameter):
            with gathering([parameter]):
                whole[id(parameter)] = nn.Parameter(parameter.data.clone(), parameter.requires_grad)
    return whole


def _replace(model: nn.Module, whole: dict[int, nn.Parameter]) -> None:
    """Put plain parameters in the place of divided ones, wherever they are held; tied ones stay tied."""
    for module in model.modules():
        held = dict(module._parameters.items())
        # A plain dictionary: DeepSpeed's own gathers what is asked of it.
        module._parameters = {
            name: whole.get(id(parameter), parameter) if parameter is not None else None
            for name, parameter in held.items()
        }
