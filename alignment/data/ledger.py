"""The ledger: what became of every source row, and the sums that have to hold.

A source row has one line. Where it gave several rows (a tree, a book), each of these has a line of
its own besides, with the source row's id in ``derived_from``. Over the lines that are not derived,
read = kept + changed + flagged + dropped + not drawn, and the sum of ``copies`` is the dataset's size.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, get_args

import pyarrow as pa

from alignment.data.rows import Row, Split
from alignment.errors import UserError

Fate = Literal["kept", "changed", "flagged", "dropped", "not_drawn"]
FATES: tuple[Fate, ...] = get_args(Fate)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line. ``file`` and ``line`` say where the row stood; ``id`` and ``split`` where it went.

    ``by`` is the filter that decided, or ``format``, ``rules``, ``duplicates``, ``splits``, ``mixture``.
    """

    source: str
    file: str
    line: int
    fate: Fate
    by: str
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
        ("by", pa.string()),
        ("reason", pa.string()),
        ("id", pa.string()),
        ("split", pa.string()),
        ("copies", pa.int64()),
        ("derived_from", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of one candidate row.

    ``reason`` is counted by ``by``; ``detail`` is this row's own. ``marks`` are what it was flagged with and
    ``changes`` what was changed in it, whatever its fate is. ``row`` carries its id where it is kept.
    """

    fate: Fate
    id: str
    row: Row | None = None
    by: str = ""
    reason: str = ""
    detail: str = ""
    marks: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    split: Split | None = None
    copies: int = 0
    line: int | None = None
    """Where the candidate stood, where that is not its source row's own line."""

    @property
    def told(self) -> str:
        """The ledger's words. ``detail`` belongs to the reason, or to the last mark; it may also stand alone."""
        *said, last = [self.reason] if self.reason else self.marks or ("",)
        return "; ".join(part for part in (*said, f"{last} {self.detail}".strip(), *self.changes) if part)


JOINED = "joined with line"
"""How the line of a row begins that became a part of another one. Its fate is that one's; its copies are there."""


class Member(NamedTuple):
    """Where a row stood that was joined into another, and what the ledger calls it."""

    file: str
    line: int
    name: str


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a source row stood, and further rows that were joined into it."""

    source: str
    file: str
    line: int
    name: str
    """What the ledger calls it where it has no id of its own."""

    place: str = ""
    """Where a person finds it, for messages."""

    members: tuple[Member, ...] = ()


def lines(origin: Origin, verdicts: Sequence[Verdict], changed: str = "") -> Iterator[Entry]:
    """The ledger lines of one source row: its own first, then those of its parts, then of rows joined into it."""
    if len(verdicts) == 1:
        own = _entry(origin, verdicts[0], None)
        told = "; ".join(part for part in (changed, own.reason) if part)
        yield replace(own, fate="changed" if changed and own.fate == "kept" else own.fate, reason=told)
    else:
        own = _whole(origin, verdicts, changed)
        yield own
        for verdict in verdicts:
            yield _entry(origin, verdict, origin.name)
    for file, line, name in origin.members:
        told = f"{JOINED} {origin.line}" if file == origin.file else f"{JOINED} {origin.line} of {origin.file}"
        yield replace(own, file=file, line=line, reason=told, id=name, split=None, copies=0)


def _entry(origin: Origin, verdict: Verdict, derived_from: str | None) -> Entry:
    return Entry(
        origin.source,
        origin.file,
        verdict.line or origin.line,
        verdict.fate,
        verdict.by,
        verdict.told,
        verdict.id,
        verdict.split,
        verdict.copies,
        derived_from,
    )


def _whole(origin: Origin, verdicts: Sequence[Verdict], changed: str) -> Entry:
    """The line of a source row that gave several rows, or none that could be judged: what became of it as a whole."""
    counts = Counter(verdict.fate for verdict in verdicts)
    copies = sum(verdict.copies for verdict in verdicts)
    told = f"{len(verdicts)} rows: " + ", ".join(f"{counts[fate]} {fate}" for fate in FATES if counts[fate])
    splits = {verdict.split for verdict in verdicts if verdict.split}
    fate: Fate = "changed" if changed or counts["changed"] else "kept"
    if counts["flagged"]:
        fate = "flagged"
    elif not copies:
        fate = "not_drawn" if counts["not_drawn"] else "dropped"
    told = "; ".join(part for part in (changed, told) if part)
    split = splits.pop() if len(splits) == 1 else None
    return Entry(origin.source, origin.file, origin.line, fate, "", told, origin.name, split, copies, None)


@dataclass
class Tally:
    """The counts of one source. ``read`` is counted at the reader, the fates at the ledger."""

    read: int = 0
    rows: int = 0
    fates: Counter[Fate] = field(default_factory=Counter)
    judged: int = 0
    dropped: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    duplicates: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, entry: Entry) -> None:
        """Count a source row's own line."""
        if entry.derived_from is None:
            self.fates[entry.fate] += 1
            self.rows += entry.copies

    def judge(self, verdict: Verdict, place: str, shown: str) -> None:
        """Count a candidate: a source row, or one of the parts it gave. Those not drawn do not enter the share."""
        if verdict.fate == "not_drawn":
            return
        self.judged += 1
        if verdict.fate == "dropped":
            self.dropped += 1
            self.reasons[verdict.reason] += 1
            if verdict.by == "duplicates":
                self.duplicates[verdict.reason] += 1
            if len(self.examples[verdict.reason]) < 2:
                self.examples[verdict.reason].append(f"{place}: {verdict.reason}: {shown}")
        else:
            self.flags.update(verdict.marks)
            self.changes.update(verdict.changes)

    def check(self) -> None:
        """The law of the ledger."""
        assert self.read == sum(self.fates.values()), f"{self.read} rows read, {dict(self.fates)} in the ledger"

    def summary(self, licence: str) -> dict[str, Any]:
        """What the card says of the source."""
        return {
            "licence": licence,
            "read": self.read,
            "rows": self.rows,
            "fates": {fate: self.fates[fate] for fate in FATES},
            "reasons": dict(self.reasons.most_common()),
            "flags": dict(self.flags.most_common()),
            "changes": dict(self.changes.most_common()),
            "duplicates": dict(self.duplicates.most_common()),
        }


def check_dropped(tallies: Sequence[Tally], bound: float) -> None:
    """Raise :class:`UserError` where more than ``bound`` of the rows were dropped, with reasons and two examples."""
    judged, dropped = sum(tally.judged for tally in tallies), sum(tally.dropped for tally in tallies)
    if not judged or dropped / judged <= bound:
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
