"""A side-by-side evaluation as LLM Comparator reads it (PAIR-code/llm-comparator, arXiv 2402.10524).

Its layout is that of the README's “JSON Data Format” and of ``client/lib/types.ts``: model A is the candidate, scores
run from −1.5 to 1.5 and are positive where A is better, and one voice's score does not turn with the order in which it
was asked (``is_flipped``: A was shown second).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

SPEAKERS = {"system": "System", "user": "User", "assistant": "Assistant"}
LABELS = (
    (1.5, "much better"),
    (1.0, "better"),
    (0.0, "slightly better"),
)
"""Of a score's size, from this on; that of 0 is :data:`SAME`."""
SAME = "same"
FIELDS: tuple[tuple[str, str], ...] = (
    ("id", "string"),
    ("result", "category"),
    ("why nobody was asked", "category"),
    ("turns", "number"),
    ("attack", "category"),
    ("length", "per_model_number"),
    ("finished", "per_model_boolean"),
    ("safe", "per_model_boolean"),
    ("judge's score", "per_model_number"),
    ("gold", "per_model_number"),
)
"""Further columns with LLM Comparator's types; those that no row has are left out."""


def layout(rows: Sequence[Row], results: Mapping[str, Any]) -> dict[str, Any]:
    """The whole file, from rows of ``examples.parquet`` and ``results.json`` (``stages/side_by_side.py``)."""
    rows = [row for row in rows if row["result"] != "again"]
    fields = [_fields(row) for row in rows]
    there = [(name, kind) for name, kind in FIELDS if any(_is_known(one[name]) for one in fields)]
    models = results["side_by_side"]
    told = f"stage=side_by_side: {results['aspect']}, judged by {results['judge']}"
    return {
        "metadata": {
            "source_path": told,
            "custom_fields_schema": [{"name": name, "type": kind} for name, kind in there],
        },
        "models": [{"name": models[side]} for side in ("candidate", "baseline")],
        "examples": [
            {
                "input_text": _asked(row["prompt"]),
                "tags": [*filter(None, [row["category"]]), *row["tags"]],
                "output_text_a": row["candidate"],
                "output_text_b": row["baseline"],
                "score": row["score"],
                "individual_rater_scores": [_rating(place, said) for place, said in enumerate(row["voices"])],
                "custom_fields": {name: found[name] for name, _ in there},
            }
            for row, found in zip(rows, fields, strict=True)
        ],
    }


def label(score: float) -> str:
    """A score in LLM Comparator's words."""
    if score == 0:
        return SAME
    return f"{'A' if score > 0 else 'B'} is {next(words for least, words in LABELS if abs(score) >= least)}"


def _rating(place: int, said: Row) -> dict[str, Any]:
    score = said["score"]
    return {
        "index": place,
        "score": score,
        "rating_label": None if score is None else label(score),
        "is_flipped": said["turned"],
        "rationale": said["reason"],
        "custom_fields": {"rater": said["who"]},
    }


def _asked(turns: Sequence[Row]) -> str:
    """One question as it is, a conversation with its speakers."""
    if len(turns) == 1:
        return str(turns[0]["content"])
    return "\n\n".join(f"{SPEAKERS[turn['role']]}: {turn['content']}" for turn in turns)


def _fields(row: Row) -> dict[str, Any]:
    sides = ("candidate", "baseline")
    return {
        "id": row["id"],
        "result": row["result"],
        "why nobody was asked": row["why"] or None,
        "turns": sum(turn["role"] == "user" for turn in row["prompt"]),
        "attack": row["attack"],
        "length": [len(row[side]) for side in sides],
        **{
            name: [row[f"{side}_{key}"] for side in sides]
            for name, key in (("finished", "finished"), ("safe", "safe"), ("judge's score", "score"), ("gold", "gold"))
        },
    }


def _is_known(value: Any) -> bool:
    return value is not None and value != [None, None]
