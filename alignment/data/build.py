"""From a recipe to a dataset directory: read, shape, filter, divide, draw, write; every row in the ledger.

Rows are prepared in shards (``prepare.py``, ``shards.py``), by several processes where wanted, and then decided
on in order (``assemble.py``), so that the dataset is the same to the byte whoever did the work.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alignment import parts
from alignment.chat import tokenizers
from alignment.data import assemble, hub, ledger, readers, store, world
from alignment.data.ledger import Member, Origin, Tally, Verdict
from alignment.data.prepare import Record, Scores, Shard
from alignment.data.recipe import Recipe, local_files
from alignment.data.rows import Kind, Raw, Row, Split, none
from alignment.data.shards import Job, Shards, passes, raw_jobs, run_pass, run_scored
from alignment.data.sources import Source, resolve
from alignment.data.statistics import Statistics, Terms
from alignment.data.store import Card, Writer
from alignment.errors import DataError, UserError
from alignment.files import digest_file, digest_json

World = dict[str, int]
"""Seed and residents of a miniature world."""

PROGRESS_EVERY = 5_000
"""Source rows."""

Progress = Callable[[str, int, int | None], None]
"""Called now and then with what is being done, the source rows done, and the rows expected where known."""


@dataclass(frozen=True)
class Surroundings:
    """What a recipe refers to and a stage has found, and how the work is done.

    ``datasets`` are the artifacts named by sources (by the source's place) and ``scorers`` those of filters (by
    the filter's place); ``tokenizer`` is the directory whose tokens are counted. ``language`` tells a text's.
    """

    base: Path
    datasets: Mapping[int, Path] = field(default_factory=dict)
    scorers: Mapping[int, Scores] = field(default_factory=dict)
    tokenizer: Path | None = None
    terms: Terms | None = None
    language: Callable[[str], str] | None = None
    workers: int = 1


def build(
    recipe: Recipe,
    out: Path,
    *,
    base: Path | None = None,
    surroundings: Surroundings | None = None,
    progress: Progress | None = None,
) -> Card:
    """Make the dataset in the folder ``out``. ``base``, the recipe's own folder, will do for one of files alone.

    The same recipe on the same files gives the same bytes. Raises :class:`UserError` for broken or
    missing input, a row count that is not the declared one, and more dropped rows than allowed;
    nothing that looks like a dataset is then left in ``out``, only the shards that are finished.
    """
    around = surroundings or Surroundings(base or Path.cwd())
    shards = Shards(out, recipe.kind)
    shards.begin(_stamp(recipe, around))
    for name in store.NAMES:
        (out / name).unlink(missing_ok=True)
    read = _prepare(recipe, shards, around, progress)
    card = _write(recipe, out, shards, read, around, progress)
    store.write_card(out, card)
    shutil.rmtree(out / parts.FOLDER)
    return card


def _stamp(recipe: Recipe, around: Surroundings) -> str:
    """What the shards of a build depend on: the recipe, and its files as they are now."""
    found = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in local_files(recipe, around.base)]
    parents = {place: digest_file(path / store.LEDGER) for place, path in around.datasets.items()}
    return digest_json([recipe.digest, found, parents])


def raw_rows(source: Source, kind: Kind, root: str | None, base: Path, dataset: Path | None = None) -> Iterator[Raw]:
    """The rows of a source, wherever they come from, those of a group as one."""
    raws = _ungrouped(source, kind, root, base, dataset)
    if source.group is None:
        return raws
    return readers.gathered(raws, source.group) if source.scattered else readers.grouped(raws, source.group)


def _ungrouped(source: Source, kind: Kind, root: str | None, base: Path, dataset: Path | None) -> Iterator[Raw]:
    if source.files:
        for path, name in resolve(source.files, root, base):
            yield from readers.read(path, source.files.reader, name)
    elif source.hub:
        yield from hub.read(source.hub)
    elif source.miniature:
        yield from world.read(source.miniature, kind)
    else:
        assert dataset is not None
        card = store.card(dataset)
        if card["kind"] != kind:
            raise UserError(
                f"source {source.name}: {source.dataset} holds {card['kind']}, and the recipe's kind is {kind}",
                remedy="Name a dataset of that kind.",
            )
        for split in card["rows"]:
            for number, row in enumerate(store.stream(dataset, split), 1):
                yield Raw(split, number, row, str(dataset), split)


def _prepare(recipe: Recipe, shards: Shards, around: Surroundings, progress: Progress | None) -> list[int]:
    """All passes, after which the last one's shards hold every record. Gives the rows read of each source."""
    against = _evaluation_sets(recipe, around.base)
    rounds = passes(recipe)
    for number in range(len(rounds)):
        shards.path(number, "").parent.mkdir(parents=True, exist_ok=True)
    read = [0] * len(recipe.sources)
    for place, source in enumerate(recipe.sources):
        _read_source(recipe, place, shards, around, against, read, progress)
        check_count(source, read[place])
    for number, one in enumerate(rounds[1:], 1):
        paths = [(path, shards.path(number, path.name.partition(".")[0])) for path in _files(shards, number - 1)]
        if one.scored is not None:
            assert recipe.filters is not None
            scorer = around.scorers[recipe.filters.index(one.scored)]
            run_scored(paths, one, shards, recipe, scorer)
        else:
            jobs = (Job(path, before=before) for before, path in paths if not parts.is_whole(path))
            run_pass(jobs, (recipe, one, against, shards), around.workers, lambda rows: None)
    return read


def _read_source(
    recipe: Recipe,
    place: int,
    shards: Shards,
    around: Surroundings,
    against: Mapping[str, Sequence[Row]],
    read: list[int],
    progress: Progress | None,
) -> None:
    """Shape and filter one source in shards; those of an earlier start are left as they are."""
    source = recipe.sources[place]
    several = source.brings_sides
    if source.files is not None:
        several = len(resolve(source.files, recipe.root, around.base)) > 1
    done = 0

    def told(rows: int) -> None:
        nonlocal done
        done += rows
        if progress:
            progress(source.name, done, source.expected_rows)

    def counted() -> Iterator[Raw]:
        for raw in raw_rows(source, recipe.kind, recipe.root, around.base, around.datasets.get(place)):
            read[place] += max(1, len(raw.members))
            yield raw

    def wanted() -> Iterator[Job]:
        for job in raw_jobs(counted(), place, source, several, shards):
            if parts.is_whole(job.path):
                told(len(job.raws))
            else:
                yield job

    run_pass(wanted(), (recipe, passes(recipe)[0], against, shards), around.workers, told)


def check_count(source: Source, read: int) -> None:
    """Raise :class:`UserError` where a source has not the rows that the recipe expects."""
    if source.expected_rows is not None and read != source.expected_rows:
        raise UserError(
            f"source {source.name}: {read:,} rows read, expected_rows={source.expected_rows:,}",
            cause="The file was cut off or is another version of it.",
            remedy="Fetch it again, or correct expected_rows (null where the count is not known).",
        )


def _evaluation_sets(recipe: Recipe, base: Path) -> dict[str, list[Row]]:
    """The rows that filters compare with, by the name of their set. Raises :class:`UserError` for an empty one."""
    from alignment.data.formats import FORMATS

    sets: dict[str, list[Row]] = {}
    for one in (one for use in recipe.filters or [] for one in use.against or []):
        shape, read = one.shape(one.kind), FORMATS[one.format].read
        rows, read_rows = [], 0
        for raw in raw_rows(one, one.kind, recipe.root, base):
            read_rows += 1
            for candidate in read(raw, shape).candidates or none(f"no {one.kind} in it").candidates:
                if candidate.row is None:
                    raise DataError(
                        raw.where,
                        f"the evaluation set {one.name} cannot be compared with: {candidate.dropped}",
                        remedy="Take the row out of the file: what is not compared with is not found.",
                    )
                rows.append(store.named(candidate.row, candidate.row.id or f"{one.name}:{raw.line}"))
        check_count(one, read_rows)
        sets[one.name] = rows
    return sets


def _files(shards: Shards, number: int) -> list[Path]:
    return sorted(shards.path(number, "").parent.glob("*.jsonl.zst"))


def _write(
    recipe: Recipe, out: Path, shards: Shards, read: list[int], around: Surroundings, progress: Progress | None
) -> Card:
    """Decide on every record, and write tables and ledger; what is counted on the way becomes the card."""
    count, last = _counter(around.tokenizer), len(passes(recipe)) - 1
    tallies, statistics = [Tally() for _ in recipe.sources], Statistics(around.terms, count, around.language)
    everything = sum(read)

    def streamed() -> Iterator[Shard]:
        for path in _files(shards, last):
            yield int(path.name.partition("-")[0]), shards.read(path)

    with Writer(out, recipe.kind) as writer:
        decided = assemble.decided(recipe, out, streamed, count)
        for done, (place, record, verdicts) in enumerate(decided, 1):
            _put_down(recipe.sources[place], record, verdicts, tallies[place], statistics, writer)
            if progress and done % PROGRESS_EVERY == 0:
                progress("writing", done, everything)
        for tally in tallies:
            tally.check()
        ledger.check_dropped(tallies, recipe.max_dropped)
        assemble.check_enough(recipe, writer.rows)
        assert sum(writer.rows.values()) == sum(tally.rows for tally in tallies)
        assert [tally.read for tally in tallies] == read, "every row that was read has its line"
    return _card(recipe, tallies, statistics, writer.rows, common_world(recipe, around.datasets))


def _put_down(
    source: Source,
    record: Record,
    verdicts: Sequence[Verdict],
    tally: Tally,
    statistics: Statistics,
    writer: Writer,
) -> None:
    """Write the rows that are kept of one source row, and its lines in the ledger; count all of it."""
    members = tuple(Member(*member) for member in record.get("members", ()))
    origin = Origin(source.name, record["file"], record["line"], record["name"], record["place"], members)
    for verdict, candidate in zip(verdicts, record["candidates"], strict=True):
        tally.judge(verdict, f"{origin.place}:{verdict.line or origin.line}", record.get("shown", ""))
        for _ in range(verdict.copies):
            assert verdict.row is not None
            assert verdict.split is not None
            row = store.named(verdict.row, verdict.id)
            writer.add(verdict.split, row)
            statistics.add(row, source.name, source.licence, verdict.marks)
        for name, values in candidate.scores.items():
            for value in values:
                statistics.add_score(name, value)
    for entry in ledger.lines(origin, verdicts, record.get("changed", "")):
        writer.record(entry)
        tally.add(entry)
    tally.read += 1 + len(members)


def _card(
    recipe: Recipe, tallies: Sequence[Tally], statistics: Statistics, rows: dict[Split, int], world: World | None
) -> Card:
    judged, dropped = (sum(getattr(tally, name) for tally in tallies) for name in ("judged", "dropped"))
    named = zip(recipe.sources, tallies, strict=True)
    return Card(
        kind=recipe.kind,
        rows=rows,
        fates={fate: sum(tally.fates[fate] for tally in tallies) for fate in ledger.FATES},
        dropped_share=dropped / judged if judged else 0.0,
        sources={source.name: tally.summary(source.licence) for source, tally in named},
        licences=recipe.licences,
        made_by="data",
        recipe=recipe.identity(),
        recipe_digest=recipe.digest,
        world=world,
        statistics=statistics.summary(),
    )


def _counter(tokenizer: Path | None) -> Callable[[Sequence[str]], list[int]] | None:
    """What counts the tokens of texts, where there is a tokenizer."""
    if tokenizer is None:
        return None
    spelled = tokenizers.load(tokenizer)
    return lambda texts: [len(ids) for ids in spelled.encode_many(list(texts))]


def common_world(recipe: Recipe, datasets: Mapping[int, Path]) -> World | None:
    """The miniature world that all sources come from, or None. ``datasets`` are by the source's place."""
    worlds: list[World | None] = []
    for place, source in enumerate(recipe.sources):
        if source.miniature:
            worlds.append({"seed": source.miniature.world.seed, "residents": source.miniature.world.residents})
        else:
            worlds.append(store.card(datasets[place])["world"] if source.dataset else None)
    return worlds[0] if all(one == worlds[0] for one in worlds) else None
