"""Several answers to each of many prompts, with their scores: what ``stage=reject`` chooses from, and keeps.

``prompts.parquet`` has a line for every prompt, ``candidates.parquet`` one for every answer, those of a prompt
together and prompts in the same order. The answers that became rows of the dataset beside them are marked ``kept``, in
the order of those rows: so a later iteration takes their scores as they are, or has them scored anew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from alignment.chat.features import features, from_row, to_row
from alignment.chat.types import Prompt
from alignment.data import store
from alignment.data.rows import Split
from alignment.data.store import Table
from alignment.errors import DataError, UserError

PROMPTS, CANDIDATES = "prompts.parquet", "candidates.parquet"
SCHEMA = pa.schema(
    [
        ("prompt", pa.int64()),
        ("id", pa.string()),
        ("iteration", pa.int64()),
        ("policy", pa.string()),
        ("sample", pa.int64()),
        ("answer", pa.string()),
        ("tokens", pa.int64()),
        ("finished", pa.bool_()),
        ("temperature", pa.float64()),
        ("score", pa.float64()),
        ("parts", pa.map_(pa.string(), pa.float64())),
        ("gold", pa.float64()),
        ("best", pa.bool_()),
        ("kept", pa.bool_()),
    ]
)


EMPTY, UNFINISHED = "empty answer", "unfinished answer"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer. ``score`` is what it is chosen by, ``parts`` what that was made of, ``gold`` the truth if known.

    ``iteration`` counts the artifacts of a pool, the newest last; ``policy`` is who drew the answer.
    """

    iteration: int
    policy: str
    sample: int
    answer: str
    tokens: int
    finished: bool
    temperature: float
    score: float
    parts: Mapping[str, float]
    gold: float | None

    @property
    def problem(self) -> str:
        """Why it is not sound, or an empty text."""
        if not self.answer.strip():
            return EMPTY
        return "" if self.finished else UNFINISHED

    @property
    def standing(self) -> int:
        """2 of a sound answer, 1 of an unfinished one, 0 of an empty one: what comes before any score."""
        return {"": 2, UNFINISHED: 1, EMPTY: 0}[self.problem]


def best(candidates: Sequence[Candidate]) -> Candidate:
    """The one of highest standing, then of highest score, then the first."""
    return max(candidates, key=lambda one: (one.standing, one.score))


class Kept(NamedTuple):
    """A row of the dataset as a candidate; ``number`` is its place in the split, from 1."""

    split: Split
    number: int
    prompt: Prompt
    candidate: Candidate


class Writer:
    """Writes both tables; as a context, what an exception interrupts leaves neither behind."""

    def __init__(self, out: Path) -> None:
        split = pa.field("split", pa.string())
        self._prompts = Table(out / PROMPTS, pa.schema([split, *features("prompts").arrow_schema]))
        self._candidates = Table(out / CANDIDATES, SCHEMA)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for table in (self._prompts, self._candidates):
            if kind:
                table.discard()
            else:
                table.finish()

    def add(
        self,
        split: Split,
        prompt: Prompt,
        candidates: Sequence[Candidate],
        bests: Sequence[Candidate],
        kept: Candidate | None,
    ) -> None:
        """A prompt and the answers to it. ``bests``, the best of each iteration, and ``kept`` are among them."""
        number = self._prompts.rows
        self._prompts.append({"split": split, **to_row(prompt)})
        for one in candidates:
            marks = {"best": any(one is other for other in bests), "kept": one is kept}
            row = {"prompt": number, "id": prompt.id, **asdict(one), "parts": list(one.parts.items()), **marks}
            self._candidates.append(row)


def kept(directory: Path) -> Iterator[Kept]:
    """The rows of an artifact of ``stage=reject``, in the order in which they were chosen.

    Raises :class:`UserError` for any other directory.
    """
    if not all((directory / name).is_file() for name in (PROMPTS, CANDIDATES)):
        raise UserError(
            f"{directory}: holds no scored candidates",
            cause=f"There is no {CANDIDATES}.",
            remedy="`stage=reject` makes them; latest:reject names the newest.",
        )
    numbers: defaultdict[Split, int] = defaultdict(int)
    answers = groupby(_rows(directory / CANDIDATES), key=lambda row: row["prompt"])
    for prompt, (_, rows) in zip(_rows(directory / PROMPTS), answers, strict=True):
        split = prompt.pop("split")
        for row in rows:
            if row["kept"]:
                numbers[split] += 1
                made = from_row("prompts", prompt)
                assert isinstance(made, Prompt)
                yield Kept(split, numbers[split], made, _candidate(row))


def _candidate(row: Mapping[str, Any]) -> Candidate:
    values = {name: row[name] for name in Candidate.__dataclass_fields__}
    return Candidate(**{**values, "parts": dict(row["parts"])})


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=store.ROWS_A_GROUP):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(
            str(path),
            "cannot be read",
            cause=str(error).splitlines()[0],
            remedy="Make the candidates again with force=true.",
        ) from None
