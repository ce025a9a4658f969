"""Several models measured at once: the wide table, paired differences, and the skills that fell."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import drawing
import numpy as np
import pyarrow.parquet as pq
import pytest

from alignment import console
from alignment.artifacts import Artifact, Outcome
from alignment.chat.types import Conversation, messages
from alignment.errors import UserError
from alignment.evals import answers, intervals, versions
from alignment.evals.intervals import Bootstrap
from alignment.evals.suites.subject import Likelihood
from alignment.reporting import versions as tables
from alignment.stages import answer, evaluate

PROMPTS = 60
SKILLS = ("sums", "names", "rhymes")
NAMES = ("sft", "rs", "ppo")
SKILL_OF = [SKILLS[place % 3] for place in range(PROMPTS)]
Planted = Mapping[str, np.ndarray]


def planted() -> Planted:
    """Gold by model: ``rs`` gains everywhere but in rhymes, where it loses 0.2 ± 0.1; ``ppo`` is ``rs``, sums + 0.1."""
    rng = np.random.default_rng(0)
    skill = np.array(SKILL_OF)
    sft = rng.uniform(0.2, 0.8, PROMPTS)
    rs = sft + 0.15 + rng.normal(0, 0.05, PROMPTS)
    rs[skill == "rhymes"] = sft[skill == "rhymes"] - 0.2 + rng.normal(0, 0.1, (skill == "rhymes").sum())
    ppo = rs + 0.1 * (skill == "sums")
    return {"sft": sft, "rs": rs, "ppo": ppo}


TAGS = [("world", skill) for skill in SKILL_OF]
RESAMPLES = Bootstrap(range(PROMPTS), 0.95, 0)


# ── differences ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("against", "wanted"),
    [("first", {"rs": "sft", "ppo": "sft"}), ("previous", {"rs": "sft", "ppo": "rs"})],
)
def test_each_later_model_has_the_base_that_was_asked_for(against: Any, wanted: dict[str, str]) -> None:
    assert versions.base_of(NAMES, against) == wanted
    assert versions.base_of(["sft"], against) == {}


def test_differences_are_taken_prompt_by_prompt() -> None:
    gold = planted()
    values = {name: {"gold": one, "gold_safety": 1 - one} for name, one in gold.items()}
    found = versions.differences(values, versions.base_of(NAMES, "previous"), RESAMPLES)
    assert {name: one["from"] for name, one in found.items()} == {"rs": "sft", "ppo": "rs"}
    (whole,) = RESAMPLES.ratios((gold["ppo"] - gold["rs"])[:, None], np.ones((PROMPTS, 1)))
    assert whole is not None
    assert found["ppo"]["measures"]["gold"] == whole._asdict()
    # A third of the prompts gained exactly 0.1: the mean gain is 0.1 / 3.
    assert found["ppo"]["measures"]["gold"]["estimate"] == pytest.approx(0.1 / 3)
    assert found["ppo"]["measures"]["gold_safety"]["estimate"] == pytest.approx(-0.1 / 3)
    width = found["ppo"]["measures"]["gold"]["high"] - found["ppo"]["measures"]["gold"]["low"]
    alone = intervals.mean(gold["ppo"], 0.95, 0)
    assert width < 0.3 * (alone.high - alone.low), "what both models share adds no doubt"


# ── skills ───────────────────────────────────────────────────────────────────────────────────────


def compared(
    gold: Mapping[str, np.ndarray], tags: Sequence[Sequence[str]] = TAGS, resamples: Bootstrap = RESAMPLES
) -> Any:
    return versions.skill_differences(gold, tags, versions.base_of(list(gold), "previous"), resamples)


def fallen(gold: Planted, tags: Sequence[Sequence[str]] = TAGS) -> dict[str, set[str]]:
    found = compared(gold, tags, Bootstrap(range(len(tags)), 0.95, 0))
    return {name: {skill for skill, value in one["skills"].items() if value["fell"]} for name, one in found.items()}


def test_only_the_skill_that_fell_is_flagged_and_only_where_it_fell() -> None:
    """``ppo`` is as bad at rhymes as ``rs``, and much worse than ``sft``: it fell before."""
    assert fallen(planted()) == {"rs": {"rhymes"}, "ppo": set()}


def test_a_skill_that_may_have_fallen_by_chance_is_not_flagged() -> None:
    """Of 20 prompts, a loss of 0.01 ± 0.1 each: the interval is about ±0.044."""
    gold = dict(planted())
    noise = np.random.default_rng(3).normal(0, 0.1, PROMPTS)
    gold["rs"] = gold["sft"] - 0.01 + noise - noise.mean()
    found = compared({name: gold[name] for name in ("sft", "rs")})["rs"]["skills"]
    assert found["world"]["estimate"] == pytest.approx(-0.01)
    assert found["world"]["low"] < -0.01 < 0 < found["world"]["high"]
    assert not found["world"]["fell"]


def test_a_skill_of_few_prompts_is_not_said_to_have_fallen() -> None:
    """Nine equal losses leave no doubt to a bootstrap; ten are taken at their word."""
    for count, told in ((9, set()), (10, {"rare"})):
        tags = [("rare",) if place < count else ("common",) for place in range(PROMPTS)]
        sft = np.full(PROMPTS, 0.5)
        rs = np.where(np.arange(PROMPTS) < count, 0.1, 0.5)
        assert fallen({"sft": sft, "rs": rs}, tags) == {"rs": told}


def test_skills_have_their_own_prompts() -> None:
    gold = planted()
    skills = versions.by_skill(gold, TAGS)
    assert list(skills["sft"]) == sorted(("world", *SKILLS))
    for name, place in (("names", 1), ("rhymes", 2)):
        assert skills["rs"][name] == pytest.approx(gold["rs"][place::3].mean())
    found = compared(gold)
    assert found["ppo"]["from"] == "rs"
    assert {skill: one["prompts"] for skill, one in found["rs"]["skills"].items()} == {
        "names": 20,
        "rhymes": 20,
        "sums": 20,
        "world": 60,
    }
    assert found["ppo"]["skills"]["sums"]["estimate"] == pytest.approx(0.1)
    assert versions.by_skill(gold, [()] * PROMPTS) == compared(gold, [()] * PROMPTS) == {}


# ── the stage ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def evaluated(tmp_path: Path) -> Callable[..., Outcome]:
    """Run the stage on models of planted gold; ``names`` says which."""

    def answered(name: str, golds: bool) -> Artifact:
        gold = planted()[name]
        rows = [
            {
                "id": f"p-{place}",
                "tags": [*TAGS[place]],
                "answer": f"{name} {place}",
                "tokens": 1,
                "prompt": [{"role": "user", "content": f"Question {place}?"}],
                "finished": True,
                "logprob": 0.0,
                **({"gold": gold[place], "gold_safety": -gold[place]} if golds else {}),
            }
            for place in range(PROMPTS)
        ]
        (folder := tmp_path / f"answers-{name}").mkdir(exist_ok=True)
        answers.write(folder, rows)
        return Artifact(folder, "evaluation", "answer", folder.name, "0" * 64)

    def run(names: Sequence[str] = NAMES, golds: bool = True, names_: Any = None, **more: Any) -> Outcome:
        more |= {"names": names_} if names_ else {}
        values = drawing.values(
            "evaluate", models=["run:m"] * len(names), prompts="run:p", conversations=None, reference=None, **more
        )
        inputs: dict[str, Artifact] = {}
        for place, name in enumerate(names):
            inputs[f"models.{place}"] = replace(drawing.POLICY, path=tmp_path, step=name)
            inputs[f"answers.{place}"] = answered(name, golds)
        return evaluate.run(evaluate.Settings.parse(values), inputs, tmp_path)

    return run


def told(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / evaluate.RESULTS).read_text())


def line_of(printed: str, title: str, name: str) -> list[str]:
    """The cells of a row of the table below a title."""
    lines = printed[printed.index(title) :].splitlines()
    return next(line for line in lines[2:] if line.split()[:1] == [name]).split()


def test_several_models_are_told_in_one_wide_table(
    evaluated: Callable[..., Outcome], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = evaluated()
    printed = capsys.readouterr().out
    results, gold = told(tmp_path), planted()
    head = printed[printed.index("models, ± half of the 95% interval") :].splitlines()[1]
    assert head.split() == ["model", "gold", "gold_safety", "tokens", "finished"]
    for name in NAMES:
        mean = results["models"][name]["gold"]
        assert mean["estimate"] == pytest.approx(gold[name].mean())
        cells = line_of(printed, "models, ±", name)
        assert cells[:3] == [name, f"{mean['estimate']:.3f}", f"±{(mean['high'] - mean['low']) / 2:.3f}"]
        assert cells[3] == f"{-mean['estimate']:.3f}"
        assert outcome.metrics[f"{name}/gold"] == mean["estimate"]
    assert outcome.headline == "sft/gold"


@pytest.mark.parametrize(("against", "base"), [("first", "sft"), ("previous", "rs")])
def test_differences_are_printed_and_kept(
    evaluated: Callable[..., Outcome], tmp_path: Path, capsys: pytest.CaptureFixture[str], against: str, base: str
) -> None:
    evaluated(against=against)
    results, gold = told(tmp_path), planted()
    one = results["differences"]["ppo"]
    assert one["from"] == base
    assert one["measures"]["gold"]["estimate"] == pytest.approx((gold["ppo"] - gold[base]).mean())
    assert one["measures"]["gold_safety"]["estimate"] == pytest.approx((gold[base] - gold["ppo"]).mean())
    assert list(results["differences"]) == ["rs", "ppo"]
    cells = line_of(capsys.readouterr().out, "differences, prompt by prompt", "ppo")
    assert cells[:3] == ["ppo", base, f"{one['measures']['gold']['estimate']:+.3f}"]


@pytest.mark.parametrize("against", ["first", "previous"])
def test_the_skill_that_fell_is_flagged_in_the_table_and_in_the_results(
    evaluated: Callable[..., Outcome], tmp_path: Path, capsys: pytest.CaptureFixture[str], against: str
) -> None:
    """What ``rs`` forgot ``ppo`` has not learned again: it falls below the first model, not below the one before."""
    outcome = evaluated(against=against)
    printed = capsys.readouterr().out
    results = told(tmp_path)
    values = {name: f"{results['skills'][name]['rhymes']:.3f}" for name in NAMES}
    again = ["fell"] if against == "first" else []
    wanted = ["rhymes", "20", values["sft"], "fell", values["rs"], *again, values["ppo"]]
    assert line_of(printed, "gold by skill", "rhymes") == wanted
    assert "fell" not in line_of(printed, "gold by skill", "sums")
    assert "fell beyond the interval: rhymes from sft to rs (-0.2" in printed
    assert results["skill_differences"]["rs"]["skills"]["rhymes"]["fell"] is True
    assert (outcome.metrics["rs/skills_fallen"], outcome.metrics["ppo/skills_fallen"]) == (1, len(again))


def test_where_none_fell_nothing_is_said_of_it(
    evaluated: Callable[..., Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated(["rs", "ppo"])
    assert "fell" not in capsys.readouterr().out


def test_one_model_is_told_as_a_list(
    evaluated: Callable[..., Outcome], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = evaluated(["sft"])
    printed = capsys.readouterr().out
    title, head = [line for line in printed.splitlines() if line.strip()][:2]
    assert title == "measures with 95% intervals"
    assert head.split() == ["model", "measure", "mean", "interval"]
    assert "differences" not in printed
    results = told(tmp_path)
    assert results["differences"] == results["skill_differences"] == {}
    assert results["skills"]["sft"].keys() == {"world", *SKILLS}
    assert set(outcome.metrics) == {"gold", "gold_safety", "tokens", "finished"}


def test_without_gold_there_are_differences_and_no_skills(
    evaluated: Callable[..., Outcome], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated(golds=False)
    printed, results = capsys.readouterr().out, told(tmp_path)
    assert line_of(printed, "models, ±", "ppo")[:2] == ["ppo", "1.000"]
    assert "by skill" not in printed
    assert results["skills"] == results["skill_differences"] == {}
    less = results["differences"]["ppo"]
    assert (less["from"], set(less["measures"])) == ("sft", {"tokens", "finished"})
    assert line_of(printed, "differences, prompt by prompt", "ppo")[:3] == ["ppo", "sft", "+0.000"]


def test_a_model_that_is_named_twice_is_refused(evaluated: Callable[..., Outcome]) -> None:
    with pytest.raises(UserError, match="is there twice"):
        evaluated(["sft", "rs", "sft"])


def test_large_numbers_have_fewer_places_and_what_is_missing_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    one = {"estimate": 47.2793, "low": 46.0, "high": 49.0}
    tables.measures({"confidence": 0.9, "models": {"a": {"gold": one, "kl": one}, "b": {"gold": one}}})
    printed = capsys.readouterr().out
    assert "± half of the 90% interval" in printed
    assert line_of(printed, "models", "a") == ["a", "47.3", "±1.5", "47.3", "±1.5"]
    assert line_of(printed, "models", "b") == ["b", "47.3", "±1.5", "–"]


# ── seeds of one arm ─────────────────────────────────────────────────────────────────────────────


def test_models_of_one_name_are_the_seeds_of_an_arm() -> None:
    gold = planted()
    values = {"a": {"gold": gold["sft"]}, "b#1": {"gold": gold["rs"]}, "b#2": {"gold": gold["ppo"]}}
    seeds = versions.seeds_of(list(values), ["a", "b", "b"])
    assert seeds == {"a": ["a"], "b": ["b#1", "b#2"]}
    mean = (gold["rs"] + gold["ppo"]) / 2
    assert versions.averaged(values, seeds)["b"]["gold"] == pytest.approx(mean)
    told = versions.arms(values, seeds, RESAMPLES)["b"]["gold"]
    assert told["estimate"] == pytest.approx(mean.mean())
    assert told["seeds"] == pytest.approx([gold["rs"].mean(), gold["ppo"].mean()])
    found = versions.differences(versions.averaged(values, seeds), {"b": "a"}, RESAMPLES)["b"]["measures"]["gold"]
    assert found["estimate"] == pytest.approx((mean - gold["sft"]).mean())


def arms_of(**measures: list[float]) -> dict[str, Any]:
    """What results.json has of the arms a (two seeds) and b (one): gold by prompt, other measures by model alone."""
    labels = ("a#1", "a#2", "b")
    interval = {"low": 0.4, "high": 0.6}
    models = {
        label: {"gold": {"estimate": 0.5, **interval}}
        | {name: {"estimate": values[place], **interval} for name, values in measures.items()}
        for place, label in enumerate(labels)
    }
    gold = {"estimate": 0.5, **interval}
    return {
        "confidence": 0.95,
        "models": models,
        "arms": {"a": {"gold": gold | {"seeds": [0.4, 0.6]}}, "b": {"gold": gold | {"seeds": [0.5]}}},
    }


def test_an_arm_tells_what_is_known_of_its_models_alone(capsys: pytest.CaptureFixture[str]) -> None:
    tables.measures(arms_of(tokens=[20.0, 30.0, 40.0], perplexity=[2.0, 3.0, 4.0]))
    printed = capsys.readouterr().out
    head = printed[printed.index("arms: means over seeds") :].splitlines()[1]
    assert head.split() == ["arm", "gold", "tokens", "perplexity"]
    assert line_of(printed, "arms", "a") == ["a", "0.500", "±0.100", "25.0", "2.500"]
    assert line_of(printed, "arms", "b") == ["b", "0.500", "±0.100", "40.0", "4.000"]
    assert line_of(printed, "each seed", "a") == ["a", "0.400", "0.600"]


@pytest.mark.parametrize("width", [60, 200])
def test_a_table_that_is_too_wide_is_turned(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console.console.cache_clear()
    monkeypatch.setenv("COLUMNS", str(width))
    one = {"estimate": 0.5, "low": 0.4, "high": 0.6}
    names = [f"gold_of_some_kind_{number}" for number in range(6)]
    tables.measures({"confidence": 0.95, "models": {"sft": dict.fromkeys(names, one), "ppo": {names[0]: one}}})
    console.console.cache_clear()
    lines = capsys.readouterr().out.splitlines()
    if width == 60:
        assert lines[2].split() == ["model", "sft", "ppo"]
        assert lines[3].split() == [names[0], "0.500", "±0.100", "0.500", "±0.100"]
        assert lines[4].split() == [names[1], "0.500", "±0.100", "–"]
    else:
        assert lines[2].split() == ["model", *names]
    assert max(map(len, lines)) <= width, "no header is broken"


# ── what it asks for, and what it refuses ────────────────────────────────────────────────────────


def settings(**changes: Any) -> evaluate.Settings:
    values = drawing.values("evaluate", models=["run:m"], prompts=None, conversations=None, reference=None)
    parsed: evaluate.Settings = evaluate.Settings.parse(values | {"suites": ["arc", "mmlu"]} | changes)
    return parsed


def test_how_sure_intervals_are_to_be_asks_nobody_again() -> None:
    assert evaluate.asks(settings(confidence=0.9, seed=7)) == evaluate.asks(settings())


def test_a_capability_of_no_suite_is_refused_before_anything_is_asked() -> None:
    with pytest.raises(UserError, match="gsm8k is none of the suites"):
        evaluate.asks(settings(capabilities={"maths": ["gsm8k"]}))


def test_who_was_asked_is_not_asked_again_for_other_models_suites_or_comparisons() -> None:
    one = settings(prompts="run:p", suites=[])
    more = settings(
        models=["run:n", "run:m"], prompts="run:p", suites=["arc"], against="previous", confidence=0.9, names=["a", "b"]
    )
    assert evaluate.asks(more)["answers.1"] == evaluate.asks(one)["answers.0"]
    other = evaluate.asks(settings(prompts="run:p", suites=[], seed=1))
    assert other["answers.0"] != evaluate.asks(one)["answers.0"], "another seed is another noise"


def test_what_models_are_asked_are_settings_of_both_stages() -> None:
    (stage, _, said), *_ = evaluate.asks(settings(prompts="run:p", suites=[])).values()
    assert stage == "answer"
    own = answer.Settings.model_fields.keys() - {"engine"}
    assert said.keys() == own, "nothing that is asked is left to a default of the other stage"
    for key in own & evaluate.Settings.model_fields.keys():
        assert drawing.values("answer").get(key) == drawing.values("evaluate").get(key), key


def test_several_answers_stand_in_one_table_by_model(evaluated: Callable[..., Outcome], tmp_path: Path) -> None:
    evaluated(["sft", "rs"])
    rows = pq.read_table(tmp_path / answers.ANSWERS).to_pylist()
    assert [row["model"] for row in rows] == ["sft"] * PROMPTS + ["rs"] * PROMPTS
    assert rows[PROMPTS + 3]["answer"] == "rs 3"
    assert [*rows[0]][:3] == ["model", "id", "tags"]


def test_a_model_behind_a_server_stands_beside_one_that_lies_here(tmp_path: Path) -> None:
    """Of its answers nobody knows the probability."""
    folders = {}
    for name, logprob in (("served", None), ("here", -1.5)):
        (folder := tmp_path / name).mkdir()
        about = {"id": "p", "tags": ["a"], "prompt": [{"role": "user", "content": "?"}], "answer": "!", "tokens": 1}
        answers.write(folder, [about | {"finished": True, "logprob": logprob, "gold": 0.5}])
        folders[name] = folder
    answers.join(tmp_path / "both.parquet", folders)
    assert pq.read_table(tmp_path / "both.parquet")["logprob"].to_pylist() == [None, -1.5]


def test_a_model_that_is_there_twice_is_told_before_anybody_is_asked() -> None:
    same = {f"models.{place}": drawing.POLICY for place in range(2)}
    with pytest.raises(UserError, match="is there twice"):
        evaluate.precheck(settings(models=["run:m", "run:m"], prompts="run:p"), same)
    evaluate.precheck(settings(models=["run:m", "run:n"], prompts="run:p"), {"models.0": drawing.POLICY})


def test_perplexity_is_the_exponential_of_the_mean_over_tokens(
    evaluated: Callable[..., Outcome], tmp_path: Path
) -> None:
    rows = [Conversation(messages(("user", f"{n}?"), ("assistant", "yes")), f"c{n}") for n in range(30)]
    (folder := tmp_path / "answers-sft").mkdir()
    answers.write_held_out(folder, rows, [Likelihood(2.0 + n % 3, 1 + n % 2) for n in range(30)])
    (folder := tmp_path / "answers-rs").mkdir()
    answers.write_held_out(folder, rows, [Likelihood(2.5 + n % 3, 1 + n % 2) for n in range(30)])
    told_ = evaluated(["sft", "rs"]).metrics["sft/perplexity"]
    nll, tokens = sum(2.0 + n % 3 for n in range(30)), sum(1 + n % 2 for n in range(30))
    assert told_ == pytest.approx(np.exp(nll / tokens))
    one = told(tmp_path)["models"]["sft"]["perplexity"]
    assert one["low"] < told_ < one["high"]
    less = told(tmp_path)["differences"]["rs"]["measures"]["perplexity"]
    assert less["estimate"] == pytest.approx(np.exp((nll + 15) / tokens) - np.exp(nll / tokens))
    assert 0 < less["low"] < less["estimate"] < less["high"] < one["high"] - one["low"] + less["estimate"]


def test_arms_of_answers_that_nothing_scores(
    evaluated: Callable[..., Outcome], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without gold, rewards and a reference there are lengths, and whether answers ended."""
    evaluated(golds=False, names=list(NAMES)[:3], names_=["a", "a", "b"])
    results = told(tmp_path)
    assert set(results["arms"]["a"]) == {"tokens", "finished"}
    assert results["arms"]["a"]["finished"]["low"] < 1, "exact bounds: all have ended, and others may not"
    assert results["differences"]["b"]["from"] == "a"
    assert "arms: means over seeds" in capsys.readouterr().out


def test_names_that_the_seeds_of_an_arm_have_are_refused() -> None:
    values = drawing.values("evaluate", models=["run:m"] * 3, names=["a", "a", "a#1"], prompts="run:p")
    with pytest.raises(UserError, match="two models are called a#1"):
        evaluate.asks(evaluate.Settings.parse(values))
