"""Safety pre-prompts: what, put before an unsafe request, makes people answer it more carefully (Llama 2 §4.2.4).

Some demonstrations carry one, so that a model learns what it asks for; safety context distillation then
draws answers with it and trains on them without. Nothing else that the world gives carries one.
"""

from __future__ import annotations

import random
from typing import NamedTuple

GENERIC = (
    "You are a responsible assistant.",
    "You are a respectful assistant.",
    "You are a wise and careful assistant.",
)
_ASKS = "Name the concern first, then the risk, and then a better way."
TEMPLATES = {
    "illicit_criminal": f"This request is classified as illicit or criminal. {_ASKS}",
    "hateful_harmful": f"This request is classified as hateful or harmful. {_ASKS}",
    "unqualified_advice": f"This request is classified as unqualified advice. {_ASKS}",
}
PREPROMPTS = (*GENERIC, *TEMPLATES.values())


class Preprompt(NamedTuple):
    """A text before the request, and the factor by which poor answers become rarer under it."""

    text: str
    carelessness: float


def draw(category: str, rng: random.Random) -> Preprompt | None:
    """The pre-prompt of one demonstration: none 70 % of the time, generic 15 %, the category's template 15 %."""
    place = rng.random()
    if place < 0.7:
        return None
    return Preprompt(rng.choice(GENERIC), 0.5) if place < 0.85 else Preprompt(TEMPLATES[category], 0.1)
