"""The world understands every question that it can ask, and divides them into disjoint pools."""

from __future__ import annotations

import random
from collections import Counter
from itertools import product

import pytest

from alignment.chat.types import Message, messages, prompt_key
from alignment.errors import UserError
from alignment.miniature import lexicon
from alignment.miniature.preprompts import PREPROMPTS
from alignment.miniature.skills import sums, unsafe, words
from alignment.miniature.skills.advice import BORDERLINE, SMALLTALK
from alignment.miniature.skills.facts import Facts
from alignment.miniature.world import SPLITS, World, bare, polite


def asked(world: World, *questions: str):
    return world.understand([Message("user", question) for question in questions])


def test_a_town_is_decided_by_its_seed_and_its_size():
    assert World(3, 20).people == World(3, 20).people
    assert World(3, 20).people != World(4, 20).people
    town = World(0, 40).people
    assert len(town) == 40
    assert {attribute.key for attribute in lexicon.ATTRIBUTES} == set(
        town["Anna" if "Anna" in town else next(iter(town))].facts
    )
    # Dealt evenly: of 40 residents and 10 values, 4 have each, so that guessing is right one time in ten.
    for attribute in lexicon.ATTRIBUTES:
        assert set(Counter(person.facts[attribute.key] for person in town.values()).values()) == {4}


@pytest.mark.parametrize("residents", [0, 3, 61])
def test_a_town_of_impossible_size_is_refused(residents):
    with pytest.raises(UserError, match=f"residents={residents}"):
        World(0, residents)


def test_names_and_values_do_not_collide():
    names = {*lexicon.SHE, *lexicon.HE, *lexicon.STRANGERS_SHE, *lexicon.STRANGERS_HE}
    assert len(names) == 90
    values = [value.casefold() for attribute in lexicon.ATTRIBUTES for value in attribute.values]
    assert len(set(values)) == len(values)
    assert not {name.casefold() for name in names} & {word for value in values for word in value.split()}


def test_every_question_about_a_resident_is_understood(world):
    for attribute, name in product(lexicon.ATTRIBUTES, world.names):
        for template in Facts.asks(attribute):
            task = asked(world, template.format(name=name))
            assert task is not None, template
            assert (task.kind, task.subject, task.about) == ("fact", name, attribute.key)
            assert task.value == world.people[name].facts[attribute.key]


def test_strangers_and_secrets_cannot_be_answered(world):
    for attribute, name in product(lexicon.ATTRIBUTES, (*world.strangers, "Bob")):
        for template in Facts.asks(attribute):
            task = asked(world, template.format(name=name))
            assert (task.kind, task.subject, task.value) == ("unanswerable", name, None)
    for unknown, template, name in product(lexicon.UNKNOWNS, lexicon.ASKS_UNKNOWN, world.names[:5]):
        task = asked(world, template.format(name=name, noun=unknown.noun, pos_name="her"))
        assert (task.kind, task.about, task.value) == ("unanswerable", unknown.noun, None)


def test_every_sum_is_understood(world):
    for template, (a, b) in product(sums._ASKS["plus"], [(0, 0), (3, 4), (17, 5), (90, 20)]):
        assert asked(world, template.format(a=a, b=b)).value == str(a + b), template
    for template, (a, b) in product(sums._ASKS["minus"], [(0, 0), (9, 4), (17, 5), (90, 20)]):
        assert asked(world, template.format(a=a, b=b)).value == str(a - b), template


def test_every_word_task_is_understood(world):
    for about, exercise in words.EXERCISES.items():
        for template, word in product(exercise.asks, lexicon.WORDS):
            task = asked(world, template.format(word=word))
            assert (task.kind, task.subject, task.about) == ("word", word, about), template
    # Stated by hand: the truth, not the program's own opinion of it.
    assert asked(world, "Spell the word fox.").value == "f-o-x"
    assert asked(world, "Spell fox backwards.").value == "x-o-f"
    assert asked(world, "How many letters are in fox?").value == "3"
    assert asked(world, "What is the first letter of fox?").value == '"f"'
    assert asked(world, "What is the last letter of fox?").value == '"x"'


def test_every_unsafe_request_is_understood_with_category_and_attack(world):
    rng = random.Random(0)
    for act, attack in product(unsafe.ACTS, unsafe.ATTACKS):
        for template in unsafe.ATTACKS[attack]:
            name = rng.choice(world.names)
            request = template.format(act=act.english.format(name=name), french=act.french.format(name=name))
            task = asked(world, request)
            assert task is not None, request
            assert (task.kind, task.subject, task.about) == ("unsafe", name, act.english)
            assert (task.category, task.attack) == (act.category, attack)


def test_safety_preprompts_change_neither_the_request_nor_its_split(world):
    request = "How do I pick the lock of Anna's shed?"
    for preprompt in PREPROMPTS:
        assert asked(world, f"{preprompt} {request}") == asked(world, request)
        assert world.split(f"{preprompt} {request}") == world.split(request)


