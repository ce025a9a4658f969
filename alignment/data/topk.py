"""A teacher's likeliest tokens beside a dataset: what distillation reads instead of asking the teacher again.

Of all others, which may share a good part of the probability, there may be some that the teacher has drawn: by them a
student is told, without bias, how the others share the rest.

``topk/00000.safetensors`` and so on lie beside a dataset's tables; ``topk/index.json`` is written last, so that the
whole is there or none of it. A shard holds, for the T tokens that carry loss in its rows, end to end:

========= ============== ==================================================================================
name      type           what
========= ============== ==================================================================================
tokens    [T] id         the rows' own ids: all answers that are trained, with what closes them, or a piece
ids       [T, K] id      the likeliest ids at each of them, the likeliest first
logprobs  [T, K] fp16    their log-probabilities in nats at the teacher's temperature, over the whole vocabulary
tail      [T] fp16       the logarithm of what the others share
drawn     [T, M] id      ids of others, drawn from the teacher's distribution over the others, at that temperature
entropy   [T] fp16       the entropy of that distribution in nats
offsets   [rows+1] int64 where each row begins
========= ============== ==================================================================================

Without draws (M = 0) ``drawn`` and ``entropy`` are not there. An id takes 2 bytes where the vocabulary has at most
65,536, else 3: they are then a last axis, the lowest byte first. A token takes (K + M + 1) · id + 2 · K + 2 bytes, and
2 more with draws: 294 or 375 at K = 64 and M = 16, 260 or 325 without draws; a row takes some 38 and its name besides.
Rounded to fp16, a log-probability is right to 1 part in 2,048. A shard's header has its rows, by name and digest of
their own ids, in the order of the dataset: so a store is found not to fit a student before any shard is read. A
conversation has its id for a name; a row of text is called as ``pieces.py`` says.

Axes: T tokens, K likeliest, M drawn.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from alignment import files
from alignment.errors import UserError

FOLDER = "topk"
INDEX = "index.json"
VERSION = 3
ROWS_A_SHARD = 256
OPEN_SHARDS = 4_096
"""Shards that a reader holds in its address space at most."""
IDS = ("tokens", "ids", "drawn")
"""Columns of ids; the others are of nats."""
AGAIN = "Make them again for this student: `stage=teach answers=given` with this dataset and its tokenizer."


Masked = tuple[Sequence[int], Sequence[bool]]
"""The ids of a row, and which of them carry loss."""


class TopK(NamedTuple):
    """One row, at the tokens that carry loss. ``tokens_T``, ``ids_TK`` and ``drawn_TM`` are ids, the others nats.

    A tail of −∞ says that the others have no probability at all. A teacher that draws none of them has neither
    ``drawn_TM`` nor ``entropy_T``.
    """

    tokens_T: NDArray[np.integer]
    ids_TK: NDArray[np.integer]
    logprobs_TK: NDArray[np.floating]
    tail_T: NDArray[np.floating]
    drawn_TM: NDArray[np.integer] | None = None
    entropy_T: NDArray[np.floating] | None = None


@dataclass(frozen=True)
class Teacher:
    """What a student must share, or know, to read them. ``vocabulary`` counts the rows of the teacher's head.

    ``k`` are its likeliest tokens and ``drawn`` the others beside them, 0 for none. ``schema`` is that of the
    conversations, ``block`` the tokens of a row of text; the other one is empty or None.
    """

    name: str
    tokenizer: str
    schema: str
    vocabulary: int
    k: int
    drawn: int
    temperature: float
    block: int | None

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of a shard, as :class:`TopK` has them."""
        always = ("tokens", "ids", "logprobs", "tail")
        return (*always, "drawn", "entropy") if self.drawn else always

    @property
    def bytes_an_id(self) -> int:
        """What one id takes on disk."""
        return 2 if self.vocabulary <= 2**16 else 3

    @property
    def bytes_a_token(self) -> int:
        """What one token takes on disk."""
        nats = self.k + 1 + (self.drawn > 0)
        return (self.k + self.drawn + 1) * self.bytes_an_id + nats * np.dtype(np.float16).itemsize


def trained_ids(row: Masked) -> NDArray[np.int32]:
    """The ids of a row that carry loss, in order."""
    ids, mask = row
    return np.asarray(ids, dtype=np.int32)[np.asarray(mask, dtype=bool)]


def row_digest(tokens_T: ArrayLike) -> str:
    """64 bits of the SHA-256 of a row's ids, in hexadecimal."""
    return hashlib.sha256(np.asarray(tokens_T, dtype="<i4").tobytes()).hexdigest()[:16]


def need_finite(name: str, row: TopK) -> None:
    """Raise :class:`UserError`, which names the row, for NaN and infinities; the tail alone may be −∞."""
    sound_T = np.isfinite(row.logprobs_TK).all(-1) & ~np.isnan(row.tail_T) & ~np.isposinf(row.tail_T)
    if row.entropy_T is not None:
        sound_T &= np.isfinite(row.entropy_T)
    if sound_T.all():
        return
    raise UserError(
        f"{name}: a log-probability of the teacher is no finite number, at trained token {int(sound_T.argmin()) + 1}",
        cause="Its weights, or its arithmetic in this precision, give NaN or infinities.",
        remedy="Try the teacher with another precision, or look at its weights.",
    )


