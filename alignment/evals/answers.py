"""One model's answers to held-out prompts, as ``stage=answer`` keeps them and ``stage=evaluate`` reads them.

``answers.parquet`` has a row an answer: what it is about (``ABOUT``), then a column for every measure.
``held_out.parquet`` has a row for every held-out conversation that the model sees whole: ``id``, ``unit`` (its
prompt), ``nll`` summed over the tokens of its answers, in nats, and ``tokens``. Axes: P prompts, N conversations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from alignment import files
from alignment.chat.types import Message, Prompt, prompt_key
from alignment.parts import batches
from alignment.sampling.decoding import Reply

if TYPE_CHECKING:
    import pyarrow as pa

    from alignment.chat.types import Conversation
    from alignment.evals.suites.subject import Likelihood
    from alignment.scoring.scorer import Scorer
    from alignment.training.engine import Engine
    from alignment.training.policies import Policy

ANSWERS, HELD_OUT = "answers.parquet", "held_out.parquet"
ROWS_A_BATCH = 4_096
ABOUT = ("id", "tags", "prompt", "answer", "tokens", "finished", "logprob")


class Answers(NamedTuple):
    """What was measured of one model: ``measures`` by name (P), and what the prompts are, in the same order."""

    ids: list[str]
    keys: list[str]
    """Of the prompts (``chat.types.prompt_key``): those that read alike are one draw."""
    tags: list[list[str]]
    measures: dict[str, np.ndarray]
    said: dict[str, np.ndarray]
    """``tokens`` and ``finished`` (1 or 0) of every answer."""

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """Every number of an answer, by name."""
        return self.measures | self.said


class Losses(NamedTuple):
    """Of held-out conversations: the unit of each, Σ −log p in nats, and the tokens that it is over."""

    units: list[str]
    nll_N: np.ndarray
    tokens_N: np.ndarray


def rows(some: Sequence[Prompt], replies: Sequence[Reply]) -> list[dict[str, Any]]:
    """A row of ``answers.parquet`` for every prompt and the answer to it, without measures."""
    return [
        {
            "id": prompt.id,
            "tags": list(prompt.tags),
            "prompt": [{"role": turn.role, "content": turn.content} for turn in prompt.messages],
            "answer": reply.text,
            "tokens": reply.tokens,
            "finished": reply.finished,
            "logprob": reply.logprob,
        }
        for prompt, reply in zip(some, replies, strict=True)
    ]


def scored(
    scorers: Mapping[str, Scorer], some: Sequence[Prompt], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Sequence[float]]:
    """What every scorer reports of every answer, by its name."""
    dialogues = [
        (*prompt.messages, Message("assistant", row["answer"])) for prompt, row in zip(some, rows, strict=True)
    ]
    return {name: scorer.score(dialogues).reported for name, scorer in scorers.items()}


def kl(
    policy: Policy,
    against: Policy,
    some: Sequence[Prompt],
    said: Sequence[Sequence[int]],
    engine: Engine,
    temperature: float,
) -> np.ndarray:
    """KL(policy ‖ against) of every answer's ids, summed over its tokens, in nats (``gemma/divergence.py``).

    At the temperature at which they were drawn.
    """
    from alignment.chat.render import prompt_ids
    from alignment.gemma.divergence import sequence_kl

    asked = [prompt_ids(prompt.messages, policy.tokenizer) for prompt in some]
    return sequence_kl(policy.model, against.model, asked, said, engine.device, temperature)


# ── on disk ──────────────────────────────────────────────────────────────────────────────────────


def write(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write ``answers.parquet``, some thousand rows in memory at a time; all have the measures of the first."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer: pq.ParquetWriter | None = None
    path = folder / ANSWERS
    beside = path.with_name(path.name + files.TEMPORARY)
    try:
        for some in batches(rows, ROWS_A_BATCH):
            writer = writer or pq.ParquetWriter(beside, _schema(some[0]), compression="zstd")
            writer.write_table(pa.Table.from_pylist(some, schema=writer.schema))
    finally:
        if writer is not None:
            writer.close()
    beside.replace(path)


def _schema(row: Mapping[str, Any]) -> pa.Schema:
    """The columns; what is null of every answer, as ``logprob`` is of a server's, has its kind all the same."""
    import pyarrow as pa

    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    kinds = {"tags": pa.list_(pa.string()), "prompt": pa.list_(turn), "tokens": pa.int64(), "finished": pa.bool_()}
    texts = dict.fromkeys(("id", "answer"), pa.string())
    return pa.schema([(name, (kinds | texts).get(name, pa.float64())) for name in row])


def write_held_out(folder: Path, rows: Sequence[Conversation], losses: Sequence[Likelihood]) -> None:
    """Write ``held_out.parquet``."""
    import pyarrow as pa

    columns = {
        "id": [row.id for row in rows],
        "unit": [prompt_key(row.messages) for row in rows],
        "nll": [one.nll for one in losses],
        "tokens": [one.tokens for one in losses],
    }
    _write(folder / HELD_OUT, pa.table(columns))


def read(folder: Path) -> Answers:
    """What one model's answers came to, without the answers."""
    import pyarrow.parquet as pq

    path = folder / ANSWERS
    names = [name for name in pq.read_schema(path).names if name not in ("answer", "logprob")]
    table = pq.read_table(path, columns=names)
    turns = [[Message(turn["role"], turn["content"]) for turn in row] for row in table["prompt"].to_pylist()]
    return Answers(
        table["id"].to_pylist(),
        [prompt_key(one) for one in turns],
        table["tags"].to_pylist(),
        {name: table[name].to_numpy() for name in names if name not in ABOUT},
        {name: table[name].to_numpy().astype(float) for name in ("tokens", "finished")},
    )


def read_held_out(folder: Path) -> Losses | None:
    """The model's losses on held-out conversations; None where none were named."""
    import pyarrow.parquet as pq

    path = folder / HELD_OUT
    if not path.is_file():
        return None
    table = pq.read_table(path)
    return Losses(table["unit"].to_pylist(), table["nll"].to_numpy(), table["tokens"].to_numpy())


def join(path: Path, folders: Mapping[str, Path]) -> None:
    """The answers of several models in one file, whose first column is the ``model``: a row group for each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = ((name, pq.read_table(folder / ANSWERS)) for name, folder in folders.items())
    beside = path.with_name(path.name + files.TEMPORARY)
    writer: pq.ParquetWriter | None = None
    try:
        for name, table in tables:
            named = table.add_column(0, "model", pa.array([name] * len(table), pa.string()))
            writer = writer or pq.ParquetWriter(beside, named.schema, compression="zstd")
            writer.write_table(named.cast(writer.schema))
    finally:
        if writer is not None:
            writer.close()
    beside.replace(path)


def _write(path: Path, table: pa.Table) -> None:
    import pyarrow.parquet as pq

    beside = path.with_name(path.name + files.TEMPORARY)
    pq.write_table(table, beside, compression="zstd")
    beside.replace(path)
