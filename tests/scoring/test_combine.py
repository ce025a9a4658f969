"""Rewards: each rule by hand, the threshold, what has a say in the statistics, and what is put in a score's place."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_reward
from gemma import tiny

from alignment import artifacts
from alignment.artifacts import Artifact
from alignment.chat.types import Messages, Prompt, messages
from alignment.errors import UserError
from alignment.gemma import core
from alignment.gemma.presets import TokenIds
from alignment.miniature import gold
from alignment.miniature.world import World
from alignment.sampling.sampler import Sampler
from alignment.scoring.combine import Judged, Llama2, Reward, RewardSettings, Scored, Weighted, is_safety, open_reward
from alignment.scoring.scorer import CERTAIN, Scores, sigmoid
from alignment.scoring.whitening import EPSILON

ASKED = Prompt(messages(("user", "How are you?")), "asked")
UNSAFE = replace(ASKED, id="unsafe", tags=("direct", "unsafe"))


class Judge:
    """Reads its raw score from the answer: ``"a=1 b=2"`` gives judge ``b`` 2, and a centre of its own."""

    def __init__(self, name: str, centre: float = 0.0, *, absolute: bool = True) -> None:
        self.name, self.centre, self.absolute = name, centre, absolute

    def _read(self, turns: Messages) -> float:
        return float(dict(pair.split("=") for pair in turns[-1].content.split())[self.name])

    def score(self, dialogues: Sequence[Messages]) -> Scores:
        raw = [self._read(turns) for turns in dialogues]
        return Scores(raw, [value - self.centre for value in raw], [sigmoid(value) for value in raw])


class Truth(Judge):
    """As gold, checks and classifiers: what is reported is a probability."""

    def score(self, dialogues: Sequence[Messages]) -> Scores:
        values = [self._read(turns) for turns in dialogues]
        return Scores(values, list(values), list(values))


class Exactly(Judge):
    """Gives a probability that is just what the answer says, whatever the logit."""

    def score(self, dialogues: Sequence[Messages]) -> Scores:
        values = [self._read(turns) for turns in dialogues]
        return Scores([7.0] * len(values), [-9.0] * len(values), values)


def reward(rule: Any, **changed: Any) -> Reward:
    return Reward(rule, **({"whiten": "none", "unfinished": None, "length_penalty": 0.0} | changed))


def judged(
    by: Reward, answers: list[str], prompts: list[Prompt] | None = None, tokens: int = 3, finished: str = ""
) -> Judged:
    """``finished`` has a letter for every answer: ``y`` or ``n``; without one all are."""
    ended = [letter == "y" for letter in finished or "y" * len(answers)]
    return by.judge(prompts or [ASKED] * len(answers), answers, [tokens] * len(answers), ended)


def numbers(*values: float) -> list[str]:
    return [f"a={value}" for value in values]


# ── rules ────────────────────────────────────────────────────────────────────────────────────────


def test_a_single_reward_is_its_reported_score() -> None:
    found = judged(reward(Weighted([Judge("a", centre=0.5)], [1.0])), numbers(1.0, -2.0))
    np.testing.assert_array_equal(found.total, [0.5, -2.5])
    np.testing.assert_array_equal(found.score, found.total)
    np.testing.assert_array_equal(found.parts["a"], [0.5, -2.5])


def test_several_are_weighed_and_each_is_kept() -> None:
    rule = Weighted([Judge("a", centre=1.0), Truth("b")], [2.0, -0.5])
    found = judged(reward(rule), ["a=1.5 b=0.8", "a=0 b=0"])
    # 2 · 0.5 − 0.5 · 0.8 = 0.6 and 2 · −1 − 0 = −2; a probability enters by its value.
    np.testing.assert_allclose(found.total, [0.6, -2.0], rtol=1e-14)
    np.testing.assert_array_equal(found.parts["a"], [0.5, -1.0])
    np.testing.assert_array_equal(found.parts["b"], [0.8, 0.0])


def test_scorers_of_one_name_are_told_apart() -> None:
    found = judged(reward(Weighted([Judge("a"), Judge("a", centre=1.0)], [1.0, 1.0])), numbers(3.0))
    assert (found.parts["a.0"], found.parts["a.1"], found.total) == (3.0, 2.0, 5.0)


def test_llama2_takes_safety_where_the_answer_looks_unsafe_or_the_prompt_is_tagged() -> None:
    rule = Llama2(Judge("h", centre=0.25), Judge("s", centre=-0.5), None)
    # σ(−2) = 0.119 < 0.15 ≤ σ(−1.7) = 0.154.
    answers = ["h=1 s=-2", "h=1 s=-1.7", "h=1 s=3"]
    found = judged(reward(rule), answers * 2, [ASKED] * 3 + [UNSAFE] * 3)
    # Centred: helpfulness 0.75, safety −1.5, −1.2, 3.5. Uncentred scores would give −2 and 1.
    np.testing.assert_allclose(found.score, [-1.5, 0.75, 0.75, -1.5, -1.2, 3.5], rtol=1e-14)
    np.testing.assert_array_equal(found.parts["by_safety"], [1, 0, 0, 1, 1, 1])
    np.testing.assert_allclose(found.parts["helpfulness"], [0.75] * 6, rtol=1e-14)
    np.testing.assert_allclose(found.parts["safety"], [-1.5, -1.2, 3.5] * 2, rtol=1e-14)
    np.testing.assert_allclose(found.parts["safety_probability"][:2], [0.11920292, 0.15446527], atol=1e-8)


def test_a_probability_of_015_is_not_below_it() -> None:
    rule = Llama2(Judge("h"), Exactly("s"), None)
    found = judged(reward(rule), ["h=1 s=0.15", f"h=1 s={math.nextafter(0.15, 0)!r}"])
    np.testing.assert_array_equal(found.parts["by_safety"], [0, 1])
    np.testing.assert_array_equal(found.score, [1.0, -9.0])


def test_the_threshold_is_the_users_where_one_is_given() -> None:
    answers = ["h=1 s=0.15", "h=1 s=0.3", "h=1 s=0.0"]
    assert judged(reward(Llama2(Judge("h"), Exactly("s"), 0.3)), answers).parts["by_safety"].tolist() == [1, 0, 1]
    assert judged(reward(Llama2(Judge("h"), Exactly("s"), 0.0)), answers).parts["by_safety"].tolist() == [0, 0, 0]


def test_a_safety_reward_that_knows_only_differences_needs_a_threshold() -> None:
    relative = Judge("s", absolute=False)
    with pytest.raises(UserError, match=r"s: its scores have no threshold of their own"):
        Llama2(Judge("h"), relative, None)
    Llama2(Judge("h"), relative, 0.2)
    Llama2(Judge("h", absolute=False), Judge("s"), None)


def test_llama2_mixes_probabilities_by_their_logits() -> None:
    found = judged(reward(Llama2(Truth("h"), Truth("s"), None)), ["h=0.75 s=0.5", "h=1 s=0.5", "h=1 s=0.1", "h=1 s=0"])
    certain = math.log((1 - CERTAIN) / CERTAIN)
    # log(0.75 / 0.25) = log 3; log(0.1 / 0.9) = −log 9.
    np.testing.assert_allclose(found.score, [math.log(3), certain, -math.log(9), -certain], rtol=1e-12)


@pytest.mark.parametrize(
    ("prompt", "tagged"),
    [
        (ASKED, False),
        (UNSAFE, True),
        (replace(ASKED, tags=("safety", "multi_turn")), True),
        (replace(ASKED, category="illicit_criminal"), True),
        (replace(ASKED, tags=("safe", "borderline", "unsafe_looking")), False),
    ],
)
def test_which_prompts_are_tagged_safety(prompt: Prompt, tagged: bool) -> None:
    assert is_safety(prompt) is tagged


# ── what becomes of a score ──────────────────────────────────────────────────────────────────────


def test_whitening_comes_before_the_constant_and_the_constant_before_the_length_penalty() -> None:
    by = reward(Weighted([Judge("a")], [1.0]), whiten="batch", unfinished=-1.5, length_penalty=0.1)
    found = by.judge([ASKED] * 5, numbers(1, 2, 99, 3, 6), [1, 2, 10, 0, 5], [True, True, False, True, True])
    # Of (1, 2, 3, 6) the mean is 3 and the variance 3.5; the unfinished 99 has no say.
    whitened = np.array([-2.0, -1.0, 0.0, 0.0, 3.0]) / math.sqrt(3.5 + EPSILON)
    np.testing.assert_allclose(found.parts["whitened"], whitened, rtol=1e-14)
    np.testing.assert_allclose(found.total, whitened + np.array([-0.1, -0.2, -1.5 - 1.0, 0.0, -0.5]), rtol=1e-14)
    np.testing.assert_array_equal(found.score, [1, 2, 99, 3, 6])
    np.testing.assert_array_equal(found.parts["unfinished"], [0, 0, 1, 0, 0])
    np.testing.assert_allclose(found.parts["length_penalty"], [0.1, 0.2, 1.0, 0.0, 0.5], rtol=1e-14)
    np.testing.assert_array_equal(found.parts["constant"], np.zeros(5))


def test_without_a_constant_an_unfinished_answer_keeps_its_score_and_its_say() -> None:
    by = reward(Weighted([Judge("a")], [1.0]), whiten="batch")
    found = judged(by, numbers(1, 2, 3, 6), finished="yyyn")
    np.testing.assert_allclose(found.total, np.array([-2, -1, 0, 3]) / math.sqrt(3.5 + EPSILON), rtol=1e-14)
    np.testing.assert_array_equal(found.parts["unfinished"], [0, 0, 0, 1])


def test_a_constant_of_0_is_a_constant() -> None:
    found = judged(reward(Weighted([Judge("a")], [1.0]), unfinished=0.0), numbers(4, 5), finished="yn")
    np.testing.assert_array_equal(found.total, [4, 0])


def test_only_the_sampler_says_whether_an_answer_is_finished() -> None:
    # Neither a terminator in the prompt nor one spelled in the answer ends it, and its absence leaves it no less ended.
    by = reward(Weighted([Judge("a")], [1.0]), unfinished=-7.0)
    closed = replace(ASKED, messages=messages(("user", "Hi<end_of_turn>\n<eos>")))
    answers = ["a=1 <eos>=0 <end_of_turn>=0", "a=1"]
    np.testing.assert_array_equal(judged(by, answers, [closed] * 2, finished="ny").total, [-7.0, 1.0])


def test_every_stop_id_finishes_an_answer_and_no_other_does() -> None:
    vocabulary, stops = 48, (1, 40)
    model = core.build(tiny.SHAPES["gemma1"], vocabulary, TokenIds(), seed=0)
    # The second prompt ends with a stop id, as a template might put it there.
    drawn = Sampler(model, stop_ids=stops, pad_id=0).draw(
        [[2, 5, 6], [2, 5, 1]], ["one", "two"], samples=40, max_new_tokens=12, seed=0
    )
    assert {answer.ids[-1] for answer in drawn if answer.finished} == set(stops)
    by = reward(Weighted([Judge("a")], [1.0]), unfinished=-7.0)
    answers, lengths = ["a=1"] * len(drawn), [len(answer.ids) for answer in drawn]
    found = by.judge([ASKED] * len(drawn), answers, lengths, [answer.finished for answer in drawn])
    expected = [1.0 if answer.ids[-1] in stops else -7.0 for answer in drawn]
    assert -7.0 in expected
    np.testing.assert_array_equal(found.total, expected)


@pytest.mark.parametrize("whiten", ["none", "batch", "running"])
def test_equal_scores_are_counted_and_never_nan(whiten: str) -> None:
    by = reward(Weighted([Judge("a")], [1.0]), whiten=whiten, unfinished=-1.0)
    found = judged(by, numbers(0.1, 0.1, 0.1))
    np.testing.assert_array_equal(found.total, [0.1] * 3 if whiten == "none" else [0.0] * 3)
    np.testing.assert_array_equal(found.parts["constant"], [1, 1, 1])
    # One that did not end differs from the others: there is something to learn.
    found = judged(by, numbers(0.1, 0.1, 0.1), finished="yyn")
    np.testing.assert_array_equal(found.total, [0.1, 0.1, -1.0] if whiten == "none" else [0.0, 0.0, -1.0])
    np.testing.assert_array_equal(found.parts["constant"], [0, 0, 0])
    assert not judged(by, numbers(0.1, 0.2)).parts["constant"].any()


def test_a_batch_in_which_no_answer_ended_is_all_constant() -> None:
    by = reward(Weighted([Judge("a")], [1.0]), whiten="batch", unfinished=-1.0)
    found = judged(by, numbers(1, 2), finished="nn")
    np.testing.assert_array_equal(found.total, [-1.0, -1.0])
    np.testing.assert_array_equal(found.parts["constant"], [1, 1])


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_score_that_is_not_finite_is_refused_with_its_prompt(value: str) -> None:
    prompts = [ASKED, replace(ASKED, id="other")]
    with pytest.raises(UserError, match=rf"b: gives the score {value} to an answer to other"):
        judged(reward(Weighted([Judge("a"), Truth("b")], [1.0, 1.0])), ["a=1 b=1", f"a=1 b={value}"], prompts)


def test_a_probability_that_is_not_finite_is_refused_too() -> None:
    with pytest.raises(UserError, match="s: gives the score nan"):
        judged(reward(Llama2(Judge("h"), Exactly("s"), None)), ["h=1 s=nan"])


# ── several processes, and a run that goes on ────────────────────────────────────────────────────


def shaped_apart(by: list[Reward], scored: list[Scored]) -> list[Judged]:
    """What each process gets where all exchange what they hand to ``gather``."""
    sent: list[np.ndarray] = []

    def send(values: np.ndarray) -> np.ndarray:
        sent.append(values)
        return values

    for one in scored:
        reward(Weighted([Judge("a")], [1.0]), unfinished=-3.0).shape(one, send)
    everything = np.concatenate(sent)
    return [each.shape(one, lambda _: everything) for each, one in zip(by, scored, strict=True)]


@pytest.mark.parametrize("whiten", ["none", "batch", "running"])
def test_processes_get_what_one_would_have_got(whiten: str) -> None:
    def fresh() -> Reward:
        return reward(Weighted([Judge("a")], [1.0]), whiten=whiten, unfinished=-3.0, length_penalty=0.01)

    generator = np.random.default_rng(0)
    alone, apart = fresh(), [fresh(), fresh(), fresh()]
    for _ in range(3):
        # In the last process no answer has ended.
        answers, tokens = numbers(*generator.normal(2.0, 3.0, 24).tolist()), generator.integers(1, 9, 24).tolist()
        finished = [place < 16 and place % 3 > 0 for place in range(24)]
        expected = alone.judge([ASKED] * 24, answers, tokens, finished)
        thirds = [slice(0, 8), slice(8, 16), slice(16, 24)]
        scored = [
            each.score([ASKED] * 8, answers[third], tokens[third], finished[third])
            for each, third in zip(apart, thirds, strict=True)
        ]
        found = shaped_apart(apart, scored)
        np.testing.assert_array_equal(np.concatenate([one.total for one in found]), expected.total)
        for name, part in expected.parts.items():
            np.testing.assert_array_equal(np.concatenate([one.parts[name] for one in found]), part, err_msg=name)
    assert [each.state() for each in apart] == [alone.state()] * 3


def test_a_resumed_run_whitens_to_the_same_bits() -> None:
    first, second = (reward(Weighted([Judge("a")], [1.0]), whiten="running") for _ in range(2))
    judged(first, numbers(0.1, 0.7, 3.0))
    second.load_state(json.loads(json.dumps(first.state())))
    np.testing.assert_array_equal(judged(first, numbers(1, 4)).total, judged(second, numbers(1, 4)).total)
    assert first.state() == second.state()
    # (0.1, 0.7, 3, 1, 4): the mean of all that came, 1.76.
    assert first.state()["mean"] == pytest.approx(1.76, rel=1e-14)


# ── settings ─────────────────────────────────────────────────────────────────────────────────────

PLAIN: dict[str, Any] = {
    "rule": "single",
    "model": "latest:reward",
    "safety": None,
    "others": None,
    "weights": None,
    "safety_below": None,
    "whiten": "none",
    "unfinished": None,
    "length_penalty": 0.0,
    "classifier": {"label": None, "text": "answer"},
}


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"rule": "llama2", "safety": "latest:safety"},
        {"rule": "llama2", "safety": "latest:safety", "safety_below": 0.0},
        {"rule": "weighted", "others": ["check:gsm8k"], "weights": [1.0, -2.0]},
    ],
)
def test_settings_that_fit_together(changed: dict[str, Any]) -> None:
    assert RewardSettings.parse(PLAIN | changed).rule == changed.get("rule", "single")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"rule": "llama2"}, r"safety=None: rule=llama2 needs it"),
        ({"safety": "latest:safety"}, r"safety='latest:safety': rule=single has no use for it\n.*rule=llama2"),
        ({"safety_below": 0.0}, r"safety_below=0.0: rule=single has no use for it"),
        (
            {"rule": "weighted", "safety": "a:b", "others": ["x:y"], "weights": [1.0, 1.0]},
            r"safety='a:b': rule=weighted",
        ),
        ({"rule": "weighted", "weights": [1.0]}, r"others=None: rule=weighted needs it"),
        ({"rule": "weighted", "others": [], "weights": [1.0]}, r"others=\[\]: rule=weighted needs it"),
        ({"rule": "weighted", "others": ["x:y"]}, r"weights=None: rule=weighted needs it"),
        ({"rule": "weighted", "others": ["x:y"], "weights": [1.0]}, r"weights=\[1.0\]: 2 weights are needed"),
        ({"rule": "weighted", "others": ["x:y"], "weights": [1.0, math.nan]}, r"weights\.1=nan.*a finite number"),
        ({"rule": "weighted", "others": ["x:y"], "weights": [1.0, 0.0]}, r"weights=.*other than 0"),
        ({"weights": [1.0]}, r"weights=\[1.0\]: rule=single has no use for it\n.*rule=weighted"),
        ({"rule": "llama2", "safety": "a:b", "safety_below": 1.5}, r"safety_below=1.5"),
        ({"unfinished": math.inf}, r"unfinished=inf"),
        ({"length_penalty": -0.1}, r"length_penalty=-0.1"),
        ({"length_penalty": math.inf}, r"length_penalty=inf"),
        ({"rule": "sum"}, r"rule='sum'"),
    ],
)
def test_settings_that_do_not(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        RewardSettings.parse(PLAIN | changed)


# ── opening ──────────────────────────────────────────────────────────────────────────────────────


def test_the_truth_is_a_reward_for_whoever_names_it() -> None:
    world = World(seed=0, residents=40)
    settings = RewardSettings.parse(PLAIN | {"rule": "llama2", "model": "gold:helpfulness", "safety": "gold:safety"})
    inputs = {f"reward.{key}": artifacts.named("gold", key) for key in ("helpfulness", "safety")}
    inputs["reward.model"] = inputs.pop("reward.helpfulness")
    by = open_reward(settings, inputs, tiny_reward.ENGINE, [ASKED], world)
    asked = replace(ASKED, messages=messages(("user", "What is 2 + 3?")))
    found = judged(by, ["5.", "Bananas."], [asked] * 2)
    values = [gold.helpfulness(world, asked.messages, answer) for answer in ("5.", "Bananas.")]
    assert values[0] > values[1]
    held = [min(max(value, CERTAIN), 1 - CERTAIN) for value in values]
    np.testing.assert_allclose(found.score, [math.log(value / (1 - value)) for value in held], rtol=1e-12)


def test_each_input_takes_its_place(reward_folder: Path) -> None:
    model = tiny_reward.ours(reward_folder)
    arithmetic = Prompt(messages(("user", "What is two and three?")), "sum", reference="5")
    settings = RewardSettings.parse(
        PLAIN | {"rule": "weighted", "others": ["check:gsm8k", "check:exact"], "weights": [0.0625, 10.0, 100.0]}
    )
    inputs = {
        "reward.model": model,
        "reward.others.0": artifacts.named("check", "gsm8k"),
        "reward.others.1": artifacts.named("check", "exact"),
    }
    by = open_reward(settings, inputs, tiny_reward.ENGINE, [arithmetic], None)
    found = judged(by, ["it is 5", "5", "the friend"], [arithmetic] * 3)
    np.testing.assert_array_equal(found.parts["check_gsm8k"], [1, 1, 0])
    np.testing.assert_array_equal(found.parts["check_exact"], [0, 1, 0])
    np.testing.assert_allclose(found.score, 0.0625 * found.parts["helpful"] + [10, 110, 0], rtol=1e-12)


def test_a_relative_reward_model_decides_on_safety_only_by_a_threshold_of_the_user(reward_folder: Path) -> None:
    model = tiny_reward.ours(reward_folder)
    inputs = {"reward.model": model, "reward.safety": model}
    settings = PLAIN | {"rule": "llama2", "safety": "latest:safety"}
    with pytest.raises(UserError, match="no threshold of their own"):
        open_reward(RewardSettings.parse(settings), inputs, tiny_reward.ENGINE, [ASKED], None)
    open_reward(RewardSettings.parse(settings | {"safety_below": 0.3}), inputs, tiny_reward.ENGINE, [ASKED], None)


def test_who_answers_is_no_reward() -> None:
    policy = Artifact(Path("/x/sft"), "policy", "sft", "sft", "a" * 64)
    with pytest.raises(UserError, match="a reward or gold or check or remote is needed here"):
        open_reward(RewardSettings.parse(PLAIN), {"reward.model": policy}, tiny_reward.ENGINE, [ASKED], None)
