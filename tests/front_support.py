"""What runs and evaluations leave behind, with planted numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from alignment.artifacts import Artifact, Parent

PROMPTS = 400


def _parents(**fingerprints: str) -> dict[str, Parent]:
    return {name: Parent(f"step:{name}", fingerprint, "") for name, fingerprint in fingerprints.items()}


def run(
    folder: Path,
    looks: Sequence[tuple[int, float, float, float]],
    *,
    policy: str = "p" * 64,
    prompts: str = "q" * 64,
    reward: str = "r" * 64,
    held: int = 300,
    reference: str | None = None,
) -> Artifact:
    """A run whose looks are (step, KL, reward, gold)."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"step": s, "kl": kl, "reward": r, "others": {"gold:overall": gold}} for s, kl, r, gold in looks]
    told = {} if reference is None else {"watching.reference": Parent("step:sft", reference, "")}
    (folder / "front.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Artifact(
        folder,
        "policy",
        "rl",
        folder.name,
        f"{folder.name:0>64}",
        parents=_parents(policy=policy, prompts=prompts) | {"reward.model": Parent("step:reward", reward, "")} | told,
        settings={"watching": {"prompts": held, "keep": "last"}, "drawing": {"temperature": 1.0}},
        metrics={"steps": float(looks[-1][0])},
    )


def evaluation(
    folder: Path,
    models: Mapping[str, Mapping[str, np.ndarray]],
    *,
    prompts: str = "q" * 64,
    reference: str = "p" * 64,
    count: int = PROMPTS,
) -> Artifact:
    """An evaluation in which every prompt's answer got what is planted; a model's fingerprint is its name."""
    folder.mkdir(parents=True, exist_ok=True)
    means = {
        model: {
            name: {"estimate": float(one.mean()), "low": 0.0, "high": 0.0}
            for name, one in [*measures.items(), ("tokens", np.ones(1)), ("finished", np.ones(1))]
        }
        for model, measures in models.items()
    }
    (folder / "results.json").write_text(json.dumps({"confidence": 0.95, "models": means}))
    rows = [
        {"model": model, "id": f"p-{place}", "prompt": [{"role": "user", "content": f"Question {place}?"}]}
        | {name: float(one[place]) for name, one in measures.items()}
        for model, measures in models.items()
        for place in range(PROMPTS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "answers.parquet")
    parents = _parents(prompts=prompts, reference=reference)
    parents |= {f"models.{place}": Parent(f"step:{name}", name, "") for place, name in enumerate(models)}
    return Artifact(
        folder, "evaluation", "evaluate", folder.name, "e" * 64, parents=parents, settings={"count": count, "seed": 0}
    )
