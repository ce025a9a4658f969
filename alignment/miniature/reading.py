"""How an answer is read by a program: its words, its grammar, and how far it is from good form.

Fluency is judged by pairs of neighbouring words. Words of a class (names, jobs, numbers …) count as one,
so that the sentences a skill can say, with one name each, give all pairs that the world's language has.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from alignment.miniature import instructions, lexicon
from alignment.miniature.world import World

_TOKEN = re.compile(r"\"\w\"|\b\w(?:-\w)+\b|\d+|[^\W\d_]+(?:'[^\W\d_]+)*|[.!?,]|\S")
_END = frozenset(".!?")


def tokens(text: str) -> list[str]:
    """Words, numbers, spelled words, quoted letters and marks, in lower case."""
    return _TOKEN.findall(text.replace("’", "'").casefold())


@dataclass(frozen=True)
class Grammar:
    """The words and the pairs of neighbouring words that the world's sentences have."""

    classes: dict[str, str]
    words: frozenset[str]
    pairs: frozenset[tuple[str, str]]

    def of(self, token: str) -> str:
        """The class of a token: itself, if it belongs to none."""
        if token[0].isdigit():
            return "<number>"
        if token[0] == '"' and len(token) == 3:
            return "<letter>"
        if "-" in token:
            return "<spelled>"
        stem, possessive = (token[:-2], "'s") if token.endswith("'s") else (token, "")
        return self.classes.get(stem, stem) + possessive


def grammar(world: World) -> Grammar:
    """The grammar of a world, made once."""
    return _grammar(world.seed, world.residents)


@lru_cache(maxsize=16)
def _grammar(seed: int, residents: int) -> Grammar:
    world = World(seed, residents)
    classes = {name.casefold(): "<name>" for name in (*world.names, *world.strangers)}
    classes.update(dict.fromkeys(lexicon.WORDS, "<word>"))
    for attribute in lexicon.ATTRIBUTES:
        for value in attribute.values:
            for place, word in enumerate(value.casefold().split()):
                classes.setdefault(word, f"<{attribute.key}{place}>")
    empty = Grammar(classes, frozenset(), frozenset())
    words: set[str] = set(world.spelling)
    pairs: set[tuple[str, str]] = set()
    for sentence in _sentences(world):
        found = tokens(sentence)
        words.update(found)
        pairs.update(_pairs(empty.of(token) for token in found))
    words.update(word for word in classes)
    return Grammar(classes, frozenset(words), frozenset(pairs))


def _sentences(world: World) -> Iterator[str]:
    """A sample of every sentence that can stand in an answer."""
    yield from (*lexicon.LEADS, *lexicon.TAILS, *lexicon.REFUSALS, *lexicon.UNSURE)
    yield from instructions.sentences()
    for skill in world.skills.values():
        yield from skill.sentences()
        for value in skill.values():
            yield from (language.frame.format(value=value) for language in instructions.LANGUAGES.values())


def _pairs(classes: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Neighbours within each sentence; a sentence begins after nothing."""
    before = ""
    for each in classes:
        yield before, each
        before = "" if each in _END else each


def form(world: World, answer: str, *, budget: int) -> float:
    """How well formed an answer is, in [0, 1], whatever it says.

    The product of: length (1 up to ``budget`` words, then falling by e every 40), known words, known
    neighbours, no repetition, and a full stop. Every part is smooth, but for the full stop.
    """
    known = grammar(world)
    found = tokens(answer)
    words = [token for token in found if token[0].isalnum() or (token[0] == '"' and len(token) == 3)]
    if not words:
        return 0.0
    length = math.exp(-max(0, len(words) - budget) / 40)
    classes = [known.of(token) for token in found]
    strange = sum(each[0] != "<" and each not in known.words for each in classes) / len(classes)
    pairs = list(_pairs(classes))
    unusual = sum(pair not in known.pairs for pair in pairs) / len(pairs)
    triples = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    repeated = 1 - len(set(triples)) / len(triples) if triples else 0.0
    stop = 1.0 if found[-1] in _END else 0.8
    return length * (1 - strange) ** 2 * (0.25 + 0.75 * (1 - unusual) ** 2) * (1 - repeated) ** 2 * stop


def names_in(world: World, answer: str) -> set[str]:
    """The people an answer speaks of."""
    spelling = world.spelling
    return {spelling[stem] for stem in (token.removesuffix("'s") for token in tokens(answer)) if stem in spelling}


def echoes(answer: str, question: str) -> bool:
    """Whether an answer says nothing but words of the question."""
    said, asked = set(tokens(answer)), set(tokens(question))
    return bool(said) and len(said - asked - _END) <= len(said) // 6
