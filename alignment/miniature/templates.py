"""Question templates and the matchers compiled from them.

A template is a question with slots, ``What is {name}'s job?``. ``Patterns`` turns a set of them into
a reader: given a text it finds the template and the values of the slots. Case, spacing and
punctuation do not matter, so that a question typed by a person is understood as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, TypeVar

Payload = TypeVar("Payload")

_PUNCTUATION = re.compile(r"[.,!?;:¿¡\"“”…()]+")
_SLOT = re.compile(r"\\\{(\w+)\\\}")


def plain(text: str) -> str:
    """Lower case, without punctuation, single spaces: ``"Hello!  What is  3 + 4?"`` → ``"hello what is 3 + 4"``."""
    return " ".join(_PUNCTUATION.sub(" ", text.replace("’", "'")).casefold().split())


class Patterns(Generic[Payload]):
    """Templates, each with what it means, found again in a text.

    ``slots`` gives the regular expression of each slot (without groups). Templates are indexed by
    their first word: a text is tried against a handful of expressions only.
    """

    def __init__(self, templates: Iterable[tuple[str, Payload]], slots: Mapping[str, str]) -> None:
        self._slots = slots
        self._by_first: dict[str, list[tuple[re.Pattern[str], Payload]]] = {}
        for template, payload in templates:
            text = plain(template)
            first = text.split(" ", 1)[0]
            entry = (re.compile(self._expression(text)), payload)
            self._by_first.setdefault("" if "{" in first else first, []).append(entry)

    def _expression(self, text: str) -> str:
        seen: set[str] = set()

        def slot(match: re.Match[str]) -> str:
            name = match.group(1)
            if name in seen:
                return f"(?P={name})"
            seen.add(name)
            return f"(?P<{name}>{self._slots[name]})"

        return _SLOT.sub(slot, re.escape(text))

    def matches(self, text: str) -> Iterator[tuple[Payload, dict[str, str]]]:
        """Everything that the text (already ``plain``) can mean, each with its slots in lower case."""
        first = text.split(" ", 1)[0]
        for bucket in (first, "") if first else ():
            for expression, payload in self._by_first.get(bucket, ()):
                found = expression.fullmatch(text)
                if found:
                    yield payload, found.groupdict()
