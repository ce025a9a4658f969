"""One step of a plan: a stage, what it is called here, and what is said to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Step:
    """``settings`` are merged over the stage's own configuration.

    A step needs every step that its settings name as ``step:<name>``; nothing else is said twice.
    ``budget`` is how many seconds it may take on two CPU cores, shown by ``dry_run=true``.
    """

    name: str
    stage: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    budget: float = 0.0
    preset: str | None = None
    """The settings are merged over those of ``stage=<stage>/<preset>``; null takes the stage's own."""

    on_demand: bool = False
    """Made only where another step, or a reference ``mini:<name>``, asks for it."""

    @property
    def option(self) -> str:
        """What configures it: ``sft``, or ``sft/llama2``."""
        return self.stage if self.preset is None else f"{self.stage}/{self.preset}"

    @property
    def needs(self) -> tuple[str, ...]:
        """The names of the steps that must be finished before this one."""
        return tuple(dict.fromkeys(_named(self.settings)))


def _named(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value.removeprefix("step:")] if value.startswith("step:") else []
    if isinstance(value, Mapping):
        return [name for inner in value.values() for name in _named(inner)]
    if isinstance(value, list | tuple):
        return [name for inner in value for name in _named(inner)]
    return []


def laid(
    name: str,
    stage: str,
    budget: Mapping[str, float],
    /,
    *,
    preset: str | None = None,
    on_demand: bool = False,
    **said: Any,
) -> Step:
    """A step by its settings, dots written as ``__``; what is null keeps the stage's own value, or its preset's.

    ``budget`` holds seconds by step, or by stage for steps that are alike.
    """
    given = {key.replace("__", "."): value for key, value in said.items() if value is not None}
    return Step(name, stage, given, budget.get(name, budget.get(stage, 0.0)), preset, on_demand)
