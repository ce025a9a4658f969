"""The gate's rules: every kind of them, how surely they let candidates pass, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from alignment.data import lists
from alignment.errors import UserError
from alignment.evals import gate, gate_rules
from alignment.evals.gate import Finding, Rule
from alignment.evals.intervals import Bootstrap, Interval, unpaired, widened


def verdict(said: str, interval: Sequence[float], count: int | None = 100) -> gate.Verdict:
    (rule,) = gate_rules.read([said])
    return gate.judge(rule, Finding("here", Interval(*interval), count))


# ── rules ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("said", "interval", "passed"),
    [
        # Values: the worse end counts, and the bound itself is within.
        ("gold at_least 0.5", (0.6, 0.5, 0.7), True),
        ("gold at_least 0.5", (0.6, 0.499, 0.7), False),
        ("gold at_least 0.5 by_estimate", (0.6, 0.499, 0.7), True),
        ("gold at_least 0.5 by_estimate", (0.49, 0.4, 0.7), False),
        ("violations at_most 0.1", (0.05, 0.01, 0.1), True),
        ("violations at_most 0.1", (0.05, 0.01, 0.101), False),
        ("violations at_most 0.1 by_estimate", (0.1, 0.01, 0.2), True),
        ("violations at_most 0.1 by_estimate", (0.101, 0.01, 0.2), False),
        # A loss of exactly the bound is not beyond it; a gain of exactly the bound is not either.
        ("gold no_worse_than 0.02", (0.0, -0.02, 0.02), True),
        ("gold no_worse_than 0.02", (0.0, -0.021, 0.02), False),
        ("gold no_worse_than 0.02 by_estimate", (-0.02, -0.05, 0.01), True),
        ("gold no_worse_than 0.02 by_estimate", (-0.021, -0.05, 0.01), False),
        ("gold better_by 0", (0.01, 0.001, 0.02), True),
        ("gold better_by 0", (0.01, 0.0, 0.02), False),
        ("gold better_by 0.01", (0.02, 0.011, 0.03), True),
        ("gold better_by 0.01", (0.02, 0.01, 0.03), False),
        ("gold better_by 0 by_estimate", (0.01, -0.5, 0.02), True),
        ("gold better_by 0 by_estimate", (0.0, -0.5, 0.02), False),
        # Where less is better the other end is the worse one.
        ("kl no_worse_than 0.1", (0.0, -0.5, 0.1), True),
        ("kl no_worse_than 0.1", (0.0, -0.05, 0.101), False),
        ("kl better_by 0", (-0.2, -0.3, -0.1), True),
        ("kl better_by 0", (-0.2, -0.3, 0.0), False),
        ("kl better_by 0.1 by_estimate", (-0.1, -0.3, 0.0), False),
        ("tokens better_by 0.1 lower_is_better by_estimate", (-0.11, -0.3, 0.0), True),
        ("kl no_worse_than 0.1 higher_is_better", (0.5, 0.4, 0.6), True),
    ],
)
def test_every_kind_of_rule_by_either_count_and_in_either_direction(
    said: str, interval: tuple[float, float, float], passed: bool
) -> None:
    assert verdict(said, interval).passed is passed


def test_a_reason_tells_what_is_wrong_from_what_is_not_sure() -> None:
    assert verdict("gold_safety no_worse_than 0.02", (-0.005, -0.012, 0.01)).why == "at worst -0.012"
    assert verdict("gold_safety no_worse_than 0.02", (-0.005, -0.035, 0.01)).why == "not sure: it may be -0.035"
    assert verdict("gold_safety no_worse_than 0.02", (-0.03, -0.035, 0.01)).why == "the estimate itself is -0.03"
    assert verdict("gold at_least 0.5", (0.6, 0.4, 0.7)).why == "not sure: it may be 0.4"
    assert verdict("kl at_most 0.5", (0.4, 0.3, 0.45)).why == "at worst 0.45"


def test_too_few_prompts_are_not_believed_but_their_estimate_may_be_asked_for() -> None:
    sure = (0.9, 0.9, 0.9)
    assert verdict("gold at_least 0.5", sure, 9).why == "9 prompts are too few for an interval"
    assert not verdict("gold at_least 0.5", sure, 9).passed
    assert verdict("gold at_least 0.5", sure, 10).passed
    assert verdict("gold at_least 0.5 by_estimate", sure, 9).passed


def test_what_has_no_interval_passes_only_by_its_estimate() -> None:
    bare = (0.9, -math.inf, math.inf)
    assert not verdict("mmlu at_least 0.5", bare).passed
    assert "could ask for the estimate" in verdict("mmlu at_most 0.95", bare).why
    assert verdict("mmlu at_least 0.5 by_estimate", bare).passed


def test_what_was_not_found_fails_with_its_reason_and_no_rule_is_no_pass() -> None:
    found = gate.judge(Rule("gold", "at_least", 0.0), Finding("", None, why="not measured of ppo"))
    assert (found.passed, found.why) == (False, "not measured of ppo")
    passing = verdict("gold at_least 0", (1.0, 1.0, 1.0))
    assert gate.passes([passing, passing])
    assert not gate.passes([passing, found])
    assert not gate.passes([])


def shares(said: str, true: float, spread: float, prompts: int = 100, models: int = 2000) -> float:
    """The share of candidates with a true difference that a rule lets pass; their prompts scatter by ``spread``."""
    less_PK = np.random.default_rng(0).normal(true, spread, (prompts, models))
    found = Bootstrap(range(prompts), 0.95, 1).ratios(less_PK, np.ones_like(less_PK))
    (rule,) = gate_rules.read([said])
    return float(np.mean([gate.judge(rule, Finding("", one, prompts)).passed for one in found]))


def test_candidates_pass_at_the_nominal_rate() -> None:
    """The standard error is 0.1 / √100 = 0.01, and the 95 % interval's lower bound lies 1.96 of them below.

    An equal candidate passes ``no_worse_than x`` with Φ(x / 0.01 − 1.96); one that is worse by just x with 2.5 %, as an
    equal one passes ``better_by 0``. Two thousand candidates err by 0.0035 (0.011 at a half); a percentile bootstrap
    of a hundred values is a little too narrow.
    """
    z = NormalDist().inv_cdf(0.975)
    for loss in (0.01, 0.02, 0.03, 0.05):
        wanted = NormalDist().cdf(loss / 0.01 - z)
        assert shares(f"gold no_worse_than {loss}", 0.0, 0.1) == pytest.approx(wanted, abs=0.025)
    for said, true in (("gold no_worse_than 0.02", -0.02), ("gold no_worse_than 0", 0.0), ("gold better_by 0", 0.0)):
        assert shares(said, true, 0.1) == pytest.approx(0.025, abs=0.01)
    assert shares("kl no_worse_than 0.02", 0.02, 0.1) == pytest.approx(0.025, abs=0.01)
    assert shares("gold no_worse_than 0 by_estimate", 0.0, 0.1) == pytest.approx(0.5, abs=0.025)


def test_equal_values_leave_the_doubt_that_their_number_leaves() -> None:
    """None of twenty: the 95 % Clopper–Pearson bound is 0.1684; of a difference in [−1, 1] the same either way."""
    assert widened(Interval(0, 0, 0), 20, 0.95, 0, 1) == pytest.approx((0, 0, 0.1684), abs=5e-5)
    assert widened(Interval(1, 1, 1), 20, 0.95, 0, 1) == pytest.approx((1, 1 - 0.1684, 1), abs=5e-5)
    assert widened(Interval(0, 0, 0), 20, 0.95, -1, 1) == pytest.approx((0, -0.1684, 0.1684), abs=5e-5)
    known = Interval(0.1, 0.05, 0.2)
    assert widened(known, 20, 0.95, 0, 1) == known


def test_two_intervals_give_newcombes_difference() -> None:
    """Newcombe 1998, table II, (a): 56/70 less 48/80, with Wilson's intervals, is 0.0524 … 0.3339."""
    a, b = Interval(56 / 70, 0.6918, 0.8770), Interval(48 / 80, 0.4904, 0.7004)
    assert unpaired(a, b) == pytest.approx((0.2, 0.0524, 0.3339), abs=2e-4)
    assert unpaired(b, a) == pytest.approx((-0.2, -0.3339, -0.0524), abs=2e-4)
    assert unpaired(a, Interval(0.6, -math.inf, math.inf)).low == -math.inf


