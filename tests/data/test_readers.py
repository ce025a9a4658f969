from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.data import readers
from alignment.data.rows import Raw
from alignment.errors import DataError, UserError


def rows(path: Path, reader: str) -> list[tuple[int, object]]:
    return [(raw.line, raw.value) for raw in readers.read(path, reader, path.name)]


def refused(path: Path, reader: str) -> DataError:
    with pytest.raises(DataError) as caught:
        rows(path, reader)
    return caught.value


def test_jsonl_keeps_the_line_of_every_row_and_skips_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"x": 1}\r\n\n{"x": 2}')
    assert rows(path, "jsonl") == [(1, {"x": 1}), (3, {"x": 2})]


def test_gzip_reads_as_the_plain_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"x": 1}\n{"x": 2}\n'))
    assert rows(path, "jsonl") == [(1, {"x": 1}), (2, {"x": 2})]


@pytest.mark.parametrize(
    ("reader", "content"), [("json", '[{"x": "1"}]'), ("csv", "x\n1\n"), ("jsonl", '{"x": "1"}'), ("text", "1")]
)
def test_every_text_reader_unpacks(tmp_path: Path, reader: str, content: str) -> None:
    path = tmp_path / f"a.{reader}.gz"
    path.write_bytes(gzip.compress(content.encode()))
    ((_, value),) = rows(path, reader)
    assert value == ({"text": "1"} if reader == "text" else {"x": "1"})
    path.write_bytes(gzip.compress(content.encode())[:-9])
    error = refused(path, reader)
    assert "cut off" in error.problem
    assert error.remedy


def test_a_truncated_gzip_names_the_line_reached(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"x": f"{n:09d}" * 9}) + "\n" for n in range(5000))
    path = tmp_path / "a.jsonl.gz"
    packed = gzip.compress(lines.encode())
    path.write_bytes(packed[: len(packed) // 2])
    error = refused(path, "jsonl")
    file, line = error.where.rsplit(":", 1)
    assert file == str(path)
    assert 1 < int(line) < 5000
    assert "cut off" in error.problem


@pytest.mark.parametrize("damage", [b'{"x": 1}\n', b"\x1f\x8bnonsense"])
def test_what_is_no_gzip_is_refused(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(damage)
    assert "damaged" in refused(path, "jsonl").problem


@pytest.mark.parametrize(
    ("reader", "content", "line"),
    [
        ("jsonl", '{"x": 1}\n{"x": \n', 2),
        ("jsonl", "\n\nnonsense", 3),
        ("json", '[\n {"x": 1},\n {"x": \n]', 4),
        ("json", '[{"x": 1}\n{"x": 2}]', 2),
        ("json", '[{"x": 1},\n{"x": 2}', 2),
        ("json", '[{"x": 1},\n]', 2),
        ("json", '[{"x": 1}]\nmore', 2),
        ("json", '"x"', 1),
        ("json", '{"x": 1}\n{"x": 2}', 2),
        ("json", "\n" + "[" * 200_000, 2),
        ("jsonl", "1\n" + "[" * 200_000, 2),
        ("csv", "a,b\n1,2\n1,2,3\n", 3),
        ("csv", 'a,b\n"1\n1",2\n1\n', 4),
        ("csv", 'a,b\n1,2\n"open,3\n', 3),
    ],
)
def test_malformed_rows_are_refused_with_their_line(tmp_path: Path, reader: str, content: str, line: int) -> None:
    path = tmp_path / "a"
    path.write_text(content)
    error = refused(path, reader)
    assert error.where == f"{path}:{line}"
    assert error.remedy


@pytest.mark.parametrize("reader", ["jsonl", "json", "csv", "text"])
def test_a_byte_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path, reader: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(b'"fine"\n' + '"caf\xe9"\n'.encode("latin1"))
    error = refused(path, reader)
    assert error.where == f"{path}:2"
    assert "0xe9" in error.problem


@pytest.mark.parametrize(
    ("reader", "content"),
    [("jsonl", ""), ("jsonl", "\n\n"), ("json", "[]"), ("json", " "), ("csv", ""), ("csv", "a,b\n"), ("text", " \n\n")],
)
def test_a_file_without_rows_is_refused(tmp_path: Path, reader: str, content: str) -> None:
    path = tmp_path / "a"
    path.write_text(content)
    assert "holds no rows" in refused(path, reader).problem


def test_json_array_elements_keep_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('\n[ {"x": [1,\n2]}, 3,\n\n"]"\n]\n')
    assert rows(path, "json") == [(2, {"x": [1, 2]}), (3, 3), (5, "]")]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.dictionaries(st.text(), st.text()), min_size=1), st.sampled_from([None, 1]))
def test_json_reads_what_json_wrote(tmp_path_factory: pytest.TempPathFactory, values: list, indent: int | None) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_text(json.dumps(values, indent=indent))
    assert [value for _, value in rows(path, "json")] == values


def test_csv_fields_may_hold_commas_quotes_and_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'a,b\r\n"x, ""y""\r\nz",2\r\n3,4\r\n')
    assert rows(path, "csv") == [(2, {"a": 'x, "y"\r\nz', "b": "2"}), (4, {"a": "3", "b": "4"})]


