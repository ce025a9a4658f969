"""The page in a headless browser: it loads without errors, its plots have their points, its controls do what they say.

Skipped, with a word, where there is no Chromium. What takes many loads of the page is slow.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from page_support import Browser, browser
from report_support import HOSTILE, evaluate, whole

from alignment.reporting.page import report
from alignment.reporting.page.gather import gather

POINTS = """Object.fromEntries([...document.querySelectorAll('.plot')].map((plot) => [plot.id,
  Object.fromEntries(plot.data.map((trace) => [trace.name + '/' + trace.mode, trace.x.length]))]))"""
DRAWN = "[...document.querySelectorAll('.plot')].map((plot) => plot.querySelectorAll('.points path').length)"
SHOWN = """[...document.querySelectorAll('#ranking tbody tr')].filter((row) => !row.hidden)
  .map((row) => row.cells[0].dataset.value)"""
SAID = """[...document.querySelectorAll('#said .pair')]
  .map((row) => [...row.querySelectorAll('.text')].map((one) => one.textContent))"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    making = whole(root / "runs")
    again = evaluate(making, "again", ("bold",), golds=(0.95,), seed=1)
    asked = [making.made[name] for name in ("versions", "judged", "fronts", "pool")]
    path = root / "report.html"
    path.write_text(report.page(gather([*asked, again]), f"Title {HOSTILE}", 60), encoding="utf-8")
    return path


def choose(tab: Browser, control: str, value: str) -> None:
    found = f"document.getElementById({control!r})"
    tab.value(f"{found}.value = {value!r}, {found}.dispatchEvent(new Event('input'))")


def click(tab: Browser, selector: str) -> None:
    tab.value(f"document.querySelector({selector!r}).dispatchEvent(new MouseEvent('click', {{bubbles: true}}))")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), pytest.param(400, True, marks=pytest.mark.slow)])
