"""Several people's files at once: each vote by its annotator, ratings from 1 to 5, and nothing counted twice."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import pytest
from pairs_support import pair

from alignment.data import annotations, spreadsheet
from alignment.errors import DataError, UserError

PAIRS = [pair("p1"), pair("p2", "Red.", "Blue."), pair("p3", "Up.", "Down.")]


def filled(path: Path, said: Mapping[str, Mapping[str, str]], added: tuple[str, ...] = ()) -> Path:
    """The exported file with these cells, and with columns of the annotators' own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    annotations.export(path, PAIRS, None)
    rows = [row for _, row in spreadsheet.read_rows(path, annotations.COLUMNS)]
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, (*annotations.COLUMNS, *added), restval="")
        writer.writeheader()
        writer.writerows({**row, **said.get(row["id"], {})} for row in rows)
    return path


BETTER = {"preferred": "a", "grade": "better"}


def test_in_files_of_their_own_people_go_by_their_files(tmp_path: Path) -> None:
    ann = filled(tmp_path / "ann.csv", {"p1": BETTER, "p2": BETTER})
    bob = filled(tmp_path / "bob.csv", {"p2": {"preferred": "b", "grade": "slightly", "comment": "so"}})
    found = annotations.gather([ann, bob], PAIRS)
    assert {name: [vote.annotator for vote in votes] for name, votes in found.items()} == {
        "p1": ["ann"],
        "p2": ["ann", "bob"],
    }
    assert [(vote.preferred, vote.grade, vote.comment) for vote in found["p2"]] == [
        ("a", "better", ""),
        ("b", "slightly", "so"),
    ]


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    paths = [filled(tmp_path / who / "round.csv", {"p1": BETTER}) for who in ("ann", "bob")]
    assert [vote.annotator for vote in annotations.gather(paths, PAIRS)["p1"]] == [str(path) for path in paths]


def test_nobody_is_counted_twice_over_several_files(tmp_path: Path) -> None:
    named = {"p1": {**BETTER, "annotator": "ann"}}
    one, two = (filled(tmp_path / name, named, ("annotator",)) for name in ("one.csv", "two.csv"))
    with pytest.raises(DataError, match=r"two\.csv:2: 'p1' is labelled twice by 'ann', in .*one\.csv:2 and here"):
        annotations.gather([one, two], PAIRS)


def test_each_file_must_say_something(tmp_path: Path) -> None:
    one, two = filled(tmp_path / "one.csv", {"p1": BETTER}), filled(tmp_path / "two.csv", {})
    with pytest.raises(UserError, match=r"two\.csv: no row is labelled"):
        annotations.gather([one, two], PAIRS)


def test_ratings_stand_beside_a_preference_or_give_it(tmp_path: Path) -> None:
    said = {
        "p1": {**BETTER, "a_rating": "2", "b_rating": "3"},
        "p2": {"a_rating": "1", "b_rating": " 5 "},
        "p3": {"a_rating": "4", "b_rating": "4"},
    }
    path = filled(tmp_path / "ann.csv", said, annotations.RATINGS)
    found = {name: vote for name, (vote,) in annotations.gather([path], PAIRS).items()}
    told = {name: (vote.preferred, vote.grade, vote.a_rating, vote.b_rating) for name, vote in found.items()}
    assert told == {"p1": ("a", "better", 2, 3), "p2": ("b", None, 1, 5), "p3": (None, None, 4, 4)}
    labels = annotations.read(path, PAIRS)
    assert list(labels) == ["p1"], "comparisons to train on need a grade"
    assert annotations.preference([found["p2"]]) == ("b", None, 1)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"a_rating": "6", "b_rating": "3"}, "a_rating='6'"),
        ({"a_rating": "3.5", "b_rating": "3"}, "a_rating='3.5'"),
        ({"a_rating": "0", "b_rating": "3"}, "a_rating='0'"),
        ({"a_rating": "3"}, "a label without a grade"),
    ],
)
def test_what_is_no_rating_is_refused_with_its_line(tmp_path: Path, said: dict[str, str], told: str) -> None:
    path = filled(tmp_path / "ann.csv", {"p2": said}, annotations.RATINGS)
    with pytest.raises(DataError, match=told) as refused:
        annotations.gather([path], PAIRS)
    assert "ann.csv:3" in str(refused.value)
