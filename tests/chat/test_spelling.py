from __future__ import annotations

import pytest
from chat_samples import FRAGMENTS, law, written
from hypothesis import given
from hypothesis import strategies as st

from alignment.chat import spelling
from alignment.errors import UserError

NAMES = ("<pad>", "<eos>", "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<<SYS>x")


def test_each_control_spelling_is_broken_behind_its_first_character() -> None:
    assert spelling.broken("a<eos>b[INST]", NAMES) == "a<\u200beos>b[\u200bINST]"
    assert spelling.broken("<table> <e os>", NAMES) == "<table> <e os>"


@law
@given(written())
def test_breaking_is_undone_and_leaves_no_control_spelling(text: str) -> None:
    broken = spelling.broken(text, NAMES)
    assert spelling.whole(broken, NAMES) == text
    assert not any(name in broken for name in NAMES)


@law
@given(st.lists(st.sampled_from([*FRAGMENTS, "<<", "<SYS>x", "[", "[\u200bINST]", "INST]"]), max_size=6).map("".join))
def test_texts_about_breaking_stay_apart(text: str) -> None:
    """Somebody who writes the broken spelling gets another rendering than somebody who writes the spelling."""
    assert spelling.whole(spelling.broken(text, NAMES), NAMES) == text
    assert spelling.whole(spelling.broken(spelling.broken(text, NAMES), NAMES), NAMES) == spelling.broken(text, NAMES)


@pytest.mark.parametrize("name", ["|", "aa", "<a<", "<\u200ba>"])
def test_a_spelling_that_cannot_be_broken_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="cannot be told from text"):
        spelling.check(("<eos>", name), "model")
