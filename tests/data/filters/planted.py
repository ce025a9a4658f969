"""Personal data made up from seeds, in the spellings that people use; written without a look at the filter's patterns.

The checksums are done here once more, from their standards: Luhn (ISO/IEC 7812) and ISO 7064 mod 97-10.
"""

from __future__ import annotations

import random
from collections.abc import Callable

FIRST = (
    "ann",
    "bob",
    "carla",
    "dmitri",
    "elena",
    "farid",
    "giulia",
    "hana",
    "ivan",
    "joão",
    "käthe",
    "liam",
    "maria",
    "noor",
    "oscar",
    "priya",
)
LAST = (
    "smith",
    "o'neill",
    "garcía",
    "lee",
    "van-dam",
    "kowalski",
    "rossi",
    "müller",
    "jones",
    "khan",
    "silva",
    "dubois",
    "tanaka",
)
HOSTS = (
    "gmail.com",
    "yahoo.co.uk",
    "gmx.de",
    "outlook.com",
    "web.de",
    "orange.fr",
    "mail.ru",
    "uni-bonn.de",
    "acme-corp.io",
    "cs.mit.edu",
)
HOSTS += (
    "tata.co.in",
    "uol.com.br",
    "proton.me",
    "firma.online",
    "t-online.de",
    "nhs.uk",
    "bücher.de",
    "sub.dept.agency.gov",
)

SENTENCES = (
    "Sure, you can write to {} and she will answer within a day.",
    "Contact: {}",
    "My details are as follows: Ann Smith, 12 High Street, {}, thank you!",
    "I lost it yesterday ({}), what should I do now?",
    "Please phone or mail the office, it is {}.",
    "name,value\nann,{}\nbob,none\n",
    "- Office: {}\n- Open from 9:00 to 17:30, Monday to Friday",
    'He said "{}" twice, and I wrote it down on 12.03.2021.',
    "| name | data |\n|---|---|\n| Ann | {} |\n| Bob | 17 |",
    "{} is what the form says; version 2.4.1 of it was sent in 2019.",
)


def email(rng: random.Random) -> str:
    first, last = rng.choice(FIRST), rng.choice(LAST)
    local = rng.choice(
        (
            f"{first}.{last}",
            f"{first}_{last}{rng.randint(1, 99)}",
            f"{first[0]}{last}",
            first,
            f"{first}+news",
            f"{last}-{first}",
        )
    )
    whole = f"{local}@{rng.choice(HOSTS)}"
    return whole.upper() if rng.random() < 0.1 else whole


def phone(rng: random.Random) -> str:
    return rng.choice((american, american, british, german, french, indian, brazilian, abroad))(rng)


def american(rng: random.Random) -> str:
    area = rng.choice((212, 310, 415, 512, 617, 702, 773, 206, 303, 404, 305, 214, 602, 503, 901))
    exchange, line = f"{rng.randint(2, 9)}{rng.randint(0, 9)}{rng.randint(2, 9)}", f"{rng.randint(0, 9999):04}"
    form = rng.choice(
        (
            "({}) {}-{}",
            "{}-{}-{}",
            "{}.{}.{}",
            "+1 {} {} {}",
            "+1-{}-{}-{}",
            "1-{}-{}-{}",
            "{} {} {}",
            "+1{}{}{}",
            "+1 ({}) {}-{}",
        )
    )
    return form.format(area, exchange, line)


def british(rng: random.Random) -> str:
    if rng.random() < 0.5:
        mobile = f"7{rng.choice('4578')}{rng.randint(10, 99)}", f"{rng.randint(100000, 999999)}"
        return rng.choice(("+44 {} {}", "0{} {}", "+44{}{}", "+44 (0){} {}")).format(*mobile)
    return rng.choice(("020 {} {}", "+44 20 {} {}", "(020) {} {}")).format(
        f"7{rng.randint(100, 999)}", f"{rng.randint(1000, 9999)}"
    )


def german(rng: random.Random) -> str:
    if rng.random() < 0.5:
        network, length = rng.choice((("151", 8), ("160", 7), ("170", 7), ("172", 7)))
        subscriber = rng.randint(10 ** (length - 1), 10**length - 1)
        return rng.choice(("0{} {}", "+49 {} {}", "0{}/{}", "0049 {} {}")).format(network, subscriber)
    return rng.choice(("+49 {} {}", "0{} {}", "(0{}) {}", "+49 (0){} {}")).format(
        rng.choice(("30", "89", "40", "221")), rng.randint(1000000, 9999999)
    )


def french(rng: random.Random) -> str:
    pairs = [f"{rng.randint(10, 99)}" for _ in range(4)]
    head = rng.choice("1234567")
    pattern = rng.choice(("0{} {} {} {} {}", "0{}.{}.{}.{}.{}", "+33 {} {} {} {} {}", "+33{}{}{}{}{}"))
    return pattern.format(head, *pairs)


