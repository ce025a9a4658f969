"""What the laws are tried on: text for a small vocabulary, and strange texts and conversations."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st

from alignment.chat.types import Message, Messages

law = settings(deadline=None, max_examples=150, derandomize=True)
"""The same examples in every run, so that a failure is a fact."""

WORDS = "the user asked a model for three brown foxes and what it answers in each turn ends here"


def _sentences() -> list[str]:
    words = WORDS.split()
    mixed = [
        " ".join(words[(start + step * stride) % len(words)] for step in range(12))
        for start in range(40)
        for stride in (1, 3, 5, 7)
    ]
    return [f"{line}, {number} times {number % 7}.\nYes: 7 > 5!" for number, line in enumerate(mixed)]


TEXT = _sentences() + ["Grüße, señor: déjà vu in 東京 — naïve façade"] * 20

FRAGMENTS = [
    *("<start_of_turn>", "<end_of_turn>", "<eos>", "<bos>", "<pad>", "<unk>", "<mask>", "<unused7>", "[@BOS@]"),
    *("<", ">", "\u200b", "<\u200b", "<\u200bend_of_turn>", "<\u200b\u200beos>", "end_of_turn>", "<0x41>", "<0x0A>"),
    *("\n", "\n\n", "\n\n\n", " ", "  ", "   ", "\t", "\r\n", "\x00", "user\n", "model\n", "user", "model"),
    *("the ", " answer", "1234567890", "aaaaaaa", "＜pad＞", "é", "e\u0301", "東京", "👩‍👩‍👧", "\u00a0", "<table>"),
]
"""What breaks renderers: markers, their broken spellings, headers, runs of whitespace, characters that are no piece."""


def written() -> st.SearchStrategy[str]:
    """Any text but U+2581 (a space to SentencePiece) and the noncharacter that ends headers."""
    wild = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581\ufdd0"), max_size=8)
    return st.lists(st.one_of(st.sampled_from(FRAGMENTS), wild), max_size=8).map("".join)


def talks(least_turns: int = 1) -> st.SearchStrategy[Messages]:
    """Conversations that end with the assistant, with and without a system message."""
    pair = st.tuples(written(), written().filter(bool))

    def joined(drawn: tuple[str | None, list[tuple[str, str]]]) -> Messages:
        system, pairs = drawn
        head = [Message("system", system)] if system is not None else []
        return (*head, *(turn for user, said in pairs for turn in (Message("user", user), Message("assistant", said))))

    return st.tuples(st.none() | written(), st.lists(pair, min_size=least_turns, max_size=4)).map(joined)
