from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.chat.types import Conversation, Text, messages
from alignment.data import passages
from alignment.data.formats import FORMATS, Shape
from alignment.data.rows import Raw, Reading
from alignment.errors import DataError

MESSAGES = {"role": "from", "content": "value", "roles": {"human": "user", "gpt": "assistant"}}
MARKED = {"user": "### Human:", "assistant": "### Assistant:"}


def read(
    name: str, value: Any, kind: str = "conversations", columns: dict[str, str] | None = None, **options: Any
) -> Reading:
    form = FORMATS[name]
    shape = Shape(kind, columns or {}, form.options.parse(options))  # type: ignore[arg-type]
    return form.read(Raw("f", 7, value, "/d/f", whole_file=name in ("text", "wikitext")), shape)


def turns(reading: Reading) -> list[list[tuple[str, str]]]:
    """What was said, by candidate."""
    return [[(turn.role, turn.content) for turn in c.row.messages] for c in reading.candidates if c.row]  # type: ignore[union-attr]


def test_messages_maps_keys_and_roles() -> None:
    value = {"chat": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
    reading = read("messages", value, columns={"messages": "chat"}, **MESSAGES)
    assert reading.candidates[0].row == Conversation(messages(("user", "Hi"), ("assistant", "Hello")), id="")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"other": []}, "there is no column 'chat'"),
        ({"chat": "Hi"}, "no list of turns"),
        ({"chat": ["Hi"]}, "no list of turns"),
        ({"chat": [{"value": "Hi"}]}, "turn 0 has no 'from'"),
        ({"chat": [{"from": "human", "value": "Hi"}, {"from": "bot", "value": "x"}]}, "turn 1 has the role 'bot'"),
        ({"chat": [{"from": "human", "value": ["Hi"]}]}, "turn 0 holds list"),
        ("Hi", "a row with columns is wanted"),
    ],
)
def test_messages_of_another_shape_are_refused_with_their_place(value: Any, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        read("messages", value, columns={"messages": "chat"}, **MESSAGES)
    assert caught.value.where == "/d/f:7"
    assert caught.value.remedy


def test_prompt_completion() -> None:
    columns = {"prompt": "q", "completion": "a"}
    assert turns(read("prompt_completion", {"q": "1?", "a": "2"}, columns=columns)) == [
        [("user", "1?"), ("assistant", "2")]
    ]
    assert turns(read("prompt_completion", {"q": "1?"}, "prompts", {"prompt": "q"})) == [[("user", "1?")]]
    assert read("prompt_completion", {"q": "1?", "a": None}, columns=columns).candidates[0].dropped
    with pytest.raises(DataError, match="column 'a' holds int"):
        read("prompt_completion", {"q": "1?", "a": 2}, columns=columns)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("### Human: a ### Assistant: b", "a|b"),
        ("### Human: a\n\n### Assistant: b\n### Human:c### Assistant: d", "a|b|c### Assistant: d"),
        ("  ### Human: a ### Assistant: b ### Human: c ### Assistant: d ", "a|b|c|d"),
        ("### Human: use x### Human: and ### Assistantly ### Assistant: b", "use x### Human: and ### Assistantly|b"),
        ("### Human: a ### Human: b", "a|b"),
    ],
)
def test_marked_turns(text: str, said: str) -> None:
    (found,) = turns(read("human_assistant", {"t": text}, columns={"text": "t"}, **MARKED))
    assert "|".join(content for _, content in found) == said


def test_an_answer_of_its_own_fills_the_open_turn() -> None:
    columns = {"text": "t", "answer": "a"}
    wanted = [[("user", "q"), ("assistant", "yes")]]
    for text in ("### Human: q ### Assistant:", "### Human: q"):
        assert turns(read("human_assistant", {"t": text, "a": "yes"}, columns=columns, **MARKED)) == wanted
    answered = {"t": "### Human: q ### Assistant: no", "a": "yes"}
    assert len(turns(read("human_assistant", answered, columns=columns, **MARKED))[0]) == 3


def test_a_prompt_leaves_the_open_turn_out() -> None:
    text = {"t": "### Human: q ### Assistant: "}
    assert turns(read("human_assistant", text, "prompts", {"text": "t"}, **MARKED)) == [[("user", "q")]]
    assert turns(read("human_assistant", text, columns={"text": "t"}, **MARKED)) == [[("user", "q"), ("assistant", "")]]


@pytest.mark.parametrize(
    ("text", "reason"),
    [("hello", "no turn opens with '### Human:'"), ("Be kind. ### Human: a", "text before the first turn")],
)
def test_unmarked_text_is_dropped(text: str, reason: str) -> None:
    (candidate,) = read("human_assistant", {"t": text}, columns={"text": "t"}, **MARKED).candidates
    assert (candidate.row, candidate.dropped) == (None, reason)