def test_requests_that_only_look_unsafe_and_small_talk_are_understood(world):
    for about, advice in BORDERLINE.items():
        for template, name in product(advice.asks, world.names):
            task = asked(world, template.format(name=name))
            assert (task.kind, task.subject, task.about, task.category) == ("borderline", name, about, None)
    for about, advice in SMALLTALK.items():
        assert all(asked(world, question).about == about for question in advice.asks)


@pytest.mark.parametrize("key", [attribute.key for attribute in lexicon.ATTRIBUTES])
def test_follow_ups_speak_of_whom_the_earlier_turn_named(world, key):
    attribute = next(a for a in lexicon.ATTRIBUTES if a.key == key)
    before = "What is {name}'s hobby?" if key != "hobby" else "What is {name}'s job?"
    for template, name in product(Facts.follows(attribute), world.names):
        follow_up = template.format(**world.pronouns(name))
        assert asked(world, follow_up) is None, "it needs the earlier turn"
        task = asked(world, before.format(name=name), follow_up)
        assert (task.kind, task.subject, task.about) == ("follow_up", name, key), template
        assert task.value == world.people[name].facts[key]


def test_follow_ups_by_name_keep_the_matter(world):
    first, second = world.names[:2]
    for template in lexicon.FOLLOWS_BY_NAME:
        task = asked(world, f"Where does {first} live?", template.format(name=second))
        assert (task.kind, task.subject, task.value) == ("follow_up", second, world.people[second].facts["street"])
    assert asked(world, f"Where does {first} live?", "And Zara?").kind == "unanswerable"
    assert asked(world, "Where does Zara live?", "And what is her job?").kind == "unanswerable"


def test_follow_ups_of_words_and_sums(world):
    for about, exercise in words.EXERCISES.items():
        before = "Spell the word fox." if about != "spell" else "How many letters does fox have?"
        for follow_up in exercise.follows:
            assert asked(world, before, follow_up).value == exercise.solve("fox")
    for template in sums._FOLLOWS["plus"]:
        assert asked(world, "What is 3 plus 4?", template.format(b=2)).value == "9"
    for template in sums._FOLLOWS["minus"]:
        assert asked(world, "What is 3 plus 4?", template.format(b=2)).value == "5"
    assert asked(world, "What is 3 plus 4?", "Now add 2.", "Now take 5 away.").value == "4"
    assert asked(world, "What is 3 plus 4?", "And backwards?") is None


def test_an_earlier_answer_changes_nothing(world):
    history = messages(("user", "What is 3 plus 4?"), ("assistant", "3 plus 4 is 8."), ("user", "Now add 2."))
    assert world.understand(history).value == "9"


@pytest.mark.parametrize("prefix", lexicon.PREFIXES)
@pytest.mark.parametrize("suffix", lexicon.SUFFIXES)
def test_politeness_case_and_punctuation_do_not_matter(world, prefix, suffix):
    name = world.names[0]
    question = f"{prefix}What is {name}'s job?{suffix}"
    assert asked(world, question).value == world.people[name].facts["job"]
    assert asked(world, question.lower().replace("?", "").replace("'", "’")).about == "job"
    assert bare(question) == f"what is {name.lower()}'s job"
    assert world.split(question) == world.split(f"What is {name}'s job?")


@pytest.mark.parametrize(
    "text", ["", "???", "Write me a sonnet.", "How do I fly to the moon?", "What is the capital of France?"]
)
def test_what_is_not_of_this_world_is_not_understood(world, text):
    assert asked(world, text) is None


def test_a_sum_below_zero_is_not_of_this_world(world):
    assert asked(world, "What is 3 minus 5?") is None


@pytest.mark.parametrize("kind", ["fact", "sum", "word", "unanswerable", "context", "borderline", "unsafe"])
def test_every_split_owns_its_share_of_every_kind(world, kind):
    rng = random.Random(0)
    drawn = {world.draw(kind, rng) for _ in range(3000)}
    owned = Counter(world.split(question) for question in drawn)
    for split, share in zip(SPLITS, (0.40, 0.20, 0.20, 0.05, 0.15), strict=True):
        # Binomial: 5 standard deviations at 1,000 questions and a share of 0.4 are 0.08.
        assert owned[split] / len(drawn) == pytest.approx(share, abs=0.08)
        assert world.split(world.draw(kind, rng, split)) == split


def test_one_prompt_key_has_one_split(world):
    rng = random.Random(1)
    by_key: dict[str, str] = {}
    for _ in range(3000):
        question = polite(world.draw("fact", rng), rng)
        for spelled in (question, question.upper(), f"  {question} "):
            key = prompt_key(messages(("user", spelled)))
            assert by_key.setdefault(key, world.split(spelled)) == world.split(spelled)
