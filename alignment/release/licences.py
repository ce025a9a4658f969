"""The licence of a release: what the user says, or what its origins leave no choice of."""

from __future__ import annotations

import re
from dataclasses import dataclass

from alignment.errors import UserError
from alignment.release import gemma_terms
from alignment.release.provenance import GEMMA, Provenance, known

FILE = "LICENSE"
_HUB = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0
bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0
cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0
eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl apple-ascl mpl-2.0
odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license llama2 llama3
llama3.1 llama3.2 llama3.3 gemma
"""
HUB = frozenset(_HUB.split())
"""What the hub knows by name in a card's ``license``; everything else is ``other``."""


@dataclass(frozen=True)
class Licence:
    """``id`` as the card's front matter has it. ``name`` for people; ``text`` is the file LICENSE, or None for none."""

    id: str
    name: str
    text: str | None


def settle(asked: str | None, provenance: Provenance, *, allow_unknown: bool) -> Licence:
    """The licence under which the model may be released.

    Raises :class:`UserError` for unknown licences that were not allowed, for a licence that Gemma's terms do not
    leave room for, and where it is not said and does not follow.
    """
    if provenance.unknown and not allow_unknown:
        first, *others = provenance.unknown
        raise UserError(
            f"no licence is known of {first}" + (f" (and of {len(others)} more)" if others else ""),
            cause="What a model learned from decides how it may be passed on." + _listed(others),
            remedy="Say it where you know it, in the recipe or with origins=[<reference>=<licence>], "
            "or allow_unknown=true: the card then says so.",
        )
    if provenance.gemma:
        if asked is not None and asked.strip().casefold() != GEMMA:
            raise UserError(
                f"licence={asked}: the model descends from Gemma ({provenance.gemma[0]})",
                cause="Its terms of use hold for every model that is derived from it.",
                remedy="Leave licence=null, or say origins=[<reference>=<licence>] where that is no Gemma.",
            )
        return Licence(GEMMA, "Gemma Terms of Use", _gemmas())
    if asked is None:
        return _derived(provenance)
    if known(asked) is None:
        raise UserError(f"licence={asked!r}: says nothing", remedy="Give an SPDX identifier, or the licence's text.")
    return _spelled(asked.strip())


def _derived(provenance: Provenance) -> Licence:
    """What follows where everything has one and the same licence."""
    if len(provenance.licences) == 1 and not provenance.unknown and provenance.licences[0].casefold() in HUB:
        return _spelled(provenance.licences[0])
    found = ", ".join(provenance.licences) or "nothing that has a licence"
    raise UserError(
        "licence=null: under which licence the model is released does not follow from what it is made of",
        cause=f"It is made of {found}.",
        remedy="Say licence=<SPDX identifier, or the text of yours>.",
    )


def _spelled(licence: str) -> Licence:
    identifier = licence.casefold()
    if identifier in HUB:
        return Licence(identifier, licence, None)
    if re.fullmatch(r"[\w.+-]+", licence):
        return Licence("other", licence, None)
    name = licence.splitlines()[0][:80].strip()
    return Licence("other", name, licence.rstrip() + "\n")


def _gemmas() -> str:
    return (
        "# Licence of this model\n\n"
        f"{gemma_terms.SENTENCE}\n\n"
        f"The full terms are in {gemma_terms.TERMS}, the notice is in {gemma_terms.NOTICE}.\n\n{gemma_terms.CLAUSE}"
    )


def _listed(others: list[str]) -> str:
    return "".join(f"\n- {one}" for one in others)
