"""Where an answer ends: both stop ids count, the score stands on the last token drawn, and none is ever invented."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rl_support as support
import torch
from rl_support import Made, made

from alignment.chat.render import answer_text
from alignment.objectives.policy import shaped_rewards
from alignment.rl import loop
from alignment.rl.advantages import RunningMean, targets
from alignment.rl.episodes import Episodes
from alignment.sampling.drawer import OwnDrawer

PIECES = support.tokenizer()
STOPS = (PIECES.eos_id, PIECES.end_of_turn_id)
MANY = {"updating.batch": 48, "updating.minibatch": 48, "estimating.kind": "gae"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("run"), MANY, count=40, unfinished=-3.0, whiten="none")


@pytest.fixture(scope="module")
def drawn(run: Made) -> Episodes:
    """Of each kind some: ended by one stop id, by the other, cut off."""
    one = loop.draw(run.course, run.learner, 0)
    scored = run.course.reward.score(one.prompts_of_answers, one.texts, one.lengths, one.finished)
    one.judged = run.course.reward.shape(scored, run.learner.gather)
    run.learner.read(one, old=False)
    ends = [answer[-1] if done else None for answer, done in zip(one.answers, one.finished, strict=True)]
    assert set(ends) == {*STOPS, None}
    return one


def test_every_stop_id_ends_an_answer_and_nothing_else_does(drawn: Episodes) -> None:
    for ids, done, length in zip(drawn.answers, drawn.finished, drawn.lengths, strict=True):
        assert done == (ids[-1] in STOPS)
        assert not set(ids[:-1]) & set(STOPS), "nothing is drawn behind a terminator"
        assert length == 9 or done


def test_an_answer_that_was_cut_off_gets_no_terminator(drawn: Episodes) -> None:
    """Neither in what is learned from, nor in the tensors, nor in the text that is judged."""
    cut = [row for row, done in enumerate(drawn.finished) if not done]
    for row in cut:
        assert drawn.lengths[row] == 9
        assert not set(drawn.answers[row]) & set(STOPS)
    for row, ids in enumerate(drawn.answers):
        assert drawn.mask_BT[row].sum() == len(ids)
        assert bool(drawn.mask_BT[row, : len(ids)].all())
        assert drawn.texts[row] == answer_text(ids, PIECES)
        assert "<eos>" not in drawn.texts[row]
        assert "<end_of_turn>" not in drawn.texts[row]
    tree = drawn.tree(cut[0] // 2)
    assert list(tree.answers[cut[0] % 2]) == drawn.answers[cut[0]]


def test_an_answer_without_a_terminator_gets_the_constant_and_others_their_score(drawn: Episodes) -> None:
    """By what was drawn: a prompt whose template holds terminators changes nothing."""
    assert drawn.judged is not None
    assert all(PIECES.end_of_turn_id in ids for ids in drawn.prompt_ids)
    for row, done in enumerate(drawn.finished):
        score = drawn.texts[row].count("e") - 0.1 * len(drawn.texts[row]) if done else -3.0
        assert drawn.judged.total[row] == pytest.approx(score - 0.01 * drawn.lengths[row])


def test_the_score_stands_on_the_last_token_that_was_drawn(drawn: Episodes) -> None:
    """The terminator's own place where there is one; never the padding behind it."""
    assert drawn.judged is not None
    assert drawn.anchor_BT is not None
    scores_B = torch.tensor(drawn.judged.total).float()
    rewards_BT = shaped_rewards(scores_B, drawn.old_BT, drawn.anchor_BT, drawn.mask_BT, beta=0.0)
    for row, ids in enumerate(drawn.answers):
        wanted = [0.0] * rewards_BT.shape[1]
        wanted[len(ids) - 1] = float(scores_B[row])
        assert rewards_BT[row].tolist() == wanted


def test_a_score_reaches_every_token_of_its_answer_and_no_other(run: Made, drawn: Episodes) -> None:
    """One answer's score is raised by one: with γ = λ = 1 its returns are, from the first token to the last."""
    assert drawn.judged is not None
    numbers = support.numbers({**MANY, "estimating.lam": 1.0})["estimating"]
    plain = targets(drawn, numbers, beta=0.0, baseline=RunningMean())
    for row in (drawn.finished.index(True), drawn.finished.index(False)):
        total = drawn.judged.total + np.eye(48)[row]
        other = replace(drawn, judged=drawn.judged._replace(total=total))
        raised = targets(other, numbers, beta=0.0, baseline=RunningMean())
        assert plain.returns_BT is not None
        assert raised.returns_BT is not None
        difference_BT = raised.returns_BT - plain.returns_BT
        wanted_BT = torch.zeros_like(difference_BT)
        wanted_BT[row, : drawn.lengths[row]] = 1.0
        torch.testing.assert_close(difference_BT, wanted_BT, atol=1e-5, rtol=0)


def test_without_stopping_all_tokens_are_drawn_and_terminators_are_tokens_like_others(tmp_path: Path) -> None:
    """For measuring speed: every answer is unfinished, and its log-probabilities are the policy's."""
    run = made(tmp_path, {**MANY, "drawing.stop": False, "updating.steps": 1}, count=40)
    one = loop.draw(run.course, run.learner, 0)
    assert set(one.lengths) == {9}
    assert not any(one.finished)
    assert any(set(ids[:-1]) & set(STOPS) for ids in one.answers)
    assert one.mask_BT.all()
    sampled = one.old_BT.clone()
    run.learner.read(one, old=True)
    assert float((one.old_BT - sampled).abs().max()) < 1e-4
    assert run.go().step == 1


@pytest.mark.parametrize("which", [0, 1])
def test_an_answer_may_be_nothing_but_its_terminator(tmp_path: Path, which: int) -> None:
    class Silent(OwnDrawer):
        def draw(self, *some: Any, **more: Any) -> Any:
            found = super().draw(*some, **more)
            return [self._silent(answer, some[0], some[1]) for answer in found]

        @staticmethod
        def _silent(answer: Any, model: Any, prompts: Any) -> Any:
            with torch.no_grad():
                logits = model(torch.tensor([prompts[answer.prompt]]), use_cache=False).logits[0, -1]
            logprob = float(logits.log_softmax(-1)[STOPS[which]])
            return replace(answer, ids=[STOPS[which]], logprobs=[logprob], finished=True)

    run = made(tmp_path, {"updating.steps": 2})
    run = replace(run, course=replace(run.course, drawer=Silent(run.course.drawer.stop_ids, PIECES.pad_id)))  # type: ignore[attr-defined]
    assert run.go().step == 2
