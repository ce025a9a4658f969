"""Figures hold the values they were given, names are no markup, and the page needs nothing from outside."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from alignment.reporting import plots
from alignment.reporting.plots import Histogram, Section, Series


def estimate(value: float, half: float = 0.02) -> dict[str, float]:
    return {"estimate": value, "low": value - half, "high": value + 2 * half}


def axes(figure: Any) -> tuple[str, str]:
    return figure.layout.xaxis.title.text, figure.layout.yaxis.title.text


def test_dots_have_their_intervals_and_gaps() -> None:
    series = [Series("a", ["x", "y"], [estimate(0.5), None], ["3 pairs", "none"]), Series("b", ["x", "y"], [0.1, 0.2])]
    figure = plots.dots("Title", "grade", "share", series, baseline=0.5)
    first, second = figure.data
    assert (list(first.x), list(first.y)) == (["x", "y"], [0.5, None])
    assert list(first.error_y.array) == [pytest.approx(0.04), None]
    assert list(first.error_y.arrayminus) == [pytest.approx(0.02), None]
    assert not first.error_y.symmetric
    assert second.error_y.array is None
    assert first.marker.color != second.marker.color
    assert first.marker.symbol != second.marker.symbol, "colour alone tells nothing to some"
    assert figure.layout.scattermode == "group"
    assert figure.layout.shapes[0].y0 == 0.5
    assert axes(figure) == ("grade", "share")
    assert "%{text}" in first.hovertemplate
    assert list(first.text) == ["3 pairs", "none"]


def test_curves_have_a_diagonal_and_marks() -> None:
    figure = plots.curves("T", "x", "y", [Series("a", [0, 1], [0, 1])], diagonal=True, marks=(0.15,))
    diagonal, mark = figure.layout.shapes
    assert (diagonal.x0, diagonal.y0, diagonal.x1, diagonal.y1) == (0, 0, 1, 1)
    assert (mark.x0, mark.x1) == (0.15, 0.15)
    assert figure.layout.annotations[0].text == "0.15"


def test_families_share_a_colour_and_differ_in_dashes() -> None:
    lines = [Series("recall", [0, 1], [0.1, 0.2]), Series("precision", [0, 1], [0.3, None])]
    figure = plots.families("T", "x", "y", {"a": lines, "b": lines[:1]})
    recall, precision, other = figure.data
    assert recall.line.color == precision.line.color != other.line.color
    assert recall.line.dash != precision.line.dash
    assert [trace.name for trace in figure.data] == ["a: recall", "a: precision", "b: recall"]


def test_a_heat_map_is_read_like_a_table() -> None:
    values = [[estimate(0.9), estimate(0.6)], [None, estimate(0.3)]]
    figure = plots.heat_map("T", "on", "judge", columns=["c", "d"], rows=["r", "s"], values=values, middle=0.5)
    (cells,) = figure.data
    assert [list(row) for row in cells.z] == [[0.9, 0.6], [None, 0.3]]
    assert (list(cells.x), list(cells.y)) == (["c", "d"], ["r", "s"])
    assert cells.text[0][0] == "0.900 ±0.030"
    assert cells.text[1][0] == ""
    assert cells.zmin + cells.zmax == pytest.approx(1), "the middle is white"
    assert figure.layout.yaxis.autorange == "reversed", "the first row is on top"


def test_histograms_stand_between_their_edges() -> None:
    panels = [Histogram(name, [0, 1, 2], {"chosen": [3, 4], "rejected": [5, 6]}) for name in "abcd"]
    figure = plots.histograms("T", "score", "answers", panels)
    assert len(figure.data) == 8
    assert (list(figure.data[0].x), list(figure.data[1].y)) == ([0.5, 1.5], [5, 6])
    assert [one.text for one in figure.layout.annotations] == ["a", "b", "c", "d"]
    assert sum(bool(trace.showlegend) for trace in figure.data) == 2
    assert {trace.xaxis for trace in figure.data[:2]} == {"x"}
    assert figure.layout.barmode == "overlay"
    named = {axis for axis in ("xaxis", "xaxis2", "xaxis3", "xaxis4") if figure.layout[axis].title.text == "score"}
    assert named == {"xaxis2", "xaxis3", "xaxis4"}, "the lowest panel of each column names the axis"


def test_clouds_have_a_panel_each() -> None:
    figure = plots.clouds("T", "length", "score", [Series("a", [1, -2], [0.5, -0.5], ["p", "q"])])
    assert (list(figure.data[0].x), list(figure.data[0].text)) == ([1, -2], ["p", "q"])
    assert {shape.y0 for shape in figure.layout.shapes} >= {0}


def test_names_are_no_markup() -> None:
    name = "<script>alert(1)</script><b>&"
    figure = plots.dots(name, "x", "y", [Series(name, ["x"], [0.5], [name])])
    text = plots.page(name, name, [Section(name, figure)])
    assert figure.data[0].name == figure.layout.title.text == html.escape(name, quote=False)
    assert "<script>alert" not in text
    # In plotly's JSON "&" stays and "<" does not: what it draws is the escaped text.
    assert name not in text


def test_the_page_stands_alone() -> None:
    figure = plots.dots("T", "x", "y", [Series("a", ["x"], [0.5])])
    text = plots.page("Judges", "About.", [Section("One.", figure), Section("Two.", figure)])
    assert text == plots.page("Judges", "About.", [Section("One.", figure), Section("Two.", figure)])
    assert len(re.findall(r"<script[^>]*src=", text)) == 0
    assert "<link" not in text
    assert "default-src 'none'" in text
    assert text.count("plotly.js v") == 1, "the library is there once"
    assert re.findall(r'<div id="(figure-\d)"', text) == ["figure-0", "figure-1"]
    assert text.count('"showSendToCloud": false') == 2, "nothing that would send the figure away"
    assert text.index("One.") < text.index("Two.")


@pytest.mark.slow
def test_a_browser_draws_the_page(tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    if browser is None:
        pytest.skip("no browser here")
    figures = [
        plots.dots("T", "x", "y", [Series("a", ["x"], [estimate(0.5)])]),
        plots.heat_map("T", "x", "y", columns=["c"], rows=["r"], values=[[estimate(0.9)]], middle=0.5),
        plots.clouds("T", "x", "y", [Series("a", [1], [2], ["p"])]),
    ]
    page = tmp_path / "page.html"
    page.write_text(plots.page("T", "t", [Section("s", figure) for figure in figures]))
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000", "--dump-dom")
    drawn = subprocess.run([browser, *quiet, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert drawn.stdout.count('class="main-svg"') >= len(figures)


def test_titles_are_broken_into_lines() -> None:
    figure = plots.dots("word " * 60, "x", "y", [Series("a", ["x"], [0.5])])
    lines = figure.layout.title.text.split("<br>")
    assert len(lines) == 3
    assert max(map(len, lines)) <= plots.TITLE_WIDTH
    assert json.loads(figure.to_json())["layout"]["margin"]["t"] > 100
