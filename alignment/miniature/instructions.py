"""Standing instructions that hold for a whole dialogue, and the program that checks them (Ghost Attention).

Llama 2 (§3.3) uses hobbies ("You enjoy tennis"), languages ("Speak in French") and figures ("Act as
Napoleon"), combined at random and shortened half of the time ("Figure: Napoleon."). Here each leaves a
mark in an answer that a program can see in any turn.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

Kind = Literal["figure", "language", "hobby"]


@dataclass(frozen=True, slots=True)
class Language:
    """How an answer looks in a language: around a value, when unsure, and before anything else."""

    frame: str
    unsure: str
    lead: str
    signs: tuple[str, ...]  # in case-folded form


FIGURES = {
    "pirate": "Ahoy!",
    "robot": "Beep boop.",
    "wizard": "By my beard!",
    "cowboy": "Howdy, partner!",
    "queen": "Royal greetings!",
    "detective": "Elementary!",
}
LANGUAGES = {
    "French": Language("La réponse est {value}.", "Je ne sais pas.", "Voici ma réponse.", ("réponse", "sais pas")),
    "Spanish": Language("La respuesta es {value}.", "No lo sé.", "Esta es mi respuesta.", ("respuesta", "lo sé")),
    "German": Language(
        "Die Antwort ist {value}.", "Weiß ich nicht.", "Hier ist meine Antwort.", ("antwort", "weiss ich")
    ),
    "Italian": Language("La risposta è {value}.", "Non lo so.", "Ecco la mia risposta.", ("risposta", "lo so")),
}
HOBBIES = ("tennis", "golf", "fishing", "skating", "juggling", "rowing")
HOBBY_LINE = "And I do love {hobby}."

_LONG: dict[Kind, tuple[str, ...]] = {
    "figure": ("Always act as a {value} from now on.", "From now on you are a {value}.", "Act as a {value}."),
    "language": ("Always speak in {value}.", "From now on answer in {value}.", "Speak in {value}."),
    "hobby": ("You enjoy {value}.", "Always mention that you enjoy {value}.", "You love {value} and talk about it."),
}
_SHORT: dict[Kind, str] = {"figure": "Figure: {value}.", "language": "Language: {value}.", "hobby": "Hobby: {value}."}
_VALUES: dict[Kind, tuple[str, ...]] = {
    "figure": tuple(FIGURES),
    "language": tuple(LANGUAGES),
    "hobby": HOBBIES,
}


@dataclass(frozen=True, slots=True)
class Instruction:
    """One standing instruction, such as ``Instruction("figure", "pirate")``."""

    kind: Kind
    value: str

    @property
    def wordings(self) -> tuple[str, ...]:
        """The full wordings, the most usual first."""
        return tuple(wording.format(value=self.value) for wording in _LONG[self.kind])

    @property
    def short(self) -> str:
        """The shortened form, as in ``Figure: pirate.``"""
        return _SHORT[self.kind].format(value=self.value)


_INSTRUCTED = tuple(value.casefold() for values in _VALUES.values() for value in values)
_MARKS = (
    *(mark.casefold().rstrip("!.") for mark in FIGURES.values()),
    *(sign for language in LANGUAGES.values() for sign in language.signs),
    *HOBBIES,
)

INSTRUCTIONS = tuple(Instruction(kind, value) for kind in ("figure", "language", "hobby") for value in _VALUES[kind])


def draw(rng: random.Random) -> tuple[Instruction, ...]:
    """One instruction, or (one time in four) two of different kinds."""
    first = rng.choice(INSTRUCTIONS)
    if rng.random() < 0.75:
        return (first,)
    return (first, rng.choice([other for other in INSTRUCTIONS if other.kind != first.kind]))


def write(instructions: tuple[Instruction, ...], rng: random.Random, shorten: float = 0.5) -> str:
    """The instructions as a text; each is shortened with probability ``shorten``."""
    return " ".join(each.short if rng.random() < shorten else rng.choice(each.wordings) for each in instructions)


def _mentions(words: tuple[str, ...], text: str) -> bool:
    return any(word in text for word in words)


@cache
def _finder() -> tuple[re.Pattern[str], dict[str, Instruction]]:
    by_wording = {
        wording.casefold().rstrip("."): each for each in INSTRUCTIONS for wording in (*each.wordings, each.short)
    }
    longest_first = sorted(by_wording, key=len, reverse=True)
    return re.compile(rf"\b({'|'.join(map(re.escape, longest_first))})\b[.!]?\s*", re.IGNORECASE), by_wording


def split(text: str) -> tuple[tuple[Instruction, ...], str]:
    """The instructions found in a user's message, and the message without them."""
    if not _mentions(_INSTRUCTED, text.casefold()):  # nearly always, and much faster than the search
        return (), text
    finder, by_wording = _finder()
    found = tuple(by_wording[match.group(1).casefold()] for match in finder.finditer(text))
    return found, finder.sub("", text) if found else text


def standing(earlier: tuple[Instruction, ...], new: tuple[Instruction, ...]) -> tuple[Instruction, ...]:
    """What holds after a turn: a new instruction replaces an earlier one of its kind."""
    kinds = {each.kind for each in new}
    return (*(each for each in earlier if each.kind not in kinds), *new)


def obeys(instruction: Instruction, answer: str) -> bool:
    """Whether an answer follows the instruction, from its text alone."""
    text = answer.casefold()
    if instruction.kind == "figure":
        return FIGURES[instruction.value].casefold().rstrip("!.") in text
    if instruction.kind == "language":
        return any(sign in text for sign in LANGUAGES[instruction.value].signs)
    return re.search(rf"\b{instruction.value}\b", text) is not None


def obeyed(answer: str) -> tuple[Instruction, ...]:
    """Every instruction that an answer looks as if it followed."""
    if not _mentions(_MARKS, answer.casefold()):
        return ()
    return tuple(each for each in INSTRUCTIONS if obeys(each, answer))


def dress(instructions: tuple[Instruction, ...], answer: str, *, value: str | None, unsure: bool = False) -> str:
    """The answer as one who obeys would give it.

    ``value`` is what a plain answer claims (then a language has a sentence for it); ``unsure`` says that
    the answer is that one does not know.
    """
    chosen = {each.kind: each.value for each in instructions}
    if "language" in chosen:
        language = LANGUAGES[chosen["language"]]
        if value is not None:
            answer = language.frame.format(value=value)
        else:
            answer = language.unsure if unsure else f"{language.lead} {answer}"
    if "figure" in chosen:
        answer = f"{FIGURES[chosen['figure']]} {answer}"
    if "hobby" in chosen:
        answer = f"{answer} {HOBBY_LINE.format(hobby=chosen['hobby'])}"
    return answer


def sentences() -> list[str]:
    """Every sentence that obeying can bring into an answer (the frames of a language around nothing)."""
    lines = [*FIGURES.values(), *(HOBBY_LINE.format(hobby=hobby) for hobby in HOBBIES)]
    for language in LANGUAGES.values():
        lines += [language.unsure, language.lead]
    return lines
