"""What models of several sizes know by heart of passages that stand in their text once, 10 and 100 times.

Memorisation rises with the copies of a passage, with the size of the model and with what it is shown (Carlini et al.,
arXiv 2202.07646): all sizes are trained on the same text and examined by one suite.
"""

from __future__ import annotations

from alignment.plans.step import Step, laid
from alignment.settings import Settings as StrictSettings
from alignment.settings import identity, reference, text

NEXT = (
    "python -m alignment.run stage=show target=latest:<size>_known   exact and approximate, by copies and prefix",
    "python -m alignment.run stage=report artifacts=[latest:<size>_known,…]   curves over copies and size",
)


class Settings(StrictSettings):
    """The plan's numbers."""

    recipe: str = text("of the text, in which some passages stand several times")
    tokenizer: str = reference("the tokenizer of all sizes")
    shapes: list[str] = identity("sizes of the models, by preset", min_length=1)
    steps: int = identity("optimiser steps of each", ge=1)
    learning_rate: float = identity("of each", gt=0, le=1)
    suite: str = text("how they are examined; its dataset is the text")
    count: int | None = identity("documents of the suite; null takes all", ge=1)
    budget: dict[str, float] = identity("seconds that each step may take on two CPU cores")


def steps(settings: Settings) -> list[Step]:
    """The text, a model of each size, and what each knows by heart."""
    made = [laid("planted", "data", settings.budget, recipe=settings.recipe)]
    for shape in settings.shapes:
        made += [
            laid(
                shape,
                "pretrain",
                settings.budget,
                shape=shape,
                tokenizer=settings.tokenizer,
                data="step:planted",
                optimisation__steps=settings.steps,
                optimisation__learning_rate=settings.learning_rate,
            ),
            Step(
                f"{shape}_known",
                "assess",
                {
                    "model": f"step:{shape}",
                    "suite": settings.suite,
                    "suite.data": "step:planted",
                    "suite.count": settings.count,
                },
                settings.budget.get("assess", 0.0),
            ),
        ]
    return made
