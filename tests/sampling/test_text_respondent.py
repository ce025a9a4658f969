"""Turns written out as text, and where an answer ends that no control token ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from evals.suites import suite_support

from alignment.chat import tokenizers
from alignment.chat.tokenizers import Tokenizer
from alignment.chat.transcript import Transcript, encoded
from alignment.chat.types import messages
from alignment.gemma import core
from alignment.sampling.decoding import Decoding, Reply
from alignment.sampling.sampler import Answer, Sampler
from alignment.sampling.text_respondent import TextRespondent, up_to

TALK = Transcript("User:", "Assistant:")
DECODING = Decoding(samples=2, temperature=1.0, top_p=1.0, max_new_tokens=12, seed=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return suite_support.policy(tmp_path_factory.mktemp("tiny")).path


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Tokenizer:
    return tokenizers.load(model)


def test_turns_are_written_out_and_the_text_ends_where_the_answer_begins() -> None:
    said = messages(("user", "Hi"), ("assistant", "Hello."), ("user", "Well?"))
    assert TALK.written(said) == "User: Hi\nAssistant: Hello.\n\nUser: Well?\nAssistant:"
    told = messages(("system", "Be brief."), ("user", "Hi"))
    assert TALK.written(told) == "Be brief.\n\nUser: Hi\nAssistant:"


def test_an_answer_ends_where_the_user_would_speak_again(tokenizer: Tokenizer) -> None:
    whole = Reply(" seven\nor so.\n\nUser: And then?\nAssistant: …", 40, finished=False)
    kept = up_to("\nUser:", whole, tokenizer)
    assert (kept.text, kept.finished) == (" seven\nor so.\n", True)
    assert kept.tokens == len(encoded(" seven\nor so.\n", tokenizer))
    assert up_to("\nNobody:", whole, tokenizer) is whole


def test_a_model_goes_on_with_the_text_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, model: Path, tokenizer: Tokenizer
) -> None:
    asked: list[list[int]] = []

    def draw(self: Any, prompts: Any, keys: Any, **_: Any) -> list[Answer]:
        asked.extend(prompts)
        said = [" it is seven\n\nUser: and", " it is"]
        return [Answer(0, n, tokenizer.encode(text), [0.0], finished=False) for n, text in enumerate(said)]

    monkeypatch.setattr(Sampler, "draw", draw)
    respondent = TextRespondent("m", core.load(model), tokenizer, TALK)
    ((first, second),) = respondent.reply([messages(("user", "How many <end_of_turn>?"))], ["k"], DECODING)
    assert (first.text, first.finished) == ("it is seven", True)
    assert (second.text, second.finished) == ("it is", False)
    (ids,) = asked
    assert ids[0] == tokenizer.bos_id
    assert not set(ids[1:]) & {tokenizer.bos_id, tokenizer.eos_id, tokenizer.end_of_turn_id}
    assert tokenizer.decode(ids[1:]).endswith("?\nAssistant:")


def test_the_same_key_gets_the_same_answers_whatever_else_is_asked(model: Path, tokenizer: Tokenizer) -> None:
    respondent = TextRespondent("m", core.load(model), tokenizer, TALK)
    one, other = messages(("user", "the friend of the town")), messages(("user", "said the friend"))
    alone = respondent.reply([one], ["a"], DECODING)
    beside = respondent.reply([other, one], ["b", "a"], DECODING)
    assert beside[1] == alone[0]
