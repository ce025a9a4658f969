"""IFEval by prompt and instruction, strictly and loosely; calls of a described tool; tags, and what is told before."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import suite_support as support
from stages import drawing

from alignment.chat.types import Prompt, messages
from alignment.errors import UserError
from alignment.evals.suites import subject
from alignment.evals.suites.calls import called, value_of
from alignment.evals.suites.checkable import loosely, variants
from alignment.scoring.instructions import lacks_commas

NO_COMMA, WORDS, JSON = "punctuation:no_comma", "length_constraints:number_words", "detectable_format:json_format"


def prompt(name: str, said: str, tags: tuple[str, ...], reference: str) -> Prompt:
    return Prompt(messages(("user", "Hello"), ("assistant", "Hi."), ("user", said)), name, tags, reference=reference)


def rows_of(
    monkeypatch: pytest.MonkeyPatch, folder: Path, prompts: list[Prompt], answer: drawing.Answer, **changes: Any
) -> tuple[list[dict[str, Any]], drawing.Speaker]:
    data = drawing.dataset(folder / "data", "prompts", {"test": prompts})
    speaker = drawing.Speaker(answer)
    monkeypatch.setattr(subject.Subject, "respondent", speaker)
    name = changes.pop("suite", "ifeval")
    said = support.settings(name, prompts="run:p", split="test", **changes)
    found = support.examined(said, {"prompts": data}, drawing.POLICY, folder / "out")
    return support.rows(found, folder / "out"), speaker


# ── IFEval ───────────────────────────────────────────────────────────────────────────────────────


def test_the_eight_ways_to_read_an_answer() -> None:
    assert variants("*a*\nb\nc*") == ["*a*\nb\nc*", "b\nc*", "*a*\nb", "b", "a\nb\nc", "b\nc", "a\nb", "b"]
    assert variants("one") == ["one", "", "", "", "one", "", "", ""]


@pytest.mark.parametrize(
    ("answer", "loose"),
    [
        ("Sure, here it is:\nNo comma", True),
        ("No comma\nDone, as you asked.", True),
        ("Sure, here:\nNo comma\nDone, bye.", True),
        ("Well, well\nBut, alas\nEnd, all", False),
        ("One, line", False),
    ],
)
def test_first_and_last_lines_are_overlooked(answer: str, loose: bool) -> None:
    def obeys(text: str) -> bool:
        return bool(text.strip()) and lacks_commas(text)

    assert not obeys(answer)
    assert loosely(answer, obeys) is loose


def test_an_instruction_may_be_obeyed_by_another_reading_than_the_next() -> None:
    """As in the paper's code: each instruction looks for a reading of its own."""
    assert loosely("Sure, fine\n*{}*", lambda text: text == "{}")
    assert loosely("Sure, fine\n*{}*", lambda text: text.startswith("Sure"))


def test_prompts_and_instructions_are_counted_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """a: both obeyed; b: one strictly and both loosely; c: its only one not at all."""
    arguments = json.dumps([{}, {"relation": "less than", "num_words": 4}])
    prompts = [
        prompt("a", "say a", (NO_COMMA, WORDS), arguments),
        prompt("b", "say b", (NO_COMMA, WORDS), arguments),
        prompt("c", "say c", (JSON,), "[{}]"),
    ]
    answers = {"say a": "fine", "say b": "So I say this\nthree words here", "say c": "no, it is not"}
    rows, _ = rows_of(monkeypatch, tmp_path, prompts, lambda turns, key: answers[turns[-1].content])
    by_id = {row["id"]: row for row in rows}
    assert [*by_id] == [
        "a",
        f"a/{NO_COMMA}#1",
        f"a/{WORDS}#2",
        "b",
        f"b/{NO_COMMA}#1",
        f"b/{WORDS}#2",
        "c",
        f"c/{JSON}#1",
    ]
    assert [by_id[name]["prompt_strict"] for name in "abc"] == [1, 0, 0]
    assert [by_id[name]["prompt_loose"] for name in "abc"] == [1, 1, 0]
    told = [row for row in rows if "instruction_strict" in row]
    assert sum(row["instruction_strict"] for row in told) / len(told) == pytest.approx(3 / 5)
    assert sum(row["instruction_loose"] for row in told) / len(told) == pytest.approx(4 / 5)
    assert by_id[f"c/{JSON}#1"]["by_instruction"] == "detectable_format"
    assert len({by_id[name]["unit"] for name in by_id if name.startswith("b")}) == 1
    assert "instruction_strict" not in by_id["a"]
    assert "tokens" not in by_id[f"a/{WORDS}#2"]


