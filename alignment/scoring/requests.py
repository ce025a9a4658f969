"""What a request to the service says: its JSON as dialogues, or one sentence on what is wrong with it."""

from __future__ import annotations

import json
import re
from typing import Any

from alignment.chat import spelled
from alignment.chat.render import check_turns
from alignment.chat.tokenizers import Tokenizer
from alignment.chat.types import Message, Messages
from alignment.errors import UserError

KEY = re.compile("[0-9a-f]{16}")
"""A prompt key (``chat.types.prompt_key``)."""


class RefusedError(Exception):
    """A request that is turned down, with its HTTP status and a sentence for whoever sent it."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


def object_of(body: bytes) -> dict[str, Any]:
    """The JSON object in a body."""
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        raise RefusedError(400, "the body is not JSON") from None
    if not isinstance(told, dict):
        raise RefusedError(400, "the body is not a JSON object")
    return told


def dialogues_of(told: dict[str, Any]) -> list[Messages]:
    """``{"dialogues": [[{"role", "content"}, …], …]}``: each ends with the assistant, who may have said nothing."""
    rows = _only_list(told, "dialogues")
    return [_dialogue(row, f"dialogues[{place}]") for place, row in enumerate(rows)]


def keys_of(told: dict[str, Any]) -> list[str]:
    """``{"keys": [prompt key, …]}``, each of 16 hexadecimal digits."""
    keys = _only_list(told, "keys")
    for place, key in enumerate(keys):
        if not isinstance(key, str) or not KEY.fullmatch(key):
            raise RefusedError(400, f"keys[{place}] is not a prompt key, 16 hexadecimal digits")
    return keys


def dialogues_of_texts(told: dict[str, Any], tokenizer: Tokenizer) -> list[Messages]:
    """OpenRLHF's ``{"query": [text], "prompts": [text], …}``; a query is its prompt and the answer behind it.

    What else it sends (``labels``) says nothing to a reward model.
    """
    queries = _texts(told, "query")
    prompts = _texts(told, "prompts") if told.get("prompts") is not None else [""] * len(queries)
    if len(prompts) != len(queries):
        raise RefusedError(400, f"there are {len(queries)} queries and {len(prompts)} prompts")
    return [
        _checked(_read(query, prompt, tokenizer, place), f"query[{place}]")
        for place, (query, prompt) in enumerate(zip(queries, prompts, strict=True))
    ]


def _read(query: str, prompt: str, tokenizer: Tokenizer, place: int) -> Messages:
    try:
        return spelled.read(query, tokenizer, prompt)
    except UserError as error:
        raise RefusedError(400, f"query[{place}]: {error.problem}: {error.cause}") from None


def _dialogue(row: Any, where: str) -> Messages:
    if not isinstance(row, list) or not row:
        raise RefusedError(400, f"{where} is not a list of turns")
    return _checked(tuple(_turn(turn, f"{where}[{place}]") for place, turn in enumerate(row)), where)


def _turn(turn: Any, where: str) -> Message:
    if not isinstance(turn, dict) or turn.keys() != {"role", "content"}:
        raise RefusedError(400, f"{where} is not an object of role and content")
    if not isinstance(turn["role"], str):
        raise RefusedError(400, f"{where}.role is not text")
    return Message(turn["role"], _text(turn["content"], f"{where}.content"))  # type: ignore[arg-type]


def _checked(turns: Messages, where: str) -> Messages:
    if turns[-1].role != "assistant":
        raise RefusedError(400, f"{where} does not end with the assistant")
    try:
        check_turns(turns[:-1], ends_with="user")
    except UserError as error:
        raise RefusedError(400, f"{where}, before its answer: {error.problem}") from None
    return turns


def _only_list(told: dict[str, Any], key: str) -> list[Any]:
    """The list of a request that says nothing else."""
    unknown = told.keys() - {key}
    if unknown:
        raise RefusedError(400, f"there is no key {min(unknown)!r} in a request; {key} is the only one")
    return _list(told, key)


def _list(told: dict[str, Any], key: str) -> list[Any]:
    if not isinstance(told.get(key), list):
        raise RefusedError(400, f"{key} is not a list" if key in told else f"the key {key} is missing")
    return told[key]


def _texts(told: dict[str, Any], key: str) -> list[str]:
    return [_text(value, f"{key}[{place}]") for place, value in enumerate(_list(told, key))]


def _text(value: Any, where: str) -> str:
    """JSON can spell half of a surrogate pair, which is no text."""
    if isinstance(value, str) and value.isascii():
        return value
    try:
        assert isinstance(value, str)
        value.encode()
    except (AssertionError, UnicodeEncodeError):
        raise RefusedError(400, f"{where} is not text") from None
    return value
