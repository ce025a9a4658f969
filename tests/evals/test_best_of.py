"""Curves of the best of N: without bias, ranked as the stage ranks; no temperature wins by answers that never end."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from statistics import median

import numpy as np
import pytest

from alignment.chat.types import Prompt, messages
from alignment.data.candidates import Candidate, best
from alignment.evals import best_of
from alignment.evals.best_of import SOUND, Answers, Drawn
from alignment.reporting import best_of as tables
from alignment.reporting import best_of_plots


def sound(scores: object, gold: object = None) -> Answers:
    """Answers that have all ended."""
    scores_PK = np.array(scores, dtype=float)
    standing_PK = np.full(scores_PK.shape, SOUND)
    return Answers(scores_PK, standing_PK, None if gold is None else np.array(gold, dtype=float))


def candidate(score: float, answer: str = "Yes.", *, finished: bool = True, **changes: object) -> Candidate:
    one = Candidate(1, "policy", 0, answer, 2, finished, 1.0, score, {}, None)
    return replace(one, **changes)  # type: ignore[arg-type]


def prompt(number: int, *tags: str) -> Prompt:
    return Prompt(messages(("user", f"Question {number}?")), f"p{number}", tags)


def drawn(scores: list[list[float]], *, tags: list[tuple[str, ...]] | None = None, finished: bool = True) -> Drawn:
    found = Drawn()
    for number, row in enumerate(scores):
        some = [candidate(score, f"a{place}", finished=finished) for place, score in enumerate(row)]
        found.add(prompt(number, *(tags[number] if tags else ())), some)
    return found


@pytest.mark.parametrize("samples", [1, 2, 5, 6])
def test_curves_are_the_means_over_all_subsets(samples: int) -> None:
    scores_PK = np.random.default_rng(samples).normal(size=(3, samples))
    values = best_of.curve_values(sound(scores_PK), scores_PK.min(1))
    for row in range(3):
        for size in range(1, samples + 1):
            subsets = list(combinations(scores_PK[row], size))
            assert values["maximum"][row, size - 1] == pytest.approx(np.mean([max(some) for some in subsets]))
            assert values["median"][row, size - 1] == pytest.approx(np.mean([median(some) for some in subsets]))


def test_the_known_order_statistics() -> None:
    # Of 3 out of 5: C(2,2), C(3,2), C(4,2) of C(5,3) = 10 subsets have the 3rd, 4th, 5th smallest as their largest.
    np.testing.assert_allclose(best_of.order_weights(5, 3, 3), [0, 0, 0.1, 0.3, 0.6], atol=1e-12)
    # The middle one of three: C(i−1,1)·C(5−i,1) = 0, 3, 4, 3, 0.
    np.testing.assert_allclose(best_of.order_weights(5, 3, 2), [0, 0.3, 0.4, 0.3, 0], atol=1e-12)
    for weights_NK in (best_of.best_weights(100), best_of.median_weights(100)):
        assert weights_NK.shape == (100, 100)
        np.testing.assert_allclose(weights_NK.sum(1), 1)
        assert (weights_NK >= 0).all()
    # Over 1 … 100 the expected maximum of n is n·101/(n+1) and the expected median 50.5.
    places = np.arange(1, 101)
    np.testing.assert_allclose(best_of.best_weights(100) @ places, places * 101 / (places + 1))
    np.testing.assert_allclose(best_of.median_weights(100) @ places, 50.5)


def test_the_ranking_is_the_one_that_chooses() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        some = [
            candidate(float(rng.integers(3)), ["", "words", "words"][rng.integers(3)], finished=bool(rng.integers(2)))
            for _ in range(5)
        ]
        found = Drawn()
        found.add(prompt(0), some)
        order_PK = best_of.ranked(found.answers)
        assert some[order_PK[0, -1]] is best(some), "of equals the first"
        assert sorted(order_PK[0]) == [0, 1, 2, 3, 4]


def test_standing_comes_before_score() -> None:
    ended, cut, empty = candidate(0.0), candidate(9.0, finished=False), candidate(8.0, "  ")
    assert [one.standing for one in (ended, cut, empty)] == [2, 1, 0]
    assert [one.problem for one in (ended, cut, empty)] == ["", "unfinished answer", "empty answer"]
    assert best([empty, cut, ended]) is ended
    assert best([empty, cut]) is cut
    assert candidate(0.0, "", finished=False).standing == 0


def test_what_is_not_sound_counts_as_the_lowest() -> None:
    answers = Answers(np.array([[1.0, 5.0, 3.0]]), np.array([[2, 1, 2]]))
    values = best_of.curve_values(answers, best_of.lowest([answers]))
    # 5 has not ended and counts 1: of {1, 1, 3}, the best of two is (1 + 3 + 3) / 3.
    np.testing.assert_allclose(values["maximum"], [[5 / 3, 7 / 3, 3]])
    np.testing.assert_allclose(values["median"], [[5 / 3, 5 / 3, 1]])


def test_gold_is_that_of_the_answer_the_reward_takes() -> None:
    answers = sound([[1.0, 2.0]], [[0.9, 0.1]])
    values = best_of.curve_values(answers, best_of.lowest([answers]))
    np.testing.assert_allclose(values["gold"], [[0.5, 0.1]])
    tied = best_of.curve_values(sound([[1.0, 1.0]], [[0.9, 0.1]]), np.zeros(1))
    np.testing.assert_allclose(tied["gold"], [[0.5, 0.9]], err_msg="of equals the first is taken")


def test_the_temperature_with_the_best_maximum_is_taken() -> None:
    narrow, wide = drawn([[1.0, 1.0], [1.0, 1.0]]), drawn([[0.0, 3.0], [0.0, 1.0]])
    tuning = best_of.tune({0.5: narrow, 1.5: wide}, 0.95, 0)
    assert best_of.best_temperature(tuning) == 1.5
    assert [one["maximum"][-1]["estimate"] for one in tuning] == [1.0, 2.0]
    assert [one["maximum"][0]["estimate"] for one in tuning] == [1.0, 1.0]
    assert [one["constant_scores"] for one in tuning] == [1.0, 0.0]
    assert best_of.best_temperature(best_of.tune({0.5: narrow, 0.7: narrow}, 0.95, 0)) == 0.5
    unsure = best_of.tune({0.5: drawn([[1.0]] * 4), 0.7: drawn([[3.0], [0.0], [0.0], [0.0]])}, 0.95, 0)
    assert unsure[1]["maximum"][0]["high"] > 1 > unsure[1]["maximum"][0]["estimate"]
    assert best_of.best_temperature(unsure) == 0.5


def test_no_temperature_wins_by_answers_that_never_end() -> None:
    ended, endless = drawn([[0.0, 1.0], [0.5, 1.0]]), drawn([[8.0, 9.0], [8.0, 9.0]], finished=False)
    tuning = best_of.tune({1.0: ended, 2.0: endless}, 0.95, 0)
    assert best_of.best_temperature(tuning) == 1.0
    assert [one["sound"] for one in tuning] == [1.0, 0.0]
    # The lowest score of either temperature: 0 and 0.5.
    assert tuning[1]["maximum"][-1]["estimate"] == 0.25


def test_results_by_tag() -> None:
    rows = [[0.0, 1.0], [2.0, 4.0], [6.0, 6.0]]
    found = drawn(rows, tags=[("a",), ("a", "b"), ()])
    results = best_of.results(found, 5, {"a": 4, "reject": 5}, 0.95, 0)
    assert (results["prompts"], results["samples"]) == (3, 2)
    every, a, b = (results["tags"][tag] for tag in (best_of.ALL, "a", "b"))
    assert (every["prompts"], every["rows"]) == (3, 5)
    assert (a["prompts"], a["rows"], a["one"]["estimate"], a["best"]["estimate"]) == (2, 4, 1.75, 2.5)
    assert (b["prompts"], b["rows"], b["one"]["estimate"], b["best"]["estimate"]) == (1, 0, 3.0, 4.0)
    assert a["best"]["low"] <= 2.5 <= a["best"]["high"]
    assert "gold_one" not in every
    assert results["curves"]["maximum"][1]["estimate"] == pytest.approx(11 / 3)
    metrics = best_of.metrics(results)
    assert metrics["best"] == pytest.approx(11 / 3)
    assert metrics["one"] == pytest.approx(9.5 / 3)
    assert (metrics["tokens"], metrics["constant_scores"], metrics["equal_answers"]) == (2.0, 1 / 3, 0.0)


def test_intervals_are_those_of_prompts() -> None:
    # 40 prompts of 0 and 40 of 1: the mean scatters by 0.5/√80 = 0.056, however many answers each has.
    results = best_of.results(drawn([[float(place % 2)] * 4 for place in range(80)]), 80, {}, 0.95, 0)
    one = results["curves"]["maximum"][0]
    assert one["estimate"] == 0.5
    assert one["high"] - one["low"] == pytest.approx(2 * 1.96 * 0.0559, rel=0.15)


def test_one_answer_is_no_choice() -> None:
    found = drawn([[1.0], [3.0]])
    results = best_of.results(found, 2, {}, 0.95, 0)
    assert [one["estimate"] for one in results["curves"]["maximum"]] == [2.0]
    assert (results["equal_answers"], results["constant_scores"]) == (0, 0), "one answer equals no other"
    assert tables.sizes(1) == [1]


def test_only_frequent_tags_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best_of, "TAGS", 2)
    found = drawn([[1.0]] * 4, tags=[("c", "a"), ("a", "b"), ("b",), ("d", "d", "d")])
    assert list(best_of.results(found, 4, {}, 0.95, 0)["tags"]) == [best_of.ALL, "a", "b"]


def test_sizes_double_up_to_all() -> None:
    assert tables.sizes(8) == [1, 2, 4, 8]
    assert tables.sizes(12) == [1, 2, 4, 8, 12]


def test_the_page_shows_what_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    found = Drawn()
    for number in range(4):
        some = [candidate(score, str(score), gold=0.5 - score / 10) for score in (0.0, 1.0, float(number))]
        found.add(prompt(number, "word" if number % 2 else "<b>"), some)
    results = {
        "temperature": 1.2,
        "tuning": best_of.tune({1.0: drawn([[0.0] * 3] * 2), 1.2: drawn([[1.0] * 3] * 2)}, 0.95, 0),
        **best_of.results(found, 4, {"word": 2}, 0.95, 0),
        "pool": [
            {"iteration": 1, "name": "latest:v1", "stood": 4, "rows": 1},
            {"iteration": 2, "name": "sft", "stood": 4, "rows": 3},
        ],
        "gain": {
            "prompts": 3,
            "measures": {
                "reward": {"alone": 0.5, "pool": 0.75, "difference": {"estimate": 0.25, "low": 0.15, "high": 0.35}}
            },
        },
    }
    results["tuning"][0]["gold"] = results["tuning"][1]["gold"] = results["curves"]["gold"]
    first, second = best_of_plots.by_number(results).data
    assert list(first.x) == [1, 2, 3]
    assert list(first.y) == [one["estimate"] for one in results["curves"]["maximum"]]
    assert (first.name, second.name) == ("maximum", "median")
    assert "temperature 1.2" in best_of_plots.by_temperature(results).layout.title.text
    assert [line.name for line in best_of_plots.gold(results).data] == ["T = 1.2, 4 prompts", "T = 1, 2 prompts"]
    one, every = best_of_plots.by_tag(results).data
    assert list(one.x) == [best_of.ALL, "&lt;b&gt;", "word"], "a tag is no markup"
    assert [one.y[0], every.y[0]] == [
        results["tags"][best_of.ALL][name]["estimate"] for name in ("gold_one", "gold_best")
    ]
    assert best_of_plots.page(results) == best_of_plots.page(results)
    tables.show(results)
    told = capsys.readouterr().out
    assert "1.2 ← taken" in told
    assert "0.500 of its own, 0.750 of the pool's, +0.250 ±0.100" in " ".join(told.split())
    assert "best of 3" in told
    assert "latest:v1" in told
    assert "75.0%" in told
    assert "all answers were the same" not in told
    tables.show({**results, "equal_answers": 0.25, "constant_scores": 0.5})
    assert "to 25.0% of the prompts all answers were the same, to 50.0% all scores" in capsys.readouterr().out
