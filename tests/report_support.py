"""A small store to report on: SFT, a reward model, two runs, their merge, and what was measured of them all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alignment import artifacts
from alignment.artifacts import Artifact, Kind, Parent

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)><b>bold</b> &lt; \u2028 ${title} `x`"
PROMPTS = 6
TAGS = ("fact", "unsafe", HOSTILE)


def estimate(value: float, half: float = 0.02) -> dict[str, float]:
    return {"estimate": value, "low": value - half, "high": value + half}


class Making:
    """Writes finished artifacts into one store, with records whose bytes are always the same."""

    def __init__(self, root: Path, pipeline: str = "mini") -> None:
        self.folder = root / pipeline
        self.made: dict[str, Artifact] = {}

    def add(
        self,
        step: str,
        stage: str,
        kind: Kind,
        parents: Mapping[str, str] | None = None,
        files: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Artifact:
        """``parents`` names earlier steps by input; a file is JSON, rows of JSON or a table, by its ending."""
        fingerprint = hashlib.sha256(f"{self.folder.name}/{step}".encode()).hexdigest()
        path = self.folder / f"{step}-{fingerprint[:8]}"
        path.mkdir(parents=True)
        of = {key: self._parent(name) for key, name in (parents or {}).items()}
        made = Artifact(
            path=path,
            kind=kind,
            stage=stage,
            step=step,
            fingerprint=fingerprint,
            parents=of,
            versions={"python": "3.11.7", "torch": "2.13.0"},
            machine={"cpu": "a processor", "cores": 2},
            created="2026-01-02T03:04:05Z",
            seconds=12.5,
            licences=("Apache-2.0",),
            **more,
        )
        for name, content in (files or {}).items():
            _write(path / name, content)
        record = {"schema_version": artifacts.SCHEMA_VERSION, **asdict(made)}
        record.pop("path")
        (path / artifacts.RECORD).write_text(json.dumps(record))
        self.made[step] = artifacts.load(path)
        return self.made[step]

    def _parent(self, name: str) -> Parent:
        if name in self.made:
            return Parent(f"step:{name}", self.made[name].fingerprint, str(self.made[name].path))
        return Parent(name, hashlib.sha256(name.encode()).hexdigest(), f"/nowhere/{name.replace(':', '-')}")


def _write(path: Path, content: Any) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(content), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    else:
        path.write_text(json.dumps(content), encoding="utf-8")


def whole(root: Path) -> Making:
    """Everything that the page has a section for."""
    making = Making(root)
    making.add("prompts", "data", "dataset", metrics={"rows": 600.0})
    making.add("sft", "sft", "policy", {"data": "step:lost"}, settings={"seed": 0, "adapter": {"kind": "none"}})
    making.add("preference", "reward", "reward", {"model.weights": "sft", "data": "prompts"})
    making.add("pool", "reject", "dataset", {"policy": "sft", "prompts": "prompts"}, {"results.json": BEST_OF})
    runs = ("calm", "bold")
    for place, name in enumerate(runs):
        parents = {"policy": "sft", "prompts": "prompts", "reward.model": "preference"}
        making.add(name, "rl", "policy", parents, _run(place), settings={"reward": {"rule": "single"}, "seed": place})
    making.add(
        "slerp", "merge", "policy", {"models.0": "calm", "models.1": "bold", "init": "sft"}, {"merge.json": MERGED}
    )
    evaluate(making, "versions", ("sft", *runs, "slerp"))
    parents = {"models.0": "preference", "models.1": "gold:overall", "comparisons.0": "prompts"}
    making.add("judged", "measure", "evaluation", parents, {"results.json": JUDGED}, settings={"split": "test"})
    making.add("fronts", "front", "evaluation", {"runs.0": "calm", "runs.1": "bold"}, {"fronts.json": _fronts(making)})
    return making


def evaluate(
    making: Making, step: str, models: Sequence[str], *, seed: int = 0, golds: Sequence[float] = ()
) -> Artifact:
    """An evaluation whose answers are hostile; gold rises with the model's place unless it is given."""
    golds = golds or [0.4 + 0.1 * place for place in range(len(models))]
    results = {
        "confidence": 0.95,
        "models": {
            name: {
                "gold": estimate(gold),
                "gold_safety": estimate(0.9),
                "reward_preference": estimate(2 * gold - 1, 0.1),
                "kl": estimate(0.5 * place, 0.05),
                "tokens": estimate(11.5, 0.5),
                "finished": estimate(1.0, 0.0),
            }
            for place, (name, gold) in enumerate(zip(models, golds, strict=True))
        },
        "differences": {},
        "skills": {name: {"fact": 0.5, "unsafe": 0.9} for name in models},
        "skill_differences": {},
    }
    parents = {f"models.{place}": name for place, name in enumerate(models)}
    return making.add(
        step,
        "evaluate",
        "evaluation",
        parents | {"prompts": "prompts", "reference": "sft"},
        {"results.json": results, "answers.parquet": [row for name in models for row in _answers(name)]},
        settings={"split": "test", "count": 600, "seed": seed, "confidence": 0.95},
        notes={"device": "cpu", "precision": "fp32", "prompts": 600},
    )


