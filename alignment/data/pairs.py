"""Two answers to each of many prompts, before anybody has judged them: what ``stage=pairs`` writes.

``pairs.parquet`` has a line for every prompt; ``card.json`` sums it up and says which world's truth holds for
the prompts and which policies answered.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alignment.chat.types import Message, Messages
from alignment.data import store
from alignment.data.rows import Split
from alignment.errors import DataError, UserError

TABLE = "pairs.parquet"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("split", pa.string()),
        ("tags", pa.list_(pa.string())),
        ("category", pa.string()),
        ("attack", pa.string()),
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("answer_a", pa.string()),
        ("answer_b", pa.string()),
        ("model_a", pa.string()),
        ("model_b", pa.string()),
        ("temperature_a", pa.float64()),
        ("temperature_b", pa.float64()),
        ("finished_a", pa.bool_()),
        ("finished_b", pa.bool_()),
        ("why", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and its two answers, on sides that say nothing of who wrote them.

    ``finished_…``: the answer ended of its own accord. ``why`` says why there is nothing to judge, or is empty.
    """

    id: str
    split: Split
    tags: tuple[str, ...]
    category: str | None
    attack: str | None
    prompt: Messages
    answer_a: str
    answer_b: str
    model_a: str
    model_b: str
    temperature_a: float
    temperature_b: float
    finished_a: bool
    finished_b: bool
    why: str = ""


def to_row(pair: Pair) -> dict[str, Any]:
    """A pair as a line of the table."""
    return asdict(pair) | {"tags": list(pair.tags)}


def stream(directory: Path) -> Iterator[Pair]:
    """The pairs of an artifact of ``stage=pairs``, in order. Raises :class:`UserError` for any other directory."""
    path = directory / TABLE
    if not path.is_file():
        raise UserError(
            f"{directory}: holds no pairs of answers",
            cause=f"There is no {TABLE}.",
            remedy="`stage=pairs` makes them; latest:pairs names the newest.",
        )
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=store.ROWS_A_GROUP):
                yield from map(_pair, batch.to_pylist())
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(
            str(path),
            "cannot be read",
            cause=str(error).splitlines()[0],
            remedy="Make the pairs again with force=true.",
        ) from None


def _pair(row: dict[str, Any]) -> Pair:
    turns = tuple(Message(turn["role"], turn["content"]) for turn in row["prompt"])
    return Pair(**{**row, "tags": tuple(row["tags"]), "prompt": turns})