def test_it_loads_without_errors_or_requests_and_fits(tab: Browser, page: Path, width: int, dark: bool) -> None:
    tab.open(page, width=width, dark=dark)
    assert tab.wrong == []
    assert tab.value("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out sideways"
    paper, line = (
        tab.value(f"getComputedStyle(document.body).{name}").removeprefix("rgb(").rstrip(")")
        for name in ("backgroundColor", "color")
    )
    light = [sum(map(int, one.split(","))) > 3 * 128 for one in (paper, line)]
    assert light == [not dark, dark]
    blue = tab.value("document.querySelector('#figures-training .plot').data[0].line.color")
    assert blue in tab.value("document.querySelector('style').textContent"), "figures have the page's colours"


@pytest.mark.slow
def test_the_plots_have_their_points(tab: Browser, page: Path) -> None:
    tab.open(page)
    points = tab.value(POINTS)
    assert points["figures-front-0"] == {"sweep/lines+markers": 3, "calm/lines+markers": 3, "Pareto front/markers": 2}
    assert points["figures-training-0"] == {"calm/lines+markers": 3, "bold/lines+markers": 3}
    assert points["figures-judges-0"]["preference/markers"] == 3
    assert points["figures-merges-0"] == {"models 1 and 2/lines+markers": 4}
    assert points["figures-best-0"]["the best/lines+markers"] == 3
    counts = [sum(number for name, number in traces.items() if "markers" in name) for traces in points.values()]
    assert tab.value(DRAWN) == counts, "every point is drawn"
    choose(tab, "view", "1")
    there = tab.value("document.querySelector('#figures-front .plot').data.map((trace) => trace.x.length)")
    assert there == [3, 3, 1, 1, 1, 1, 1]
    marks = tab.value("[...document.querySelectorAll('#figures-front-0 .textpoint')].map((one) => one.textContent)")
    assert sorted(marks) == ["bold", "bold", "calm", "sft", "slerp"]
    assert tab.wrong == []


@pytest.mark.slow
def test_a_legend_entry_hides_its_lines_in_all_panels(tab: Browser, page: Path) -> None:
    tab.open(page)
    click(tab, "#figures-training .keys button")
    hidden = (
        "[...document.querySelectorAll('#figures-training .plot')].map((plot) => plot.data.map((one) => one.visible))"
    )
    assert all(shown == [False, True] for shown in tab.value(hidden))
    assert tab.value("document.querySelector('#figures-training .keys button').getAttribute('aria-pressed')") == "false"
    click(tab, "#figures-training .keys button")
    assert all(shown == [True, True] for shown in tab.value(hidden))


@pytest.mark.slow
def test_the_ranking_sorts_and_filters(tab: Browser, page: Path) -> None:
    tab.open(page)
    assert tab.value(SHOWN) == ["bold", "slerp", "bold", "calm", "sft"], "best first by gold"
    head = "#ranking th[data-key='kl']"
    assert tab.value("document.querySelector(\"#ranking th[data-key='gold']\").ariaSort") == "descending"
    click(tab, f"{head} button")
    assert tab.value(f'document.querySelector("{head}").ariaSort') == "descending"
    assert tab.value("document.querySelector(\"#ranking th[data-key='gold']\").ariaSort") == "none"
    assert tab.value(SHOWN) == ["slerp", "bold", "calm", "bold", "sft"]
    click(tab, f"{head} button")
    assert tab.value(SHOWN)[-1] == "slerp"
    click(tab, "#ranking th[data-key='name'] button")
    assert tab.value(SHOWN) == ["bold", "bold", "calm", "sft", "slerp"]
    choose(tab, "filter-name", "L")
    assert tab.value(SHOWN) == ["bold", "bold", "calm", "slerp"]
    choose(tab, "filter-stage", "rl")
    assert tab.value(SHOWN) == ["bold", "bold", "calm"]
    choose(tab, "filter-evaluation", "again")
    assert tab.value(SHOWN) == ["bold"]
    assert tab.value("document.getElementById('shown').value") == "1 of 5 rows"


@pytest.mark.slow
def test_samples_stand_side_by_side(tab: Browser, page: Path) -> None:
    tab.open(page)
    names = tab.value("[...document.getElementById('left').options].map((one) => one.textContent)")
    assert names[:5] == ["bold", "slerp", "bold", "calm", "sft"]
    assert "calm, step 20" in names
    left, right = names.index("calm"), names.index("sft")
    choose(tab, "left", str(left))
    choose(tab, "right", str(right))
    assert tab.value(SAID)[:2] == [["calm says that.", "sft says that."], ["calm says this.", "sft says this."]]
    assert [HOSTILE, HOSTILE] in tab.value(SAID), "text comes as it is"
    choose(tab, "tag", "unsafe")
    assert tab.value("document.querySelectorAll('#said .pair').length") == 2
    choose(tab, "search", "QUESTION 4")
    assert tab.value("[...document.querySelectorAll('#said .turn')].map((one) => one.textContent)") == [
        "userQuestion 4? "
    ]
    choose(tab, "search", "")
    choose(tab, "tag", "")
    tab.value("document.getElementById('differ').click()")
    assert tab.value("document.getElementById('found').value") == "5 of 6 prompts"
    choose(tab, "left", str(names.index("calm, step 20")))
    assert tab.value("document.getElementById('found').value") == "no prompt that both answered"
    choose(tab, "right", str(names.index("bold, step 0")))
    assert tab.value(SAID)[0] == [f"{HOSTILE} 20", f"{HOSTILE} 0"]


@pytest.mark.slow
def test_the_lineage_tells_what_is_chosen(tab: Browser, page: Path) -> None:
    tab.open(page)
    assert tab.value("document.querySelectorAll('#graph .box').length") == 13
    box = "[...document.querySelectorAll('.box')].find((one) => one.ariaLabel.startsWith('slerp'))"
    tab.value(f"{box}.dispatchEvent(new KeyboardEvent('keydown', {{key: 'Enter'}}))")
    related = tab.value("[...document.querySelectorAll('.box.related')].map((one) => one.ariaLabel.split(',')[0])")
    assert sorted(related) == sorted(["lost", "sft", "prompts", "preference", "calm", "bold", "slerp", "versions"])
    assert tab.value("document.querySelector('#details h3').textContent") == "slerp"
    tab.value("document.querySelector('#details .link').click()")
    assert tab.value("document.querySelector('#details h3').textContent") == "calm"
    assert tab.value("document.activeElement.ariaLabel.startsWith('calm')")
    tab.value("document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))")
    assert not tab.value("document.getElementById('graph').classList.contains('chosen')")


def test_hostile_text_does_no_harm(tab: Browser, page: Path) -> None:
    tab.open(page)
    assert tab.value("document.querySelector('h1').textContent") == f"Title {HOSTILE}"
    assert tab.value("document.querySelectorAll('img, b:not(.interval b, .turn b, .scores b)').length") == 0
    assert tab.value("document.querySelectorAll('script').length") == 3
    tab.value("window.ours = document.createElement('script')")
    tab.value("ours.textContent = 'window.harmed = 1', document.body.append(ours)")
    assert tab.value("window.harmed") is None, "the policy knows our scripts by their digests"
    reached = "fetch('http://127.0.0.1:9/').then(() => 'reached', () => 'refused')"
    assert tab.value(reached) == "refused"
    assert any("Content Security Policy" in text for _, text in tab.told)
