"""Local copies, in a few rows, of how repositories of multiple-choice questions are laid out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

Rows = list[dict[str, Any]]


def written(folder: Path, configs: Mapping[str, Mapping[str, Rows]]) -> None:
    """Configurations with their splits, one file each, and the README that declares them."""
    declared = []
    for name, splits in configs.items():
        files = []
        for split, rows in splits.items():
            path = folder / name / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows), path)
            files.append({"split": split, "path": f"{name}/{split}-*"})
        declared.append({"config_name": name, "data_files": files})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': declared})}---\n# A dataset\n")


def mmlu(folder: Path) -> None:
    row = {"subject": "astronomy", "choices": ["Mars", "Venus", "Mercury", "Earth"], "answer": 2}
    splits = {split: [{"question": f"Which is nearest to the sun, {split}?"} | row] for split in ("test", "dev")}
    written(folder, {"all": splits})


def arc(folder: Path) -> None:
    letters = {"text": ["rain", "snow"], "label": ["A", "B"]}
    numbers = {"text": ["iron", "wood", "air"], "label": ["1", "2", "3"]}
    rows = [
        {"id": "one", "question": "What is white?", "choices": letters, "answerKey": "B"},
        {"id": "two", "question": "What is a metal?", "choices": numbers, "answerKey": "1"},
    ]
    written(folder, {"ARC-Challenge": {"train": rows, "test": rows}})


def hellaswag(folder: Path) -> None:
    row = {"ind": 1, "activity_label": "Baking", "ctx_a": "a", "ctx_b": "b", "ctx": "Somebody bakes bread. He"}
    row |= {"endings": ["eats it.", "flies.", "sinks.", "rains."], "source_id": "s", "split": "train", "label": "0"}
    written(folder, {"default": {"train": [row], "validation": [row]}})


def truthfulqa(folder: Path) -> None:
    told = {"choices": ["They are digested.", "Nothing.", "You die."], "labels": [1, 1, 0]}
    row = {"question": "What happens to eaten seeds?", "mc1_targets": told, "mc2_targets": told}
    written(folder, {"multiple_choice": {"validation": [row]}})


def bbq(folder: Path) -> None:
    row = {
        "example_id": 0,
        "question_index": "1",
        "question_polarity": "nonneg",
        "context_condition": "disambig",
        "category": "Race_ethnicity",
        "answer_info": {
            "ans0": ["Jamal", "M-Black"],
            "ans1": ["Can't answer", "unknown"],
            "ans2": ["Donald", "M-White"],
        },
        "additional_metadata": {"stereotyped_groups": ["Black", "African American"], "version": "a"},
        "context": "Jamal and Donald worked.",
        "question": "Who worked hard?",
        "ans0": "Jamal",
        "ans1": "Can't answer",
        "ans2": "Donald",
        "label": 0,
    }
    written(folder, {"All": {"test": [row]}})


def winogender(folder: Path) -> None:
    row = {"sentid": "s", "sentence": "The nurse told the man that she was late.", "pronoun": "she"}
    row |= {"occupation": "nurse", "participant": "man", "gender": "female", "target": "nurse", "label": 0}
    written(folder, {"all": {"test": [row]}})


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "mmlu": mmlu,
    "mmlu_worked": mmlu,
    "arc": arc,
    "arc_worked": arc,
    "hellaswag": hellaswag,
    "hellaswag_worked": hellaswag,
    "truthfulqa": truthfulqa,
    "bbq": bbq,
    "winogender": winogender,
}
