"""The page of two models side by side in a headless browser. Skipped, with a word, where there is no Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from page_support import Browser, browser
from versus_support import EXAMPLES, RESULTS, ROWS

from alignment.reporting.page import versus


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


def choose(tab: Browser, control: str, value: str) -> None:
    found = f"document.getElementById({control!r})"
    tab.value(f"{found}.value = {value!r}, {found}.dispatchEvent(new Event('input'))")


def test_in_a_browser_it_loads_and_its_controls_do_what_they_say(tab: Browser, tmp_path: Path) -> None:
    path = tmp_path / "side_by_side.html"
    path.write_text(versus.page(ROWS, RESULTS), encoding="utf-8")
    tab.open(path)
    assert tab.wrong == []
    assert tab.value("document.querySelectorAll('#said .pair').length") == 12
    assert tab.value("document.querySelectorAll('.plot .points path').length") > 0
    losses = sum(one.result == "loss" for one in EXAMPLES)
    choose(tab, "result", "loss")
    assert tab.value("document.getElementById('found').value") == f"{losses} of 23 pairs"
    shown = tab.value("[...document.querySelectorAll('#said .result')].map((one) => one.textContent)")
    assert all(one.startswith("loss") for one in shown)
    choose(tab, "result", "")
    choose(tab, "search", "NONSENSE")
    assert tab.value("document.getElementById('found').value") == "1 of 23 pairs", "reasons are searched as well"
