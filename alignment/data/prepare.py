"""What is decided of a row by looking at it alone: its shape, its soundness, every filter. Runs in any process.

A source row becomes a :class:`Record`, which is plain JSON: shards of records are what a build that was
stopped goes on from, and what the decisions that need all rows (``assemble.py``) are made from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from alignment.chat.features import from_row, to_row
from alignment.chat.types import Conversation, Prompt
from alignment.data import checks, ledger
from alignment.data.filters import near
from alignment.data.filters.filter import Finding, Judge
from alignment.data.filters.table import FILTERS, SCORED
from alignment.data.filters.use import NEAR, Use, options_of
from alignment.data.formats import FORMATS
from alignment.data.ledger import Member
from alignment.data.recipe import Recipe
from alignment.data.rows import Kind, Raw, Reading, Row, none
from alignment.data.sources import Source

Record = dict[str, Any]
"""A source row on its way: ``origin`` (:class:`ledger.Origin`), ``changed``, ``split``, ``candidates``."""

Shard = tuple[int, list[Record]]
"""Records that follow one another, with the number of their source."""

Scores = Callable[[Sequence[Any]], Sequence[float]]
"""What thresholds read of dialogues: probabilities, from a scorer that the stage has opened."""


LIMIT = "limit"
"""Who decided on rows past a source's limit: they are not drawn."""


@dataclass
class Candidate:
    """A row that may enter the dataset, with what has been found so far.

    ``by`` is who last did something about it, ``reason`` is set once it is dropped.
    """

    id: str
    line: int | None
    row: Row | None
    by: str = ""
    reason: str = ""
    detail: str = ""
    marks: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)
    digest: str = ""
    key: str = ""
    bands: str = ""
    language: str = ""

    def drop(self, by: str, reason: str, detail: str = "") -> None:
        """Take the row out."""
        self.by, self.reason, self.detail, self.row = by, reason, detail, None

    def found(self, use: Use, finding: Finding) -> None:
        """Do what the recipe says with what a filter found."""
        if use.action == "drop":
            self.drop(use.filter, finding.reason, finding.detail)
        elif use.action == "flag":
            self.by = use.filter
            self.marks.append(finding.reason)
            if isinstance(self.row, Conversation | Prompt):
                self.row = replace(self.row, tags=(*self.row.tags, f"flag:{use.filter}"))
        else:
            assert finding.mended is not None, f"{use.filter} mends, and has not"
            self.by, self.row = use.filter, checks.trimmed(finding.mended)
            self.changes.append(f"{finding.reason} mended")
            if flaw := checks.flaw(self.row):
                self.drop(use.filter, flaw, "once mended")

    def plain(self, kind: Kind) -> dict[str, Any]:
        """As JSON; what is empty is left out."""
        values = {name: value for name, value in self.__dict__.items() if value}
        return values | {"row": to_row(self.row)} if self.row is not None else values

    @classmethod
    def read(cls, kind: Kind, values: Mapping[str, Any]) -> Candidate:
        """The inverse of :meth:`plain`."""
        row = from_row(kind, values["row"]) if "row" in values else None
        return cls(**{"line": None, **values, "row": row})


