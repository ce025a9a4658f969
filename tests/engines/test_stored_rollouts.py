"""Two processes learn from stored rollouts what one learns, loss by loss. The file is also what each process runs.

Drawn anew, answers of two engines would part for good at the first token that rounding decides; stored, nothing but the
order of summation differs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import several
import torch

RELATIVE, STEPS = 2e-6, 20
LENGTHS = (3, 7, 1, 5, 9, 2, 6, 6, 4, 8, 2, 3, 5, 5, 7, 1)
CHANGES = {
    "estimating.kind": "gae",
    "anchoring.kind": "ema",
    "anchoring.rate": 0.1,
    "updating.steps": STEPS,
    "updating.batch": 16,
    "updating.minibatch": 16,
    "updating.epochs": 2,
    "updating.learning_rate": 1e-4,
    "updating.clip_norm": 1e9,
    "critic.learning_rate": 1e-4,
    "critic.warmup": 4,
}
CURVES = ("loss/policy", "loss/critic", "update/kl_old")
CASES = {"ddp": (0, 4), "zero1": (1, 4), "zero2": (2, 2), "zero3": (3, None)}
"""By engine: ZeRO's stage and answers a forward pass; without a number, as many as fit, which the processes pad."""
PATH = ":".join(map(str, [several.ROOT, *(Path(__file__).parents[1] / room for room in ("", "rl", "engines"))]))

pytest.importorskip("deepspeed")


def learned(zero: int, micro: int | None, out: Path) -> list[dict[str, float]]:
    """The measures of every step, in a process of its world; only the critic learns in the first steps."""
    import rl_support as support

    from alignment import ranks
    from alignment.rl.advantages import Targets
    from alignment.training.engine import Engine

    world, rank = ranks.world(), ranks.rank()
    one = support.engine(micro_batch=micro, zero=zero)
    learner = support.learner(CHANGES, Engine("cpu", False, False, world, one.settings))
    everything = support.episodes(LENGTHS)
    rng = np.random.default_rng(1)
    advantages, returns = (torch.from_numpy(rng.normal(0, 1, everything.mask_BT.shape)).float() for _ in range(2))
    groups = list(range(len(everything.prompts)))[rank::world]
    rows = everything.rows(groups)
    some = share(everything, groups, rows)
    targets = Targets(advantages[rows], returns[rows], "token", torch.zeros(len(rows)), 0)
    found = []
    for step in range(STEPS):
        with learner.rollout():
            learner.read(some, old=True)
        found.append(learner.update(some, targets, step=step, beta_in_loss=0.1, out=out))
        learner.move_anchor(0.1)
    learner.leave()
    return found


def share(everything: Any, groups: list[int], rows: list[int]) -> Any:
    """The episodes of some groups of answers."""
    return replace(
        everything,
        prompts=[everything.prompts[group] for group in groups],
        prompt_ids=[everything.prompt_ids[group] for group in groups],
        **{name: [getattr(everything, name)[row] for row in rows] for name in ("answers", "texts", "finished")},
        **{
            name: getattr(everything, name)[rows]
            for name in ("drawn_BT", "mask_BT", "old_BT", "anchor_BT", "values_BT")
        },
    )


@pytest.mark.slow
@pytest.mark.parametrize("engine", CASES)
def test_two_processes_learn_from_stored_rollouts(engine: str, tmp_path: Path) -> None:
    done = subprocess.run(
        several.torchrun(2, *program(engine, tmp_path)),
        env=several.environment(PYTHONPATH=PATH),
        capture_output=True,
        text=True,
        timeout=400,
    )
    need_alike(engine, tmp_path, done.stdout + done.stderr)


def program(engine: str, out: Path) -> list[str]:
    """What each process runs, behind the name of the interpreter."""
    zero, micro = CASES[engine]
    return [__file__, str(zero), json.dumps(micro), str(out)]


def need_alike(engine: str, out: Path, said: str) -> None:
    """What two processes have left in ``out`` is what one learns."""
    wanted = learned(0, CASES[engine][1], out)
    file = out / "found.json"
    assert file.is_file(), said
    found = json.loads(file.read_text())
    assert len(found) == len(wanted) == STEPS
    for step, (mine, theirs) in enumerate(zip(wanted, found, strict=True)):
        for name in CURVES:
            assert theirs[name] == pytest.approx(mine[name], rel=RELATIVE, abs=RELATIVE), (step, name)
    moved = [row["update/kl_old"] for row in wanted]
    assert max(moved[:4]) < 1e-9 < 1e-7 < min(moved[4:]), "the policy waits for its critic, and then learns"


if __name__ == "__main__":
    from alignment import ranks
    from alignment.plans.together import _leave
    from alignment.training.team import open_team

    zero, micro, out = int(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
    ranks.settle()
    together = open_team(print)  # type: ignore[arg-type]
    if ranks.is_main():
        with together.together("learn"):
            measures = learned(zero, micro, out)
        (out / "found.json").write_text(json.dumps(measures))
        together.end(0)
        _leave(0)
    _leave(together.follow(lambda _: learned(zero, micro, out)))
