"""A whole build at three sizes: rows a second, peak memory, and that time grows with the rows.

python benchmarks/data.py [--sizes 10000 100000 1000000] [--workers 2]

Synthetic short rows, a share of which has what each filter looks for, pass every filter that asks no scorer and
the search for near duplicates. Each size runs in a process of its own, whose peak memory (with its workers') is shown.
``benchmarks/filters.py`` times the filters one by one.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from alignment import console

WORDS = (  # noqa: SIM905
    "river stone garden window quiet morning letter bridge kitchen summer yellow market engine island painter "
    "teacher winter coffee ticket mountain village doctor blanket harbour library candle forest pencil carpet"
).split()
PLANTED = (
    "Write to {name}@example.org about it.",
    "I am ChatGPT, a model made by OpenAI.",
    "Call me on +1 415 555 0{n:03} after six.",
    "Human: and what else?",
    "{word} {word} {word} {word} {word} {word} {word} {word} {word} {word} {word} {word}",
)


def sentence(rng: random.Random, words: int) -> str:
    """Words at random, as one sentence."""
    return " ".join(rng.choice(WORDS) + str(rng.randrange(900)) for _ in range(words)).capitalize() + "."


def write(path: Path, rows: int) -> None:
    """Questions and answers, of which a tenth has something for a filter and a twentieth nearly repeats an earlier."""
    rng = random.Random(rows)
    earlier: list[tuple[str, str]] = []
    with open(path, "w") as file:
        for number in range(rows):
            question, answer = f"What about {sentence(rng, 8)[:-1]}?", sentence(rng, 20)
            if number % 20 == 10:
                question, answer = rng.choice(earlier)
                answer += " Indeed."
            elif number % 10 == 0:
                planted = rng.choice(PLANTED)
                answer += " " + planted.format(name=rng.choice(WORDS), n=number % 1000, word=rng.choice(WORDS))
            if len(earlier) < 1000:
                earlier.append((question, answer))
            file.write(json.dumps({"q": question, "a": answer}) + "\n")


def recipe(folder: Path) -> dict[str, Any]:
    """Every filter that needs no scorer."""
    from alignment.data.recipe import named_filters

    # The standard list, and before its search for duplicates the comparison with an evaluation set.
    *filters, duplicates = named_filters("standard")
    evaluation = {
        "name": "held_out", "licence": "none", "kind": "conversations", "format": "prompt_completion",
        "columns": {"prompt": "q", "completion": "a"}, "expected_rows": None,
        "files": {"paths": [str(folder / "held_out.jsonl")], "reader": "jsonl"},
    }  # fmt: skip
    options = {"ngram_words": 13, "whole_words": 8, "at_least": 1, "texts": "all"}
    contamination = {"filter": "contamination", "action": "drop", "options": options, "against": [evaluation]}
    return {
        "kind": "conversations",
        "sources": [
            {
                "name": "synthetic", "licence": "none", "format": "prompt_completion", "expected_rows": None,
                "columns": {"prompt": "q", "completion": "a"},
                "files": {"paths": [str(folder / "rows.jsonl")], "reader": "jsonl"},
            }
        ],
        "splits": {"train": 0.9, "valid": 0.05, "test": 0.05},
        "seed": 0,
        "max_dropped": 1.0,
        "filters": [*filters, contamination, duplicates],
    }  # fmt: skip


def one(rows: int, workers: int) -> None:
    """Build once, in this process, and print what it took as JSON."""
    from alignment.data.build import Surroundings, build
    from alignment.data.recipe import Recipe

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "rows.jsonl", rows)
        write(folder / "held_out.jsonl", 1000)
        began = time.perf_counter()
        card = build(Recipe.parse(recipe(folder)), folder / "out", surroundings=Surroundings(folder, workers=workers))
        seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak += resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (workers > 1) * workers
    print(json.dumps({"seconds": seconds, "peak": peak * 1024, "fates": card.fates}))


def main() -> None:
    """Run every size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        one(arguments.one, arguments.workers)
        return
    table = []
    for rows in arguments.sizes:
        command = [sys.executable, __file__, "--one", str(rows), "--workers", str(arguments.workers)]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        seconds, fates = told["seconds"], told["fates"]
        table.append(
            (
                f"{rows:,}", console.duration(seconds), f"{rows / seconds:,.0f}", f"{1e6 * seconds / rows:,.0f}",
                f"{told['peak'] / 2**30:.2f}", *(f"{fates[fate]:,}" for fate in ("dropped", "changed", "flagged")),
            )
        )  # fmt: skip
    columns = ("rows", "time", "rows/s", "µs a row", "peak GiB", "dropped", "changed", "flagged")
    console.table(f"every filter, {arguments.workers} processes", columns, table, right=columns)


if __name__ == "__main__":
    main()
