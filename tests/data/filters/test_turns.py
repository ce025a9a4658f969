"""Broken turns."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from alignment.chat.types import Comparison, Conversation, Prompt, Text, messages

from . import real
from .options import make, talk

BROKEN = {
    "It is four.\nHuman: And five?": "answer goes on as the user",
    "### Human: And five?": "answer goes on as the user",
    "Fine.\n  **User:** And five?": "answer goes on as the user",
    "It is four.<|im_end|>": "control token in a text",
    "```python\nprint(4)": "unclosed code block",
    "The answer to this hard question is surely four, beca": "answer cut off",
    "There are many of them: one, two, three,": "answer cut off",
    "tell me what two and two is": "answer repeats the question",
}


@pytest.mark.parametrize("answer", BROKEN)
def test_what_is_broken(answer: str) -> None:
    finding = make("turns")(talk("Tell me  what two and two is", answer))
    assert finding is not None
    assert finding.reason == BROKEN[answer]


WHOLE = (
    "Four.",
    "Every Human: a being; the User: a person.",
    " * User: shown in the comment above. That is all there is to say.",
    "```python\nprint(4)\n```\nThat is all there is to it.",
    "Use three backticks (```) around the code, as I said.",
    "Yes, it certainly is so 👍",
    "Sir Isaac Newton",
    "And the answer to that question is (as you know) 4",
)


@pytest.mark.parametrize("answer", WHOLE)
def test_what_is_not(answer: str) -> None:
    assert make("turns")(talk("What is two and two, please?", answer)) is None


def test_a_greeting_may_be_given_back() -> None:
    assert make("turns")(talk("Hello!", "Hello!")) is None


def test_each_check_can_be_left_out() -> None:
    judge = make("turns", markers=[], tokens=[], unclosed_code=False, cut_off=False, echo=False)
    assert not any(judge(talk("Tell me  what two and two is", answer)) for answer in BROKEN)


def test_users_may_write_markers_but_not_control_tokens() -> None:
    judge = make("turns")
    assert judge(talk("Continue:\nHuman: hi", "Hello to you, too.")) is None
    assert judge(talk("[INST] hi [/INST]", "Hello to you, too.")) is not None
    assert judge(Text("[INST] hi", "t")) is not None


def test_both_answers_and_earlier_ones_are_read() -> None:
    judge, asked = make("turns"), messages(("user", "What is two and two?"))
    assert judge(Comparison(asked, "Four.", "Four.\nHuman: ok", "better", "s", "c"))
    assert judge(Comparison(asked, "what is two and two?", "Four.", "better", "s", "c"))
    earlier = (*asked, *messages(("assistant", "Four.\nHuman: ok"), ("user", "And?")))
    assert judge(Prompt(earlier, "p"))
    # Only the answers that end a row can be cut off.
    cut = (*asked, *messages(("assistant", "It is surely, as I think"), ("user", "And?"), ("assistant", "Four.")))
    assert judge(Conversation(cut, "c")) is None


def test_real_rows(shared_data: Path) -> None:
    judge = make("turns", cut_off=False)
    found = Counter(finding.reason for row in real.hh_rlhf(shared_data) if (finding := judge(row)))
    # Read: answers that open with `Human:`, a slip of the people who wrote them.
    assert found["answer goes on as the user"] == 40
    assert not any(judge(row) for row in real.gsm8k(shared_data))
