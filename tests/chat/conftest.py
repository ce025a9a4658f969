"""Tokenizers of every sort the room meets, and the conversations of the shared data."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_samples import TEXT
from sentencepiece import sentencepiece_model_pb2

from alignment.chat.render import check_turns
from alignment.chat.tokenizers import Tokenizer, load
from alignment.chat.train import train
from alignment.chat.types import Message, Messages, messages
from alignment.errors import UserError


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary of ours, with Gemma's ids."""
    return train(TEXT, 520, tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="session")
def tokenizer(model_file: Path) -> Tokenizer:
    return load(model_file)


@pytest.fixture(scope="session")
def gemma_like_file(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As in Gemma's own vocabulary, runs of newlines and of spaces, and HTML tags, are pieces of their own."""
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model_file.read_bytes())
    runs = ["\n" * n for n in range(2, 6)] + ["\u2581" * n for n in range(2, 6)] + ["<table>", "</b>"]
    for piece in runs:
        proto.pieces.add(piece=piece, score=0.0, type=4)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    file = tmp_path_factory.mktemp("gemma_like") / "tokenizer.model"
    file.write_bytes(proto.SerializeToString())
    return file


@pytest.fixture(scope="session")
def gemma_like(gemma_like_file: Path) -> Tokenizer:
    return load(gemma_like_file)


@pytest.fixture(params=["tokenizer", "gemma_like"], scope="session")
def lossless(request: pytest.FixtureRequest) -> Tokenizer:
    """Both vocabularies that keep text as it is."""
    found: Tokenizer = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def text_tokenizer(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """4,000 pieces learned from Wikipedia and two books."""
    lines = (shared_data / "wikitext2/wikitext-2_valid.txt").read_text(encoding="utf-8").split("\n")
    for book in sorted((shared_data / "gutenberg").glob("The-*.txt"))[:2]:
        lines += book.read_text(encoding="utf-8").split("\n")
    return load(train(lines, 4000, tmp_path_factory.mktemp("text")))


@pytest.fixture(scope="session")
def texts(shared_data: Path, conversations: dict[str, list[Messages]]) -> list[str]:
    """Raw text of many kinds: with CRLF, ``<unk>``, code, and some thirty languages."""
    found = (shared_data / "wikitext2/wikitext-2_valid.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    for book in sorted((shared_data / "gutenberg").glob("*.txt")):
        with book.open(encoding="utf-8", newline="") as file:
            whole = file.read()
        found += [whole[start : start + 2000] for start in range(0, 80_000, 2000)]
    for name in ("qlora", "oasst"):
        found += [turn.content for turns in conversations[name] for turn in turns]
    return [text for text in found if text]


@pytest.fixture(scope="session")
def conversations(shared_data: Path) -> dict[str, list[Messages]]:
    """Every conversation of the shared data that a model can learn from, by source."""
    return {
        "qlora": _usable(_qlora(shared_data)),
        "octopack": _usable(_octopack(shared_data)),
        "oasst": _usable(_oasst(shared_data)),
        "mt_bench_101": _usable(_mt_bench(shared_data)),
        "hh_rlhf": _usable(_hh_rlhf(shared_data)),
        "persona_chat": _usable(_persona_chat(shared_data)),
        "gpteacher": _usable(_gpteacher(shared_data)),
    }


def _usable(rows: Iterator[Messages]) -> list[Messages]:
    kept = []
    for turns in rows:
        try:
            check_turns(turns)
        except UserError:
            continue
        kept.append(turns)
    return kept


def _lines(file: Path) -> Iterator[dict]:
    return (json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line)


def _marked(text: str, user: str, assistant: str) -> Messages:
    """``<user>…<assistant>…`` text as turns, contents untouched."""
    parts = re.split(f"({re.escape(user)}|{re.escape(assistant)})", text)[1:]
    roles = {user: "user", assistant: "assistant"}
    return tuple(Message(roles[mark], said) for mark, said in zip(parts[::2], parts[1::2], strict=True))  # type: ignore[arg-type]


def _qlora(data: Path) -> Iterator[Messages]:
    for row in _lines(data / "qlora_oasst_val/oa_questions.jsonl"):
        yield _marked(row["input"] + row["output"], "### Human:", "### Assistant:")


def _octopack(data: Path) -> Iterator[Messages]:
    for row in _lines(data / "octopack_oasst/oasstcommitpackftmanual.jsonl"):
        yield messages(("user", row["prompt"]), ("assistant", row["completion"]))


def _oasst(data: Path) -> Iterator[Messages]:
    def paths(node: dict, before: Messages) -> Iterator[Messages]:
        role = "user" if node["role"] == "prompter" else "assistant"
        turns = (*before, Message(role, node["text"]))  # type: ignore[arg-type]
        if role == "assistant":
            yield turns
        for reply in node["replies"]:
            yield from paths(reply, turns)

    for tree in _lines(data / "oasst_en100/en_100_tree.jsonl"):
        yield from paths(tree["prompt"], ())


def _mt_bench(data: Path) -> Iterator[Messages]:
    for row in _lines(data / "mt_bench_101/mtbench101.jsonl"):
        pairs = [(("user", turn["user"]), ("assistant", turn["bot"])) for turn in row["history"]]
        yield messages(*(turn for pair in pairs for turn in pair))  # type: ignore[misc]


def _hh_rlhf(data: Path) -> Iterator[Messages]:
    with gzip.open(data / "hh_rlhf/harmless-base_test.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            for side in ("chosen", "rejected"):
                yield _marked(row[side], "\n\nHuman: ", "\n\nAssistant: ")


def _persona_chat(data: Path) -> Iterator[Messages]:
    with (data / "synthetic_persona_chat/Synthetic-Persona-Chat_valid.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            said = re.findall(r"^User ([12]): ?(.*)$", row["Best Generated Conversation"], flags=re.M)
            turns = [Message("user" if who == "1" else "assistant", text) for who, text in said]
            even = turns[: len(turns) // 2 * 2]
            yield (Message("system", row["user 2 personas"]), *even)


def _gpteacher(data: Path) -> Iterator[Messages]:
    file = data / "gpteacher/roleplay-simple-deduped-roleplay-instruct.json"
    for row in json.loads(file.read_text(encoding="utf-8")):
        system = [("system", row["instruction"])] if row["input"] else []
        user = row["input"] or row["instruction"]
        yield messages(*system, ("user", user), ("assistant", row["response"]))  # type: ignore[arg-type]
