"""A dataset's card on the terminal: where its rows come from, what became of them, what they are like.

Reads ``card.json`` (and one piece of the ledger); no row is read. A part that a card does not hold, because
it was not measured or the card is older, is named as such or left out.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from alignment import console
from alignment.artifacts import Artifact
from alignment.data import store as datasets
from alignment.data.ledger import FATES, Entry
from alignment.data.statistics import NOT_GRADED, NOT_LABELLED
from alignment.errors import UserError, nearest
from alignment.store import Store

BAR = 24
SHOWN = 12
"""Lines of a table whose length depends on the data."""
ENTRIES_SHOWN = 200
GRADES = ("significantly", "better", "slightly", "negligibly")

Card = Mapping[str, Any]


def show(artifact: Artifact, store: Store) -> None:
    """Print the card of a dataset, and how to ask for the fate of a single row."""
    card = datasets.card(artifact.path)
    _head(card, artifact, store)
    _sources(card)
    _reasons(card)
    _duplicates(card)
    statistics = card.get("statistics") or {}
    if statistics:
        _volume(statistics)
        _lengths(statistics)
        _turns(statistics)
        _languages(statistics)
        _comparisons(statistics)
        _counted("tags", "tag", statistics.get("tags"), statistics.get("rows"))
        _categories(statistics)
        _mentions(statistics)
        _scores(statistics)
    else:
        console.say("\nlengths, languages, terms: not measured for this dataset", style="dim")
    _hint(artifact)


def fate(artifact: Artifact, source: str | None, file: str | None, line: int | None) -> None:
    """Print the ledger's lines of a source, a file, or one row of it. Raises :class:`UserError` where there is none.

    ``file`` is spelled as in the recipe, or is the path of that file, from wherever it is given.
    """
    places = _places(artifact)
    if file is not None:
        file = _file_meant(file, {known for _, known in places})
    found = datasets.entries(artifact.path, source=source, file=file, line=line)
    if not found:
        raise _no_such_row(places, source, file, line)
    rows = [
        (
            _cell(f"{one.source}  {one.file}:{one.line}"),
            one.fate.replace("_", " "),
            _cell(one.by or "–"),
            _cell(one.reason or "–"),
            _cell(one.id),
            _went_to(one),
        )
        for one in found[:ENTRIES_SHOWN]
    ]
    console.table("ledger", ("row", "fate", "by", "why", "id", "went to"), rows)
    if len(found) > ENTRIES_SHOWN:
        console.say(f"and {len(found) - ENTRIES_SHOWN:,} lines more", style="dim")


def fate_of(artifact: Artifact, spelling: str) -> None:
    """:func:`fate` of ``FILE:LINE`` or ``SOURCE:LINE``. Raises :class:`UserError` for anything else."""
    name, colon, number = spelling.rpartition(":")
    if not colon or not name or not number.isdecimal():
        raise UserError(
            f"row={spelling}: is not a row", remedy="Say row=<file>:<line> or row=<source>:<line>, counted from 1."
        )
    of_source = name in {source for source, _ in _places(artifact)}
    fate(artifact, name if of_source else None, None if of_source else name, int(number))


# ── where the rows come from, and what became of them ────────────────────────────────────────────


def _head(card: Card, artifact: Artifact, store: Store) -> None:
    total = sum(card["rows"].values())
    facts = [
        ("splits", "  ".join(f"{split} {count:,}" for split, count in card["rows"].items())),
        ("licences", _cell(", ".join(card.get("licences", ())) or "none named")),
    ]
    if card.get("dropped_share") is not None:
        facts.append(("dropped", f"{card['dropped_share']:.1%} of the rows judged"))
    used = [f"{child.step} ({child.path.name})" for child in store.children(artifact)]
    if used:
        facts.append(("used by", _cell(", ".join(used))))
    console.table(f"{total:,} {card['kind']}", ("", ""), facts)


def _sources(card: Card) -> None:
    """A line for every source, as narrow as it can be: without fates that no row has, and without the licences
    where the table of the volume tells them."""
    sources = card["sources"]
    present = [fate for fate in FATES if any(source["fates"].get(fate) for source in sources.values())]
    columns = ("read", *(fate.replace("_", " ") for fate in present), "rows")

    def numbers(source: Mapping[str, Any]) -> list[int]:
        return [source["read"], *(source["fates"].get(fate, 0) for fate in present), source["rows"]]

    volume = (card.get("statistics") or {}).get("volume")
    names = ("source",) if volume else ("source", "licence")
    lines = [
        (_cell(name), *(() if volume else (_cell(source["licence"]),)), *(f"{number:,}" for number in numbers(source)))
        for name, source in sources.items()
    ]
    if len(sources) > 1:
        sums = [sum(column) for column in zip(*map(numbers, sources.values()), strict=True)]
        lines.append(("all", *("" for _ in names[1:]), *(f"{number:,}" for number in sums)))
    console.say()
    console.table("sources and the ledger", (*names, *columns), lines, right=columns)


def _reasons(card: Card) -> None:
    """Why rows were dropped, flagged or changed, by source."""
    kinds = {"dropped": "reasons", "flagged": "flags", "changed": "changes"}
    lines = [
        (kind, _cell(name), _cell(reason), f"{count:,}")
        for kind, key in kinds.items()
        for name, source in card["sources"].items()
        for reason, count in _most(source.get(key) or {}).items()
    ]
    if lines:
        console.say()
        console.table("why", ("", "source", "reason", "rows"), lines, right=("rows",))


def _duplicates(card: Card) -> None:
    found: Counter[str] = Counter(card.get("duplicates") or {})
    if not found:
        for source in card["sources"].values():
            found.update(source.get("duplicates") or {})
    told = ", ".join(f"{count:,} {_cell(kind)}" for kind, count in found.most_common() if count)
    if told:
        console.say(f"\nduplicates found: {told}", style="")


# ── what they are like ───────────────────────────────────────────────────────────────────────────


def _volume(statistics: Card) -> None:
    volume = statistics.get("volume") or []
    units = [unit for unit in ("rows", "characters", "words", "tokens") if any(unit in line for line in volume)]
    lines = [
        (_cell(line["source"]), _cell(line["licence"]), *(f"{line.get(unit, 0):,}" for unit in units))
        for line in volume
    ]
    if lines:
        console.say()
        console.table("volume", ("source", "licence", *units), lines, right=units)
        if "tokens" not in units:
            console.say("tokens: not measured", style="dim")


def _lengths(statistics: Card) -> None:
    """A line for every part of a row, its lengths drawn in octaves over one common scale."""
    parts = statistics.get("lengths") or {}
    if not parts:
        return
    unit = "tokens" if all("tokens" in units for units in parts.values()) else "words"
    measured = {part: units[unit] for part, units in parts.items()}
    lows = [int(low) for one in measured.values() for low in one["bins"]]
    octaves = [0] if 0 in lows else []
    octaves += [1 << power for power in range(max(lows).bit_length()) if 1 << power >= min(low or 1 for low in lows)]
    scale = f"{octaves[0]:,} … {2 * octaves[-1] - 1 if octaves[-1] else 0:,}"
    lines = [
        (
            part,
            f"{one['median']:,}",
            f"{one['mean']:,.1f}",
            f"{one['p90']:,}",
            f"{one['p99']:,}",
            f"{one['max']:,}",
            spark([one["bins"].get(str(low), 0) for low in octaves]),
        )
        for part, one in measured.items()
    ]
    numbers = ("median", "mean", "90 % ≤", "99 % ≤", "longest")
    console.say()
    console.table(f"lengths in {unit}", ("", *numbers, scale), lines, right=numbers)


def _turns(statistics: Card) -> None:
    turns = statistics.get("turns")
    if turns:
        counts = {low: turns["bins"][low] for low in sorted(turns["bins"], key=int)}
        _bars(f"turns: {turns['mean']:.1f} on average, {turns['max']:,} at most", "turns", counts)


def _languages(statistics: Card) -> None:
    if statistics.get("languages") is None:
        console.say("\nlanguages: not measured", style="dim")
    else:
        _counted("languages", "language", statistics["languages"])


def _comparisons(statistics: Card) -> None:
    grades = statistics.get("grades") or {}
    if not grades:
        return
    ordered = {grade: grades[grade] for grade in (*GRADES, *sorted(grades.keys() - set(GRADES))) if grade in grades}
    safety = statistics.get("safety") or {}
    if ordered.keys() == {NOT_GRADED}:
        console.say("\ngrades: the pairs have none", style="dim")
    else:
        _bars("grades", "better by", ordered)
    if safety.keys() == {NOT_LABELLED}:
        console.say("\nsafety labels: the pairs have none", style="dim")
    else:
        _counted("safety labels", "the pair is", safety)
    _counted("which answer is longer", "", statistics.get("longer"))


def _categories(statistics: Card) -> None:
    pairs = {
        (category, attack): count
        for category, attacks in (statistics.get("categories") or {}).items()
        for attack, count in attacks.items()
    }
    if pairs:
        shown = list(pairs.items())[:SHOWN]
        lines = [(_cell(category), _cell(attack), f"{count:,}") for (category, attack), count in shown]
        if len(pairs) > SHOWN:
            lines.append((f"and {len(pairs) - SHOWN} more", "", f"{sum([*pairs.values()][SHOWN:]):,}"))
        console.say()
        console.table("unsafe prompts", ("category", "attack", "rows"), lines, right=("rows",))


def _mentions(statistics: Card) -> None:
    """Shares of the rows that mention each group; each term's share is of the rows that mention its group."""
    rows = statistics.get("rows") or 0
    if statistics.get("axes") is None or not rows:
        console.say("\npronouns and demographic axes: not measured", style="dim")
        return
    lines: list[tuple[str, ...]] = []
    for key in ("pronouns", "axes"):
        for group, found in statistics[key]["groups"].items():
            counts = found["terms"].items()
            terms = ", ".join(f"{_cell(term)} {count / found['rows']:.0%}" for term, count in list(counts)[:4])
            lines.append((_cell(group), f"{found['rows']:,}", f"{found['rows'] / rows:.1%}", terms))
    console.say()
    title = f"who is mentioned: pronouns in {statistics['pronouns']['rows'] / rows:.1%} of the rows, "
    title += f"an axis in {statistics['axes']['rows'] / rows:.1%}"
    console.table(title, ("", "rows", "share", "terms, by share of those rows"), lines, right=("rows", "share"))


