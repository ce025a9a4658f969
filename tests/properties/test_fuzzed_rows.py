"""Files and rows of datasets: read, dropped with a reason, or refused with their line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, get_args

import fuzzing
import hostile
import pyarrow as pa
import pyarrow.parquet as pq
from fuzzing import told
from hypothesis import strategies as st

from alignment.data import build, formats, readers, recipe
from alignment.data.prepare import Preparer, dump
from alignment.data.rows import Kind, Raw
from alignment.data.sources import ORIGINS

NAMES = ("q", "a", "messages", "rank", "x")
"""Columns of the rows; a recipe may map any of them to any of ours."""
TURNS = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ben."}]
TREE = {
    "prompt": {
        "text": "Who?",
        "role": "prompter",
        "lang": "en",
        "review_result": True,
        "deleted": False,
        "replies": [{"text": "Ben.", "role": "assistant", "lang": "en", "rank": 0, "replies": []}],
    }
}
SOUND: list[dict[str, Any]] = [
    {"q": "Who?", "a": "Ben.", "messages": TURNS, "rank": 1, "x": "y"},
    {"q": TURNS, "a": TURNS[1:], "messages": [["Who?", "Ben."]], "rank": "A", "x": ["Ben.", "Ada."]},
    {
        "q": "\n\nHuman: Who?\n\nAssistant: Ben.",
        "a": "\n\nHuman: Who?\n\nAssistant: Ada.",
        "messages": [],
        "rank": None,
        "x": 0,
    },
    {
        "q": 3,
        "a": {"text": "Ben."},
        "messages": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ben."}],
        "rank": 1.5,
        "x": {},
    },
    TREE | dict.fromkeys(NAMES),
]
FORMATS = [(name, kind) for name, form in formats.FORMATS.items() if name not in ORIGINS for kind in form.columns]
assert {kind for _, kind in FORMATS} <= set(get_args(Kind))


@st.composite
def readings(draw: st.DrawFn) -> tuple[dict[str, Any], list[Any]]:
    """A recipe of one source in any format, and rows for it."""
    name, kind = draw(st.sampled_from(FORMATS))
    form = formats.FORMATS[name]
    ours = [*form.columns[kind], *draw(st.lists(st.sampled_from([*form.may_map(kind), ""]), max_size=3, unique=True))]
    columns = {one: draw(st.sampled_from(NAMES)) for one in ours if one}
    source = {"name": "s", "licence": "MIT", "format": name, "columns": columns, "expected_rows": None}
    source |= {"files": {"paths": ["rows.jsonl"], "reader": "jsonl"}}
    values = {"kind": kind, "sources": [source], "splits": {"train": 1.0, "valid": 0.0, "test": 0.0}}
    row = st.one_of(st.sampled_from(SOUND).flatmap(hostile.changed), hostile.values())
    return values | {"seed": 0, "max_dropped": 1.0, "root": None}, draw(st.lists(row, min_size=1, max_size=3))


def rows_become_records_or_are_refused(folder: Path, reading: tuple[dict[str, Any], list[Any]]) -> None:
    values, rows = reading

    def prepared() -> list[Any]:
        found = recipe.Recipe.parse(values)
        raws = [Raw("rows.jsonl", number, row, "rows.jsonl") for number, row in enumerate(rows, 1)]
        records = Preparer(found, [], {}, last=True).shape(found.sources[0], raws, False, len(raws))
        return [dump(record, found.kind) for record in records]

    records = told(prepared)
    if records is not None:
        assert len(records) == len(rows)
        json.dumps(records, ensure_ascii=False).encode()


test_rows, test_rows_thoroughly = fuzzing.both(
    rows_become_records_or_are_refused, quick=120, thorough=2500, reading=readings()
)

FILES = {
    "jsonl": b'{"q": "a\\u00e9", "a": [1, null]}\n\n{"q": 1e3}\n',
    "json": b'[{"q": "a"}, {"a": "\\ud83d\\ude00"}, 3]',
    "csv": b'q,a\n"x ""y""\nz",2\n3,4\n',
    "text": b"Wer? Ich.\r\n\r\nUnd du?",
}


@st.composite
def files(draw: st.DrawFn) -> tuple[str, str, bytes]:
    """A reader, a name, and bytes that were once sound."""
    reader = draw(st.sampled_from([*FILES, "parquet"]))
    sound = FILES[reader] if reader != "parquet" else parquet(draw(st.sampled_from(SOUND[:2])))
    packed = draw(st.booleans()) and reader != "parquet"
    if packed and draw(st.booleans()):
        sound = gzip.compress(draw(hostile.damaged(sound)), mtime=0)
    content = draw(hostile.damaged(gzip.compress(sound, mtime=0) if packed and sound[:2] != b"\x1f\x8b" else sound))
    return reader, "rows.gz" if packed else "rows", content


def parquet(row: dict[str, Any]) -> bytes:
    """One row as a file."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([{"q": "x", "a": json.dumps(row)}]), sink)
    return sink.getvalue().to_pybytes()


