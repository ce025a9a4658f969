"""Text cut into rows of tokens: nothing is lost, and every row begins with <bos>."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignment.chat import tokenizers
from alignment.chat.tokenizers import Tokenizer
from alignment.chat.train import train
from alignment.chat.types import Conversation, Text, messages
from alignment.data import store
from alignment.data.pieces import pieces
from alignment.errors import UserError

TEXTS = [Text("the cat sat on the mat and looked at the moon", "a"), Text("", "b"), Text("the river", "c")]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizers.load(train([row.text for row in TEXTS] * 20, 390, tmp_path_factory.mktemp("tokenizer")))


def dataset(folder: Path, kind: str, rows: list[Text] | list[Conversation]) -> Path:
    with store.Writer(folder, kind) as writer:  # type: ignore[arg-type]
        for row in rows:
            writer.add("train", row)
    store.write_card(folder, store.Card(kind, writer.rows, {}, 0.0, {}, (), "test"))  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize("block", [2, 4, 7, 500])
def test_documents_are_cut_and_lose_nothing(tmp_path: Path, tokenizer: Tokenizer, block: int) -> None:
    found = list(pieces(dataset(tmp_path, "text", TEXTS), "train", tokenizer, block))
    assert all(len(piece.ids) <= block for piece in found)
    assert all(piece.ids[0] == tokenizer.bos_id for piece in found)
    assert all(piece.mask == [False] + [True] * (len(piece.ids) - 1) for piece in found)
    for row in TEXTS:
        wanted = [*tokenizer.encode(row.text), tokenizer.eos_id]
        own = [piece for piece in found if piece.name.startswith(f"{row.id}@")]
        assert [index for piece in own for index in piece.ids[1:]] == wanted
        # A name tells where a piece begins in its document.
        assert [int(piece.name.split("@")[1]) for piece in own] == list(range(0, len(wanted), block - 1))
    assert len({piece.name for piece in found}) == len(found)


def test_no_more_than_are_asked_for(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = dataset(tmp_path, "text", TEXTS)
    whole = list(pieces(folder, "train", tokenizer, 4))
    assert len(whole) > 5
    for most in (0, 1, 5, len(whole), len(whole) + 1):
        assert list(pieces(folder, "train", tokenizer, 4, most)) == whole[:most]


def test_conversations_are_not_cut(tmp_path: Path, tokenizer: Tokenizer) -> None:
    row = Conversation(messages(("user", "the cat"), ("assistant", "the mat")), "a")
    with pytest.raises(UserError, match=r"holds conversations(.|\n)*sft takes conversations"):
        list(pieces(dataset(tmp_path, "conversations", [row]), "train", tokenizer, 8))
