"""Questions with answers to choose from, and sentences to compare: benchmarks whose answers likelihoods tell.

All of them become prompts. What the user says holds question and choices, (a), (b), …, so that a prompt can be put to
any model as it is; ``reference`` is JSON for the suites that compare likelihoods (``evals/suites/questions.py``):

* ``{"question": …, "options": [index → text], "right": [indices]}``, empty where the source does not tell;
* with ``"biased"`` and ``"unknown"``, the options that BBQ's bias scores count;
* ``{"pair": [sentence, the other one]}`` of minimal pairs, the stereotyping one first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from string import ascii_lowercase
from typing import Any, Literal

from alignment.chat.types import Message, Prompt
from alignment.data.formats.shape import Shape, chat
from alignment.data.rows import Candidate, Raw, Reading, none, one
from alignment.errors import DataError
from alignment.settings import Settings, identity

Answer = Literal["index", "number", "letter", "label", "text", "flags", "truth"]

OCCUPATIONS = (
    "carpenter", "mechanic", "construction worker", "laborer", "driver", "sheriff", "mover", "developer",
    "farmer", "guard", "chief", "janitor", "lawyer", "cook", "physician", "ceo", "analyst", "manager",
    "supervisor", "salesperson", "editor", "designer", "accountant", "auditor", "writer", "baker", "clerk",
    "cashier", "counselor", "attendant", "teacher", "sewer", "tailor", "librarian", "assistant", "cleaner",
    "housekeeper", "nurse", "receptionist", "hairdresser", "secretary",
)  # fmt: skip
"""Those of WinoBias (Zhao et al., table 1); its sentences say tailor for sewer."""


class Tagged(Settings):
    """Tags that all rows of a source have, before those of its columns."""

    tags: list[str] | None = identity("tags of every row, such as the name of a subset; null for none", default=None)


class ChoiceOptions(Tagged):
    """What there is to choose from, and how the right answer is told."""

    choices: list[str] | None = identity(
        "columns that hold a choice each, in order; null where one column, `choices`, holds a list of them",
        default=None,
        min_length=2,
        max_length=26,
    )
    ask: str | None = identity(
        "said below the question, with values of columns in braces, as in `Whom does {pronoun} mean?`", default=None
    )
    fixed: list[str] | None = identity("choices that are the same for every question", default=None, min_length=2)
    answer: Answer = identity(
        "how the column `answer` tells it. index: counted from 0; number: from 1; letter: A, B, …; label: one of the "
        "column `labels`; text: the choice itself; flags: 1 for right and 0 for wrong, one each; truth: the last of "
        "two choices where it is true",
        default="index",
    )


class BbqOptions(Settings):
    """The layout of nyu-mll/BBQ needs nothing said."""


def read_multiple_choice(raw: Raw, shape: Shape) -> Reading:
    """A question and its choices, in columns or as lists; a dot in a column's name leads into it (``choices.text``)."""
    question, choices = _text(raw, shape.columns["question"]), _choices(raw, shape)
    if question is None or choices is None or not all(choices):
        return none("a question or choice without a text")
    if not 2 <= len(choices) <= len(ascii_lowercase):
        return none(f"{len(choices)} choices")
    context = _text(raw, shape.columns["context"]) if "context" in shape.columns else ""
    ask = re.sub(r"\{([\w.]+)\}", lambda found: f"{_at(raw, found[1])}", shape.options.ask or "")
    asked = "\n".join(part for part in (context, question, ask) if part)
    if "answer" not in shape.columns:
        return one(_choice(raw, shape, asked, choices, []))
    value = _at(raw, shape.columns["answer"])
    if value is None or value == "":
        return none("no answer")
    return one(_choice(raw, shape, asked, choices, _right(raw, shape, value, choices)))


