"""DeepSpeed's ZeRO as the trainers here use it: its configuration, its beginning, and the way out of it.

Weights stay fp32 and are their own masters; bf16 is autocast inside the forward pass, as without DeepSpeed. So one
engine computes what another does, and what is saved is what was learned.

Under ZeRO 3 no process ever needs room for a whole model on its device: what no engine has lies in the memory of rank
0's CPU, the others have its modules alone (``Engine.place``). It is divided one weight at a time when an engine takes
it, and comes back one weight at a time.
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
from alignment.training import team
from alignment.training.engine import Engine


def config(engine: Engine, *, universal: bool = False) -> dict[str, Any] | None:
    """DeepSpeed's configuration, or None where ZeRO is off. ``universal``: a checkpoint of another size is read."""
    settings = engine.settings
    if not settings.zero:
        return None
    cuda = engine.device == "cuda"
    zero: dict[str, Any] = {"stage": settings.zero, "overlap_comm": cuda, "contiguous_gradients": True}
    if settings.offload:
        zero |= {"offload_optimizer": _on_cpu(engine.device)} | _parts_of_weights(engine)
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


def _on_cpu(device: str) -> dict[str, Any]:
    return {"device": "cpu", "pin_memory": device == "cuda"}


def _parts_of_weights(engine: Engine) -> dict[str, Any]:
    """Where ZeRO 3 keeps this process's parts of the weights, if not on the device."""
    offload = engine.settings.offload and engine.settings.zero == 3
    return {"offload_param": _on_cpu(engine.device)} if offload else {}


def _quietly() -> Any:
    """DeepSpeed, as it is used here."""
    import deepspeed

    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    # The one counts accumulation beside DeepSpeed and says so; the other, that there is no tensor parallelism.
    for name in ("accelerate.accelerator", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # A kernel for processes of one machine, which would be compiled first.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def begin(engine: Engine) -> bool:
    """Make Accelerate ready for DeepSpeed in these processes. Returns whether it is to take its state as it is.

    On CPUs Accelerate knows either several processes or DeepSpeed, and silently trains without the other; there both
    are said to it.
    """
    if not engine.settings.zero:
        return False
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    _quietly()
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


def end(model: nn.Module, engine: Engine, *, keep: bool = True) -> None:
    """Leave DeepSpeed: afterwards ``model``, which it had wrapped, is plain.

    What ZeRO 3 had divided is whole on rank 0, in the memory of its CPU, and without weights on the others; where it is
    not to be kept, on all of them.
    """
    if not engine.settings.zero:
        return
    wrapped: Any = model
    plain: nn.Module = wrapped.module
    _leave(wrapped, _gathered(plain) if keep else {id(one): _empty(one) for one in plain.parameters()})


def divide(model: nn.Module, device: str, kept: Mapping[str, Any]) -> None:
    """Divide weights as ZeRO 3 does, one after the other; their values are rank 0's, and every process comes here.

    ``kept`` says where the parts are, if not on the device (:func:`divide_for`).
    """
    deepspeed = _quietly()
    deepspeed.init_distributed()
    settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3, **kept}}
    dividing = deepspeed.zero.Init(module=nn.Module(), config_dict_or_path=settings)
    fresh: dict[int, nn.Parameter] = {}
    for parameter in model.parameters():
        if is_divided(parameter):
            continue
        held = parameter
        if parameter.is_meta:
            here = torch.empty_like(parameter, device=device)
            held = fresh[id(parameter)] = nn.Parameter(here, parameter.requires_grad)
        # Takes it to the device, has it as rank 0 has it, and lets go of all but this process's part.
        dividing._convert_to_zero_parameters([held])
    _replace(model, fresh)
    _move_buffers(model, device)


def divide_for(model: nn.Module, engine: Engine) -> None:
    """Divide a model that an engine is about to take; DeepSpeed itself would have it whole on the device first."""
    if engine.settings.zero == 3:
        divide(model, engine.device, _parts_of_weights(engine))


