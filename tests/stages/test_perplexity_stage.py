"""The stage that measures losses: which models stand beside each other, what is refused, what is written, stopping."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import drawing
import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from alignment import artifacts, run
from alignment.artifacts import Artifact, Outcome
from alignment.chat import tokenizers
from alignment.chat.train import train
from alignment.chat.types import Conversation, Text, messages, row_key
from alignment.data import seen
from alignment.errors import UserError
from alignment.evals import perplexity as measures
from alignment.gemma import core
from alignment.gemma.presets import Shape, TokenIds
from alignment.release import evaluations
from alignment.reporting import inside
from alignment.stages import perplexity
from alignment.store import Store
from alignment.training import policies
from alignment.training.policies import Policy

TALK = [
    Conversation(messages(("user", f"Where is cat {n}?"), ("assistant", f"On mat {n}.")), f"c{n}") for n in range(6)
]
TEXTS = [
    Text("the cat sat on the mat and looked at the moon over the river. " * (1 + n % 3), f"t{n}") for n in range(8)
]
Model = Callable[..., Artifact]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Makes an untrained model of a width; those of one vocabulary have one tokenizer."""
    words = {"": [text.text for text in TEXTS] * 20, "other": ["Other words entirely! Nothing of it? All else."] * 90}
    folders = {which: tmp_path_factory.mktemp(f"tokenizer{which}") for which in words}
    trained = {which: train(texts, 400, folders[which]) for which, texts in words.items()}

    def make(name: str, *, width: int = 16, seed: int = 0, vocabulary: str = "", context: int = 64) -> Artifact:
        out = tmp_path_factory.mktemp(name)
        tokenizer = tokenizers.load(trained[vocabulary])
        shape = Shape("gemma2", width, 2, 32, 2, 1, 8, 8, context, 16, 50.0, 30.0)
        # Wider models are padded further: a loss by token does not care.
        padded = tokenizers.padded_vocab(tokenizer.vocab_size) + (64 if width > 16 else 0)
        built = core.build(shape, padded, TokenIds(), seed)
        policies.save_policy(Policy(built, tokenizer, "gemma2"), out)
        return replace(artifacts.foreign(out, f"dir:{out}"), kind="policy", step=name, stage="pretrain")

    return make


def settings(**changes: Any) -> perplexity.Settings:
    plain = {"models": ["run:a"], "data": ["run:d"], "block": 32, "engine__precision": "fp32"}
    found: perplexity.Settings = perplexity.Settings.parse(drawing_values(**{**plain, **changes}))
    return found


def drawing_values(**changes: Any) -> dict[str, Any]:
    found = drawing.values("perplexity", **changes)
    del found["endpoint"]
    return found


def measured(
    out: Path, models: list[Artifact], data: list[Artifact], teacher: Artifact | None = None, **changes: Any
) -> Outcome:
    out.mkdir(exist_ok=True)
    inputs = {f"models.{place}": one for place, one in enumerate(models)}
    inputs |= {f"data.{place}": one for place, one in enumerate(data)}
    named: dict[str, Any] = {"models": [f"run:{place}" for place in range(len(models))], "data": ["run:d"] * len(data)}
    if teacher is not None:
        inputs["teacher"], named["teacher"] = teacher, "run:teacher"
    return perplexity.run(settings(**named, **changes), inputs, out)


def texts(folder: Path, name: str = "text") -> Artifact:
    return replace(drawing.dataset(folder, "text", {"test": TEXTS}), step=name, fingerprint=name * 8)


def talks(folder: Path) -> Artifact:
    return replace(drawing.dataset(folder, "conversations", {"test": TALK}), step="talks")


def results_of(out: Path) -> dict[str, Any]:
    return json.loads((out / perplexity.RESULTS).read_text())


# ── what is written ──────────────────────────────────────────────────────────────────────────────