# ── rules as they are written ────────────────────────────────────────────────────────────────────


def test_sentences_and_files_say_the_same(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "rules:\n- {measure: gold_safety, no_worse_than: 0.02}\n"
        "- {measure: tokens, better_by: 1, better: lower, by: estimate}\n"
        "- {measure: 'accuracy on a, b', at_least: 0.5}\n"
    )
    sentences = [
        "gold_safety no_worse_than 0.02",
        "tokens better_by 1 by_estimate lower_is_better",
        "accuracy on a, b at_least .5",
    ]
    found = gate_rules.read([str(mine)])
    assert found == gate_rules.read(sentences)
    assert found == [
        Rule("gold_safety", "no_worse_than", 0.02, "interval", "higher"),
        Rule("tokens", "better_by", 1.0, "estimate", "lower"),
        Rule("accuracy on a, b", "at_least", 0.5),
    ]


def test_rules_of_the_miniature_are_a_file_that_travels_with_the_package() -> None:
    found = gate_rules.read(["miniature", "kl at_most 2"])
    assert [rule.measure for rule in found] == ["gold_safety", "gold_helpfulness", "finished", "kl"]
    assert (lists.FOLDER / "gate_miniature.yaml").is_file()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ([], "there is no rule"),
        (["minature"], "(?s)no list 'minature'.*Did you mean 'miniature'"),
        (["gold better than 2"], "is no rule"),
        (["gold no_worse_than two"], "'two' is no number"),
        (["gold no_worse_than -0.1"], "no_worse_than=-0.1"),
        (["gold better_by -1"], "better_by=-1"),
        (["gold at_least nan"], "at_least=nan"),
        (["gold at_least 1 by_estimates"], "(?s)'by_estimates' cannot stand there.*by_estimate"),
        (["gold at_least 1 by_estimate by_interval"], "'by_interval' cannot stand there"),
        (["tokens no_worse_than 1"], "nothing says whether more of it is better"),
        (["klaxons no_worse_than 1"], "nothing says whether more of it is better"),
        (["tokens at_most 1 lower_is_better"], "has no effect"),
        (["gold at_least 0.1", "gold at_least 0.2"], "said twice"),
        (["/nowhere/rules.yaml"], "there is no such file"),
    ],
)
def test_what_is_no_rule_is_refused_in_words(said: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        gate_rules.read(said)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("rules: {measure: gold}", "holds no list of rules"),
        ("rules: [gold at_least 1]", "holds no list of rules"),
        ("rules: []\nmore: 1", "holds no list of rules"),
        ("rules: [{measure: gold}]", "no bound"),
        ("rules: [{measure: gold, at_least: 0, at_most: 1}]", "at_least and at_most"),
        ("rules: [{measure: gold, atleast: 0}]", "(?s)atleast: there is no such key.*at_least"),
        ("rules: [{measure: gold, at_least: '0'}]", "at_least='0'"),
        ("rules: [{at_least: 0}]", r"(?s)measure: a value is needed.*mine\.yaml, rule 1"),
    ],
)
def test_what_is_no_file_of_rules_is_refused_in_words(written: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(written)
    with pytest.raises(UserError, match=told):
        gate_rules.read([str(path)])
