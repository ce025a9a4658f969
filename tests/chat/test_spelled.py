from __future__ import annotations

import pytest
from chat_samples import law, talks, written
from hypothesis import given
from hypothesis import strategies as st

from alignment.chat.render import SCHEMAS, answer_ids, fold_system, prompt_ids, render
from alignment.chat.spelled import read
from alignment.chat.tokenizers import Tokenizer
from alignment.chat.types import Message, Messages, messages
from alignment.errors import UserError

schemas = st.sampled_from(sorted(SCHEMAS))
ASKED = "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"


def spelled(ids: list[int], tokenizer: Tokenizer) -> str:
    """As a tokenizer decodes that leaves no control token out."""
    runs: list[list[int]] = [[]]
    for index in ids:
        if index in tokenizer.control_ids or (runs[-1] and runs[-1][-1] in tokenizer.control_ids):
            runs.append([])
        runs[-1].append(index)
    return "".join(
        tokenizer.piece(run[0]) if run[:1] and run[0] in tokenizer.control_ids else tokenizer.decode(run)
        for run in runs
    )


@law
@given(turns=talks(), schema=schemas, pads=st.integers(0, 2), bos=st.booleans())
def test_what_a_renderer_wrote_is_read_back(
    lossless: Tokenizer, turns: Messages, schema: str, pads: int, bos: bool
) -> None:
    text = spelled(render(turns, lossless, schema).ids, lossless)
    text = "<pad>" * pads + (text if bos else text.removeprefix("<bos>")) + "<pad>" * (2 - pads)
    assert read(text, lossless) == fold_system(turns)


@law
@given(turns=talks(), answer=written(), schema=schemas)
def test_with_its_prompt_at_hand_every_answer_is_read(
    lossless: Tokenizer, turns: Messages, answer: str, schema: str
) -> None:
    prompt = spelled(prompt_ids(turns[:-1], lossless), lossless)
    text = prompt + spelled(answer_ids(answer, lossless, schema), lossless)
    wanted = (*fold_system(turns[:-1]), Message("assistant", answer))
    assert read(text, lossless, prompt) == read(text, lossless, prompt.removeprefix("<bos>")) == wanted


@pytest.mark.parametrize(
    "ending", ["", "<eos>", "<end_of_turn>", "<end_of_turn><eos>", "<end_of_turn>\n", "<eos><pad>"]
)
@pytest.mark.parametrize("answer", ["", "Hello", " \n"])
def test_an_answer_may_be_closed_in_any_way_or_cut_off(answer: str, ending: str, tokenizer: Tokenizer) -> None:
    wanted = messages(("user", "Hi"), ("assistant", answer))
    assert read(ASKED + answer + ending, tokenizer) == wanted
    assert read(ASKED + answer + ending, tokenizer, ASKED) == wanted


def test_what_a_policy_draws_astray_is_no_error_where_the_prompt_is_known(tokenizer: Tokenizer) -> None:
    drawn = "a<start_of_turn>b<bos><eos>never<start_of_turn>user\nread"
    assert read(ASKED + drawn, tokenizer, ASKED)[-1] == Message("assistant", "ab")
    with pytest.raises(UserError):
        read(ASKED + drawn, tokenizer)


def test_a_prompt_that_the_text_does_not_begin_with_says_nothing(tokenizer: Tokenizer) -> None:
    assert read(ASKED + "Hello<eos>", tokenizer, "<bos><start_of_turn>user\nHo") == messages(
        ("user", "Hi"), ("assistant", "Hello")
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "does not begin with <start_of_turn>"),
        ("Hi", "does not begin with <start_of_turn>"),
        ("Hi" + ASKED, "does not begin with <start_of_turn>"),
        ("<bos>" + ASKED, "does not begin with <start_of_turn>"),
        (ASKED + "a<bos>b", "a control token stands in the text of turn 2"),
        (ASKED + "a<pad>b", "a control token stands in the text of turn 2"),
        ("<start_of_turn>user\nHi<end_of_turn>\n", "does not end with the model's turn"),
        ("<start_of_turn>user\nHi<start_of_turn>model\nHo", "turn 1 is not closed"),
        ("<start_of_turn>system\nHi<end_of_turn>\n", "turn 1 is neither the user's nor the model's"),
        (ASKED + "Ho<eos>and more", "turn 2 goes on after it was closed"),
    ],
)
def test_what_is_no_dialogue_is_refused(text: str, told: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=told):
        read(text, tokenizer)


def test_a_prompt_with_an_answer_of_its_own_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="ends with an answer"):
        read(ASKED + "Hello", tokenizer, ASKED + "Hel")
