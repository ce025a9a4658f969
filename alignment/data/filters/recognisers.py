"""Personal data in a text: Presidio's recognisers, asked only where something of the kind may stand.

Presidio is used without its engine, without a language model and without the network. Its recognisers
take any number of the right shape, so each is followed by what speaks against it: decimals, dates,
versions, lists of numbers, identifiers inside addresses.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import tldextract
from presidio_analyzer import Pattern, PatternRecognizer
from presidio_analyzer.predefined_recognizers import (
    CreditCardRecognizer,
    EmailRecognizer,
    IbanRecognizer,
    IpRecognizer,
    PhoneRecognizer,
    UsSsnRecognizer,
)

Recogniser = PatternRecognizer | PhoneRecognizer
Entity = Literal["email", "iban", "card", "ip", "ssn", "phone"]
ENTITIES: tuple[Entity, ...] = get_args(Entity)
"""In order of precedence: where two overlap, the earlier is meant (nine digits may be an SSN and a phone number)."""


MARGIN = 12
"""Characters shown to a recogniser on both sides of what may be meant: it looks at the neighbours."""


class Found(NamedTuple):
    """Personal data at ``text[start:end]``."""

    start: int
    end: int
    entity: Entity


class Spot(NamedTuple):
    """What a recogniser proposes: where in which text, and how sure it is (0 to 1)."""

    text: str
    start: int
    end: int
    score: float

    @property
    def value(self) -> str:
        return self.text[self.start : self.end]

    @property
    def digits(self) -> str:
        return "".join(character for character in self.value if character.isdigit())

    def before(self, length: int) -> str:
        return self.text[max(0, self.start - length) : self.start]

    def after(self, length: int) -> str:
        return self.text[self.end : self.end + length]


@dataclass(frozen=True, slots=True)
class _Kind:
    """How one entity is found: where it may begin, whom to ask, and the part of what it says that is believed."""

    look: Callable[[str], Iterator[tuple[int, int]]]
    recognisers: Sequence[Recogniser]
    believed: Callable[[Spot], tuple[int, int] | None]
    reach: int = MARGIN
    """Characters after the place where it may begin that are shown to the recogniser."""


class Recognisers:
    """The recognisers of some entities. ``regions`` are the countries whose national phone numbers count.

    ``reserved`` counts what can belong to nobody as well: addresses at example.com and other reserved
    domains, private and documentation networks, phone numbers under codes that are not assigned.
    """

    def __init__(self, entities: Sequence[Entity], regions: Sequence[str], *, reserved: bool) -> None:
        phones: list[Recogniser] = [PhoneRecognizer(supported_regions=tuple(regions))]
        if reserved:
            phones.append(PatternRecognizer("PHONE_NUMBER", patterns=_PHONES))
        kinds: dict[Entity, Callable[[], _Kind]] = {
            "email": lambda: _Kind(_around_at_signs, [_Email()], lambda spot: _email(spot, reserved), reach=255),
            "iban": lambda: _Kind(_matches(_IBANISH), [IbanRecognizer()], lambda spot: (spot.start, spot.end)),
            "card": lambda: _Kind(_runs(12), [CreditCardRecognizer(patterns=_CARDS)], _card),
            "ip": lambda: _Kind(_addresses, [IpRecognizer()], lambda spot: _ip(spot, reserved)),
            "ssn": lambda: _Kind(_runs(9), [UsSsnRecognizer()], _ssn),
            "phone": lambda: _Kind(_runs(7), phones, _phone),
        }
        self._kinds = {entity: kinds[entity]() for entity in ENTITIES if entity in entities}

    def find(self, text: str) -> list[Found]:
        """All personal data in a text, in order, none overlapping another."""
        taken: list[Found] = []
        for entity, kind in self._kinds.items():
            for start, end in sorted(self._spots(text, kind), key=lambda spot: (spot[0], -spot[1])):
                if all(end <= other.start or other.end <= start for other in taken):
                    taken.append(Found(start, end, entity))
        return sorted(taken)

    @staticmethod
    def _spots(text: str, kind: _Kind) -> set[tuple[int, int]]:
        spots = set()
        for start, end in kind.look(text):
            first, last = max(0, start - MARGIN), min(len(text), end + kind.reach)
            for recogniser in kind.recognisers:
                for result in recogniser.analyze(text[first:last], recogniser.supported_entities):
                    spot = Spot(text, first + result.start, first + result.end, result.score)
                    # What touches an edge or begins outside may be the half of something.
                    whole = start <= spot.start < end and (spot.end < last or last == len(text))
                    if whole and (believed := kind.believed(spot)):
                        spots.add(believed)
        return spots


# -- where something may begin: a few characters each, so that the work is linear in the text's length ------

_AT = re.compile(r"(?<=\S)@(?=\w)")
_RUN = re.compile(r"[+(]{0,2}\d[\d \t\xa0().+/\-\u2010-\u2013]{5,118}\d")
_DOTTED = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}")
_COLONS = re.compile(r"[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:.]{0,39}")
_IBANISH = re.compile(r"\b[A-Z]{2}\d{2}[ -]?(?:[A-Z0-9][ -]?){10,40}")


def _around_at_signs(text: str) -> Iterator[tuple[int, int]]:
    if "@" in text:
        for sign in _AT.finditer(text):
            yield max(0, sign.start() - 80), sign.end()


def _runs(least: int) -> Callable[[str], Iterator[tuple[int, int]]]:
    """Runs of digits and what separates them, with ``least`` digits or more."""
    return lambda text: ((start, end) for start, end, digits in _digit_runs(text) if digits >= least)


@lru_cache(maxsize=1)
def _digit_runs(text: str) -> list[tuple[int, int, int]]:
    """Where they start and end and how many digits they have; several entities look at one text's in turn."""
    return [(*run.span(), sum(map(str.isdigit, run[0]))) for run in _RUN.finditer(text)]


