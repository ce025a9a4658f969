"""From a recipe to a dataset directory: read, shape, check, divide, draw, write; every step in the ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from alignment.data import checks, draw, hub, ledger, readers, store, world
from alignment.data.formats import FORMATS, Shape
from alignment.data.ledger import Entry, Fate, Tally
from alignment.data.recipe import Recipe, Source, resolve
from alignment.data.rows import Candidate, Kind, Raw, Reading, Row, Split, none
from alignment.data.store import Writer
from alignment.errors import UserError

Progress = Callable[[str, int, int | None], None]
"""Called now and then with the source's name, the rows read of it, and the rows expected where known."""

PROGRESS_EVERY = 500


@dataclass(frozen=True)
class SourceSummary:
    """What one source gave. ``rows`` counts copies; ``fates`` sum to ``read``; ``reasons`` are those of the dropped."""

    licence: str
    read: int
    rows: int
    fates: dict[Fate, int]
    reasons: dict[str, int]


@dataclass(frozen=True)
class Summary:
    """What a build made; the card holds the same."""

    kind: Kind
    rows: dict[Split, int]
    fates: dict[Fate, int]
    dropped_share: float
    sources: dict[str, SourceSummary]
    licences: tuple[str, ...]
    recipe_digest: str


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What becomes of a candidate. ``reason`` is counted; ``detail`` is this row's own."""

    fate: Fate
    row: Row | None = None
    reason: str = ""
    detail: str = ""
    split: Split | None = None
    copies: int = 0

    @property
    def told(self) -> str:
        return f"{self.reason} {self.detail}".strip()


def build(recipe: Recipe, out: Path, *, base: Path, progress: Progress | None = None) -> Summary:
    """Make the dataset in the folder ``out``. ``base`` is the recipe's own folder.

    The same recipe on the same files gives the same bytes. Raises :class:`UserError` for broken or
    missing input, a row count that is not the declared one, and more dropped rows than allowed;
    nothing that looks like a dataset is then left in ``out``.
    """
    tallies: dict[str, Tally] = {}
    with Writer(out, recipe.kind) as writer:
        judge = _Judge(recipe)
        for source in recipe.sources:
            tallies[source.name] = _take(source, recipe, base, judge, writer, progress)
        ledger.check_dropped(list(tallies.values()), recipe.max_dropped)
        _check_splits(recipe, writer.rows)
        assert sum(writer.rows.values()) == sum(tally.rows for tally in tallies.values())
    summary = _summary(recipe, writer.rows, tallies)
    store.write_card(out, {**asdict(summary), "recipe": recipe.identity()})
    return summary


def raw_rows(source: Source, kind: Kind, root: str | None, base: Path) -> Iterator[Raw]:
    """The rows of a source, wherever they come from."""
    if source.files:
        for path, name in resolve(source.files, root, base):
            yield from readers.read(path, source.files.reader, name)
    elif source.hub:
        yield from hub.read(source.hub)
    else:
        assert source.miniature is not None
        yield from world.read(source.miniature, kind)


def _take(
    source: Source, recipe: Recipe, base: Path, judge: _Judge, writer: Writer, progress: Progress | None
) -> Tally:
    """Take one source from its first row to its last."""
    tally, shape, read = Tally(), source.shape(recipe.kind), FORMATS[source.format].read
    several_files = source.files is not None and len(resolve(source.files, recipe.root, base)) > 1
    for raw in raw_rows(source, recipe.kind, recipe.root, base):
        tally.read += 1
        name = f"{source.name}:{raw.file}:{raw.line}" if several_files else f"{source.name}:{raw.line}"
        for entry in _entries(raw, name, source, shape, read, tally, judge, writer):
            writer.record(entry)
            if entry.derived_from is None:
                tally.add(entry)
        if progress and tally.read % PROGRESS_EVERY == 0:
            progress(source.name, tally.read, source.expected_rows)
    if progress:
        progress(source.name, tally.read, source.expected_rows)
    tally.check()
    if source.expected_rows is not None and tally.read != source.expected_rows:
        raise UserError(
            f"source {source.name}: {tally.read:,} rows read, expected_rows={source.expected_rows:,}",
            cause="The file was cut off or is another version of it.",
            remedy="Fetch it again, or correct expected_rows (null where the count is not known).",
        )
    return tally


def _entries(
    raw: Raw,
    name: str,
    source: Source,
    shape: Shape,
    read: Callable[[Raw, Shape], Reading],
    tally: Tally,
    judge: _Judge,
    writer: Writer,
) -> Iterator[Entry]:
    """Judge a raw row, write what is kept of it, and give its ledger lines: its own first, then its parts'."""
    if source.limit is not None and tally.read > source.limit:
        yield Entry(source.name, raw.file, raw.line, "not_drawn", "past the limit", name, None, 0, None)
        return
    reading = read(raw, shape)
    candidates = reading.candidates or none(f"no {shape.kind} in it").candidates
    parted = len(candidates) > 1
    verdicts, parts = [], []
    for number, candidate in enumerate(candidates, 1):
        row_id = f"{name}#{number}" if parted else _own_id(candidate, source) or name
        verdict = judge(candidate, row_id, raw.split, source.weight)
        line = candidate.line or raw.line
        tally.judge(verdict.fate, verdict.reason, raw, line)
        for _ in range(verdict.copies):
            assert verdict.row is not None
            assert verdict.split is not None
            writer.add(verdict.split, verdict.row)
        verdicts.append(verdict)
        parts.append(
            Entry(source.name, raw.file, line, verdict.fate, verdict.told, row_id, verdict.split, verdict.copies, name)
        )
    if parted:
        yield _whole(raw, name, source, verdicts, reading.changed)
        yield from parts
    else:
        yield _alone(parts[0], reading.changed)


