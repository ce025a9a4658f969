"""The stage that puts two models side by side: whose answers win, by whom, in both orders, and never asked twice."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import drawing
import numpy as np
import pyarrow.parquet as pq
import pytest
from drawing import POLICY, Judge, Speaker
from labelling import Reporting
from local_server import LocalServer
from pairs_support import artifact_of, pair

from alignment import artifacts, parts
from alignment.artifacts import Artifact, Outcome, Parent
from alignment.chat.types import Messages, Prompt, messages, prompt_key
from alignment.data import annotations, seen, spreadsheet
from alignment.data.pairs import Pair
from alignment.errors import UserError
from alignment.miniature.world import World
from alignment.scoring import opening
from alignment.scoring.gold import Gold
from alignment.stages import side_by_side

CANDIDATE = replace(POLICY, step="new", fingerprint="a" * 64)
BASELINE = replace(POLICY, step="old", fingerprint="b" * 64)
SCORER = Artifact(Path(), "reward", "reward", "helpful", "2" * 64)
JUDGE = artifacts.named("endpoint", "judge")
COUNT = 30


def worth(turns: Messages) -> float:
    """What an answer says that it is worth: ``0.8 of p-3``."""
    return float(turns[-1].content.split()[0])


def answer(turns: Messages, key: str) -> str:
    """The candidate (/0) is better in two of three prompts, a tie in one of ten."""
    name, _, place = key.partition("/")
    number = int(name.partition("-")[2])
    if number % 10 == 9:
        return "0.5 for both"
    better = (number % 3 != 0) == place.startswith("0")
    return f"{'0.9' if better else '0.2'} of {name} {'and more of it' * (number % 4) if better else ''}"


@pytest.fixture
def prompts(tmp_path: Path) -> Artifact:
    rows = [
        Prompt(
            messages(*[("user", f"p-{number}?"), ("assistant", "Hm."), ("user", "And?")][: 1 if number % 2 else 3]),
            f"p-{number}",
            ("fact",),
            "hateful" if number % 5 == 0 else None,
        )
        for number in range(COUNT)
    ]
    return drawing.dataset(tmp_path / "prompts", "prompts", {"test": rows})


def settings(**changes: Any) -> side_by_side.Settings:
    plain = {"models": ["run:new", "run:old"], "prompts": "run:p", "judge": "run:judge"}
    return side_by_side.Settings.parse(drawing.values("side_by_side", **{**plain, **changes}))


def compared(
    monkeypatch: pytest.MonkeyPatch,
    prompts: Artifact,
    out: Path,
    *,
    judge: Artifact = SCORER,
    speaker: Speaker | None = None,
    scorer: Judge | None = None,
    **changes: Any,
) -> Outcome:
    out.mkdir(parents=True, exist_ok=True)
    drawing.let_speak(monkeypatch, speaker or Speaker(answer), scorer or Reporting(worth))
    inputs = {"models.0": CANDIDATE, "models.1": BASELINE, "prompts": prompts, "judge": judge}
    return side_by_side.run(settings(**changes), inputs, out)


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in pq.read_table(out / side_by_side.EXAMPLES).to_pylist()}


def results_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / side_by_side.RESULTS).read_text())
    return found


# ── a scorer judges ──────────────────────────────────────────────────────────────────────────────


def test_every_answer_is_seen_from_the_candidate(
    monkeypatch: pytest.MonkeyPatch, prompts: Artifact, tmp_path: Path
) -> None:
    outcome = compared(monkeypatch, prompts, tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert len(rows) == COUNT
    for number in range(COUNT):
        row = rows[f"p-{number}"]
        assert row["candidate"] == answer((), f"p-{number}/0"), "whatever side it stood on"
        expected = "tie" if number % 10 == 9 else "win" if number % 3 else "loss"
        assert (row["result"], row["why"]) == (expected, "equal answers" if expected == "tie" else "")
        # A gap of 0.7 is significant: 1.5 for the candidate, or against it.
        assert row["score"] == {"win": 1.5, "tie": 0.0, "loss": -1.5}[expected]
        if expected != "tie":
            assert (row["candidate_score"], row["baseline_score"]) == ((0.9, 0.2) if expected == "win" else (0.2, 0.9))
    # Of 30, three end in 9 (9 and 19 and 29) and are ties; of the other 27 the nine multiples of 3 but for 9 are lost.
    whole = results_of(tmp_path / "out")["rates"]["all"]["all"]
    assert (whole["wins"], whole["ties"], whole["losses"]) == (18, 3, 9)
    assert outcome.kind == "evaluation"
    assert outcome.headline == "win_rate"
    assert outcome.metrics["win_rate"] == pytest.approx(19.5 / 30)
    assert outcome.metrics["win_rate_without_ties"] == pytest.approx(18 / 27)
    assert (outcome.metrics["pairs"], outcome.metrics["judged"], outcome.metrics["equal_answers"]) == (30, 27, 3)


def test_slices_and_what_else_is_told(monkeypatch: pytest.MonkeyPatch, prompts: Artifact, tmp_path: Path) -> None:
    compared(monkeypatch, prompts, tmp_path / "out")
    found = results_of(tmp_path / "out")
    assert found["side_by_side"] == {"candidate": "new", "baseline": "old"}
    assert {name: one["pairs"] for name, one in found["rates"]["turns"].items()} == {"1": 15, "2": 15}
    assert {name: one["pairs"] for name, one in found["rates"]["category"].items()} == {"hateful": 6}
    assert sum(one["pairs"] for one in found["rates"]["prompt_length"].values()) == COUNT
    for name in ("orders", "raters", "ratings", "gold", "safety"):
        assert found[name] is None, "a scorer of helpfulness outside the miniature says nothing of it"
    assert (found["length_controlled"]["low"], found["length_controlled"]["high"]) != (0, 1)


def test_negligible_preferences_are_ties_where_that_is_said(
    monkeypatch: pytest.MonkeyPatch, prompts: Artifact, tmp_path: Path
) -> None:
    def close(turns: Messages) -> float:
        return worth(turns) / 10

    compared(monkeypatch, prompts, tmp_path / "fine", scorer=Reporting(close))
    compared(monkeypatch, prompts, tmp_path / "coarse", scorer=Reporting(close), ties="negligibly")
    fine, coarse = (results_of(tmp_path / name)["rates"]["all"]["all"] for name in ("fine", "coarse"))
    assert (fine["wins"], fine["ties"], fine["losses"]) == (18, 3, 9)
    assert (coarse["wins"], coarse["ties"], coarse["losses"]) == (0, 30, 0)
    assert {row["score"] for row in rows_of(tmp_path / "fine").values()} == {0.25, 0.0, -0.25}
    assert {row["score"] for row in rows_of(tmp_path / "coarse").values()} == {0.0}


def test_an_empty_answer_loses_without_being_shown_to_anybody(
    monkeypatch: pytest.MonkeyPatch, prompts: Artifact, tmp_path: Path
) -> None:
    def silent(turns: Messages, key: str) -> str:
        return " " if key.startswith(("p-1/0", "p-2/")) else answer(turns, key)

    scorer = Reporting(worth)
    outcome = compared(monkeypatch, prompts, tmp_path / "out", speaker=Speaker(silent), scorer=scorer)
    rows = rows_of(tmp_path / "out")
    assert (rows["p-1"]["result"], rows["p-1"]["why"]) == ("loss", "empty answer")
    assert rows["p-2"]["result"] == "tie", "both are empty"
    assert all(turns[-1].content.strip() for turns in scorer.judged)
    assert (outcome.metrics["candidate_empty"], outcome.metrics["baseline_empty"]) == (2, 1)


def test_the_same_twice_gives_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, prompts: Artifact, tmp_path: Path
) -> None:
    compared(monkeypatch, prompts, tmp_path / "one")
    monkeypatch.setattr(side_by_side, "PROMPTS_A_PART", 7)
    monkeypatch.setattr(side_by_side, "PAIRS_A_PART", 3)
    compared(monkeypatch, prompts, tmp_path / "two")
    one, two = drawing.contents(tmp_path / "one"), drawing.contents(tmp_path / "two")
    assert one == two, "whatever the size of a part"
    assert set(one) == {"examples.parquet", "results.json", "llm_comparator.json", "side_by_side.html"}


# ── an LLM judges ────────────────────────────────────────────────────────────────────────────────


def verdict(question: str) -> str:
    """The worthier of A and B, by how much; sides with A where that is all it knows."""
    a, b = (float(question.partition(f"[answer {side} ")[2].partition("]\n")[2].split()[0]) for side in "AB")
    told = "unsure" if a == b else f"{'A' if a > b else 'B'} significantly better"
    return f"REASON: {max(a, b)} beats {min(a, b)}\nA SAFE: yes\nB SAFE: {'no' if b < 0.3 else 'yes'}\nVERDICT: {told}"


class Models:
    """Answers as the models do, and judges where a question has the form of one."""

    def __init__(self, judge: Any = verdict) -> None:
        self.judge = judge

    def __call__(self, turns: Messages, key: str) -> str:
        return self.judge(turns[0].content) if "[answer A" in turns[0].content else answer(turns, key)


def test_an_llm_is_asked_in_both_orders_and_its_reasons_are_kept(
    monkeypatch: pytest.MonkeyPatch, prompts: Artifact, tmp_path: Path
) -> None:
    speaker = Speaker(Models())
    outcome = compared(monkeypatch, prompts, tmp_path / "out", judge=JUDGE, speaker=speaker)
    rows, found = rows_of(tmp_path / "out"), results_of(tmp_path / "out")
    assert outcome.metrics["win_rate"] == pytest.approx(19.5 / 30)
    assert sum("[answer A" in turns[0].content for _, turns in speaker.asked) == 2 * 27
    row = rows["p-1"]
    assert [said["score"] for said in row["voices"]] == [1.5, 1.5], "in both orders, as seen from the candidate"
    assert sorted(said["turned"] for said in row["voices"]) == [False, True]
    assert row["reason"] == "0.9 beats 0.2\n0.9 beats 0.2"
    # It finds a worthless answer unsafe where that stands second, so never in both orders.
    assert (row["candidate_safe"], row["baseline_safe"]) == (True, None)
    assert found["orders"]["agree"]["estimate"] == 1.0
    assert found["orders"]["ac1"]["coefficient"] == 1.0
    assert found["orders"]["first"]["estimate"] == 0.5
    assert found["judge"] == "speaker"


def test_a_judge_that_takes_the_first_place_is_found_out(
    monkeypatch: pytest.MonkeyPatch, prompts: Artifact, tmp_path: Path
) -> None:
    def first(_: str) -> str:
        return "REASON: it is first\nA SAFE: yes\nB SAFE: yes\nVERDICT: A better"

    compared(monkeypatch, prompts, tmp_path / "out", judge=JUDGE, speaker=Speaker(Models(first)))
    found = results_of(tmp_path / "out")
    assert found["rates"]["all"]["all"]["ties"] == COUNT
    assert found["rates"]["all"]["all"]["without_ties"] is None
    assert found["orders"]["agree"]["estimate"] == 0.0
    assert found["orders"]["first"]["estimate"] == 1.0
    assert found["safety"]["difference"]["estimate"] == 0.0
    # Each pair has one win and one loss: observed 0, π = ½, 0, ½, chance (½·½ + ½·½) / 2 = ¼; (0 − ¼) / ¾.
    assert found["orders"]["ac1"]["coefficient"] == pytest.approx(-1 / 3)


def test_what_is_outside_the_form_is_asked_again_then_counted_and_shown(
    monkeypatch: pytest.MonkeyPatch, prompts: Artifact, tmp_path: Path
) -> None:
    asked = Counter[str]()

    def chatty(question: str) -> str:
        asked[question] += 1
        if "p-4 " in question or ("p-7 " in question and asked[question] == 1):
            return "I like both of them!"
        return verdict(question)

    outcome = compared(monkeypatch, prompts, tmp_path / "out", judge=JUDGE, speaker=Speaker(Models(chatty)))
    rows = rows_of(tmp_path / "out")
    assert rows["p-7"]["result"] == "win", "the second time it kept to the form"
    assert (rows["p-4"]["result"], rows["p-4"]["score"], rows["p-4"]["grade"]) == ("invalid", None, None)
    assert rows["p-4"]["reason"] == "outside the form: I like both of them!"
    assert [said["score"] for said in rows["p-4"]["voices"]] == [None, None]
    assert outcome.metrics["invalid"] == 1
    assert results_of(tmp_path / "out")["rates"]["all"]["all"]["pairs"] == 29, "it counts as nothing"
    assert all(count == 2 for question, count in asked.items() if "p-4 " in question)
    assert "I like both" in (tmp_path / "out" / side_by_side.PAGE).read_text()


def test_a_judge_that_nobody_understands_is_an_error_and_its_answers_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    speaker = Speaker(Models(lambda _: "Nice weather."))
    one = drawing.dataset(tmp_path / "one", "prompts", {"test": [Prompt(messages(("user", "p-1?")), "p-1")]})
    with pytest.raises(UserError, match="none of its answers could be read"):
        compared(monkeypatch, one, tmp_path / "out", judge=JUDGE, speaker=speaker)
    assert (tmp_path / "out" / parts.FOLDER / "judged" / "000000.jsonl").is_file()
    assert not (tmp_path / "out" / side_by_side.RESULTS).exists()


def test_a_killed_run_pays_for_no_answer_twice(
    monkeypatch: pytest.MonkeyPatch, prompts: Artifact, tmp_path: Path
) -> None:
    monkeypatch.setattr(side_by_side, "PROMPTS_A_PART", 8)
    monkeypatch.setattr(side_by_side, "PAIRS_A_PART", 4)
    write = parts.write

    def answered(body: dict[str, Any]) -> str:
        told = body["messages"]
        # The candidate is asked at a temperature of 1.0, the baseline at 0.9, the judge at its own.
        if "[answer A" in told[0]["content"]:
            return verdict(told[0]["content"])
        return answer((), f"{told[0]['content'].rstrip('?')}/{0 if body['temperature'] == 1.0 else 1}")

    def run(out: Path, patience: int) -> None:
        left = [patience]

        def dying(path: Path, data: bytes) -> None:
            if not left[0]:
                raise KeyboardInterrupt  # After the answers were paid for, and before their part was written.
            left[0] -= 1
            write(path, data)

        monkeypatch.setattr(parts, "write", dying)
        inputs: dict[str, Artifact] = {
            "models.0": artifacts.named("endpoint", "new"),
            "models.1": artifacts.named("endpoint", "old"),
            "prompts": prompts,
            "judge": JUDGE,
        }
        out.mkdir(exist_ok=True)
        side_by_side.run(settings(temperatures=[1.0, 0.9]), inputs, out)

    with LocalServer(answered) as server:
        server.name_it(monkeypatch)
        run(tmp_path / "whole", 99)
        whole = len(server.requests)
        assert whole == 2 * COUNT + 2 * 27
        server.requests.clear()
        for patience in (2, 3, 4, 0, 2):
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / "stopped", patience)
        run(tmp_path / "stopped", 99)
        assert len(server.requests) == whole
    assert drawing.contents(tmp_path / "whole") == drawing.contents(tmp_path / "stopped")


# ── the truth ────────────────────────────────────────────────────────────────────────────────────


def test_in_the_miniature_the_judge_is_compared_with_the_truth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = World(0, 40)
    draw = random.Random(0)
    rows = [Prompt(messages(("user", world.draw("unsafe", draw))), f"u-{number}") for number in range(12)]
    prompts = drawing.dataset(tmp_path / "prompts", "prompts", {"test": rows}, miniature=True)
    said = ("I cannot help with that.", "Hm.")

    def answers(turns: Messages, key: str) -> str:
        number, place = int(key.partition("/")[0][2:]), int(key.partition("/")[2][0])
        return f"{said[place if number % 4 else 1 - place]}{'' if number != 5 else ' Well.'}"

    likes_hm = Reporting(lambda turns: float("Hm." in turns[-1].content) if "Well" not in turns[-1].content else 0.5)
    compared(monkeypatch, prompts, tmp_path / "out", speaker=Speaker(answers), scorer=likes_hm, aspect="overall")
    found, rows_ = results_of(tmp_path / "out")["gold"], rows_of(tmp_path / "out")
    gold = Gold(world, "overall")
    truths = []
    for row in rows:
        pair_of = [
            (*row.messages, messages(("assistant", rows_[row.id][side]))[0]) for side in ("candidate", "baseline")
        ]
        candidate, baseline = gold.score(pair_of).raw
        assert (rows_[row.id]["candidate_gold"], rows_[row.id]["baseline_gold"]) == (candidate, baseline)
        truths.append(np.sign(candidate - baseline))
    judged = [{"win": 1, "tie": 0, "loss": -1}[rows_[row.id]["result"]] for row in rows]
    clear = [(a, b) for a, b in zip(judged, truths, strict=True) if b]
    assert clear, "the truth has preferences"
    assert found["accuracy"]["estimate"] == pytest.approx(np.mean([0.5 if a == 0 else a == b for a, b in clear]))
    assert found["win_rate"]["estimate"] == pytest.approx(np.mean([(1 + b) / 2 for b in truths]))
    table = Counter(zip(judged, truths, strict=True))
    assert found["table"]["win"]["loss"] == table[1, -1]
    assert sum(sum(line.values()) for line in found["table"].values()) == 12


def test_gold_itself_is_not_compared_with_gold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = World(0, 40)
    rows = [Prompt(messages(("user", world.draw("unsafe", random.Random(1)))), "u")]
    prompts = drawing.dataset(tmp_path / "prompts", "prompts", {"test": rows}, miniature=True)
    monkeypatch.setattr(opening, "open_respondent", lambda *_, **__: Speaker(lambda _, key: f"I cannot. {key}"))
    drawing.let_chat(monkeypatch)
    inputs = {
        "models.0": CANDIDATE,
        "models.1": BASELINE,
        "prompts": prompts,
        "judge": artifacts.named("gold", "overall"),
    }
    out = tmp_path / "out"
    out.mkdir()
    outcome = side_by_side.run(settings(judge="gold:overall"), inputs, out)
    assert results_of(out)["gold"] is None
    assert outcome.notes["judge"] == "gold"
    assert results_of(out)["safety"] is not None, "the truth says which answers are safe"


# ── people judge pairs that were drawn before ────────────────────────────────────────────────────


def many(count: int = 12) -> list[Pair]:
    """Pairs of which the first model, ``old``, stands on either side."""
    found = []
    for number in range(count):
        models = {"model_a": "old", "model_b": "new"} if number % 2 else {"model_a": "new", "model_b": "old"}
        found.append(pair(f"p-{number}", f"A {number}.", f"B {number}.", split="test", **models))
    return found


def judged_by(path: Path, pairs: Sequence[Pair], said: dict[str, dict[str, str]]) -> str:
    annotations.export(path, pairs, None)
    rows = [row for _, row in spreadsheet.read_rows(path, annotations.COLUMNS)]
    spreadsheet.write_rows(
        path,
        (*annotations.COLUMNS, *annotations.RATINGS),
        [{**row, "a_rating": "", "b_rating": "", **said.get(row["id"], {})} for row in rows],
    )
    return str(path)


def by_people(tmp_path: Path, pairs: Sequence[Pair], files: list[str], **changes: Any) -> Outcome:
    plain = {"models": None, "prompts": None, "pairs": "run:pairs", "judge": None, "annotations": files}
    out = tmp_path / "out"
    out.mkdir()
    inputs = {"pairs": artifact_of(tmp_path / "pairs", pairs)}
    return side_by_side.run(settings(**{**plain, **changes}), inputs, out)


def test_three_peoples_files_give_a_majority_and_its_agreement(tmp_path: Path) -> None:
    pairs = many()
    better = {name: {"preferred": name, "grade": "better"} for name in "ab"}
    votes = {
        "ann": {one.id: better["a"] for one in pairs},
        "bob": {one.id: better["a"] for one in pairs[:8]},
        "cid": {one.id: better["b"] for one in pairs[:8]} | {"p-8": better["b"]},
    }
    files = [judged_by(tmp_path / f"{who}.csv", pairs, said) for who, said in votes.items()]
    outcome = by_people(tmp_path, pairs, files)
    rows, found = rows_of(tmp_path / "out"), results_of(tmp_path / "out")
    # `a` wins by 2 : 1 in the first eight, shares the ninth, and is all that is said of the last three. The candidate
    # is `old`, the first of the two models, which stands as b in even pairs.
    expected = ["win" if number % 2 else "loss" for number in range(12)]
    expected[8] = "tie"
    assert [rows[f"p-{number}"]["result"] for number in range(12)] == expected
    assert [said["who"] for said in rows["p-0"]["voices"]] == ["ann", "bob", "cid"]
    assert [said["score"] for said in rows["p-1"]["voices"]] == [1.0, 1.0, -1.0]
    raters = found["raters"]
    assert (raters["raters"], raters["votes"], raters["several"]) == (3, 29, 9)
    # Eight pairs with 1 of 3 pairs of raters equal and one with none: 8/27.
    assert raters["ac1"]["observed"] == pytest.approx(8 / 27)
    assert raters["ac1"]["rated"] == 9
    assert raters["ac2_ordinal"]["observed"] > raters["ac1"]["observed"]
    assert outcome.metrics["raters_ac1"] == raters["ac1"]["coefficient"]
    assert found["judge"] == "people"
    assert found["orders"] is None


def test_ratings_from_one_to_five(tmp_path: Path) -> None:
    pairs = many(6)
    rated = [("5", "1"), ("4", "2"), ("3", "3")]
    files = [
        judged_by(
            tmp_path / f"{place}.csv", pairs, {one.id: {"a_rating": a, "b_rating": b} for one in pairs[: 6 - place]}
        )
        for place, (a, b) in enumerate(rated)
    ]
    by_people(tmp_path, pairs, files)
    rows, ratings = rows_of(tmp_path / "out"), results_of(tmp_path / "out")["ratings"]
    # In odd pairs the candidate `old` stands as a: 5, 4, 3; in even ones as b: 1, 2, 3.
    assert [said["candidate_rating"] for said in rows["p-1"]["voices"]] == [5, 4, 3]
    assert [said["candidate_rating"] for said in rows["p-0"]["voices"]] == [1, 2, 3]
    assert rows["p-1"]["result"] == "win", "rated higher by two of three"
    # Means by pair: even 2 (p-0, p-2: all three; p-4: 1.5 of two), odd 4 (p-1, p-3), p-5 5 of one rater.
    assert ratings["candidate"]["mean"]["estimate"] == pytest.approx((2 + 4 + 2 + 4 + 1.5 + 5) / 6)
    # Violations by majority: the candidate's in p-0, p-2, p-4; the baseline's in p-1, p-3 and p-5.
    assert ratings["candidate"]["violations"]["estimate"] == pytest.approx(3 / 6)
    assert ratings["baseline"]["violations"]["estimate"] == pytest.approx(3 / 6)
    assert ratings["difference"]["estimate"] == pytest.approx((-2 + 2 - 2 + 2 - 3 + 4) / 6)
    # Of ten answers that several rated, four have 1 of 3 pairs equal as violations (1, 2, 3), and in six all are equal.
    assert ratings["ac1"]["observed"] == pytest.approx((4 / 3 + 6) / 10)
    assert ratings["ac2_quadratic"] is not None
    assert results_of(tmp_path / "out")["raters"]["ac2_ordinal"] is None, "nobody said how much better"


def test_what_nobody_has_judged_counts_nowhere(tmp_path: Path) -> None:
    pairs = [*many(4), pair("again", "A.", "B.", split="test", why="the same prompt again")]
    file = judged_by(tmp_path / "ann.csv", pairs, {"p-1": {"preferred": "a", "grade": "better"}})
    outcome = by_people(tmp_path, pairs, [file])
    rows, counts = rows_of(tmp_path / "out"), results_of(tmp_path / "out")["counts"]
    assert [rows[f"p-{number}"]["result"] for number in range(4)] == ["not judged", "win", "not judged", "not judged"]
    assert rows["again"]["result"] == "again"
    assert (counts["pairs"], counts["judged"], counts["not judged"]) == (4, 1, 3)
    assert outcome.metrics["win_rate"] == 1.0


def test_pairs_of_other_splits_are_left_out(tmp_path: Path) -> None:
    pairs = [*many(2), pair("t", "A.", "B.", split="train")]
    file = judged_by(tmp_path / "ann.csv", pairs, {one.id: {"preferred": "a", "grade": "better"} for one in pairs[:2]})
    by_people(tmp_path, pairs, [file])
    assert set(rows_of(tmp_path / "out")) == {"p-0", "p-1"}
    (tmp_path / "again").mkdir()
    with pytest.raises(UserError, match=r"has no pair in valid[\s\S]*test \(2\), train \(1\)"):
        by_people(tmp_path / "again", pairs, [file], splits=["valid"])


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pairs": "run:x"}, "and not both"),
        ({"models": None}, "two models with prompts are wanted"),
        ({"models": ["mini:sft"]}, "models"),
        ({"judge": None}, "neither a judge nor annotations"),
        ({"annotations": ["a.csv"]}, "a judge and annotations are both"),
        ({"annotations": ["a.csv"], "judge": None}, "of which pairs"),
        ({"judge": "gold:truth"}, "there is no such truth"),
        ({"judge": "gold:safety"}, "judges another aspect"),
        ({"splits": ["test", "test"]}, "names one twice"),
        ({"temperatures": [1.0, 7.0]}, "7.0 is not between"),
        ({"grades__better": 0.1}, "do not fall"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        settings(**changes)


def test_annotations_that_are_not_there_are_named() -> None:
    named = settings(models=None, prompts=None, pairs="run:p", judge=None, annotations=["nowhere.csv"])
    with pytest.raises(UserError, match=r"nowhere\.csv: there is no such file"):
        side_by_side.sources(named)


@pytest.mark.parametrize("who", ["models.1", "judge"])
def test_nobody_may_have_seen_the_prompts(
    monkeypatch: pytest.MonkeyPatch, prompts: Artifact, tmp_path: Path, who: str
) -> None:
    folder = tmp_path / "taught"
    folder.mkdir()
    seen.write(folder, [prompt_key(messages(("user", "p-3?")))], [])
    speaker = Speaker(answer)
    drawing.let_speak(monkeypatch, speaker, Reporting(worth))
    inputs = {"models.0": CANDIDATE, "models.1": BASELINE, "prompts": prompts, "judge": SCORER}
    inputs[who] = replace(inputs[who], path=folder)
    with pytest.raises(UserError, match="has been trained on 1 of the 30 prompts"):
        side_by_side.run(settings(), inputs, tmp_path)
    assert not speaker.asked, "refused before anybody was asked"


@pytest.mark.parametrize("who", ["models.1", "judge"])
def test_models_and_judges_without_a_chat_format_are_refused(
    monkeypatch: pytest.MonkeyPatch, prompts: Artifact, tmp_path: Path, who: str
) -> None:
    speaker = Speaker(answer)
    monkeypatch.setattr(opening, "open_respondent", lambda *_, **__: speaker)
    inputs = {"models.0": CANDIDATE, "models.1": BASELINE, "prompts": prompts, "judge": CANDIDATE}
    for name, artifact in inputs.items():
        if name != "prompts":
            inputs[name] = replace(artifact, path=tmp_path / name)
            inputs[name].path.mkdir()
            (inputs[name].path / "tokenizer_config.json").write_text('{"chat_template": "x"}' if name != who else "{}")
    with pytest.raises(UserError, match=f"^{who.partition('.')[0]}={inputs[who].step}: has no chat template"):
        side_by_side.run(settings(), inputs, tmp_path / "out")
    assert not speaker.asked, "refused before anybody was asked"


def test_nor_may_the_models_of_pairs_that_were_drawn_before(tmp_path: Path) -> None:
    folder = tmp_path / "taught"
    folder.mkdir()
    seen.write(folder, [prompt_key(many()[2].prompt)], [])
    drawn = replace(
        artifact_of(tmp_path / "pairs", many()), parents={"models.0": Parent("run:taught", "9" * 64, str(folder))}
    )
    named = settings(models=None, prompts=None, pairs="run:p", judge="run:judge")
    with pytest.raises(UserError, match="has been trained on 1 of the 12 prompts"):
        side_by_side.run(named, {"pairs": drawn, "judge": SCORER}, tmp_path)


def test_the_truth_of_rows_from_elsewhere_is_refused_before_anything_is_drawn(
    monkeypatch: pytest.MonkeyPatch, prompts: Artifact, tmp_path: Path
) -> None:
    speaker = Speaker(answer)
    monkeypatch.setattr(opening, "open_respondent", lambda *_, **__: speaker)
    drawing.let_chat(monkeypatch)
    inputs = {
        "models.0": CANDIDATE,
        "models.1": BASELINE,
        "prompts": prompts,
        "judge": artifacts.named("gold", "overall"),
    }
    with pytest.raises(UserError, match="do not come from the miniature world"):
        side_by_side.run(settings(judge="gold:overall"), inputs, tmp_path)
    assert not speaker.asked
