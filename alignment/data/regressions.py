"""A set of prompts that grows: what was there before, and what a red team found to violate since.

The same directory as that of any dataset (``store.py``), with a ledger line for every old row and every attempt. Two
prompts are the same where the user says the same in all turns, case and spacing aside: of a single turn, where their
prompt keys are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from alignment.artifacts import Artifact
from alignment.chat.types import Message, Prompt, prompt_key
from alignment.data import ledger, store
from alignment.data.draw import uniform
from alignment.data.ledger import Origin, Tally, Verdict
from alignment.data.rows import Split
from alignment.errors import UserError

MADE_BY = "redteam"
BEFORE = "regressions"
"""What the ledger calls the set that is carried on."""


class Row(NamedTuple):
    """An old row: where it stood, with its number there from 1."""

    split: Split
    number: int
    prompt: Prompt


def rows(dataset: Artifact) -> Iterator[Row]:
    """All prompts of the set, split by split. Raises :class:`UserError` for a dataset of anything else."""
    path = dataset.need("dataset").path
    card = store.card(path)
    if card["kind"] != "prompts":
        raise UserError(
            f"regressions={dataset.step or path}: holds {card['kind']}",
            remedy="Name what stage=redteam has made, or another dataset of prompts; null begins a new set.",
        )
    for split in card["rows"]:
        for number, prompt in enumerate(store.stream(path, split), 1):
            assert isinstance(prompt, Prompt), "a dataset of prompts holds prompts"
            yield Row(split, number, prompt)


class Growing:
    """Writes the set. As a context: what an exception interrupts leaves no table behind.

    ``licences`` are those of every source; ``held_out`` is the share of new rows for testing, by a hash of the prompt
    key: the rest may be learned from.
    """

    def __init__(self, out: Path, licences: Mapping[str, str], held_out: float) -> None:
        self.out, self.held_out, self.added = out, held_out, 0
        self._licences = dict(licences)
        self._tallies = {name: Tally() for name in licences}
        self._writer = store.Writer(out, "prompts")
        self._keys: set[str] = set()

    def __enter__(self) -> Growing:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._writer.__exit__(kind, error, at)

    @staticmethod
    def _said(prompt: Prompt) -> str:
        """The prompt key of everything that the user says, as one message."""
        said = "\n".join(turn.content for turn in prompt.messages if turn.role == "user")
        return prompt_key([Message("user", said)])

    def carry_on(self, row: Row, told: str) -> None:
        """Keep an old row in its split; ``told`` is what became of it this time."""
        self._keys.add(self._said(row.prompt))
        verdict = Verdict("kept", row.prompt.id, row.prompt, by=MADE_BY, detail=told, split=row.split, copies=1)
        self._record(Origin(BEFORE, row.split, row.number, row.prompt.id), verdict)

    def add(self, source: str, number: int, prompt: Prompt) -> None:
        """Keep a prompt that violated, unless the set has it."""
        key, origin = self._said(prompt), Origin(source, source, number, prompt.id)
        if key in self._keys:
            self._record(origin, Verdict("dropped", prompt.id, by="duplicates", reason="the set has it"))
            return
        self._keys.add(key)
        self.added += 1
        split: Split = "test" if uniform(MADE_BY, prompt_key(prompt.messages)) < self.held_out else "train"
        self._record(origin, Verdict("kept", prompt.id, prompt, detail="violates", split=split, copies=1))

    def leave(self, source: str, number: int, name: str, reason: str, *, asked: bool) -> None:
        """Leave an attempt out; ``asked`` says whether a model answered it."""
        verdict = Verdict("dropped" if asked else "not_drawn", name, by=MADE_BY, reason=reason)
        self._record(Origin(source, source, number, name), verdict)

    def _record(self, origin: Origin, verdict: Verdict) -> None:
        tally = self._tallies[origin.source]
        tally.read += 1
        tally.judge(verdict, f"{origin.file}:{origin.line}", verdict.id)
        if verdict.row is not None:
            assert verdict.split is not None, "what is kept stands in a split"
            self._writer.add(verdict.split, verdict.row)
        for entry in ledger.lines(origin, [verdict]):
            self._writer.record(entry)
            tally.add(entry)

    def finish(self, world: dict[str, int] | None, **more: Any) -> dict[str, float]:
        """Check the ledger, close the tables and write the card; gives the metrics. The set may be empty."""
        for tally in self._tallies.values():
            tally.check()
        counts = self._writer.rows
        self._writer.close()
        assert sum(counts.values()) == sum(tally.rows for tally in self._tallies.values())
        judged, dropped = (sum(getattr(one, key) for one in self._tallies.values()) for key in ("judged", "dropped"))
        card = store.Card(
            kind="prompts",
            rows=counts,
            fates={fate: sum(one.fates[fate] for one in self._tallies.values()) for fate in ledger.FATES},
            dropped_share=dropped / judged if judged else 0.0,
            sources={name: tally.summary(self._licences[name]) for name, tally in self._tallies.items()},
            licences=tuple(sorted({one for one in self._licences.values() if one})),
            made_by=MADE_BY,
            world=world,
        )
        store.write_card(self.out, card, **more)
        return card.metrics()
