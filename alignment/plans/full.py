"""The whole way of the miniature: everything this project does, in order, on a model of a million parameters.

A larger teacher answers → SFT on its answers → two reward models, and one of the chat model's own answers → rejection
sampling → PPO → Ghost Attention and safety pre-prompts → WARP → evaluation → fronts → a page → a folder to release.
Each part can be left out with ``without=[…]``: what comes after then goes on from what came before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from alignment.plans import blocks, mini
from alignment.plans.blocks import Layout, Numbers
from alignment.plans.step import Step
from alignment.settings import identity

NEXT = (
    "report.html in that folder: open it in a browser                    models beside each other, fronts, samples",
    "python -m alignment.run stage=show target=latest:warp_2             where it comes from, and what is inside",
    "python -m alignment.run stage=show target=latest:fronts             rewards over how far a policy has moved",
    "python -m alignment.run stage=pipeline pipeline=full pipeline.without=[ppo]    the same without a part of it",
)

Part = Literal["teach", "reject", "ppo", "ghost", "preprompt", "warp"]


class Settings(Numbers):
    """The plan's numbers."""

    teacher_shape: str = identity("size of the teacher, by preset")
    teacher_steps: int = identity("optimiser steps of its pre-training", ge=1)
    teacher_sft_steps: int = identity("optimiser steps on careful demonstrations", ge=1)
    lasting_steps: int = identity("optimiser steps on Ghost Attention's and pre-prompts' answers", ge=1)
    licence: str = identity("under which the release is given")
    without: list[Part] = identity("parts to leave out: teach, reject, ppo, ghost, preprompt, warp")

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "settings") -> Settings:
        """Validate, and take each part once."""
        settings: Settings = super().parse(values, where)
        return settings.model_copy(update={"without": sorted(set(settings.without))})


def steps(settings: Settings) -> list[Step]:
    """The steps in order, each from the last policy before it."""
    lay = Layout(settings)
    parts = [part for part in ("reject", "ppo") if part not in settings.without]
    plan = [*blocks.written(lay, careful=True), *blocks.base(lay), *_chat(lay, settings)]
    plan += [*blocks.rewards(lay, "step:sft"), *blocks.preference(lay, "step:sft")]
    policies = ["sft"]
    for part in parts:
        plan += blocks.best_of(lay, f"step:{policies[-1]}") if part == "reject" else [_ppo(lay, policies[-1])]
        policies.append("rs" if part == "reject" else "ppo")
    if lasting := _lasting(lay, settings, policies[-1]):
        plan += lasting
        policies.append("lasting")
    if "warp" not in settings.without:
        warp = mini.merged(lay, f"step:{policies[-1]}")
        plan += warp
        policies += [step.name for step in warp if step.stage in ("rl", "merge")]
    return [*plan, *_shown(lay, settings, policies)]


def _ppo(lay: Layout, policy: str) -> Step:
    return blocks.ppo(lay, f"step:{policy}")


def _chat(lay: Layout, numbers: Settings) -> list[Step]:
    """The chat model, of written conversations and of what a larger teacher answers."""
    if "teach" in numbers.without:
        return [blocks.tuned(lay, "sft", "step:conversations")]
    return [
        lay.step(
            "teacher_base",
            "pretrain",
            shape=numbers.teacher_shape,
            data="step:text",
            tokenizer="step:tokenizer",
            optimisation__steps=numbers.teacher_steps,
        ),
        blocks.tuned(
            lay, "teacher", "step:careful", weights="step:teacher_base", optimisation__steps=numbers.teacher_sft_steps
        ),
        blocks.taught(lay, "step:teacher"),
        blocks.mixture(lay, "taught", "miniature_taught", ["conversations", "teach"]),
        blocks.tuned(lay, "sft", "step:taught"),
    ]


def _lasting(lay: Layout, numbers: Settings, policy: str) -> list[Step]:
    """Instructions that last and safe answers, drawn by the policy, which goes on with them and with demonstrations."""
    drawn = [step for step in blocks.drawn(lay, f"step:{policy}") if step.name not in numbers.without]
    if not drawn:
        return []
    names = [step.name for step in drawn]
    recipe = "miniature_lasting" if len(names) == 2 else "miniature_rehearsed"
    return [
        *drawn,
        blocks.mixture(lay, "lasting_mixture", recipe, ["careful", *names]),
        blocks.tuned(
            lay,
            "lasting",
            "step:lasting_mixture",
            weights=f"step:{policy}",
            optimisation__steps=numbers.lasting_steps,
            optimisation__learning_rate=blocks.GENTLE,
        ),
    ]


def _shown(lay: Layout, numbers: Settings, policies: list[str]) -> list[Step]:
    """What everybody is worth, the fronts, a page, and the last policy as a release."""
    runs = [f"step:{name}" for name in policies if re.match(r"warp_\d+_run_", name)]
    fronts = []
    if runs:
        fronts = [lay.step("fronts", "front", runs=runs, evaluations=["step:versions"])]
    return [
        blocks.compared(lay, policies, "step:sft"),
        *fronts,
        lay.step(
            "report", "report", artifacts=["step:versions", "step:judged", *(f"step:{step.name}" for step in fronts)]
        ),
        lay.step(
            "release", "export", model=f"step:{policies[-1]}", evaluations=["step:versions"], licence=numbers.licence
        ),
    ]
