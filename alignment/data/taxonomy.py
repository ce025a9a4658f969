"""The one taxonomy of unsafe requests: risk categories, attack vectors and policies, mapped onto each other.

Llama 2's three risk categories and its attack vectors (§4.2.1) place a request; the six policies of the Gemma 2
report say what an answer must not hold. They meet in the topics of a category, each of which names the policy that
speaks of it. ``data_recipes/lists/taxonomy.yaml`` is the shipped one; users extend a copy of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from alignment.data import lists
from alignment.errors import DataError, UserError, nearest
from alignment.settings import Settings, text

SHIPPED = "taxonomy.yaml"
_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Policy(Settings):
    """What no answer may hold."""

    title: str = text("what reports call it", min_length=1)
    definition: str = text("what belongs to it", min_length=1)


class Topic(Settings):
    """A part of a category."""

    name: str = text("what it is about", min_length=1)
    policy: str | None = text("the policy that speaks of it; null where none does")


class Category(Settings):
    """A kind of harm that a request may lead to."""

    title: str = text("what reports call it", min_length=1)
    definition: str = text("what belongs to it", min_length=1)
    topics: list[Topic] = text("its parts", min_length=1)
    template: str = text("the pre-prompt that asks for a safe answer to a request of this category", min_length=1)


class Attack(Settings):
    """A way of asking for what should not be given."""

    title: str = text("what reports call it", min_length=1)
    definition: str = text("how one recognises it", min_length=1)


class Taxonomy(Settings):
    """Everything by its identifier; the order is that of the file."""

    order: dict[str, str] = text("the parts of a safe answer, in order, each with what it says", min_length=1)
    policies: dict[str, Policy] = text("what no answer may hold", min_length=1)
    categories: dict[str, Category] = text("kinds of harm", min_length=1)
    attacks: dict[str, Attack] = text("ways of asking", min_length=1)
    preprompts: list[str] = text("pre-prompts that suit every category", min_length=1)

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "taxonomy") -> Taxonomy:
        """Validate a plain mapping, and what its parts say of each other. Raises :class:`UserError`."""
        taxonomy: Taxonomy = super().parse(values, where)
        for part in ("order", "policies", "categories", "attacks"):
            for name in getattr(taxonomy, part):
                if not _NAME.fullmatch(name):
                    raise _refused(f"{part}.{name}", "is no identifier", where, "Use a-z, 0-9 and _, a letter first.")
        for name, category in taxonomy.categories.items():
            taxonomy._check_topics(f"categories.{name}", category, where)
        for place, preprompt in enumerate(taxonomy.preprompts):
            if not preprompt.strip():
                raise _refused(f"preprompts.{place}", "is empty", where, "Take it out.")
        return taxonomy

    def _check_topics(self, key: str, category: Category, where: str) -> None:
        names = [topic.name for topic in category.topics]
        for place, topic in enumerate(category.topics):
            if names.index(topic.name) < place:
                raise _refused(f"{key}.topics.{place}", f"{topic.name!r} stands twice", where, "Take one out.")
            if topic.policy is not None and topic.policy not in self.policies:
                told = f"{topic.policy!r} is none of the policies"
                raise _refused(f"{key}.topics.{place}.policy", told, where, nearest(topic.policy, [*self.policies]))

    def policies_of(self, category: str) -> tuple[str, ...]:
        """The policies that speak of a category's topics, in the order of the file."""
        self.check(category, None)
        named = {topic.policy for topic in self.categories[category].topics}
        return tuple(policy for policy in self.policies if policy in named)

    def categories_of(self, policy: str) -> tuple[str, ...]:
        """The categories of which a policy speaks."""
        if policy not in self.policies:
            raise UserError(
                f"policy {policy!r}: the taxonomy has none of that name", remedy=_near(policy, self.policies)
            )
        return tuple(name for name in self.categories if policy in self.policies_of(name))

    def check(self, category: str, attack: str | None, where: str = "") -> None:
        """Raise :class:`UserError` for a name that is not in the taxonomy (:class:`DataError` with ``where``)."""
        for kind, name, known in (("category", category, self.categories), ("attack", attack, self.attacks)):
            if name is not None and name not in known:
                problem, remedy = f"{kind} {name!r}: the taxonomy has none of that name", _near(name, known)
                raise DataError(where, problem, remedy=remedy) if where else UserError(problem, remedy=remedy)


def load(path: Path | None = None) -> Taxonomy:
    """Read a taxonomy, the shipped one for None. Raises :class:`UserError` with file and key."""
    found = lists.locate(None if path is None else str(path), SHIPPED, "taxonomy")
    return Taxonomy.parse(lists.read(found), str(found))


def _near(name: str, known: Iterable[str]) -> str:
    return f"{nearest(name, [*known])} A taxonomy of your own may have more."


def _refused(key: str, problem: str, where: str, remedy: str) -> UserError:
    return UserError(f"{key}: {problem}", cause=f"({where})", remedy=remedy)
