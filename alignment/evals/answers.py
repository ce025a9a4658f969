"""Answers of one model to the prompts of an evaluation: their scores, their KL to a reference, and their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alignment import files
from alignment.chat.render import answer_text
from alignment.chat.types import Message, Prompt
from alignment.errors import UserError
from alignment.sampling.sampler import Answer
from alignment.scoring.scorer import Scorer
from alignment.training.engine import Engine
from alignment.training.policies import Policy


def scored(
    scorers: Mapping[str, Scorer], prompts: Sequence[Prompt], answers: Sequence[Answer], policy: Policy
) -> dict[str, np.ndarray]:
    dialogues = [
        (*prompt.messages, Message("assistant", answer_text(answer.ids, policy.tokenizer)))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    return {name: np.asarray(scorer.score(dialogues).reported) for name, scorer in scorers.items()}


def kl(
    policy: Policy, against: Policy, prompts: Sequence[Sequence[int]], answers: Sequence[Answer], engine: Engine
) -> np.ndarray:
    from alignment.gemma.divergence import sequence_kl

    if policy.tokenizer.digest != against.tokenizer.digest or policy.tokens.padded != against.tokens.padded:
        raise UserError(
            "the reference has another tokenizer than the model",
            cause="A KL compares two distributions over the same pieces.",
            remedy="Choose a reference from the same family, or reference=null.",
        )
    return sequence_kl(policy.model, against.model, prompts, [answer.ids for answer in answers], engine.device)


def rows(
    name: str, prompts: Sequence[Prompt], answers: Sequence[Answer], policy: Policy, measures: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    return [
        {
            "model": name,
            "id": prompt.id,
            "tags": list(prompt.tags),
            "prompt": [{"role": turn.role, "content": turn.content} for turn in prompt.messages],
            "answer": answer_text(answer.ids, policy.tokenizer),
            "tokens": len(answer.ids),
            "finished": answer.finished,
            "logprob": float(sum(answer.logprobs)),
            **{measure: float(values[place]) for measure, values in measures.items()},
        }
        for place, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    beside = path.with_name(path.name + files.TEMPORARY)
    pq.write_table(pa.Table.from_pylist(rows), beside, compression="zstd")
    beside.replace(path)