class Preparer:
    """Everything that one process needs to prepare the rows of a recipe.

    ``uses`` are the filters of this pass; the first pass also gives rows their shape, and the ``last`` one
    seals them with what duplicates and splits are recognised by. ``against`` holds the evaluation sets by name.
    """

    def __init__(self, recipe: Recipe, uses: Sequence[Use], against: Mapping[str, Sequence[Row]], last: bool) -> None:
        self.recipe, self.last = recipe, last
        self._judges: list[tuple[Use, Judge]] = []
        for use in uses:
            kind = FILTERS[use.filter]
            own = {one.name: against[one.name] for one in use.against or []}
            options = kind.options.parse(use.options, use.filter)
            self._judges.append((use, kind.make(options, own)))

    def shape(self, source: Source, raws: Sequence[Raw], several_files: bool, within: int) -> list[Record]:
        """The records of raw rows of one source, filtered; those past the first ``within`` are not looked at."""
        shape, read = source.shape(self.recipe.kind), FORMATS[source.format].read

        def named(raw: Raw) -> str:
            return f"{source.name}:{raw.file}:{raw.line}" if several_files else f"{source.name}:{raw.line}"

        records = []
        for place, raw in enumerate(raws):
            name = named(raw)
            record: Record = {"file": raw.file, "line": raw.line, "name": name, "place": raw.place}
            if raw.members:
                record["members"] = [Member(one.file, one.line, named(one)) for one in raw.members[1:]]
            if raw.split:
                record["split"] = raw.split
            if place >= within:
                record["candidates"] = [Candidate(name, None, None, LIMIT, "past the limit")]
                records.append(record)
                continue
            denied = self._denied(source, raw)
            reading = none(denied) if denied else read(raw, shape)
            if reading.changed:
                record["changed"] = reading.changed
            record["candidates"] = self._candidates(reading, name, source.name)
            records.append(record)
        self.filter(records)
        for raw, record in zip(raws, records, strict=True):
            if any(candidate.reason for candidate in record["candidates"]):
                record["shown"] = ledger.excerpt(raw.value)
        return records

    def _candidates(self, reading: Reading, name: str, source: str) -> list[Candidate]:
        found = reading.candidates or none(f"no {self.recipe.kind} in it").candidates
        candidates = []
        for number, one in enumerate(found, 1):
            own_id = f"{source}:{one.row.id}" if one.row is not None and one.row.id else name
            candidate = Candidate(f"{name}#{number}" if len(found) > 1 else own_id, one.line, one.row)
            if one.row is None or one.dropped:
                candidate.drop("format", one.dropped)
            else:
                self._clean(candidate)
            candidates.append(candidate)
        return candidates

    def filter(self, records: list[Record]) -> list[Record]:
        """Ask this pass's filters, in order, about every candidate that is still in."""
        for record in records:
            for candidate in record["candidates"]:
                for use, judge in self._judges:
                    if candidate.row is not None and (finding := judge(candidate.row)) is not None:
                        candidate.found(use, finding)
                        record.setdefault("shown", candidate.id)
        if self.last:
            self.seal(records)
        return records

    def seal(self, records: list[Record]) -> None:
        """Add what the decisions about all rows need: digest, prompt, bands of the near duplicates' index."""
        left = [one for record in records for one in record["candidates"] if one.row is not None]
        for one in left:
            one.digest, one.key = checks.content_digest(one.row).hex(), checks.split_key(one.row)
        use = next((use for use in self.recipe.filters or [] if use.filter == NEAR), None)
        if use is not None and left:
            texts = [near.fingerprint_text(one.row) for one in left]
            for one, keys in zip(left, near.band_keys(texts, near.NearOptions.parse(use.options)), strict=True):
                one.bands = keys.tobytes().hex()

    def _clean(self, candidate: Candidate) -> None:
        """Take white space off, and drop what is not sound."""
        assert candidate.row is not None
        row = checks.trimmed(candidate.row)
        if reason := checks.flaw(row):
            candidate.drop("rules", reason)
            return
        if row != candidate.row:
            candidate.changes.append("surrounding white space taken off")
        if marked := checks.mark(row):
            candidate.marks.append(marked)
        candidate.row = row

    def _denied(self, source: Source, raw: Raw) -> str:
        """Why a row may not be used, or an empty text."""
        if source.origin is None:
            return ""
        origins = [str(one.column(source.origin)) for one in raw.members or (raw,)]
        return "denied origin" if any(map(self.recipe.denied, origins)) else ""


def score(records: Sequence[Record], use: Use, scores: Scores) -> None:
    """Ask a filter that needs scores about every candidate that is still in, all dialogues at once."""
    kind = SCORED[use.filter]
    options = options_of(use.filter).parse(use.options, use.filter)
    left = [one for record in records for one in record["candidates"] if one.row is not None]
    dialogues = [kind.dialogues(one.row) for one in left]
    flat = list(scores([dialogue for some in dialogues for dialogue in some]))
    for one, some in zip(left, dialogues, strict=True):
        own, flat = flat[: len(some)], flat[len(some) :]
        if own:
            one.scores[use.filter] = list(own)
        if (finding := kind.judge(options, one.row, own)) is not None:
            one.found(use, finding)


def dump(record: Record, kind: Kind) -> Record:
    """A record as plain JSON."""
    return record | {"candidates": [one.plain(kind) for one in record["candidates"]]}


def load(record: Record, kind: Kind) -> Record:
    """The inverse of :func:`dump`."""
    return record | {"candidates": [Candidate.read(kind, one) for one in record["candidates"]]}
