"""Filters in their order, shards that are gone on from, several processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignment.chat.types import Conversation, Message, Messages
from alignment.data import shards, store
from alignment.data.build import Surroundings, build
from alignment.data.filters.filter import Filter, Finding, Judge, Scored
from alignment.data.filters.table import FILTERS, SCORED
from alignment.data.rows import Row
from alignment.errors import DataError, UserError
from alignment.settings import Settings, identity

from .examples import parse, source
from .test_build import THIRDS, check_laws, entry, row


class Word(Settings):
    """What a test's filter looks for."""

    word: str = identity("a word")


def answer_of(found: Row) -> str:
    assert isinstance(found, Conversation)
    return found.messages[-1].content


def make_word(options: Word, against: Mapping[str, Sequence[Row]]) -> Judge:
    def judge(found: Row) -> Finding | None:
        if options.word not in answer_of(found):
            return None
        assert isinstance(found, Conversation)
        mended = Message("assistant", answer_of(found).replace(options.word, "…"))
        return Finding(f"says {options.word}", "here", replace(found, messages=(*found.messages[:-1], mended)))

    return judge


def dialogues(found: Row) -> list[Messages]:
    assert isinstance(found, Conversation)
    return [found.messages]


def judged(options: Word, found: Row, scores: Sequence[float]) -> Finding | None:
    return Finding("scored low", f"{scores[0]:.2f}") if scores[0] < 0 else None


@pytest.fixture(autouse=True)
def filters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FILTERS, "word", Filter(make_word, Word, ("conversations",), mends=True))
    monkeypatch.setitem(SCORED, "low", Scored(dialogues, judged, Word, ("conversations",)))


def use(word: str, action: str, **more: Any) -> dict[str, Any]:
    return {"filter": "word", "action": action, "options": {"word": word}} | more


def by_length(some: Sequence[Messages]) -> list[float]:
    """A score below 0 for answers of more than eight characters."""
    return [8.0 - len(turns[-1].content) for turns in some]


LOW = {"filter": "low", "action": "drop", "options": {"word": ""}, "scorer": "gold:safety"}


def test_each_action_does_what_it_says_and_the_ledger_tells(tmp_path: Path, write) -> None:
    write("s.jsonl", row("1?", "bad ugly"), row("2?", "odd"), row("3?", "ugly odd"), row("4?", "fine"))
    recipe = parse(source(), filters=[use("bad", "drop"), use("odd", "flag"), use("ugly", "change")])
    card = build(recipe, tmp_path / "out", base=tmp_path)
    lines = [(line.fate, line.by, line.reason) for line in store.entries(tmp_path / "out")]
    assert lines == [
        ("dropped", "word", "says bad here"),
        ("flagged", "word", "says odd"),
        ("flagged", "word", "says odd; says ugly mended"),
        ("kept", "", ""),
    ]
    rows = store.read(tmp_path / "out", "train")
    assert [(answer_of(one), one.tags) for one in rows] == [  # type: ignore[union-attr]
        ("odd", ("flag:word",)), ("… odd", ("flag:word",)), ("fine", ()),
    ]  # fmt: skip
    assert card.sources["s"]["flags"] == {"says odd": 2}
    assert card.sources["s"]["changes"] == {"says ugly mended": 1}
    assert card.sources["s"]["reasons"] == {"says bad": 1}
    check_laws(tmp_path / "out", card)


def test_filters_act_in_the_order_of_the_recipe(tmp_path: Path, write) -> None:
    """A filter that mends what a later one would drop spares the row, and the other way round it does not."""
    write("s.jsonl", row("1?", "bad"), row("2?", "fine"))
    mended = build(parse(source(), filters=[use("bad", "change"), use("bad", "drop")]), tmp_path / "1", base=tmp_path)
    lost = build(parse(source(), filters=[use("bad", "drop"), use("bad", "change")]), tmp_path / "2", base=tmp_path)
    assert (mended.fates["changed"], lost.fates["dropped"]) == (1, 1)


def test_a_mended_row_can_turn_out_to_be_a_duplicate(tmp_path: Path, write) -> None:
    write("s.jsonl", row("1?", "a … b"), row("1?", "a ugly b"))
    build(parse(source(), filters=[use("ugly", "change")]), tmp_path / "out", base=tmp_path)
    assert entry(tmp_path / "out", 2).reason == "duplicate of s:1"
    assert entry(tmp_path / "out", 2).by == "duplicates"


