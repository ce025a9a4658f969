"""What the Gemma Terms of Use (section 3.1) ask of whoever distributes Gemma or a model derived from it.

A notice in a file of that name, a copy of the terms, the use restrictions of section 3.2 as an enforceable provision
that is passed on, and a prominent statement in modified files that they were modified. A model derivative is also one
that was trained on a Gemma's answers (section 1.1). This is no legal advice.
"""

from __future__ import annotations

from collections.abc import Sequence

from alignment import files
from alignment.errors import UserError

SENTENCE = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
TERMS_URL = "https://ai.google.dev/gemma/terms"
POLICY_URL = "https://ai.google.dev/gemma/prohibited_use_policy"
NOTICE = "NOTICE"
TERMS = "GEMMA_TERMS_OF_USE.txt"
MENTIONED = ("Gemma Terms of Use", "Prohibited Use Policy", "Distribution")
SHORTEST = 2_000
"""Characters: the terms have some 15,000, and a page that says that there is no such page has fewer."""

CLAUSE = f"""\
## Use restrictions

This model is a Model Derivative of Gemma. Your use, reproduction, modification, Distribution, performance and display
of it and of anything derived from it, in whole or in part, is subject to the Gemma Terms of Use ({TERMS_URL};
a copy is in {TERMS}). In particular:

1. You must not use any of the Gemma Services, this model or its derivatives (a) for the restricted uses set forth in
   the Gemma Prohibited Use Policy at {POLICY_URL} ("Prohibited Use Policy"), which is hereby incorporated by reference
   into this licence, or (b) in violation of applicable laws and regulations (Gemma Terms of Use, section 3.2).
2. You must include these use restrictions as an enforceable provision in any agreement, for instance a licence or
   terms of use, that governs the use or Distribution of this model or of its derivatives, and you must give notice to
   subsequent users to whom you distribute that they are subject to them (section 3.1).
3. You must give every recipient a copy of the Gemma Terms of Use and the file {NOTICE}, and files that you modify must
   carry prominent notices that you modified them (section 3.1).

These provisions bind every recipient and can be enforced against them; who does not accept them may not use the model.
"""
"""The use restrictions as an enforceable provision, which travels in the licence and in the card."""


def read(path: str | None, why: Sequence[str]) -> str:
    """The user's own copy of the terms. Raises :class:`UserError` where there is none, or where it cannot be one."""
    remedy = f"Save the text of {TERMS_URL} in a file and say terms=<file>."
    if path is None:
        raise UserError(
            "terms=null: the model descends from Gemma, and whoever gets it must get a copy of the Gemma Terms of Use",
            cause="It descends by " + "; ".join(why) + ".",
            remedy=f"{remedy} A model that is no Gemma is said to be none with origins=[<reference>=<licence>].",
        )
    file = files.typed(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"terms={path}: cannot be read as text", cause=str(error), remedy=remedy) from None
    start = text.lstrip().casefold()
    if start.startswith(("<!doctype", "<html", "<?xml")):
        raise UserError(f"terms={path}: is a web page, perhaps one that tells of an error", remedy=remedy)
    absent = next((words for words in MENTIONED if words.casefold() not in text.casefold()), None)
    if absent is not None or len(text) < SHORTEST:
        cause = f"It has {len(text):,} characters." if absent is None else f"It does not mention {absent!r}."
        raise UserError(f"terms={path}: is not the whole of the Gemma Terms of Use", cause=cause, remedy=remedy)
    return text


def modification(step: str, fingerprint: str, dtype: str) -> str:
    """The statement that the files were modified, in one line, so that every format can carry it."""
    return (
        f"MODIFIED: this is not an original Gemma file. It was changed or made anew by training, merging or "
        f"conversion ({dtype}) of a model derived from Gemma; step {step}, fingerprint {fingerprint[:16]}. {SENTENCE}."
    )


def notice(statement: str, why: Sequence[str], modified: Sequence[str], silent: Sequence[str]) -> str:
    """The file NOTICE: the sentence of the terms alone on its line, how the model descends, what was modified.

    ``silent`` are modified files whose format can carry no statement of their own.
    """
    ways = "\n".join(f"- {way}" for way in why)
    names = "\n".join(
        [f"- {name}" for name in modified] + [f"- {name} (its format has no place to say so)" for name in silent]
    )
    return (
        f"{SENTENCE}\n\nThis model is derived from Gemma, by\n{ways}\n\n{statement}\n\n"
        f"Modified or made anew:\n{names}\n\n"
        f"Use is restricted: see LICENSE, section 3.2 of the terms in {TERMS}, and {POLICY_URL}.\n"
    )
