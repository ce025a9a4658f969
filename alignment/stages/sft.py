"""Fine-tune a model on conversations, with loss on the answers alone."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal

from alignment.artifacts import Artifact, Outcome
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, reference
from alignment.training.engine import EngineSettings
from alignment.training.model_settings import AdapterSettings, ModelSettings
from alignment.training.optimisation import Optimisation, disk_for
from alignment.training.tracking import TrackerSettings

ALGORITHM_VERSION = 1
HELD_OUT_ROWS = 512


class Settings(StrictSettings):
    """``stage=sft``."""

    model: ModelSettings = identity("the model to start from")
    data: str = reference("a dataset of conversations")
    too_long: Literal["refuse", "leave_out"] = identity(
        "what becomes of a conversation longer than the context; *_left_out.jsonl lists what is left out"
    )
    seed: int = identity("of the order of the rows and of a fresh adapter", ge=0)
    adapter: AdapterSettings = identity("train all weights, or a low-rank adapter")
    optimisation: Optimisation = identity("how the model is trained")
    engine: EngineSettings = execution("where and how it runs")
    tracker: TrackerSettings = execution("where its metrics go")


def disk_needed_from(settings: Settings, folders: Mapping[str, Path]) -> int:
    """Bytes for the model and its checkpoints, by its own weights where they are there already."""
    rank = None if settings.adapter.kind == "none" else settings.adapter.rank
    folder = folders.get("model.weights")
    return disk_for(settings.optimisation, settings.model.shape, folder, rank=rank)


def run(settings: Settings, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """Train on the training split, measure on the validation split, write a model directory.

    An adapter is merged into the weights that are written, and also kept beside them in ``adapter/``.
    """
    import torch

    from alignment.chat.types import row_key
    from alignment.data import seen
    from alignment.training import policies, snapshots
    from alignment.training.engine import resolve
    from alignment.training.kept_rows import kept_rows
    from alignment.training.rows import TokenRows
    from alignment.training.session import train_and_measure

    engine = resolve(settings.engine)
    snapshots.need_whole_models(settings.optimisation.snapshots, settings.adapter.kind)
    dataset = inputs["data"].need("dataset")
    model = settings.model
    policy = policies.open_policy(
        inputs["model.weights"],
        engine,
        shape=model.shape,
        schema=model.chat_schema,
        attention=model.attention,
        four_bit=settings.adapter.kind == "qlora",
    )
    learned, held = (kept_rows(dataset.path, split, policy, settings.too_long, out) for split in ("train", "valid"))
    if settings.adapter.kind != "none":
        torch.manual_seed(settings.seed)
        policy = policies.adapt(policy, settings.adapter)
    outcome = train_and_measure(
        policy,
        title="sft",
        rows=TokenRows.gather((row.ids, row.mask) for row in learned),
        held_out_rows=TokenRows.gather((row.ids, row.mask) for row in held[:HELD_OUT_ROWS]) if held else None,
        out=out,
        numbers=settings.optimisation,
        engine=engine,
        tracker_settings=settings.tracker,
        config=settings.model_dump(mode="json"),
        inputs=inputs,
        seed=settings.seed,
    )
    snapshots.write(out, policies.trained(policy), partial(policies.save_policy, policy))
    if settings.adapter.kind != "none":
        policy = policies.merge_adapter(policy, inputs["model.weights"], out)
    policies.save_policy(policy, out)
    # What was only measured on is not seen: whoever tunes on the validation split may measure on it too.
    seen.write(out, (row_key(row.conversation) for row in learned), [artifact.path for artifact in inputs.values()])
    return outcome
