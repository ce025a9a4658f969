"""Lines are gathered from what stages leave, and what is said of them holds by hand, over seeds and over prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from front_support import PROMPTS, evaluation, run

from alignment.errors import UserError
from alignment.evals import front_points, fronts
from alignment.evals.front_points import Wanted
from alignment.evals.fronts import KL, Claim, Cloud, Line, Numbers
from alignment.merging import front


def numbers(**changes: Any) -> Numbers:
    plain = Numbers((), (), None, (10.0, {"proxy": -5.0, "gold": -5.0}), 0.95, 0)
    return plain._replace(**changes)


def cloud(kl_SN: Sequence[Sequence[float]], score_SN: Sequence[Sequence[float]], *lines: Line, **more: Any) -> Cloud:
    points = len(kl_SN[0])
    lines = lines or (Line("all", "points", tuple(map(str, range(points))), tuple(range(points))),)
    return Cloud({KL: np.array(kl_SN), "proxy": np.array(score_SN)}, lines, (None,) * points, **more)


# ── intervals ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("confidence", "freedom", "wanted"),
    # Tables of Student's t, two-sided.
    [(0.95, 1, 12.706), (0.95, 2, 4.303), (0.9, 3, 2.353), (0.99, 4, 4.604), (0.95, 9, 2.262), (0.8, 30, 1.310)],
)
def test_quantiles_are_those_of_the_tables(confidence: float, freedom: int, wanted: float) -> None:
    assert fronts.t_quantile(confidence, freedom) == pytest.approx(wanted, abs=6e-4)


def test_three_seeds_have_students_interval() -> None:
    """Mean 2, standard deviation 1: ± 4.303 / √3."""
    told = fronts.over_seeds([1.0, 3.0, 2.0], 0.95)
    assert told is not None
    assert told["estimate"] == 2
    assert (told["low"], told["high"]) == pytest.approx((2 - 2.4843, 2 + 2.4843), abs=1e-3)
    assert told["seeds"] == [1, 3, 2]


def test_a_seed_that_lacks_a_value_is_left_out_and_one_alone_has_no_bounds() -> None:
    told = fronts.over_seeds([float("nan"), 3.0], 0.95)
    assert told == {"estimate": 3.0, "low": None, "high": None, "seeds": [3.0]}
    assert fronts.over_seeds([float("nan")], 0.95) is None
    assert fronts.verdict(told) == fronts.verdict(None) == "unknown"


def test_the_interval_over_seeds_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    found = [fronts.over_seeds(list(rng.normal(size=3)), 0.9) for _ in range(2_000)]
    covered = np.mean([one is not None and one["low"] <= 0 <= one["high"] for one in found])
    # 0.9 ± 3 standard errors of 2,000 draws.
    assert covered == pytest.approx(0.9, abs=3 * np.sqrt(0.09 / 2_000))


def test_verdicts_ask_for_the_whole_interval() -> None:
    def told(low: float, high: float) -> str:
        return fronts.verdict({"estimate": 0.0, "low": low, "high": high})

    assert (told(0.1, 0.2), told(-0.2, -0.1), told(-0.1, 0.2)) == ("above", "below", "within noise")


# ── what is asked ────────────────────────────────────────────────────────────────────────────────

A, B = Line("a", "points", ("0", "1"), (0, 1)), Line("b", "points", ("0", "2"), (0, 2))


def test_lines_are_compared_seed_by_seed_at_kls_that_all_reach() -> None:
    """Line a rises by 2, 3 a nat, line b by 1, 2: a is higher by 1 · KL in both seeds, whatever their levels."""
    found = cloud([[0, 2, 4], [0, 3, 6]], [[0, 4, 4], [9, 18, 21]], A, B)
    told = fronts.measured(found, "proxy", numbers(pairs=[("a", "b")]))["matched"]["a - b"]
    # The shortest line ends at KL 2: five KLs inside of 0 … 2, a third apart.
    assert [one["kl"] for one in told] == pytest.approx([k / 3 for k in range(1, 6)])
    assert [one["estimate"] for one in told] == pytest.approx([k / 3 for k in range(1, 6)])
    assert {one["verdict"] for one in told} == {"above"}, "both seeds say the same: the levels cancel"
    assert [one["low"] for one in told] == pytest.approx([one["estimate"] for one in told])


def test_at_a_kl_that_a_line_does_not_reach_nothing_is_told() -> None:
    found = cloud([[0, 2, 4]], [[0, 4, 4]], A, B)
    told = fronts.measured(found, "proxy", numbers(pairs=[("a", "b")], kls=[1.0, 2.0, 3.0]))["matched"]["a - b"]
    assert [(one["kl"], one["estimate"]) for one in told] == [(1, pytest.approx(1)), (2, pytest.approx(2))]


def test_hypervolumes_and_their_differences() -> None:
    """Against (10, −5): point (0, 0) dominates 10 × 5; (2, 4) adds 8 × 4, and (4, 4) adds 6 × 4 in its place."""
    found = cloud([[0, 2, 4]], [[0, 4, 4]], A, B)
    told = fronts.measured(found, "proxy", numbers(pairs=[("a", "b")]))
    assert told["hypervolume"]["a"]["estimate"] == pytest.approx(50 + 32)
    assert told["hypervolume"]["b"]["estimate"] == pytest.approx(50 + 24)
    assert told["hypervolume_differences"]["a - b"]["estimate"] == pytest.approx(8)


def test_a_sweep_tells_how_it_bends() -> None:
    etas = (0.0, 0.5, 1.0)
    line = Line("sweep", "sweep", ("0", ".5", "1"), (0, 1, 2), etas)
    kl, score = [0.0, 1.0, 4.0], [0.0, 3.0, 4.0]
    found = cloud([kl, kl], [score, [one + 7 for one in score]], line)
    told = fronts.measured(found, "proxy", numbers())["curvature"]["sweep"]
    assert told["score"]["bulge"]["estimate"] == pytest.approx(front.bulge(etas, score)) == 0.5
    assert [one["estimate"] for one in told["score"]["second_differences"]] == pytest.approx([-8])
    assert [one["estimate"] for one in told["kl"]["second_differences"]] == pytest.approx([8])
    assert (told["score"]["shape"], told["kl"]["shape"]) == ("concave", "convex")


def test_a_claim_compares_with_the_best_of_the_others_in_each_seed() -> None:
    """Scores 5, 4, 3 and 5, 2, 4 at KLs 3, 1, 2: 1 above the second at 2 more, then 1 above the third at 1 more."""
    found = cloud([[3, 1, 2]] * 2, [[5, 4, 3], [5, 2, 4]], names=("m", "x", "y"))
    (told,) = fronts.measured(found, "proxy", numbers(claims=[Claim("m", ("x", "y"))]))["claims"]
    assert told["seeds"] == [1, 1]
    assert told["kl"]["seeds"] == [2, 1]
    assert told["verdict"] == "above"


def test_the_pareto_front_is_of_all_lines_together() -> None:
    found = cloud([[0, 2, 4]], [[0, 4, 5]], A, B)
    lines = fronts.lines(found, numbers())
    assert fronts.pareto(lines, ["a", "b"], "proxy") == [["a", 0], ["b", 0], ["a", 1], ["b", 1]]
    assert fronts.pareto(lines, ["a", "b"], "gold") == []


def test_rules_say_where_a_line_ends_and_which_iteration_improves() -> None:
    points = [{"kl": kl, "label": f"step {kl}"} for kl in (0, 3, 5)]
    told = {
        "lines": {"run": {"points": points}, "short": {"points": points[:2]}},
        "hypervolume_differences": {
            "proxy": {"i2 - i1": {"low": 0.1}, "i3 - i2": {"low": -0.1}},
            "gold": {"i2 - i1": {"low": None}, "i3 - i2": {"low": None}},
        },
    }
    rules = fronts.rules(told, 4.0, ["i1", "i2", "i3"])
    assert rules["stops"] == {"run": "step 5", "short": None}
    assert rules["worth"] == {"proxy": 2}, "without an interval nothing is said"
    assert fronts.rules(told, None, [])["worth"] == {}


# ── what is gathered ─────────────────────────────────────────────────────────────────────────────


def test_runs_of_one_name_are_seeds_joined_at_shared_steps(tmp_path: Path) -> None:
    first = run(tmp_path / "1", [(0, 0.0, 0.1, 0.5), (10, 0.4, 0.9, 0.6), (20, 0.8, 1.0, 0.7)])
    second = run(tmp_path / "2", [(0, 0.0, 0.3, 0.5), (20, 1.2, 1.4, 0.5)])
    other = run(tmp_path / "3", [(0, 0.0, 0.1, 0.5), (20, 0.2, 0.2, 0.5)])
    found = front_points.of_runs([first, second, other], ["ema", "ema", "fixed"])
    lines = fronts.lines(found, numbers())
    ema, fixed = lines["ema"], lines["fixed"]
    assert [point["step"] for point in ema["points"]] == [0, 20]
    assert ema["points"][1]["kl"] == pytest.approx(1.0)
    assert ema["points"][1]["scores"] == pytest.approx({"proxy": 1.2, "gold": 0.6})
    assert ema["points"][1]["seeds"]["proxy"] == [1.0, 1.4]
    assert (ema["seeds"], fixed["seeds"]) == (2, 1)
    assert [point["model"] for point in ema["points"]] == [None, first.fingerprint], "only the last policy is kept"
    told = fronts.measured(found, "proxy", numbers(pairs=[("ema", "fixed")]))
    assert told["hypervolume_differences"]["ema - fixed"]["low"] is None, "one seed is in both"


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"policy": "f" * 64}, "policy"),
        ({"prompts": "f" * 64}, "prompts"),
        ({"reward": "f" * 64}, "different rewards"),
        ({"held": 100}, "watching.prompts"),
    ],
)
def test_runs_that_were_measured_otherwise_are_refused(tmp_path: Path, more: dict[str, Any], word: str) -> None:
    looks = [(0, 0.0, 0.1, 0.5), (10, 0.4, 0.9, 0.6)]
    with pytest.raises(UserError, match=word):
        front_points.of_runs([run(tmp_path / "1", looks), run(tmp_path / "2", looks, **more)], ["a", "b"])


def test_a_later_run_stands_beside_the_first_by_its_reference(tmp_path: Path) -> None:
    looks = [(0, 0.0, 0.1, 0.5), (10, 0.4, 0.9, 0.6)]
    first = run(tmp_path / "1", looks, policy="a" * 64)
    later = run(tmp_path / "2", looks, policy="b" * 64, reference="a" * 64)
    assert len(front_points.of_runs([first, later], ["first", "later"]).lines) == 2
    with pytest.raises(UserError, match=r"watching\.reference"):
        front_points.of_runs([first, run(tmp_path / "3", looks, policy="b" * 64)], ["first", "later"])


def test_another_reward_for_another_seed_is_fine(tmp_path: Path) -> None:
    looks = [(0, 0.0, 0.1, 0.5), (10, 0.4, 0.9, 0.6)]
    runs = [run(tmp_path / str(place), looks, reward=reward * 64) for place, reward in enumerate("abab")]
    assert len(front_points.of_runs(runs, ["x", "x", "y", "y"]).lines) == 2
    with pytest.raises(UserError, match="different rewards"):
        front_points.of_runs(runs, ["x", "x", "x", "y"])


WANTED = [Wanted("sweep", "sweep", ["sft", "half", "slerp"], [0, 0.5, 1])]


def planted(shift: float = 0.0) -> dict[str, dict[str, np.ndarray]]:
    """What every prompt's answer gets, by model: ``half`` has a quarter of the KL and three of the reward."""
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 0.2, (3, PROMPTS))
    kl, proxy = (0.0, 1.0, 4.0), (0.0, 3.0, 4.0)
    return {
        name: {"kl": kl[k] + 0.05 * noise[k], "reward_helper": proxy[k] + shift + noise[k], "gold": 0.5 + 0 * noise[k]}
        for k, name in enumerate(("sft", "half", "slerp"))
    }