def _matches(pattern: re.Pattern[str]) -> Callable[[str], Iterator[tuple[int, int]]]:
    def look(text: str) -> Iterator[tuple[int, int]]:
        for match in pattern.finditer(text):
            yield match.span()

    return look


def _addresses(text: str) -> Iterator[tuple[int, int]]:
    if text.count(".") >= 3:
        yield from _matches(_DOTTED)(text)
    if text.count(":") >= 2:
        yield from _matches(_COLONS)(text)


# -- what is believed ----------------------------------------------------------------------------------------


class _Email(EmailRecognizer):
    """Presidio's, with the public-suffix list that its library brings along: nothing is fetched."""

    _suffixes = tldextract.TLDExtract(cache_dir=None, suffix_list_urls=())

    def validate_result(self, pattern_text: str) -> bool:
        # Of the domain alone: for the whole text `site.com/@name` would be judged by `site.com`.
        return self._suffixes(pattern_text.rpartition("@")[2]).suffix != ""


_SERVICES = {"git", "hg", "svn"}
_RESERVED_DOMAINS = re.compile(r"(?i)(?:^|[@.])(?:example\.(?:com|net|org|edu)|example|test|invalid|localhost)$")


def _email(spot: Spot, reserved: bool) -> tuple[int, int] | None:
    local, _, domain = spot.value.rpartition("@")
    # `author_email='ann@firm.com`, `{name}@firm.com`: the pattern allows these signs in the local part.
    own = re.split(r"[=/{}|]", local)[-1].lstrip("'`")
    if not own or own.lower() in _SERVICES or (not reserved and _RESERVED_DOMAINS.search(domain)):
        return None
    return spot.end - len(domain) - 1 - len(own), spot.end


_CARDS = [
    Pattern("bare", r"(?<!\d)(?:[3-6]\d{12,18}|2[2-7]\d{14})(?!\d)", 0.3),
    Pattern("fours", r"(?<!\d)([2-6]\d{3})([ -])\d{4}\2\d{4}\2\d{4}(?:\2\d{3})?(?!\d)", 0.3),
    Pattern("4-6-5", r"(?<!\d)3\d{3}([ -])\d{6}\1\d{4,5}(?!\d)", 0.3),
]
"""How card numbers are printed. The library's own pattern lacks Mastercard's 2221 to 2720 and takes any grouping."""

_ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"
    r"|3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11}|(?:6011|64[4-9]\d|65\d\d|62\d\d|81\d\d)\d{12,15}|35(?:2[89]|[3-8]\d)\d{12}"
    r"|(?:50|5[6-9]|6[037])\d{14}"
)
"""Visa, Mastercard (both series), American Express, Diners, Discover and UnionPay, JCB, Maestro."""

_CARD_WORDS = re.compile(r"(?i)card|visa|master|amex|credit|debit|payment|\bpan\b|karte|carte|tarjeta")


def _card(spot: Spot) -> tuple[int, int] | None:
    if not _ISSUERS.fullmatch(spot.digits) or _inside_something(spot):
        return None
    # A table of four-digit numbers, and the short Visa numbers that are hardly in use, need a word beside them.
    listed = not spot.value.isdigit() and (re.search(r"\d\s*$", spot.before(4)) or re.match(r"\s*\d", spot.after(4)))
    if (listed or len(spot.digits) < 14) and not _CARD_WORDS.search(spot.before(60)):
        return None
    return spot.start, spot.end