def files_are_read_or_refused(folder: Path, file: tuple[str, str, bytes]) -> None:
    reader, name, content = file
    path = folder / name
    path.write_bytes(content)
    assert all(raw.line >= 1 for raw in told(lambda: list(readers.read(path, reader, name))) or [])


test_files, test_files_thoroughly = fuzzing.both(files_are_read_or_refused, quick=100, thorough=2000, file=files())


def datasets_are_made_or_refused(folder: Path, reading: tuple[dict[str, Any], list[Any]]) -> None:
    values, rows = reading
    path = folder / "rows.jsonl"
    path.write_text("".join(hostile.plain(row) + "\n" for row in rows), encoding="utf-8", errors="surrogatepass")
    out = folder / "out"
    card = told(lambda: build.build(recipe.Recipe.parse(values), out, base=folder))
    assert card is None or sum(card.fates.values()) == len(rows), "every row has its line"


test_datasets, test_datasets_thoroughly = fuzzing.both(
    datasets_are_made_or_refused, quick=20, thorough=400, reading=readings()
)


def parquet_of_any_type_is_read_or_refused(folder: Path, rows: list[Any], kind: pa.DataType) -> None:
    try:
        pq.write_table(
            pa.Table.from_pydict({"q": pa.array(rows, kind), "a": ["x"] * len(rows)}), folder / "rows.parquet"
        )
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return
    values = {"kind": "prompts", "splits": {"train": 1.0, "valid": 0.0, "test": 0.0}, "seed": 0, "max_dropped": 1.0}
    source = {"name": "s", "licence": "MIT", "format": "prompt_completion", "expected_rows": None}
    source |= {"columns": {"prompt": "a", "reference": "q"}, "files": {"paths": ["rows.parquet"], "reader": "parquet"}}
    told(lambda: build.build(recipe.Recipe.parse(values | {"sources": [source]}), folder / "out", base=folder))


TYPES = [pa.binary(), pa.string(), pa.date32(), pa.date64(), pa.timestamp("s"), pa.timestamp("ns", "UTC"), pa.float64()]
TYPES += [
    pa.decimal128(9, 2),
    pa.duration("ns"),
    pa.list_(pa.binary()),
    pa.int64(),
    pa.time64("ns"),
    pa.bool_(),
    pa.null(),
]
test_parquet, test_parquet_thoroughly = fuzzing.both(
    parquet_of_any_type_is_read_or_refused,
    quick=30,
    thorough=300,
    rows=st.lists(
        st.one_of(st.none(), st.integers(-(2**62), 2**62), st.binary(max_size=3), st.floats(), st.text(max_size=3)),
        min_size=1,
        max_size=2,
    ),
    kind=st.sampled_from(TYPES),
)
