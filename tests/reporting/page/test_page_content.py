"""What figures, samples and tables of the page hold: the numbers of the artifacts, in words that are no markup."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_support import HOSTILE, Making, whole

from alignment.reporting.page import curves, document, figures, front, graph, models, report, tables, texts
from alignment.reporting.page.figures import Group, Hues
from alignment.reporting.page.gather import Lineage, gather
from alignment.reporting.page.texts import Spoken


@pytest.fixture(scope="module")
def making(tmp_path_factory: pytest.TempPathFactory) -> Making:
    return whole(tmp_path_factory.mktemp("store") / "runs")


@pytest.fixture(scope="module")
def lineage(making: Making) -> Lineage:
    return gather([making.made[name] for name in ("versions", "judged", "fronts", "pool")])


def spoken_of(lineage: Lineage) -> dict[str, Spoken]:
    return {key: texts.spoken(some) for key, some in texts.answers_of(models.measured(lineage)).items()}


def lines(group: Group) -> dict[tuple[str, str], Any]:
    return {(panel.title, trace["name"]): trace for panel in group.panels for trace in panel.traces}


def views(lineage: Lineage) -> dict[str, Group]:
    return front.views(models.measured(lineage), lineage, spoken_of(lineage), Hues())


def test_a_page_without_evaluations_does_not_count_them(making: Making) -> None:
    page = report.page(gather([making.made["judged"]]), "title", 4)
    assert "artifacts in all" in page
    assert "evaluated model" not in page.partition("artifacts in all")[0]


def test_the_front_has_every_look_of_every_run_and_every_model(lineage: Lineage) -> None:
    found = views(lineage)
    assert list(found) == ["fronts: compared lines", "KL to sft"]
    gold = [trace for panel in found["KL to sft"].panels if panel.title == "gold" for trace in panel.traces]
    runs = {trace["name"]: trace for trace in gold if "lines" in trace["mode"]}
    assert runs["calm"]["x"] == [0.0, 0.25, 0.5]
    assert runs["bold"]["x"] == [0.0, 0.5, 1.0]
    assert runs["calm"]["y"] == [0.4, 0.5, 0.6]
    points = {trace["name"]: trace for trace in gold if "lines" not in trace["mode"]}
    assert set(points) == {"sft", "calm", "bold", "slerp"}
    assert (points["slerp"]["x"], points["slerp"]["y"]) == ([1.5], [0.7])
    assert points["slerp"]["bars"] == [[pytest.approx(0.02), pytest.approx(0.02)]]
    assert points["slerp"]["sideways"] == [[pytest.approx(0.05), pytest.approx(0.05)]]
    assert (runs["calm"]["hue"], runs["calm"]["symbol"]) == (points["calm"]["hue"], points["calm"]["symbol"])


def test_a_runs_reward_stands_with_the_evaluations_of_that_reward(lineage: Lineage) -> None:
    titles = [panel.title for panel in views(lineage)["KL to sft"].panels]
    assert titles == ["gold", "reward: preference", "gold: safety"]
    calm = next(node for node in lineage.nodes.values() if node.name == "calm")
    assert front.score_of(calm, "reward", lineage) == "reward_preference"
    assert front.score_of(calm, "gold:overall", lineage) == "gold"
    assert front.score_of(calm, "gold:safety", lineage) == "gold_safety"
    assert front.score_of(calm, "helpful", lineage) == "reward_helpful"
    assert calm.artifact is not None
    calm.artifact.settings["reward"]["rule"] = "llama2"
    assert front.score_of(calm, "reward", lineage) == "reward of calm"
    calm.artifact.settings["reward"]["rule"] = "single"


def test_compared_lines_have_bounds_rings_and_samples(lineage: Lineage) -> None:
    panels = {panel.title: panel for panel in views(lineage)["fronts: compared lines"].panels}
    sweep, calm, ring = panels["gold"].traces
    assert (sweep["dash"], calm["dash"], ring["mode"]) == ("dot", "solid", "markers")
    assert (sweep["x"], sweep["y"]) == ([0.0, 0.5, 1.0], [0.4, 0.55, 0.7])
    assert sweep["bars"][0] == [pytest.approx(0.02), pytest.approx(0.02)]
    assert (ring["x"], ring["y"]) == ([0.0, 1.0], [0.4, 0.7])
    assert "slerp says that." in sweep["told"][2]
    assert "says" not in sweep["told"][0]
    assert calm["told"][1].startswith("step 10<br>")
    assert "bars" not in panels["reward: preference"].traces[0], "no bounds, no bars"


def test_curves_hold_what_was_measured(lineage: Lineage) -> None:
    hues = Hues()
    training = lines(curves.training(lineage, hues))
    assert training["reward on held-out prompts", "bold"]["y"] == [-0.2, 0.3, 0.8]
    assert training["KL to the anchor (k1), batch", "calm"]["y"][4] is None, "what was not finite leaves a gap"
    assert training["gold, held-out prompts", "calm"]["x"] == [0, 10, 20]
    judged = curves.grades(lineage).panels[0]
    assert judged.level == 0.5
    assert {trace["name"]: trace["y"] for trace in judged.traces} == {
        "preference": [0.7, pytest.approx(0.8), 0.5],
        "gold:overall": [0.8, pytest.approx(0.9), 0.5],
        "(the longer answer)": [0.55, pytest.approx(0.65), 0.5],
    }
    best = lines(curves.best_of(lineage))
    assert best["reward (pool)", "the best"]["y"] == [0.1, 0.2, 0.25]
    assert best["gold (pool)", "gold of the best"]["x"] == [1, 2, 3]


def test_layers_are_in_their_order_and_no_geometry_is_no_figure(lineage: Lineage, tmp_path: Path) -> None:
    found = lines(curves.merges(lineage))
    angles = found["angle, degrees: slerp of calm, bold", "models 1 and 2"]
    assert angles["x"] == ["embed_tokens", "layers.2", "layers.10", "norm"]
    assert angles["y"] == [85.0, 75.0, 70.0, 90.0]
    assert angles["told"] == ["calm and bold"] * 4
    norms = {name: trace["y"] for (title, name), trace in found.items() if title.startswith("norm")}
    assert norms == {"the merge": [1.1] * 4, "model 1": [1.0] * 4, "model 2": [1.5] * 4}
    blind = Making(tmp_path).add("merge", "merge", "policy", files={"merge.json": {"models": [], "geometry": None}})
    assert not curves.merges(gather([blind])).panels


def test_varied_answers_have_more_different_words() -> None:
    assert texts.distinct(["a b a b"], 1) == 0.5
    assert texts.distinct(["a b a b"], 2) == pytest.approx(2 / 3)
    assert texts.distinct(["a b", "a b"], 2) == 0.5
    assert texts.distinct(["a", ""], 2) is None


def test_samples_are_spread_over_tags_and_shared(lineage: Lineage) -> None:
    rows = models.measured(lineage)
    answers = texts.answers_of(rows)
    few = texts.gathered(rows, answers, lineage, 3)
    asked = [key for key in few.prompts if not key.startswith("text ")]
    assert asked == ["p0", "p1", "p2"], "one of every tag"
    assert {one.name for one in few.said} == {"sft", "calm", "bold", "slerp"} | {
        f"{run}, step {step}" for run in ("calm", "bold") for step in (0, 10, 20)
    }
    assert all(list(one.answers) == asked for one in few.said if one.group == "versions")
    assert len([key for key in few.prompts if key.startswith("text ")]) == 3, "runs share their held-out prompts"
    none = texts.gathered(rows, answers, lineage, 0)
    assert {one.group for one in none.said} == {"along calm", "along bold"}
    assert few.said[-1].answers["text Asked 0?"]["scores"] == [["reward", 0.5], ["KL", 0.1], ["gold", 0.3]]
    assert few.said[0].answers["p2"]["text"] == HOSTILE
    assert few.said[0].answers["p1"]["scores"] == [["gold", 0.167], ["KL", 0.25]]


def test_long_texts_are_cut() -> None:
    row = {"prompt": "p" * 5000, "answer": "a" * 5000}
    assert len(texts._answer(row)["text"]) < texts.LONGEST + 3
    assert max(map(len, texts.short(row["prompt"], row["answer"]).split("\n"))) <= 60


def test_hues_are_one_for_a_name_and_pairs_do_not_repeat() -> None:
    hues = Hues(["first"])
    looks = [tuple(hues.look(f"n{place}").values()) for place in range(40)]
    assert len({*looks, tuple(hues.look("first").values())}) == 41
    assert tuple(hues.look("n3").values()) == looks[3]
    assert hues.look("first")["hue"] == 0


def test_long_lines_are_thinned_but_keep_their_ends() -> None:
    line = figures.trace("x", list(range(1001)), [float(one) for one in range(1001)], {"hue": 0, "symbol": "x"})
    assert len(line["x"]) <= figures.LONGEST + 1
    assert (line["x"][0], line["x"][-1], line["y"][-1]) == (0, 1000, 1000.0)


def test_names_are_no_markup_anywhere(lineage: Lineage) -> None:
    line = figures.trace(HOSTILE, [0], [0.5], {"hue": 0, "symbol": "x"}, told=[HOSTILE], marks=[HOSTILE])
    assert "<script>" not in json.dumps(line)
    text = document.embedded({"text": HOSTILE})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"text": HOSTILE}
    assert "<b>" not in tables.table((HOSTILE,), ((HOSTILE,),))
    assert tables.attribute('"><b') == "&quot;&gt;&lt;b"


def test_the_page_is_one_file_and_its_bytes_are_the_same(lineage: Lineage) -> None:
    page = report.page(lineage, f"Title {HOSTILE}", 6)
    assert page == report.page(lineage, f"Title {HOSTILE}", 6)
    assert page.count("<script>") == 2
    assert page.count("</script>") == 3, "library, values, script"
    assert "src=" not in page.replace(HOSTILE, "").partition("<script>")[0].replace("img src=x", "")
    assert "default-src 'none'" in page
    assert "unsafe-eval" not in page
    assert "script-src 'sha256-" in page
    assert page.count("plotly.js v") == 1
    own = len(page) - len(page.split("<script>")[1])
    assert own < 400_000


def test_what_is_not_there_has_no_section(tmp_path: Path) -> None:
    alone = Making(tmp_path).add("sft", "sft", "policy")
    page = report.page(gather([alone]), "Alone", 6)
    assert "No model was evaluated among these artifacts." in page
    assert "No judges were measured." in page
    for key in ("models", "front", "samples", "training", "judges", "merges", "best"):
        assert f'<section id="{key}"' not in page
        assert f'href="#{key}"' not in page
    assert '<section id="lineage"' in page


def test_details_tell_settings_metrics_licences_and_what_is_gone(lineage: Lineage) -> None:
    told = {one["name"]: one for one in graph.details(lineage).values()}
    assert ["seed", "0"] in told["sft"]["settings"]
    assert ["adapter.kind", "none"] in told["sft"]["settings"]
    assert ("licences", "Apache-2.0") in told["sft"]["facts"]
    assert told["prompts"]["metrics"] == [["rows", "600"]]
    assert told["sft"]["parents"][0][:2] == ["data", "lost"]
    assert "no longer there" in told["lost"]["facts"][1][1]
    drawn = graph.drawing(lineage)
    assert drawn.count('class="box') == len(lineage.nodes)
    assert drawn.count("<path") == sum(len({*node.parents.values()}) for node in lineage.nodes.values())


def test_how_it_was_measured(lineage: Lineage) -> None:
    told = tables.protocol(models.measured(lineage), lineage)
    for cell in ("versions", "evaluate", "prompts", "600", "test", "0.95", "sft", "cpu", "fp32", "judged"):
        assert f"<td>{cell}</td>" in told
    assert "<td>torch</td><td>2.13.0</td>" in tables.machines(lineage)
