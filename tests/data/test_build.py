from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.chat.render import check_turns
from alignment.chat.types import Conversation, Message, Text, prompt_key
from alignment.data import checks, draw, store
from alignment.data.build import build
from alignment.data.ledger import FATES, JOINED, Entry
from alignment.data.recipe import Shares
from alignment.data.store import Card
from alignment.errors import DataError, UserError

from .examples import parse, source

THIRDS = {"train": 0.4, "valid": 0.3, "test": 0.3}


def row(question: str, answer: str = "yes") -> dict[str, str]:
    return {"q": question, "a": answer}


def entry(out: Path, line: int) -> Entry:
    """The ledger's line for a line of the only file."""
    (found,) = store.entries(out, line=line)
    return found


def check_laws(out: Path, summary: Card) -> None:
    """What holds of every dataset: the sums, the ids, the sides."""
    lines = store.entries(out)
    rows = {split: store.read(out, split) for split in summary.rows}
    for name, told in summary.sources.items():
        own = [line for line in lines if line.source == name and line.derived_from is None]
        counts = Counter(line.fate for line in own)
        assert told["fates"] == {fate: counts[fate] for fate in FATES}
        assert told["read"] == len(own) == sum(told["fates"].values())
        assert told["rows"] == sum(line.copies for line in own)
    leaves = [line for line in lines if line.id not in {other.derived_from for other in lines}]
    assert len({line.id for line in leaves}) == len(leaves)
    for line in leaves:
        if line.reason.startswith(JOINED):
            assert (line.copies, line.split) == (0, None)
            continue
        assert (line.copies > 0) == (line.split is not None) == (line.fate in ("kept", "changed", "flagged"))
        assert bool(line.reason) == (line.fate != "kept")
    for split, found in rows.items():
        assert len(found) == summary.rows[split]
        assert Counter(r.id for r in found) == {line.id: line.copies for line in leaves if line.split == split}
    keys = [{checks.split_key(r) for r in found} for found in rows.values()]
    assert sum(map(len, keys)) == len(set().union(*keys))


def test_every_fate_has_its_line(tmp_path: Path, write) -> None:
    write(
        "s.jsonl",
        row("one?"), row(" two? ", "yes\n"), row("three?", " "), row("one?"),
        row("say <end_of_turn>"), row("six?"), row("seven?", None),
    )  # fmt: skip
    summary = build(parse(source(limit=6, expected_rows=7)), tmp_path / "out", base=tmp_path)
    fates = [(line.line, line.fate, line.reason) for line in store.entries(tmp_path / "out")]
    assert fates == [
        (1, "kept", ""),
        (2, "changed", "surrounding white space taken off"),
        (3, "dropped", "empty answer"),
        (4, "dropped", "duplicate of s:1"),
        (5, "flagged", "spells <end_of_turn>"),
        (6, "kept", ""),
        (7, "not_drawn", "past the limit"),
    ]
    assert summary.fates == {"kept": 2, "changed": 1, "flagged": 1, "dropped": 2, "not_drawn": 1}
    assert summary.rows == {"train": 4}
    assert summary.dropped_share == 2 / 6
    assert summary.sources["s"]["reasons"] == {"empty answer": 1, "duplicate": 1}
    second = store.read(tmp_path / "out", "train")[1]
    assert second == Conversation((Message("user", "two?"), Message("assistant", "yes")), id="s:2")
    check_laws(tmp_path / "out", summary)


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        ("", "no turns"),
        ("s", "no turns"),
        ("au", "starts with the assistant"),
        ("uua", "turns do not alternate"),
        ("uaa", "turns do not alternate"),
        ("usa", "system message after the beginning"),
        ("uau", "ends with the user"),
        ("ua", ""),
        ("suaua", ""),
    ],
)
def test_turns_that_are_no_conversation(roles: str, reason: str) -> None:
    names = {"u": "user", "a": "assistant", "s": "system"}
    turns = tuple(Message(names[letter], "text") for letter in roles)  # type: ignore[arg-type]
    assert checks.flaw(Conversation(turns, id="")) == reason


turn = st.builds(Message, st.sampled_from(["system", "user", "assistant"]), st.sampled_from(["", "x"]))


@given(st.lists(turn, max_size=5), st.sampled_from(["user", "assistant"]))
def test_what_passes_here_can_be_rendered(turns: list[Message], ends_with: Any) -> None:
    if not checks.turns_flaw(turns, ends_with):
        check_turns(turns, ends_with)