@contextmanager
def reading(reader: nn.Module, device: str) -> Iterator[nn.Module]:
    """What computes as ``reader`` does while the block lasts, without gradients, its models in eval mode.

    Where ``Engine.place`` is not the device, weights are divided meanwhile, the parts in the memory of the CPUs: all
    processes come here, and call it equally often. Afterwards each has again what it had, as parameters that are new:
    no other module may share them.
    """
    was_training = {module: module.training for module in reader.modules()}
    reader.eval()
    if _is_elsewhere(reader, device):
        held = [
            nn.Parameter(one.detach().cpu(), one.requires_grad) if ranks.is_main() else _empty(one)
            for one in reader.parameters()
        ]
        wrapped = _divided(reader, device, {"offload_param": _on_cpu(device)})
        yield wrapped
        # As they were, and not gathered: nothing has changed them.
        _leave(wrapped, {id(now): before for now, before in zip(reader.parameters(), held, strict=True)})
    else:
        yield reader
    for module, training in was_training.items():
        module.training = training


def everywhere(model: nn.Module, device: str) -> None:
    """Make a model whole on every process's device, for what cannot read it divided; all of them come here."""
    if any(is_divided(weight) for weight in model.parameters()) or not _is_elsewhere(model, device):
        return
    _quietly().init_distributed()
    whole: dict[int, nn.Parameter] = {}
    for parameter in model.parameters():
        held = parameter.detach()
        here = torch.empty_like(held, device=device) if held.is_meta else held.to(device)
        torch.distributed.broadcast(here, 0)
        whole[id(parameter)] = nn.Parameter(here, parameter.requires_grad)
    _replace(model, whole)
    _move_buffers(model, device)


def _is_elsewhere(model: nn.Module, device: str) -> bool:
    """Whether some process lacks weights on its device; every process comes here, and all hear the same."""
    return any(team.exchange(any(weight.device.type != device for weight in model.parameters())))


def needs_reentrance(model: nn.Module, engine: Engine) -> bool:
    """Whether activations have to be computed again by PyTorch's older, reentrant way.

    The other one keeps what is saved while a layer is computed again; weights under adapters that ZeRO 3 has gathered
    for that are empty again when the backward pass takes them.
    """
    return engine.settings.zero == 3 and hasattr(model, "peft_config")


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


def divided(model: nn.Module, engine: Engine) -> nn.Module:
    """A model that is read and not trained, its weights divided as ZeRO 3 does; it computes in lockstep everywhere."""
    return _divided(model, engine.device, _parts_of_weights(engine))


def _divided(model: nn.Module, device: str, kept: Mapping[str, Any]) -> nn.Module:
    divide(model, device, kept)
    # With a threshold of 0 no weight is kept whole as well, and what a process holds of one is all that there is of it.
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0, **kept}
    settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero}
    wrapped, *_ = _quietly().initialize(model=model, config=settings)
    wrapped.eval()
    return wrapped


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


def _leave(wrapped: Any, instead: dict[int, nn.Parameter]) -> None:
    """End one of DeepSpeed's engines, and put plain parameters in the place of those that it had divided."""
    from transformers.integrations import deepspeed as integration

    wrapped.destroy()
    _replace(wrapped.module, instead)
    if instead:
        _move_buffers(wrapped.module, "cpu")
    # Models that are loaded from here on would be divided as well.
    integration.unset_hf_deepspeed_config()
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)


def _gathered(model: nn.Module) -> dict[int, nn.Parameter]:
    """For every divided parameter, by its id, a whole one on rank 0, and one that is empty on the others."""
    whole: dict[int, nn.Parameter] = {}
    for parameter in model.parameters():
        if is_divided(parameter):
            with gathering([parameter]):
                held = parameter.detach().to("cpu", copy=True) if ranks.is_main() else None
            plain = _empty(parameter) if held is None else nn.Parameter(held, parameter.requires_grad)
            whole[id(parameter)] = plain
    return whole


def _empty(parameter: nn.Parameter) -> nn.Parameter:
    """A parameter of the same shape that holds nothing."""
    shape = getattr(parameter, "ds_shape", parameter.shape)
    return nn.Parameter(torch.empty(shape, dtype=parameter.dtype, device="meta"), parameter.requires_grad)


def _move_buffers(model: nn.Module, device: str) -> None:
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)


def _replace(model: nn.Module, whole: dict[int, nn.Parameter]) -> None:
    """Put plain parameters in the place of divided ones, wherever they are held; tied ones stay tied."""
    for module in model.modules():
        held = dict(module._parameters.items())
        # A plain dictionary: DeepSpeed's own gathers what is asked of it.
        module._parameters = {
            name: whole.get(id(parameter), parameter) if parameter is not None else None
            for name, parameter in held.items()
        }