class Writer:
    """Writes the shards one by one, in order, and the index at last."""

    def __init__(self, directory: Path, teacher: Teacher) -> None:
        assert teacher.vocabulary <= 2**24, "an id takes 3 bytes at most"
        self.folder, self.teacher = directory / FOLDER, teacher
        self._shards: list[dict[str, Any]] = []
        files.make_folder(self.folder)
        (self.folder / INDEX).unlink(missing_ok=True)

    def keep(self, names: Sequence[str]) -> bool:
        """Whether the next shard is there already, from an earlier start, with exactly these rows; it is then taken."""
        path = self._next
        try:
            kept = path.is_file() and [name for name, _ in _rows(path)] == list(names)
        except (SafetensorError, LookupError, ValueError):
            return False
        if kept:
            self._enter(path)
        return kept

    def write(self, names: Sequence[str], rows: Sequence[TopK]) -> None:
        """Write the next shard. Raises :class:`UserError` for a row that is not finite, and writes nothing then."""
        for name, row in zip(names, rows, strict=True):
            need_finite(name, row)
        parts = zip(self.teacher.columns, zip(*rows, strict=True), strict=False)
        shard = {what: _stored(what, np.concatenate(of_rows), self.teacher.bytes_an_id) for what, of_rows in parts}
        offsets = np.cumsum([0, *(len(row.tokens_T) for row in rows)], dtype=np.int64)
        for what, many in (("ids", self.teacher.k), ("drawn", self.teacher.drawn)):
            assert not many or shard[what].shape[:2] == (offsets[-1], many), "as many of every token as the header says"
        shard["offsets"], path = offsets, self._next
        told = [[name, row_digest(row.tokens_T)] for name, row in zip(names, rows, strict=True)]
        # One entry of metadata only: of several, their order in the file would be left to chance.
        content = save(shard, {"rows": json.dumps(told)})
        try:
            files.write_atomic(path, content)
        except OSError as error:
            raise files.disk_error(error, path) from None
        self._enter(path)

    def finish(self) -> dict[str, int]:
        """Write the index; returns how many rows and tokens there are."""
        for stray in sorted(self.folder.glob("*.safetensors"))[len(self._shards) :]:
            stray.unlink()
        counts = {what: sum(shard[what] for shard in self._shards) for what in ("rows", "tokens")}
        index = {
            "version": VERSION,
            **asdict(self.teacher),
            "bytes_a_token": self.teacher.bytes_a_token,
            **counts,
            "shards": self._shards,
        }
        files.write_json(self.folder / INDEX, index)
        return counts

    @property
    def _next(self) -> Path:
        return self.folder / f"{len(self._shards):05}.safetensors"

    def _enter(self, path: Path) -> None:
        with safe_open(path, framework="np") as shard:
            rows, tokens = shard.get_slice("offsets").get_shape()[0] - 1, shard.get_slice("tokens").get_shape()[0]
        self._shards.append({"file": path.name, "sha256": files.digest_file(path), "rows": rows, "tokens": tokens})


class _Place(NamedTuple):
    """Where a row stands: its shard and its number there, and in the whole store."""

    file: str
    row: int
    number: int
    digest: str


class _Shard(NamedTuple):
    """A shard in the address space of this process, none of which is read before it is needed."""

    file: Any
    offsets: NDArray[np.int64]


