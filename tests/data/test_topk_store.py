"""A teacher's likeliest tokens on disk: what is written comes back, what does not fit or is damaged is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from alignment import files
from alignment.artifacts import Tokens
from alignment.data import topk as storage
from alignment.data.topk import Store, Teacher, TopK, Writer
from alignment.data.topk_fit import need_fit
from alignment.errors import UserError

TEACHER = Teacher("t", "digest", "gemma2", vocabulary=256_000, k=3, drawn=2, temperature=1.0, block=None)
NAMES = [["a", "b#0"], ["zwölf"]]


def rows(names: list[str], seed: int, k: int = 3, vocabulary: int = 256_000, drawn: int = 2) -> list[TopK]:
    """Rows of 2 and 3 tokens; the highest id of the vocabulary is among them."""
    rng = np.random.default_rng(seed)
    found = [
        TopK(
            np.array([vocabulary - 1, *rng.integers(0, vocabulary, length - 1)]),
            rng.integers(0, vocabulary, (length, k)),
            -rng.exponential(4, (length, k)),
            -rng.exponential(4, length),
            rng.integers(0, vocabulary, (length, drawn)),
            rng.exponential(4, length),
        )
        for length in range(2, 2 + len(names))
    ]
    return found if drawn else [row._replace(drawn_TM=None, entropy_T=None) for row in found]


def written(directory: Path, teacher: Teacher = TEACHER) -> Path:
    writer = Writer(directory, teacher)
    for number, names in enumerate(NAMES):
        writer.write(names, rows(names, number, teacher.k, teacher.vocabulary, teacher.drawn))
    assert writer.finish() == {"rows": 3, "tokens": 7}
    return directory


@pytest.mark.parametrize("drawn", [0, 2])
@pytest.mark.parametrize("vocabulary", [65_536, 65_537, 2**24])
def test_what_is_written_comes_back(tmp_path: Path, vocabulary: int, drawn: int) -> None:
    teacher = replace(TEACHER, vocabulary=vocabulary, drawn=drawn)
    store = Store.open(written(tmp_path, teacher))
    assert store.teacher == teacher
    assert list(store) == ["a", "b#0", "zwölf"]
    for number, names in enumerate(NAMES):
        for name, row in zip(names, rows(names, number, vocabulary=vocabulary, drawn=drawn), strict=True):
            found = store.row(name)
            assert found.tokens_T.tolist() == row.tokens_T.tolist()
            assert found.ids_TK.tolist() == row.ids_TK.tolist()
            np.testing.assert_allclose(found.logprobs_TK, row.logprobs_TK, rtol=2**-11)
            np.testing.assert_allclose(found.tail_T, row.tail_T, rtol=2**-11)
            if not drawn:
                assert found.drawn_TM is found.entropy_T is None
                continue
            assert found.drawn_TM.tolist() == row.drawn_TM.tolist()  # type: ignore[union-attr]
            np.testing.assert_allclose(found.entropy_T, row.entropy_T, rtol=2**-11)  # type: ignore[arg-type]
    assert "c" not in store
    with pytest.raises(UserError, match="no row 'c'"):
        store.row("c")


@pytest.mark.parametrize(
    ("vocabulary", "drawn", "wanted"), [(64_000, 0, 260), (256_000, 0, 325), (64_000, 16, 294), (256_000, 16, 375)]
)
def test_bytes_of_a_token(tmp_path: Path, vocabulary: int, drawn: int, wanted: int) -> None:
    """64 + 1 ids and as many halves: 65 · 2 + 65 · 2 = 260, or 65 · 3 + 65 · 2 = 325. With 16 draws 81 ids, 66 halves:
    81 · 2 + 66 · 2 = 294, or 81 · 3 + 66 · 2 = 375. The header is beside that."""
    teacher = replace(TEACHER, vocabulary=vocabulary, k=64, drawn=drawn)
    assert teacher.bytes_a_token == wanted <= 400
    writer = Writer(tmp_path, teacher)
    many = rows(["x"], 0, 64, vocabulary, drawn) * 500
    writer.write([f"row-{number}" for number in range(500)], many)
    tokens = writer.finish()["tokens"]
    size = (tmp_path / "topk" / "00000.safetensors").stat().st_size
    # A row besides: an offset of 8 bytes, and in the header ["row-499", "0123456789abcdef"] and a comma, escaped.
    assert tokens * wanted < size < tokens * wanted + 500 * (8 + 38) + 1000


def test_an_id_of_three_bytes_has_its_lowest_first(tmp_path: Path) -> None:
    written(tmp_path)
    parts = load_file(tmp_path / "topk" / "00000.safetensors")
    # 255,999 is 3 · 65,536 + 231 · 256 + 255.
    assert parts["tokens"][0].tolist() == [255, 231, 3]
    assert {what: (part.dtype, part.shape) for what, part in parts.items()} == {
        "tokens": (np.uint8, (5, 3)),
        "ids": (np.uint8, (5, 3, 3)),
        "drawn": (np.uint8, (5, 2, 3)),
        "logprobs": (np.float16, (5, 3)),
        "tail": (np.float16, (5,)),
        "entropy": (np.float16, (5,)),
        "offsets": (np.int64, (3,)),
    }


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = (written(tmp_path / name) / "topk" for name in "ab")
    names = sorted(path.name for path in one.iterdir())
    assert names == ["00000.safetensors", "00001.safetensors", "index.json"]
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)


def test_what_an_earlier_start_wrote_is_kept_and_nothing_else(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole") / "topk"
    writer = Writer(tmp_path / "out", TEACHER)
    assert not writer.keep(NAMES[0])
    writer.write(NAMES[0], rows(NAMES[0], 0))
    for stray in ("00001", "00002"):
        (tmp_path / "out" / "topk" / f"{stray}.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match="no top-k"):
        Store.open(tmp_path / "out")

    again = Writer(tmp_path / "out", TEACHER)
    assert again.keep(NAMES[0])
    assert not again.keep(NAMES[1])
    again.write(NAMES[1], rows(NAMES[1], 1))
    again.finish()
    for path in whole.iterdir():
        assert (tmp_path / "out" / "topk" / path.name).read_bytes() == path.read_bytes()
    assert len(list((tmp_path / "out" / "topk").iterdir())) == 3
    # Other rows under the same number are not taken for these.
    other = Writer(tmp_path / "out", TEACHER)
    assert not other.keep(["a"])


@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
def test_damage_is_found(tmp_path: Path, harm: str) -> None:
    path = written(tmp_path) / "topk" / "00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(content if harm == "flip" else content[:-3])
    with pytest.raises(UserError, match=r"00001\.safetensors is damaged"):
        Store.open(tmp_path).row("zwölf")


def test_without_an_index_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no top-k log-probabilities(.|\n)*top_k=64"):
        Store.open(tmp_path)
    index = written(tmp_path) / "topk" / "index.json"
    Writer(tmp_path, TEACHER)
    with pytest.raises(UserError, match="no top-k"):
        Store.open(tmp_path)
    written(tmp_path)
    index.write_text(json.dumps(json.loads(index.read_text()) | {"version": storage.VERSION + 1}))
    with pytest.raises(UserError, match=r"version 4, and this program reads 3"):
        Store.open(tmp_path)


# ── in bulk, and against a student ───────────────────────────────────────────────────────────────

TOKENS = Tokens("digest", 255_000, 256_000, "gemma2")


def stored(directory: Path, **changes: object) -> Store:
    return Store.open(written(directory, replace(TEACHER, **changes)))  # type: ignore[arg-type]


def own(store: Store) -> list[tuple[str, list[int]]]:
    """Names and ids as a student has them that renders as the teacher did."""
    return [(name, store.row(name).tokens_T.tolist()) for name in store]


def fit(store: Store, given: list[tuple[str, list[int]]], tokens: Tokens = TOKENS, **changes: object) -> None:
    need_fit(store, tokens, **{"temperature": 1.0, "block": None, "rows": given, **changes})  # type: ignore[arg-type]


def test_rows_come_in_the_order_that_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "OPEN_SHARDS", 1)
    checked: list[str] = []
    monkeypatch.setattr(storage.files, "digest_file", watched(storage.files.digest_file, checked))
    store = stored(tmp_path)
    checked.clear()  # Those of the writer.
    single = {name: store.row(name) for name in store}
    names = ["zwölf", "a", "b#0", "a", "zwölf"]
    for name, found in zip(names, store.rows(names), strict=True):
        for part, same in zip(found, single[name], strict=True):
            np.testing.assert_array_equal(part, same)
    types = [part.dtype for part in store.row("a") if part is not None]
    assert types == [np.int64, np.int64, np.float32, np.float32, np.int64, np.float32]
    # However often a shard is opened again, its bytes are looked at once.
    assert checked == ["00000.safetensors", "00001.safetensors"]


def watched(whole: Callable[[Path], str], seen: list[str]) -> Callable[[Path], str]:
    def digest(path: Path) -> str:
        seen.append(path.name)
        return whole(path)

    return digest


def test_opening_and_fitting_read_headers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stored(tmp_path)
    given = own(store)
    monkeypatch.setattr(storage.files, "digest_file", lambda path: pytest.fail(f"{path} is read"))
    fit(Store.open(tmp_path), given)


def test_the_rows_own_tokens_are_compared(tmp_path: Path) -> None:
    store = stored(tmp_path)
    names, tokens = zip(*own(store), strict=True)
    assert len(store.rows(names, tokens)) == 3
    for other in ([*tokens[1][:-1], tokens[1][-1] + 1], tokens[1][:-1], [*tokens[1], 0]):
        with pytest.raises(UserError, match=r"row 'b#0' has other trained tokens(.|\n)*rendered or masked"):
            store.rows(names, [tokens[0], other, tokens[2]])
    with pytest.raises(UserError, match="'b#0'"):
        store.row("b#0", tokens[0])


def test_a_student_that_renders_as_the_teacher_did_is_let_in(tmp_path: Path) -> None:
    store = stored(tmp_path)
    a, b, c = own(store)
    for given in ([a, b, c], [b], [a, c], [], [a, b, a, c, b]):
        fit(store, given)
    fit(store, [a, b, c], tokens=replace(TOKENS, vocabulary=1, padded=64_000))


@pytest.mark.parametrize(
    ("tokens", "changes", "told"),
    [
        ({"digest": "other"}, {}, r"another tokenizer's ids(.|\n)*distillation is another method"),
        ({"schema": "gemma1"}, {}, r"rendered as gemma2, and by the student as gemma1"),
        ({}, {"temperature": 2.0}, r"objective\.temperature=2\.0: .* at 1\.0(.|\n)*top_k_temperature=2\.0"),
        ({}, {"block": 128}, r"is of conversations, and the student reads rows of 128 tokens"),
    ],
)
def test_another_student_is_refused(
    tmp_path: Path, tokens: dict[str, str], changes: dict[str, object], told: str
) -> None:
    store = stored(tmp_path)
    with pytest.raises(UserError, match=told):
        fit(store, own(store), replace(TOKENS, **tokens), **changes)  # type: ignore[arg-type]


def test_of_text_the_block_counts_and_the_schema_does_not(tmp_path: Path) -> None:
    store = stored(tmp_path, schema="", block=128)
    assert store.teacher.block == 128
    fit(store, own(store), block=128)
    with pytest.raises(UserError, match=r"is of rows of 128 tokens, and the student reads rows of 64"):
        fit(store, own(store), block=64)
    with pytest.raises(UserError, match=r"is of rows of 128 tokens, and the student reads conversations"):
        fit(store, own(store))


def test_rows_that_are_others_are_refused_by_name(tmp_path: Path) -> None:
    store = stored(tmp_path)
    a, b, c = own(store)
    with pytest.raises(UserError, match=r"there is no row 'd'(.|\n)*3 rows"):
        fit(store, [a, ("d", [1])])
    with pytest.raises(UserError, match=r"row 'b#0' has other trained tokens"):
        fit(store, [a, ("b#0", a[1])])
    with pytest.raises(UserError, match=r"row 'a' has other trained tokens"):
        fit(store, [a, b, ("a", b[1])])
    with pytest.raises(UserError, match=r"row 'b#0' stands before 'zwölf'(.|\n)*in another order"):
        fit(store, [a, c, b])


@pytest.mark.parametrize("part", ["logprobs_TK", "tail_T", "entropy_T"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_neither_written_nor_read(tmp_path: Path, part: str, value: float) -> None:
    sound = rows(["a", "b"], 0)
    harmed = getattr(sound[1], part).copy()
    harmed[2, ...] = value
    wrong = [sound[0], sound[1]._replace(**{part: harmed})]
    if part == "tail_T" and value == -np.inf:
        # The others have no share at all: that is a distribution.
        Writer(tmp_path, TEACHER).write(["a", "b"], wrong)
        return
    writer = Writer(tmp_path, TEACHER)
    with pytest.raises(UserError, match=r"^b: a log-probability of the teacher is no finite number, .* token 3"):
        writer.write(["a", "b"], wrong)
    assert not list((tmp_path / "topk").iterdir())

    writer.write(["a", "b"], sound)
    writer.finish()
    harm_shard(tmp_path / "topk", part.partition("_")[0], value)
    store = Store.open(tmp_path)
    assert store.row("a")
    with pytest.raises(UserError, match=r"^b: a log-probability"):
        store.rows(["a", "b"])


def harm_shard(folder: Path, what: str, value: float) -> None:
    """Put a value at a shard's end, with a digest that says that it belongs there."""
    path = folder / "00000.safetensors"
    with safe_open(path, framework="np") as shard:
        metadata = shard.metadata()
    parts = load_file(path)
    parts[what][-1, ...] = value
    save_file(parts, path, metadata)
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0]["sha256"] = files.digest_file(path)
    (folder / "index.json").write_text(json.dumps(index))


