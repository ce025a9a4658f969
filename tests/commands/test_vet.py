from __future__ import annotations

import csv
import json
import re
import shlex
import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from alignment import artifacts, run
from alignment.artifacts import Artifact
from alignment.chat.features import features, to_row
from alignment.chat.types import Conversation, Prompt, messages
from alignment.commands import vet
from alignment.errors import DataError, UserError
from alignment.store import Store

GIVEN: dict[str, Any] = {
    "dataset": "run:human",
    "model_dataset": "run:model",
    "split": "test",
    "n": 20,
    "out": None,
    "verdicts": None,
    "confidence": 0.95,
    "seed": 0,
}


def dataset(path: Path, rows: list[Any], kind: str = "conversations") -> Artifact:
    path.mkdir(parents=True)
    table = pa.Table.from_pylist([to_row(row) for row in rows], schema=features(kind).arrow_schema)
    pq.write_table(table, path / "test.parquet")
    (path / "card.json").write_text(json.dumps({"kind": kind, "rows": {"test": len(rows)}}))
    return artifacts.finish(Artifact(path, "dataset", "data", path.name, path.name * 8))


def talks(word: str, count: int) -> list[Conversation]:
    turns = [messages(("user", f"Question {n}?"), ("assistant", f"{word} {n}.")) for n in range(count)]
    return [Conversation(turn, f"{word}:{n}") for n, turn in enumerate(turns)]


class Desk:
    """A store, a dataset of each origin, and a folder for the judge's file."""

    def __init__(self, folder: Path, human: list[Any] | None = None, model: list[Any] | None = None) -> None:
        self.folder, self.store = folder, Store(folder / "runs")
        self.inputs = {
            "dataset": dataset(folder / "human", human or talks("north", 40)),
            "model_dataset": dataset(folder / "model", model or talks("south", 40)),
        }

    def export(self, name: str = "vet.csv", **more: Any) -> Path:
        settings = vet.Settings.parse({**GIVEN, "out": str(self.folder / name), **more})
        named = {key: one for key, one in self.inputs.items() if getattr(settings, key) is not None}
        vet.run(settings, named, self.store)
        return self.folder / name

    def take_in(self, path: Path) -> dict[str, Any]:
        given = {**GIVEN, "dataset": None, "model_dataset": None, "verdicts": str(path)}
        vet.run(vet.Settings.parse(given), {}, self.store)
        (result,) = (self.store.root / "vet").glob(f"*.{path.stem}.result.json")
        return json.loads(result.read_text())

    @property
    def key(self) -> dict[str, Any]:
        (path,) = (self.store.root / "vet").glob("*.key.json")
        return json.loads(path.read_text())


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file)) if path.suffix == ".csv" else [json.loads(one) for one in file]