cell = st.sampled_from(["", " ", "a", "b", " a", "c?", "<bos>", "B", None])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(cell, cell), min_size=1, max_size=25),
    weight=st.sampled_from([None, 0.3, 1.0, 1.5, 2.0]),
    limit=st.sampled_from([None, 1, 7]),
    seed=st.integers(0, 5),
)
def test_the_sums_hold_whatever_the_rows(
    tmp_path_factory: pytest.TempPathFactory, rows: list, weight: float | None, limit: int | None, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("laws")
    any_rows = "".join(json.dumps({"q": q, "a": a}) + "\n" for q, a in rows)
    # Sound rows besides, so many that every side has some whatever the seed.
    sound_rows = "".join(json.dumps(row(f"{n}?")) + "\n" for n in range(30))
    (folder / "s.jsonl").write_text(any_rows)
    (folder / "t.jsonl").write_text(sound_rows + any_rows)
    sources = (source("s", "s.jsonl", weight=weight, limit=limit), source("t", "t.jsonl"))
    summary = build(parse(*sources, splits=THIRDS, seed=seed), folder / "out", base=folder)
    check_laws(folder / "out", summary)


def test_a_row_of_several_parts_has_a_line_for_each(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("one\n\n two\n\none\n")
    text = {"format": "text", "columns": {"text": "text"}, "options": {"gutenberg": False, "passage_chars": 1}}
    taken = parse(source(path="s.txt", reader="text", **text), kind="text")
    summary = build(taken, tmp_path / "out", base=tmp_path)
    whole, *parts = store.entries(tmp_path / "out")
    assert (whole.fate, whole.reason, whole.copies) == ("changed", "3 rows: 1 kept, 1 changed, 1 dropped", 2)
    assert [(p.line, p.fate, p.id, p.derived_from) for p in parts] == [
        (1, "kept", "s:1#1", "s:1"), (3, "changed", "s:1#2", "s:1"), (5, "dropped", "s:1#3", "s:1"),
    ]  # fmt: skip
    assert store.read(tmp_path / "out", "train") == [Text("one", "s:1#1"), Text("two", "s:1#2")]
    assert summary.dropped_share == 1 / 3
    check_laws(tmp_path / "out", summary)


def test_a_row_whose_parts_are_all_dropped_is_dropped(tmp_path: Path, write) -> None:
    write("s.jsonl", {"t": "a\n\nb"}, {"t": "b\n\na"})
    text = {"format": "text", "columns": {"text": "t"}, "options": {"gutenberg": False, "passage_chars": 1}}
    build(parse(source(**text), kind="text"), tmp_path / "out", base=tmp_path)
    whole = [line for line in store.entries(tmp_path / "out", line=2) if line.derived_from is None]
    assert [(line.fate, line.copies) for line in whole] == [("dropped", 0)]


def test_the_same_recipe_gives_the_same_bytes(tmp_path: Path, write) -> None:
    write("s.jsonl", *(row(f"question {n}?", f"answer {n % 7}") for n in range(5000)))
    taken = parse(source(weight=1.5), splits=THIRDS)
    for out in ("one", "two"):
        build(taken, tmp_path / out, base=tmp_path)
    build(taken.rooted(tmp_path), tmp_path / "three", base=Path("/"))
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["card.json", "ledger.parquet", "test.parquet", "train.parquet", "valid.parquet"]
    for name in names:
        first = (tmp_path / "one" / name).read_bytes()
        assert (tmp_path / "two" / name).read_bytes() == first
        assert (tmp_path / "three" / name).read_bytes() == first


def test_sides_follow_the_shares_and_the_seed() -> None:
    shares = Shares(train=0.7, valid=0.3, test=0.0)
    for seed in (0, 1):
        sides = Counter(draw.split_of(str(n), seed, shares) for n in range(10_000))
        # 10,000 draws: four standard deviations of a share of 0.7 are 0.018.
        assert abs(sides["train"] / 10_000 - 0.7) < 0.018
        assert sides["test"] == 0
    moved = sum(draw.split_of(str(n), 0, shares) != draw.split_of(str(n), 1, shares) for n in range(1000))
    assert 350 < moved < 490  # 2 × 0.7 × 0.3 of them


def test_all_rows_of_one_prompt_are_on_one_side(tmp_path: Path, write) -> None:
    spellings = ["What is {}?", "what  is {}? ", "WHAT IS {}?"]
    write("s.jsonl", *(row(form.format(n), form) for n in range(40) for form in spellings))
    summary = build(parse(source(), splits=THIRDS), tmp_path / "out", base=tmp_path)
    sides = [{prompt_key(r.messages) for r in store.read(tmp_path / "out", split)} for split in summary.rows]
    assert [sum(map(len, sides)), len(set().union(*sides))] == [40, 40]
    assert sum(summary.rows.values()) == 120


def test_weights_copy_and_leave_out_training_rows_only(tmp_path: Path, write) -> None:
    write("s.jsonl", *(row(f"{n}?") for n in range(2000)))
    plain = build(parse(source(), splits=THIRDS), tmp_path / "1", base=tmp_path).rows
    more = build(parse(source(weight=2.5), splits=THIRDS), tmp_path / "2", base=tmp_path).rows
    less = build(parse(source(weight=0.5), splits=THIRDS), tmp_path / "3", base=tmp_path)
    assert [more["valid"], more["test"]] == [plain["valid"], plain["test"]]
    assert abs(more["train"] / plain["train"] - 2.5) < 0.08
    assert {line.copies for line in store.entries(tmp_path / "2") if line.split == "train"} == {2, 3}
    assert abs(less.fates["not_drawn"] - 1000) < 100
    assert entry(tmp_path / "3", 1).fate in ("kept", "not_drawn")


def test_too_many_dropped_rows_are_an_error_with_reasons_and_examples(tmp_path: Path, write) -> None:
    write("s.jsonl", *(row(f"{n}?", "" if n % 2 else "yes") for n in range(20)), row("0?"))
    with pytest.raises(UserError) as caught:
        build(parse(source(), max_dropped=0.5), tmp_path / "out", base=tmp_path)
    error = caught.value
    assert error.problem == "11 of 21 rows were dropped (52.4%); max_dropped=0.5 allows 50.0%"
    assert "empty answer (10), duplicate (1)" in error.cause
    assert f'{tmp_path}/s.jsonl:2: empty answer: {{"q": "1?"' in error.cause
    assert f"{tmp_path}/s.jsonl:21: duplicate" in error.cause
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["parts"]
    build(parse(source(), max_dropped=11 / 21), tmp_path / "out", base=tmp_path)


def test_unknown_grades_are_dropped_and_past_the_bound_named_with_their_counts(tmp_path: Path, write) -> None:
    said = ["a", "b", "tie", "much", "much", "much", "mcuh", "mcuh", None, 7]
    write("s.jsonl", *({"q": f"{n}?", "x": "1", "y": "2", "p": one} for n, one in enumerate(said)))
    graded = {
        "format": "graded_pair",
        "columns": {"prompt": "q", "answer_a": "x", "answer_b": "y", "preference": "p"},
        "options": {"a": {"a": "better"}, "b": {"b": "better"}, "ties": ["tie"], "keep_ties": True},
    }
    card = build(parse(source(**graded), kind="comparisons", max_dropped=0.7), tmp_path / "out", base=tmp_path)
    assert card.rows == {"train": 3}
    assert card.sources["s"]["reasons"] == {
        "unknown grade 'much'": 3,
        "unknown grade 'mcuh'": 2,
        "no preference in column 'p'": 1,
        "unknown grade '7'": 1,
    }
    assert entry(tmp_path / "out", 4).by == "format"
    check_laws(tmp_path / "out", card)
    with pytest.raises(UserError) as caught:
        build(parse(source(**graded), kind="comparisons", max_dropped=0.5), tmp_path / "few", base=tmp_path)
    assert caught.value.problem.startswith("7 of 10 rows were dropped")
    assert caught.value.cause.startswith("Most often: unknown grade 'much' (3), unknown grade 'mcuh' (2), no pref")
    assert f"{tmp_path}/s.jsonl:4: unknown grade 'much': " in caught.value.cause
    assert "options" in caught.value.remedy


def test_rows_of_several_files_may_be_gathered(tmp_path: Path, write) -> None:
    write("in/a.jsonl", {"q": "1?", "a": "x", "h": 1, "by": "us"}, {"q": "2?", "a": "x", "h": 1, "by": "us"})
    write("in/b.jsonl", {"q": "2?", "a": "y", "h": 2, "by": "us"}, {"q": "1?", "a": "y", "h": 2, "by": "bots"})
    write("in/c.jsonl", {"q": "1?", "a": "z", "h": 3, "by": "us"})
    scored = {
        "format": "scored_pair",
        "columns": {"prompt": "q", "answer": "a"},
        "options": {"scores": {"h": 1.0}},
        "group": "q",
        "expected_rows": 5,
    }
    taken = source(path="in/*.jsonl", **scored, scattered=True)
    card = build(parse(taken, kind="comparisons"), tmp_path / "out", base=tmp_path)
    check_laws(tmp_path / "out", card)
    lines = [(line.file, line.line, line.fate, line.reason, line.id) for line in store.entries(tmp_path / "out")]
    assert [line for line in lines if line[3].startswith(JOINED)] == [
        ("in/b.jsonl", 2, "kept", "joined with line 1 of in/a.jsonl", "s:in/b.jsonl:2"),
        ("in/c.jsonl", 1, "kept", "joined with line 1 of in/a.jsonl", "s:in/c.jsonl:1"),
        ("in/b.jsonl", 1, "kept", "joined with line 2 of in/a.jsonl", "s:in/b.jsonl:1"),
    ]
    rows = store.read(tmp_path / "out", "train")
    assert [(row.chosen, row.rejected) for row in rows] == [("y", "x"), ("z", "x"), ("z", "y"), ("y", "x")]  # type: ignore[union-attr]

    refused = parse(taken | {"origin": "by"}, kind="comparisons", deny=["bots"])
    card = build(refused, tmp_path / "denied", base=tmp_path)
    assert (card.rows, card.sources["s"]["reasons"]) == ({"train": 1}, {"denied origin": 1})

    with pytest.raises(UserError, match="no row is left"):
        build(parse(source(path="in/*.jsonl", **scored), kind="comparisons"), tmp_path / "apart", base=tmp_path)


def test_a_row_count_that_was_not_expected_is_an_error(tmp_path: Path, write) -> None:
    write("s.jsonl", row("1?"))
    with pytest.raises(UserError, match="source s: 1 rows read, expected_rows=2"):
        build(parse(source(expected_rows=2)), tmp_path / "out", base=tmp_path)


def test_a_broken_source_leaves_no_dataset_not_even_an_older_one(tmp_path: Path, write) -> None:
    write("s.jsonl", row("1?"))
    build(parse(source()), tmp_path / "out", base=tmp_path)
    write("s.jsonl", row("1?"), {"q": "2?"})
    with pytest.raises(DataError) as caught:
        build(parse(source()), tmp_path / "out", base=tmp_path)
    assert caught.value.where == f"{tmp_path}/s.jsonl:2"
    assert "there is no column 'a'" in caught.value.problem
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["parts"]


def test_a_side_that_stays_empty_is_an_error(tmp_path: Path, write) -> None:
    write("s.jsonl", row("1?"))
    with pytest.raises(UserError, match=r"splits\..*none of the 1 rows"):
        build(parse(source(), splits=THIRDS), tmp_path / "out", base=tmp_path)
    write("s.jsonl", row("1?", ""))
    with pytest.raises(UserError, match="no row is left"):
        build(parse(source()), tmp_path / "out", base=tmp_path)


def test_several_files_give_distinct_ids(tmp_path: Path, write) -> None:
    write("in/a.jsonl", row("1?"))
    write("in/b.jsonl", row("2?"))
    summary = build(parse(source(path="in/*.jsonl")), tmp_path / "out", base=tmp_path)
    assert [r.id for r in store.read(tmp_path / "out", "train")] == ["s:in/a.jsonl:1", "s:in/b.jsonl:1"]
    assert store.entries(tmp_path / "out", file="in/b.jsonl", line=1)[0].id == "s:in/b.jsonl:1"
    check_laws(tmp_path / "out", summary)


def test_duplicates_are_found_across_sources(tmp_path: Path, write) -> None:
    write("s.jsonl", row("1?"))
    write("t.jsonl", row("1? "))
    build(parse(source("s"), source("t", "t.jsonl")), tmp_path / "out", base=tmp_path)
    assert store.entries(tmp_path / "out", source="t")[0].reason == "duplicate of s:1"


def test_progress_is_told(tmp_path: Path, write) -> None:
    write("s.jsonl", *(row(f"{n}?") for n in range(1100)))
    told: list[tuple] = []
    build(parse(source(expected_rows=1100)), tmp_path / "out", base=tmp_path, progress=lambda *now: told.append(now))
    assert told[-1] == ("s", 1100, 1100)
    assert [rows for what, rows, _ in told if what == "s"] == sorted(rows for what, rows, _ in told if what == "s")
