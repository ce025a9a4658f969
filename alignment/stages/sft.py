"""Fine-tune a model on conversations, with loss on the answers alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from alignment.artifacts import Artifact, Outcome
from alignment.errors import UserError
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, reference
from alignment.training.engine import EngineSettings
from alignment.training.model_settings import AdapterSettings, ModelSettings
from alignment.training.optimisation import Optimisation, disk_for
from alignment.training.tracking import TrackerSettings

if TYPE_CHECKING:
    from alignment.chat.types import Conversation
    from alignment.training.policies import Policy

ALGORITHM_VERSION = 1
HELD_OUT_ROWS = 512
LEFT_OUT = "left_out.jsonl"


class Settings(StrictSettings):
    """``stage=sft``."""

    model: ModelSettings = identity("the model to start from")
    data: str = reference("a dataset of conversations")
    too_long: Literal["refuse", "leave_out"] = identity(
        f"what becomes of a conversation longer than the context; what is left out is listed in {LEFT_OUT}"
    )
    seed: int = identity("of the order of the rows and of a fresh adapter", ge=0)
    adapter: AdapterSettings = identity("train all weights, or a low-rank adapter")
    optimisation: Optimisation = identity("how the model is trained")
    engine: EngineSettings = execution("where and how it runs")
    tracker: TrackerSettings = execution("where its metrics go")


def disk_needed(settings: Settings) -> int:
    """Bytes for the model and its checkpoints."""
    return disk_for(settings.model.shape, settings.optimisation)


def run(settings: Settings, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """Train on the training split, measure on the validation split, write a model directory.

    An adapter is merged into the weights that are written, and also kept beside them in ``adapter/``.
    """
    import torch

    from alignment.chat.types import row_key
    from alignment.data import seen
    from alignment.training import policies, snapshots
    from alignment.training.engine import resolve
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
    learned, held = (_kept(dataset, split, policy, settings, out) for split in ("train", "valid"))
    if settings.adapter.kind != "none":
        torch.manual_seed(settings.seed)
        policy = policies.adapt(policy, settings.adapter)
    outcome = train_and_measure(
        policy,
        title="sft",
        rows=TokenRows.gather(rendered for _, rendered in learned),
        held_out_rows=TokenRows.gather(rendered for _, rendered in held[:HELD_OUT_ROWS]) if held else None,
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
    seen.write(out, (row_key(one) for one, _ in learned), [artifact.path for artifact in inputs.values()])
    return outcome


Pair = tuple["Conversation", tuple[list[int], list[bool]]]


def _kept(dataset: Artifact, split: str, policy: Policy, settings: Settings, out: Path) -> list[Pair]:
    """The conversations of a split that fit the context, rendered; the others as the settings say."""
    import json

    from alignment import files, ranks
    from alignment.data import store

    if split != "train" and split not in store.card(dataset.path)["rows"]:
        return []
    kept: list[Pair] = []
    left_out: list[dict[str, object]] = []
    for conversation, ids, mask in _rendered(dataset, split, policy):
        if len(ids) <= policy.tokens_limit:
            kept.append((conversation, (ids, mask)))
        elif settings.too_long == "leave_out":
            left_out.append({"id": conversation.id, "tokens": len(ids), "split": split, "reason": "too long"})
        else:
            raise UserError(
                f"{dataset.path}: conversation {conversation.id} has {len(ids):,} tokens",
                cause=f"The model's context is {policy.tokens_limit:,} tokens.",
                remedy=f"Say too_long=leave_out (they are listed in {LEFT_OUT}), or shorten it in the recipe.",
            )
    if left_out and ranks.is_main():
        lines = "".join(json.dumps(line) + "\n" for line in left_out)
        files.write_atomic(out / f"{split}_{LEFT_OUT}", lines)
    return kept


def _rendered(dataset: Artifact, split: str, policy: Policy) -> Iterator[tuple[Conversation, list[int], list[bool]]]:
    from alignment.chat.render import render
    from alignment.chat.types import Conversation
    from alignment.data import store

    for row in store.stream(dataset.path, split):  # type: ignore[arg-type]
        if not isinstance(row, Conversation):
            raise UserError(
                f"{dataset.path} holds no conversations", remedy="sft takes conversations; pretrain takes text."
            )
        rendered = render(row.messages, policy.tokenizer, policy.schema, row.train)
        yield row, rendered.ids, rendered.mask
