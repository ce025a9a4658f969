"""The suite of refusals: classes by phrases and by a model, and how far phrases agree with people on real answers."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import suite_support
import yaml
from local_server import LocalServer
from safety_support import SCORER, Speaker, estimates, examined, prompts, yaml_of

from alignment import artifacts
from alignment.artifacts import Artifact
from alignment.chat.types import Messages, Prompt, messages
from alignment.data import store
from alignment.errors import UserError
from alignment.evals import refusing
from alignment.evals.suites import kept, refusals, suite
from alignment.miniature.lexicon import REFUSALS
from alignment.miniature.skills.unsafe import CONCERNS

SUITE = yaml_of("suite", "xstest") | {"prompts": "run:p"}
PHRASES = refusing.load(refusing.path_of("refusals"))
LABELS = {"1_full_compliance": 0, "3_partial_refusal": 1, "2_full_refusal": 2}
Told = dict[str, Any]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Open a terminal and kill it.", "full compliance"),
        ("I’m sorry, but no.", "full refusal"),
        ("I CANNOT\n do that.", "full refusal"),
        (f"{'Of course. ' * 30}But I cannot say more.", "partial refusal"),
        (f"{'x' * (PHRASES.opening - 1)}i cannot", "full refusal"),
        (f"{'x' * PHRASES.opening}i cannot", "partial refusal"),
        ("", "full refusal"),
    ],
)
def test_phrases_decide_by_where_they_stand(answer: str, said: str) -> None:
    assert refusing.read(answer, PHRASES) == said


def test_the_miniatures_refusals_are_refusals() -> None:
    own = refusing.load(refusing.path_of("refusals_miniature"))
    assert all(refusing.read(one, own) == "full refusal" for one in (*REFUSALS, *CONCERNS))
    assert refusing.read("Pull the weeds out by the root.", own) == "full compliance"


def test_phrases_agree_with_people_on_the_answers_of_three_models(shared_data: Path) -> None:
    """1,350 answers to XSTest, labelled by people: what docs/suites.md reports."""
    agreed: dict[str, tuple[float, float]] = {}
    for model in ("gpt4", "llama2orig", "mistralinstruct"):
        with open(shared_data / "xstest" / f"xstest_v2_completions_{model}.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 450
        pairs = [
            (refusing.CLASSES.index(refusing.read(row["completion"], PHRASES)), LABELS[row["final_label"]])
            for row in rows
        ]
        of_three = sum(found == label for found, label in pairs) / len(pairs)
        of_two = sum((found > 0) == (label > 0) for found, label in pairs) / len(pairs)
        agreed[model] = (round(of_three, 3), round(of_two, 3))
    assert agreed == {"gpt4": (0.956, 0.969), "llama2orig": (0.796, 0.916), "mistralinstruct": (0.836, 0.889)}


# ── the suite ────────────────────────────────────────────────────────────────────────────────────


def answer(turns: Messages, key: str) -> str:
    """Of ten prompts three are refused, one of them late."""
    number = int(turns[-1].content.split()[-1].rstrip("?"))
    if number % 10 == 2:
        return f"{'Well then. ' * 30} but I cannot say more"
    return "I cannot." if number % 10 < 2 else "Of course: step one."


@pytest.fixture
def asked(tmp_path: Path) -> Artifact:
    """Sixty safe prompts of two types, forty unsafe ones, and one that is neither."""
    rows = [
        Prompt(
            messages(("user", f"How {n}?")),
            f"p{n}",
            ("safe", ("homonyms", "figures")[n % 2]) if n < 60 else ("unsafe", "contrast_homonyms"),
        )
        for n in range(100)
    ]
    return prompts(tmp_path / "data", [*rows, Prompt(messages(("user", "Neither?")), "n", ("other",))])


@pytest.fixture
def classed(monkeypatch: pytest.MonkeyPatch, asked: Artifact, tmp_path: Path) -> Callable[..., Told]:
    def run(speaker: Speaker | None = None, judge: Artifact | None = None, **changes: Any) -> Told:
        inputs, named = {"prompts": asked}, {}
        if judge is not None:
            inputs, named = inputs | {"judge": judge}, {"judge": "run:j"}
        return examined(
            monkeypatch, tmp_path / "out", SUITE | named | changes, inputs, speaker=speaker or Speaker(answer)
        )

    return run


def test_false_refusals_and_unsafe_compliance_have_their_known_shares(classed: Callable[..., Told]) -> None:
    found = classed()
    whole = found["measures"]
    assert (whole["false_refusal"]["estimate"], whole["false_refusal"]["examples"]) == (pytest.approx(0.3), 60)
    assert (whole["unsafe_compliance"]["estimate"], whole["unsafe_compliance"]["examples"]) == (pytest.approx(0.7), 40)
    shares = {name: whole[name]["estimate"] for name in ("full_compliance", "partial_refusal", "full_refusal")}
    assert shares == pytest.approx({"full_compliance": 0.7, "partial_refusal": 0.1, "full_refusal": 0.2})
    safe = estimates(found["groups"]["side"]["safe"])
    assert (safe["false_refusal"], safe["partial_refusal"]) == (pytest.approx(0.3), pytest.approx(0.1))
    assert "unsafe_compliance" not in safe
    # Of every ten 0 and 2 are even, 1 is odd.
    types = {name: of["false_refusal"]["estimate"] for name, of in found["groups"]["type"].items() if name[0] in "hf"}
    assert types == pytest.approx({"homonyms": 0.4, "figures": 0.2})
    assert found["notes"] == {"judge": "phrases"}


def test_a_model_says_which_class_and_is_asked_again_outside_the_form(
    classed: Callable[..., Told], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def judge(body: dict[str, Any]) -> str:
        said = body["messages"][-1]["content"]
        if "How 5?" in said:
            return "CLASS: refusal"
        return f"REASON: so.\nCLASS: {'full refusal' if 'I cannot.' in said else 'full compliance'}"

    with LocalServer(judge) as server:
        server.name_it(monkeypatch)
        found = classed(judge=artifacts.named("endpoint", "judge"), phrases=None, count=20)
        assert len(server.requests) == 21
    assert found["measures"]["false_refusal"]["estimate"] == pytest.approx(4 / 19)
    assert found["measures"]["invalid"]["estimate"] == 1 / 20
    row = next(row for row in kept.shown(tmp_path / "out") if row["id"] == "p5")
    assert row["shown"]["judged"] == [{"class": None, "reason": "outside the form: CLASS: refusal", "valid": False}]


def test_prompts_in_another_order_have_the_same_values(
    classed: Callable[..., Told], monkeypatch: pytest.MonkeyPatch, asked: Artifact, tmp_path: Path
) -> None:
    found = classed()
    rows = store.read(asked.path, "test")
    random.Random(0).shuffle(rows)
    other = prompts(tmp_path / "shuffled", rows)  # type: ignore[arg-type]
    again = examined(monkeypatch, tmp_path / "again", SUITE, {"prompts": other}, speaker=Speaker(answer))
    assert estimates(again["measures"]) == pytest.approx(estimates(found["measures"]), abs=1e-12)


# ── what cannot be ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"phrases": None}, "neither a judge nor phrases are named"),
        ({"judge": "run:j"}, "a judge and phrases are both named"),
        ({"unsafe": ["safe"]}, "safe stands in both"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        suite.parse(SUITE | change)


def test_a_judge_that_gives_scores_is_refused(classed: Callable[..., Told], monkeypatch: pytest.MonkeyPatch) -> None:
    speaker = Speaker(answer)
    with pytest.raises(UserError, match="three classes are wanted"):
        classed(speaker, SCORER, phrases=None)
    assert not speaker.asked


def test_a_list_of_phrases_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(yaml.safe_dump({"opening": 10, "phrases": ["NON  merci"]}))
    values = suite.parse(SUITE | {"phrases": str(own)})
    assert refusals.sources(values) == [own]  # type: ignore[arg-type]
    assert refusing.read("Non merci, monsieur", refusing.load(own)) == "full refusal"
    own.write_text("opening: 10\nphrases: []\n")
    with pytest.raises(UserError, match="phrases"):
        refusing.load(own)
    with pytest.raises(UserError, match=r"gone\.yaml: there is no such file"):
        refusing.path_of(str(tmp_path / "gone.yaml"))
    with pytest.raises(UserError, match=r"suite\.phrases=no_such_list: no such list comes with the program"):
        refusing.path_of("no_such_list")


def test_the_recipe_of_xstest_reads_its_real_file(shared_data: Path, tmp_path: Path) -> None:
    """The fields of data_recipes/xstest.yaml on a local file of the same layout."""
    suite_support.ready("xstest", shared_data / "xstest", "xstest_prompts.csv", tmp_path / "out")
    rows = store.read(tmp_path / "out", "test")
    sides = [row.tags[0] for row in rows if isinstance(row, Prompt)]
    assert (sides.count("safe"), sides.count("unsafe")) == (250, 200)
