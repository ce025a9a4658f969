"""The stage that judges pairs: grades, safety, what is held out for ever, the ledger, and stopping half-way."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import drawing
import pyarrow.parquet as pq
import pytest
from drawing import POLICY, Judge, Speaker
from pairs_support import artifact_of, pair
from tests_support import call

from alignment import artifacts
from alignment.artifacts import Artifact, Outcome
from alignment.chat.types import Comparison, Message, Messages, messages, prompt_key
from alignment.data import annotations, spreadsheet, store
from alignment.data.draw import uniform
from alignment.data.pairs import Pair
from alignment.errors import UserError
from alignment.miniature.world import World
from alignment.scoring import llm_judge
from alignment.scoring.gold import Gold
from alignment.scoring.scorer import Scores
from alignment.stages import label

SCORER = Artifact(Path(), "reward", "reward", "helpful", "2" * 64)
SCORES = {"Great.": 0.9, "Good.": 0.6, "Fair.": 0.45, "Poor.": 0.4, "Awful.": 0.0}


def truth() -> Judge:
    return Judge(lambda turns: SCORES[turns[-1].content])


class Reporting(Judge):
    """Reports what it scores."""

    def score(self, dialogues: Sequence[Messages]) -> Any:
        scores = super().score(dialogues)
        return scores._replace(reported=scores.raw)


PAIRS = [
    pair("t-0", "Great.", "Awful."),
    pair("t-1", "Poor.", "Great."),
    pair("t-2", "Good.", "Poor."),
    pair("t-3", "Fair.", "Poor."),
    pair("t-4", "Good.", "Good."),
    pair("t-5", "Good.", "Good.", why="equal answers"),
    pair("v-0", "Awful.", "Good.", split="valid"),
    pair("x-0", "Great.", "Poor.", split="test"),
]


def settings(**changes: Any) -> label.Settings:
    plain = {"judge": "run:judge", "aspect": "helpfulness", "held_out__share": 0.0}
    return label.Settings.parse(drawing.values("label", **{**plain, **changes}))


def labelled(
    monkeypatch: pytest.MonkeyPatch,
    out: Path,
    some: Sequence[Pair] = PAIRS,
    *,
    judge: Judge | None = None,
    speaker: Speaker | None = None,
    named: Artifact | None = SCORER,
    world: dict[str, int] | None = None,
    **changes: Any,
) -> Outcome:
    out.mkdir(parents=True, exist_ok=True)
    if named is not None and named.kind != "gold":
        drawing.let_speak(monkeypatch, speaker or Speaker(lambda *_: ""), judge or Reporting(truth()._score))
    inputs = {"pairs": artifact_of(out.with_name(f"{out.name}-pairs"), some, world)}
    if named is not None:
        inputs["judge"] = named
    return label.run(settings(**changes), inputs, out)


def rows_of(out: Path) -> dict[str, tuple[str, Comparison]]:
    """Split and row by id."""
    found = {}
    for split in store.card(out)["rows"]:
        for row in store.stream(out, split):
            assert isinstance(row, Comparison)
            found[row.id] = (split, row)
    return found


def origins_of(out: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in pq.read_table(out / label.ORIGINS).to_pylist()}


def fates(out: Path) -> dict[str, tuple[str, str]]:
    return {entry.id: (entry.fate, entry.reason) for entry in store.entries(out)}


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


# ── held out for ever ────────────────────────────────────────────────────────────────────────────


def round_of(names: Sequence[str], split: str = "train") -> list[Pair]:
    return [pair(name, "Great.", "Poor.", split=split) for name in names]


def sides(out: Path) -> dict[str, str]:
    return {name: split for name, (split, _) in rows_of(out).items()}


def test_a_prompt_that_is_held_out_is_held_out_in_every_round(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = [f"n{number}" for number in range(400)]
    kept: dict[str, Any] = {"held_out__share": 0.1, "held_out__at_most": 1000}
    labelled(monkeypatch, tmp_path / "one", round_of(names[:200]), **kept)
    labelled(monkeypatch, tmp_path / "two", round_of(names[:99:-1]), **kept)
    one, two = sides(tmp_path / "one"), sides(tmp_path / "two")
    held = {name for name in one if one[name] == "test"}
    assert 8 <= len(held) <= 35
    assert {name: two[name] for name in names[100:200]} == {name: one[name] for name in names[100:200]}
    lowest = [name for name in names if uniform("held out", prompt_key(pair(name).prompt)) < 0.1]
    assert {name for name in two if two[name] == "test"} == set(lowest) & set(two)
    assert origins_of(tmp_path / "one")[min(held)]["split"] == "test"


def test_beyond_the_bound_what_is_held_out_is_not_trained_on_either(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = [f"n{number}" for number in range(200)]
    labelled(monkeypatch, tmp_path / "out", round_of(names), held_out__share=0.2, held_out__at_most=10)
    found = sides(tmp_path / "out")
    below = sorted(
        (name for name in names if uniform("held out", prompt_key(pair(name).prompt)) < 0.2),
        key=lambda name: uniform("held out", prompt_key(pair(name).prompt)),
    )
    assert len(below) > 20
    assert [found[name] for name in below] == ["test"] * 10 + ["valid"] * (len(below) - 10)
    assert {found[name] for name in names if name not in below} == {"train"}


def test_all_pairs_of_a_prompt_fall_on_one_side_and_test_stays_test(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ask = messages(("user", "The same?"))
    several = [pair(f"n{number}", "Great.", "Poor.", prompt=ask) for number in range(4)]
    tests = round_of([f"x{number}" for number in range(40)], "test")
    labelled(monkeypatch, tmp_path / "all", [*several, *tests], held_out__share=0.99, held_out__at_most=3)
    found = sides(tmp_path / "all")
    assert len({found[one.id] for one in several}) == 1
    assert {found[one.id] for one in tests} == {"test"}


# ── stopping, refusing ───────────────────────────────────────────────────────────────────────────


def test_stopped_anywhere_and_started_again_it_ends_with_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(label, "PAIRS_A_PART", 3)
    some = round_of([f"n{number}" for number in range(20)])
    labelled(monkeypatch, tmp_path / "whole", some, held_out__share=0.3)
    calls = 0

    class Tired(Reporting):
        """Stops for good at the third part, once."""

        def score(self, dialogues: Sequence[Messages]) -> Any:
            nonlocal calls
            calls += 1
            if calls == 3:
                raise KeyboardInterrupt
            return super().score(dialogues)

    out = tmp_path / "stopped"
    judges = [Tired(truth()._score), Tired(truth()._score)]
    with pytest.raises(KeyboardInterrupt):
        labelled(monkeypatch, out, some, judge=judges[0], held_out__share=0.3)
    assert not list(out.glob("*.parquet*"))
    labelled(monkeypatch, out, some, judge=judges[1], held_out__share=0.3)
    assert len(judges[0].judged) + len(judges[1].judged) == 2 * len(some), "nothing was judged twice"
    assert drawing.contents(out) == drawing.contents(tmp_path / "whole")


def test_what_interrupts_the_writing_leaves_no_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(label, "origin_of", broken)
    with pytest.raises(KeyboardInterrupt):
        labelled(monkeypatch, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.parquet*"))


def test_nothing_left_is_an_error_that_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no row is left\n.*no preference \(1\)"):
        labelled(monkeypatch, tmp_path / "out", [PAIRS[4]])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"judge": None}, "neither a judge nor annotations are named"),
        ({"annotations": "a.csv"}, "both named"),
        ({"judge": "gold:safety"}, "another aspect than aspect=helpfulness"),
        ({"grades__better": 0.7}, "do not fall"),
        ({"held_out__share": 1.0}, "held_out.share"),
        ({"ties": "keep"}, "ties"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        settings(**changes)


def test_only_pairs_are_judged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawing.let_speak(monkeypatch, Speaker(lambda *_: ""), truth())
    with pytest.raises(UserError, match="a answers is needed here"):
        label.run(settings(), {"pairs": replace(POLICY, path=tmp_path), "judge": SCORER}, tmp_path)


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