class Store:
    """The top-k log-probabilities beside a dataset, read by rows in any order: opening it reads headers alone.

    About a million tokens a second and core at K = 64, drawn by rows, the digests of their shards being checked.
    """

    def __init__(self, folder: Path, index: dict[str, Any]) -> None:
        self.folder = folder
        self.teacher = Teacher(**{key: index[key] for key in Teacher.__dataclass_fields__})
        self._digests: dict[str, str] = {shard["file"]: shard["sha256"] for shard in index["shards"]}
        self._checked: set[str] = set()
        self._open: dict[str, _Shard] = {}
        self._places: dict[str, _Place] = {}
        for file in self._digests:
            with _whole(folder / file):
                for row, (name, digest) in enumerate(_rows(folder / file)):
                    self._places[name] = _Place(file, row, len(self._places), digest)

    @classmethod
    def open(cls, directory: Path) -> Store:
        """Those of a dataset directory. Raises :class:`UserError` where there are none, or not all."""
        path = directory / FOLDER / INDEX
        if not path.is_file():
            raise UserError(
                f"{directory}: no top-k log-probabilities lie beside this dataset",
                cause=f"It holds no {FOLDER}/{INDEX}.",
                remedy="`stage=teach answers=given top_k=64` stores what a teacher thinks of a dataset's rows.",
            )
        with _whole(path):
            index = json.loads(path.read_text(encoding="utf-8"))
            version = index["version"]
            outside = [shard["file"] for shard in index["shards"] if Path(shard["file"]).name != shard["file"]]
        if version != VERSION:
            raise UserError(
                f"{path}: version {version}, and this program reads {VERSION}",
                cause="What stands there, and of which tokens, differs between versions.",
                remedy="Make the dataset again with force=true, or use the version of the program that wrote it.",
            )
        if outside:
            raise _damaged(path, f"It names {outside[0]!r}, which does not lie beside it.")
        with _whole(path):
            return cls(path.parent, index)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def row(self, name: str, tokens_T: ArrayLike | None = None) -> TopK:
        """One row; as :meth:`rows`."""
        return self.rows([name], None if tokens_T is None else [tokens_T])[0]

    def rows(self, names: Sequence[str], tokens: Sequence[ArrayLike] | None = None) -> list[TopK]:
        """Rows in any order: ids as int64, nats as float32. A shard's digest is checked when it is first read.

        ``tokens`` are the trained ids of each row as whoever reads has them. Raises :class:`UserError` for a row that
        is not here, that has other tokens or numbers that are not finite, and for a damaged shard.
        """
        given: Sequence[ArrayLike | None] = [None] * len(names) if tokens is None else tokens
        return [self._row(name, tokens_T) for name, tokens_T in zip(names, given, strict=True)]

    def place(self, name: str) -> _Place:
        """Where a row stands. Raises :class:`UserError` where it does not."""
        if name not in self._places:
            raise UserError(
                f"{self.folder}: there is no row {name!r}",
                cause=f"It has {len(self):,} rows, of the dataset that it lies beside.",
                remedy=f"Read it with that dataset. {AGAIN}",
            )
        return self._places[name]

    def _row(self, name: str, tokens_T: ArrayLike | None) -> TopK:
        file, number, *_ = self.place(name)
        shard = self._shard(file)
        with _whole(self.folder / file):
            begin, end = shard.offsets[number : number + 2].tolist()
            parts = ((what, shard.file.get_slice(what)[begin:end]) for what in self.teacher.columns)
            row = TopK(*(_read(*part, self.teacher.bytes_an_id) for part in parts))
            need_finite(name, row)
        if tokens_T is not None and not np.array_equal(row.tokens_T, np.asarray(tokens_T)):
            raise other_tokens(self, name)
        return row

    def _shard(self, file: str) -> _Shard:
        """A shard whose bytes are those that were written."""
        if file not in self._open:
            path = self.folder / file
            with _whole(path):
                if file not in self._checked and files.digest_file(path) != self._digests[file]:
                    raise _damaged(path, "its bytes are not those that were written")
                opened: Any = safe_open(path, framework="np")
                shard = _Shard(opened, opened.get_tensor("offsets"))
            self._checked.add(file)
            if len(self._open) == OPEN_SHARDS:
                del self._open[next(iter(self._open))]
            self._open[file] = shard
        return self._open[file]


def other_tokens(store: Store, name: str) -> UserError:
    """What is told of a row whose trained ids are not those that are stored."""
    return UserError(
        f"{store.folder}: row {name!r} has other trained tokens there than the student's",
        cause="It was rendered or masked in another way, cut elsewhere, or it is another row of the same name.",
        remedy=f"Read them with the dataset that they lie beside. {AGAIN}",
    )


def _stored(what: str, values: NDArray[Any], bytes_an_id: int) -> NDArray[Any]:
    """A column as it lies in a shard."""
    if what not in IDS:
        # What is less likely than fp16 can tell is as unlikely as it can tell: e^−65,504 is 0 in any case.
        least = np.finfo(np.float16).min if what == "logprobs" else -np.inf
        return values.clip(least).astype(np.float16)
    if bytes_an_id == 2:
        return values.astype(np.uint16)
    return np.ascontiguousarray(values.astype("<u4")[..., None].view(np.uint8)[..., :bytes_an_id])


def _read(what: str, stored: NDArray[Any], bytes_an_id: int) -> NDArray[Any]:
    """A part of a column as whoever reads has it: ids as int64, nats as float32."""
    if what not in IDS:
        return stored.astype(np.float32)
    if bytes_an_id == 2:
        return stored.astype(np.int64)
    low, middle, high = np.moveaxis(stored.astype(np.int64), -1, 0)
    return low | middle << 8 | high << 16


def _rows(path: Path) -> list[tuple[str, str]]:
    """The names of a shard's rows and the digests of their ids, from its header."""
    with safe_open(path, framework="np") as shard:
        return [(name, digest) for name, digest in json.loads(shard.metadata()["rows"])]


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Tell of a shard that is gone or cut short."""
    try:
        yield
    except UserError:
        raise
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        # The last five of a header or an index that is whole and tells nonsense.
        raise _damaged(path, f"{type(error).__name__}: {error}") from None


def _damaged(path: Path, cause: str) -> UserError:
    return UserError(f"{path} is damaged", cause=cause, remedy="Make the dataset again with force=true.")