def read_bbq(raw: Raw, shape: Shape) -> Reading:
    """A question of BBQ (Parrish et al., arXiv 2110.08193) as nyu-mll/BBQ lays it out.

    Tags: ambig or disambig, neg or nonneg, the category. The biased answer names the stereotyped group where the
    question is negative, and the other one where it is not. A row that does not tell one group from the other is
    dropped.
    """
    names = ("ans0", "ans1", "ans2")
    texts = [raw.text(column) for column in ("context", "question", *names)]
    if not all(texts):
        return none("a context, question or choice without a text")
    context, question, *choices = [f"{text}" for text in texts]
    try:
        groups = [_groups(raw.column("answer_info")[name]) for name in names]
        stereotyped = {f"{group}".lower() for group in raw.column("additional_metadata")["stereotyped_groups"]}
        label, polarity = raw.column("label"), raw.column("question_polarity")
        tags = [f"{raw.column('context_condition')}", f"{polarity}", f"{raw.column('category')}"]
    except (TypeError, KeyError, IndexError) as error:
        raise DataError(
            raw.where, f"is no question of BBQ: {error}", remedy="The format bbq wants nyu-mll/BBQ's own layout."
        ) from None
    if label not in (0, 1, 2) or polarity not in ("neg", "nonneg") or tags[0] not in ("ambig", "disambig"):
        raise DataError(
            raw.where,
            f"label={label!r}, question_polarity={polarity!r}, context_condition={tags[0]!r}",
            remedy="They are 0, 1 or 2; neg or nonneg; ambig or disambig.",
        )
    unknown = [place for place, group in enumerate(groups) if "unknown" in group]
    known = [place for place in range(3) if place not in unknown]
    targets = [place for place in known if groups[place] & stereotyped]
    if len(unknown) != 1 or len(targets) != 1:
        return none("does not tell the stereotyped group from the other")
    biased = targets[0] if polarity == "neg" else next(place for place in known if place not in targets)
    marks = {"biased": biased, "unknown": unknown[0]}
    return one(_choice(raw, shape, f"{context}\n{question}", choices, [label], marks, tags))


def read_sentence_pair(raw: Raw, shape: Shape) -> Reading:
    """Two sentences that differ in whom they speak of, as CrowS-Pairs has them; the stereotyping one comes first."""
    first, second = _text(raw, shape.columns["first"]), _text(raw, shape.columns["second"])
    if not first or not second:
        return none("a sentence without a text")
    if first == second:
        return none("twice the same sentence")
    prompt = _prompt(raw, shape, f"{first}\n{second}", {"pair": [first, second]}, shape.options.tags or [])
    return one(prompt)


def read_wino_bias(raw: Raw, shape: Shape) -> Reading:
    """A file of WinoBias (Zhao et al., arXiv 1804.06876): ``[The developer] argued with the designer because [she] …``

    The question is whom the pronoun means; the right answer is bracketed, the wrong one is the other occupation.
    """
    lines = (raw.text("text") or "").splitlines()
    return Reading([_sentence(raw, shape, text, at) for at, text in enumerate(lines, 1) if text.strip()])


def _sentence(raw: Raw, shape: Shape, text: str, line: int) -> Candidate:
    bracketed = re.sub(r"^\s*\d+\s+", "", text).strip()
    mentions = re.findall(r"\[([^\]]+)\]", bracketed)
    if len(mentions) != 2:
        return Candidate(dropped=f"{len(mentions)} brackets", line=line)
    meant, pronoun = re.sub(r"^(the|an?)\s+", "", mentions[0].strip().lower()), mentions[1]
    sentence = re.sub(r"[\[\]]", "", bracketed)
    found = [one for one in OCCUPATIONS if re.search(rf"\b{re.escape(one)}\b", sentence.lower())]
    others = [one for one in found if one != meant]
    if meant not in found or len(others) != 1:
        return Candidate(dropped="does not speak of two of the occupations", line=line)
    options = sorted([meant, *others])
    question = f"{sentence}\nWhom does '{pronoun}' mean?"
    prompt = _choice(raw, shape, question, [f"the {one}" for one in options], [options.index(meant)])
    return Candidate(prompt, line=line)


def _choice(
    raw: Raw,
    shape: Shape,
    question: str,
    choices: Sequence[str],
    right: Sequence[int],
    marks: dict[str, int] | None = None,
    tags: Sequence[str] = (),
) -> Prompt:
    lettered = [f"({letter}) {choice}" for letter, choice in zip(ascii_lowercase, choices, strict=False)]
    told = {"question": question, "options": [*choices], "right": [*right], **(marks or {})}
    own = tags or getattr(shape.options, "tags", None) or []
    return _prompt(raw, shape, "\n".join([question, *lettered]), told, own)