def test_arms_of_two_seeds_on_text_and_on_answers(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [model("a", seed=1), model("b", seed=2), model("c", width=24, seed=1), model("d", width=24, seed=2)]
    outcome = measured(
        tmp_path / "out",
        models,
        [texts(tmp_path / "x"), talks(tmp_path / "y")],
        model("big", width=32),
        names=["narrow", "narrow", "wide", "wide"],
        lines=[{"name": "scratch", "arms": ["wide", "narrow"]}],
        pairs=[["wide", "narrow"]],
    )
    results = results_of(tmp_path / "out")
    assert list(results["models"]) == ["narrow#1", "narrow#2", "wide#1", "wide#2"]
    assert results["lines"] == {"scratch": ["narrow", "wide"]}, "the smallest first"
    assert results["parameters"]["narrow"] < results["parameters"]["wide"] < results["teacher"]["parameters"]
    assert results["intervals"] == "Student's, over 2 seeds"
    assert results["datasets"]["talks"]["rows"] == len(TALK)
    table = pq.read_table(tmp_path / "out" / perplexity.ROWS).to_pylist()
    of = [row for row in table if (row["model"], row["dataset"]) == ("wide#2", "text")]
    assert [row["row"] for row in of][:2] == ["t0@0", "t1@0"], "documents in their order, named by their first token"
    seeds = results["arms"]["text"]["wide"]["loss"]["seeds"]
    assert seeds[1] == pytest.approx(sum(row["nll"] for row in of) / sum(row["tokens"] for row in of))
    kl = results["arms"]["text"]["wide"]["kl"]["seeds"]
    assert kl[1] == pytest.approx(sum(row["kl"] for row in of) / sum(row["tokens"] for row in of))
    read = {row["row"] for row in table if row["model"] == "teacher"}
    assert len(read) == results["datasets"]["text"]["rows"] + len(TALK)
    wide, narrow = (np.array(results["arms"]["talks"][arm]["loss"]["seeds"]) for arm in ("wide", "narrow"))
    assert results["differences"]["talks"]["wide - narrow"]["seeds"] == pytest.approx((wide - narrow).tolist())
    assert outcome.metrics["teacher/talks/perplexity"] > 1
    assert (outcome.kind, outcome.headline, outcome.notes["rows"]["talks"]) == (
        "evaluation",
        "narrow/text/perplexity",
        6,
    )
    told = capsys.readouterr().out
    assert "wide - narrow" in told
    inside.evaluation(Artifact(tmp_path / "out", "evaluation", "perplexity", "p", "0" * 64))
    assert capsys.readouterr().out in told, "stage=show repeats the tables"
    assert "<html" in (tmp_path / "out" / perplexity.PLOTS).read_text()


def test_the_loss_is_that_of_the_answers_alone(model: Model, tmp_path: Path) -> None:
    only = model("only")
    measured(tmp_path / "out", [only], [talks(tmp_path / "y")])
    table = pq.read_table(tmp_path / "out" / perplexity.ROWS).to_pylist()
    tokenizer = tokenizers.load(only.path)
    # The answer and what closes it.
    wanted = [len(tokenizer.encode(row.messages[1].content)) + 1 for row in TALK]
    assert [row["tokens"] for row in table] == pytest.approx(wanted, abs=1)
    assert [row["row"] for row in table] == [row.id for row in TALK]


def test_a_teacher_has_no_divergence_from_itself(model: Model, tmp_path: Path) -> None:
    one = model("one")
    measured(tmp_path / "out", [one], [texts(tmp_path / "x")], one)
    results = results_of(tmp_path / "out")
    assert results["arms"]["text"]["one"]["kl"]["estimate"] == pytest.approx(0.0, abs=1e-6)
    table = pq.read_table(tmp_path / "out" / perplexity.ROWS).to_pylist()
    assert {row["kl"] for row in table if row["model"] == "teacher"} == {None}
    measures_of = results["teacher"]["measures"]["text"]
    assert measures_of["loss"]["estimate"] == pytest.approx(results["arms"]["text"]["one"]["loss"]["estimate"])


def test_the_first_rows_of_the_split_are_measured(model: Model, tmp_path: Path) -> None:
    measured(tmp_path / "out", [model("one")], [texts(tmp_path / "x"), talks(tmp_path / "y")], count=3)
    table = pq.read_table(tmp_path / "out" / perplexity.ROWS).to_pylist()
    assert [row["row"] for row in table if row["dataset"] == "talks"] == ["c0", "c1", "c2"]
    assert sum(row["dataset"] == "text" for row in table) == 3


def test_a_stopped_measurement_goes_on_with_the_model_it_was_at(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [model("a", seed=1), model("b", seed=2), model("c", seed=3)]
    data = [texts(tmp_path / "x")]
    measured(tmp_path / "whole", models, data)
    asked = []
    read = measures.read

    def counted(*given: Any, **more: Any) -> Any:
        asked.append(given)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return read(*given, **more)

    monkeypatch.setattr(measures, "read", counted)
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path / "out", models, data)
    asked.clear()
    measured(tmp_path / "out", models, data)
    assert len(asked) == 1
    for name in (perplexity.RESULTS, perplexity.ROWS):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"names": ["a", "b"]}, "names: 2 names for 1 models"),
        ({"names": ["a#1"]}, "cannot be the name of an arm"),
        ({"names": ["teacher"]}, "cannot be the name of an arm"),
        ({"pairs": [["a", "a"]]}, "does not name 2 different arms"),
        ({"shares": [["a", "b"]]}, "does not name 3 different arms"),
        ({"block": 8}, "block=8"),
    ],
)
def test_settings_that_say_nothing_sensible(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        settings(**changes)


def test_arms_that_are_not_there_or_have_other_seeds(model: Model, tmp_path: Path) -> None:
    models, data = [model("a", seed=1), model("b", seed=2), model("c", seed=3)], [texts(tmp_path / "x")]
    for changes, told in (
        ({"pairs": [["one", "too"]]}, r"(?s)pairs: there is no arm 'too'.*two"),
        ({"lines": [{"name": "l", "arms": ["three"]}]}, "lines: there is no arm 'three'"),
        ({"pairs": [["one", "two"]]}, "one has 2, two has 1 seeds"),
    ):
        with pytest.raises(UserError, match=told):
            measured(tmp_path / "out", models, data, names=["one", "one", "two"], **changes)


def test_models_that_do_not_read_the_same_ids(model: Model, tmp_path: Path) -> None:
    data = [texts(tmp_path / "x")]
    one, other = model("one"), model("other", vocabulary="other")
    with pytest.raises(UserError, match="run:1 has another tokenizer than run:0"):
        measured(tmp_path / "out", [one, other], data)
    with pytest.raises(UserError, match="run:teacher has another tokenizer"):
        measured(tmp_path / "out", [one], data, other)
    with pytest.raises(UserError, match="run:0 and run:1 are the same"):
        measured(tmp_path / "out", [one, one], data)
    with pytest.raises(UserError, match="block=48 is more than the context of run:1, 40"):
        measured(tmp_path / "out", [one, model("short", context=40)], data, block=48)


def test_a_model_that_has_seen_a_prompt(model: Model, tmp_path: Path) -> None:
    one = model("one")
    seen.write(one.path, [row_key(TALK[2])], [])
    data = [talks(tmp_path / "y")]
    with pytest.raises(UserError, match="has been trained on 1 of the 6 prompts"):
        measured(tmp_path / "out", [one], data)
    measured(tmp_path / "out", [one], data, count=2)


def test_rows_that_are_no_use(model: Model, tmp_path: Path) -> None:
    one, long = model("one"), Conversation(messages(("user", "cat " * 90), ("assistant", "mat")), "long")
    data = drawing.dataset(tmp_path / "y", "conversations", {"test": [*TALK, long]})
    with pytest.raises(UserError, match="conversation long has"):
        measured(tmp_path / "out", [one], [data])
    measured(tmp_path / "out", [one], [data], too_long="leave_out")
    assert results_of(tmp_path / "out")["datasets"]["test"]["rows"] == len(TALK)
    (left,) = (tmp_path / "out").rglob("*left_out.jsonl")
    assert json.loads(left.read_text())["id"] == "long"
    with pytest.raises(UserError, match=r"has no split 'valid'|valid"):
        measured(tmp_path / "out", [one], [data], split="valid")


def test_a_model_that_gives_no_numbers(model: Model, tmp_path: Path) -> None:
    broken = model("broken", seed=1)
    weights = load_file(broken.path / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, broken.path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"broken: gives losses that are no numbers"):
        measured(tmp_path / "out", [model("one"), broken], [texts(tmp_path / "x")])


# ── beside the others ────────────────────────────────────────────────────────────────────────────


def test_a_release_can_tell_of_it(model: Model, tmp_path: Path) -> None:
    one = model("one")
    store = Store(tmp_path / "runs")
    out = store.folder("solo", "p", "9" * 64)
    out.mkdir(parents=True)
    said = settings(models=["run:a"], data=["run:d"])
    inputs = {"models.0": one, "data.0": texts(tmp_path / "x")}
    outcome = perplexity.run(said, inputs, out)
    parents = {key: artifacts.Parent(f"step:{it.step}", it.fingerprint, str(it.path)) for key, it in inputs.items()}
    made = artifacts.finish(
        Artifact(out, outcome.kind, "perplexity", "p", "9" * 64, parents, said.model_dump(mode="json"))
    )
    (found,) = evaluations.read([made], one)
    assert [measure.name for measure in found.measures] == ["perplexity on text"]
    assert found.how == "text, split test, at most 1,024 rows"


def test_it_works_by_itself_on_the_miniature() -> None:
    values = run.compose("perplexity", {})
    assert perplexity.Settings.parse(values).models == ["mini:base"]
