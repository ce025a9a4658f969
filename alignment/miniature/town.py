"""Who lives in the miniature world, and what is true about them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

from alignment.errors import UserError
from alignment.miniature import lexicon


@dataclass(frozen=True, slots=True)
class Resident:
    """A person, with one value for each attribute (``facts["job"] == "baker"``)."""

    name: str
    female: bool
    facts: dict[str, str]


@dataclass(frozen=True)
class Town:
    """The residents drawn from a seed. Two towns with the same fields are the same town."""

    seed: int = 0
    residents: int = 40

    def __post_init__(self) -> None:
        known = len(lexicon.SHE) + len(lexicon.HE)
        if not 4 <= self.residents <= known:
            raise UserError(
                f"residents={self.residents}",
                cause=f"The miniature world has first names for {known} people, and needs 4 to tell them apart.",
                remedy=f"Choose a number from 4 to {known}.",
            )

    @cached_property
    def people(self) -> dict[str, Resident]:
        """Residents by name. Values are dealt out evenly, so that no value is a safe guess."""
        rng = random.Random(f"town:{self.seed}")
        names = [*lexicon.SHE, *lexicon.HE]
        rng.shuffle(names)
        names = sorted(names[: self.residents])
        dealt: dict[str, list[str]] = {}
        for attribute in lexicon.ATTRIBUTES:
            values = list(attribute.values) * (self.residents // len(attribute.values) + 1)
            values = values[: self.residents]
            rng.shuffle(values)
            dealt[attribute.key] = values
        return {
            name: Resident(name, name in lexicon.SHE, {key: values[i] for key, values in dealt.items()})
            for i, name in enumerate(names)
        }

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(self.people)

    @cached_property
    def strangers(self) -> tuple[str, ...]:
        """Names that belong to nobody in the town."""
        return (*lexicon.STRANGERS_SHE, *lexicon.STRANGERS_HE)

    @cached_property
    def spelling(self) -> dict[str, str]:
        """Names as they are written, by their lower case."""
        return {name.casefold(): name for name in (*self.names, *self.strangers)}

    def female(self, name: str) -> bool:
        """Whether ``she`` is the pronoun; a name from nowhere goes by its last letter."""
        if name in lexicon.SHE or name in lexicon.STRANGERS_SHE:
            return True
        return name not in lexicon.HE and name not in lexicon.STRANGERS_HE and name.endswith("a")

    def pronouns(self, name: str) -> dict[str, str]:
        """Slots for templates: ``sub`` (she) and ``pos`` (her)."""
        return {"sub": "she", "pos": "her"} if self.female(name) else {"sub": "he", "pos": "his"}
