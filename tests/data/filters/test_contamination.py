"""Contaminated rows: all of them are found, and none that is not."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from alignment.chat.types import Comparison, Prompt, Text, messages
from alignment.data.filters.texts import questions_of
from alignment.errors import UserError

from . import real
from .options import make, talk

QUESTION = "Weng earns 12 dollars an hour for babysitting and yesterday she just did 50 minutes of it how much"
SHORT = "Name the nine largest moons of the planet Saturn"


def evaluation() -> dict[str, list]:  # type: ignore[type-arg]
    return {"exam": [talk(QUESTION, "Ten."), Prompt(messages(("user", SHORT)), "short"), talk("Who are you?", "Me.")]}


def disguised(question: str, rng: random.Random) -> str:
    """The question with another case, punctuation or spacing, inside of something longer."""
    changes = (
        str,
        str.upper,
        lambda text: text.replace(",", " ;").replace(".", " !").replace("$", "€ "),
        lambda text: text.replace(" ", rng.choice(("  ", "\n", "\t", "\u00a0"))),
        lambda text: text.replace("'", "’").replace("-", " – ").title(),
        lambda text: "*" + text.replace(" ", "* *") + "*",
    )
    opening = rng.choice(("", "Please solve this: ", 'Here is an exercise from my book.\n\n"', "### Task\n"))
    ending = rng.choice(("", "\nLet's think step by step.", '" Explain your answer to a child.', " Thanks!"))
    return opening + rng.choice(changes)(question) + ending


def test_every_planted_gsm8k_question_is_found(shared_data: Path) -> None:
    questions = list(real.gsm8k(shared_data))
    judge = make("contamination", {"gsm8k": list(questions)}, texts="questions")
    rng = random.Random(0)
    for row in questions[::10]:
        text = disguised(questions_of(row)[0], rng)
        for planted in (talk(text, "I see."), Comparison(messages(("user", "Hi")), text, "b", "better", "s", "c")):
            finding = judge(planted)
            assert finding is not None, text
            assert finding.reason == "contaminated by gsm8k"


def test_no_real_conversation_shares_anything_with_gsm8k(shared_data: Path) -> None:
    judge = make("contamination", {"gsm8k": list(real.gsm8k(shared_data))})
    rows = [row for number, row in enumerate(real.conversations(shared_data)) if number % 4 == 0]
    assert not [row.id for row in rows if judge(row)]


def test_the_detail_names_the_row_and_the_count() -> None:
    # 19 words have 7 13-grams.
    finding = make("contamination", evaluation())(talk("Hi", f"First: {QUESTION}, and so on."))
    assert finding is not None
    assert finding.detail == "13-grams shared: 7, most of them with t"
    again = make("contamination", evaluation())(talk("Hi", f"{QUESTION}. {QUESTION}."))
    assert again is not None
    assert again.detail == finding.detail


def test_twelve_words_are_not_thirteen() -> None:
    judge, question = make("contamination", evaluation()), QUESTION.split()
    assert judge(Text(" ".join(question[:12]) + " or", "t")) is None
    assert judge(Text(" ".join(question[2:15]), "t")) is not None
    # In two texts the words do not follow each other.
    assert judge(talk(" ".join(question[:10]), " ".join(question[10:]))) is None


def test_at_least_counts_distinct_ngrams() -> None:
    row = Text(" ".join(QUESTION.split()[:14]), "t")
    assert make("contamination", evaluation(), at_least=2)(row) is not None
    assert make("contamination", evaluation(), at_least=3)(row) is None
    assert make("contamination", evaluation(), at_least=3)(Text(f"{row.text} or {row.text}", "t")) is None


def test_short_texts_are_looked_for_whole_down_to_the_floor() -> None:
    judge = make("contamination", evaluation())
    finding = judge(talk(f"Quick! {SHORT.upper()}?", "I cannot."))
    assert finding is not None
    assert finding.detail == "the whole of short"
    assert judge(talk("Name the nine largest moons of the planet Mars", "I cannot.")) is None
    assert judge(talk("Who are you?", "Me.")) is None
    assert make("contamination", evaluation(), whole_words=10)(talk(SHORT, "I cannot.")) is None


def test_answers_of_evaluation_rows_count_on_request() -> None:
    against = {"exam": [talk("Why?", QUESTION)], "papers": [Text(SHORT * 2, "paper")]}
    assert make("contamination", against)(Text(QUESTION, "t")) is not None
    assert make("contamination", against, texts="questions")(Text(QUESTION, "t")) is None
    finding = make("contamination", against, texts="questions")(Text(f"{SHORT * 2}!", "t"))
    assert finding is not None
    assert finding.reason == "contaminated by papers"


def test_a_set_has_to_be_named() -> None:
    with pytest.raises(UserError, match="no evaluation set"):
        make("contamination")
