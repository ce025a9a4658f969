"""Under ZeRO 3 a model lies in one process's memory: what the others hold, what is read together, what comes back.

Also what each of two processes runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import several

ROOMS = ("", "stages", "rl", "engines")
SETTINGS = {"micro_batch": None, "layout": "bucketed", "gradient_checkpointing": False, "processes": "any"}


def engine(zero: int) -> Any:
    from alignment.training.engine import EngineSettings, resolve

    more = {"offload": False, "gather": True, "loss_chunk": 64, "watchdog_minutes": None, "zero": zero}
    return resolve(EngineSettings.parse({"device": "cpu", "precision": "fp32", **SETTINGS, **more}))


@pytest.mark.parametrize(("zero", "launched", "place"), [(3, "0", "cpu"), (3, "1", "meta"), (2, "1", "cpu")])
def test_where_a_model_lies(zero: int, launched: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", launched)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert engine(zero).place == place
    monkeypatch.delenv("RANK")
    assert engine(zero).place == "cpu", "a step that one process does alone reads its models as ever"


def test_modules_without_weights_are_those_of_the_model(tmp_path: Path) -> None:
    """Names, order, ties and buffers: they are divided by their order."""
    sys.path.append(str(Path(__file__).parents[1] / "stages"))
    import rewarding
    import torch

    from alignment.gemma import core

    folder = rewarding.policy(tmp_path)
    whole, empty = core.load(folder), core.load(folder, place="meta")
    assert [(name, one.shape, one.dtype, one.requires_grad) for name, one in whole.named_parameters()] == [
        (name, one.shape, one.dtype, one.requires_grad) for name, one in empty.named_parameters()
    ]
    assert all(one.is_meta for one in empty.parameters())
    assert empty.get_output_embeddings().weight is empty.get_input_embeddings().weight
    for (name, one), (again, other) in zip(whole.named_buffers(), empty.named_buffers(), strict=True):
        assert name == again
        assert torch.equal(one, other), name


@pytest.mark.slow
def test_two_processes_read_what_one_of_them_has(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    rooms = [str(several.ROOT), *(str(Path(__file__).parents[1] / room) for room in ROOMS)]
    sys.path += rooms
    import rewarding

    policy = rewarding.policy(tmp_path)
    done = subprocess.run(
        several.torchrun(2, __file__, str(policy), str(tmp_path / "found.json")),
        env=several.environment(PYTHONPATH=":".join(rooms)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    file = tmp_path / "found.json"
    assert file.is_file(), done.stdout + done.stderr
    found = json.loads(file.read_text())
    wanted = measured(policy, engine(0))
    for one in found:
        assert one["held_out"] == pytest.approx(wanted["held_out"], rel=2e-6)
        assert one["tokens"] == wanted["tokens"]
        assert one["sides"] == pytest.approx(wanted["sides"], rel=2e-6, abs=1e-7)
        assert one["modes"] == wanted["modes"]
    assert [one["before"] for one in found] == [["cpu"], ["meta"]]
    assert [one["after"] for one in found] == [["cpu"], ["meta"]]
    assert found[0]["same"], "rank 0 has the very bits that it had"
    assert [one["everywhere"] for one in found] == [["cpu"], ["cpu"]]
    assert found[0]["sum"] == found[1]["sum"]


# ── what each process runs ───────────────────────────────────────────────────────────────────────


def measured(path: Path, how: Any) -> dict[str, Any]:
    """Five rows and three pairs, so that two processes do not have equally much to do; what lies where."""
    from alignment.artifacts import foreign
    from alignment.gemma import heads
    from alignment.training import held_out, held_out_pairs, policies, zero
    from alignment.training.pair_rows import PairRow
    from alignment.training.rows import TokenRows

    policy = policies.open_policy(foreign(path, "dir:given"), how)
    model, rng = policy.model, np.random.default_rng(0)
    before = sorted({weight.device.type for weight in model.parameters()})
    bits = [weight.detach().clone() for weight in model.parameters()]

    def ids(count: int) -> list[int]:
        return rng.integers(4, 40, count).tolist()

    rows = TokenRows.gather((ids(length), [False] + [True] * (length - 1)) for length in (5, 9, 12, 12, 30))
    pairs = [PairRow(ids(4 + n), ids(3), ids(5 + n), 0.0) for n in range(3)]
    held_out.TOKENS_A_BATCH, held_out_pairs.TOKENS_A_BATCH = 24, 30
    model.train()
    nll, tokens = held_out.held_out(model, rows, pad_id=0, engine=how)
    modes = sorted({module.training for module in model.modules()})
    reward = heads.with_head(policies.open_policy(foreign(path, "dir:given"), how).model, 3)
    sides = held_out_pairs.side_scores(reward, pairs, pad_id=0, device=how.device)
    after = sorted({weight.device.type for weight in model.parameters()})
    same = all(
        weight.is_meta or bool((weight == was).all()) for weight, was in zip(model.parameters(), bits, strict=True)
    )
    zero.everywhere(model, how.device)
    return {
        "held_out": nll.tolist(),
        "tokens": tokens.tolist(),
        "sides": [*sides.chosen.tolist(), *sides.rejected.tolist()],
        "modes": modes,
        "before": before,
        "after": after,
        "same": same,
        "everywhere": sorted({weight.device.type for weight in model.parameters()}),
        "sum": float(sum(weight.detach().double().sum() for weight in model.parameters())),
    }


if __name__ == "__main__":
    from alignment import ranks
    from alignment.plans.together import _leave
    from alignment.training.team import exchange, meet, open_team

    open_team(print)  # type: ignore[arg-type]
    every = exchange(measured(Path(sys.argv[1]), engine(3)))
    if ranks.is_main():
        Path(sys.argv[2]).write_text(json.dumps(every))
    meet()
    _leave(0)
