from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignment import artifacts, console
from alignment.artifacts import Artifact, Parent
from alignment.chat.types import Comparison, Conversation, Prompt, messages
from alignment.data import ledger, store
from alignment.data.statistics import Statistics, Terms
from alignment.errors import UserError
from alignment.reporting import card
from alignment.store import Store

FATES = {"kept": 0, "changed": 0, "flagged": 0, "dropped": 0, "not_drawn": 0}
TERMS = Terms(pronouns={"she": ["she", "her"]}, axes={"religion": ["jewish", "hindu"], "age": ["child"]})


def source(read: int, rows: int, **more: Any) -> dict[str, Any]:
    told = {"licence": "MIT", "read": read, "rows": rows, "reasons": {}, "flags": {}, "changes": {}}
    return told | more


def values(**more: Any) -> dict[str, Any]:
    """A card as it was before anything was measured."""
    sources = {"hh": source(3, 2, fates={"kept": 2, "dropped": 1}, reasons={"empty answer": 1})}
    return {"kind": "conversations", "rows": {"train": 2}, "sources": sources, "licences": ["MIT"]} | more


def line(**more: Any) -> dict[str, Any]:
    told = dict.fromkeys(ledger.SCHEMA.names)
    told |= {"source": "hh", "file": "hh/a.jsonl", "line": 1, "fate": "kept", "by": "", "reason": "", "id": "hh:1"}
    return told | {"copies": 1, "split": "train"} | more


LINES = [
    line(),
    line(line=2, fate="dropped", by="duplicates", reason="duplicate of hh:1", id="hh:2", split=None, copies=0),
    line(line=3, id="hh:3", copies=2),
    line(file="hh/b c.jsonl", line=7, id="hh:7", fate="flagged", reason="short answer"),
    line(source="oa", file="a.jsonl", line=1, id="oa:1", fate="changed", reason="[b]trimmed[/b]"),
]


