"""Conversations and prompts as ShareGPT, HH-RLHF, benchmarks and others spell them."""

from __future__ import annotations

from typing import Any

import pytest

from alignment.chat.types import Message, Prompt, messages
from alignment.data import checks
from alignment.data.formats import FORMATS, Shape
from alignment.data.formats.turns import Markers, marked
from alignment.data.rows import Raw
from alignment.errors import DataError, UserError

from .test_formats import read, turns

MESSAGES = {"role": "role", "content": "content", "roles": {"user": "user", "assistant": "assistant"}}
HH = Markers(user="\n\nHuman:", assistant="\n\nAssistant:")


def said(text: str, markers: Markers = HH) -> tuple[str, list[tuple[str, str]]]:
    before, found = marked(text, markers)
    return before, [(turn.role, turn.content) for turn in found]


def spoken(letters: str) -> dict[str, Any]:
    """Turns in one column, ``u`` a question and ``a`` an answer, numbered."""
    roles = {"u": "user", "a": "assistant"}
    return {"m": [{"role": roles[letter], "content": f"{letter}{n}"} for n, letter in enumerate(letters)]}


def paths(reading: Any) -> list[str]:
    return ["/".join(content for _, content in path) for path in turns(reading)]


def test_sharegpt_knows_its_speakers_and_refuses_others() -> None:
    value = {"c": [{"from": "system", "value": "s"}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}
    columns = {"messages": "c"}
    assert turns(read("sharegpt", value, columns=columns)) == [[("system", "s"), ("user", "Hi"), ("assistant", "Yo")]]
    value["c"][1]["from"] = "bing"
    with pytest.raises(DataError, match="turn 1 has the role 'bing'"):
        read("sharegpt", value, columns=columns)
    with pytest.raises(DataError, match="turn 0 has no 'from'"):
        read("sharegpt", spoken("u"), columns={"messages": "m"})
    assert read("sharegpt", {"c": None}, columns=columns).candidates[0].dropped == "no value in column 'c'"


@pytest.mark.parametrize(
    ("wanted", "letters", "expected"),
    [
        (None, "uau", ["u0/a1/u2"]),
        ("first", "uau", ["u0"]),
        ("first", "au", ["a0/u1"]),
        ("every", "uaua", ["u0", "u0/a1/u2"]),
        ("every", "a", ["a0"]),
    ],
)
def test_prompts_of_a_dialogue(wanted: str | None, letters: str, expected: list[str]) -> None:
    options = MESSAGES | ({"prompts": wanted} if wanted else {})
    assert paths(read("messages", spoken(letters), "prompts", {"messages": "m"}, **options)) == expected


def test_a_turn_without_text_is_an_empty_one() -> None:
    value = {"m": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None}]}
    (candidate,) = read("messages", value, columns={"messages": "m"}, **MESSAGES).candidates
    assert candidate.row is not None
    assert checks.flaw(candidate.row) == "empty answer"


def test_a_last_question_is_cut_on_demand_and_said() -> None:
    for letters, cut, expected, note in (
        ("uau", True, "u0/a1", "last question, which has no answer, cut"),
        ("uau", False, "u0/a1/u2", ""),
        ("ua", True, "u0/a1", ""),
        ("u", True, "u0", ""),
        ("uu", True, "u0/u1", ""),
    ):
        options = MESSAGES | ({"unanswered": "cut"} if cut else {})
        reading = read("messages", spoken(letters), columns={"messages": "m"}, **options)
        assert (paths(reading), reading.changed) == ([expected], note)


