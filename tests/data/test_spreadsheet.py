"""Tables that people fill in: nothing runs in a spreadsheet, and every text comes back as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.data import spreadsheet
from alignment.errors import DataError, UserError

AWKWARD = [
    "",
    "plain",
    "=1+1",
    "+1",
    "-x",
    "@a",
    "'=1",
    "''=1",
    "'Tis",
    "\tx",
    "a,b",
    'a"b',
    "a\nb",
    " =1",
    "＝1",
    "한국",
]


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@x", "\t1", "\r1", "\n1", " =1", "＝1", "'=1"])
def test_what_a_spreadsheet_would_run_gets_an_apostrophe(text: str) -> None:
    assert spreadsheet.escape(text) == f"'{text}"


def test_what_people_write_with_an_apostrophe_stays() -> None:
    assert spreadsheet.escape("'Tis so") == spreadsheet.unescape("'Tis so") == "'Tis so"


@given(st.text(alphabet="'=+-@ \tab\n", max_size=6))
def test_escaping_can_always_be_undone(text: str) -> None:
    assert spreadsheet.unescape(spreadsheet.escape(text)) == text


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_texts_come_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"sheet{suffix}"
    rows = [{"id": str(n), "text": text, "more": "x"} for n, text in enumerate(AWKWARD)]
    assert spreadsheet.write_rows(path, ["id", "text"], rows) == len(AWKWARD)
    back = [row for _, row in spreadsheet.read_rows(path, ["id", "text"])]
    assert [row["text"] for row in back] == AWKWARD
    assert set(back[0]) == {"id", "text"}


def test_csv_says_that_it_is_utf8_and_runs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sheet.csv"
    spreadsheet.write_rows(path, ["id", "text"], [{"id": "1", "text": "=cmd()"}])
    assert path.read_bytes() == b"\xef\xbb\xbfid,text\r\n1,'=cmd()\r\n"


def test_lines_are_counted_and_rows_without_a_value_are_none(tmp_path: Path) -> None:
    path = tmp_path / "sheet.csv"
    path.write_text('id,text\n1,"two\nlines"\n,\n2,b\n')
    assert [(line, row["id"]) for line, row in spreadsheet.read_rows(path, ["id", "text"])] == [(2, "1"), (5, "2")]


def test_optional_columns_are_there_where_the_file_has_them(tmp_path: Path) -> None:
    path = tmp_path / "sheet.jsonl"
    path.write_text('{"id": "1", "who": "x", "other": 3}\n{"id": "2"}\n{"id": "3", "who": null}\n')
    back = [row for _, row in spreadsheet.read_rows(path, ["id"], ["who"])]
    assert back == [{"id": "1", "who": "x"}, {"id": "2"}, {"id": "3", "who": ""}]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("s.csv", "id\n1\n", r"s\.csv:1: there is no column 'text'"),
        ("s.csv", "id;text\n1;a\n", "commas between the columns"),
        ("s.csv", "id,text,text\n1,a,b\n", "column 'text' is there twice"),
        ("s.csv", "", r"s\.csv:1: there is no column 'id'"),
        ("s.csv", "id,text\n1,a,b\n", r"s\.csv:2: has 3 fields"),
        ("s.jsonl", '{"id": "1", "text": "a"}\n{"id": "1"}\n', r"s\.jsonl:2: there is no column 'text'"),
        ("s.jsonl", '{"id": "1", "text": true}\n', r"s\.jsonl:1: column 'text' holds true"),
        ("s.jsonl", "[1]\n", r"s\.jsonl:1: a row with columns is wanted, not list"),
        ("s.jsonl", '{"id"\n', r"s\.jsonl:1"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(tmp_path: Path, name: str, content: str, told: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=told):
        list(spreadsheet.read_rows(path, ["id", "text"]))


def test_another_suffix_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'\.xlsx' is not known"):
        spreadsheet.write_rows(tmp_path / "sheet.xlsx", ["id"], [])
    with pytest.raises(UserError, match="there is no such file"):
        list(spreadsheet.read_rows(tmp_path / "sheet.csv", ["id"]))
