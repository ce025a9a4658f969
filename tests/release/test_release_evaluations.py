"""What a model card says of how its model was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from report_support import Making, estimate

from alignment.release import evaluations

SETTINGS = {"split": "test", "count": 1024, "temperature": 1.0, "max_new_tokens": 64}


@pytest.mark.parametrize(
    ("parents", "how"),
    [
        (
            {"prompts": "mini:prompts", "reference": "mini:base"},
            "prompts, split test, at most 1,024 rows, temperature 1, at most 64 tokens, KL to base",
        ),
        ({"suites.arc.0": "step:arc-sft", "suites.my.own.0": "step:own-sft"}, "suites arc, my.own"),
        (
            {"prompts": "mini:prompts", "suites.arc.0": "step:arc-sft"},
            "prompts, split test, at most 1,024 rows, temperature 1, at most 64 tokens, suite arc",
        ),
    ],
)
def test_prompts_and_suites_say_how_each_was_asked(tmp_path: Path, parents: dict[str, str], how: str) -> None:
    making = Making(tmp_path)
    model = making.add("sft", "sft", "policy")
    told: dict[str, Any] = {"confidence": 0.95, "models": {"sft": {"arc/correct": estimate(0.5)}}}
    files = {"results.json": told}
    made = making.add("versions", "evaluate", "evaluation", {"models.0": "sft", **parents}, files, settings=SETTINGS)
    (found,) = evaluations.read([made], model)
    assert found.how == how
    assert found.measures == (evaluations.Measure("arc/correct", 0.5, 0.48, 0.52),)