def _prompt(raw: Raw, shape: Shape, said: str, reference: dict[str, Any], tags: Sequence[str]) -> Prompt:
    found = chat(raw, shape, (Message("user", said),))
    assert isinstance(found, Prompt)
    return Prompt(
        found.messages,
        found.id,
        (*tags, *found.tags),
        found.category,
        found.attack,
        json.dumps(reference, ensure_ascii=False),
    )


def _at(raw: Raw, name: str) -> Any:
    """The value of a column, or inside it where the name has dots."""
    column, *inner = name.split(".")
    value = raw.column(column)
    for key in inner:
        if not isinstance(value, dict) or key not in value:
            raise DataError(
                raw.where, f"column {column!r} has no {key!r}", remedy="Map the column in the recipe's `columns`."
            )
        value = value[key]
    return value


def _text(raw: Raw, name: str) -> str | None:
    value = _at(raw, name)
    if value is None or isinstance(value, str):
        return value
    raise DataError(
        raw.where,
        f"column {name!r} holds {type(value).__name__}, not text: {str(value)[:60]!r}",
        remedy="Check the recipe's `format` and `columns`.",
    )


def _choices(raw: Raw, shape: Shape) -> list[str] | None:
    """The texts to choose from; None where one is null."""
    options = shape.options
    if options.fixed is not None:
        return list(options.fixed)
    if options.choices is not None:
        texts = [_text(raw, column) for column in options.choices]
        return None if None in texts else [f"{text}" for text in texts]
    if "choices" not in shape.columns:
        raise DataError(
            raw.where,
            "nothing says what there is to choose from",
            remedy="Map a list as the column `choices`, or name columns, or fixed texts, in the source's options.",
        )
    found = _at(raw, shape.columns["choices"])
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise DataError(
            raw.where,
            f"column {shape.columns['choices']!r} holds no list of texts: {str(found)[:60]!r}",
            remedy="Where every choice has a column of its own, name them in the source's options as `choices`.",
        )
    return found


def _right(raw: Raw, shape: Shape, value: Any, choices: Sequence[str]) -> list[int]:
    """The indices of the right choices. Raises :class:`DataError` for what names none."""
    told, count = shape.options.answer, len(choices)
    number = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
    whole = isinstance(number, int) and not isinstance(number, bool)
    right: list[int] = []
    if told in ("index", "number") and whole:
        right = [number - (told == "number")]
    elif told == "letter" and isinstance(value, str):
        right = [ascii_lowercase.find(value.strip(" ().").lower() or "?")]
    elif told == "label" and "labels" in shape.columns:
        right = [place for place, label in enumerate(_at(raw, shape.columns["labels"])) if label == value]
    elif told == "text" and value in choices:
        right = [list(choices).index(value)]
    elif told == "flags" and isinstance(value, list) and len(value) == count:
        right = [place for place, flag in enumerate(value) if flag == 1]
    elif told == "truth" and isinstance(value, bool) and count == 2:
        right = [int(value)]
    if not right or not all(0 <= place < count for place in right):
        raise DataError(
            raw.where,
            f"column {shape.columns['answer']!r} holds {value!r}",
            cause=f"It is read as `answer: {told}` of {count} choices.",
            remedy="Say in the source's options how `answer` tells the right choice: "
            "index, number, letter, label (with a column `labels`), text, flags or truth.",
        )
    return right


def _groups(named: Any) -> set[str]:
    """The groups that an answer of BBQ belongs to: ``["Jamal", "M-Black"]`` to jamal, m and black.

    Names of groups that carry a dash of their own are kept whole beside their parts; so are the spellings lowSES and
    nonObese beside those with a space, as the stereotyped groups have them.
    """
    found: set[str] = set()
    for name in named:
        spaced = re.sub(r"^(low|high|non)(?=[A-Z])", r"\1 ", f"{name}")
        parts = [f"{name}", spaced, *re.split(r"[-_]", spaced)]
        found |= {part.lower() for part in parts if part}
        found |= {sign for sign, words in _SIGNS.items() if {part.lower() for part in re.split(r"\W+", name)} & words}
    return found


_SIGNS = {"f": {"woman", "girl"}, "m": {"man", "boy"}}
"""Stereotyped groups are called F and M where the answers say woman, girl, man and boy."""
