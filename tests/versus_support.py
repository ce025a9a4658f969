"""Two models side by side as ``stage=side_by_side`` would have written it: examples of every kind, and hostile text."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from typing import Any

from pairs_support import pair
from report_support import HOSTILE

from alignment.chat.types import messages
from alignment.evals import side_by_side
from alignment.evals.examples import Example, example
from alignment.scoring.hearing import STRAIGHT, TURNED, Heard, Voice
from alignment.scoring.pairwise import Judgement


def heard(better: bool | None, *voices: Voice, grade: Any = "better", valid: bool = True) -> Heard:
    safe = None if better is None else better
    return Heard(Judgement(better, grade, True, safe, 0.5, 0.25, reason="so", valid=valid), voices)


def examples() -> list[Example]:
    """Some of every kind, with hostile text."""
    draw = random.Random(3)
    found = []
    for number in range(24):
        candidate_first = number % 2 == 0
        names = {"model_a": "new", "model_b": "old"} if candidate_first else {"model_a": "old", "model_b": "new"}
        turns = messages(("user", f"Question {number}? {'x' * number}"), ("assistant", "Hm."), ("user", "And?"))
        one = pair(
            f"p-{number}",
            f"{'A ' * draw.randrange(1, 9)}{number}",
            HOSTILE if number == 3 else f"{'B ' * draw.randrange(1, 9)}{number}",
            prompt=turns[: 1 if number % 3 else 3],
            category="hateful" if number % 4 == 0 else None,
            split="test",
            why="the same prompt again" if number == 23 else "",
            **names,
        )
        better = None if number % 7 == 6 else draw.random() < 0.6
        voices = (
            Voice(
                STRAIGHT, better, "better" if better is not None else "negligibly", False, f"reason {number} {HOSTILE}"
            ),
            Voice(TURNED, better, "significantly" if better is not None else "negligibly", True, "again"),
        )
        if number == 5:
            one_heard = heard(None, Voice(STRAIGHT, None, None, False, "nonsense", False), voices[1], valid=False)
        else:
            one_heard = heard(better, *voices)
        found.append(example(one, None if one.why else one_heard, "new", "no_preference"))
    return found


EXAMPLES = examples()
ROWS = [json.loads(json.dumps(asdict(one))) for one in EXAMPLES]
RESULTS: dict[str, Any] = {
    "side_by_side": {"candidate": "new", "baseline": f"old {HOSTILE}"},
    "judge": "judge",
    "aspect": "overall",
    "ties": "no_preference",
    "confidence": 0.95,
    **side_by_side.results(EXAMPLES, confidence=0.95, seed=0, gold=False),
}
