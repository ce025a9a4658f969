"""Mixtures: how much of each source the training split gets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from alignment.chat.types import Conversation
from alignment.data import draw, store
from alignment.data.build import Surroundings, build
from alignment.data.recipe import Recipe
from alignment.errors import UserError

from .examples import parse, source
from .test_build import THIRDS, check_laws, row
from .test_passes import many, same


def training(out: Path) -> dict[str, int]:
    return Counter(one.id.partition(":")[0] for one in store.stream(out, "train"))


def mixed(
    tmp_path: Path, write, size: int | None, *, replacement: bool, by: str = "rows", weights: Sequence[float]
) -> Recipe:
    write("s.jsonl", *many(400))
    write("t.jsonl", *(row(f"other {n}?", "no") for n in range(100)))
    sources = (source("s", weight=weights[0]), source("t", "t.jsonl", weight=weights[1]))
    return parse(*sources, mixture={"by": by, "size": size, "replacement": replacement})


def test_a_mixture_has_the_shares_that_it_names(tmp_path: Path, write) -> None:
    recipe = mixed(tmp_path, write, 200, replacement=False, weights=(3.0, 1.0))
    card = build(recipe, tmp_path / "out", base=tmp_path)
    assert training(tmp_path / "out") == {"s": 150, "t": 50}
    assert card.fates["not_drawn"] == 300
    assert {line.reason for line in store.entries(tmp_path / "out") if not line.copies} == {"not drawn for the mixture"}
    check_laws(tmp_path / "out", card)
    build(recipe, tmp_path / "again", base=tmp_path)
    same(tmp_path / "out", tmp_path / "again")


def test_without_replacement_a_source_gives_no_more_than_it_has(tmp_path: Path, write) -> None:
    recipe = mixed(tmp_path, write, 400, replacement=False, weights=(1.0, 1.0))
    with pytest.raises(UserError, match="t has 100 rows for training, and its share is 200"):
        build(recipe, tmp_path / "out", base=tmp_path)


def test_with_replacement_rows_come_again_as_chance_has_it(tmp_path: Path, write) -> None:
    recipe = mixed(tmp_path, write, 600, replacement=True, weights=(1.0, 1.0))
    card = build(recipe, tmp_path / "out", base=tmp_path)
    assert training(tmp_path / "out") == {"s": 300, "t": 300}
    copies = Counter(line.copies for line in store.entries(tmp_path / "out", source="t"))
    # 300 draws from 100 rows: Poisson with mean 3, of which 5 are never drawn and none is drawn thrice by rule.
    assert 1 <= copies[0] <= 12
    assert max(copies) >= 6
    check_laws(tmp_path / "out", card)


def test_a_mixture_by_tokens_counts_them(tmp_path: Path, write, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignment.data import build as building

    monkeypatch.setattr(building, "_counter", lambda path: lambda texts: [len(text) for text in texts])
    recipe = mixed(tmp_path, write, 2000, replacement=False, by="tokens", weights=(1.0, 1.0))
    card = build(recipe, tmp_path / "out", base=tmp_path)
    sizes: Counter[str] = Counter()
    for one in store.stream(tmp_path / "out", "train"):
        assert isinstance(one, Conversation)
        sizes[one.id.partition(":")[0]] += len("\n".join(turn.content for turn in one.messages))
    # Whole rows: up to one row more than the share.
    assert all(1000 <= size < 1030 for size in sizes.values())
    check_laws(tmp_path / "out", card)
    monkeypatch.setattr(building, "_counter", lambda path: None)
    with pytest.raises(UserError, match="no tokenizer"):
        build(recipe, tmp_path / "none", base=tmp_path)


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize(("weights", "second"), [((1.0, 1.0), 100), ((0.9, 0.1), 11), ((1.0, 0.255), 26)])
def test_without_a_size_the_first_source_gives_every_row_once(
    tmp_path: Path, write, weights: tuple[float, float], second: int, replacement: bool
) -> None:
    """Llama 2's rules: all of the first and as many of the others, or nine parts of the first and one of the others."""
    recipe = mixed(tmp_path, write, None, replacement=replacement, weights=weights)
    write("s.jsonl", *(row(f"{n}?") for n in range(100)))
    card = build(recipe, tmp_path / "out", base=tmp_path)
    assert training(tmp_path / "out") == {"s": 100, "t": second}
    assert {line.copies for line in store.entries(tmp_path / "out", source="s")} == {1}
    check_laws(tmp_path / "out", card)
    if second == 100:
        # 100 draws from 100 rows: that none comes twice has a chance of 100!/100¹⁰⁰ < 1e-40.
        again = {line.copies for line in store.entries(tmp_path / "out", source="t")} != {1}
        assert again is replacement


