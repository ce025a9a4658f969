"""Options as a recipe would give them, one set for every filter."""

from __future__ import annotations

from typing import Any

from alignment.chat.types import Conversation, messages
from alignment.data.filters.filter import Judge
from alignment.data.filters.table import FILTERS
from alignment.data.rows import Row

OPTIONS: dict[str, dict[str, Any]] = {
    "personal": {
        "entities": ["email", "phone", "card", "iban", "ip", "ssn"],
        "replacement": "<{entity}>",
        "regions": ["US", "GB", "DE", "FR", "IN", "BR"],
        "reserved": False,
    },
    "identity": {
        "names": ["ChatGPT", "GPT-4", "Open Assistant", "Claude", "Bard", "Alpaca", "Vicuna", "Bing", "Siri", "Alexa"],
        "companies": ["OpenAI", "Anthropic", "LAION", "Meta AI", "Microsoft", "Google", "DeepMind"],
        "own": ["Gemma", "Google", "DeepMind"],
    },
    "language": {"allowed": ["en"], "confidence": 0.5, "min_characters": 20, "texts": "all"},
    "length": {"unit": "characters", "question_min": 2, "answer_min": 2, "text_max": 100_000, "turns_max": 60},
    "repetition": {
        "texts": "answers",
        "min_words": 40,
        "character_run": 200,
        "line_share": 0.3,
        "ngram_words": 8,
        "ngram_share": 0.4,
    },
    "turns": {
        "markers": ["Human:", "### Human", "User:", "### User", "### Instruction"],
        "tokens": ["<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "<|endoftext|>", "<|prompter|>", "<|assistant|>"],
        "unclosed_code": True,
        "cut_off": True,
        "echo": True,
    },
    "contamination": {"ngram_words": 13, "whole_words": 8, "at_least": 1, "texts": "all"},
}


def make(name: str, against: dict[str, list[Row]] | None = None, **changes: Any) -> Judge:
    """A filter's judge with :data:`OPTIONS`, but for ``changes``."""
    options = FILTERS[name].options.parse(OPTIONS[name] | changes, name)
    return FILTERS[name].make(options, against or {})


def talk(question: str, answer: str) -> Conversation:
    return Conversation(messages(("user", question), ("assistant", answer)), "t")