def test_csv_fields_may_be_long(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a\n" + "x" * 200_000 + "\n")
    assert len(rows(path, "csv")[0][1]["a"]) == 200_000


def test_parquet_rows_are_numbered(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": list(range(2500))}), path)
    read = rows(path, "parquet")
    assert read[0] == (1, {"x": 0})
    assert read[-1] == (2500, {"x": 2499})


def test_a_truncated_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": ["text"] * 100}), path)
    path.write_bytes(path.read_bytes()[:-20])
    assert "parquet" in refused(path, "parquet").problem


def test_text_is_one_row_with_plain_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\n")
    (raw,) = readers.read(path, "text", "a.txt")
    assert raw.value == {"text": "one\n\ntwo\n"}
    assert raw.whole_file


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tmp_path)):
        rows(tmp_path, "jsonl")


def test_one_json_object_is_the_only_row(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('\n\n{"x": [1,\n2]}\n')
    assert rows(path, "json") == [(3, {"x": [1, 2]})]


DECLARED = {
    "jsonl": '{"q": "1?"}\n{"q": "2?"}\n',
    "json": '[\n  {"q": "1?"},\n  {"q": "2?"}\n]\n',
    "csv": 'q,a\n"1,?",b\n"2?",c\n',
}


@pytest.mark.parametrize(("layout", "declared"), [(a, b) for a in DECLARED for b in DECLARED if a != b])
def test_a_wrong_declared_layout_is_refused_with_a_remedy(tmp_path: Path, layout: str, declared: str) -> None:
    """By the reader, or where the text happens to be readable, by the first column that is asked for."""
    path = tmp_path / "a"
    path.write_text(DECLARED[layout])
    with pytest.raises(DataError) as caught:
        [raw.text("q") for raw in readers.read(path, declared, "a")]
    assert caught.value.where.startswith(f"{path}:")
    assert caught.value.remedy


@pytest.mark.parametrize("declared", ["jsonl", "json", "csv", "text"])
def test_a_binary_file_is_told_by_its_beginning(tmp_path: Path, declared: str) -> None:
    path = tmp_path / "a"
    pq.write_table(pa.table({"x": ["é" * 99]}), path)
    error = refused(path, declared)
    assert "reader parquet" in error.remedy
    path.write_bytes(gzip.compress(b"x" * 999))
    assert ".gz" in refused(path, declared).remedy


def test_a_text_declared_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text(DECLARED["jsonl"])
    assert "reader" in refused(path, "parquet").remedy


@pytest.mark.parametrize("reader", ["json", "jsonl"])
def test_half_a_character_is_refused_and_a_whole_one_is_not(tmp_path: Path, reader: str) -> None:
    path = tmp_path / "a"
    path.write_text(r'[{"x": "\ud83d\ude00"}]' if reader == "json" else r'{"x": "\ud83d\ude00"}')
    assert rows(path, reader)[0][1] == {"x": "😀"}
    path.write_text('[{"x": 1},\n' + r'{"x": ["\ud83d"]}]' if reader == "json" else "1\n" + r'{"x": ["\uD83D"]}')
    error = refused(path, reader)
    assert error.where == f"{path}:2"
    assert r"\ud83d is half of a character" in error.problem


def test_a_line_beyond_the_bound_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"x": 1}\n{"x": "' + "y" * 100 + '"}\n')
    monkeypatch.setattr(readers, "LONGEST_LINE", 110)
    assert len(rows(path, "jsonl")) == 2
    monkeypatch.setattr(readers, "LONGEST_LINE", 109)
    error = refused(path, "jsonl")
    assert error.where == f"{path}:2"
    assert "longer than 109 bytes" in error.problem
    assert "reader json" in error.remedy


