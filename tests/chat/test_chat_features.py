from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset, load_dataset

from alignment.chat.features import KINDS, Item, features, from_row, to_row
from alignment.chat.types import Comparison, Conversation, Prompt, Text, messages
from alignment.errors import UserError

TURNS = messages(("user", "Hi\n"), ("assistant", " é"), ("user", ""))

ITEMS: dict[str, list[Item]] = {
    "conversations": [
        Conversation(messages(("user", "a"), ("assistant", "b")), "1", tags=("x", "y"), train="last"),
        Conversation(messages(("system", "s"), ("user", "a"), ("assistant", "b")), "2"),
    ],
    "prompts": [
        Prompt(TURNS, "1", ("unsafe",), category="illicit", attack="role play", reference="42"),
        Prompt(TURNS[:1], "2"),
    ],
    "comparisons": [
        Comparison(TURNS, "better", "worse", "slightly", "hh", "1", chosen_safe=True, rejected_safe=False),
        Comparison(TURNS, "", "worse", None, "hh", "2"),
    ],
    "text": [Text("one\ntwo", "1"), Text("", "2")],
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_items_survive_the_disk(kind: str, tmp_path: Path) -> None:
    dataset = Dataset.from_list([to_row(item) for item in ITEMS[kind]], features=features(kind))
    dataset.to_parquet(tmp_path / "rows.parquet")
    again = load_dataset("parquet", data_files=str(tmp_path / "rows.parquet"), split="train", cache_dir=str(tmp_path))
    assert [from_row(kind, row) for row in again] == ITEMS[kind]
    assert again.features == features(kind)


def test_columns_come_in_the_types_order() -> None:
    assert list(features("conversations")) == ["messages", "id", "tags", "train"]
    assert list(features("prompts")) == ["messages", "id", "tags", "category", "attack", "reference"]
    assert list(features("comparisons")) == [
        *("prompt", "chosen", "rejected", "grade", "source", "id", "chosen_safe", "rejected_safe")
    ]
    assert list(features("text")) == ["text", "id"]
    for kind, items in ITEMS.items():
        assert list(to_row(items[0])) == list(features(kind))


def test_a_row_is_plain() -> None:
    row = to_row(ITEMS["prompts"][0])
    assert row["tags"] == ["unsafe"]
    assert row["messages"][0] == {"role": "user", "content": "Hi\n"}


def test_a_row_of_another_kind_is_told() -> None:
    row = to_row(ITEMS["text"][0])
    with pytest.raises(UserError, match=r"missing: messages, tags, train; unknown: text"):
        from_row("conversations", row)
    with pytest.raises(UserError, match="no kind of dataset 'conversation'\nDid you mean 'conversations'"):
        features("conversation")
