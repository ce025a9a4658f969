"""The ledger: what became of every source row, and the sums that have to hold.

A source row has one line. Where it gave several rows (a tree, a book), each of these has a line of
its own besides, with the source row's id in ``derived_from``. Over the lines that are not derived,
read = kept + changed + flagged + dropped + not drawn, and the sum of ``copies`` is the dataset's size.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import pyarrow as pa

from alignment.data.rows import Raw, Split
from alignment.errors import UserError

Fate = Literal["kept", "changed", "flagged", "dropped", "not_drawn"]
FATES: tuple[Fate, ...] = get_args(Fate)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line. ``file`` and ``line`` say where the row stood; ``id`` and ``split`` where it went."""

    source: str
    file: str
    line: int
    fate: Fate
    reason: str
    id: str
    split: Split | None
    copies: int
    derived_from: str | None


SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("file", pa.string()),
        ("line", pa.int64()),
        ("fate", pa.string()),
        ("reason", pa.string()),
        ("id", pa.string()),
        ("split", pa.string()),
        ("copies", pa.int64()),
        ("derived_from", pa.string()),
    ]
)


@dataclass
class Tally:
    """The counts of one source. ``read`` is counted at the reader, the fates at the ledger."""

    read: int = 0
    rows: int = 0
    fates: Counter[Fate] = field(default_factory=Counter)
    judged: int = 0
    dropped: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, entry: Entry) -> None:
        """Count a source row's own line."""
        self.fates[entry.fate] += 1
        self.rows += entry.copies

    def judge(self, fate: Fate, reason: str, raw: Raw, line: int) -> None:
        """Count a candidate: a source row, or one of the parts it gave. Those not drawn do not enter the share."""
        if fate == "not_drawn":
            return
        self.judged += 1
        if fate == "dropped":
            self.dropped += 1
            self.reasons[reason] += 1
            if len(self.examples[reason]) < 2:
                self.examples[reason].append(f"{raw.place}:{line}: {reason}: {excerpt(raw.value)}")

    def check(self) -> None:
        """The law of the ledger."""
        assert self.read == sum(self.fates.values()), f"{self.read} rows read, {dict(self.fates)} in the ledger"


def check_dropped(tallies: list[Tally], bound: float) -> None:
    """Raise :class:`UserError` where more than ``bound`` of the rows were dropped, with reasons and two examples."""
    judged, dropped = sum(tally.judged for tally in tallies), sum(tally.dropped for tally in tallies)
    if dropped <= bound * judged:
        return
    reasons: Counter[str] = Counter()
    examples: list[tuple[str, str]] = []
    for tally in tallies:
        reasons += tally.reasons
        examples += [(reason, shown) for reason, some in tally.examples.items() for shown in some]
    top = [reason for reason, _ in reasons.most_common(3)]
    # An example of each frequent reason first, then a second one of the most frequent.
    order = sorted(
        range(len(examples)),
        key=lambda n: ([e[0] for e in examples[:n]].count(examples[n][0]), -reasons[examples[n][0]], n),
    )
    shown = "\n".join(f"  {examples[n][1]}" for n in order[:2])
    raise UserError(
        f"{dropped:,} of {judged:,} rows were dropped ({dropped / judged:.1%}); max_dropped={bound} allows {bound:.1%}",
        cause=f"Most often: {', '.join(f'{reason} ({reasons[reason]:,})' for reason in top)}. For example:\n{shown}",
        remedy="Check the sources' format, columns and options; where the rows are rightly lost, raise max_dropped.",
    )


def excerpt(value: Any, length: int = 100) -> str:
    """The beginning of a raw value on one line."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= length else f"{text[: length - 1]}…"
