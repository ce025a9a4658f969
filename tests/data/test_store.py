from __future__ import annotations

from pathlib import Path

import pytest

from alignment.chat.types import Comparison, Conversation, Prompt, Text, messages
from alignment.data import store
from alignment.data.build import build
from alignment.data.ledger import FATES
from alignment.data.rows import Kind, Row
from alignment.errors import DataError, UserError

from .examples import parse, source

TURNS = messages(("user", "Hi"), ("assistant", "Hello"))
ROWS: dict[Kind, Row] = {
    "conversations": Conversation(TURNS, "c", tags=("x", "y"), train="last"),
    "prompts": Prompt(TURNS[:1], "p", category="illicit", attack=None, reference="42"),
    "comparisons": Comparison(TURNS[:1], "good", "bad", "slightly", "me", "k", chosen_safe=True, rejected_safe=None),
    "text": Text("A document.\n", "t"),
}


@pytest.mark.parametrize("kind", ROWS)
def test_rows_come_back_as_they_were(tmp_path: Path, kind: Kind) -> None:
    with store.Writer(tmp_path, kind) as writer:
        for _ in range(store.ROWS_A_GROUP + 1):
            writer.add("valid", ROWS[kind])
    fates = dict.fromkeys(FATES, 0)
    store.write_card(tmp_path, store.Card(kind, writer.rows, fates, 0.0, {}, (), "a test"))
    assert store.read(tmp_path, "valid") == [ROWS[kind]] * (store.ROWS_A_GROUP + 1)
    assert store.card(tmp_path)["rows"] == {"valid": store.ROWS_A_GROUP + 1}


def test_a_split_that_is_not_there_says_which_are(tmp_path: Path, write) -> None:
    write("s.jsonl", {"q": "1?", "a": "2"})
    build(parse(source()), tmp_path / "out", base=tmp_path)
    with pytest.raises(UserError, match=r"no split 'test'\nIt has train \(1 rows\)"):
        store.read(tmp_path / "out", "test")
    with pytest.raises(UserError, match="is not a dataset"):
        store.read(tmp_path, "train")


def test_a_damaged_table_is_told(tmp_path: Path, write) -> None:
    write("s.jsonl", {"q": "1?", "a": "2"})
    build(parse(source()), tmp_path / "out", base=tmp_path)
    table = tmp_path / "out" / "train.parquet"
    table.write_bytes(table.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"train\.parquet"):
        store.read(tmp_path / "out", "train")


def test_the_card_says_what_the_dataset_is(tmp_path: Path, write) -> None:
    write("s.jsonl", {"q": "1?", "a": "2"}, {"q": "2?", "a": ""})
    recipe = parse(source())
    build(recipe, tmp_path / "out", base=tmp_path)
    card = store.card(tmp_path / "out")
    assert card["kind"] == "conversations"
    assert card["rows"] == {"train": 1}
    assert card["recipe_digest"] == recipe.digest
    assert card["recipe"] == recipe.identity()
    assert card["licences"] == ["MIT"]
    assert card["sources"]["s"] == {
        "licence": "MIT",
        "read": 2,
        "rows": 1,
        "fates": {"kept": 1, "changed": 0, "flagged": 0, "dropped": 1, "not_drawn": 0},
        "reasons": {"empty answer": 1},
        "flags": {},
        "changes": {},
        "duplicates": {},
    }


def test_an_interrupted_build_leaves_no_table(tmp_path: Path) -> None:
    writer = store.Writer(tmp_path, "text")

    def interrupted() -> None:
        with writer:
            writer.add("train", Text("a", "1"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
