"""What people see of two models side by side: LLM Comparator's file, our page, the tables, the report."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator
from report_support import HOSTILE, whole
from versus_support import EXAMPLES, RESULTS, ROWS

from alignment import files
from alignment.artifacts import Artifact
from alignment.reporting import inside, llm_comparator
from alignment.reporting import side_by_side as tables
from alignment.reporting.page import report, versus
from alignment.reporting.page.gather import gather

# ── LLM Comparator's published layout (README, “JSON Data Format”; client/lib/types.ts) ──────────

TYPES = (
    *("number", "string", "category", "text", "url", "image_path", "image_byte"),
    *("per_model_boolean", "per_model_number", "per_model_category", "per_model_text"),
    *("per_rating_string", "per_rating_per_model_category"),
)
OF_TYPE: dict[str, Any] = {
    "number": (int, float, type(None)),
    "string": (str, type(None)),
    "category": (str, type(None)),
    "per_model_boolean": (bool, type(None)),
    "per_model_number": (int, float, type(None)),
}


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class CustomField(Strict):
    name: str
    type: str = Field(pattern=f"^({'|'.join(TYPES)})$")


class Metadata(Strict):
    source_path: str
    custom_fields_schema: list[CustomField]


class Model(Strict):
    name: str


class Rating(Strict):
    index: int
    score: float | None = Field(ge=-1.5, le=1.5)
    rating_label: str | None
    is_flipped: bool | None
    rationale: str | None
    custom_fields: dict[str, str | list[str | None]]


class Row(Strict):
    input_text: str
    tags: list[str]
    output_text_a: str
    output_text_b: str
    score: float | None = Field(ge=-1.5, le=1.5)
    individual_rater_scores: list[Rating]
    custom_fields: dict[str, Any]


class Published(Strict):
    metadata: Metadata
    models: list[Model] = Field(min_length=2, max_length=2)
    examples: list[Row]

    @model_validator(mode="after")
    def fields_are_those_of_the_schema(self) -> Published:
        types = {one.name: one.type for one in self.metadata.custom_fields_schema}
        for row in self.examples:
            assert set(row.custom_fields) == set(types), "a field in every example, and no other"
            for name, value in row.custom_fields.items():
                values = value if types[name].startswith("per_model") else [value]
                assert len(values) == (2 if types[name].startswith("per_model") else 1)
                assert all(isinstance(one, OF_TYPE[types[name]]) for one in values), (name, value)
        return self


PUBLISHED = {
    "metadata": {"source_path": "any", "custom_fields_schema": []},
    "models": [{"name": "Short name"}, {"name": "Another"}],
    "examples": [
        {
            "input_text": "This is a prompt.",
            "tags": ["Math"],
            "output_text_a": "one",
            "output_text_b": "other",
            "score": -1.25,
            "individual_rater_scores": [],
            "custom_fields": {},
        }
    ],
}
"""The README's minimal example: all of its fields are required."""


def test_the_validator_takes_what_is_published_and_nothing_else() -> None:
    Published.model_validate(PUBLISHED)
    for key in PUBLISHED:
        with pytest.raises(ValueError, match=key):
            Published.model_validate({name: value for name, value in PUBLISHED.items() if name != key})


def test_the_file_for_llm_comparator_has_its_published_layout() -> None:
    told = llm_comparator.layout(ROWS, RESULTS)
    found = Published.model_validate(json.loads(json.dumps(told, allow_nan=False)))
    assert [model.name for model in found.models] == ["new", f"old {HOSTILE}"]
    assert len(found.examples) == 23, "a prompt that stands there again is shown once"
    names = {one.name: one.type for one in found.metadata.custom_fields_schema}
    assert names["length"] == "per_model_number"
    assert "gold" not in names, "where there is no truth there is no column for it"
    assert "attack" not in names


def test_scores_and_voices_are_the_candidates() -> None:
    found = {row["custom_fields"]["id"]: row for row in llm_comparator.layout(ROWS, RESULTS)["examples"]}
    for one in EXAMPLES[:5]:
        row = found[one.id]
        assert (row["output_text_a"], row["output_text_b"]) == (one.candidate, one.baseline)
        assert (row["score"] > 0) == (one.result == "win")
        straight, turned = row["individual_rater_scores"]
        sign = 1 if one.result == "win" else -1
        assert (straight["score"], turned["score"]) == (sign * 1.0, sign * 1.5)
        side = "A" if sign > 0 else "B"
        assert (straight["rating_label"], turned["rating_label"]) == (f"{side} is better", f"{side} is much better")
        # The first of a pair is the candidate in even ones: there the first order shows it first.
        even = int(one.id.partition("-")[2]) % 2 == 0
        assert (straight["is_flipped"], turned["is_flipped"]) == (not even, even)
    invalid = found["p-5"]
    assert (invalid["score"], invalid["individual_rater_scores"][0]["score"]) == (None, None)
    assert invalid["individual_rater_scores"][0]["rationale"] == "nonsense"
    tie = found["p-6"]
    assert (tie["score"], tie["individual_rater_scores"][0]["rating_label"]) == (0.0, "same")
    assert found["p-3"]["input_text"].startswith("User: Question 3?"), "a conversation with its speakers"
    assert found["p-4"]["tags"][0] == "hateful"


