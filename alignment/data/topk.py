"""A teacher's likeliest tokens beside the answers it gave: what distillation reads instead of asking the teacher again.

``topk/00000.safetensors`` and so on lie beside a dataset's tables; ``topk/index.json`` is written last, so that the
whole is there or none of it. A shard holds, for the T tokens of its rows end to end:

========= ============== ==================================================================================
name      type           what
========= ============== ==================================================================================
tokens    [T] id         the answer's own ids, up to and with what closes it, as the schema renders it
ids       [T, K] id      the likeliest ids at each of them, the likeliest first
logprobs  [T, K] fp16    their log-probabilities in nats at temperature 1, over the whole vocabulary
tail      [T] fp16       the logarithm of what the others share
offsets   [rows+1] int64 where each row begins
========= ============== ==================================================================================

An id takes 2 bytes where the vocabulary has at most 65,536, else 4. A token takes (K + 1) · id + 2 · K + 2 bytes:
at K = 64 that is 260 or 390. Rounded to fp16, a log-probability is right to 1 part in 2,048. The names of a shard's
rows are in its header.

Axes: T tokens, K likeliest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from alignment import files
from alignment.errors import UserError

FOLDER = "topk"
INDEX = "index.json"
VERSION = 1
ROWS_A_SHARD = 256


class TopK(NamedTuple):
    """One answer. ``tokens_T`` and ``ids_TK`` are ids, ``logprobs_TK`` and ``tail_T`` nats."""

    tokens_T: NDArray[np.integer]
    ids_TK: NDArray[np.integer]
    logprobs_TK: NDArray[np.floating]
    tail_T: NDArray[np.floating]


@dataclass(frozen=True)
class Teacher:
    """What a student must share, or know, to read them. ``vocabulary`` counts the rows of the teacher's head."""

    name: str
    tokenizer: str
    schema: str
    vocabulary: int
    k: int
    temperature: float = 1.0

    @property
    def id_type(self) -> type[np.unsignedinteger]:
        """The narrowest type that holds every id."""
        return np.uint16 if self.vocabulary <= 2**16 else np.uint32

    @property
    def bytes_a_token(self) -> int:
        """What one token of an answer takes on disk."""
        return (self.k + 1) * np.dtype(self.id_type).itemsize + 2 * self.k + 2


class Writer:
    """Writes the shards one by one, in order, and the index at last."""

    def __init__(self, directory: Path, teacher: Teacher) -> None:
        self.folder, self.teacher = directory / FOLDER, teacher
        self._shards: list[dict[str, Any]] = []
        files.make_folder(self.folder)
        (self.folder / INDEX).unlink(missing_ok=True)

    def keep(self, names: Sequence[str]) -> bool:
        """Whether the next shard is there already, from an earlier start, with exactly these rows; it is then taken."""
        path = self._next
        try:
            kept = path.is_file() and _names(path) == list(names)
        except SafetensorError:
            return False
        if kept:
            self._enter(path)
        return kept

    def write(self, names: Sequence[str], rows: Sequence[TopK]) -> None:
        """Write the next shard."""
        offsets = np.cumsum([0, *(len(row.tokens_T) for row in rows)], dtype=np.int64)
        kind, path = self.teacher.id_type, self._next
        shard = {
            "tokens": np.concatenate([row.tokens_T for row in rows]).astype(kind),
            "ids": np.concatenate([row.ids_TK for row in rows]).astype(kind),
            "logprobs": np.concatenate([row.logprobs_TK for row in rows]).astype(np.float16),
            "tail": np.concatenate([row.tail_T for row in rows]).astype(np.float16),
            "offsets": offsets,
        }
        assert shard["ids"].shape == (offsets[-1], self.teacher.k), "a row of k for every token"
        # One entry of metadata only: of several, their order in the file would be left to chance.
        content = save(shard, {"rows": json.dumps(list(names))})
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


class Store:
    """The top-k log-probabilities beside a dataset, read a row at a time."""

    def __init__(self, folder: Path, index: dict[str, Any]) -> None:
        self.folder = folder
        self.teacher = Teacher(**{key: index[key] for key in Teacher.__dataclass_fields__})
        self._digests: dict[str, str] = {shard["file"]: shard["sha256"] for shard in index["shards"]}
        self._checked: set[str] = set()
        self._places: dict[str, tuple[str, int]] = {}
        for file in self._digests:
            with _whole(folder / file):
                self._places |= {name: (file, place) for place, name in enumerate(_names(folder / file))}

    @classmethod
    def open(cls, directory: Path) -> Store:
        """Those of a dataset directory. Raises :class:`UserError` where there are none, or not all."""
        path = directory / FOLDER / INDEX
        if not path.is_file():
            raise UserError(
                f"{directory}: no top-k log-probabilities lie beside this dataset",
                cause=f"It holds no {FOLDER}/{INDEX}.",
                remedy="`stage=teach top_k=64` stores them, with a teacher that is a model here.",
            )
        with _whole(path):
            index = json.loads(path.read_text(encoding="utf-8"))
            version = index["version"]
            outside = [shard["file"] for shard in index["shards"] if Path(shard["file"]).name != shard["file"]]
        if version != VERSION:
            raise UserError(f"{path}: version {version}, and this program reads {VERSION}")
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

    def row(self, name: str) -> TopK:
        """One answer's: ids as int64, nats as float32. A shard's digest is checked when it is first read.

        Raises :class:`UserError` for a row that is not here and for a damaged shard.
        """
        if name not in self._places:
            raise UserError(
                f"{self.folder}: there is no row {name!r}",
                cause=f"It has {len(self):,} rows.",
                remedy="Read it with the dataset that it lies beside.",
            )
        file, place = self._places[name]
        self._check(file)
        with _whole(self.folder / file), safe_open(self.folder / file, framework="np") as shard:
            begin, end = (int(bound) for bound in shard.get_slice("offsets")[place : place + 2])
            tokens, ids = (shard.get_slice(what)[begin:end].astype(np.int64) for what in ("tokens", "ids"))
            logprobs, tail = (shard.get_slice(what)[begin:end].astype(np.float32) for what in ("logprobs", "tail"))
        return TopK(tokens, ids, logprobs, tail)

    def _check(self, file: str) -> None:
        if file not in self._checked:
            if files.digest_file(self.folder / file) != self._digests[file]:
                raise _damaged(self.folder / file, "its bytes are not those that were written")
            self._checked.add(file)


def _names(path: Path) -> list[str]:
    """The ids of a shard's rows, from its header."""
    with safe_open(path, framework="np") as shard:
        return json.loads(shard.metadata()["rows"])


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Tell of a shard that is gone or cut short."""
    try:
        yield
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        # The last five of a header or an index that is whole and tells nonsense.
        raise _damaged(path, f"{type(error).__name__}: {error}") from None


def _damaged(path: Path, cause: str) -> UserError:
    return UserError(f"{path} is damaged", cause=cause, remedy="Make the dataset again with force=true.")