def test_without_a_size_the_others_share_what_is_theirs(tmp_path: Path, write) -> None:
    write("a.jsonl", *(row(f"a {n}?") for n in range(30)))
    write("b.jsonl", *(row(f"b {n}?") for n in range(90)))
    write("c.jsonl", *(row(f"c {n}?") for n in range(90)))
    weights = {"a": 1.0, "b": 0.5, "c": 1.5}
    sources = [source(name, f"{name}.jsonl", weight=weight) for name, weight in weights.items()]
    blend = {"by": "rows", "size": None, "replacement": False}
    build(parse(*sources, mixture=blend), tmp_path / "out", base=tmp_path)
    assert training(tmp_path / "out") == {"a": 30, "b": 15, "c": 45}
    build(parse(sources[0], mixture=blend), tmp_path / "alone", base=tmp_path)
    assert training(tmp_path / "alone") == {"a": 30}


def test_without_a_size_only_training_rows_count_and_sides_are_kept(tmp_path: Path, write) -> None:
    write("s.jsonl", *(row(f"{n}?") for n in range(300)))
    write("t.jsonl", *(row(f"other {n}?") for n in range(300)))
    for name in ("s", "t"):
        build(parse(source(name, f"{name}.jsonl"), splits=THIRDS), tmp_path / name, base=tmp_path)
    taken = [
        {"name": name, "licence": "MIT", "format": "dataset", "dataset": f"latest:{name}", "expected_rows": None}
        for name in ("s", "t")
    ]
    blend = {"by": "rows", "size": None, "replacement": False}
    recipe = parse(taken[0] | {"weight": 0.9}, taken[1] | {"weight": 0.1}, mixture=blend, splits=None)
    around = Surroundings(tmp_path, datasets={0: tmp_path / "s", 1: tmp_path / "t"})
    card = build(recipe, tmp_path / "out", surroundings=around)
    parts = [store.card(tmp_path / name)["rows"] for name in ("s", "t")]
    assert training(tmp_path / "out") == {"s": parts[0]["train"], "t": round(parts[0]["train"] / 9)}
    for split in ("valid", "test"):
        assert card.rows[split] == parts[0][split] + parts[1][split]
    check_laws(tmp_path / "out", card)


@pytest.mark.parametrize("replacement", [False, True])
def test_without_a_size_tokens_are_matched_too(
    tmp_path: Path, write, monkeypatch: pytest.MonkeyPatch, replacement: bool
) -> None:
    from alignment.data import build as building

    monkeypatch.setattr(building, "_counter", lambda path: lambda texts: [len(text) for text in texts])
    recipe = mixed(tmp_path, write, None, replacement=replacement, by="tokens", weights=(1.0, 0.25))
    write("s.jsonl", *(row("x" * 19, f"{n:030}") for n in range(40)))
    build(recipe, tmp_path / "out", base=tmp_path)
    sizes: Counter[str] = Counter()
    for one in store.stream(tmp_path / "out", "train"):
        assert isinstance(one, Conversation)
        sizes[one.id.partition(":")[0]] += len("\n".join(turn.content for turn in one.messages))
    # 40 rows of 19 + 1 + 30 = 50 tokens are 2,000, of which a quarter is 500; whole rows go beyond by less than one.
    assert sizes["s"] == 2000
    assert 500 <= sizes["t"] < 513
    assert {line.copies for line in store.entries(tmp_path / "out", source="s")} == {1}


def test_without_a_size_a_source_that_is_too_small_or_empty_is_told(tmp_path: Path, write) -> None:
    recipe = mixed(tmp_path, write, None, replacement=False, weights=(1.0, 1.0))
    with pytest.raises(UserError, match=r"mixture\.size=null: t has 100 rows for training, and its share is 400"):
        build(recipe, tmp_path / "small", base=tmp_path)
    for replacement in (False, True):
        recipe = mixed(tmp_path, write, None, replacement=replacement, weights=(1.0, 1.0))
        write("s.jsonl", row("1?", ""))
        with pytest.raises(UserError, match=r"mixture\.size=null: s has no rows for training"):
            build(recipe, tmp_path / "empty", base=tmp_path)


@pytest.mark.parametrize(("size", "weights"), [(10, (1, 1, 1)), (5, (1, 1)), (1, (1, 1)), (7, (0.2, 0.5, 0.3))])
def test_shares_are_whole_and_sum_to_the_size(size: int, weights: tuple[float, ...]) -> None:
    shares = draw.whole_shares(size, weights)
    assert sum(shares) == size
    exact = [size * weight / sum(weights) for weight in weights]
    assert all(abs(share - wanted) < 1 for share, wanted in zip(shares, exact, strict=True))
