"""``stage=report`` writes one page, prints the ranking and says where the page is."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from report_support import Making, whole

from alignment.errors import UserError
from alignment.stages import report

CONF = Path(__file__).parents[2] / "conf" / "stage" / "report.yaml"


def settings(*references: str, title: str | None = None) -> report.Settings:
    values = yaml.safe_load(CONF.read_text()) | {"artifacts": list(references), "title": title}
    del values["defaults"]
    values["tracker"] = {"wandb": "off", "project": "test", "every": 1, "upload": "none"}
    parsed: report.Settings = report.Settings.parse(values)
    return parsed


def test_the_page_is_written_and_the_last_line_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = whole(tmp_path / "runs").made
    out = tmp_path / "out"
    out.mkdir()
    inputs = {"artifacts.0": made["versions"], "artifacts.1": made["judged"]}
    outcome = report.run(settings("step:versions", "step:judged"), inputs, out)
    assert [path.name for path in out.iterdir()] == ["report.html"]
    assert (outcome.kind, outcome.headline, outcome.notes) == ("evaluation", "gold", {"best": "slerp"})
    assert outcome.metrics == {"gold": pytest.approx(0.7), "models": 4.0, "artifacts": 10.0, "gone": 1.0}
    printed = capsys.readouterr().out.strip().splitlines()
    assert printed[-1].endswith(str(out / "report.html"))
    ranked = [line.split()[1] for line in printed if "±0" in line]
    assert ranked == ["slerp", "bold", "calm", "sft"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<title>mini: models, rewards, lineage</title>" in page
    report.run(settings("step:versions", "step:judged"), inputs, out)
    assert (out / "report.html").read_text(encoding="utf-8") == page


def test_a_title_is_taken_and_nothing_measured_is_no_error(tmp_path: Path) -> None:
    only = Making(tmp_path).add("sft", "sft", "policy")
    outcome = report.run(settings("run:sft", title="My <b>models</b>"), {"artifacts.0": only}, tmp_path)
    assert (outcome.headline, outcome.metrics["models"]) == ("models", 0.0)
    assert "<title>My &lt;b&gt;models&lt;/b&gt;</title>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_something_has_to_be_reported_on() -> None:
    with pytest.raises(UserError, match="artifacts"):
        settings()