def test_exchanges_are_questions_with_answers() -> None:
    value = {"h": [{"user": "q", "bot": "a"}, {"user": "r", "bot": "b"}]}
    keys = {"user": "user", "assistant": "bot"}
    assert paths(read("exchanges", value, columns={"exchanges": "h"}, **keys)) == ["q/a/r/b"]
    reading = read("exchanges", value, "prompts", {"exchanges": "h"}, **keys, prompts="every")
    assert turns(reading)[1] == [("user", "q"), ("assistant", "a"), ("user", "r")]
    for bad, says in (({"user": "q"}, "exchange 0 has no text under 'bot'"), ({"user": 1, "bot": "a"}, "'user'")):
        with pytest.raises(DataError, match=says):
            read("exchanges", {"h": [bad]}, columns={"exchanges": "h"}, **keys)
    with pytest.raises(DataError, match="no list of exchanges"):
        read("exchanges", {"h": "q"}, columns={"exchanges": "h"}, **keys)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n\nHuman: a\n\nAssistant: b", ["a", "b"]),
        ("Human: a\n\nAssistant: b", ["a", "b"]),
        ("\n\nHuman: the Human: says\n\nAssistant: Assistant: b", ["the Human: says", "Assistant: b"]),
        ("\n\nHuman: a\nAssistant: no\n\nAssistant: b", ["a\nAssistant: no", "b"]),
        ("\n\nHuman: a\n\n\nAssistant: b\n\nAssistant:", ["a", "b", ""]),
    ],
)
def test_hh_markers_count_after_a_blank_line_only(text: str, expected: list[str]) -> None:
    before, found = said(text)
    assert (before, [content for _, content in found]) == ("", expected)
    assert [role for role, _ in found][:2] == ["user", "assistant"]


def test_what_stands_before_the_first_marker_is_given_back() -> None:
    assert said("Be kind.\n\nHuman: a") == ("Be kind.", [("user", "a")])
    assert said("no marker") == ("no marker", [])
    assert said("x\n\nHuman: a", Markers(user="Human:", assistant="Assistant:"))[1] == [("user", "a")]


def test_a_persona_is_a_system_message() -> None:
    options = {"user": "\nUser 1:", "assistant": "\nUser 2:", "unanswered": "cut"}
    value = {"t": "User 1: Hi\nUser 2: Hello\nUser 1: Bye", "p": "I bake."}
    reading = read("human_assistant", value, columns={"text": "t", "system": "p"}, **options)
    assert turns(reading) == [[("system", "I bake."), ("user", "Hi"), ("assistant", "Hello")]]
    assert reading.changed
    value["p"] = ""
    assert len(turns(read("human_assistant", value, columns={"text": "t", "system": "p"}, **options))[0]) == 2


def test_an_instruction_with_its_input() -> None:
    columns = {"instruction": "i", "input": "x", "response": "r"}
    assert turns(read("instruction", {"i": "Sort.", "x": "b a", "r": "a b"}, columns=columns)) == [
        [("user", "Sort.\n\nb a"), ("assistant", "a b")]
    ]
    for empty in ("", " ", None):
        row = {"i": "Sort.", "x": empty, "r": "a b"}
        assert turns(read("instruction", row, columns=columns))[0][0] == ("user", "Sort.")
    prompts = {"instruction": "i", "input": "x"}
    assert turns(read("instruction", {"i": "Sort.", "x": "b"}, "prompts", prompts)) == [[("user", "Sort.\n\nb")]]
    assert read("instruction", {"i": None, "x": "b", "r": ""}, columns=columns).candidates[0].dropped


def prompt(value: Any, columns: dict[str, str], name: str = "prompt_completion", **options: Any) -> Prompt:
    (candidate,) = read(name, value, "prompts", columns, **options).candidates
    assert isinstance(candidate.row, Prompt), candidate.dropped
    return candidate.row


def test_labels_come_from_columns() -> None:
    value = {"q": "1?", "i": 7, "t": ["a", ""], "l": "b", "c": "illicit", "v": "logic", "r": "2", "n": None}
    columns = {"prompt": "q", "id": "i", "tags": "t, l", "category": "c", "attack": "v", "reference": "r"}
    assert prompt(value, columns) == Prompt(messages(("user", "1?")), "7", ("a", "b"), "illicit", "logic", "2")
    empty = dict.fromkeys(("id", "tags", "category", "attack", "reference"), "n")
    assert prompt(value, {"prompt": "q"} | empty) == Prompt(messages(("user", "1?")), "")
    spaced = prompt({"q": "1?", "s": " x\n", "e": ""}, {"prompt": "q", "id": "s", "tags": "s,e", "category": "e"})
    assert (spaced.id, spaced.tags, spaced.category) == ("x", ("x",), None)
    (answered,) = read("prompt_completion", value, columns={"prompt": "q", "completion": "r", "tags": "l"}).candidates
    assert answered.row is not None
    assert answered.row.tags == ("b",)  # type: ignore[union-attr]


