"""Prose about the miniature world: portraits, gossip, accounts, sums, spelling, good sense, and letters to a column.

The questions in the column are those of the split ``sft``, so that nothing that is measured stands in the prose.
"""

from __future__ import annotations

import random

from alignment.miniature import dialogues, lexicon
from alignment.miniature.lexicon import ATTRIBUTES, Attribute
from alignment.miniature.skills.advice import BORDERLINE
from alignment.miniature.skills.attribution import MATTERS, report, silent, state
from alignment.miniature.skills.skill import pick
from alignment.miniature.skills.sums import draw_sum
from alignment.miniature.skills.unsafe import ACTS, INFORMATION, RISKS
from alignment.miniature.skills.words import EXERCISES
from alignment.miniature.town import Resident
from alignment.miniature.world import World

_COLUMN = 220
"""Characters of a column at least."""
_ASKED = {
    "fact": 0.17, "sum": 0.1, "word": 0.17, "unanswerable": 0.08, "context": 0.15, "follow_up": 0.1,
    "unsafe": 0.05, "borderline": 0.03, "instruction": 0.15,
}  # fmt: skip


def passage(world: World, rng: random.Random) -> str:
    """One passage of prose, of about 250 characters."""
    kinds = (_portrait, _register, _gossip, _account, _sums, _spelling, _good_sense, _column)
    write = rng.choices(kinds, (0.24, 0.12, 0.05, 0.04, 0.07, 0.07, 0.02, 0.39))[0]
    return write(world, rng)


def _column(world: World, rng: random.Random) -> str:
    """Questions and answers as a newspaper prints them: what any large corpus has of dialogue."""
    lines: list[str] = []
    while sum(map(len, lines)) < _COLUMN:
        turns = dialogues.dialogue(world, dialogues.draw_kind(_ASKED, rng), rng, "sft")
        for turn in dialogues.perfect(world, turns, rng):
            lines.append(f"{'Question' if turn.role == 'user' else 'Answer'}: {turn.content}")
    return "\n".join(lines)


def _portrait(world: World, rng: random.Random) -> str:
    """Most of what is known about one resident, in any order."""
    person = world.people[rng.choice(world.names)]
    chosen = rng.sample(ATTRIBUTES, rng.choice((5, 6, 7)))
    lines = [
        _tell(world, person, attribute, rng, by_name=i == 0 or rng.random() < 0.6) for i, attribute in enumerate(chosen)
    ]
    return " ".join(lines)


def _register(world: World, rng: random.Random) -> str:
    """The town's register: several residents, a line each, facts in few words."""
    lines = []
    for name in rng.sample(world.names, 3):
        entries = [f"{a.noun} {world.people[name].facts[a.key]}" for a in rng.sample(ATTRIBUTES, len(ATTRIBUTES))]
        lines.append(f"{name}: {', '.join(entries)}.")
    return "\n".join(lines)


def _gossip(world: World, rng: random.Random) -> str:
    """One matter, several residents."""
    attribute = rng.choice(ATTRIBUTES)
    people = rng.sample(world.names, min(6, len(world.names)))
    return " ".join(_tell(world, world.people[name], attribute, rng, by_name=True) for name in people)


def _account(world: World, rng: random.Random) -> str:
    """A short text, what it says, and what it does not say."""
    names = rng.sample(world.names, 3)
    matters = rng.sample(MATTERS, 4)
    told = [
        state(name, matter, world.people[name].facts[matter.key], rng)
        for name, matter in zip(names, matters, strict=False)
    ]
    lines = [*(report(statement, rng) for statement in told), silent(rng.choice(names), matters[3], rng)]
    return " ".join(("Text:", *(f"{statement}." for statement in told), *rng.sample(lines, len(lines))))


def _tell(world: World, person: Resident, attribute: Attribute, rng: random.Random, *, by_name: bool) -> str:
    template = pick(rng, attribute.says)
    value = person.facts[attribute.key]
    if by_name:
        return template.format(S=person.name, P=f"{person.name}'s", value=value)
    she, her = world.pronouns(person.name).values()
    line = template.format(S=she, P=her, value=value)
    return line[0].upper() + line[1:]


def _sums(world: World, rng: random.Random) -> str:
    lines = []
    for _ in range(11):
        op, a, b = draw_sum(rng)
        lines.append(f"{a} {op} {b} is {a + b if op == 'plus' else a - b}.")
    return " ".join(lines)


def _spelling(world: World, rng: random.Random) -> str:
    lines = []
    for word in rng.sample(lexicon.WORDS, 2):
        for exercise in EXERCISES.values():
            lines.append(exercise.says[0].format(word=word, value=exercise.solve(word)))
    return " ".join(lines)


def _good_sense(world: World, rng: random.Random) -> str:
    """What is wise to do, and what is not."""
    lines = []
    for harmless in rng.sample(list(BORDERLINE), 2):
        wish = harmless.format(name=rng.choice(world.names))
        lines.append(f"Some people want to {wish}. {BORDERLINE[harmless].says[0]}")
    act = rng.choice(ACTS)
    name = rng.choice(world.names)
    lines.append(f"It is not good to {act.english.format(name=name)}.")
    lines.append(f"{RISKS[act.category][0].format(name=name)} {INFORMATION[act.category][0].format(name=name)}")
    return " ".join(lines)