def test_of_several_samples_the_mean_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    decoding = {"samples": 2, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8, "seed": 0}
    arguments = json.dumps([{}, {"relation": "less than", "num_words": 3}])
    rows, _ = rows_of(
        monkeypatch,
        tmp_path,
        [prompt("a", "say", (NO_COMMA, WORDS), arguments)],
        lambda turns, key: "one two" if key.endswith(":0") else "one, and two and three",
        decoding=decoding,
    )
    assert rows[0]["prompt_strict"] == rows[1]["instruction_strict"] == rows[2]["instruction_strict"] == 0.5


def test_the_real_prompts_are_all_read(shared_data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """541 prompts with 834 instructions, as published."""
    data = support.real("ifeval", shared_data, tmp_path / "real")
    monkeypatch.setattr(subject.Subject, "respondent", drawing.Speaker(lambda turns, key: "Yes"))
    found = support.examined(
        support.settings("ifeval", prompts="run:p"), {"prompts": data}, drawing.POLICY, tmp_path / "out"
    )
    rows = support.rows(found, tmp_path / "out")
    assert sum("prompt_strict" in row for row in rows) == 541
    assert sum("instruction_strict" in row for row in rows) == 834
    assert 0 < sum(row.get("instruction_strict", 0) for row in rows) < 834
    assert all(row["prompt_loose"] >= row["prompt_strict"] for row in rows if "prompt_strict" in row)


# ── a calculator that is described ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("3 + 4 * 2", 11),
        ("(3 + 4) * 2", 14),
        ("-3 - -4", 1),
        ("7 / 2", Decimal("3.5")),
        ("0.1 + 0.2", Decimal("0.3")),
        ("1,080 ÷ 2", 540),
        ("3 × 4 − 2", 10),
        ("7 / 0", None),
        ("9 ** 9 ** 9", None),
        ("7 // 2", None),
        ("__import__('os')", None),
        ("3 +", None),
        ("", None),
        ("(" * 300 + "1" + ")" * 300, None),
        ("007", None),
    ],
)
def test_expressions_are_worked_out_and_nothing_is_executed(expression: str, value: Any) -> None:
    assert value_of(expression) == value


def test_random_expressions_come_to_what_python_says() -> None:
    draw = random.Random(0)
    for _ in range(200):
        parts = [f"{draw.randrange(100)}"]
        for _ in range(draw.randrange(5)):
            parts = [*parts, draw.choice("+-*"), f"{draw.randrange(100)}"]
            if draw.random() < 0.3:
                parts = ["(", *parts, ")"]
        assert value_of(" ".join(parts)) == eval(" ".join(parts))


def test_calls_are_found_in_their_order_and_open_brackets_are_none() -> None:
    assert called("So Calculator (3 * (1 + 1)), then calculator(x) and calculator(2") == [Decimal(6), None]
    assert called("3 + 4 is 7") == []


def test_the_first_call_counts_and_the_tool_is_told_before_the_question(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prompts = [prompt(f"p{n}", f"add {n} and 2", ("sum",), f"That is {n + 2}.") for n in range(4)]
    prompts.append(prompt("other", "spell it", ("word",), "n o"))
    answers = ["calculator(0 + 2)", "3", "calculator(2 * 3) or calculator(2 + 2)", "Let me see: calculator(10/2) = 5"]
    rows, speaker = rows_of(
        monkeypatch,
        tmp_path,
        prompts,
        lambda turns, key: answers[int(key[1])],
        suite="miniature_tool_calls",
        before="A tool.",
    )
    assert [row["correct"] for row in rows] == [1, 0, 0, 1]
    assert [row["called"] for row in rows] == [1, 0, 1, 1]
    assert speaker.asked[0][1][-1].content == "A tool.\n\nadd 0 and 2"
    assert speaker.asked[0][1][:2] == prompts[0].messages[:2]


def test_tags_that_nobody_has_and_references_without_a_number_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    some = [prompt("p", "add", ("sum",), "no number")]
    with pytest.raises(UserError, match=r"suite\.tags: no prompt of the split test has one of map"):
        rows_of(monkeypatch, tmp_path / "a", some, lambda turns, key: "", suite="miniature_tool_calls", tags=["map"])
    with pytest.raises(UserError, match="cannot be read"):
        rows_of(monkeypatch, tmp_path / "b", some, lambda turns, key: "", suite="miniature_tool_calls")
