"""People's labels: blinded on the way out, and on the way back no line is misread."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pairs_support import pair

from alignment.chat.types import Message
from alignment.data import annotations, grades
from alignment.data.pairs import Pair
from alignment.errors import DataError, UserError

PAIRS = [
    pair("p1", "=Yes, Ada does.", "-No.\nNot at all."),
    pair("p2", "Red.", "Blue."),
    pair("p3", "", "Blue.", why="empty answer"),
]
Cells = dict[str, str]
Fill = Callable[..., Path]


@pytest.fixture(params=[".csv", ".jsonl"])
def fill(request: pytest.FixtureRequest, tmp_path: Path) -> Fill:
    """Export ``PAIRS`` and fill the file in: ``fill(p1={"preferred": "a"})``; further rows are added as they are."""

    def filled(*added: Cells, **said: Cells) -> Path:
        path = tmp_path / f"pairs{request.param}"
        annotations.export(path, PAIRS, None)
        rows = load(path)
        for row in rows:
            row.update(said.get(row["id"], {}))
        for more in added:
            rows.append({**next(row for row in rows if row["id"] == more["id"]), **more})
        save(path, rows)
        return path

    return filled


def load(path: Path) -> list[Cells]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file)) if path.suffix == ".csv" else [json.loads(line) for line in file]


def save(path: Path, rows: list[Cells]) -> None:
    """As a program of the annotators' would: its own order of columns, line ends and quoting."""
    names = list(reversed(list(dict.fromkeys(name for row in rows for name in row))))
    with open(path, "w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
            return
        writer = csv.DictWriter(file, names, quoting=csv.QUOTE_ALL, restval="")
        writer.writeheader()
        writer.writerows(rows)


def test_what_goes_out_names_no_model_and_runs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    assert annotations.export(path, PAIRS, None) == 2, "an empty answer is nothing to judge"
    told = path.read_text()
    assert "old" not in told
    assert "new" not in told
    first = next(row for row in load(path) if row["id"] == "p1")
    assert tuple(first) == annotations.COLUMNS
    assert first["answer_a"] == "'=Yes, Ada does."
    assert first["preferred"] == first["grade"] == first["a_safe"] == ""


def test_a_conversation_is_shown_with_its_speakers() -> None:
    turns = (
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "Hello"),
        Message("user", "Who?"),
    )
    assert annotations.readable(turns) == "System: Be brief.\n\nUser: Hi\n\nAssistant: Hello\n\nUser: Who?"
    assert annotations.readable(turns[1:2]) == "Hi"


def test_a_count_takes_the_same_pairs_whatever_else_is_there(tmp_path: Path) -> None:
    many = [pair(f"p{n}") for n in range(40)]
    taken = {}
    for name, some in (("all", many), ("reversed", many[::-1])):
        path = tmp_path / f"{name}.jsonl"
        assert annotations.export(path, some, 10) == 10
        taken[name] = [row["id"] for row in load(path)]
    assert taken["all"] == taken["reversed"]
    assert {*taken["all"]} != {f"p{n}" for n in range(10)}, "a sample, not the beginning"


def test_rows_are_shuffled_by_a_seed_and_the_same_each_time(tmp_path: Path) -> None:
    many = [pair(f"p{n}") for n in range(40)]

    def rows(seed: int, some: list[Pair]) -> list[str]:
        path = tmp_path / "pairs.jsonl"
        annotations.export(path, some, None, seed)
        return [row["id"] for row in load(path)]

    first = rows(0, many)
    assert first == rows(0, many[::-1]) != rows(1, many)
    assert sorted(first) == sorted(rows(1, many)) == sorted(one.id for one in many)
    assert sum(row == one.id for row, one in zip(first, many, strict=True)) < 5, "one stays in its place by chance"


def test_the_order_of_the_rows_changes_no_label(fill: Fill) -> None:
    path = fill(p1={"preferred": "b", "grade": "slightly"}, p2={"preferred": "a", "grade": "better"})
    wanted = annotations.read(path, PAIRS)
    save(path, load(path)[::-1])
    assert annotations.read(path, PAIRS) == wanted
    assert {*wanted} == {"p1", "p2"}


def test_labels_come_back(fill: Fill) -> None:
    path = fill(p1={"preferred": " B ", "grade": "Slightly", "a_safe": "no", "b_safe": "YES", "comment": "hm"})
    assert annotations.read(path, PAIRS) == {"p1": annotations.Label("b", "slightly", False, True, 1, 1, "hm")}


def test_no_preference_is_a_label(fill: Fill) -> None:
    label = annotations.read(fill(p2={"grade": "negligibly"}), PAIRS)["p2"]
    assert (label.preferred, label.grade, label.a_safe) == (None, "negligibly", None)


