"""A dataset that a stage makes from the rows of others: answers drawn, instructions moved, pairs judged.

The same directory as one that a recipe makes (``store.py``), the ledger included: every row of a parent that
was read has its line there, whatever became of it, with its place in the parent as ``file`` and ``line``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from alignment.artifacts import Artifact
from alignment.data import ledger, store
from alignment.data.ledger import Origin, Tally, Verdict
from alignment.data.rows import Kind, Split
from alignment.data.statistics import Statistics
from alignment.errors import UserError


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row stood in a parent dataset: ``split`` and its number there, from 1. ``id`` is the row's own."""

    parent: str
    split: Split
    number: int
    id: str


class Derivation:
    """Writes the dataset of a stage. As a context: what an exception interrupts leaves no table behind.

    ``parents`` are the datasets read, by the name that the ledger and the card give them.
    """

    def __init__(self, out: Path, kind: Kind, *, made_by: str, parents: Mapping[str, Artifact]) -> None:
        self.out, self.kind, self.made_by, self.parents = out, kind, made_by, dict(parents)
        self._tallies = {name: Tally() for name in parents}
        self._licences = {name: ", ".join(parent.licences) for name, parent in parents.items()}
        self._writer = store.Writer(out, kind)
        self._statistics = Statistics(None, None)
        self._unread = {
            (name, split): bytearray(b"\1" * count)
            for name, parent in parents.items()
            for split, count in store.card(parent.path)["rows"].items()
        }

    def __enter__(self) -> Derivation:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._writer.__exit__(kind, error, at)

    def record(self, place: Place, verdicts: Sequence[Verdict]) -> None:
        """Write what was made of one row of a parent, and its ledger lines.

        A verdict that keeps a row has it in ``row``, with ``split`` and ``copies``; ids are the caller's.
        """
        tally = self._tallies[place.parent]
        tally.read += 1
        assert self._unread[place.parent, place.split][place.number - 1], f"{place} comes twice"
        self._unread[place.parent, place.split][place.number - 1] = 0
        origin = Origin(place.parent, place.split, place.number, place.id)
        for verdict in verdicts:
            tally.judge(verdict, f"{place.parent}/{place.split}:{place.number}", place.id)
            for _ in range(verdict.copies):
                assert verdict.row is not None
                assert verdict.split is not None
                self._writer.add(verdict.split, verdict.row)
                self._statistics.add(verdict.row, place.parent, self._licences[place.parent], verdict.marks)
        for entry in ledger.lines(origin, verdicts):
            self._writer.record(entry)
            tally.add(entry)

    def finish(self, **more: Any) -> dict[str, float]:
        """Check the ledger, close the tables, write the card (``more`` goes into it) and give the metrics.

        Raises :class:`UserError` where no row is left.
        """
        self._record_unread()
        for name, tally in self._tallies.items():
            tally.check()
            assert tally.read == sum(len(rows) for (parent, _), rows in self._unread.items() if parent == name)
        rows = self._writer.rows
        if not rows:
            reasons = {reason: count for tally in self._tallies.values() for reason, count in tally.reasons.items()}
            told = ", ".join(f"{reason} ({count:,})" for reason, count in reasons.items())
            raise UserError(f"stage={self.made_by}: no row is left", cause=f"Dropped: {told}." if told else "")
        assert sum(rows.values()) == sum(tally.rows for tally in self._tallies.values())
        self._writer.close()
        summaries = {name: tally.summary(self._licences[name]) for name, tally in self._tallies.items()}
        fates = {fate: sum(tally.fates[fate] for tally in self._tallies.values()) for fate in ledger.FATES}
        judged, dropped = (sum(getattr(t, key) for t in self._tallies.values()) for key in ("judged", "dropped"))
        card = store.Card(
            kind=self.kind,
            rows=rows,
            fates=fates,
            dropped_share=dropped / judged if judged else 0.0,
            sources=summaries,
            licences=tuple(sorted({licence for parent in self.parents.values() for licence in parent.licences})),
            made_by=self.made_by,
            world=store.shared_world(parent.path for parent in self.parents.values()),
            statistics=self._statistics.summary(),
        )
        store.write_card(self.out, card, **more)
        return card.metrics()

    def _record_unread(self) -> None:
        """Give a line to every row of a parent that the stage was not asked about: other splits, and past its count."""
        for (parent, split), unread in self._unread.items():
            for number in (place + 1 for place, left in enumerate(unread) if left):
                name = f"{parent}/{split}:{number}"
                verdict = Verdict("not_drawn", name, by=self.made_by, reason="not asked for")
                self.record(Place(parent, split, number, name), [verdict])