@pytest.mark.parametrize(("reader", "times"), [("jsonl", 4), ("csv", 8)])
def test_a_large_row_is_read_and_let_go_again(tmp_path: Path, reader: str, times: int) -> None:
    """Bytes, text and value are held at once, and by the csv module four bytes a character; never a second row."""
    size, path = 1_000_000, tmp_path / "a"
    row = "y" * size

    def peak(rows: int) -> int:
        lines = ["x\n"] * (reader == "csv") + [f'{{"x": "{row}"}}\n' if reader == "jsonl" else f"{row}\n"] * rows
        path.write_text("".join(lines))
        tracemalloc.start()
        assert [len(raw.value["x"]) for raw in readers.read(path, reader, "a")] == [size] * rows
        reached = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return reached

    assert peak(1) < times * size
    # While a row is read, the one before may still be somebody's; those before that are nobody's.
    assert peak(8) < 1.05 * peak(2)


def rows_of(*values: object, file: str = "f") -> list[Raw]:
    return [Raw(file, number, {"k": value, "n": number}, f"/d/{file}") for number, value in enumerate(values, 1)]


def test_rows_of_one_value_become_one_row() -> None:
    raws = rows_of("a", "a", "b", "a", None)
    joined = list(readers.grouped(iter(raws), "k"))
    assert [[row["n"] for row in raw.value["rows"]] for raw in joined] == [[1, 2], [3], [4], [5]]
    assert [(raw.line, raw.where) for raw in joined] == [(1, "/d/f:1"), (3, "/d/f:3"), (4, "/d/f:4"), (5, "/d/f:5")]
    assert joined[0].members == tuple(raws[:2])
    assert [raw for one in joined for raw in one.members] == raws


def test_rows_of_two_files_are_not_joined() -> None:
    joined = list(readers.grouped(iter([*rows_of("a"), *rows_of("a", file="g")]), "k"))
    assert [len(raw.members) for raw in joined] == [1, 1]


def test_rows_that_lie_anywhere_are_gathered_where_the_first_stood() -> None:
    raws = [*rows_of("a", "b", "a", ["x", {"k": 1, "l": 2}]), *rows_of("b", ["x", {"l": 2, "k": 1}], "1", 1, file="g")]
    joined = list(readers.gathered(iter(raws), "k"))
    assert [[(one.file, one.line) for one in raw.members] for raw in joined] == [
        [("f", 1), ("f", 3)], [("f", 2), ("g", 1)], [("f", 4), ("g", 2)], [("g", 3)], [("g", 4)],
    ]  # fmt: skip
    assert [(raw.file, raw.line) for raw in joined] == [("f", 1), ("f", 2), ("f", 4), ("g", 3), ("g", 4)]
    assert joined[1].value == {"rows": [{"k": "b", "n": 2}, {"k": "b", "n": 1}]}
    sides = [replace(raw, split=split) for raw, split in zip(rows_of("a", "a"), ("train", "test"), strict=True)]
    assert [len(raw.members) for raw in readers.gathered(iter(sides), "k")] == [1, 1]


@pytest.mark.parametrize("join", [readers.grouped, readers.gathered])
def test_a_group_needs_its_column(join: Callable[..., Iterator[Raw]]) -> None:
    with pytest.raises(DataError, match="there is no column 'prompt'") as caught:
        list(join(iter(rows_of("a", "b")), "prompt"))
    assert caught.value.where == "/d/f:1"


def test_a_number_too_long_to_be_one_and_a_column_named_twice(tmp_path: Path) -> None:
    digits = "9" * 5000
    (tmp_path / "long.jsonl").write_text(f'{{"a": {digits}}}\n')
    (tmp_path / "long.json").write_text(f'[{{"a": {digits}}}]')
    (tmp_path / "twice.csv").write_text("q,a,a\n1,2,3\n")
    for name, reader, told in (
        ("long.jsonl", "jsonl", "5,000 digits"), ("long.json", "json", "5,000 digits"), ("twice.csv", "csv", "'a'"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=told):
            list(readers.read(tmp_path / name, reader, name))
