"""The miniature, from nothing to a merged policy and a page that shows how it came about, in minutes.

text → tokenizer → base → sft, a chat model of conversations some of which are imperfect. From it and from comparisons,
mixed as Llama 2 does, come a reward model for helpfulness and one for safety, measured on each other's pairs. A third
learns from pairs of the chat model's own answers. By it the best of several answers are kept and learned from, and PPO
goes on from there; beside that, one iteration of WARP: two short runs under anchors that move, merged. All policies are
measured on the same prompts, and shown on one page.

What else stages take from the miniature (``mini:<name>``) is made on demand. ``pipeline=full`` has all of it.
"""

from __future__ import annotations

from alignment.plans import blocks
from alignment.plans.blocks import Layout, Numbers
from alignment.plans.step import Step
from alignment.plans.warp import warp_steps

NEXT = (
    "report.html in that folder: open it in a browser                  models beside each other, fronts, samples",
    'python -m alignment.run stage=chat model=latest:warp_1 prompt="…" talk to it (without prompt=: a conversation)',
    "python -m alignment.run stage=show target=latest:warp_1           where it comes from, what is inside, its plots",
    "python -m alignment.run stage=show target=latest:judged           what the reward models are right about",
    "python -m alignment.run stage=export model=latest:warp_1          a folder to release, with its model card",
    "python -m alignment.run stage=rl --help                           what can be changed",
)


class Settings(Numbers):
    """The plan's numbers."""


def steps(settings: Settings) -> list[Step]:
    """The steps in order; ``mini:<name>`` names them from anywhere."""
    lay = Layout(settings)
    warp = merged(lay, "step:sft")
    runs = [step.name for step in warp if step.stage in ("rl", "merge")]
    return [
        *blocks.written(lay, careful=False),
        *blocks.base(lay),
        blocks.tuned(lay, "sft", "step:conversations"),
        *_on_demand(lay),
        *blocks.rewards(lay, "step:sft"),
        *blocks.preference(lay, "step:sft"),
        *blocks.best_of(lay, "step:sft"),
        blocks.ppo(lay, "step:rs"),
        *warp,
        blocks.compared(lay, ["sft", "rs", "ppo", *runs], "step:sft"),
        lay.step("report", "report", artifacts=["step:versions", "step:judged"]),
    ]


def merged(lay: Layout, policy: str) -> list[Step]:
    """WARP from a policy, by the plan's numbers."""
    return warp_steps(
        "warp",
        policy=policy,
        prompts="step:prompts",
        reward={"reward__model": "step:preference"},
        budget=lay.numbers.budget,
        watching__prompts=lay.numbers.prompts,
        watching__rewards=["gold:overall"],
        **lay.numbers.warp.model_dump(),
    )


def _on_demand(lay: Layout) -> list[Step]:
    """What other stages take from the miniature when nothing else is said."""
    return [
        blocks.taught(lay, "step:sft", on_demand=True),
        *blocks.drawn(lay, "step:sft", on_demand=True),
        blocks.told(lay, "step:base", on_demand=True),
        blocks.mixture(lay, "mixture", "miniature_mixture", ["careful", "teach", "ghost", "preprompt"], on_demand=True),
        blocks.tuned(lay, "tuned", "step:mixture", weights="step:sft", on_demand=True),
        lay.step("dated_questions", "data", on_demand=True, recipe="miniature_dated_questions"),
        lay.step("choices", "data", on_demand=True, recipe="miniature_choices"),
    ]
