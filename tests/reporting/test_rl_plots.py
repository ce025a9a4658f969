"""The page of a run of reinforcement learning holds what was measured, and nothing of what was not; fronts of arms."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import foreign
from alignment.reporting import fronts, inside, panels, plots, rl_plots
from alignment.reporting.panels import Panel
from alignment.reporting.plots import Series

MARKUP = "<img src=x onerror=alert(1)>&"
PHASES = ("draw", "judge", "read", "learn")


def point(step: int, kl: float, reward: float, **others: float) -> dict[str, Any]:
    return {"step": step, "kl": kl, "reward": reward, "others": others}


POINTS = [point(0, 0.0, 0.1, gold=0.5), point(10, 0.2, 0.5, gold=0.6), point(20, 0.7, 0.9, gold=0.4)]


def batch(step: int, **more: float | None) -> dict[str, Any]:
    """A row as the loop writes it, without a critic; what grows, grows with the step."""
    grows = step / 10
    return {
        "step": step,
        "score/mean": grows,
        "score/spread": 1.0,
        "reward/total": 4e-18,
        "reward/with_kl": -grows / 10,
        "reward/helper": grows,
        "reward/whitened": 4e-18,
        "reward/unfinished": 0.25,
        "reward/length_penalty": 0.0,
        "reward/constant": 0.0,
        "kl/anchor": -0.01 * step,
        "kl/anchor_k3": 0.01 * step,
        "kl/reverse": 0.02 * step,
        "kl/beta": 0.05,
        "entropy": 0.5,
        "length/mean": 10.0 + step,
        "length/unfinished": 0.25,
        "advantage/size": 0.3,
        "advantage/idle": 0.0,
        "update/clipped": 0.0,
        "update/kl_old": 0.0,
        "update/first_ratio": 0.0,
        "gradient/policy": 2.0,
        "episodes_per_second": 40.0,
        **{f"seconds/{phase}": 1.0 + place for place, phase in enumerate(PHASES)},
        **{f"tokens_per_second/{phase}": 100.0 for phase in PHASES},
        **more,
    }


METRICS = [
    {"step": 0, "held_out/kl": 0.0, "held_out/reward": 0.1, "held_out/gold": 0.5},
    batch(1),
    {"step": 10, "held_out/kl": 0.2, "held_out/reward": 0.5, "held_out/gold": 0.6},
    batch(10),
    batch(20),
]
CRITIC = {"critic/explained": -0.5, "critic/value": 0.2, "loss/critic": 1.5, "update/value_clipped": 0.1}


def sample(step: int, prompt: str, answer: str, reward: float = 0.0) -> dict[str, Any]:
    return {"step": step, "prompt": prompt, "answer": answer, "reward": reward, "kl": 0.1, "gold": 0.875}


SAMPLES = [
    sample(step, f"prompt {place}", answer if place == 0 else "always this", reward=step / 8)
    for step, answer in ((0, "first words"), (10, "first words"), (20, "other words"))
    for place in range(8)
]


def lines(figure: Any) -> dict[str, tuple[list[Any], list[Any]]]:
    return {trace.name: (list(trace.x), list(trace.y)) for trace in figure.data}


def above(figure: Any) -> list[str]:
    """What stands above the panels."""
    return [one.text for one in figure.layout.annotations if one.font.size == 14]


def rows(metrics: list[dict[str, Any]] = METRICS) -> list[Any]:
    return rl_plots._by_step(metrics)


# ── fronts ───────────────────────────────────────────────────────────────────────────────────────


def test_the_front_has_a_panel_for_every_scorer_and_a_star_at_what_is_kept() -> None:
    figure = fronts.front(POINTS, kept=10)
    reward, gold, *stars = figure.data
    assert (list(reward.x), list(reward.y)) == ([0.0, 0.2, 0.7], [0.1, 0.5, 0.9])
    assert (list(gold.x), list(gold.y)) == ([0.0, 0.2, 0.7], [0.5, 0.6, 0.4])
    assert reward.xaxis != gold.xaxis
    assert list(reward.text) == ["step 0", "step 10", "step 20"]
    assert [(star.x, star.y, star.xaxis) for star in stars] == [
        ((0.2,), (0.5,), reward.xaxis),
        ((0.2,), (0.6,), gold.xaxis),
    ]
    assert [bool(star.showlegend) for star in stars] == [True, False]
    labels = [(one.text, one.x, one.y) for one in figure.layout.annotations if one.xref == "x"]
    assert labels == [("0", 0.0, 0.1), ("10", 0.2, 0.5), ("20", 0.7, 0.9)]
    assert figure.layout.title.text == "Step 10 is kept, at KL 0.20: reward +0.400, gold +0.100"


def test_some_points_are_spread_and_the_kept_one_is_among_them() -> None:
    points = [point(step, step / 10, 0.0) for step in range(101)]
    assert [one["step"] for one in fronts.some(points, 5)] == [0, 25, 50, 75, 100]
    assert [one["step"] for one in fronts.some(points, 3, also=7)] == [0, 7, 50, 100]
    assert [one["step"] for one in fronts.some(points[:2], 5)] == [0, 1]
    assert [one["step"] for one in fronts.some(points[:1], 5)] == [0]


def test_the_mean_of_seeds_is_taken_at_steps_that_all_of_them_have() -> None:
    other = [point(0, 0.0, 0.3, gold=0.7), point(10, 0.4, 0.7, gold=0.8)]
    mean = fronts.mean_front([POINTS, other])
    assert [one["step"] for one in mean] == [0, 10], "the second seed ended before step 20"
    # KL (0.2 + 0.4) / 2, reward (0.5 + 0.7) / 2, gold (0.6 + 0.8) / 2.
    assert (mean[1]["kl"], mean[1]["reward"]) == (pytest.approx(0.3), pytest.approx(0.6))
    assert mean[1]["others"] == {"gold": pytest.approx(0.7)}


def test_a_scorer_that_one_seed_lacks_has_no_mean() -> None:
    assert fronts.mean_front([POINTS, [point(0, 0.0, 0.3)]])[0]["others"] == {}
    assert fronts.mean_front([[point(0, 0.0, 0.3)], POINTS])[0]["others"] == {}


def test_arms_are_bold_and_their_seeds_faint() -> None:
    other = [point(0, 0.0, 0.3, gold=0.7), point(10, 0.4, 0.7, gold=0.8)]
    alone = [point(0, 0.0, 0.2), point(10, 0.1, 0.25)]
    figure = fronts.fronts({f"fixed {MARKUP}": [POINTS, other], "ema": [alone]})
    assert above(figure) == ["reward", "gold"]
    first = [trace for trace in figure.data if trace.xaxis == "x"]
    seeds, (mean, ema) = first[:2], first[2:]
    assert [list(one.y) for one in seeds] == [[0.1, 0.5, 0.9], [0.3, 0.7]]
    assert list(mean.y) == pytest.approx([0.2, 0.6])
    assert list(mean.x) == pytest.approx([0.0, 0.3])
    assert list(ema.y) == [0.2, 0.25], "one seed is its own mean, drawn once"
    assert all(one.opacity < 0.5 and one.line.width < mean.line.width for one in seeds)
    assert {one.line.color for one in seeds} == {mean.line.color} != {ema.line.color}
    assert {trace.name for trace in figure.data if trace.xaxis != "x"} == {plots.plain(f"fixed {MARKUP}")}
    assert [trace.name for trace in figure.data if trace.showlegend] == [plots.plain(f"fixed {MARKUP}"), "ema"]
    assert figure.layout.title.text.replace("<br>", " ").endswith("ema ends at reward 0.250, KL 0.10")


# ── panels ───────────────────────────────────────────────────────────────────────────────────────


def test_a_name_has_one_colour_and_one_entry_in_the_legend() -> None:
    both = [Series("policy", [1, 2], [3, 4]), Series("critic", [1, 2], [5, None])]
    alone = [Series("β", [1, 2], [0.05, 0.05])]
    grid = [Panel("norm <b>", both), Panel("β", alone), Panel("clipped", both[::-1]), Panel("d", both[:1])]
    figure = panels.beside("T", "step", grid)
    policy, critic, beta, critic_again, policy_again, policy_alone = figure.data
    assert policy.line.color == policy_again.line.color == policy_alone.line.color != critic.line.color
    assert critic.line.color == critic_again.line.color
    assert critic.marker.symbol != policy.marker.symbol
    assert [bool(trace.showlegend) for trace in figure.data] == [True, True, False, False, False, False]
    assert policy_again.legendgroup == policy.legendgroup
    assert (beta.xaxis, critic_again.xaxis, policy_alone.xaxis) == ("x2", "x3", "x4")
    assert above(figure) == ["norm &lt;b&gt;", "β", "clipped", "d"]
    named = {axis for axis in ("xaxis", "xaxis2", "xaxis3", "xaxis4") if figure.layout[axis].title.text == "step"}
    assert named == {"xaxis2", "xaxis3", "xaxis4"}, "the lowest panel of each column names the axis"
    assert tuple(figure.layout.yaxis2.range) == (0, 0.1), "what does not change lies in the middle"
    assert figure.layout.yaxis.range is None


# ── a run ────────────────────────────────────────────────────────────────────────────────────────


def test_rows_of_one_step_are_one() -> None:
    merged = rows()
    assert [row["step"] for row in merged] == [0, 1, 10, 20]
    assert (merged[2]["held_out/reward"], merged[2]["entropy"]) == (0.5, 0.5)


def test_rewards_are_drawn_by_part() -> None:
    figure = rl_plots.rewards(rows())
    found = lines(figure)
    assert found["combined score"] == ([1, 10, 20], [0.1, 1.0, 2.0])
    assert found["held-out prompts"] == ([0, 10], [0.1, 0.5])
    assert found["the reward"][1] == [0.0, 0.0, 0.0], "rounding is no number to look at"
    assert found["less the KL penalty"][1] == [-0.01, -0.1, -0.2]
    assert not found.keys() & {"helper", "whitened", "unfinished", "length penalty", "batch of equal scores"}
    assert "shares" not in above(figure)
    assert figure.layout.title.text == "Mean score of a batch: 0.10 → 2.00"


def test_several_scorers_are_told_apart() -> None:
    parts = {"reward/safety": 0.7, "reward/by_safety": 0.3, "reward/constant": 1.0, "reward/length_penalty": 0.2}
    figure = rl_plots.rewards(rows([batch(1, **parts), batch(2, **parts)]))
    found = lines(figure)
    assert found["safety"][1] == [0.7, 0.7]
    assert found["helper"][1] == [0.1, 0.2]
    assert found["judged by safety"][1] == [0.3, 0.3]
    assert found["batch of equal scores"][1] == [1.0, 1.0]
    assert found["length penalty"][1] == [0.2, 0.2]
    assert "shares" in above(figure)


def test_one_scorer_with_a_weight_is_not_the_score() -> None:
    assert "helper" in lines(rl_plots.rewards(rows([batch(1, **{"reward/helper": 9.0})])))


def test_the_divergence_is_drawn_each_way() -> None:
    found = lines(rl_plots.divergence(rows()))
    assert found["to the anchor: k1"][1] == [-0.01, -0.1, -0.2]
    assert found["to the anchor: k3"][1] == [0.01, 0.1, 0.2]
    assert found["to the anchor: reverse"][1] == [0.02, 0.2, 0.4]
    assert found["to the start, held-out prompts"] == ([0, 10], [0.0, 0.2])
    assert found["β"][1] == [0.05] * 3


def test_an_update_shows_what_is_not_zero() -> None:
    quiet = rl_plots.update(rows())
    assert above(quiet) == ["gradient norm before clipping", "mean size of the advantages"]
    assert quiet.layout.title.text == "Nothing is clipped; the largest gradient norm is 2"
    busy = {"update/clipped": 0.125, "update/kl_old": 1e-4, "update/first_ratio": 1e-3, "advantage/idle": 0.5}
    figure = rl_plots.update(rows([batch(1), batch(2, **busy, **CRITIC, **{"gradient/critic": 7.5})]))
    assert len(above(figure)) == 6
    assert figure.layout.title.text == "At most 12.5% of an update is clipped; the largest gradient norm is 7.5"
    assert lines(figure)["drift"][1] == [0.0, 1e-4]
    assert [list(trace.y) for trace in figure.data if trace.name == "critic"] == [[7.5], [0.1]]


def test_without_a_critic_there_is_no_figure_of_one() -> None:
    assert rl_plots.critic(rows()) is None
    figure = rl_plots.critic(rows([batch(1, **CRITIC), batch(2, **CRITIC | {"critic/explained": 0.75})]))
    assert lines(figure)["explained variance"][1] == [-0.5, 0.75]
    assert lines(figure)["value loss"][1] == [1.5, 1.5]
    assert figure.layout.shapes[0].y0 == 0
    assert figure.layout.title.text == "The critic explains 75% of the variance of the returns"


def test_seconds_are_stacked_by_phase() -> None:
    figure = rl_plots.time(rows())
    stacked = [trace for trace in figure.data if trace.stackgroup]
    assert [trace.name for trace in stacked] == list(PHASES)
    assert [trace.y[0] for trace in stacked] == [1.0, 2.0, 3.0, 4.0]
    assert len([trace for trace in figure.data if trace.name == "draw"]) == 2, "seconds and tokens a second"
    # 1 + 2 + 3 + 4 seconds.
    assert figure.layout.title.text == "A step takes 10.00 s (median), learn the most of it: 4.00 s"
    assert rl_plots.time(rows(METRICS[:1])) is None


def test_a_number_that_was_not_finite_is_a_gap() -> None:
    figure = rl_plots.update(rows([batch(1), batch(2, **{"gradient/policy": None}), batch(3)]))
    assert lines(figure)["policy"] == ([1, 2, 3], [2.0, None, 2.0])
    every = rl_plots.update(rows([batch(1, **{"gradient/policy": None})]))
    assert "gradient norm before clipping" not in above(every)


# ── texts and the page ───────────────────────────────────────────────────────────────────────────


def test_texts_stand_side_by_side() -> None:
    text = rl_plots.said(POINTS, SAMPLES, kept=10)
    head, *body = re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
    assert re.findall(r"<th>(step [^<]*)<", head) == ["step 0", "step 10 ★ kept", "step 20"]
    cells = re.findall(r"<td([^>]*)>(.*?)<small>(.*?)</small>", body[0], re.DOTALL)
    assert [cell[1] for cell in cells] == ["first words", "first words", "other words"]
    assert ["same" in cell[0] for cell in cells] == [False, True, False]
    assert cells[2][2] == "reward 2.50\ngold 0.88"
    open_ones, _, rest = text.partition("<details>")
    assert (open_ones.count("<th>prompt "), rest.count("<th>prompt ")) == (6, 2)
    assert "2 more prompts" in rest


def test_few_texts_need_nothing_to_open_and_none_no_table() -> None:
    assert "<details>" not in rl_plots.said(POINTS, [row for row in SAMPLES if row["prompt"] < "prompt 6"], kept=20)
    assert rl_plots.said(POINTS, [], kept=20) == ""


def test_of_many_looks_some_are_shown() -> None:
    points = [point(step, step / 100, 0.0) for step in range(0, 200, 10)]
    samples = [sample(one["step"], "p", f"at {one['step']}") for one in points]
    text = rl_plots.said(points, samples, kept=70)
    shown = [int(step) for step in re.findall(r"<td>at (\d+)<", text)]
    assert len(shown) in (rl_plots.LOOKS, rl_plots.LOOKS + 1)
    assert {0, 70, 190} <= set(shown)


def test_what_a_model_says_is_no_markup() -> None:
    samples = [sample(one["step"], MARKUP, MARKUP) | {MARKUP: 1.0} for one in POINTS]
    text = rl_plots.page(METRICS, POINTS, samples, kept=20)
    assert MARKUP not in text
    assert text.count(html.escape(MARKUP, quote=False)) == 1 + 2 * len(POINTS), "a prompt, answers, names of scores"
    points = [one | {"others": {MARKUP: 0.5}} for one in POINTS]
    assert MARKUP not in rl_plots.page(METRICS, points, SAMPLES, kept=20)


def test_very_long_answers_end_early_and_empty_ones_are_seen() -> None:
    samples = [sample(one["step"], "p", "x" * 5_000 if one["step"] else "") for one in POINTS]
    text = rl_plots.said(POINTS, samples, kept=20)
    assert max(map(len, re.findall(r"x+", text))) == rl_plots.LONGEST
    assert "x …" in text
    assert "(nothing)" in text


def test_the_page_holds_what_there_is_and_stands_alone() -> None:
    text = rl_plots.page(METRICS, POINTS, SAMPLES, kept=10)
    assert text == rl_plots.page(METRICS, POINTS, SAMPLES, kept=10)
    assert re.findall(r'<div id="(figure-\d)"', text) == [f"figure-{number}" for number in range(6)], "no critic"
    assert "20 steps; the policy of step 10 is kept" in text
    assert len(re.findall(r"<script[^>]*src=", text)) == 0
    assert text.rstrip().endswith("</html>")
    assert text.index("figure-5") < text.index("What it said") < text.rindex("</body>")
    with_critic = [row | (CRITIC if "entropy" in row else {}) for row in METRICS]
    assert "figure-6" in rl_plots.page(with_critic, POINTS, SAMPLES, kept=10)


def test_show_names_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inside.figures(foreign(tmp_path, "dir:x"))
    assert capsys.readouterr().out == ""
    (tmp_path / inside.FIGURES[0]).write_text("")
    inside.figures(foreign(tmp_path, "dir:x"))
    assert str(tmp_path / "plots.html") in capsys.readouterr().out


@pytest.mark.slow
def test_a_browser_draws_the_run(tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    if browser is None:
        pytest.skip("no browser here")
    page = tmp_path / "page.html"
    page.write_text(rl_plots.page(METRICS, POINTS, SAMPLES, kept=10))
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000", "--dump-dom")
    drawn = subprocess.run([browser, *quiet, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert drawn.stdout.count('class="main-svg"') >= 6
    assert "other words" in drawn.stdout
