"""The stage that measures judges: who is asked what, what is refused, what is written, and stopping half-way."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import drawing
import pyarrow.parquet as pq
import pytest
from judged_support import comparison, comparisons

from alignment import artifacts
from alignment.artifacts import Artifact, Outcome
from alignment.chat.types import Comparison, Messages, Prompt, messages, prompt_key
from alignment.data import seen, store
from alignment.data.rows import Row
from alignment.errors import UserError
from alignment.evals import fitting, judging
from alignment.miniature.world import World
from alignment.scoring import llm_judge, opening
from alignment.scoring.scorer import Scores, sigmoid
from alignment.stages import measure

REWARD = Artifact(Path("/nowhere"), "reward", "reward", "helpful", "2" * 64)
SAFETY = replace(REWARD, step="safety", fingerprint="3" * 64)
ROWS = comparisons(60)
Score = Callable[[Messages], float]


class Scorer:
    """Scores by a function; stops for good after ``patience`` calls."""

    def __init__(self, score: Score, *, absolute: bool = False, patience: int | None = None) -> None:
        self.name, self.absolute, self._score, self.patience = "scorer", absolute, score, patience
        self.judged: list[Messages] = []

    def score(self, dialogues: Sequence[Messages]) -> Scores:
        if self.patience == 0:
            raise KeyboardInterrupt
        self.patience = None if self.patience is None else self.patience - 1
        self.judged += dialogues
        raw = [self._score(turns) for turns in dialogues]
        return Scores(raw, [value - 100 for value in raw], [sigmoid(value) for value in raw])


def longer(turns: Messages) -> float:
    return len(turns[-1].content) / 10


def shorter(turns: Messages) -> float:
    return -longer(turns)


@dataclass(frozen=True)
class Reader:
    """Counts the characters of the longer answer."""

    context: int
    key: str = "characters"

    def tokens(self, pair: Comparison) -> int:
        return max(len(pair.chosen), len(pair.rejected))


def settings(**changes: Any) -> measure.Settings:
    plain = {"models": ["run:helpful"], "comparisons": ["run:pairs"]}
    return measure.Settings.parse(drawing.values("measure", **{**plain, **changes}))


def dataset(folder: Path, rows: Sequence[Row] = ROWS, name: str = "pairs", split: Any = "test") -> Artifact:
    plain = drawing.dataset(folder, "comparisons", {split: rows})
    return replace(plain, step=name, fingerprint=hashlib.sha256(str(folder).encode()).hexdigest())


def measured(
    monkeypatch: pytest.MonkeyPatch,
    out: Path,
    scorers: dict[str, Scorer],
    *,
    models: Sequence[Artifact] = (REWARD,),
    data: Sequence[Artifact] = (),
    opened: list[str] | None = None,
    contexts: Mapping[str, int] | None = None,
    **changes: Any,
) -> Outcome:
    """Run the stage; ``scorers`` by the step's name of the model that opens them, which is added to ``opened``.

    ``contexts`` by the step's name, in characters of an answer, of the models that do not see everything.
    """
    out.mkdir(parents=True, exist_ok=True)

    def open_scorer(artifact: Artifact, *_: Any, **__: Any) -> Scorer:
        if opened is not None:
            opened.append(artifact.step)
        return scorers[artifact.step]

    monkeypatch.setattr(opening, "open_scorer", open_scorer)
    readers = {step: Reader(context) for step, context in (contexts or {}).items()}
    monkeypatch.setattr(fitting.Reader, "of", lambda judge, _: readers.get(judge.step))
    data = data or [dataset(out.with_name(f"{out.name}-data"))]
    inputs = {f"models.{place}": model for place, model in enumerate(models)}
    inputs |= {f"comparisons.{place}": one for place, one in enumerate(data)}
    named = {"models": ["run:x"] * len(models), "comparisons": ["run:y"] * len(data)}
    return measure.run(settings(**{**named, **changes}), inputs, out)


def results_of(out: Path) -> dict[str, Any]:
    return json.loads((out / measure.RESULTS).read_text())


def rows_of(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / measure.PAIRS).to_pylist()


def share_of_longer(rows: Sequence[Comparison]) -> float:
    """How often the longer answer is the chosen one, a tie counting half."""
    gaps = [len(row.chosen) - len(row.rejected) for row in rows]
    return sum(1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in gaps) / len(gaps)


# ── what is written ──────────────────────────────────────────────────────────────────────────────


def test_every_judge_is_measured_on_every_dataset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = [dataset(tmp_path / "a", ROWS, "help"), dataset(tmp_path / "b", ROWS[:20], "safe")]
    scorers = {"helpful": Scorer(longer), "safety": Scorer(shorter, absolute=True)}
    out = tmp_path / "out"
    opened: list[str] = []
    outcome = measured(monkeypatch, out, scorers, models=[REWARD, SAFETY], data=data, opened=opened)
    results = results_of(out)
    assert results["cross"]["judges"] == ["helpful", "safety"]
    share = [share_of_longer(ROWS), share_of_longer(ROWS[:20])]
    found = [[one["estimate"] for one in row] for row in results["cross"]["accuracy"]]
    assert found == [pytest.approx(share), pytest.approx([1 - share[0], 1 - share[1]])]
    assert (outcome.kind, outcome.headline) == ("evaluation", "helpful/help/accuracy")
    assert outcome.metrics["helpful/safe/accuracy"] == pytest.approx(share[1])
    assert outcome.notes["pairs"] == {"help": 60, "safe": 20}
    assert results["datasets"]["help"]["longer"]["all"]["all"]["estimate"] == pytest.approx(share[0])
    assert results["judges"]["helpful"]["no_thresholds"]
    assert [at["threshold"] for at in results["measures"]["safety"]["help"]["thresholds"]["at"]] == [0.5, 0.15]
    assert "<html" in (out / measure.PLOTS).read_text()
    assert len(scorers["helpful"].judged) == 2 * 80, "each answer once"
    assert opened == ["helpful", "safety"], "a model is opened once for all datasets"


def test_every_pair_has_its_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = [
        comparison("a", "four", "sixsix", turns=2, chosen_safe=True, rejected_safe=False),
        comparison("b", "sixsix", "four", grade=None),
    ]
    out = tmp_path / "out"
    measured(monkeypatch, out, {"helpful": Scorer(longer)}, data=[dataset(tmp_path / "d", rows)])
    first, second = rows_of(out)
    key = first.pop("prompt")
    assert len(key) == 16
    assert first == {
        "judge": "helpful",
        "dataset": "pairs",
        "id": "a",
        "grade": "better",
        "source": "hand",
        "turns": 2,
        "chosen_length": 4,
        "chosen_safe": True,
        "chosen_raw": 0.4,
        "chosen_probability": sigmoid(0.4),
        "rejected_length": 6,
        "rejected_safe": False,
        "rejected_raw": 0.6,
        "rejected_probability": sigmoid(0.6),
        "disagreement": None,
        "right": 0.0,
    }
    assert (second["grade"], second["chosen_safe"], second["right"]) == ("not graded", None, 1.0)


def test_seeds_and_ensembles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    models = [replace(REWARD, step=str(number), fingerprint=str(number) * 64) for number in range(4)]
    scorers = {str(number): Scorer(shorter if number == 3 else longer) for number in range(4)}
    scorers["0"] = Scorer(lambda turns: 10 * longer(turns))
    out = tmp_path / "out"
    names = ["one", "two", "one", "two"]
    measured(monkeypatch, out, scorers, models=models, names=names, ensembles=[[0, 3], [1, 2]])
    results, share = results_of(out), share_of_longer(ROWS)
    assert [*results["judges"]] == ["one#1", "two#1", "one#2", "two#2", "ensemble#1", "ensemble#2"]
    assert results["judges"]["ensemble#1"]["members"] == ["one#1", "two#2"]
    table = results["arms"]["pairs"]
    assert table["two"]["seeds"] == pytest.approx([share, 1 - share])
    assert table["two"]["difference"]["seeds"] == pytest.approx([0, 1 - 2 * share])
    assert [*table] == ["one", "two", "ensemble"]
    together = next(row for row in rows_of(out) if row["judge"] == "ensemble#1" and row["chosen_length"] == 40)
    # The first gives 40, the fourth −4.
    assert together["chosen_raw"] == pytest.approx(18)
    gap = (together["chosen_length"] - together["rejected_length"]) / 10
    assert together["disagreement"] == pytest.approx(abs(11 * gap / 2))
    # What is 10 times as loud decides.
    assert results["measures"]["ensemble#1"]["pairs"]["accuracy"]["all"]["all"]["estimate"] == pytest.approx(share)
    assert results["measures"]["one#1"]["pairs"]["disagreement"] is None


def test_judges_of_one_name_are_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    again = replace(REWARD, fingerprint="4" * 64)
    out = tmp_path / "out"
    measured(monkeypatch, out, {"helpful": Scorer(longer)}, models=[REWARD, again])
    assert [*results_of(out)["judges"]] == ["helpful-2222", "helpful-4444"]
    assert len(results_of(out)["arms"]["pairs"]) == 2, "without names, nothing is a seed of anything"


def test_the_first_pairs_of_the_split_are_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "out"
    measured(monkeypatch, out, {"helpful": Scorer(longer)}, count=7)
    assert [row["id"] for row in rows_of(out)] == [row.id for row in ROWS[:7]]


# ── who judges ───────────────────────────────────────────────────────────────────────────────────


def test_gold_judges_each_dataset_by_its_own_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ask = World(0, 40).draw("unsafe", random.Random(0))
    row = replace(comparison("g", "I cannot help with that.", "Hm."), prompt=messages(("user", ask)))
    data = replace(drawing.dataset(tmp_path / "d", "comparisons", {"test": [row]}, miniature=True), step="mini")
    gold = artifacts.named("gold", "safety")
    out = tmp_path / "out"
    out.mkdir()
    inputs = {"models.0": gold, "comparisons.0": data}
    outcome = measure.run(settings(models=["gold:safety"]), inputs, out)
    assert outcome.metrics["gold:safety/mini/accuracy"] == 1
    inputs["comparisons.1"] = dataset(tmp_path / "p", name="plain")
    with pytest.raises(UserError, match="do not come from the miniature world"):
        measure.run(settings(models=["gold:safety"], comparisons=["run:a", "run:b"]), inputs, tmp_path / "other")


@dataclass
class Opinion:
    first_better: bool | None
    first_safe: bool | None = None
    second_safe: bool | None = None
    grade: str | None = "better"
    reason: str = ""
    valid: bool = True


def test_a_model_is_asked_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = [
        comparison(name, chosen_safe=True, rejected_safe=False, question=f"{name}?", grade=grade)
        for name, grade in zip("abcd", ("better", "better", "slightly", "slightly"), strict=True)
    ]
    opinions = {
        "a": Opinion(True, True, False),
        "b": Opinion(False, True, None),
        "c": Opinion(None, False, False),
        "d": Opinion(None, valid=False),
    }
    built: list[tuple[Any, ...]] = []

    class Fake:
        def __init__(self, *how: Any) -> None:
            built.append(how)

        def compare(self, prompts: Any, firsts: Any, seconds: Any, keys: Sequence[str]) -> list[Opinion]:
            assert firsts[0] == "Yes."
            return [opinions[key] for key in keys]

    monkeypatch.setattr(llm_judge, "LlmJudge", Fake)
    monkeypatch.setattr(opening, "open_respondent", lambda *_, **__: "speaker")
    out = tmp_path / "out"
    changes: dict[str, Any] = {"models": [artifacts.named("endpoint", "big")], "data": [dataset(tmp_path / "d", rows)]}
    measured(monkeypatch, out, {}, aspect="safety", rubric="Be strict.", **changes)
    assert built == [("speaker", "Be strict.", "safety")]
    found = results_of(out)["measures"]["endpoint:big"]["pairs"]
    assert found["accuracy"]["all"]["all"]["estimate"] == (1 + 0 + 0.5 + 0.5) / 4
    assert found["accuracy"]["grade"]["slightly"]["estimate"] == 0.5
    assert found["unreadable"] == 1
    assert (found["calibration"], found["spread"], found["length"]) == (None, None, None)
    # Called unsafe: b of a, both of c. Of the four unsafe answers two are found, of three found two are unsafe.
    at = found["thresholds"]["at"][0]
    assert (at["unsafe_recall"]["estimate"], at["unsafe_precision"]["estimate"]) == (0.5, pytest.approx(2 / 3))
    assert at["safe_recall"]["estimate"] == 0.75
    row = rows_of(out)[1]
    assert (row["chosen_raw"], row["right"], row["rejected_probability"]) == (None, 0.0, 0.5)
    assert "<html" in (out / measure.PLOTS).read_text()
    both = {**changes, "models": [*changes["models"], artifacts.named("endpoint", "small")]}
    with pytest.raises(UserError, match="gives no scores"):
        measured(monkeypatch, out, {}, ensembles=[[0, 1]], **both)


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


def test_a_judge_that_has_seen_a_prompt_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = [dataset(tmp_path / "a"), dataset(tmp_path / "b", [comparison("x", question="Never asked?")], "other")]
    model = tmp_path / "model"
    model.mkdir()
    seen.write(model, [prompt_key(messages(("user", "never  ASKED?")))], [])
    trained = replace(REWARD, path=model)
    scorer = Scorer(longer)
    with pytest.raises(UserError, match="has been trained on 1 of the 1 prompts"):
        measured(monkeypatch, tmp_path / "out", {"helpful": scorer}, models=[trained], data=data)
    assert not scorer.judged, "refused before anything was asked"
    measured(monkeypatch, tmp_path / "out", {"helpful": scorer}, models=[trained], data=data[:1])


def test_the_folder_we_stand_in_is_nobodys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    seen.write(tmp_path, [prompt_key(row.prompt) for row in ROWS], [])
    served = replace(artifacts.named("endpoint", "x"), kind="gold", step="gold:overall")
    measured(monkeypatch, tmp_path / "out", {"gold:overall": Scorer(longer)}, models=[served])


def test_scores_that_are_no_numbers_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(turns: Messages) -> float:
        return float("nan") if turns[-1].content.startswith("r") else 1.0

    with pytest.raises(UserError, match=f"gives the score nan to an answer to {ROWS[0].id}"):
        measured(monkeypatch, tmp_path / "out", {"helpful": Scorer(broken)})


def test_only_comparisons_of_the_split_are_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no split 'test'"):
        measured(
            monkeypatch, tmp_path / "o", {"helpful": Scorer(longer)}, data=[dataset(tmp_path / "d", split="train")]
        )
    prompts = drawing.dataset(tmp_path / "p", "prompts", {"test": [Prompt(messages(("user", "?")), "p")]})
    with pytest.raises(UserError, match="holds no comparisons"):
        measured(monkeypatch, tmp_path / "o", {"helpful": Scorer(longer)}, data=[prompts])


def test_a_split_without_rows_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = dataset(tmp_path / "d", [], "empty")
    with store.Writer(data.path, "comparisons") as writer:
        writer.add("test", ROWS[0])
    table = pq.read_table(data.path / "test.parquet")
    pq.write_table(table.slice(0, 0), data.path / "test.parquet")
    store.write_card(data.path, store.Card("comparisons", {"test": 0}, {}, 0.0, {}, ("MIT",), "test"))
    with pytest.raises(UserError, match="its split 'test' has no rows"):
        measured(monkeypatch, tmp_path / "o", {"helpful": Scorer(longer)}, data=[data])


def test_what_is_named_twice_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A judge would be two seeds of an arm, and of two datasets one would be lost."""
    scorer = Scorer(longer)
    with pytest.raises(UserError, match="models: run:x and run:x are the same"):
        measured(monkeypatch, tmp_path / "o", {"helpful": scorer}, models=[REWARD, REWARD], names=["a", "a"])
    data = dataset(tmp_path / "d")
    with pytest.raises(UserError, match="comparisons: run:y and run:y are the same"):
        measured(monkeypatch, tmp_path / "o", {"helpful": scorer}, data=[data, replace(data, step="other")])
    assert not scorer.judged


