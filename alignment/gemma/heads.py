"""A Gemma with a scalar score in the place of its vocabulary: the reward model.

On disk it is a plain ``*ForSequenceClassification`` of one label, whose vanilla logits are our raw scores. What a
score means besides stands in ``config.json``, in the block ``reward`` (:class:`Scale`), with the digest of the head: a
head that is missing, or that is not the one which was trained, is refused and never drawn afresh.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import Gemma2ForSequenceClassification, GemmaForSequenceClassification

from alignment import files
from alignment.errors import UserError
from alignment.gemma import core
from alignment.gemma.directory import INDEX, weight_map

RewardModel = GemmaForSequenceClassification | Gemma2ForSequenceClassification
REWARD_MODELS: dict[str, Callable[[Any], RewardModel]] = {
    "gemma": GemmaForSequenceClassification,
    "gemma2": Gemma2ForSequenceClassification,
}
HEAD = "score.weight"
BLOCK = "reward"


@dataclass(frozen=True)
class Scale:
    """How a model's scores are read.

    ``centre`` is subtracted from what is reported or mixed, never from what a threshold reads. ``absolute`` says
    whether 0 means something by itself: Bradley–Terry alone fixes only differences. ``schema`` is that of the chat.
    """

    centre: float
    absolute: bool
    schema: str


def with_head(model: core.CausalLM, seed: int) -> RewardModel:
    """The trunk of ``model`` itself, not a copy, under a fresh head drawn with std 1/√(d + 1), without a bias.

    The scale is that of Huang et al. (arXiv 2403.17031): scores begin with a variance of about 1.
    """
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    config.id2label, config.label2id = {0: "reward"}, {"reward": 0}
    with torch.device("meta"):
        reward = REWARD_MODELS[config.model_type](config)
    width = config.hidden_size
    drawn = torch.randn((1, width), generator=torch.Generator().manual_seed(seed))
    head = nn.Linear(width, 1, bias=False, device="meta")
    head.weight = nn.Parameter((drawn / math.sqrt(width + 1)).to(core.trunk(model).embed_tokens.weight.device))
    reward.model, reward.score = cast(Any, core.trunk(model)), head
    return reward.eval()


def head_of(model: nn.Module) -> Tensor:
    """``weight_1D`` of the head; PEFT's trained copy of it where there is one."""
    base = getattr(model, "get_base_model", lambda: model)()
    head = getattr(base.score, "modules_to_save", {"default": base.score})
    return head["default"].weight


def load_reward(
    directory: str | Path,
    *,
    ours: bool = False,
    device: str = "cpu",
    place: str | None = None,
    attention: str = "auto",
) -> tuple[RewardModel, Scale | None]:
    """A reward model in fp32 and eval mode, and its scale; None for the scale of one that we did not write.

    Everything is checked before a weight is read, as in :func:`core.load`. Raises :class:`UserError` for a model
    without a head, with one of several labels, with another head than the recorded one, or, where it is known to be
    ``ours``, without the record of its head.
    """
    path = Path(directory)
    settings = core.read_config(path)
    architecture: Any = REWARD_MODELS[settings.model_type]
    if settings.num_labels != 1:
        raise UserError(
            f"{path} has {settings.num_labels} labels.",
            cause="A reward model gives one score.",
            remedy="Name a *ForSequenceClassification with num_labels 1; a policy becomes one by stage=reward.",
        )
    core.check_tensors(path, architecture, settings)
    scale = check_head(path, ours=ours)
    attention = core.attention_for(settings, device, attention)
    model = core.read(architecture, path, settings, dtype=torch.float32, attention=attention, place=place or device)
    return model, scale


def save_reward(model: nn.Module, directory: str | Path, scale: Scale, *, shard_size: str = "4GB") -> None:
    """Write config.json with the scale, and the weights as safetensors; adapters must be merged before."""
    assert isinstance(model, RewardModel), f"a plain reward model is saved, not {type(model).__name__}"
    model.save_pretrained(directory, max_shard_size=shard_size)
    write_scale(directory, scale)


def is_reward(directory: Path) -> bool:
    """Whether ``config.json`` names a reward model of Gemma's shape."""
    names = [
        architecture.__name__ for architecture in (GemmaForSequenceClassification, Gemma2ForSequenceClassification)
    ]
    named = _config(directory).get("architectures")
    return isinstance(named, list) and any(name in names for name in named)


def check_head(directory: str | Path, *, ours: bool) -> Scale | None:
    """The scale of a directory whose head is the recorded one; None for a foreign directory, which has no record.

    Raises :class:`UserError` for another head, and for a directory of ours that has lost its record.
    """
    path = Path(directory)
    scale = read_scale(path)
    if scale is None and ours:
        raise UserError(
            f"{path / 'config.json'} has lost what says how its scores are read.",
            cause=f"There is no block {BLOCK!r} in it, and so no telling whether its head was ever trained.",
            remedy="Copy the model again, or train it again with stage=reward.",
        )
    if scale is not None and _config(path)[BLOCK].get("head_digest") != _digest(_stored_head(path)):
        raise UserError(
            f"{path} has another head than the one that was trained.",
            cause="Its score.weight is not that whose digest config.json holds.",
            remedy="Copy the model again, or train it again with stage=reward.",
        )
    return scale


def read_scale(directory: str | Path) -> Scale | None:
    """The scale that a directory's ``config.json`` tells, or None where it has none, or a block of another's making."""
    block = _config(Path(directory)).get(BLOCK)
    if not isinstance(block, dict) or not {"centre", "absolute", "schema"} <= block.keys():
        return None
    centre, absolute, schema = block["centre"], block["absolute"], block["schema"]
    number = isinstance(centre, int | float) and not isinstance(centre, bool) and math.isfinite(centre)
    if not (number and isinstance(absolute, bool) and isinstance(schema, str)):
        raise UserError(
            f"{Path(directory) / 'config.json'}: its block {BLOCK!r} cannot be read",
            cause=f"centre is to be a number ({centre!r}), absolute true or false ({absolute!r}), schema a name.",
            remedy="Copy the model again.",
        )
    return Scale(float(centre), absolute, schema)


def write_scale(directory: str | Path, scale: Scale) -> None:
    """Write the scale and the digest of the head that lies in the directory."""
    path = Path(directory)
    settings = _config(path)
    settings[BLOCK] = {**asdict(scale), "head_digest": _digest(_stored_head(path))}
    files.write_json(path / "config.json", settings)


def _config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read.", cause=str(error)) from None
    if not isinstance(found, dict):
        raise UserError(f"{path} cannot be read.", cause="It holds no keys.")
    return found


def _stored_head(directory: Path) -> Tensor:
    index = directory / INDEX
    name = weight_map(index).get(HEAD, "") if index.is_file() else "model.safetensors"
    try:
        with safe_open(directory / name, framework="pt") as tensors:
            return tensors.get_tensor(HEAD)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{directory}: its head cannot be read", cause=str(error), remedy="Copy it again.") from None


def _digest(head: Tensor) -> str:
    return hashlib.sha256(head.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()
