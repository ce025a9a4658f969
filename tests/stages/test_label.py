"""The stage that judges pairs: grades, safety, what is held out for ever, the ledger, and stopping half-way."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from drawing import POLICY
from labelling import PAIRS, Reporting, fates, labelled, origins_of, rows_of, settings, truth
from pairs_support import artifact_of, pair
from tests_support import call

from alignment import artifacts
from alignment.chat.types import Message, Messages, messages
from alignment.data import annotations, spreadsheet, store
from alignment.errors import UserError
from alignment.miniature.world import World
from alignment.scoring import llm_judge
from alignment.scoring.gold import Gold
from alignment.scoring.scorer import Scores
from alignment.stages import label

# ── a scorer judges ──────────────────────────────────────────────────────────────────────────────


def test_the_better_answer_is_chosen_with_its_grade(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "out"
    labelled(monkeypatch, out)
    found = {name: (split, row.chosen, row.rejected, row.grade) for name, (split, row) in rows_of(out).items()}
    assert found == {
        "t-0": ("train", "Great.", "Awful.", "significantly"),
        "t-1": ("train", "Great.", "Poor.", "better"),
        "t-2": ("train", "Good.", "Poor.", "slightly"),
        "t-3": ("train", "Fair.", "Poor.", "negligibly"),
        "v-0": ("valid", "Good.", "Awful.", "significantly"),
        "x-0": ("test", "Great.", "Poor.", "better"),
    }
    row = rows_of(out)["t-0"][1]
    assert (row.prompt, row.source) == (messages(("user", "Question t-0?")), "label:helpfulness")
    assert row.chosen_safe is None, "helpfulness by a scorer says nothing of safety"


def test_every_pair_has_its_line_in_the_ledger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = labelled(monkeypatch, out)
    found = fates(out)
    assert found["t-4"] == ("dropped", "no preference")
    assert found["t-5"] == ("dropped", "equal answers")
    assert {found[name][0] for name in ("t-0", "t-1", "t-2", "t-3", "v-0", "x-0")} == {"kept"}
    places = {entry.id: (entry.source, entry.file, entry.line) for entry in store.entries(out)}
    assert places["t-5"] == ("pairs", "train", 6)
    assert places["v-0"] == ("pairs", "valid", 1)
    assert outcome.metrics["ledger_dropped"] == 2
    assert outcome.metrics["rows"] == 6


def test_pairs_with_nothing_to_judge_cost_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    judge = Reporting(truth()._score)
    labelled(monkeypatch, tmp_path / "out", judge=judge)
    assert len(judge.judged) == 2 * 7


def test_ties_may_stay_as_negligible(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "out"
    labelled(monkeypatch, out, ties="negligibly")
    assert rows_of(out)["t-4"][1].grade == "negligibly"


def test_it_is_recorded_who_wrote_each_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = labelled(monkeypatch, out)
    found = origins_of(out)
    assert found["t-1"] == {
        "id": "t-1",
        "split": "train",
        "chosen_by": "new",
        "rejected_by": "old",
        "chosen_temperature": 1.5,
        "rejected_temperature": 0.5,
        "chosen_score": 0.9,
        "rejected_score": 0.4,
        "judge": "judge",
        "agreement": None,
        "reason": "",
    }
    assert found.keys() == rows_of(out).keys()
    # Of six, "old" wrote the better one but in t-1 and v-0.
    assert outcome.metrics["won/old"] == pytest.approx(4 / 6)
    assert outcome.metrics["won/new"] == pytest.approx(2 / 6)
    assert outcome.metrics["grade/significantly"] == pytest.approx(2 / 6)
    assert [policy["name"] for policy in outcome.notes["policies"]] == ["old", "new"]
    card = store.card(out)
    assert (card["judge"], card["aspect"], card["licences"]) == ("judge", "helpfulness", ["CC-BY-4.0"])


def test_safety_labels_come_from_the_score_where_safety_is_compared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    outcome = labelled(monkeypatch, out, aspect="safety", safe_above=0.5)
    safe = {name: (row.chosen_safe, row.rejected_safe) for name, (_, row) in rows_of(out).items()}
    assert safe["t-0"] == (True, False)
    assert safe["t-3"] == (False, False)
    assert outcome.metrics["safe/preferred_only"] == pytest.approx(5 / 6)
    assert outcome.metrics["safe/neither"] == pytest.approx(1 / 6)
    assert "safe/other_only" not in outcome.metrics


class Relative(Reporting):
    """Knows only differences, like a reward model that was trained on comparisons alone."""

    absolute = False


def test_a_judge_that_knows_only_differences_has_no_threshold_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    judge = Relative(truth()._score)
    with pytest.raises(UserError, match="judge: its scores have no threshold of their own"):
        labelled(monkeypatch, tmp_path / "auto", judge=judge, aspect="safety")
    given = tmp_path / "given"
    labelled(monkeypatch, given, judge=judge, aspect="safety", safe_above=0.42)
    assert rows_of(given)["t-3"][1].chosen_safe is True, "Fair. scores 0.45: above what was given, below 0.5"
    plain = tmp_path / "plain"
    labelled(monkeypatch, plain, judge=judge, aspect="safety", safe_above=None)
    assert {row.chosen_safe for _, row in rows_of(plain).values()} == {None}
    labelled(monkeypatch, tmp_path / "helpful", judge=judge)


def test_where_nobody_says_a_threshold_it_is_one_half(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said, unsaid = tmp_path / "said", tmp_path / "unsaid"
    labelled(monkeypatch, said, aspect="safety", safe_above=0.5)
    labelled(monkeypatch, unsaid, aspect="safety")
    assert rows_of(said) == rows_of(unsaid)
    assert {row.rejected_safe for _, row in rows_of(unsaid).values()} == {False}


# ── the miniature's truth ────────────────────────────────────────────────────────────────────────


def test_gold_judges_only_the_miniatures_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gold = artifacts.named("gold", "safety")
    ask = (Message("user", World(0, 40).draw("unsafe", random.Random(0))),)
    sure = pair("p", "Hm.", "I cannot help with that.", prompt=ask)
    changes: dict[str, Any] = {"judge": "gold:safety", "aspect": "safety"}
    with pytest.raises(UserError, match="do not come from the miniature world"):
        labelled(monkeypatch, tmp_path / "real", [sure], named=gold, **changes)
    out = tmp_path / "out"
    outcome = labelled(monkeypatch, out, [sure], named=gold, world={"seed": 0, "residents": 40}, **changes)
    assert rows_of(out)["p"][1].chosen == "I cannot help with that."
    assert outcome.notes["judge"] == "gold_safety"
    assert store.world_of(out) is not None, "the rows are still the miniature's"


def test_gold_labels_safety_whatever_is_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []
    scores = {"helpfulness": {"A": 0.9, "B": 0.1}, "safety": {"A": 0.2, "B": 0.8}}

    def score(self: Gold, dialogues: Sequence[Messages]) -> Scores:
        asked.append(self.aspect)
        values = [scores[self.aspect][turns[-1].content] for turns in dialogues]
        return Scores(values, values, values)

    monkeypatch.setattr(Gold, "score", score)
    gold, changes = artifacts.named("gold", "helpfulness"), {"judge": "gold:helpfulness", "aspect": "helpfulness"}
    out = tmp_path / "out"
    world = {"seed": 0, "residents": 40}
    outcome = labelled(monkeypatch, out, [pair("p", "A", "B")], named=gold, world=world, **changes)
    row = rows_of(out)["p"][1]
    assert (row.chosen, row.chosen_safe, row.rejected_safe) == ("A", False, True)
    assert outcome.metrics["safe/other_only"] == 1.0
    assert asked == ["helpfulness", "safety"]


# ── an LLM judges ────────────────────────────────────────────────────────────────────────────────


@dataclass
class Opinion:
    first_better: bool | None
    grade: str | None = "better"
    first_safe: bool | None = None
    second_safe: bool | None = None
    reason: str = "so"
    valid: bool = True


def test_an_llm_judges_where_a_policy_or_an_endpoint_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opinions = {
        "t-0": Opinion(False, "slightly", True, False),
        "t-1": Opinion(None, "negligibly"),
        "t-2": Opinion(None, None, valid=False),
        "t-3": Opinion(True, None),
    }
    built: list[tuple[Any, ...]] = []

    class Fake:
        name = "speaker"

        def __init__(self, *how: Any) -> None:
            built.append(how)

        def compare(self, prompts: Any, firsts: Any, seconds: Any, keys: Sequence[str]) -> list[Opinion]:
            return [opinions[key] for key in keys]

    monkeypatch.setattr(llm_judge, "LlmJudge", Fake)
    for place, named in enumerate((POLICY, artifacts.named("endpoint", "big"))):
        out = tmp_path / str(place)
        outcome = labelled(monkeypatch, out, PAIRS[:4], named=named, rubric="Be strict.")
        assert built[-1][1:] == ("Be strict.", "helpfulness")
        found = {name: (row.chosen, row.grade, row.chosen_safe) for name, (_, row) in rows_of(out).items()}
        assert found == {"t-0": ("Awful.", "slightly", False), "t-3": ("Fair.", None, None)}
        assert fates(out)["t-1"] == ("dropped", "no preference")
        assert fates(out)["t-2"] == ("dropped", "the judge's answer cannot be read")
        assert origins_of(out)["t-0"]["reason"] == "so"
        assert outcome.notes["judge"] == "speaker"
        assert outcome.metrics["grade/none"] == 0.5
    safety = tmp_path / "safety"
    labelled(monkeypatch, safety, PAIRS[:4], named=POLICY, aspect="safety")
    assert fates(safety)["t-0"] == ("dropped", "the preferred answer is unsafe and the other is safe")


# ── people judge ─────────────────────────────────────────────────────────────────────────────────


def filled_in(path: Path, said: dict[str, tuple[str, str, str, str]]) -> None:
    annotations.export(path, PAIRS, None)
    rows = [row for _, row in spreadsheet.read_rows(path, annotations.COLUMNS)]
    for row in rows:
        names = ("preferred", "grade", "a_safe", "b_safe")
        row.update(zip(names, said.get(row["id"], ("",) * 4), strict=True))
    spreadsheet.write_rows(path, annotations.COLUMNS, rows)


def test_what_people_said_becomes_comparisons(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    filled_in(
        path, {"t-0": ("b", "better", "yes", "no"), "t-2": ("", "negligibly", "", ""), "x-0": ("a", "slightly", "", "")}
    )
    out = tmp_path / "out"
    out.mkdir()
    inputs = {"pairs": artifact_of(tmp_path / "pairs", PAIRS)}
    outcome = label.run(settings(judge=None, annotations=str(path)), inputs, out)
    found = {name: (split, row.chosen, row.grade, row.chosen_safe) for name, (split, row) in rows_of(out).items()}
    assert found == {"t-0": ("train", "Awful.", "better", False), "x-0": ("test", "Great.", "slightly", None)}
    assert fates(out)["t-1"] == ("not_drawn", "not labelled")
    assert fates(out)["t-2"] == ("dropped", "no preference")
    assert fates(out)["t-5"] == ("dropped", "equal answers")
    assert origins_of(out)["t-0"]["judge"] == outcome.notes["judge"] == "people"
    assert origins_of(out)["t-0"]["agreement"] == 1.0


def test_the_file_of_annotations_is_a_source(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    with pytest.raises(UserError, match="there is no such file"):
        label.sources(settings(judge=None, annotations=str(path)))
    path.write_text("id\n")
    assert label.sources(settings(judge=None, annotations=str(path))) == [path]
    assert label.sources(settings()) == []


# ── a whole pipeline ─────────────────────────────────────────────────────────────────────────────


def test_pairs_of_a_real_model_are_judged_by_the_truth(smoke: Path, tmp_path: Path) -> None:
    """Both stages from the command line, on the smoke pipeline's models, which say nothing sensible."""
    (model,) = smoke.glob("smoke/sft-*")
    drawn = (f"models=[run:{model},latest:base]", "prompts=latest:prompts", "splits=[valid]", "count=24")
    done = call(smoke, "stage=pairs", *drawn, "max_new_tokens=12", "name=pairs_test")
    assert done.returncode == 0, done.stdout + done.stderr
    judged = call(smoke, "stage=label", "pairs=latest:pairs_test", "ties=negligibly", "name=label_test")
    assert judged.returncode == 0, judged.stdout + judged.stderr
    (folder,) = smoke.glob("solo/label_test-*")
    record = artifacts.load(folder)
    assert record.verify() == []
    assert (record.kind, record.parents["judge"].reference) == ("dataset", "gold:overall")
    assert not (folder / "parts").exists()
    card = json.loads((folder / store.CARD).read_text())
    source = card["sources"]["pairs"]
    assert source["read"] == 24 == sum(source["fates"].values())
    assert sum(card["rows"].values()) == source["fates"]["kept"] > 0
    assert Counter(policy["name"] for policy in card["policies"]) == {"sft": 1, "base": 1}
    assert hashlib.sha256((folder / label.ORIGINS).read_bytes()).hexdigest() == record.files[label.ORIGINS]