def _scores(statistics: Card) -> None:
    scores = statistics.get("scores") or {}
    lines = []
    for name, one in scores.items():
        numbers = tuple(f"{one[key]:.3g}" for key in ("min", "mean", "max"))
        end = one["low"] + one["width"] * len(one["bins"])
        lines.append((_cell(name), f"{one['count']:,}", *numbers, f"{one['low']:g} {spark(one['bins'])} {end:g}"))
    if lines:
        console.say()
        numeric = ("rows", "least", "mean", "most")
        console.table("scores", ("", *numeric, ""), lines, right=numeric)


# ── drawing ──────────────────────────────────────────────────────────────────────────────────────


def bar(share: float, width: int = BAR) -> str:
    """A bar as long as ``share`` of ``width`` characters, to an eighth of one; what is not nothing shows."""
    eighths = max(round(share * width * 8), 1 if share > 0 else 0)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


def spark(counts: Sequence[int]) -> str:
    """A column for every count, the greatest full; nothing is a dot, and what is not nothing shows."""
    greatest = max(counts, default=0)
    return "".join("▁▂▃▄▅▆▇█"[max(0, -(-8 * count // greatest) - 1)] if count else "·" for count in counts)


def _bars(title: str, column: str, counts: Mapping[str, int], rows: int | None = None) -> None:
    """A table of counts with a bar each, the longest for the greatest; shares are of ``rows``, or of their sum."""
    shown = _most(counts)
    total, greatest = rows or sum(counts.values()), max(counts.values())
    lines = [
        (_cell(name), f"{count:,}", f"{count / total:.1%}", bar(count / greatest) if name in counts else "")
        for name, count in shown.items()
    ]
    console.say()
    console.table(title, (column, "rows", "share", ""), lines, right=("rows", "share"))


def _counted(title: str, column: str, counts: Mapping[str, int] | None, rows: int | None = None) -> None:
    if counts:
        _bars(title, column, counts, rows)


def _most(counts: Mapping[str, int]) -> dict[str, int]:
    """The first lines of a long table, and the sum of the others."""
    if len(counts) <= SHOWN + 1:
        return dict(counts)
    pairs = list(counts.items())
    return {**dict(pairs[:SHOWN]), f"and {len(pairs) - SHOWN:,} more": sum(count for _, count in pairs[SHOWN:])}


def _cell(told: str) -> str:
    """Words from the data as they may stand on a terminal: no control code is let through."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in told)


# ── single rows ──────────────────────────────────────────────────────────────────────────────────


def _hint(artifact: Artifact) -> None:
    """The command that tells one row's fate, with a row of this dataset that something happened to."""
    ledger = artifact.path / datasets.LEDGER
    if not ledger.is_file():
        return
    with pq.ParquetFile(ledger) as file:
        first = next(file.iter_batches(batch_size=datasets.ROWS_A_GROUP, columns=["file", "line", "fate"]), None)
    lines = first.to_pylist() if first is not None else []
    if not lines:
        return
    one = next((line for line in lines if line["fate"] not in ("kept", "not_drawn")), lines[0])
    row = shlex.quote(f"{one['file']}:{one['line']}")
    console.say("\nWhat happened to one row?", style="bold")
    console.say(
        f"  python -m alignment.run stage=show target={shlex.quote(f'run:{artifact.path}')} row={row}", style=""
    )


def _places(artifact: Artifact) -> dict[tuple[str, str], tuple[int, int]]:
    """First and last line of every source and file in the ledger."""
    table = pq.read_table(artifact.path / datasets.LEDGER, columns=["source", "file", "line"])
    groups = table.group_by(["source", "file"], use_threads=False).aggregate([("line", "min"), ("line", "max")])
    return {(one["source"], one["file"]): (one["line_min"], one["line_max"]) for one in groups.to_pylist()}


def _file_meant(spelling: str, known: Iterable[str]) -> str:
    """The ledger's name of a file that may be spelled as a path to it."""
    plain = spelling.removeprefix("./")
    ending = [file for file in known if plain == file or plain.endswith(f"/{file}")]
    return max(ending, key=len, default=spelling)


def _no_such_row(
    places: Mapping[tuple[str, str], tuple[int, int]], source: str | None, file: str | None, line: int | None
) -> UserError:
    asked = " ".join(
        f"{key} {value}" for key, value in (("source", source), ("file", file), ("line", line)) if value is not None
    )
    matching = [
        f"{name}, {path}: lines {least:,} to {most:,}"
        for (name, path), (least, most) in places.items()
        if source in (None, name) and file in (None, path)
    ]
    if matching:
        return UserError(f"{asked}: the ledger has no such line", remedy=f"It has {'; '.join(matching[:SHOWN])}.")
    known = sorted({name for name, _ in places} | ({path for _, path in places} if file is not None else set()))
    return UserError(f"{asked}: the ledger has no such rows", remedy=nearest(str(file or source), known))


def _went_to(entry: Entry) -> str:
    if not entry.copies:
        return "–"
    split = entry.split or "several splits"
    return split if entry.copies == 1 else f"{split}, {entry.copies} rows"