def indian(rng: random.Random) -> str:
    number = f"{rng.choice(('98', '99', '97', '88'))}{rng.randint(10000000, 99999999)}"
    return rng.choice(("+91 {}", "+91-{}", "+91{}")).format(rng.choice((number, f"{number[:5]} {number[5:]}")))


def brazilian(rng: random.Random) -> str:
    return f"{rng.choice(('+55 11', '(11)', '+55 (21)'))} 9{rng.randint(6000, 9999)}-{rng.randint(1000, 9999)}"


def abroad(rng: random.Random) -> str:
    """Countries that are not among the regions, so with their code."""
    return rng.choice(
        (
            f"+81 90-{rng.randint(1000, 9999)}-{rng.randint(1000, 9999)}",
            f"+34 6{rng.randint(10, 99)} {rng.randint(100, 999)} {rng.randint(100, 999)}",
            f"+61 4{rng.randint(10, 99)} {rng.randint(100, 999)} {rng.randint(100, 999)}",
            f"+39 34{rng.randint(0, 9)} {rng.randint(1000000, 9999999)}",
        )
    )


def luhn(body: str) -> str:
    """The check digit that follows ``body``."""
    total = 0
    for place, character in enumerate(reversed(body)):
        doubled = int(character) * (2 if place % 2 == 0 else 1)
        total += doubled - 9 if doubled > 9 else doubled
    return str(-total % 10)


def card(rng: random.Random) -> str:
    prefix, length = rng.choice(
        (
            ("4", 16),
            ("4", 16),
            ("51", 16),
            ("55", 16),
            ("2223", 16),
            ("2720", 16),
            ("34", 15),
            ("37", 15),
            ("6011", 16),
            ("3530", 16),
            ("36", 14),
        )
    )
    body = prefix + "".join(str(rng.randint(0, 9)) for _ in range(length - 1 - len(prefix)))
    number = body + luhn(body)
    separator = rng.choice((" ", "-", ""))
    cuts = {16: (4, 8, 12), 15: (4, 10), 14: (4, 10)}[length]
    return separator.join(number[start:end] for start, end in zip((0, *cuts), (*cuts, length), strict=True))


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
BANKS = {
    "DE": "d" * 18, "FR": "d" * 10 + "a" * 11 + "dd", "GB": "LLLL" + "d" * 14, "NL": "LLLL" + "d" * 10, "ES": "d" * 20,
    "IT": "L" + "d" * 10 + "a" * 12, "CH": "d" * 5 + "a" * 12, "AT": "d" * 16, "BE": "d" * 12, "NO": "d" * 11,
    "PL": "d" * 24, "SE": "d" * 20, "PT": "d" * 21, "IE": "LLLL" + "d" * 14, "DK": "d" * 14, "FI": "d" * 14,
}  # fmt: skip
"""The bank's part of an IBAN by country: digits, letters, or either."""


def iban(rng: random.Random) -> str:
    country = rng.choice(sorted(BANKS))
    signs = {"d": "0123456789", "L": LETTERS, "a": "0123456789" + LETTERS}
    bank = "".join(rng.choice(signs[sign]) for sign in BANKS[country])
    as_number = int("".join(str(int(sign, 36)) for sign in f"{bank}{country}00"))
    number = f"{country}{98 - as_number % 97:02}{bank}"
    separator = rng.choice((" ", "", " ", "-"))
    return separator.join(number[start : start + 4] for start in range(0, len(number), 4))


def ip(rng: random.Random) -> str:
    if rng.random() < 0.3:
        groups = [f"{rng.randint(0, 0xFFFF):x}" for _ in range(7)]
        long = ":".join((rng.choice(("2a02", "2607", "2400")), *groups))
        short = f"{rng.choice(('2a01', '2600'))}:{groups[0]}:{groups[1]}::{groups[2]}"
        return rng.choice((long, long.upper(), short))
    return ".".join(
        str(part)
        for part in (rng.choice((5, 23, 46, 84, 93, 151, 178, 203)), *(rng.randint(16, 250) for _ in range(3)))
    )


def ssn(rng: random.Random) -> str:
    area = rng.choice([*range(1, 665), *range(667, 899)])
    number = f"{area:03}", f"{rng.randint(1, 99):02}", f"{rng.randint(1, 9999):04}"
    return rng.choice(
        ("{}-{}-{}", "{}-{}-{}", "SSN {} {} {}", "SSN: {}{}{}", "social security number {} {} {}")
    ).format(*number)


KINDS: dict[str, Callable[[random.Random], str]] = {
    "email": email, "phone": phone, "card": card, "iban": iban, "ip": ip, "ssn": ssn,
}  # fmt: skip


def cases(kind: str, count: int, seed: int) -> list[tuple[str, str]]:
    """``count`` pairs of a datum and a text that holds it."""
    rng = random.Random(f"{kind}-{seed}")
    made = []
    for _ in range(count):
        datum = KINDS[kind](rng)
        made.append((datum, rng.choice(SENTENCES).format(datum)))
    return made
