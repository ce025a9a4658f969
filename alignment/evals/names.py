"""What models and judges are called in tables and metrics."""

from __future__ import annotations

from collections.abc import Sequence

from alignment.artifacts import NO_FOLDER, Artifact
from alignment.scoring.scorer import name_of


def names_of(artifacts: Sequence[Artifact]) -> list[str]:
    """Steps' names, or the last part of a foreign one's; told apart by fingerprint where two are called the same."""
    plain = [one.step if one.kind in NO_FOLDER else name_of(one) for one in artifacts]
    return [
        name if plain.count(name) == 1 else f"{name}-{one.fingerprint[:4]}"
        for name, one in zip(plain, artifacts, strict=True)
    ]
