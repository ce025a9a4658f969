"""What stage=teach would accept and not use, of rows as they are and of drawn ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import drawing
import given
import pytest
from given import CHATS, GUIDES, TEXTS, K, dataset, read, settings, turns

from alignment.artifacts import Artifact
from alignment.chat.types import Prompt
from alignment.errors import UserError
from alignment.stages import teach

DRAWING = {"samples": 1, "temperature": 0.5, "top_p": 1.0, "max_new_tokens": 64, "seed": 0}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no data": ("given", {"data": None}, "data=null: answers=given needs it"),
    "prompts besides": ("given", {"prompts": "step:p"}, r"prompts is given, and answers=given has no use for it"),
    "decoding": ("given", {"decoding": DRAWING}, r"decoding is given, (.|\n)*decoding=null"),
    "unfinished": ("given", {"unfinished": "drop"}, r"unfinished is given, (.|\n)*unfinished=null"),
    "nothing to store": ("given", {"top_k": 0}, "top_k=0: of rows that stay as they are"),
    "a block of conversations": ("given", {"block": 32}, r"block=32: the rows are conversations"),
    "no block of text": ("text", {"block": None}, r"block=null: the rows are text(.|\n)*teach/text"),
    "a block beyond the context": ("text", {"block": 97}, "block=97 is more than the teacher's context, 96"),
    "guided text": ("text", {"block": 16, "guided": GUIDES}, r"guided: text has no user"),
    "a tokenizer for a model here": ("given", {"tokenizer": "dir:t"}, r"tokenizer=dir:t: (.|\n)*tokenizer=null"),
    "a schema for a model here": ("given", {"chat_schema": "gemma1"}, r"chat_schema=gemma1: (.|\n)*chat_schema=null"),
    "too many": ("given", {"top_k": 448}, "top_k=448: the teacher has no more than 448 pieces"),
    "twice": ("given", {"splits": ["train", "train"]}, "names a split twice"),
    "no such split": ("given", {"splits": ["test"]}, "has no split 'test'"),
}
DRAWN: dict[str, tuple[dict[str, Any], str]] = {
    "data": ({"data": "step:d"}, r"data is given, and answers=draw has no use for it"),
    "block": ({"block": 32}, r"block is given, and answers=draw"),
    "no prompts": ({"prompts": None}, "prompts=null: answers=draw needs it"),
    "no decoding": ({"decoding": None}, "decoding=null: answers=draw needs it"),
    "draws of nothing": ({"top_k": 0, "tail_draws": 2}, r"tail_draws=2: with top_k=0 nothing is stored"),
    "a temperature of nothing": ({"top_k": 0, "top_k_temperature": 2.0}, r"top_k_temperature=2\.0: with top_k=0"),
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return given.made(tmp_path_factory.mktemp("teacher"))


@pytest.mark.parametrize("harm", REFUSED)
def test_what_would_be_accepted_and_not_used_is_refused(teacher: Artifact, tmp_path: Path, harm: str) -> None:
    preset, changes, told = REFUSED[harm]
    text = preset == "text"
    data = dataset(tmp_path, "text", *TEXTS) if text else dataset(tmp_path, "conversations", *CHATS)
    with pytest.raises(UserError, match=told):
        teach.run(settings(preset, **changes), {"data": data, "teacher": teacher}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("harm", DRAWN)
def test_and_where_answers_are_drawn(teacher: Artifact, tmp_path: Path, harm: str) -> None:
    changes, told = DRAWN[harm]
    data = drawing.dataset(tmp_path / "p", "prompts", {"train": [Prompt(turns("Q?"), "p")]})
    said = teach.Settings.parse(drawing.values("teach", **{"splits": ["train"], "top_k": K, **changes}))
    with pytest.raises(UserError, match=told):
        teach.run(said, {"prompts": data, "teacher": teacher}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_prompts_have_nothing_to_read(teacher: Artifact, tmp_path: Path) -> None:
    data = drawing.dataset(tmp_path / "p", "prompts", {"train": [Prompt(turns("Q?"), "p")]})
    with pytest.raises(UserError, match=r"holds prompts(.|\n)*kind: conversations or text"):
        read(teacher, data, tmp_path / "out")