@pytest.mark.parametrize(("name", "value"), [("id", 1.5), ("tags", True), ("tags", [["a"]]), ("category", ["x"])])
def test_labels_of_a_strange_type_are_refused(name: str, value: Any) -> None:
    with pytest.raises(DataError, match="column 'x' holds"):
        prompt({"q": "1?", "x": value}, {"prompt": "q", name: "x"})


def test_a_reference_is_cut_or_kept_as_json() -> None:
    value = {"q": "1?", "a": "1 + 1 #### is\n#### 2 ", "k": [{"n": "é"}, {}]}
    columns = {"prompt": "q", "reference": "a"}
    assert prompt(value, columns).reference == value["a"]
    assert prompt(value, columns, reference_after="####").reference == "2"
    assert prompt(value, columns | {"reference": "k"}).reference == '[{"n": "é"}, {}]'
    reading = read("prompt_completion", value, "prompts", columns, reference_after="A:")
    assert reading.candidates[0].dropped == "no 'A:' in the reference"


def test_a_row_that_is_its_question() -> None:
    assert turns(read("plain", "Why?", "prompts")) == [[("user", "Why?")]]
    with pytest.raises(DataError, match="a text is wanted, not dict"):
        read("plain", {"q": "Why?"}, "prompts")


def test_topics_become_tags() -> None:
    reading = read("topics", {"Law": {"Tax": ["a?", "b?"]}, "Art": ["c?"]}, "prompts")
    assert [(c.row.messages[0].content, c.row.tags) for c in reading.candidates] == [  # type: ignore[union-attr]
        ("a?", ("Law", "Tax")), ("b?", ("Law", "Tax")), ("c?", ("Art",)),
    ]  # fmt: skip
    for bad in ({"Law": "a?"}, {"Law": [1]}, ["a?"], {"Law": {"Tax": None}}):
        with pytest.raises(DataError, match="no list of questions"):
            read("topics", bad, "prompts")


def test_beginnings_are_a_column_or_the_lines_of_a_file() -> None:
    lines = "- a\\n- b\\n-\n\n- c\\n-\n"
    published = read("beginnings", lines, "prompts", tags=["hate", "asian"]).candidates
    assert [one.row.messages[0].content for one in published] == ["- a\n- b\n-", "- c\n-"]
    assert {one.row.tags for one in published} == {("hate", "asian")}
    hub = read("beginnings", {"prompt": "- a\\n- b\\n-"}, "prompts", tags=["hate", "asian"]).candidates
    assert hub == published[:1]
    with pytest.raises(DataError, match="a text is wanted, not list"):
        read("beginnings", {"prompt": ["- a"]}, "prompts")


def test_bold_says_domain_group_and_whom_a_text_is_about() -> None:
    texts = ["Ann is an ", "Ann has "]
    published = read("bold", {"actresses": {"Ann": texts}, "actors": {"Tom": ["Tom is "]}}, "prompts", domain="gender")
    assert [one.row.tags for one in published.candidates] == [  # type: ignore[union-attr]
        ("gender", "actresses", "Ann"), ("gender", "actresses", "Ann"), ("gender", "actors", "Tom"),
    ]  # fmt: skip
    row = {"domain": "gender", "category": "actresses", "name": "Ann", "prompts": texts, "wikipedia": ["…", "…"]}
    assert read("bold", row, "prompts").candidates == published.candidates[:2]
    for bad, options in (
        (row | {"category": None}, {}),
        (row | {"prompts": ["a", 1]}, {}),
        ({"actresses": ["Ann is an "]}, {"domain": "gender"}),
        ({"actresses": {"Ann": texts}}, {}),
    ):
        with pytest.raises(DataError):
            read("bold", bad, "prompts", **options)


