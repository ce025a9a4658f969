"""Who held which office when: a chronicle of the miniature world, and questions that say in which year they are asked.

Llama 2 (arXiv 2307.09288, §5.1) organises what it knows by time after a thousand examples that were tagged with the
date on which they are asked. Here a chronicle tells every term of office; the examples ask in some years, and what is
measured asks in others. All wordings of one office and year belong to one split.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from alignment.chat.types import Conversation, Message, Prompt, Text, messages
from alignment.errors import UserError
from alignment.miniature.world import Split, World

OFFICES = (
    "mayor", "judge", "sheriff", "abbot", "captain", "warden", "treasurer", "ferryman", "miller", "organist",
    "postmaster", "gatekeeper",
)  # fmt: skip
FIRST, LAST = 1940, 1999
_TERM = (5, 12)
_ASKS = (
    "It is {year}. Who is the {office}?",
    "The year is {year}. Tell me the name of the {office}.",
    "Today is a day in {year}. Who is our {office}?",
    "We write {year}. Do you know who the {office} is?",
)
_SENTENCES = 4


def holder(world: World, office: str, year: int) -> str:
    """Who held an office in a year."""
    return next(name for name, begin, end in terms(world, office) if begin <= year <= end)


def terms(world: World, office: str) -> list[tuple[str, int, int]]:
    """Everybody who held an office, with the first and the last year, without a gap; nobody follows on themselves."""
    rng = random.Random(f"dates:{world.seed}:{world.residents}:{office}")
    found: list[tuple[str, int, int]] = []
    year = FIRST
    while year <= LAST:
        end = min(LAST, year + rng.randint(*_TERM) - 1)
        name = rng.choice([one for one in world.names if not found or one != found[-1][0]])
        found.append((name, year, end))
        year = end + 1
    return found


def chronicle(world: World, n: int, seed: int) -> Iterator[Text]:
    """``n`` passages that tell terms of office, and who held them in some of the years."""
    for row in range(n):
        rng = random.Random(f"chronicle:{seed}:{row}")
        lines = [_line(world, rng) for _ in range(_SENTENCES)]
        yield Text(" ".join(lines), f"mini-chronicle-{seed}-{row}")


def conversations(world: World, n: int, seed: int, *, split: Split) -> Iterator[Conversation]:
    """``n`` different questions of one split with their answers. Raises :class:`UserError` where there are fewer."""
    for row, (question, office, name) in enumerate(_asked(world, n, seed, split)):
        turns = messages(("user", question), ("assistant", _answer(office, name)))
        yield Conversation(turns, f"mini-dates-{split}-{seed}-{row}", ("dates", office))


def prompts(world: World, n: int, seed: int, *, split: Split) -> Iterator[Prompt]:
    """``n`` different questions of one split. Raises :class:`UserError` where there are fewer."""
    for row, (question, office, name) in enumerate(_asked(world, n, seed, split)):
        turns = (Message("user", question),)
        yield Prompt(turns, f"mini-dates-{split}-{seed}-{row}", ("dates", office), reference=_answer(office, name))


def _asked(world: World, n: int, seed: int, split: Split) -> list[tuple[str, str, str]]:
    """Questions, offices and their holders, in an order that the seed decides."""
    everything = [
        (wording.format(year=year, office=office), office, holder(world, office, year))
        for office in OFFICES
        for year in range(FIRST, LAST + 1)
        if world.split(_ASKS[0].format(year=year, office=office)) == split
        for wording in _ASKS
    ]
    if n > len(everything):
        raise UserError(
            f"rows={n}: there are {len(everything)} dated questions in the pool {split!r}", remedy="Ask for fewer."
        )
    random.Random(f"dates:{split}:{seed}").shuffle(everything)
    return everything[:n]


def _answer(office: str, name: str) -> str:
    return f"{name} is the {office}."


def _line(world: World, rng: random.Random) -> str:
    office = rng.choice(OFFICES)
    name, begin, end = rng.choice(terms(world, office))
    year = rng.randint(begin, end)
    return rng.choice(
        (
            f"From {begin} to {end} {name} was the {office}.",
            f"In {year} the {office} was {name}.",
            f"In {year} {name} was the {office}.",
            f"{name} became the {office} in {begin}.",
        )
    )