def test_each_evaluation_is_a_seed_whatever_its_reward_is_called(tmp_path: Path) -> None:
    first = evaluation(tmp_path / "1", planted())
    renamed = {
        model: {("reward_other" if name == "reward_helper" else name): one for name, one in measures.items()}
        for model, measures in planted(2.0).items()
    }
    found = front_points.of_evaluations([first, evaluation(tmp_path / "2", renamed)], None, WANTED, [])
    assert found.answers is None
    assert found.scores == ["proxy", "gold"]
    assert found.means["proxy"] == pytest.approx(
        np.array([[planted(s)[m]["reward_helper"].mean() for m in ("sft", "half", "slerp")] for s in (0, 2.0)])
    )
    assert [point["model"] for point in fronts.lines(found, numbers())["sweep"]["points"]] == ["sft", "half", "slerp"]


def test_arms_of_one_evaluation_are_seeds_and_a_single_model_stands_for_all(tmp_path: Path) -> None:
    both = planted()
    models = {"sft": both["sft"]} | {
        f"{name}#{seed + 1}": planted(float(seed))[name] for name in ("half", "slerp") for seed in range(2)
    }
    found = front_points.of_evaluations([evaluation(tmp_path, models)], None, WANTED, [])
    assert found.means[KL].shape == (2, 3)
    assert found.means["proxy"][1, 0] == pytest.approx(both["sft"]["reward_helper"].mean())
    assert found.means["proxy"][1, 1] == pytest.approx(planted(1.0)["half"]["reward_helper"].mean())
    whole = front_points.everything([evaluation(tmp_path, models)])
    assert list(whole.models) == ["sft", "half", "slerp"]


