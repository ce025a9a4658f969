"""The real files as rows, read in the plainest way, so that these tests stand on the filters alone."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from alignment.chat.types import Comparison, Conversation, Grade, Message, Role, Text
from alignment.data.rows import Row

BETTER: Grade = get_args(Grade)[1]


def lines(path: Path) -> Iterator[Any]:
    data = path.read_bytes()
    yield from map(json.loads, (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines())


def turns(text: str, user: str, assistant: str) -> tuple[Message, ...]:
    """A text with marked turns as messages."""
    roles: dict[str, Role] = {user: "user", assistant: "assistant"}
    _, *parts = re.split(f"({re.escape(user)}|{re.escape(assistant)})", text)
    return tuple(Message(roles[mark], content.strip()) for mark, content in zip(parts[::2], parts[1::2], strict=True))


def pair(question: str, answer: str, name: str) -> Conversation:
    return Conversation((Message("user", question), Message("assistant", answer)), name)


def hh_rlhf(folder: Path) -> Iterator[Comparison]:
    for number, raw in enumerate(lines(folder / "hh_rlhf/harmless-base_test.jsonl.gz")):
        chosen, rejected = (turns(raw[side], "\n\nHuman:", "\n\nAssistant:") for side in ("chosen", "rejected"))
        name = f"hh_rlhf:{number}"
        yield Comparison(chosen[:-1], chosen[-1].content, rejected[-1].content, BETTER, "hh_rlhf", name)


def tulu(folder: Path) -> Iterator[Comparison]:
    for number, raw in enumerate(lines(folder / "tulu_human_eval/annotations_graded.jsonl")):
        asked = (Message("user", raw["prompt"]),)
        yield Comparison(asked, raw["completion_a"], raw["completion_b"], BETTER, "tulu", f"tulu:{number}")


def oasst(folder: Path) -> Iterator[Conversation]:
    """Every path from a tree's root to an answer without a later turn."""

    def paths(node: Any, before: tuple[Message, ...]) -> Iterator[tuple[Message, ...]]:
        here = (*before, Message("user" if node["role"] == "prompter" else "assistant", node["text"]))
        if not node["replies"]:
            yield here
        for reply in node["replies"]:
            yield from paths(reply, here)

    for number, raw in enumerate(lines(folder / "oasst_en100/en_100_tree.jsonl")):
        for part, path in enumerate(paths(raw["prompt"], ())):
            yield Conversation(path, f"oasst:{number}#{part}")


def qlora(folder: Path) -> Iterator[Conversation]:
    for number, raw in enumerate(lines(folder / "qlora_oasst_val/oa_questions.jsonl")):
        asked = turns(raw["input"], "### Human:", "### Assistant:")[:-1]
        yield Conversation((*asked, Message("assistant", raw["output"])), f"qlora:{number}")


def octopack(folder: Path) -> Iterator[Conversation]:
    for number, raw in enumerate(lines(folder / "octopack_oasst/oasstcommitpackftmanual.jsonl")):
        yield pair(raw["prompt"], raw["completion"], f"octopack:{number}")


def gpteacher(folder: Path) -> Iterator[Conversation]:
    rows = json.loads((folder / "gpteacher/roleplay-simple-deduped-roleplay-instruct.json").read_text("utf-8"))
    for number, raw in enumerate(rows):
        yield pair(f"{raw['instruction']}\n{raw['input']}".strip(), raw["response"], f"gpteacher:{number}")


def persona_chat(folder: Path) -> Iterator[Conversation]:
    with (folder / "synthetic_persona_chat/Synthetic-Persona-Chat_valid.csv").open(encoding="utf-8") as file:
        for number, raw in enumerate(csv.DictReader(file)):
            said = raw["Best Generated Conversation"].split("\n")
            roles: tuple[Role, Role] = ("user", "assistant")
            spoken = (re.sub(r"^User \d: ", "", line) for line in said)
            messages = tuple(Message(roles[turn % 2], content) for turn, content in enumerate(spoken))
            yield Conversation(messages, f"persona_chat:{number}")


def mt_bench_101(folder: Path) -> Iterator[Conversation]:
    roles: dict[Role, str] = {"user": "user", "assistant": "bot"}
    for number, raw in enumerate(lines(folder / "mt_bench_101/mtbench101.jsonl")):
        messages = tuple(Message(role, turn[key]) for turn in raw["history"] for role, key in roles.items())
        yield Conversation(messages, f"mt_bench_101:{number}")


def gsm8k(folder: Path) -> Iterator[Conversation]:
    for number, raw in enumerate(lines(folder / "gsm8k/train.jsonl")):
        yield pair(raw["question"], raw["answer"], f"gsm8k:{number}")


def wikitext(folder: Path) -> Iterator[Text]:
    """Paragraphs of WikiText, without its headings."""
    for number, line in enumerate((folder / "wikitext2/wikitext-2_valid.txt").read_text("utf-8").split("\n")):
        if line.strip() and not line.startswith(" ="):
            yield Text(line.strip(), f"wikitext:{number}")


CONVERSATIONS = {
    "hh_rlhf": hh_rlhf,
    "tulu": tulu,
    "oasst": oasst,
    "qlora": qlora,
    "octopack": octopack,
    "gpteacher": gpteacher,
    "persona_chat": persona_chat,
    "mt_bench_101": mt_bench_101,
}
"""What people and models said to each other."""


def conversations(folder: Path) -> Iterator[Row]:
    """The rows of all of them."""
    for read in CONVERSATIONS.values():
        yield from read(folder)
