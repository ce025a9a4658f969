"""The knobs of the miniature world, as a part of any stage's settings."""

from __future__ import annotations

from pydantic import model_validator

from alignment.miniature.world import World
from alignment.settings import Settings, identity


class Mixture(Settings):
    """How often each kind of dialogue is drawn. Weights: they need not sum to 1."""

    fact: float = identity("questions about residents", ge=0)
    sum: float = identity("additions and subtractions", ge=0)
    word: float = identity("spelling, first and last letters, counting letters, spelling backwards", ge=0)
    unanswerable: float = identity("strangers and secrets: one should own up to not knowing", ge=0)
    context: float = identity("questions about a short text, which answers it or is silent", ge=0)
    follow_up: float = identity("dialogues whose last question needs an earlier turn", ge=0)
    unsafe: float = identity("unsafe requests (0 leaves the safety demonstrations out)", ge=0)
    borderline: float = identity("requests that only look unsafe", ge=0)
    instruction: float = identity("dialogues under standing instructions", ge=0)
    smalltalk: float = identity("greetings (conversations only, never prompts)", ge=0)

    @model_validator(mode="after")
    def _not_empty(self) -> Mixture:
        if not any(self.weights().values()):
            raise ValueError("at least one weight must be above 0")
        return self

    def weights(self) -> dict[str, float]:
        """The weights by kind, as the functions of ``corpus`` take them."""
        return {name: getattr(self, name) for name in type(self).model_fields}


class Miniature(Settings):
    """A world, and how imperfect its data is."""

    seed: int = identity("which world: who lives there, and what is true of them", ge=0)
    residents: int = identity("people in the world; more facts to learn", ge=4, le=60)
    noise: float = identity("share of poor answers in conversations", ge=0, le=1)
    rater_noise: float = identity("standard deviation of the random part of a rater's score", ge=0, le=2)
    rater_taste: float = identity("what the chattiest answer gains with raters over the dullest", ge=0, le=2)
    mixture: Mixture = identity("how often each kind of dialogue is drawn")

    def world(self) -> World:
        """The world that these settings describe."""
        return World(self.seed, self.residents)