def rewrite(path: Path, rows: list[dict[str, str]]) -> Path:
    """Save the judge's file as a spreadsheet would."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def fill(path: Path, **verdict_of: str) -> Path:
    """Judge every answer by its first word."""
    rows = rows_of(path)
    for row in rows:
        row["verdict"] = verdict_of.get(row["answer"].split()[0], "")
    return rewrite(path, rows)


# ── out ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["vet.csv", "vet.jsonl"])
def test_the_sample_is_blind_and_the_key_is_not(desk: Desk, name: str) -> None:
    path = desk.export(name)
    rows, key = rows_of(path), desk.key
    assert tuple(rows[0]) == ("id", "prompt", "answer", "verdict", "comment")
    assert all(row["verdict"] == row["comment"] == "" for row in rows)
    words = [row["answer"].split()[0] for row in rows]
    assert (words.count("north"), words.count("south")) == (10, 10)
    # In an order that tells nothing, runs of one origin are short; sorted, there would be one change.
    assert sum(a != b for a, b in pairwise(words)) > 4
    assert not re.search(r"north:|south:|human|model|run:", path.read_text())
    ids = [row["id"] for row in rows]
    assert ids == [f"{key['name']}-{n:03d}" for n in range(1, 21)]
    for row in rows:
        told = key["rows"][row["id"]]
        word, number = row["answer"].rstrip(".").split()
        assert told["row"] == f"{word}:{number}"
        assert told["origin"] == {"north": "human", "south": "model"}[word]
        assert row["prompt"] == f"Question {number}?"


def test_only_the_owner_reads_the_key(desk: Desk) -> None:
    folder = desk.store.root / "vet"
    folder.mkdir(parents=True)
    desk.export()
    (key,) = folder.iterdir()
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.name == f"{desk.key['name']}.key.json"
    assert {origin: one["fingerprint"] for origin, one in desk.key["datasets"].items()} == {
        "human": "human" * 8,
        "model": "model" * 8,
    }


def test_the_same_seed_draws_the_same_whatever_the_order_of_the_rows(tmp_path: Path) -> None:
    there = Desk(tmp_path / "a").export().read_bytes()
    turned = Desk(tmp_path / "b", talks("north", 40)[::-1], talks("south", 40)[::-1])
    assert turned.export().read_bytes() == there
    assert turned.export("other.csv", seed=1).read_bytes() != there


def test_every_row_has_the_same_chance(tmp_path: Path) -> None:
    desk = Desk(tmp_path, talks("north", 20))
    drawn = [
        row["answer"]
        for seed in range(40)
        for row in rows_of(desk.export(f"{seed}.csv", seed=seed, n=10, model_dataset=None))
    ]
    # Each of 20 rows is expected 20 times; four standard deviations are 4·√(40·¼) = 12.6.
    assert len(drawn) == 400
    assert all(8 <= drawn.count(f"north {n}.") <= 32 for n in range(20))


@pytest.mark.parametrize(("n", "human"), [(7, 4), (2, 1)])
def test_an_odd_answer_is_a_persons(desk: Desk, n: int, human: int) -> None:
    words = [row["answer"].split()[0] for row in rows_of(desk.export(n=n))]
    assert (words.count("north"), len(words)) == (human, n)


def test_without_a_model_all_are_a_persons(desk: Desk) -> None:
    desk.export(model_dataset=None)
    assert {row["origin"] for row in desk.key["rows"].values()} == {"human"}
    assert list(desk.key["datasets"]) == ["human"]


def test_what_is_there_twice_is_judged_once(tmp_path: Path) -> None:
    desk = Desk(tmp_path, talks("north", 10) * 3)
    assert len({row["answer"] for row in rows_of(desk.export(n=20))}) == 20
    with pytest.raises(UserError, match=r"n: 11 answers are wanted of test in .*human, which has 10 different ones"):
        desk.export("more.csv", n=22)


def test_speakers_are_named_where_there_are_several_turns(tmp_path: Path) -> None:
    turns = messages(("system", "Rhyme."), ("user", "Hi"), ("assistant", "Bye"), ("user", "So?"))
    rows = [Conversation((*turns, *messages(("assistant", told))), told) for told in ("Low", "Go")]
    (prompt,) = {row["prompt"] for row in rows_of(Desk(tmp_path, rows).export(n=2, model_dataset=None))}
    assert prompt == "System: Rhyme.\n\nUser: Hi\n\nAssistant: Bye\n\nUser: So?"


def test_what_cannot_be_exported_is_told(tmp_path: Path, desk: Desk) -> None:
    with pytest.raises(UserError, match=r"out=vet\.xlsx: the name tells the format"):
        desk.export(out="vet.xlsx")
    with pytest.raises(UserError, match=r"out=null"):
        desk.export(out=None)
    desk.export()
    with pytest.raises(UserError, match=r"is there already\nIt may hold verdicts"):
        desk.export()
    desk.inputs["model_dataset"] = desk.inputs["dataset"]
    with pytest.raises(UserError, match=r"model_dataset=run:model: is the same as dataset"):
        desk.export("b.csv")
    prompts = dataset(tmp_path / "prompts", [Prompt(messages(("user", "?")), "p")], "prompts")
    desk.inputs["model_dataset"] = prompts
    with pytest.raises(UserError, match=r"holds prompts"):
        desk.export("b.csv")
    desk.inputs["model_dataset"] = replace(prompts, kind="policy")
    with pytest.raises(UserError, match=r"a dataset is needed here"):
        desk.export("b.csv")
    assert not (tmp_path / "b.csv").exists()
    assert len(list((desk.store.root / "vet").iterdir())) == 1


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        ({"dataset": None}, "No dataset was named"),
        ({"dataset": None, "model_dataset": None}, "No dataset was named"),
        ({"verdicts": "vet.csv"}, "Both were asked for"),
        ({"dataset": None, "verdicts": "vet.csv"}, "Both were asked for"),
    ],
)
def test_it_either_exports_or_imports(tmp_path: Path, given: dict[str, Any], cause: str) -> None:
    with pytest.raises(UserError, match=cause):
        vet.run(vet.Settings.parse({**GIVEN, "out": "vet.csv", **given}), {}, Store(tmp_path))


def test_a_cell_that_a_spreadsheet_would_cut_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = [Conversation(messages(("user", "?"), ("assistant", "x" * (vet.CELL_LIMIT + n))), str(n)) for n in (0, 1)]
    desk = Desk(tmp_path, long)
    desk.export(n=2, model_dataset=None)
    assert "1 rows are longer than the 32,767" in capsys.readouterr().out
    desk.export("vet.jsonl", n=2, model_dataset=None)
    assert "longer" not in capsys.readouterr().out


# ── back in ──────────────────────────────────────────────────────────────────────────────────────


def test_verdicts_are_counted_by_origin(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    path = desk.export()
    rows = rows_of(path)
    verdicts = {"north": iter("gggggggb?-"), "south": iter("ggbbbbbb?-")}
    meaning = {"g": " Good ", "b": "bad", "?": "UNSURE", "-": ""}
    for row in rows:
        row["verdict"] = meaning[next(verdicts[row["answer"].split()[0]])]
        row["comment"] = f"of {row['answer']}"
    result = desk.take_in(rewrite(path, rows))
    told = result["origins"]
    assert [told["human"][name] for name in ("good", "bad", "unsure", "not judged")] == [7, 1, 1, 1]
    assert (told["model"]["good"], told["model"]["bad"]) == (2, 6)
    assert told["human"]["share_good"]["estimate"] == 7 / 8
    gap = result["human_minus_model"]
    assert gap["estimate"] == pytest.approx(5 / 8)
    assert 0 < gap["low"] < 5 / 8 < gap["high"] <= 1
    one = result["rows"][rows[0]["id"]]
    assert one["comment"] == f"of {rows[0]['answer']}"
    assert one["origin"] == {"north": "human", "south": "model"}[rows[0]["answer"].split()[0]]
    printed = capsys.readouterr().out
    assert "87.5%" in printed
    assert "human minus model: +62.5%" in printed
    assert "holds no 0" in printed


def test_rows_that_are_missing_are_not_judged(desk: Desk) -> None:
    path = fill(desk.export(), north="good")
    rewrite(path, rows_of(path)[:12])
    result = desk.take_in(path)
    assert sum(one["not judged"] for one in result["origins"].values()) == 20 - result["origins"]["human"]["good"]
    assert result["origins"]["model"]["share_good"] is None
    assert result["human_minus_model"] is None
    assert len(result["rows"]) == 12


def test_a_renamed_file_with_more_columns_in_another_order_finds_its_key(desk: Desk) -> None:
    rows = [
        {"judge": "Ann", **dict(reversed(row.items()))}
        for row in rows_of(fill(desk.export(), north="good", south="bad"))
    ]
    desk.export("other.csv", seed=3)
    given = {**GIVEN, "dataset": None, "model_dataset": None}
    for name in ("Ann's verdicts.csv", "Ben.csv"):
        path = rewrite(desk.folder / name, rows[::-1])
        vet.run(vet.Settings.parse({**given, "verdicts": str(path)}), {}, desk.store)
    assert len(list((desk.store.root / "vet").glob("*.result.json"))) == 2, "one judge does not replace the other"


def test_json_lines_come_back(desk: Desk) -> None:
    path = desk.export("vet.jsonl")
    rows = [row | {"verdict": "good"} for row in rows_of(path)]
    path.write_text("\n\n".join(map(json.dumps, rows)))
    assert desk.take_in(path)["origins"]["model"]["good"] == 10


def mistaken(path: Path, number: int, **cells: str) -> Path:
    rows = rows_of(path)
    rows[number].update(cells)
    return rewrite(path, rows)


def test_every_mistake_is_told_with_its_line(desk: Desk) -> None:
    path = fill(desk.export(), north="good")
    ids = [row["id"] for row in rows_of(path)]
    name = desk.key["name"]
    mistaken(path, 0, verdict="great")
    mistaken(path, 2, id=f"{name}-999")
    mistaken(path, 3, answer="north 3")
    mistaken(path, 4, id=ids[1], prompt="?")
    mistaken(path, 5, prompt="Question?")
    with pytest.raises(UserError) as caught:
        desk.take_in(path)
    assert caught.value.problem == f"{path}: 5 of 20 rows cannot be taken"
    assert caught.value.cause.splitlines() == [
        f"{path}:2: verdict='great' is none of good, bad, unsure",
        f"{path}:4: id '{name}-999' was not exported",
        f"{path}:5: prompt or answer of {ids[3]} was edited",
        f"{path}:6: id '{ids[1]}' stands at {path}:3 already",
        f"{path}:7: prompt or answer of {ids[5]} was edited",
    ]
    assert "restore id, prompt and answer" in caught.value.remedy
    assert not list((desk.store.root / "vet").glob("*.result.json"))


def test_only_a_few_of_many_mistakes_are_shown(desk: Desk) -> None:
    path = fill(desk.export(), north="fine", south="fine")
    with pytest.raises(UserError, match="20 of 20 rows") as caught:
        desk.take_in(path)
    assert len(caught.value.cause.splitlines()) == 6
    assert caught.value.cause.endswith("and 15 more")


@pytest.mark.parametrize("other", ["v00000000-001", "1", "../../human/card-001", ""])
def test_an_unknown_key_is_told(desk: Desk, other: str) -> None:
    path = fill(desk.export(), north="good")
    rewrite(path, [{**row, "id": other} for row in rows_of(path)])
    with pytest.raises(UserError, match=rf"vet\.csv:2: .*has no key for the id '{other}'(?s:.)*{desk.key['name']}"):
        desk.take_in(path)


def test_what_is_no_filled_in_sample_is_told(desk: Desk, tmp_path: Path) -> None:
    path = desk.export()
    with pytest.raises(UserError, match="no row has a verdict"):
        desk.take_in(path)
    header = tmp_path / "header.csv"
    header.write_text("id,prompt,answer,verdict,comment\n")
    with pytest.raises(UserError, match="holds no rows"):
        desk.take_in(header)
    rewrite(header, [{k: v for k, v in row.items() if k != "verdict"} for row in rows_of(path)])
    with pytest.raises(DataError, match=r"header\.csv:\d: there is no column 'verdict'"):
        desk.take_in(header)
    with pytest.raises(UserError, match="there is no such file"):
        desk.take_in(tmp_path / "nothing.csv")
    with pytest.raises(UserError, match="the name tells the format"):
        desk.take_in(tmp_path / "human")


# ── nasty texts ──────────────────────────────────────────────────────────────────────────────────

NASTY = some.text(
    some.sampled_from("=+-@'\t\r\n\",; a1\u2028\ufeff😀＝\x00") | some.characters(codec="utf-8"), max_size=12
)


@settings(deadline=None)
@given(some.lists(some.tuples(NASTY, NASTY), min_size=2, max_size=6, unique=True), some.sampled_from(["csv", "jsonl"]))
def test_any_text_goes_out_and_comes_back(pairs: list[tuple[str, str]], suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            Conversation(messages(("user", asked), ("assistant", told)), str(n))
            for n, (asked, told) in enumerate(pairs)
        ]
        desk = Desk(Path(folder), rows)
        path = desk.export(f"vet.{suffix}", n=len(pairs), model_dataset=None)
        first = rows_of(path)[0]["id"]
        if suffix == "csv":
            assert not any(
                cell[:1] in set("=+-@\t\r\n＝＋－＠") for row in rows_of(path) for cell in row.values() if cell
            )
            # A spreadsheet that ends lines in its own way edits nothing.
            judged = [row | {"verdict": "good" if row["id"] == first else ""} for row in rows_of(path)]
            ends = [{k: v.replace("\r\n", "\n").replace("\n", "\r\n") for k, v in row.items()} for row in judged]
            assert desk.take_in(rewrite(path, judged))["origins"]["human"]["good"] == 1
            assert desk.take_in(rewrite(path, ends))["origins"]["human"]["good"] == 1
        else:
            text = path.read_text(encoding="utf-8").replace('"verdict": ""', '"verdict": "good"')
            path.write_text(text, encoding="utf-8")
            assert desk.take_in(path)["origins"]["human"]["good"] == len(pairs)


# ── the command line ─────────────────────────────────────────────────────────────────────────────


def test_the_printed_command_imports_what_was_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    desk = Desk(tmp_path / "a b")
    given = [f"store={desk.store.root}", f"dataset=run:{desk.inputs['dataset'].path}", "split=test", "n=6"]
    out = tmp_path / "a b" / "for Ann.csv"
    assert run.door(["stage=vet", *given, f"out={out}"]) == 0
    fill(out, north="good")
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command[:3] == ["python", "-m", "alignment.run"]
    assert run.door(command[3:]) == 0
    assert "100.0%" in capsys.readouterr().out
    assert run.door(["stage=vet", f"store={desk.store.root}"]) == 2
    assert "No dataset was named" in capsys.readouterr().err