def test_line_ends_and_outer_space_are_not_an_edit(fill: Fill) -> None:
    good = {"preferred": "a", "grade": "better"}
    path = fill(p1={**good, "answer_b": "-No.\r\nNot at all. "})
    assert annotations.read(path, PAIRS)["p1"].preferred == "a"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"preferred": "c", "grade": "better"}, r"preferred='c'"),
        ({"preferred": "a", "grade": "much better"}, r"grade='much better'"),
        ({"preferred": "a", "grade": "better", "b_safe": "maybe"}, r"b_safe='maybe'"),
        ({"preferred": "a"}, "a label without a grade"),
        ({"a_safe": "yes"}, "a label without a grade"),
        ({"grade": "better"}, "'better' without saying which"),
        ({"preferred": "a", "grade": "better", "answer_a": "Green."}, "are not those that were exported"),
        ({"preferred": "a", "grade": "better", "prompt": "Other?"}, "are not those that were exported"),
        ({"preferred": "a", "grade": "better", "id": "p9"}, "are not those that were exported"),
    ],
)
def test_what_is_no_label_is_refused_with_its_line(fill: Fill, said: Cells, told: str) -> None:
    path = fill(p2=said)
    line = 2 if path.suffix == ".jsonl" else 4  # the header, and p1 with its answer of two lines
    with pytest.raises(DataError, match=rf"pairs\.\w+:{line}: .*{told}"):
        annotations.read(path, PAIRS)


def test_a_pair_that_is_not_there_is_refused(fill: Fill) -> None:
    path = fill(p2={"preferred": "a", "grade": "better"})
    with pytest.raises(DataError, match="there is no pair 'p2'"):
        annotations.read(path, PAIRS[:1])


def test_other_answers_to_the_same_prompts_are_refused(fill: Fill) -> None:
    path = fill(p2={"preferred": "a", "grade": "better"})
    with pytest.raises(DataError, match="the answers of 'p2' are not those of these pairs"):
        annotations.read(path, [pair("p2", "Blue.", "Red.")])


def test_a_file_without_a_label_is_refused(fill: Fill) -> None:
    with pytest.raises(UserError, match="no row is labelled"):
        annotations.read(fill(p1={"comment": "later"}), PAIRS)


def test_one_annotator_labels_a_pair_once(fill: Fill) -> None:
    good = {"id": "p2", "preferred": "a", "grade": "better"}
    with pytest.raises(DataError, match="'p2' is labelled twice, in line"):
        annotations.read(fill(good, p2=good), PAIRS)
    with pytest.raises(DataError, match="'p2' is labelled twice by 'x'"):
        annotations.read(fill({**good, "annotator": "x"}, p2={**good, "annotator": "x"}), PAIRS)


def vote(who: str, preferred: str, grade: str, a_safe: str = "", comment: str = "") -> Cells:
    return {"id": "p2", "annotator": who, "preferred": preferred, "grade": grade, "a_safe": a_safe, "comment": comment}


def test_several_annotators_are_joined_by_majority(fill: Fill) -> None:
    path = fill(
        vote("y", "a", "slightly", "no", "ok"),
        vote("z", "b", "negligibly", "yes", "no!"),
        vote("w", "a", "better", "no"),
        p2=vote("x", "a", "significantly", "yes"),
    )
    # The a's graded significantly, slightly, better: the middle is better. Safe: two and two.
    assert annotations.read(path, PAIRS)["p2"] == annotations.Label("a", "better", None, None, 4, 3, "ok; no!")


def test_a_shared_first_place_is_no_preference(fill: Fill) -> None:
    path = fill(vote("y", "b", "better", "no"), p2=vote("x", "a", "significantly", "no"))
    assert annotations.read(path, PAIRS)["p2"] == annotations.Label(None, "negligibly", False, None, 2, 1, "")


def test_grades_of_gaps_and_of_votes() -> None:
    bounds = grades.Bounds.parse({"significantly": 0.6, "better": 0.35, "slightly": 0.15})
    gaps = {
        0.0: "negligibly",
        0.149: "negligibly",
        0.15: "slightly",
        0.35: "better",
        0.599: "better",
        0.6: "significantly",
    }
    assert {gap: grades.of_gap(gap, bounds) for gap in gaps} == gaps
    assert grades.middle(["significantly", "negligibly"]) == "negligibly", "of two middle ones the weaker"
    assert grades.majority([None, None, "a"]) == (None, 2)
    assert grades.majority(["a", "b"]) == (None, 1)
    assert grades.majority([]) == (None, 0)
    with pytest.raises(UserError, match="do not fall"):
        grades.Bounds.parse({"significantly": 0.3, "better": 0.35, "slightly": 0.15})


def test_a_pair_keeps_its_digest_apart_from_who_wrote_it(tmp_path: Path) -> None:
    def digest(one: Pair) -> str:
        path = tmp_path / "one.jsonl"
        annotations.export(path, [one], None)
        return load(path)[0]["digest"]

    assert digest(pair("p1", model_a="other", split="valid")) == digest(pair("p1"))
    assert digest(pair("p1", "No.", "Yes.")) != digest(pair("p1"))
    assert digest(pair("p1"))[0] == "x", "no spreadsheet takes it for a number"