def test_a_reference_of_several_columns_is_an_object_of_them() -> None:
    columns = {"prompt": "q", "reference": "right, wrong"}
    (candidate,) = read("prompt_completion", {"q": "?", "right": ["a"], "wrong": []}, "prompts", columns).candidates
    assert candidate.row.reference == '{"right": ["a"], "wrong": []}'  # type: ignore[union-attr]
    with pytest.raises(DataError, match="no column 'wrong'"):
        read("prompt_completion", {"q": "?", "right": ["a"]}, "prompts", columns)


def test_a_report_gives_every_answer_with_its_model() -> None:
    report = {
        "model_name": "m",
        "prompts": [
            {"prompt": "q", "results": [{"sampling_config": "greedy", "outputs": ["a</s>", "b"]}]},
            {"prompt": "r", "results": [{"sampling_config": "k50", "outputs": ["c<|prompter|>d</s>"]}]},
        ],
    }
    reading = read("sampling_report", report, stops=["</s>", "<|prompter|>"])
    assert paths(reading) == ["q/a", "q/b", "r/c"]
    assert [c.row.tags for c in reading.candidates] == [("m", "greedy"), ("m", "greedy"), ("m", "k50")]  # type: ignore[union-attr]
    assert reading.changed == "2 of 3 answers cut at a control token"
    assert read("sampling_report", report, stops=[]).changed == ""
    assert paths(read("sampling_report", report, "prompts", stops=[])) == ["q", "r"]
    with pytest.raises(DataError, match="no sampling report"):
        read("sampling_report", {"model_name": "m", "prompts": [{"prompt": "q"}]}, stops=[])


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_what_a_format_may_map_it_reads(name: str) -> None:
    """Columns are declared for kinds that the format gives, and every optional one differs from those needed."""
    form = FORMATS[name]
    assert set(form.beside) <= set(form.columns)
    for kind, needed in form.columns.items():
        assert not set(needed) & set(form.may_map(kind))


def test_options_that_a_format_does_not_have_are_refused() -> None:
    with pytest.raises(UserError, match="prompts"):
        FORMATS["messages"].options.parse(MESSAGES | {"prompts": "last"})
    with pytest.raises(UserError, match="rolls"):
        FORMATS["sharegpt"].options.parse({"rolls": {}})


def test_flat_messages_of_a_tree_are_put_together() -> None:
    def flat(n: int, parent: int | None, role: str, **more: Any) -> dict[str, Any]:
        return {"message_id": f"m{n}", "parent_id": parent and f"m{parent}", "text": f"t{n}", "role": role} | more

    rows = [
        flat(1, None, "prompter"),
        flat(2, 1, "assistant", rank=1),
        flat(3, 2, "prompter"),
        flat(4, 3, "assistant", rank=None),
        flat(5, 1, "assistant", rank=0, deleted=True),
    ]
    form = FORMATS["oasst_trees"]
    shape = Shape("conversations", {}, form.options.parse({"paths": "all"}))

    def joined(values: list[dict[str, Any]]) -> Raw:
        members = tuple(Raw("f", n, value, "/d/f") for n, value in enumerate(values, 1))
        return Raw("f", 1, {"rows": values}, "/d/f", members=members)

    reading = form.read(joined(rows), shape)
    assert paths(reading) == ["t1/t2/t3/t4", "t1/t5"]
    assert [c.dropped for c in reading.candidates] == ["", "deleted message in the path"]
    assert paths(form.read(joined([rows[0], rows[4], rows[1]]), shape)) == ["t1/t5", "t1/t2"]
    with pytest.raises(DataError, match="replies to 'm1', which is not among the 2 rows") as caught:
        form.read(joined(rows[1:3]), shape)
    assert caught.value.where == "/d/f:1"
    with pytest.raises(DataError, match="2 of the 2 messages joined open a conversation"):
        form.read(joined([rows[0], flat(9, None, "prompter")]), shape)
    with pytest.raises(DataError, match="there is no column 'parent_id'"):
        form.read(joined([{"message_id": "m1", "text": "t", "role": "prompter"}]), shape)


def test_what_a_format_gives_is_sound() -> None:
    """The rules of turns hold for a whole HH text, an unanswered question aside."""
    found = marked("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d", HH)[1]
    assert checks.turns_flaw(found, "assistant") == ""
    assert found[-1] == Message("assistant", "d")