def node(text: str, *replies: dict, role: str = "assistant", **more: Any) -> dict:
    return {"role": role, "text": text, "replies": list(replies), **more}


def ask(text: str, *replies: dict, **more: Any) -> dict:
    return node(text, *replies, role="prompter", **more)


TREE = {
    "prompt": ask(
        "q",
        node("second", ask("more?", node("deep"), node("deeper", rank=0)), rank=1),
        node("best", ask("unanswered"), ask("again?", node("end")), ask("open"), rank=0),
        node("gone", rank=2, deleted=True),
        node("bare"),
    )
}


def test_all_paths_of_a_tree_end_with_an_answer() -> None:
    reading = read("oasst_trees", TREE, paths="all")
    assert ["/".join(content for _, content in path) for path in turns(reading)] == [
        "q/second/more?/deep", "q/second/more?/deeper", "q/best/again?/end", "q/gone", "q/bare",
    ]  # fmt: skip
    assert [c.dropped for c in reading.candidates] == ["", "", "", "deleted message in the path", ""]
    assert reading.changed == "2 questions without an answer left out"


def test_the_best_path_follows_the_ranks_and_says_what_is_left() -> None:
    reading = read("oasst_trees", TREE, paths="best")
    assert ["/".join(content for _, content in path) for path in turns(reading)] == ["q/best/again?/end"]
    assert reading.changed == "1 of 5 paths taken"


def test_prompts_of_a_tree_are_its_questions_with_their_history() -> None:
    reading = read("oasst_trees", TREE, "prompts", paths="all")
    assert ["/".join(content for _, content in path) for path in turns(reading)] == [
        "q", "q/second/more?", "q/best/unanswered", "q/best/again?", "q/best/open",
    ]  # fmt: skip


def test_a_tree_without_an_answer_gives_nothing() -> None:
    assert read("oasst_trees", {"prompt": ask("q")}, paths="all").candidates == []


@pytest.mark.parametrize(
    "bad",
    [{"role": "prompter"}, ask("q", node("a", role="system")), ask("q", "reply"), ask(None), []],  # type: ignore[arg-type]
)
def test_what_is_no_tree_is_refused(bad: Any) -> None:
    with pytest.raises(DataError, match="node of the tree"):
        read("oasst_trees", {"prompt": bad}, paths="all")


BOOK = """Title
*** START OF THIS PROJECT GUTENBERG EBOOK X ***

One
is first.

\x20
Two.

Three.

*** END OF THIS PROJECT GUTENBERG EBOOK X ***
Licence
"""


def test_a_book_without_its_frame_keeps_its_lines() -> None:
    reading = read("text", {"t": BOOK}, "text", {"text": "t"}, gutenberg=True, passage_chars=10)
    assert [(c.row.text, c.line) for c in reading.candidates] == [("One\nis first.", 10), ("Two.\n\nThree.", 14)]  # type: ignore[union-attr]
    assert reading.changed == "Project Gutenberg's header (lines 1 to 2) and footer (from line 12) taken off"


@pytest.mark.parametrize("mark", ["START", "END"])
def test_a_frame_that_was_declared_must_be_there(mark: str) -> None:
    with pytest.raises(DataError, match=mark):
        read("text", {"t": BOOK.replace(f"{mark} OF", "")}, "text", {"text": "t"}, gutenberg=True, passage_chars=None)


def test_a_whole_document() -> None:
    reading = read("text", {"t": "a\n\nb\n"}, "text", {"text": "t"}, gutenberg=False, passage_chars=None)
    assert [c.row for c in reading.candidates] == [Text("a\n\nb", id="")]


def test_articles_open_with_a_title() -> None:
    text = " \n = A = \n \n Text . \n = = Part = = \n x = y = z \n = B = \n More . \n"
    reading = read("wikitext", {"t": text}, "text", {"text": "t"}, passage_chars=None)
    assert [(c.row.text.split("\n")[0], c.line) for c in reading.candidates] == [(" = A = ", 8), (" = B = ", 13)]  # type: ignore[union-attr]
    with pytest.raises(DataError, match="no heading"):
        read("wikitext", {"t": "plain"}, "text", {"text": "t"}, passage_chars=None)


@given(st.lists(st.sampled_from(["", " ", "word", "two words"]), max_size=30), st.integers(1, 40))
def test_passages_lose_no_word_and_are_long_enough(text_lines: list[str], least: int) -> None:
    text = "\n".join(text_lines)
    for cut in (passages.paragraphs, passages.lines):
        groups = passages.group(cut(passages.Part(text, 1)), least)
        assert " ".join(group.text for group in groups).split() == text.split()
        assert all(len(group.text) >= least for group in groups[:-1])
        assert all(text.split("\n")[group.line - 1].strip() == group.text.split("\n")[0].strip() for group in groups)