_VERSION_WORDS = re.compile(r"(?i)(?:\bv|\bver|version|release|build|firmware|driver|section|chapter|clause|§)[.:\s]*$")


def _ip(spot: Spot, reserved: bool) -> tuple[int, int] | None:
    address = ipaddress.ip_interface(spot.value.partition("%")[0]).ip
    if spot.score < 0.5 or (not address.is_global and not reserved) or address.is_unspecified or address.is_loopback:
        return None
    if address.version == 6:
        # `Some::Face` in source code is no address.
        groups = [group for group in spot.value.split(":") if group]
        return (spot.start, spot.end) if len(groups) >= 3 and any(map(str.isdigit, spot.value)) else None
    parts = spot.value.partition("/")[0].split(".")
    numbered = all(len(part) == 1 for part in parts) or parts[2:] == ["0", "0"]
    longer = re.search(r"\d\.$", spot.before(2)) or re.match(r"\.\d", spot.after(2))
    versioned = _VERSION_WORDS.search(spot.before(12)) or re.search(r"[A-Za-z][/-]$", spot.before(2))
    return None if numbered or longer or versioned else (spot.start, spot.end)


_SSN_WORDS = re.compile(r"(?i)\bssn|social[\s-]+security|\bsocial\b|\bitin\b|tax(?:payer)?\s+id")


def _ssn(spot: Spot) -> tuple[int, int] | None:
    if _inside_something(spot) or re.search(r"\d[-. ]$", spot.before(2)) or re.match(r"[-.]\d", spot.after(2)):
        return None
    spelled_out = re.fullmatch(r"\d{3}-\d{2}-\d{4}", spot.value)
    return (spot.start, spot.end) if spelled_out or _SSN_WORDS.search(spot.before(60)) else None


_PHONES = [
    Pattern("3-3-4", r"(?<!\d)(?:\+?1[-. ]?)?(?:\(\d{3}\) ?|\d{3}[-.])\d{3}[-. ]\d{4}(?!\d)", 0.4),
    Pattern("with a country's code", r"\+[1-9]\d{0,2}[-. ](?:\(?\d{1,4}\)?[-. ]){1,4}\d{2,8}(?!\d)", 0.4),
]
"""Numbers that are printed like phone numbers, whether or not such a number can be called."""

_PHONE_WORDS = re.compile(
    r"(?i)phone|\btel\b|\bmobile|\bcell|\bcall|\bfax|whatsapp|\bsms\b|\btext(?:ed|ing)?\b|\bdial|\bring\b|contact"
    r"|\breach|hotline|\bline\b|telefon|tel[ée]fono|t[ée]l[ée]phone|\bhandy\b|m[óo]vil|celular|ligue|appel|\bruf"
)
_NOT_PHONES = re.compile(
    r"""(?x)
      \d+[.]\d+                                                                      # a decimal
    | \d{1,3}(?:[.]\d{1,3}){3}                                                       # an IP address
    | \d{4}([-/. ])\d{1,2}\1\d{1,2} | \d{1,2}([-/. ])\d{1,2}\2(?:\d{4}|\d{2})       # a date
    | \d{4}\s?[-/–]\s?\d{4}                                                         # years
    | \d{5}-\d{4}                                                                    # a ZIP code
    | [\d.]+\s[-–+/]\s[\d.]+                                                        # a sum
    """
)
_LISTED = re.compile(r"^\d{1,2}[.)]\s+\d{5}|\d[.]\d+[ ]\d|[.]\s{2,}")
_OTHER_NUMBERS = re.compile(r"(?i)(?:isbn|issn|doi|arxiv|order|invoice|tracking|serial|patent|zip)\W*(?:\w+\W+)?$")


def _phone(spot: Spot) -> tuple[int, int] | None:
    if len(spot.digits) < 7 or _inside_something(spot) or _OTHER_NUMBERS.search(spot.before(24)):
        return None
    if not spot.value.startswith("+"):
        if _NOT_PHONES.fullmatch(spot.value) or _LISTED.search(spot.value):
            return None
        if spot.value.isdigit() and not _PHONE_WORDS.search(spot.before(60)):
            return None
    return spot.start, spot.end


_ADDRESS = re.compile(r"(?i)(?:://|www\.|\.[a-z]{2,}/|doi:)\S*$")


def _inside_something(spot: Spot) -> bool:
    """Whether digits are a part of something longer: a decimal, an amount, a name, an address on the web."""
    return bool(
        re.search(r"(?:\d[.,]|[\w=#&?@$€£¥%\\])$", spot.before(2))
        or re.match(r"[.,]?\d|\w|%", spot.after(2))
        or _ADDRESS.search(spot.before(80))
    )