def test_a_row_that_mending_spoils_is_dropped(tmp_path: Path, write) -> None:
    """A comparison whose answers differ in nothing but personal data has no better one without it."""
    write("s.jsonl", row("1?", "ugly"), row("2?", "fine"))
    nothing = Filter(lambda options, against: lambda one: spoiled(one), Word, ("conversations",), mends=True)
    FILTERS["word"] = nothing  # the fixture puts the other one back
    build(parse(source(), filters=[use("ugly", "change")]), tmp_path / "out", base=tmp_path)
    assert [(line.fate, line.by, line.reason) for line in store.entries(tmp_path / "out")] == [
        ("dropped", "word", "empty answer once mended"), ("kept", "", ""),
    ]  # fmt: skip


def spoiled(one: Row) -> Finding | None:
    assert isinstance(one, Conversation)
    emptied = replace(one, messages=(one.messages[0], Message("assistant", " ")))
    return Finding("says ugly", mended=emptied) if "ugly" in answer_of(one) else None


def test_a_scorer_is_asked_between_the_filters_around_it(tmp_path: Path, write) -> None:
    write("s.jsonl", row("1?", "ugly and long"), row("2?", "bad"), row("3?", "much too long"), row("4?", "short bad"))
    asked: list[str] = []

    def scores(some: Sequence[Messages]) -> list[float]:
        asked.extend(turns[-1].content for turns in some)
        return by_length(some)

    uses = [use("ugly and", "change"), LOW, use("bad", "drop")]
    around = Surroundings(tmp_path, scorers={1: scores})
    card = build(parse(source(), filters=uses), tmp_path / "out", surroundings=around)
    assert asked == ["… long", "bad", "much too long", "short bad"]
    assert [(line.fate, line.by) for line in store.entries(tmp_path / "out")] == [
        ("changed", "word"), ("dropped", "word"), ("dropped", "low"), ("dropped", "low"),
    ]  # fmt: skip
    assert entry(tmp_path / "out", 3).reason == "scored low -5.00"
    assert card.statistics["scores"]["low"]["count"] == 4


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"filters": [use("a", "drop") | {"filter": "wrod"}]}, r"filters\.0\.filter='wrod'.*\n.*\n.*'word'"),
        ({"filters": [use("a", "drop"), LOW | {"scorer": None}]}, r"filters\.1\.scorer: low needs a scorer"),
        ({"filters": [use("a", "drop", scorer="gold:safety")]}, r"filters\.0\.scorer=gold:safety: word takes none"),
        ({"filters": [LOW | {"action": "change"}]}, r"low cannot mend"),
        ({"filters": [{"filter": "word", "action": "drop", "options": {"wrod": "a"}}]}, r"wrod: there is no such key"),
        ({"filters": [use("a", "drop")], "kind": "text"}, r"."),
        ({"deny": ["S*"]}, r"sources\.0: 's' is on the deny-list \('S\*'\)"),
        ({"deny": ["*.jsonl"]}, r"sources\.0: 's.jsonl' is on the deny-list"),
        ({"mixture": {"by": "rows", "size": 3, "replacement": False}}, r"sources\.0\.weight: a mixture needs"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_before_anything_is_read(changes: dict, told: str) -> None:
    with pytest.raises(UserError, match=told):
        parse(source(), **changes)


def test_denied_origins_are_dropped(tmp_path: Path, write) -> None:
    write("s.jsonl", row("1?") | {"from": "ShareGPT-52K"}, row("2?") | {"from": "people"})
    recipe = parse(source(origin="from"), deny=["sharegpt*"])
    build(recipe, tmp_path / "out", base=tmp_path)
    assert [(line.fate, line.reason) for line in store.entries(tmp_path / "out")] == [
        ("dropped", "denied origin"), ("kept", ""),
    ]  # fmt: skip


def many(count: int) -> list[dict[str, str]]:
    return [row(f"question {n}?", f"answer {n % 50} bad" if n % 9 == 0 else f"answer {n % 50}") for n in range(count)]


def same(one: Path, other: Path) -> None:
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_several_processes_give_the_same_bytes(tmp_path: Path, write) -> None:
    """Of filters that ship with the package: a process of its own does not know those of a test."""
    write("s.jsonl", *many(3 * shards.ROWS + 7))
    write("t.jsonl", *many(11))
    turns = {"markers": ["answer 7"], "tokens": [], "unclosed_code": True, "cut_off": False, "echo": True}
    near = {"jaccard": 0.8, "shingle_words": 2, "across": True}
    uses = [
        {"filter": "turns", "action": "flag", "options": turns},
        {"filter": "near_duplicates", "action": "drop", "options": near},
    ]
    recipe = parse(source(limit=5000), source("t", "t.jsonl"), splits=THIRDS, filters=uses)
    for workers in (1, 2):
        around = Surroundings(tmp_path, workers=workers)
        card = build(recipe, tmp_path / str(workers), surroundings=around)
    same(tmp_path / "1", tmp_path / "2")
    check_laws(tmp_path / "2", card)
    assert card.sources["s"]["flags"]


def test_a_build_that_was_stopped_goes_on_after_its_last_whole_shard(
    tmp_path: Path, write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("s.jsonl", *many(4 * shards.ROWS))
    uses = [use("bad", "drop"), LOW]
    calls: Counter[str] = Counter()

    def stopped_at(number: int, name: str, does: Callable[..., Any]) -> Callable[..., Any]:
        def done(*arguments: Any) -> Any:
            calls[name] += 1
            if calls[name] == number:
                raise KeyboardInterrupt
            return does(*arguments)

        return done

    recipe = parse(source(), filters=uses, splits=THIRDS)
    build(recipe, tmp_path / "whole", surroundings=Surroundings(tmp_path, scorers={1: by_length}))
    scores = stopped_at(3, "scored", by_length)
    around = Surroundings(tmp_path, scorers={1: scores})
    plain = shards.Worker.do
    monkeypatch.setattr(shards.Worker, "do", stopped_at(3, "shaped", plain))
    for _ in range(2):  # stopped once while rows are shaped, once while they are scored
        with pytest.raises(KeyboardInterrupt):
            build(recipe, tmp_path / "out", surroundings=around)
    build(recipe, tmp_path / "out", surroundings=around)
    same(tmp_path / "whole", tmp_path / "out")
    # Four shards each, one of which was begun twice.
    assert calls == {"shaped": 5, "scored": 5}


def test_another_recipe_in_the_same_folder_begins_anew(tmp_path: Path, write) -> None:
    write("s.jsonl", *many(20))
    with pytest.raises(UserError, match="were dropped"):
        build(parse(source(), filters=[use("answer", "drop")], max_dropped=0.1), tmp_path / "out", base=tmp_path)
    card = build(parse(source()), tmp_path / "out", base=tmp_path)
    assert card.fates["kept"] == 20


def test_near_duplicates_are_dropped_or_flagged_and_named(tmp_path: Path, write) -> None:
    text = "the quick brown fox jumps over the lazy dog while the cat sleeps on the warm stone by the river"
    write("s.jsonl", row("what happens?", text), row("what happens?", text + " today"), row("else?", "nothing at all"))
    options = {"jaccard": 0.7, "shingle_words": 3, "across": True}
    for action in ("drop", "flag"):
        use_ = {"filter": "near_duplicates", "action": action, "options": options}
        card = build(parse(source(), filters=[use_]), tmp_path / action, base=tmp_path)
        check_laws(tmp_path / action, card)
    assert card.sources["s"]["flags"] == {"near duplicate": 1}
    dropped, flagged = (entry(tmp_path / action, 2) for action in ("drop", "flag"))
    assert (dropped.fate, dropped.by, dropped.reason) == ("dropped", "duplicates", "near duplicate of s:1")
    assert (flagged.fate, flagged.reason) == ("flagged", "near duplicate of s:1")
    assert {entry(tmp_path / action, 3).fate for action in ("drop", "flag")} == {"kept"}


def test_filters_may_be_named(tmp_path: Path) -> None:
    named = parse(source(), filters="standard").filters
    assert named is not None
    assert {"personal", "identity", "near_duplicates"} <= {one.filter for one in named}
    own = tmp_path / "own.yaml"
    own.write_text("filters:\n- {filter: word, action: drop, options: {word: bad}}\n")
    assert parse(source(), filters=str(own)).filters == parse(source(), filters=[use("bad", "drop")]).filters
    with pytest.raises(UserError, match=r"there is no list 'standrad'.*\n.*'standard'"):
        parse(source(), filters="standrad")
    own.write_text("filter: word\n")
    with pytest.raises(UserError, match="holds no list of filters"):
        parse(source(), filters=str(own))


def test_another_dataset_is_a_source_whose_rows_keep_their_sides(tmp_path: Path, write) -> None:
    write("s.jsonl", *many(60))
    build(parse(source(), splits=THIRDS), tmp_path / "first", base=tmp_path)
    taken = {"name": "first", "licence": "MIT", "format": "dataset", "dataset": "latest:data", "expected_rows": None}
    recipe = parse(taken, splits=None)
    card = build(recipe, tmp_path / "out", surroundings=Surroundings(tmp_path, datasets={0: tmp_path / "first"}))
    for split in card.rows:
        before = {answer_of(one) for one in store.stream(tmp_path / "first", split)}
        assert {answer_of(one) for one in store.stream(tmp_path / "out", split)} == before
    assert card.rows == store.card(tmp_path / "first")["rows"]
    assert next(store.stream(tmp_path / "out", "train")).id.startswith("first:s:")
    check_laws(tmp_path / "out", card)


def test_an_error_in_another_process_is_told_as_it_is(tmp_path: Path, write) -> None:
    write("s.jsonl", row("1?"), {"q": "2?"})
    with pytest.raises(DataError, match=r"s\.jsonl:2: there is no column 'a'"):
        build(parse(source()), tmp_path / "out", surroundings=Surroundings(tmp_path, workers=2))
    options = {"allowed": ["English"], "confidence": 0.5, "min_characters": 1, "texts": "all"}
    recipe = parse(source(), filters=[{"filter": "language", "action": "drop", "options": options}])
    with pytest.raises(UserError, match="'English' is no language"):
        build(recipe, tmp_path / "other", surroundings=Surroundings(tmp_path, workers=2))


def test_ids_that_a_source_repeats_are_told_apart(tmp_path: Path, write) -> None:
    write("s.jsonl", *({"i": 7, **row(question)} for question in ("1?", "2?", "1?")))
    taken = source(columns={"prompt": "q", "completion": "a", "id": "i"})
    card = build(parse(taken), tmp_path / "out", base=tmp_path)
    assert [(line.fate, line.id, line.reason) for line in store.entries(tmp_path / "out")] == [
        ("kept", "s:7", ""), ("kept", "s:7~2", ""), ("dropped", "s:7~3", "duplicate of s:7"),
    ]  # fmt: skip
    check_laws(tmp_path / "out", card)


EVALUATION = {
    "name": "held_out", "kind": "prompts", "licence": "MIT", "format": "prompt_completion", "columns": {"prompt": "q"},
    "files": {"paths": ["held.jsonl"], "reader": "jsonl"}, "expected_rows": None,
}  # fmt: skip
OVERLAP = {"ngram_words": 5, "whole_words": 3, "at_least": 1, "texts": "all"}


def contamination(*sets: dict[str, Any]) -> dict[str, Any]:
    return {"filter": "contamination", "action": "drop", "options": OVERLAP, "against": list(sets)}


def test_evaluation_sets_are_whole_or_refused(tmp_path: Path, write) -> None:
    write("s.jsonl", row("where does the old river end today?"), row("what is that?"))
    write("held.jsonl", {"q": "Where does the old river END today"})
    card = build(parse(source(), filters=[contamination(EVALUATION)]), tmp_path / "out", base=tmp_path)
    assert card.sources["s"]["reasons"] == {"contaminated by held_out": 1}
    with pytest.raises(UserError, match="2 evaluation sets are called 'held_out'"):
        parse(source(), filters=[contamination(EVALUATION, EVALUATION)])
    more = EVALUATION | {"expected_rows": 9}
    with pytest.raises(UserError, match="source held_out: 1 rows read, expected_rows=9"):
        build(parse(source(), filters=[contamination(more)]), tmp_path / "count", base=tmp_path)
    write("held.jsonl", {"q": "where"}, {"q": None})
    with pytest.raises(DataError, match=r"held\.jsonl:2: the evaluation set held_out cannot be compared with"):
        build(parse(source(), filters=[contamination(EVALUATION)]), tmp_path / "null", base=tmp_path)


def test_a_dataset_of_another_kind_is_told(tmp_path: Path, write) -> None:
    write("s.jsonl", row("1?"))
    build(parse(source()), tmp_path / "first", base=tmp_path)
    taken = {"name": "first", "licence": "MIT", "format": "dataset", "dataset": "latest:data", "expected_rows": None}
    around = Surroundings(tmp_path, datasets={0: tmp_path / "first"})
    with pytest.raises(UserError, match="source first: latest:data holds conversations, and the recipe's kind is"):
        build(parse(taken, splits=None, kind="prompts"), tmp_path / "out", surroundings=around)