def _own_id(candidate: Candidate, source: Source) -> str:
    """The id that a row brings along, in the source's name; empty where it brings none."""
    return f"{source.name}:{candidate.row.id}" if candidate.row is not None and candidate.row.id else ""


def _alone(entry: Entry, changed: str) -> Entry:
    """The line of a raw row that gave one candidate, with what its format changed."""
    told = "; ".join(part for part in (changed, entry.reason) if part)
    fate: Fate = "changed" if changed and entry.fate == "kept" else entry.fate
    return replace(entry, fate=fate, reason=told, derived_from=None)


def _whole(raw: Raw, name: str, source: Source, verdicts: list[_Verdict], changed: str) -> Entry:
    """The line of a raw row that gave several candidates: what became of it as a whole."""
    counts = Counter(verdict.fate for verdict in verdicts)
    copies = sum(verdict.copies for verdict in verdicts)
    told = f"{len(verdicts)} rows: " + ", ".join(f"{counts[fate]} {fate}" for fate in ledger.FATES if counts[fate])
    splits = {verdict.split for verdict in verdicts if verdict.split}
    fate: Fate = "changed" if changed or counts["changed"] else "kept"
    if counts["flagged"]:
        fate = "flagged"
    elif not copies:
        fate = "not_drawn" if counts["not_drawn"] else "dropped"
    told = "; ".join(part for part in (changed, told) if part)
    return Entry(
        source.name, raw.file, raw.line, fate, told, name, splits.pop() if len(splits) == 1 else None, copies, None
    )


class _Judge:
    """Decides on candidates, in order; remembers what it has seen, so that a duplicate is known."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._seen: dict[bytes, str] = {}
        self._given_splits = any(source.miniature for source in recipe.sources)
        self._sides: dict[str, Split] = {}

    def __call__(self, candidate: Candidate, row_id: str, split: Split | None, weight: float | None) -> _Verdict:
        if candidate.dropped or candidate.row is None:
            return _Verdict("dropped", reason=candidate.dropped)
        row = checks.trimmed(candidate.row)
        changed = "" if row == candidate.row else "surrounding white space taken off"
        if reason := checks.flaw(row):
            return _Verdict("dropped", reason=reason)
        first = self._seen.setdefault(checks.content_digest(row), row_id)
        if first != row_id:
            return _Verdict("dropped", reason="duplicate", detail=f"of {first}")
        side = self._side(checks.split_key(row), split)
        if split not in (None, side):
            return _Verdict("dropped", reason="its prompt is in another split")
        copies = 1
        if weight is not None:
            drawn = draw.copies_of(row_id, self._recipe.seed, weight)
            copies = drawn if side == "train" else min(1, drawn)
        if not copies:
            return _Verdict("not_drawn", reason="left out by the weight")
        marked = checks.mark(row)
        fate: Fate = "flagged" if marked else "changed" if changed else "kept"
        told = "; ".join(part for part in (marked, changed) if part)
        return _Verdict(fate, replace(row, id=row_id), told, "", side, copies)

    def _side(self, key: str, given: Split | None) -> Split:
        """The split of a prompt: where its first row fell, by what the source gave or by its hash."""
        if not self._given_splits:
            assert self._recipe.splits is not None
            return draw.split_of(key, self._recipe.seed, self._recipe.splits)
        if key not in self._sides:
            if given is None:
                assert self._recipe.splits is not None
                given = draw.split_of(key, self._recipe.seed, self._recipe.splits)
            self._sides[key] = given
        return self._sides[key]


def _check_splits(recipe: Recipe, rows: dict[Split, int]) -> None:
    """Every split that is asked for has rows. Raises :class:`UserError` otherwise."""
    if not rows:
        raise UserError(
            "no row is left", remedy="The sources' `limit` and `weight` and `max_dropped` let none through."
        )
    shares: dict[str, float] = recipe.splits.model_dump() if recipe.splits else {}
    for split, share in shares.items():
        if share > 0 and split not in rows:
            raise UserError(
                f"splits.{split}={share}: none of the {sum(rows.values()):,} rows fell into it",
                remedy="Give it a larger share, 0 if it is not wanted, or another seed.",
            )


def _summary(recipe: Recipe, rows: dict[Split, int], tallies: dict[str, Tally]) -> Summary:
    sources = {
        source.name: SourceSummary(
            source.licence,
            tally.read,
            tally.rows,
            {fate: tally.fates[fate] for fate in ledger.FATES},
            dict(tally.reasons.most_common()),
        )
        for source, tally in zip(recipe.sources, tallies.values(), strict=True)
    }
    judged, dropped = (sum(getattr(tally, name) for tally in tallies.values()) for name in ("judged", "dropped"))
    fates: dict[Fate, int] = {fate: sum(tally.fates[fate] for tally in tallies.values()) for fate in ledger.FATES}
    return Summary(
        recipe.kind, rows, fates, dropped / judged if judged else 0.0, sources, recipe.licences, recipe.digest
    )
