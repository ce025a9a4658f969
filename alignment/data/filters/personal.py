"""Personal data: e-mail and IP addresses, phone, card, bank and social security numbers, found or replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from alignment.data.filters.filter import Finding, Judge
from alignment.data.filters.texts import library, mapped, texts_of
from alignment.data.rows import Row
from alignment.errors import UserError
from alignment.settings import Settings, identity, text

if TYPE_CHECKING:
    from alignment.data.filters.recognisers import Found, Recognisers

ORDER = ("email", "phone", "card", "iban", "ip", "ssn")
"""In which a reason names them."""

SHOWN = 8
"""Places that a detail names; the rest is counted."""


class Options(Settings):
    """What is looked for, and what is put in its place."""

    entities: list[Literal["email", "phone", "card", "iban", "ip", "ssn"]] = identity("which of them", min_length=1)
    replacement: str = text("what stands for each when the row is changed; {entity} becomes EMAIL, PHONE …")
    regions: list[str] = identity("countries whose national phone numbers are known, such as US, GB, DE")
    reserved: bool = identity("count what can belong to nobody too: example.com, private and documentation networks")


def make(options: Options, against: Mapping[str, Sequence[Row]]) -> Judge:
    """Judge and mend rows. Raises :class:`UserError` where the library is missing or a region unknown."""
    with library("presidio-analyzer", "personal"):
        from phonenumbers import SUPPORTED_REGIONS

        from alignment.data.filters.recognisers import Recognisers
    for region in options.regions:
        if region not in SUPPORTED_REGIONS:
            raise UserError(f"regions: {region!r} is no region", remedy="Regions are two capital letters, such as US.")
    recognisers = Recognisers(options.entities, options.regions, reserved=options.reserved)
    if any(character.isdigit() or character == "@" for character in options.replacement):
        raise UserError(
            f"replacement={options.replacement!r}: has a digit or an @, and so might be found again",
            remedy="Write <{entity}>, for instance.",
        )

    def judge(row: Row) -> Finding | None:
        places = [(number, found) for number, each in enumerate(texts_of(row), 1) for found in recognisers.find(each)]
        if not places:
            return None
        present = {found.entity for _, found in places}
        reason = f"personal data: {', '.join(entity for entity in ORDER if entity in present)}"
        return Finding(reason, _detail(places), mapped(row, lambda each: _mended(each, recognisers, options)))

    return judge


def _detail(places: list[tuple[int, Found]]) -> str:
    """Where it stands, never what: ``email in text 2 at 14, phone in text 2 at 60 and 3 more``."""
    shown = ", ".join(f"{found.entity} in text {number} at {found.start}" for number, found in places[:SHOWN])
    return shown if len(places) <= SHOWN else f"{shown} and {len(places) - SHOWN} more"


def _mended(each: str, recognisers: Recognisers, options: Options) -> str:
    """The text with all that was found replaced."""
    # A replacement may set free what stood beside it. It has no digit and no @, so every round leaves fewer.
    while found := recognisers.find(each):
        for start, end, entity in reversed(found):
            each = each[:start] + _spelled(options, entity) + each[end:]
    return each


def _spelled(options: Options, entity: str) -> str:
    return options.replacement.replace("{entity}", entity.upper())