def test_one_seed_has_the_bootstrap_over_prompts_all_models_together(tmp_path: Path) -> None:
    """A noise that all models share cancels in their difference, and does not in their level."""
    values = planted()
    shared = np.random.default_rng(9).normal(0, 3, PROMPTS)
    for measures in values.values():
        measures["reward_helper"] = measures["reward_helper"] + shared
    found = front_points.of_evaluations([evaluation(tmp_path, values)], None, WANTED, [Claim("slerp", ("half",))])
    told = fronts.measured(found, "proxy", numbers(claims=[Claim("slerp", ("half",))]))
    (claim,) = told["claims"]
    difference = values["slerp"]["reward_helper"] - values["half"]["reward_helper"]
    assert claim["estimate"] == pytest.approx(difference.mean())
    half = 1.96 * difference.std() / np.sqrt(PROMPTS)
    assert (claim["high"] - claim["low"]) / 2 == pytest.approx(half, rel=0.15)
    assert claim["verdict"] == "above"
    point = fronts.lines(found, numbers())["sweep"]["points"][2]
    level = 1.96 * values["slerp"]["reward_helper"].std() / np.sqrt(PROMPTS)
    assert (point["high"]["proxy"] - point["low"]["proxy"]) / 2 == pytest.approx(level, rel=0.15)
    assert told["curvature"]["sweep"]["score"]["shape"] == "concave"
    assert told["curvature"]["sweep"]["kl"]["shape"] == "convex"