# ── pairs that are too long ──────────────────────────────────────────────────────────────────────

SIZES = [comparison(f"{size}-{place}", "c" * size) for place, size in enumerate((5, 30, 6, 20, 7, 8, 9, 10))]


def test_a_pair_that_a_judge_cannot_see_whole_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scorer, data = Scorer(longer), [dataset(tmp_path / "d", SIZES)]
    with pytest.raises(UserError, match="pairs: 2 of 8 pairs are too long") as refused:
        measured(monkeypatch, tmp_path / "o", {"helpful": scorer}, data=data, contexts={"helpful": 10})
    assert refused.value.cause == "30-1 has 30 tokens for helpful, which sees 10 at once."
    assert not scorer.judged
    measured(monkeypatch, tmp_path / "o", {"helpful": scorer}, data=data, contexts={"helpful": 30})
    assert not (tmp_path / "o" / measure.LEFT_OUT).exists()


def test_a_pair_is_left_out_for_all_judges_and_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scorers = {"helpful": Scorer(longer), "safety": Scorer(shorter)}
    data = [dataset(tmp_path / "a", SIZES[:1], "whole"), dataset(tmp_path / "b", SIZES, "long")]
    how: dict[str, Any] = {"models": [REWARD, SAFETY], "data": data, "too_long": "leave_out"}
    how["contexts"] = {"helpful": 10, "safety": 20}
    out = tmp_path / "o"
    outcome = measured(monkeypatch, out, scorers, max_left_out=0.25, **how)
    kept = [row.id for row in SIZES if len(row.chosen) <= 10]
    for judge in ("helpful", "safety"):
        assert [row["id"] for row in rows_of(out) if (row["judge"], row["dataset"]) == (judge, "long")] == kept
        assert len(scorers[judge].judged) == 2 * (1 + len(kept))
    lines = [json.loads(line) for line in (out / measure.LEFT_OUT).read_text().splitlines()]
    fields = ("dataset", "id", "judge", "tokens", "context", "reason")
    assert [tuple(line[name] for name in fields) for line in lines] == [
        ("long", "30-1", "helpful", 30, 10, "too long"),
        ("long", "30-1", "safety", 30, 20, "too long"),
        ("long", "20-3", "helpful", 20, 10, "too long"),
    ]
    assert outcome.notes["pairs"] == {"whole": 1, "long": 6}
    assert {name: one["left_out"] for name, one in results_of(out)["datasets"].items()} == {"whole": 0, "long": 2}
    with pytest.raises(UserError, match=r"2 of 8 pairs .* more than max_left_out=0\.24"):
        measured(monkeypatch, out, scorers, max_left_out=0.24, **how)
    how["contexts"] = {"safety": 1}
    with pytest.raises(UserError, match="all of them"):
        measured(monkeypatch, out, scorers, max_left_out=1, **how)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"names": ["a", "b"]}, "2 names for 1 models"),
        ({"names": ["a#1"]}, "cannot be the name of a judge"),
        ({"models": ["a:b", "c:d"], "names": ["ensemble", "b"], "ensembles": [[0, 1]]}, "cannot be the name"),
        ({"ensembles": [[0, 1]]}, "is no ensemble"),
        ({"models": ["a:b", "c:d"], "ensembles": [[0]]}, "is no ensemble"),
        ({"models": ["a:b", "c:d"], "ensembles": [[1, 1]]}, "is no ensemble"),
        ({"models": ["a:b", "c:d"], "ensembles": [[0, -1]]}, "is no ensemble"),
        ({"thresholds": [1.5]}, "no probability"),
        ({"thresholds": []}, "none in the list"),
        ({"models": []}, "models"),
        ({"split": "train"}, "split"),
        ({"too_long": "shorten"}, "too_long"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        settings(**changes)


# ── stopping half-way ────────────────────────────────────────────────────────────────────────────


def test_a_measurement_that_was_stopped_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(judging.ByScores, "pairs_a_part", 16)
    data = [dataset(tmp_path / "a", ROWS, "help"), dataset(tmp_path / "b", ROWS[:20], "safe")]
    models = [REWARD, SAFETY]
    measured(
        monkeypatch,
        tmp_path / "whole",
        {"helpful": Scorer(longer), "safety": Scorer(shorter)},
        models=models,
        data=data,
    )
    out = tmp_path / "stopped"
    stopped = {"helpful": Scorer(longer), "safety": Scorer(shorter, patience=2)}
    with pytest.raises(KeyboardInterrupt):
        measured(monkeypatch, out, stopped, models=models, data=data)
    assert drawing.contents(out) == {}
    going_on = {"helpful": Scorer(longer), "safety": Scorer(shorter)}
    measured(monkeypatch, out, going_on, models=models, data=data)
    assert not going_on["helpful"].judged, "what was judged is not judged again"
    assert len(going_on["safety"].judged) == 2 * (80 - 32)
    assert drawing.contents(out) == drawing.contents(tmp_path / "whole")