def dataset(folder: Path, told: dict[str, Any] | None = None, lines: list[dict[str, Any]] = LINES) -> Artifact:
    path = folder / "solo" / "data-01234567"
    path.mkdir(parents=True)
    (path / store.CARD).write_text(json.dumps(told or values()))
    pq.write_table(pa.Table.from_pylist(lines, schema=ledger.SCHEMA), path / store.LEDGER)
    return artifacts.finish(Artifact(path, "dataset", "data", "data", "0123456789" * 6))


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Call a function on a terminal of some width and take what it prints."""

    def of(function, *arguments: Any, width: int = 100) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        console.console.cache_clear()
        function(*arguments)
        return capsys.readouterr().out

    yield of
    console.console.cache_clear()


def full() -> dict[str, Any]:
    """The card of a large dataset with everything measured."""
    counted = Statistics(TERMS, lambda texts: [len(told.split()) for told in texts], lambda told: "en")
    asked = messages(("user", "Is she a child?"))
    for n in range(40):
        pair = Comparison(
            asked, "word " * (n * n), "no", "slightly" if n % 3 else "significantly", "s", "p", True, False
        )
        counted.add(pair, "anthropic_hh_rlhf", "MIT")
    counted.add(Conversation((*asked, *messages(("assistant", "A Hindu child."))), "c", ("x",)), "hh", "MIT")
    for n in range(20):
        counted.add(Prompt(asked, "p", ("x",), f"category {n}", "misspelling"), "oasst", "Apache-2.0")
    for n in range(100):
        counted.add_score("toxicity", n * n / 1e4)
        counted.add_score("safety", n - 50.0)
    many = {"kept": 1_160_800, "changed": 45_678, "flagged": 12_345, "dropped": 123_456, "not_drawn": 0}
    sources = {
        "anthropic_hh_rlhf": source(
            *(1_342_279, 1_218_823),
            fates=many,
            reasons={"duplicate": 100_000, "near duplicate": 20_000, "personal data: email": 3_456},
            flags={"claims to be another assistant": 12_345},
            changes={"surrounding white space taken off": 45_678},
            duplicates={"duplicate": 100_000, "near duplicate": 20_000},
        ),
        "oasst": source(10, 10, fates=FATES | {"kept": 10}, licence="CC-BY-SA-4.0"),
    }
    return values(
        kind="comparisons",
        rows={"train": 1_000_000, "valid": 118_833, "test": 100_000},
        sources=sources,
        licences=["CC-BY-SA-4.0", "MIT"],
        dropped_share=0.09197,
        statistics=counted.summary(),
    )


# ── the whole card ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_card_fits_the_terminal_and_breaks_no_number(tmp_path: Path, printed, width: int) -> None:
    artifact = dataset(tmp_path, full())
    told = printed(card.show, artifact, Store(tmp_path), width=width)
    command = "python -m alignment.run"
    assert all(len(one) <= width for one in told.splitlines() if command not in one)
    for number in ("1,342,279", "1,160,800", "45,678", "12,345", "123,456", "1,218,823", "1,218,833", "20,000"):
        assert number in told, number


def test_the_card_says_what_there_is(tmp_path: Path, printed) -> None:
    told = printed(card.show, dataset(tmp_path, full()), Store(tmp_path), width=120)
    flat = [" ".join(one.split()) for one in told.splitlines()]
    for wanted in (
        "1,218,833 comparisons",
        "splits train 1,000,000 valid 118,833 test 100,000",
        "licences CC-BY-SA-4.0, MIT",
        "dropped 9.2% of the rows judged",
        "source read kept changed flagged dropped rows",
        "anthropic_hh_rlhf 1,342,279 1,160,800 45,678 12,345 123,456 1,218,823",
        "all 1,342,289 1,160,810 45,678 12,345 123,456 1,218,833",
        "dropped anthropic_hh_rlhf personal data: email 3,456",
        "flagged anthropic_hh_rlhf claims to be another assistant 12,345",
        "changed anthropic_hh_rlhf surrounding white space taken off 45,678",
        "duplicates found: 100,000 duplicate, 20,000 near duplicate",
        "lengths in tokens",
        "slightly 26 65.0% ████████████████████████",
        "significantly 14 35.0% ████████████▉",
        "chosen safe, rejected unsafe 40 100.0% ████████████████████████",
        "x 21 34.4% ████████████████████████",
        "en 61 100.0% ████████████████████████",
        "who is mentioned: pronouns in 100.0% of the rows, an axis in 100.0%",
        "religion 1 1.6% hindu 100%",
        "age 61 100.0% child 100%",
        "category 0 misspelling 1",
        "and 8 more 8",
        "toxicity 100 0 0.328 0.98 0 █▄▃▃▂▂▂▂▂▂▂▂▂▂▂▂▂▁▂▁ 1",
    ):
        assert wanted in flat, wanted
    # 14 of 26 of 24 characters are 12.92: twelve whole ones and 7 eighths.


def test_a_fate_that_no_row_has_is_no_column(tmp_path: Path, printed) -> None:
    told = printed(card.show, dataset(tmp_path), Store(tmp_path))
    assert "kept" in told
    assert "not drawn" not in told
    assert "flagged" not in told


def test_an_older_card_is_shown_with_what_it_has(tmp_path: Path, printed) -> None:
    bare = {name: {key: one[key] for key in ("licence", "read", "rows", "fates", "reasons")} for name, one in
            values()["sources"].items()}  # fmt: skip
    told = printed(card.show, dataset(tmp_path, values(sources=bare)), Store(tmp_path))
    assert "empty answer" in told
    assert "not measured" in told


def test_what_was_not_measured_is_said(tmp_path: Path, printed) -> None:
    counted = Statistics(None, None)
    counted.add(Conversation(messages(("user", "a b"), ("assistant", "")), "c"), "hh", "MIT")
    told = printed(card.show, dataset(tmp_path, values(statistics=counted.summary())), Store(tmp_path))
    for part in ("tokens: not measured", "languages: not measured", "pronouns and demographic axes: not measured"):
        assert part in told
    assert "lengths in words" in told
    assert "grades" not in told


def test_a_dataset_without_a_row_is_shown(tmp_path: Path, printed) -> None:
    empty = values(rows={}, sources={"s": source(0, 0, fates=FATES)}, statistics=Statistics(TERMS, None).summary())
    assert "0 conversations" in printed(card.show, dataset(tmp_path, empty, lines=[]), Store(tmp_path))


def test_words_of_the_data_are_not_obeyed(tmp_path: Path, printed) -> None:
    sources = {"[red]x[/red]": source(1, 0, fates={"dropped": 1}, reasons={"\x1b[2Jgone\n[/nothing]": 1})}
    told = printed(card.show, dataset(tmp_path, values(sources=sources)), Store(tmp_path))
    assert "[red]x[/red]" in told
    assert "\\x1b[2Jgone\\n[/nothing]" in told
    assert "\x1b[2J" not in told


def test_pairs_without_grades_and_labels_are_told_in_a_line(tmp_path: Path, printed) -> None:
    counted = Statistics(None, None)
    counted.add(Comparison(messages(("user", "a")), "b", "c", None, "s", "p"), "hh", "MIT")
    told = printed(card.show, dataset(tmp_path, values(statistics=counted.summary())), Store(tmp_path))
    assert "grades: the pairs have none" in told
    assert "safety labels: the pairs have none" in told
    assert "not graded" not in told
    assert "neither" in told, "which answer is longer is known"


def test_what_was_made_from_it_is_named(tmp_path: Path, printed) -> None:
    artifact = dataset(tmp_path)
    path = tmp_path / "solo" / "sft-89abcdef"
    path.mkdir()
    parents = {"data": Parent("latest:data", artifact.fingerprint, str(artifact.path))}
    artifacts.finish(Artifact(path, "policy", "sft", "sft", "f" * 64, parents=parents))
    assert "used by   sft (sft-89abcdef)" in printed(card.show, artifact, Store(tmp_path))


def test_long_lists_are_cut_and_their_rest_is_summed(tmp_path: Path, printed) -> None:
    reasons = {f"reason {n}": 100 - n for n in range(30)}
    sources = {"s": source(3, 2, fates={"dropped": 1}, reasons=reasons)}
    told = printed(card.show, dataset(tmp_path, values(sources=sources)), Store(tmp_path))
    assert "reason 11" in told
    assert "reason 12" not in told
    # 88 + 87 + … + 71
    assert "and 18 more 1,431" in " ".join(told.split())


# ── drawing ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("share", "drawn"),
    [(0, ""), (1e-9, "▏"), (1 / 32, "▏"), (0.5, "██"), (0.53125, "██▏"), (31 / 32, "███▉"), (1, "████")],
)
def test_bar(share: float, drawn: str) -> None:
    assert card.bar(share, 4) == drawn


def test_spark() -> None:
    assert card.spark([]) == ""
    assert card.spark([0, 0]) == "··"
    assert card.spark([0, 1, 400, 401, 800]) == "·▁▄▅█"


# ── single rows ──────────────────────────────────────────────────────────────────────────────────


def test_the_hint_is_a_command_that_tells_a_rows_fate(tmp_path: Path, printed) -> None:
    artifact = dataset(tmp_path / "a store")
    told = printed(card.show, artifact, Store(tmp_path))
    words = shlex.split(told.splitlines()[-1])
    assert words[:4] == ["python", "-m", "alignment.run", "stage=show"]
    assert words[4] == f"target=run:{artifact.path}"
    assert words[5] == "row=hh/a.jsonl:2", "a row that something happened to"
    answer = printed(card.fate_of, artifact, words[5].removeprefix("row="))
    assert "dropped" in answer
    assert "duplicates  duplicate of hh:1" in answer


@pytest.mark.parametrize(
    ("spelling", "ids"),
    [
        ("hh/a.jsonl:3", ["hh:3"]),
        ("./hh/a.jsonl:3", ["hh:3"]),
        ("/data/x/hh/a.jsonl:3", ["hh:3"]),
        ("hh/b c.jsonl:7", ["hh:7"]),
        ("a.jsonl:1", ["oa:1"]),
        ("hh:1", ["hh:1"]),
        ("oa:1", ["oa:1"]),
    ],
)
def test_a_row_is_found_by_file_or_source(tmp_path: Path, printed, spelling: str, ids: list[str]) -> None:
    told = printed(card.fate_of, dataset(tmp_path), spelling)
    assert [one["id"] for one in LINES if f" {one['id']} " in told] == ids


def test_the_ledgers_words_are_printed_as_they_are(tmp_path: Path, printed) -> None:
    artifact = dataset(tmp_path)
    assert "[b]trimmed[/b]" in printed(card.fate, artifact, "oa", None, None)
    assert "train, 2 rows" in printed(card.fate_of, artifact, "hh:3")
    assert "train, 2 rows" not in printed(card.fate_of, artifact, "hh:1")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("hh/a.jsonl:9", r"file hh/a\.jsonl line 9: the ledger has no such line\nIt has hh, hh/a\.jsonl: lines 1 to 3"),
        (
            "hh/aa.jsonl:1",
            r"no such rows\nDid you mean 'hh/a\.jsonl'.*Known: a\.jsonl, hh, hh/a\.jsonl, hh/b c\.jsonl, oa",
        ),
        ("hh/a.jsonl", r"is not a row"),
        (":3", r"is not a row"),
        ("hh:x", r"is not a row"),
        ("hh:-1", r"is not a row"),
        ("oa:2", r"source oa line 2: .*\nIt has oa, a\.jsonl: lines 1 to 1"),
    ],
)
def test_a_row_that_is_not_there_is_told(tmp_path: Path, asked: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        card.fate_of(dataset(tmp_path), asked)


def test_an_unknown_source_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"source hj: .*\nKnown: hh, oa\."):
        card.fate(dataset(tmp_path), "hj", None, None)


def test_a_long_ledger_is_cut(tmp_path: Path, printed) -> None:
    artifact = dataset(tmp_path, lines=[line(line=n, id=f"hh:{n}") for n in range(1, card.ENTRIES_SHOWN + 31)])
    began = time.monotonic()
    told = printed(card.fate, artifact, "hh", None, None)
    assert time.monotonic() - began < 20
    assert told.count("hh/a.jsonl:") == card.ENTRIES_SHOWN
    assert told.rstrip().endswith("and 30 lines more")


def test_what_looks_like_markup_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """As the control tokens of other models do, which stand in the settings of a filter."""
    console.table("", ("key", "value"), [("tokens", "['[INST]', '[/INST]']"), ("licence", "MIT [/b] [bold]")])
    printed = capsys.readouterr().out
    assert "['[INST]', '[/INST]']" in printed
    assert "MIT [/b] [bold]" in printed