def _answers(model: str) -> list[dict[str, Any]]:
    return [
        {
            "model": model,
            "id": f"p{place}",
            "tags": [TAGS[place % len(TAGS)]],
            "prompt": [{"role": "user", "content": f"Question {place}? {HOSTILE if place == 2 else ''}"}],
            "answer": HOSTILE if place == 2 else f"{model} says {'this' if place % 2 else 'that'}.",
            "tokens": 9,
            "finished": place != 3,
            "logprob": -1.0,
            "gold": place / PROMPTS,
            "kl": 0.25,
        }
        for place in range(PROMPTS)
    ]


def _run(place: int) -> dict[str, Any]:
    steps = (0, 10, 20)
    front = [
        {
            "step": step,
            "kl": step / 40 * (1 + place),
            "reward": step / 20 - 0.2,
            "others": {"gold:overall": 0.4 + step / 100},
        }
        for step in steps
    ]
    samples = [
        {
            "step": step,
            "prompt": f"Asked {number}?",
            "answer": f"{HOSTILE} {step}",
            "reward": 0.5,
            "kl": 0.1,
            "gold:overall": 0.3,
        }
        for step in steps
        for number in range(3)
    ]
    held = [
        {"step": row["step"], "held_out/kl": row["kl"], "held_out/reward": row["reward"], "held_out/gold:overall": 0.5}
        for row in front
    ]
    batches = [
        {
            "step": step,
            "score/mean": step / 20,
            "kl/anchor": None if step == 5 else 0.1,
            "length/mean": 11.0,
            "entropy": 0.5,
        }
        for step in range(1, 21)
    ]
    return {"front.jsonl": front, "samples.jsonl": samples, "metrics.jsonl": [*held, *batches]}


def _layer(angle: float) -> dict[str, Any]:
    return {
        "start_norm": 10.0,
        "task_norms": [1.0, 1.5],
        "angles": {"0,1": angle},
        "result_norm": 1.1,
        "coefficients": [0.5, 0.5],
    }


MERGED = {
    "method": "slerp",
    "models": [
        {"model": "calm", "fingerprint": "c" * 64, "weight": 0.5},
        {"model": "bold", "fingerprint": "b" * 64, "weight": 0.5},
    ],
    "geometry": {
        "whole": _layer(80.0),
        "groups": {
            "layers.10": _layer(70.0),
            "layers.2": _layer(75.0),
            "embed_tokens": _layer(85.0),
            "norm": _layer(90.0),
        },
    },
}
BEST_OF = {
    "curves": {
        "maximum": [estimate(0.1), estimate(0.2), estimate(0.25)],
        "median": [estimate(0.1), estimate(0.1), estimate(0.1)],
        "gold": [estimate(0.5), estimate(0.55), estimate(0.56)],
    }
}


def _accuracy(value: float) -> dict[str, Any]:
    by_grade = {"significantly": estimate(value + 0.1) | {"count": 20}, "negligibly": estimate(0.5) | {"count": 10}}
    return {"all": {"all": estimate(value) | {"count": 30}}, "grade": by_grade}


JUDGED = {
    "confidence": 0.95,
    "datasets": {"pairs": {"pairs": 30, "longer": _accuracy(0.55)}},
    "measures": {
        "preference": {"pairs": {"accuracy": _accuracy(0.7)}},
        "gold:overall": {"pairs": {"accuracy": _accuracy(0.8)}},
    },
}


def _fronts(making: Making) -> dict[str, Any]:
    def point(label: str, kl: float, gold: float, model: str | None = None, step: int | None = None) -> dict[str, Any]:
        bounds = {
            side: {"kl": kl + way * 0.01, "gold": gold + way * 0.02, "reward_preference": None} for side, way in SIDES
        }
        scores = {"gold": gold, "reward_preference": 2 * gold - 1}
        return {"label": label, "kl": kl, "scores": scores, **bounds, "model": model, "step": step}

    slerp = making.made["slerp"].fingerprint
    sweep = [point(f"η {eta}", eta, 0.4 + 0.3 * eta, slerp if eta == 1.0 else None) for eta in (0.0, 0.5, 1.0)]
    run = [point(f"step {step}", step / 20, 0.4 + step / 100, step=step) for step in (0, 10, 20)]
    return {
        "lines": {
            "sweep": {"kind": "sweep", "seeds": 1, "points": sweep},
            "calm": {"kind": "run", "seeds": 1, "points": run},
        },
        "pareto": {"gold": [["sweep", 0], ["sweep", 2]]},
    }


SIDES = (("low", -1), ("high", 1))
