"""What the gate knows: differences prompt by prompt, arms, several evaluations, what is missing, who is meant."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gate_support import evaluate, opening
from report_support import Making

from alignment.chat.types import messages, prompt_key
from alignment.errors import UserError
from alignment.evals import gate
from alignment.evals.evidence import Evaluation, Evidence
from alignment.evals.gate import Finding, Rule
from alignment.evals.intervals import Bootstrap, Interval

PROMPTS = 60


def planted(seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    sft = rng.uniform(0.2, 0.8, PROMPTS)
    return {
        name: {"gold": sft + gain + rng.normal(0, 0.05, PROMPTS), "tokens": rng.integers(5, 20, PROMPTS)}
        for name, gain in (("sft", 0.0), ("rs", 0.05), ("ppo", 0.1))
    }


def paired(a: Any, b: Any, seed: int = 0) -> Interval | None:
    keys = [prompt_key(messages(("user", opening(place)))) for place in range(PROMPTS)]
    return Bootstrap(keys, 0.95, seed).ratios((a - b)[:, None], np.ones((PROMPTS, 1)))[0]


def evidence(*of: Any, candidate: str | None = None, best: str | None = None) -> Evidence:
    return Evidence([Evaluation(one) for one in of], [], candidate, best)


GOLD = Rule("gold", "better_by", 0.0, better="higher")


def test_differences_are_those_of_the_evaluation_and_others_are_found_alike(tmp_path: Path) -> None:
    values = planted()
    one = evaluate(Making(tmp_path), "versions", values, seed=3)
    told = json.loads((one.path / "results.json").read_text())["differences"]["ppo"]["measures"]["gold"]
    (found,) = evidence(one).findings(GOLD)
    assert found == Finding("versions", Interval(**told), 54, True), "six prompts open as another does"
    (other,) = evidence(one, candidate="ppo", best="rs").findings(GOLD)
    assert other.interval == paired(values["ppo"]["gold"], values["rs"]["gold"], 3)
    (back,) = evidence(one, candidate="sft", best="ppo").findings(GOLD)
    assert back.interval is not None
    assert back.interval.estimate == pytest.approx(-told["estimate"])
    (tokens,) = evidence(one).findings(Rule("tokens", "no_worse_than", 1.0, better="lower"))
    assert tokens.interval == paired(values["ppo"]["tokens"], values["sft"]["tokens"], 3)


def test_the_same_bits_whether_the_evaluation_compared_them_or_not(tmp_path: Path) -> None:
    found = [
        evidence(evaluate(Making(tmp_path / str(compared)), "versions", planted(), compared=compared)).findings(GOLD)
        for compared in (True, False)
    ]
    assert found[0] == found[1]


def test_what_the_evaluation_compared_needs_no_answers(tmp_path: Path) -> None:
    one = evaluate(Making(tmp_path), "versions", planted(), kept=False)
    told = json.loads((one.path / "results.json").read_text())["differences"]["ppo"]["measures"]["gold"]
    assert evidence(one).findings(GOLD) == [Finding("versions", Interval(**told), None, True)]
    (apart,) = evidence(one, best="rs").findings(GOLD)
    assert apart.interval is not None
    assert not apart.paired
    assert apart.interval.high - apart.interval.low > 2 * (told["high"] - told["low"])


def test_a_prompt_that_one_of_them_has_no_value_for_is_left_out_of_the_pairs(tmp_path: Path) -> None:
    values = planted()
    values["ppo"]["gold"][:20] = np.nan
    one = evaluate(Making(tmp_path), "versions", values, compared=False)
    (found,) = evidence(one).findings(GOLD)
    assert found.interval is not None
    assert found.interval.estimate == pytest.approx((values["ppo"]["gold"] - values["sft"]["gold"])[20:].mean())
    assert found.prompts == 36


def test_nobodys_answers_are_alike_beyond_doubt(tmp_path: Path) -> None:
    """Sixty equal values, on 54 openings: up to 1 − 0.025^(1/54) = 0.0660 of others may differ."""
    same = {name: {"gold": np.full(PROMPTS, 0.5), "refusals": np.zeros(PROMPTS)} for name in ("sft", "ppo")}
    known = evidence(evaluate(Making(tmp_path), "versions", same))
    (found,) = known.findings(Rule("gold", "no_worse_than", 0.02, better="higher"))
    assert found.interval == pytest.approx((0, -0.0660, 0.0660), abs=5e-5)
    (share,) = known.findings(Rule("refusals", "at_most", 0.05))
    assert share.interval == pytest.approx((0, 0, 0.0660), abs=5e-5)


def test_what_is_known_of_no_prompt_is_compared_by_two_intervals(tmp_path: Path) -> None:
    more = {"sft": {"perplexity": 2.0}, "ppo": {"perplexity": 2.5}}
    one = evaluate(Making(tmp_path), "versions", planted(), more=more)
    (found,) = evidence(one).findings(Rule("perplexity", "no_worse_than", 0.1, better="lower"))
    half = math.hypot(0.1, 0.2)
    assert found.interval == pytest.approx((0.5, 0.5 - half, 0.5 + half))
    assert not found.paired
    (value,) = evidence(one).findings(Rule("perplexity", "at_most", 3))
    assert value.interval == pytest.approx((2.5, 2.4, 2.7))


def test_arms_are_compared_by_the_means_of_their_seeds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = {
        f"run_{place}": {"gold": rng.uniform(0, 1, PROMPTS), "tokens": rng.integers(5, 9, PROMPTS)}
        for place in range(4)
    }
    one = evaluate(Making(tmp_path), "arms", values, names=["a", "a", "b", "b"])
    known = evidence(one)
    assert (known.best.name, known.candidate.name) == ("a", "b")
    means = [np.mean([values[f"run_{place}"]["gold"] for place in places], axis=0) for places in ((0, 1), (2, 3))]
    (found,) = known.findings(GOLD)
    assert found.interval == pytest.approx(paired(means[1], means[0]))
    (single,) = evidence(one, candidate="b#2", best="a").findings(GOLD)
    assert single.interval == pytest.approx(paired(values["run_3"]["gold"], means[0]))


def test_a_measure_that_is_missing_is_said_to_be(tmp_path: Path) -> None:
    (found,) = evidence(evaluate(Making(tmp_path), "versions", planted())).findings(Rule("golds", "at_least", 0))
    assert found.interval is None
    assert found.why.startswith("not measured of ppo. Did you mean 'gold'?")


def test_a_measure_is_judged_in_every_evaluation_that_has_it(tmp_path: Path) -> None:
    making = Making(tmp_path)
    easy = evaluate(making, "easy", planted())
    hard = evaluate(making, "hard", planted(1), prompts="attacks")
    found = evidence(easy, hard).findings(GOLD)
    assert [one.where for one in found] == ["easy", "hard"]
    with pytest.raises(UserError, match="hardly did not measure ppo"):
        evidence(easy, evaluate(making, "hardly", {"sft": planted()["sft"]}, prompts="attacks"))


def test_two_evaluations_made_in_the_same_way_are_paired_and_others_are_not(tmp_path: Path) -> None:
    values, making = planted(), Making(tmp_path)
    before = evaluate(making, "before", {"sft": values["sft"]}, temperature=0.5)
    alike = evaluate(making, "alike", {"ppo": values["ppo"]}, temperature=0.5, engine={"device": "cuda"})
    (found,) = evidence(alike, before, best="sft").findings(GOLD)
    assert found == Finding("alike", paired(values["ppo"]["gold"], values["sft"]["gold"]), 54, True)
    warmer = evaluate(making, "warmer", {"rs": values["rs"]}, temperature=1.0)
    with pytest.raises(UserError, match="before did not measure rs"):
        evidence(warmer, before, candidate="rs", best="sft")


def test_what_was_measured_otherwise_of_the_best_breaks_the_rule(tmp_path: Path) -> None:
    values, making = planted(), Making(tmp_path)
    both = evaluate(making, "both", {name: {"tokens": values[name]["tokens"]} for name in ("sft", "ppo")})
    alone = evaluate(making, "alone", {"ppo": values["ppo"]}, temperature=0.3)
    (found,) = evidence(both, alone).findings(GOLD)
    assert (found.interval, found.where) == (None, "alone")
    assert found.why == "not measured of sft in the same way"


def test_models_are_known_by_their_fingerprints(tmp_path: Path) -> None:
    one = evaluate(Making(tmp_path), "versions", planted())
    fingerprint = one.parents["models.1"].fingerprint
    for said in (fingerprint, fingerprint[:8], "rs", f"rs-{fingerprint[:8]}"):
        assert evidence(one, candidate=said).candidate.fingerprints == (fingerprint,)
    with pytest.raises(UserError, match=r"(?s)candidate=rss: no evaluation has measured it.*'rs'"):
        evidence(one, candidate="rss")
    with pytest.raises(UserError, match="no evaluation"):
        evidence(one, candidate="step:rs")
    # Another pipeline's model of the same name is another model.
    other = evaluate(Making(tmp_path, "other"), "later", planted(1))
    with pytest.raises(UserError, match="2 different models are called so"):
        evidence(one, other, candidate="rs")


def test_a_model_is_not_compared_with_itself(tmp_path: Path) -> None:
    known = evidence(evaluate(Making(tmp_path), "alone", {"sft": planted()["sft"]}))
    assert known.alone
    (found,) = known.findings(Rule("gold", "at_least", 0.1))
    assert found.interval is not None
    with pytest.raises(UserError, match="sft would be compared with itself"):
        known.findings(GOLD)


def test_what_is_no_evaluation_of_policies_is_refused(tmp_path: Path) -> None:
    making = Making(tmp_path)
    for one in (
        making.add("judged", "measure", "evaluation", files={"results.json": {"confidence": 0.95, "judges": {}}}),
        making.add("page", "report", "evaluation"),
    ):
        with pytest.raises(UserError, match="measured no policies"):
            Evaluation(one)


@pytest.mark.parametrize("same", [True, False])
def test_perplexities_of_different_conversations_are_not_compared(tmp_path: Path, same: bool) -> None:
    more = {"sft": {"perplexity": 2.0}, "ppo": {"perplexity": 2.5}}
    one = evaluate(Making(tmp_path), "versions", planted(), more=more)
    results = json.loads((one.path / "results.json").read_text())
    for name, read in (("sft", "a"), ("ppo", "a" if same else "b")):
        results["models"][name]["perplexity"] |= {"examples": 4, "conversations": read}
    (one.path / "results.json").write_text(json.dumps(results))
    rule = Rule("perplexity", "no_worse_than", 1.0, better="lower")
    (found,) = evidence(one).findings(rule)
    assert (found.interval is not None) == same
    (value,) = evidence(one).findings(Rule("perplexity", "at_most", 3))
    assert value.prompts == 4
    assert not gate.judge(Rule("perplexity", "at_most", 3), value).passed, "four are too few to bound anything"
