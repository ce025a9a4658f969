"""What each filter costs: rows a second in one process, on short made-up rows of which some have a flaw.

    python benchmarks/filters.py [--rows 20000] [--words 60]

``made`` is the time until the first row can be judged: imports, models, and for `contamination` the index of 2,000
evaluation rows. ``found`` is the share of rows in which something was found. Near duplicates are looked for by two
parts: keys, which any number of processes can make, and the index, which is one.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment.chat.types import Conversation, messages
from alignment.console import say, table
from alignment.data.filters.near import Index, NearOptions, band_keys, fingerprint_text
from alignment.data.filters.table import FILTERS
from alignment.data.rows import Row

OPTIONS: dict[str, dict[str, Any]] = {
    "personal": {
        "entities": ["email", "phone", "card", "iban", "ip", "ssn"],
        "replacement": "<{entity}>",
        "regions": ["US", "GB", "DE", "FR", "IN", "BR"],
        "reserved": True,
    },
    "identity": {"names": ["ChatGPT", "Open Assistant", "Claude"], "companies": ["OpenAI", "Anthropic"], "own": []},
    "language": {"allowed": ["en"], "confidence": 0.5, "min_characters": 20, "texts": "all"},
    "length": {"unit": "characters", "answer_min": 2, "text_max": 20_000, "turns_max": 40},
    "repetition": {
        "texts": "answers",
        "min_words": 20,
        "character_run": 100,
        "line_share": 0.3,
        "ngram_words": 8,
        "ngram_share": 0.4,
    },
    "turns": {"markers": ["Human:"], "tokens": ["<|im_end|>"], "unclosed_code": True, "cut_off": True, "echo": True},
    "contamination": {"ngram_words": 13, "whole_words": 8, "at_least": 1, "texts": "all"},
}
NEAR = {"jaccard": 0.8, "shingle_words": 5, "across": True}
BATCH = 1000

ENGLISH = """
the of and to in that it was for on are as with they at be this from have or by one had not but what all were when
we there can an your which their said if do will each about how up out them then she many some so these would other
into has more her two like him see time could no make than first been its who now people my made over did down only
way find use may water long little very after words called just where most know get through back much before go good
new write our used me man too any day same right look think also around another came come work three word must
because does part even place well such here take why things help put years different away again off went old number
"""
COMMON = ENGLISH.split()

FLAWS = (
    "Write to {name}@firm.com, please.",
    "Call me on +1 415-867-{number}.",
    "I am ChatGPT, a language model trained by OpenAI.",
    "Der Hund läuft über die Straße, und niemand sieht ihm dabei zu, obwohl es schon sehr spät geworden ist.",
    "\nHuman: and then?",
    "and again " * 60,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--words", type=int, default=60)
    arguments = parser.parse_args()
    rows = list(made_up(arguments.rows, arguments.words, seed=0))
    against = {"exam": list(made_up(2_000, arguments.words, seed=1))}
    lines = [measured(name, rows, against) for name in FILTERS]
    lines += near_duplicates(rows)
    say(f"{len(rows):,} rows of about {arguments.words} words, one process")
    table("", ("filter", "made", "rows/s", "found"), lines, right=("made", "rows/s", "found"))


def made_up(count: int, words: int, seed: int) -> Iterator[Row]:
    """Questions and answers of common words; one row in ten has a flaw, one in twenty nearly repeats the last."""
    rng = random.Random(seed)
    answer = ""
    for number in range(count):
        question = " ".join(rng.choices(COMMON, k=words // 4)).capitalize() + "?"
        if rng.random() > 0.05:
            answer = " ".join(rng.choices(COMMON, k=words - words // 4)).capitalize() + "."
        if rng.random() < 0.1:
            answer += " " + rng.choice(FLAWS).format(name=rng.choice(COMMON), number=rng.randint(1000, 9999))
        yield Conversation(messages(("user", question), ("assistant", answer)), str(number))


def measured(name: str, rows: Sequence[Row], against: Mapping[str, Sequence[Row]]) -> tuple[str, ...]:
    """One line of the table."""
    kind, begin = FILTERS[name], time.perf_counter()
    judge = kind.make(kind.options.parse(OPTIONS[name], name), against if kind.needs_against else {})
    judge(rows[0])
    made = time.perf_counter()
    found = sum(judge(row) is not None for row in rows)
    return line(name, made - begin, time.perf_counter() - made, found, len(rows))


def near_duplicates(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """Two lines: the keys and the index."""
    options = NearOptions.parse(NEAR, "near")
    begin = time.perf_counter()
    band_keys(["a"], options)
    made, for_keys, for_index, found = time.perf_counter() - begin, 0.0, 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        index = Index(options, Path(folder) / "spool")
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            begin = time.perf_counter()
            texts = [fingerprint_text(row) for row in batch]
            keys = band_keys(texts, options)
            between = time.perf_counter()
            answers = index.add(keys, texts, [row.id for row in batch], ["made up"] * len(batch))
            for_keys += between - begin
            for_index += time.perf_counter() - between
            found += sum(answer is not None for answer in answers)
        index.close()
    yield line("near: keys", made, for_keys, 0, len(rows))
    yield line("near: index", 0.0, for_index, found, len(rows))


def line(name: str, made: float, seconds: float, found: int, rows: int) -> tuple[str, ...]:
    return name, f"{made:.1f} s", f"{rows / seconds:,.0f}", f"{found / rows:.1%}"


if __name__ == "__main__":
    main()
