"""Ten thousand stored answers are scored in a memory that their texts bound."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from safety_support import Speaker, examined, prompts, told, yaml_of

from alignment.chat.types import Messages, Prompt, messages
from alignment.evals.suites import drawn, kept

COUNT = 10_000
WORDS = "of the many things that are said in answer to a question " * 50
SUITE = yaml_of("suite", "xstest") | {"prompts": "run:p", "unsafe": []}
MIB = 2**20


def answer(turns: Messages, key: str) -> str:
    return f"I cannot say. {key} {WORDS}" if key.startswith("p1") else f"Of course: {key} {WORDS}"


def silent(turns: Messages, key: str) -> str:
    raise AssertionError(f"{key} is asked a second time")


def test_ten_thousand_stored_answers_are_scored_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts and answers lie in memory once, and some thousand examples as they are written: no more than that."""
    dataset = prompts(
        tmp_path / "p",
        [Prompt(messages(("user", f"What is {n}, and why?")), f"p{n}", tags=("safe",)) for n in range(COUNT)],
    )

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(drawn, "judged", stopped)
        with pytest.raises(KeyboardInterrupt):
            examined(patch, tmp_path / "out", SUITE, {"prompts": dataset}, speaker=Speaker(answer))
    stored = sum(path.stat().st_size for path in (tmp_path / "out" / "parts" / "answers").iterdir())
    assert stored > COUNT * len(WORDS)
    gc.collect()
    arrow = pyarrow.default_memory_pool()
    before = arrow.max_memory()
    tracemalloc.start()
    try:
        examined(monkeypatch, tmp_path / "out", SUITE, {"prompts": dataset}, speaker=Speaker(silent))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    found = told(tmp_path / "out")["measures"]["false_refusal"]
    assert (found["examples"], found["estimate"]) == (COUNT, 0.1111)
    assert peak < stored + 80 * MIB
    # A row group as it is written; what is read back has no texts.
    assert arrow.max_memory() - before < 2 * kept.ROWS_A_BATCH * stored / COUNT + 16 * MIB
