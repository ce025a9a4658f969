"""What alignment costs: the base model and what became of it, on what can be known, by capability group.

Multiple-choice questions in twelve formats, once as turns of a chat and once as text with worked questions (a base
model has no chat format), and what is true of drawn answers. One table by capability, the mean over what measures it
(Llama 2, table 3), and one for every suite: all models, and how far each later one is from the first, question by
question.
"""

from __future__ import annotations

from alignment.plans.step import Step, laid
from alignment.settings import Settings as StrictSettings
from alignment.settings import identity, reference, text

NEXT = (
    "python -m alignment.run stage=show target=latest:tax               every suite by model and capability",
    "python -m alignment.run stage=report artifacts=[latest:tax]        the same on a page",
)


class Settings(StrictSettings):
    """The plan's numbers."""

    models: list[str] = reference("the base model first, then what became of it", min_length=2)
    names: list[str] = text("what they are called in the table", min_length=2)
    suites: list[str] = text("what all are examined on", min_length=1)
    capabilities: dict[str, list[str]] = text(
        "what measures each capability: suites, or <suite>/<group>/<label>; [] says that nothing here does"
    )
    budget: dict[str, float] = identity("seconds that each step may take on two CPU cores")


def steps(settings: Settings) -> list[Step]:
    """All models on all suites, in one step that asks for each of them once."""
    return [
        laid(
            "tax",
            "evaluate",
            settings.budget,
            preset="suites",
            models=settings.models,
            names=settings.names,
            suites=settings.suites,
            capabilities=settings.capabilities,
            against="first",
        )
    ]