@pytest.mark.parametrize(
    ("score", "told"),
    [(1.5, "A is much better"), (-1.0, "B is better"), (0.5, "A is slightly better"), (-0.25, "B is slightly better")],
)
def test_labels(score: float, told: str) -> None:
    assert llm_comparator.label(score) == told


# ── our page ─────────────────────────────────────────────────────────────────────────────────────


def test_the_page_is_one_file_that_needs_no_network_and_obeys_no_answer() -> None:
    text = versus.page(ROWS, RESULTS)
    assert text == versus.page(ROWS, RESULTS)
    assert HOSTILE not in text, "what models and judges say is never markup"
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "'unsafe-eval'" not in policy[1]
    assert not re.search(r'<(?:script|link|img)[^>]+(?:src|href)="?https?:', text)
    values = json.loads(re.search(r'id="values">(.*?)</script>', text, re.S)[1])  # type: ignore[index]
    assert len(values["examples"]["rows"]) == 23
    one = values["examples"]["rows"][3]
    assert HOSTILE in (one["candidate"]["text"], one["baseline"]["text"]), "it is there as text"
    assert values["drawn"]["rates"]["panels"][0]["level"] == 0.5
    for heading in ("Win rates", "In numbers", "What they said", "agreement beyond chance"):
        assert heading in text


def test_a_large_page_says_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versus, "MOST", 5)
    text = versus.page(ROWS, RESULTS)
    assert "These are the first 5 of 23 pairs" in text
    values = json.loads(re.search(r'id="values">(.*?)</script>', text, re.S)[1])  # type: ignore[index]
    assert len(values["examples"]["rows"]) == 5


# ── the terminal and the report ──────────────────────────────────────────────────────────────────


def test_show_prints_the_tables_and_a_sample_of_each_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files.write_json(tmp_path / "results.json", RESULTS)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "examples.parquet")
    files.write_atomic(tmp_path / "side_by_side.html", "x")
    made = Artifact(tmp_path, "evaluation", "side_by_side", "versus", "0" * 64)
    inside.evaluation(made)
    inside.figures(made)
    said = capsys.readouterr().out
    for told in ("ties split", "win/(win+loss)", "length-controlled win rate", "the judge's two orders", "invalid"):
        assert told in said
    assert len(re.findall(r"^  (win|loss|tie) of p-\d+$", said, re.M)) == 3
    assert "figures, for a browser:" in said


def test_every_measure_is_told_once_and_what_nothing_is_known_of_is_left_out() -> None:
    (rates, measures, agreements, counts) = tables.sheets(RESULTS)
    assert rates.rows[0][:3] == ("", "all", "22"), "but for the one that could not be read"
    names = [row[0] for row in measures.rows]
    assert len(set(names)) == len(names)
    assert "judge is right" not in names
    assert [row[:2] for row in agreements.rows] == [("the judge's two orders", "AC1: win, tie, loss")]
    assert ("invalid", "1") in counts.rows


def test_the_report_draws_every_side_by_side(tmp_path: Path) -> None:
    making = whole(tmp_path / "runs")
    parents = {"models.0": "calm", "models.1": "bold", "prompts": "prompts", "judge": "preference"}
    made = making.add(
        "versus",
        "side_by_side",
        "evaluation",
        parents,
        {"results.json": RESULTS},
        settings={"seed": 0},
        notes={"pairs": 23},
    )
    text = report.page(gather([made]), "Title", 10)
    values = json.loads(re.search(r'id="values">(.*?)</script>', text, re.S)[1])  # type: ignore[index]
    (panel,) = values["drawn"]["versus"]["panels"]
    whole_rate = RESULTS["rates"]["all"]["all"]
    split, without = panel["traces"]
    assert (split["x"][0], split["y"][0]) == ("all", pytest.approx(whole_rate["ties_split"]["estimate"], rel=1e-5))
    assert without["y"][0] == pytest.approx(whole_rate["without_ties"]["estimate"], rel=1e-5)
    assert 'id="figures-versus"' in text
    assert "No two models were put side by side." not in text
    other = report.page(gather([making.made["judged"]]), "Title", 10)
    assert "No two models were put side by side." in other
