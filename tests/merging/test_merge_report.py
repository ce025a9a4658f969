"""What people see of a merge: the plots of its page and its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.reporting import merges


def moved(angle: float | None) -> dict[str, Any]:
    return {
        "start_norm": 10.0,
        "task_norms": [1.0, 2.0],
        "angles": {"0,1": angle},
        "result_norm": 1.5,
        "coefficients": [0.7, 0.7],
    }


def told(**changes: Any) -> dict[str, Any]:
    layer = {"norm": 10.0, "distances": [1.0, 0.5]}
    found = {
        "method": "slerp",
        "groups": "layer",
        "models": [{"model": name, "weight": 0.5} for name in ("<calm>", "bold")],
        "ancestor": {"name": "sft"},
        "spread": 0.1,
        "whole": layer,
        "layers": {"embed_tokens": layer, "layers.0": layer},
        "geometry": {"whole": moved(61.0), "groups": {"embed_tokens": moved(None), "layers.0": moved(61.0)}},
        "rounding": {"share": 0.31, "of": "bold"},
    }
    return found | changes


def test_angles_and_lengths_are_drawn() -> None:
    (line,) = merges.angles(told()).data
    assert ([*line.x], [*line.y]) == (["embed_tokens", "layers.0"], [None, 61.0])
    lines = merges.norms(told()).data
    assert [line.name for line in lines] == ["&lt;calm&gt;", "bold", "merged"]
    assert [line.y[0] for line in lines] == [0.1, 0.2, 0.15]
    page = merges.page(told())
    assert page.count("<section>") == 2
    assert "<calm>" not in page


def test_without_the_start_distances_are_drawn() -> None:
    page = merges.page(told(method="linear", geometry=None))
    assert page.count("<section>") == 1
    assert [line.y[0] for line in merges.distances(told()).data] == [0.1, 0.05]


def test_one_model_has_no_angle() -> None:
    whole = moved(None) | {"angles": {}, "task_norms": [1.0]}
    alone = told(
        method="liti",
        eta=0.3,
        models=[{"model": "one", "weight": 1.0}],
        geometry={"whole": whole, "groups": {"norm": whole}},
    )
    assert merges.page(alone).count("<section>") == 1
    assert "0.3 of the way from sft" in merges.page(alone)


@pytest.mark.parametrize("geometry", [True, False])
def test_the_table(geometry: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = told() if geometry else told(method="linear", geometry=None, rounding=None)
    (tmp_path / merges.RESULTS).write_text(json.dumps(found))
    merges.show(tmp_path)
    printed = capsys.readouterr().out
    assert ("61.0°" in printed) == geometry
    assert ("31.0% of what bold has learned" in printed) == geometry
    assert "<calm>" in printed
    assert "layers.0" in printed
