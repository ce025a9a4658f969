"""What stage=show prints of a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gemma import tiny

from alignment.artifacts import foreign
from alignment.gemma import heads
from alignment.gemma.heads import Scale
from alignment.reporting import inside


def shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The table's rows, its title among them."""
    capsys.readouterr()
    inside.model(foreign(folder, "dir:x"))
    title, *lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    cells = [line.partition("  ") for line in lines]
    return {"title": title} | {name: value.strip() for name, _, value in cells}


def test_of_a_reward_model_it_says_how_scores_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reward = heads.with_head(tiny.model(tiny.GEMMA2), 0)
    heads.save_reward(reward, tmp_path, Scale(0.25, False, "gemma2"))
    told = shown(tmp_path, capsys)
    assert (told["title"], told["family"], told["width"]) == ("reward model", "gemma2", "24")
    assert told["head"] == "24 → 1, without a bias"
    assert (told["centre"], told["schema"]) == ("0.25", "gemma2")
    assert told["scores"].startswith("know only differences")
    heads.write_scale(tmp_path, Scale(0.0, True, "gemma2"))
    assert shown(tmp_path, capsys)["scores"] == "mean something by themselves"


def test_of_a_strangers_reward_model_it_says_that_nothing_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heads.with_head(tiny.model(tiny.GEMMA1), 0).save_pretrained(tmp_path)
    told = shown(tmp_path, capsys)
    assert told["title"] == "reward model"
    assert "as far as is known" in told["scores"]
    assert "centre" not in told


def test_a_policy_has_no_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.model(tiny.GEMMA1).save_pretrained(tmp_path)
    told = shown(tmp_path, capsys)
    assert told["title"] == "model"
    assert not told.keys() & {"head", "centre", "scores", "schema"}
    assert json.loads((tmp_path / "config.json").read_text())["hidden_size"] == int(told["width"])