def test_without_answers_one_seed_has_no_bounds(tmp_path: Path) -> None:
    one = evaluation(tmp_path, planted())
    (tmp_path / "answers.parquet").unlink()
    found = front_points.of_evaluations([one], None, WANTED, [])
    told = fronts.measured(found, "proxy", numbers())
    assert told["hypervolume"]["sweep"]["low"] is None
    assert told["curvature"]["sweep"]["score"]["shape"] == "unknown"


def refused(tmp_path: Path, models: Mapping[str, Mapping[str, np.ndarray]], **more: Any) -> str:
    with pytest.raises(UserError) as caught:
        front_points.of_evaluations([evaluation(tmp_path, models)], more.get("proxies"), more.get("wanted", WANTED), [])
    return f"{caught.value} {caught.value.remedy}"


def test_what_cannot_be_a_front_is_refused(tmp_path: Path) -> None:
    values = planted()
    assert "slurp" in refused(tmp_path, values, wanted=[Wanted("l", "points", ["sft", "slurp"], None)])
    without = {name: {"gold": one["gold"]} for name, one in values.items()}
    assert "no KL" in refused(tmp_path, without)
    two = {name: one | {"reward_b": one["gold"]} for name, one in values.items()}
    assert "proxy=[reward_helper]" in refused(tmp_path, two)
    assert "reward_x" in refused(tmp_path, values, proxies=["reward_x"])
    found = front_points.of_evaluations([evaluation(tmp_path, two)], ["reward_b"], WANTED, [])
    assert found.scores == ["reward_helper", "gold", "proxy"]


def test_evaluations_on_other_prompts_are_refused(tmp_path: Path) -> None:
    first = evaluation(tmp_path / "1", planted())
    for more, word in (({"prompts": "e" * 64}, "prompts"), ({"reference": "e" * 64}, "reference")):
        with pytest.raises(UserError, match=word):
            front_points.of_evaluations([first, evaluation(tmp_path / "2", planted(), **more)], None, WANTED, [])
    with pytest.raises(UserError, match="count"):
        front_points.of_evaluations([first, evaluation(tmp_path / "2", planted(), count=7)], None, WANTED, [])
