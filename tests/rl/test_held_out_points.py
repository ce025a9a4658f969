"""Points on held-out prompts: the same draws every time, what is measured is what is said to be measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rl_support as support
import torch
from rl_support import Made, made

from alignment.chat.render import prompt_ids
from alignment.errors import LostError, UserError
from alignment.rl.held_out import HeldOut
from alignment.scoring.scorer import Scores


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One that nobody trains."""
    return made(tmp_path_factory.mktemp("run"), {"watching.prompts": 12}, whiten="running")


def moved(by: float = 0.02) -> torch.nn.Module:
    model = support.model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=by)
    return model


def test_the_start_is_at_kl_0_and_measured_twice_it_is_the_same(run: Made) -> None:
    model = support.model()
    first, again = (run.course.held_out.measure(model, 7, run.course.out) for _ in range(2))
    assert first == again
    point, rows = first
    assert point.step == 7
    assert abs(point.kl) < 1e-9
    assert len(rows) == 12
    assert len({row["answer"] for row in rows}) > 8


def test_means_are_those_of_the_rows(run: Made) -> None:
    point, rows = run.course.held_out.measure(moved(), 3, run.course.out)
    asked = [prompt.messages[-1].content for prompt in run.course.held_out.prompts]
    assert [row["prompt"] for row in rows] == asked
    for name, mean in {"reward": point.reward, "kl": point.kl, **point.others}.items():
        assert mean == pytest.approx(np.mean([float(row[name]) for row in rows]), abs=1e-9)
    for row in rows:
        said = str(row["answer"])
        assert row["reward"] == pytest.approx(said.count("e") - 0.1 * len(said)), "without constants and penalties"
        assert row["short"] == -len(said)


def test_the_kl_is_over_all_tokens_summed_over_the_answer(run: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against two vanilla forward passes, for every answer."""
    model, start, kept = moved(), support.model(), []
    held = run.course.held_out
    answers = type(held)._answers

    def watched(self: Any, *some: Any) -> Any:
        kept.extend(answers(self, *some))
        return kept

    monkeypatch.setattr(type(held), "_answers", watched)
    point, rows = held.measure(model, 0, run.course.out)
    for prompt, answer, row in zip(held.prompts, kept, rows, strict=True):
        asked = prompt_ids(prompt.messages, support.tokenizer())
        ids = torch.tensor([[*asked, *answer.ids]])
        with torch.no_grad():
            ours, theirs = (
                one(ids, use_cache=False).logits[0, len(asked) - 1 : -1].log_softmax(-1) for one in (model, start)
            )
        assert row["kl"] == pytest.approx(float((ours.exp() * (ours - theirs)).sum()), abs=1e-4)
    assert point.kl > 0.01


def test_looking_leaves_the_running_statistics_as_they_are(run: Made) -> None:
    before = run.course.reward.state()
    run.course.held_out.measure(moved(), 3, run.course.out)
    assert run.course.reward.state() == before


def test_answers_are_drawn_at_the_temperature_of_training_with_both_terminators(
    run: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = support.numbers({"drawing.temperature": 0.3, "drawing.stop": False})["drawing"]
    found = [
        replace(run.course.held_out, drawing=some).measure(moved(), 0, run.course.out)[1]
        for some in (run.course.drawing, drawing)
    ]
    assert found[0] != found[1]
    ids = run.course.policy.stop_ids
    assert set(ids) == {support.tokenizer().eos_id, support.tokenizer().end_of_turn_id}
    assert any(len(str(row["answer"])) < 12 for row in found[1])


def kept(out: Path, held: HeldOut) -> str:
    """Where the answers to all of its prompts are kept."""
    path = out / "parts" / "not_judged_0.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [prompt.id for prompt in held.prompts]
    assert all(row.keys() == {"prompt", "answer"} for row in rows)
    return f"The answers are in {path}."


def test_a_score_that_is_no_number_is_refused_and_the_answers_are_kept(run: Made, tmp_path: Path) -> None:
    class Broken:
        name, absolute = "broken", True

        def score(self, dialogues: Any) -> Scores:
            values = [0.0] * (len(dialogues) - 1) + [float("nan")]
            return Scores(values, values, values)

    with pytest.raises(UserError, match="broken gives a score that is not a number") as refused:
        replace(run.course.held_out, others={"broken": Broken()}).measure(moved(), 0, tmp_path)
    assert refused.value.remedy == f"Leave it out of watching.rewards. {kept(tmp_path, run.course.held_out)}"


def test_the_answers_are_kept_where_the_reward_or_the_kl_is_no_number(tmp_path: Path) -> None:
    def broken(*_: Any) -> Any:
        raise UserError("letters: gives the score nan to an answer")

    held = made(tmp_path, rule=broken).course.held_out
    with pytest.raises(UserError, match="gives the score nan") as refused:
        held.measure(moved(), 0, tmp_path / "reward")
    assert refused.value.remedy == kept(tmp_path / "reward", held)
    held = made(tmp_path).course.held_out
    with torch.no_grad():
        next(held.start.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="the KL to the start is no number at step 3") as refused:
        held.measure(moved(), 3, tmp_path / "kl")
    assert refused.value.remedy.endswith(kept(tmp_path / "kl", held))


def test_where_a_process_is_lost_the_answers_are_not_at_fault(tmp_path: Path) -> None:
    def gone(*_: Any) -> Any:
        raise LostError("another process of this run is gone")

    with pytest.raises(LostError, match="is gone"):
        made(tmp_path, rule=gone).course.held_out.measure(moved(), 0, tmp_path)
    assert not list(tmp_path.rglob("not_judged_*"))


@pytest.mark.parametrize("training", [False, True])
def test_the_mode_of_the_model_makes_no_difference(run: Made, training: bool) -> None:
    """It is measured in the middle of a run that learns."""
    policy = support.policy(lora=2)
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.05)
    found = run.course.held_out.measure(policy.model.train(training), 0, run.course.out)
    assert found == run.course.held_out.measure(policy.model.eval(), 0, run.course.out)


def test_a_run_measures_the_policy_as_it_is_then(tmp_path: Path) -> None:
    run = made(tmp_path)
    run.go()
    point, _ = run.course.held_out.measure(run.learner.roles.policy, 4, tmp_path)  # type: ignore[arg-type]
    assert f'"kl": {point.kl}' in (tmp_path / "front.jsonl").read_text().splitlines()[-1]
