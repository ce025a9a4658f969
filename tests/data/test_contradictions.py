"""Two answers that are compared both ways say nothing, wherever the two comparisons stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignment.chat.types import Comparison, messages
from alignment.data import assemble, contradictions, shards, store
from alignment.data.build import Surroundings, build
from alignment.data.recipe import Recipe
from alignment.errors import UserError

from .examples import parse, source
from .test_build import check_laws
from .test_passes import same

COLUMNS = {"prompt": "q", "chosen": "c", "rejected": "r"}


def pair(question: str, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    return {"q": question, "c": chosen, "r": rejected, **more}


def pairs_from(name: str = "s", **changes: Any) -> dict[str, Any]:
    return source(name, f"{name}.jsonl", **{"format": "chosen_rejected", "columns": COLUMNS} | changes)


def compared(*sources: dict[str, Any], **changes: Any) -> Recipe:
    return parse(*sources or (pairs_from(),), kind="comparisons", **changes)


def told(out: Path, **where: Any) -> list[tuple[str, str, str]]:
    return [(line.fate, line.by, line.reason) for line in store.entries(out, **where)]


KEPT = ("kept", "", "")


def against(other: str) -> tuple[str, str, str]:
    return "dropped", "rules", f"contradiction with {other}"


ROW = Comparison(messages(("user", "q?")), "a", "b", None, "s", "")


@pytest.mark.parametrize(
    ("other", "one_pair"),
    [
        (replace(ROW, id="x", grade="better", source="t", chosen_safe=True), True),
        (replace(ROW, chosen="b", rejected="a"), True),
        (replace(ROW, rejected="c"), False),
        (replace(ROW, prompt=messages(("user", "p?"))), False),
        (replace(ROW, prompt=messages(("system", "q?"))), False),
        (replace(ROW, prompt=messages(("user", "q?"), ("assistant", "a")), chosen="b", rejected="c"), False),
    ],
)
def test_a_pair_is_a_prompt_and_two_answers_in_either_order(other: Comparison, one_pair: bool) -> None:
    digest, order = contradictions.pair_of(ROW)
    assert (len(digest), order) == (16, True)
    assert (contradictions.pair_of(other)[0] == digest) is one_pair
    assert contradictions.pair_of(replace(ROW, chosen="b", rejected="a"))[1] is False


def test_both_rows_go_and_name_each_other(tmp_path: Path, write) -> None:
    write(
        "s.jsonl",
        pair("1?", "a", "b"), pair("2?", "a", "b"), pair("1?", "b ", "a"), pair("2?", "a", "c"), pair("3?", "b", "a"),
    )  # fmt: skip
    card = build(compared(max_dropped=2 / 5), tmp_path / "out", base=tmp_path)
    assert told(tmp_path / "out") == [against("s:3"), KEPT, against("s:1"), KEPT, KEPT]
    assert card.sources["s"]["reasons"] == {"contradiction": 2}
    assert card.sources["s"]["duplicates"] == {}
    check_laws(tmp_path / "out", card)
    with pytest.raises(UserError, match=r"2 of 5 rows were dropped.*\n.*contradiction \(2\)"):
        build(compared(max_dropped=0.3), tmp_path / "few", base=tmp_path)


def test_duplicates_stay_duplicates_and_the_first_row_of_each_order_is_named(tmp_path: Path, write) -> None:
    rows = [("a", "b"), ("a", "b"), ("b", "a"), ("b", "a"), ("a", "b")]
    write("s.jsonl", *(pair("1?", *answers, i=7) for answers in rows), pair("2?", "a", "b", i=8))
    card = build(compared(pairs_from(columns=COLUMNS | {"id": "i"})), tmp_path / "out", base=tmp_path)
    assert told(tmp_path / "out") == [
        against("s:7~3"),
        ("dropped", "duplicates", "duplicate of s:7"),
        against("s:7"),
        ("dropped", "duplicates", "duplicate of s:7~3"),
        ("dropped", "duplicates", "duplicate of s:7"),
        KEPT,
    ]
    assert [line.id for line in store.entries(tmp_path / "out")] == ["s:7", *(f"s:7~{n}" for n in range(2, 6)), "s:8"]
    check_laws(tmp_path / "out", card)


def test_a_row_that_is_out_already_contradicts_nothing(tmp_path: Path, write) -> None:
    """Past the limit, of a denied origin: each leaves the row that it would have contradicted."""
    write(
        "s.jsonl",
        pair("1?", "a", "b", by="people"), pair("2?", "a", "b", by="people"),
        pair("1?", "b", "a", by="bots"), pair("2?", "b", "a", by="people"),
    )  # fmt: skip
    build(compared(pairs_from(limit=3, origin="by"), deny=["bots"]), tmp_path / "out", base=tmp_path)
    assert [fate for fate, _, _ in told(tmp_path / "out")] == ["kept", "kept", "dropped", "not_drawn"]
    build(compared(pairs_from(limit=3)), tmp_path / "all", base=tmp_path)
    assert [fate for fate, _, _ in told(tmp_path / "all")] == ["dropped", "kept", "dropped", "not_drawn"]


def test_other_kinds_know_no_contradiction(tmp_path: Path, write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contradictions, "find", lambda shards: pytest.fail("looked for"))
    write("s.jsonl", {"q": "1?", "a": "b"}, {"q": "b", "a": "1?"})
    assert build(parse(source()), tmp_path / "out", base=tmp_path).rows == {"train": 2}


def test_what_is_nearly_contradicted_stays(tmp_path: Path, write) -> None:
    """A contradicted row is nothing that another one could nearly repeat."""
    text = "the quick brown fox jumps over the lazy dog while the cat sleeps on the warm stone by the river"
    write("s.jsonl", pair("1?", text, "no"), pair("1?", "no", text), pair("1?", f"{text} today", "no"))
    near = {"jaccard": 0.5, "shingle_words": 3, "across": True}
    recipe = compared(filters=[{"filter": "near_duplicates", "action": "drop", "options": near}])
    build(recipe, tmp_path / "out", base=tmp_path)
    assert told(tmp_path / "out") == [against("s:2"), against("s:1"), KEPT]


def written(write: Callable[..., Path], count: int = 40) -> None:
    """Two sources: ``t`` contradicts every fourth row of ``s``, repeats another fourth and brings its own."""
    write("s.jsonl", *(pair(f"{n}?", f"good {n}", f"bad {n}") for n in range(count)))
    write(
        "t.jsonl",
        *(pair(f"{n}?", f"bad {n}", f"good {n}") for n in range(0, count, 4)),
        *(pair(f"{n}?", f"good {n}", f"bad {n}") for n in range(1, count, 4)),
        *(pair(f"{n}?", "good", "bad") for n in range(count)),
    )


def test_sources_and_shards_are_looked_at_together(tmp_path: Path, write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "ROWS", 7)
    written(write)
    card = build(compared(pairs_from("s"), pairs_from("t")), tmp_path / "out", base=tmp_path)
    assert card.sources["s"]["reasons"] == {"contradiction": 10}
    assert card.sources["t"]["reasons"] == {"contradiction": 10, "duplicate": 10}
    assert told(tmp_path / "out", source="s", line=5) == [against("t:2")]
    assert told(tmp_path / "out", source="t", line=2) == [against("s:5")]
    assert card.rows == {"train": 30 + 40}
    check_laws(tmp_path / "out", card)


def test_a_mixture_draws_from_what_is_not_contradicted(tmp_path: Path, write) -> None:
    written(write)
    sources = (pairs_from("s", weight=1.0), pairs_from("t", weight=0.5))
    recipe = compared(*sources, mixture={"by": "rows", "size": None, "replacement": False})
    card = build(recipe, tmp_path / "out", base=tmp_path)
    taken = Counter(row.id.partition(":")[0] for row in store.stream(tmp_path / "out", "train"))
    assert taken == {"s": 30, "t": 15}
    assert told(tmp_path / "out", source="s", line=5) == [against("t:2")]
    check_laws(tmp_path / "out", card)


def test_the_bytes_depend_neither_on_processes_nor_on_stops(
    tmp_path: Path, write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "ROWS", 16)
    written(write)
    recipe = compared(pairs_from("s"), pairs_from("t"))
    for workers in (1, 2):
        build(recipe, tmp_path / str(workers), surroundings=Surroundings(tmp_path, workers=workers))
    same(tmp_path / "1", tmp_path / "2")

    def stopped(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    for module, name in ((contradictions, "find"), (assemble, "_weighed")):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, stopped)
            with pytest.raises(KeyboardInterrupt):
                build(recipe, tmp_path / "stopped", base=tmp_path)
    build(recipe, tmp_path / "stopped", base=tmp_path)
    same(tmp_path / "1", tmp_path / "stopped")