def test_what_fp16_cannot_tell_is_as_unlikely_as_it_can(tmp_path: Path) -> None:
    (row,) = rows(["a"], 0)
    row.logprobs_TK[0, 2] = -1e6
    writer = Writer(tmp_path, TEACHER)
    writer.write(["a"], [row])
    writer.finish()
    assert Store.open(tmp_path).row("a").logprobs_TK[0, 2] == -65_504


@pytest.mark.parametrize("version", [1, 2])
def test_a_store_of_an_earlier_version_is_made_again(tmp_path: Path, version: int) -> None:
    index = written(tmp_path) / "topk" / "index.json"
    told = json.loads(index.read_text())
    del told["drawn"]  # They knew of none.
    index.write_text(json.dumps(told | {"version": version}))
    with pytest.raises(UserError, match=rf"version {version}, and this program reads 3(.|\n)*force=true"):
        Store.open(tmp_path)


@pytest.mark.parametrize("harm", ["drawn", "ids"])
def test_columns_of_another_width_than_the_header_says_are_not_written(tmp_path: Path, harm: str) -> None:
    writer = Writer(tmp_path, replace(TEACHER, **{"drawn": 3} if harm == "drawn" else {"k": 4}))
    with pytest.raises(AssertionError, match="as the header says"):
        writer.write(["a"], rows(["a"], 0))


def test_rows_without_draws_do_not_go_where_draws_are_announced(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zero-dimensional"):
        Writer(tmp_path, TEACHER).write(["a"], rows(["a"], 0, drawn=0))
