"""Pairs of answers as ``stage=pairs`` would have written them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignment import files
from alignment.artifacts import Artifact
from alignment.chat.types import Message
from alignment.data import pairs, store
from alignment.data.pairs import Pair


def pair(name: str, a: str = "Yes.", b: str = "No.", **more: Any) -> Pair:
    """One pair; ``more`` are further fields."""
    plain = Pair(
        id=name,
        split="train",
        tags=("fact",),
        category=None,
        attack=None,
        prompt=(Message("user", f"Question {name}?"),),
        answer_a=a,
        answer_b=b,
        model_a="old",
        model_b="new",
        temperature_a=0.5,
        temperature_b=1.5,
        finished_a=True,
        finished_b=True,
    )
    return replace(plain, **more)


def artifact_of(folder: Path, some: Sequence[Pair], world: dict[str, int] | None = None) -> Artifact:
    """An artifact that holds these pairs."""
    folder.mkdir(parents=True, exist_ok=True)
    table = store.Table(folder / pairs.TABLE, pairs.SCHEMA)
    for one in some:
        table.append(pairs.to_row(one))
    table.finish()
    rows = dict(Counter(one.split for one in some))
    policies = [{"name": name, "fingerprint": name * 3, "temperature": 1.0} for name in ("old", "new")]
    files.write_json(folder / store.CARD, {"kind": "answers", "rows": rows, "world": world, "policies": policies})
    return Artifact(folder, "answers", "pairs", "pairs", "f" * 64, licences=("CC-BY-4.0",))
