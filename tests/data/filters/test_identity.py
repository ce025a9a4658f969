"""Claims to be another assistant, in answers only."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignment.chat.types import Comparison, Prompt, messages

from . import real
from .options import make, talk

CLAIMS = (
    "I am ChatGPT, how can I help?",
    "Hello! I'm Open Assistant.",
    "I’m an AI assistant called OpenAssistant and I can help.",
    "My name is Claude.",
    "As an AI developed by OpenAI, I cannot do that.",
    "As a large language model trained by OpenAI, I don't have feelings.",
    "I was created by researchers at Anthropic.",
    "I am a language model, and I was trained by a team of engineers at OpenAI in 2022.",
    "OpenAI, the company that trained me, says no.",
    "As ChatGPT, I would rather not.",
    "You are talking to Siri.",
    "My creators at OpenAI told me so.",
    "I'm actually just a chatbot named Vicuna.",
    "Soy Open Assistant, un modelo de lenguaje.",
    "Ich bin ChatGPT und wurde von OpenAI entwickelt.",
    "Je suis un assistant développé par OpenAI.",
    "i am chatgpt",
    "I am **Alexa**",
)

NO_CLAIMS = (
    "ChatGPT is a model by OpenAI.",
    "OpenAI was founded in 2015; it developed ChatGPT.",
    "I am not ChatGPT.",
    "I'm using ChatGPT every day, and so does Anthropic.",
    "I am a fan of Claude Monet.",
    'She typed "I am ChatGPT" into the window.',
    "He said: “As an AI developed by OpenAI, I cannot.”",
    '```python\nprint("x")  # I am ChatGPT\n```',
    "I am Gemma, trained by Google DeepMind.",
    "I have been trained by my mother. OpenAI is a company.",
    "As Siri does, I tell the time.",
    "I am bardic, a vicunalike creature.",
)


@pytest.mark.parametrize("answer", CLAIMS)
def test_a_claim_is_found_in_answers_alone(answer: str) -> None:
    judge = make("identity")
    finding = judge(talk("Who are you?", f"Well. {answer}"))
    assert finding is not None
    assert finding.reason == "claims another identity"
    assert judge(talk(answer, "Good for you.")) is None


@pytest.mark.parametrize("answer", NO_CLAIMS)
def test_talk_about_assistants_is_none(answer: str) -> None:
    assert make("identity")(talk("Who are you?", answer)) is None


def test_every_answer_of_every_kind_counts() -> None:
    judge, said = make("identity"), "I am ChatGPT."
    asked = messages(("user", "Who?"))
    assert judge(Comparison(asked, "I am Gemma.", said, "better", "s", "c"))
    assert judge(Comparison(asked, said, "I am Gemma.", "better", "s", "c"))
    assert judge(Prompt((*asked, *messages(("assistant", said), ("user", "Really?"))), "p"))
    assert judge(Prompt(messages(("user", said)), "p")) is None


def test_own_names_win_over_the_lists() -> None:
    answer = talk("Who?", "I am Claude, made by Anthropic.")
    assert make("identity")(answer)
    assert make("identity", own=["claude", "anthropic"])(answer) is None
    assert make("identity", names=[], companies=[])(answer) is None


def test_real_claims(shared_data: Path) -> None:
    """Each was read: 11 answers that say to be Open Assistant, ChatGPT's relative or made by OpenAI."""
    judge = make("identity")
    found = [row.id for row in real.conversations(shared_data) if judge(row)]
    assert len(found) == 11
    assert {name.split(":")[0] for name in found} == {"oasst", "qlora"}


def test_appositions_and_greetings() -> None:
    judge = make("identity")
    for claim in ("As ChatGPT, made by OpenAI, I am glad to help.", "ChatGPT here! How can I help?"):
        assert judge(talk("Hello?", claim)) is not None, claim
    for innocent in ("As ChatGPT, Claude and others show, this works.", "There is no ChatGPT here."):
        assert judge(talk("Hello?", innocent)) is None, innocent
