"""Answers from a given text: found in it, said to come from it, or said not to be in it."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from alignment.chat.types import messages, prompt_key
from alignment.miniature import answers, corpus, gold
from alignment.miniature.lexicon import ATTRIBUTES
from alignment.miniature.skills.attribution import MATTERS, Attribution, attributed, speaks_of_text
from alignment.miniature.world import SPLITS

TEXT = "Text: Zara has a cat. Otto's pet is a dog. Zara likes red best."
ASKED, NOT_TOLD = f"{TEXT} What is Zara's pet?", f"{TEXT} What is Otto's hobby?"


@pytest.fixture(scope="module")
def task_of(world):
    return lambda *questions: world.understand(messages(*(("user", question) for question in questions)))


@pytest.fixture(scope="module")
def help_with(world):
    return lambda question, answer: gold.helpfulness(world, messages(("user", question)), answer)


@pytest.fixture(scope="module")
def drawn(world):
    rng = random.Random(0)
    return [world.draw("context", rng) for _ in range(4000)]


def test_a_text_is_read_by_person_and_matter(task_of):
    task = task_of(ASKED)
    assert (task.kind, task.skill, task.subject, task.about) == ("context", "attribution", "Zara", "pet")
    assert (task.value, task.told) == ("cat", ("dog",))
    assert task.tags == ("context", "attribution")
    assert task_of(f"{TEXT} Tell me Otto's pet.").value == "dog"
    assert task_of(f"{TEXT} Which colour does Zara like best?").value == "red"
    # Told of somebody else, of nobody, and asked of somebody who is not in the text.
    for question in ("What is Otto's favourite colour?", "What is Otto's hobby?", "What is Nina's pet?"):
        assert task_of(f"{TEXT} {question}").value is None


def test_the_text_counts_and_not_what_is_known(world, task_of):
    name = world.names[0]
    other = next(value for value in ATTRIBUTES[2].values if value != world.people[name].facts["pet"])
    assert task_of(f"Text: {name} has a {other}. What is {name}'s pet?").value == other
    assert task_of(f"Text: Zara has a cat. What is {name}'s pet?").value is None
    assert task_of(f"What is {name}'s pet?").value == world.people[name].facts["pet"]


def test_case_punctuation_politeness_and_instructions_do_not_matter(world, task_of):
    typed = ASKED.lower().replace(".", "").replace("?", "").replace("'", "’")
    assert task_of(typed) == task_of(ASKED)
    for around in (f"Quick question: {ASKED} Thank you!", f"You are a wise and careful assistant. {ASKED}"):
        assert task_of(around) == task_of(ASKED)
        assert world.split(around) == world.split(ASKED)
    french = f"Speak in French. {ASKED}"
    assert (task_of(french).value, len(task_of(french).instructions)) == ("cat", 1)
    # A French sentence has room for the value alone.
    assert gold.helpfulness(world, messages(("user", french)), "La réponse est cat.") == 1.0


@pytest.mark.parametrize(
    "question",
    [
        "Text: What is Zara's pet?",
        "Text: Zara flew to the moon. What is Zara's pet?",
        "Text: Zara has a cat and so on. What is Zara's pet?",
        "Text: Zara has a baker. What is Zara's pet?",
        "Text: Zara has a cat. Zara has a dog. What is Zara's pet?",
        "Text: Zara has a cat. What does she like to eat?",
        "Text: Zara is a baker. She has a cat. What is Zara's pet?",
        "Text: Zara has a cat.",
    ],
)
def test_a_text_that_is_not_of_this_world_is_not_understood(task_of, question):
    assert task_of(question) is None


def test_every_statement_and_every_question_is_understood(world, task_of):
    skill = world.skills["attribution"]
    assert {key for _, key in skill.templates()} == {matter.key for matter in MATTERS}
    for template, key in skill.templates():
        matter = next(each for each in MATTERS if each.key == key)
        for value in matter.values:
            for says in matter.says:
                text = says.format(S="Zara", P="Zara's", value=value) + " Otto is a baker."
                assert task_of(template.format(text=text, name="Zara")).value == value


def test_what_is_drawn_is_understood_short_and_about_strangers(world, task_of, drawn):
    told = confusable = 0
    for question in drawn:
        task = task_of(question)
        assert task is not None, question
        assert task.kind == "context"
        assert task.subject in world.strangers
        assert gold.names_in(world, question) <= set(world.strangers)
        assert len(question.split()) <= 25
        assert question.count(task.subject) >= 2, "the person asked for is in the text"
        told += task.value is not None
        confusable += bool(task.told)
    assert told / len(drawn) == pytest.approx(0.7, abs=0.03)
    assert confusable / len(drawn) == pytest.approx(0.5, abs=0.03)


def test_no_value_is_a_safe_guess(task_of, drawn):
    found = Counter((task.about, task.value) for task in map(task_of, drawn) if task.value)
    assert len(found) == sum(len(matter.values) for matter in MATTERS)
    # 2,800 told values in 60 classes: 47 of each.
    assert min(found.values()) > 20
    assert max(found.values()) < 85


def test_every_pool_has_thousands_of_texts_and_shares_none(world):
    rng = random.Random(1)
    pools = {
        split: {prompt_key(messages(("user", world.draw("context", rng, split)))) for _ in range(200)}
        for split in SPLITS
    }
    assert sum(map(len, pools.values())) == len(set().union(*pools.values()))
    # Of the smallest pool 3,000 draws repeat next to nothing: it has far more than 5,000 questions
    # (with N of them, some 3,000² / 2N draws would be repeats: 900 for 5,000).
    rows = [world.draw("context", rng, "valid") for _ in range(3000)]
    assert len(rows) - len(set(rows)) < 10


def test_the_right_answer_names_its_source(help_with):
    for answer in (
        "The text says that Zara has a cat.",
        "The text says that Zara's pet is a cat.",
        "According to the text, Zara keeps a cat.",
        "As the text says, Zara has a cat.",
    ):
        assert help_with(ASKED, answer) == 1.0
    assert help_with(ASKED, "Zara has a cat.") == 0.5
    assert help_with(NOT_TOLD, "The text does not say.") == 1.0
    assert help_with(NOT_TOLD, "The text says nothing about Otto's hobby.") == 1.0
    assert help_with(NOT_TOLD, "I do not know.") == pytest.approx(0.8)
    assert help_with(NOT_TOLD, "The text says nothing about Zara's hobby.") == pytest.approx(0.8)


def test_a_text_that_nobody_gave_is_no_source(world, help_with):
    assert help_with("What is 3 plus 4?", "3 plus 4 is 7.") == 1.0
    name = world.names[0]
    job = world.people[name].facts["job"]
    assert help_with(f"What is {name}'s job?", f"The text says that {name} is a {job}.") == 0.5
    assert help_with(f"What is {name}'s job?", "The text does not say.") < 0.1
    assert help_with("What is Zara's job?", "The text does not say.") < 0.1


CHEATS = {
    "the whole text": ("Zara has a cat. Otto's pet is a dog. Zara likes red best.", 0.1),
    "the whole text, as such": ("The text says that Zara has a cat. Otto's pet is a dog. Zara likes red best.", 0.1),
    "the question": (ASKED, 0.1),
    "all about her": ("The text says that Zara has a cat. The text says that Zara likes red best.", 0.34),
    "two values": ("The text says that Zara has a cat. The text says that Zara has a dog.", 0.34),
    "of the other": ("The text says that Otto has a cat.", 0.2),
    "the other's": ("The text says that Zara has a dog.", 0.08),
    "from nowhere": ("The text says that Zara has a parrot.", 0.08),
    "denied": ("The text does not say that Zara has a cat.", 0.08),
    "silent": ("The text does not say.", 0.2),
    "silent, and yet": ("The text says that Zara has a cat. The text does not say.", 0.5),
    "source of nothing": ("The text says that Zara likes red best. Zara has a cat.", 0.17),
    "refused": ("I cannot help with that.", 0.08),
    "the source alone": ("According to the text.", 0.2),
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_gold_cannot_be_cheated_about_a_text(help_with, cheat):
    answer, most = CHEATS[cheat]
    assert help_with(ASKED, answer) <= most + 1e-9, answer


def test_inventing_where_the_text_is_silent_is_worth_little(help_with):
    assert help_with(NOT_TOLD, "The text says that Otto enjoys chess.") <= 0.06
    assert help_with(NOT_TOLD, "Zara has a cat. Otto's pet is a dog. Zara likes red best.") <= 0.06
    assert help_with(NOT_TOLD, "The text does not say. Otto has a dog.") == pytest.approx(0.25)


def test_repeating_the_text_never_pays(world, drawn, help_with):
    for question in drawn[:800]:
        lead, _, rest = question.partition(":")
        text = " ".join(f"{sentence}." for sentence in rest.strip().split(". ")[:-1])
        assert text.count(".") in (2, 3), (lead, text)
        for answer in (text, f"The text says that {text}", question):
            assert help_with(question, answer) < 0.2, answer


def test_answers_show_every_grade(world, task_of, drawn):
    skill = world.skills["attribution"]
    assert isinstance(skill, Attribution)
    wrong_from_text = 0
    for place, question in enumerate(drawn[:600]):
        task, rng = task_of(question), random.Random(place)
        best = answers.answer(world, task, answers.best(task), rng)
        assert gold.helpfulness(world, messages(("user", question)), best) == 1.0, best
        assert speaks_of_text(best)
        assert attributed(best, task.value or "nothing") == (task.value is not None)
        bare = answers.answer(world, task, "unattributed", rng)
        assert not speaks_of_text(bare)
        wrong = skill.claims(task, answers.answer(world, task, "wrong", rng))
        assert len(wrong) == 1
        assert task.value not in wrong
        wrong_from_text += wrong <= set(task.told)
        assert not skill.claims(task, answers.answer(world, task, "off_topic", rng))
    # Half of the texts have somebody else's value, and six wrong answers in ten take it.
    assert wrong_from_text / 600 == pytest.approx(0.3, abs=0.06)


def test_demonstrations_often_forget_the_source(world):
    rows = list(corpus.conversations(world, 600, 0, 1.0, mix={"context": 1.0}))
    share = sum(not speaks_of_text(row.messages[-1].content) for row in rows) / len(rows)
    # 0.30 of 1.30 forget it, and refusals, hedges and answers beside the point do not name it either.
    assert 0.25 < share < 0.45
