"""Tasks of lm-evaluation-harness on a tiny model: a folder of one's own, without a network."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import suite_support as support
import torch
import yaml

from alignment.artifacts import Artifact
from alignment.chat import tokenizers
from alignment.chat.render import prompt_ids
from alignment.chat.types import messages, prompt_key
from alignment.data import seen
from alignment.errors import UserError
from alignment.evals.suites import lm_eval, subject
from alignment.gemma import core
from alignment.training import held_out

DOCS = [
    {"question": f"what is said to question {n}?", "choices": ["the friend", "the town", "question"], "answer": n % 3}
    for n in range(5)
]
CHOICES = {
    "task": "own_choices",
    "output_type": "multiple_choice",
    "doc_to_text": "Q: {{question}}\nA:",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
ANSWERS = {
    "task": "own_answers",
    "output_type": "generate_until",
    "doc_to_text": "Q: {{question}}\nA:",
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"until": ["e"], "max_gen_toks": 8, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
TEXTS = {
    "task": "own_texts",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{question}}",
    "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
}


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'alignment[lm-eval]'")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return support.policy(tmp_path_factory.mktemp("tiny"), seed=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with three tasks that read one file."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "docs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in DOCS))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(own / "docs.jsonl")}},
        "test_split": "test",
        "metadata": {"version": 1.0},
    }
    for task in (CHOICES, ANSWERS, TEXTS):
        (own / f"{task['task']}.yaml").write_text(yaml.safe_dump(task | shared))
    return own


def settings(folder: Path, *tasks: str, **changes: Any) -> Any:
    values = {"tasks": [*tasks], "include": str(folder), "decoding": None, "prompting": "raw"}
    return support.settings("toxigen", **values | changes)


@cache
def loaded(path: Path) -> Any:
    return core.load(path)


def logprobs(model: Artifact, ids: list[int]) -> torch.Tensor:
    """``logprobs_TV`` of what follows each id, in float64."""
    with torch.no_grad():
        return loaded(model.path)(torch.tensor([ids])).logits[0].double().log_softmax(-1)


def continued(model: Artifact, asked: list[int], said: list[int]) -> float:
    logprobs_TV = logprobs(model, [*asked, *said])
    return sum(float(logprobs_TV[len(asked) + n - 1, one]) for n, one in enumerate(said))


@pytest.mark.parametrize("prompting", ["raw", "chat"])
def test_choices_of_a_task_are_those_that_float64_finds_likeliest(
    prompting: str, model: Artifact, folder: Path, tmp_path: Path
) -> None:
    found = support.examined(settings(folder, "own_choices", prompting=prompting), {}, model, tmp_path / "out")
    rows = support.rows(found, tmp_path / "out")
    tokenizer = tokenizers.load(model.path)
    for one, doc in zip(rows, DOCS, strict=True):
        asked = f"Q: {doc['question']}\nA:"
        if prompting == "chat":
            ids, space = prompt_ids(messages(("user", asked)), tokenizer), ""
        else:
            ids, space = [tokenizer.bos_id, *tokenizer.encode(asked)], " "
        scores = [continued(model, ids, tokenizer.encode(space + text)) for text in doc["choices"]]
        told = [float(answer.strip("(").split(",")[0]) for answer in json.loads(one["shown"])["answers"]]
        assert told == pytest.approx(scores, abs=2e-3)
        assert one["acc"] == (scores.index(max(scores)) == doc["answer"])
        assert (one["id"], one["unit"], one["by_task"]) == (f"own_choices:{rows.index(one)}",) * 2 + ("own_choices",)
    measure = found.measures[0]
    assert (measure.name, measure.better) == ("acc", "higher")
    assert found.notes["results"]["own_choices"]["acc,none"] == pytest.approx(sum(one["acc"] for one in rows) / 5)


def test_answers_end_at_their_stops_and_texts_have_their_perplexities(
    model: Artifact, folder: Path, tmp_path: Path
) -> None:
    found = support.examined(settings(folder, "own_answers", "own_texts"), {}, model, tmp_path / "out")
    rows = support.rows(found, tmp_path / "out")
    told = support.estimates(found, tmp_path / "out")
    tokenizer = tokenizers.load(model.path)
    by_id = {one["id"]: one for one in rows}
    shown = json.loads(by_id["own_answers:0"]["shown"])
    ids = [tokenizer.bos_id, *tokenizer.encode(f"Q: {DOCS[0]['question']}\nA:")]
    begun = len(ids)
    while len(ids) < begun + 8 and ids[-1] not in (tokenizer.eos_id, tokenizer.end_of_turn_id):
        ids.append(int(logprobs(model, ids)[-1].argmax()))
    said = tokenizer.decode([one for one in ids[begun:] if one > 3]).split("e")[0]
    assert shown["answers"][0].strip() == said.strip()
    assert by_id["own_answers:0"]["exact_match"] == (said == "the friend")
    bos = [tokenizer.bos_id]
    total = -sum(continued(model, bos, tokenizer.encode(doc["question"])) for doc in DOCS)
    words = sum(len(doc["question"].split()) for doc in DOCS)
    size = sum(len(doc["question"]) for doc in DOCS)
    assert told["word_perplexity"] == pytest.approx(math.exp(total / words), rel=1e-3)
    assert told["bits_per_byte"] == pytest.approx(total / size / math.log(2), rel=1e-3)
    theirs = found.notes["results"]["own_texts"]
    assert told["word_perplexity"] == pytest.approx(theirs["word_perplexity,none"], rel=1e-6)
    assert told["byte_perplexity"] == pytest.approx(theirs["byte_perplexity,none"], rel=1e-6)
    assert "exact_match" not in by_id["own_texts:0"]
    assert told["groups"]["task"]["own_answers"].keys() == {"exact_match"}


def test_the_same_twice_and_what_was_answered_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch, model: Artifact, folder: Path, tmp_path: Path
) -> None:
    said = settings(folder, "own_choices", "own_answers")
    first = support.rows(support.examined(said, {}, model, tmp_path / "a"), tmp_path / "a")
    monkeypatch.setattr(subject.Subject, "policy", subject.Subject.policy)
    monkeypatch.setattr(core, "hidden_states", None)
    monkeypatch.setattr("alignment.sampling.sampler.Sampler.draw", None)
    assert support.rows(support.examined(said, {}, model, tmp_path / "a"), tmp_path / "a") == first


def test_the_answers_to_a_task_are_the_same_whichever_tasks_stand_beside_it(
    model: Artifact, folder: Path, tmp_path: Path
) -> None:
    own = yaml.safe_load((folder / "own_answers.yaml").read_text())
    own["generation_kwargs"] |= {"do_sample": True, "temperature": 1.0, "until": []}
    for name in ("own_answers", "own_before"):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(own | {"task": name, "repeats": 2}))
    drawn: list[list[Any]] = []
    for place, tasks in enumerate((("own_answers",), ("own_answers", "own_before"), ("own_before", "own_answers"))):
        found = support.examined(settings(folder, *tasks), {}, model, tmp_path / f"{place}")
        rows = support.rows(found, tmp_path / f"{place}")
        drawn.append([json.loads(row["shown"])["answers"] for row in rows if row["by_task"] == "own_answers"])
    assert drawn[0] == drawn[1] == drawn[2]
    assert len({str(one) for one in drawn[0]}) > 1, "documents are answered differently"


def test_every_request_has_a_noise_of_its_own() -> None:
    from lm_eval.api.instance import Instance

    from alignment.evals.suites.harness import keys_of

    def requests(task: str) -> list[Instance]:
        """Of two documents, each asked twice."""
        return [
            Instance("generate_until", {}, ("?", {}), 0, metadata=(task, doc, 2)) for doc in range(2) for _ in range(2)
        ]

    alone = keys_of(requests("a"))
    assert alone == ["a:0:0", "a:0:1", "a:1:0", "a:1:1"]
    assert keys_of([*requests("b"), *requests("a")])[4:] == alone


def test_sizes_of_parts_and_batches_and_the_order_of_documents_change_no_likelihood(
    monkeypatch: pytest.MonkeyPatch, model: Artifact, folder: Path, tmp_path: Path
) -> None:
    def likelihoods(name: str) -> dict[str, list[str]]:
        rows = support.rows(
            support.examined(settings(folder, "own_choices"), {}, model, tmp_path / name), tmp_path / name
        )
        shown = [json.loads(row["shown"]) for row in rows]
        return {one["asked"][0]: [answer.strip("(").split(",")[0] for answer in one["answers"]] for one in shown}

    wanted = likelihoods("a")
    monkeypatch.setattr(subject.Subject.in_parts, "__defaults__", (2,))
    monkeypatch.setattr(held_out, "TOKENS_A_BATCH", 60)
    (folder / "docs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in DOCS[::-1]))
    found = likelihoods("b")
    assert found.keys() == wanted.keys()
    assert [*found] != [*wanted]
    for asked, scores in wanted.items():
        assert [float(one) for one in found[asked]] == pytest.approx([float(one) for one in scores], abs=1e-5, rel=0)


def test_worked_examples_and_a_count_are_the_harnesss_own(model: Artifact, folder: Path, tmp_path: Path) -> None:
    own = yaml.safe_load((folder / "own_choices.yaml").read_text()) | {"fewshot_split": "test"}
    (folder / "own_choices.yaml").write_text(yaml.safe_dump(own))
    said = settings(folder, "own_choices", shots=2, count=3)
    found = support.examined(said, {}, model, tmp_path / "out")
    rows = support.rows(found, tmp_path / "out")
    assert len(rows) == 3
    assert json.loads(rows[0]["shown"])["asked"][0].count("Q: ") == 3
    assert found.notes["shots"]["own_choices"] == 2


def test_files_of_ones_own_tasks_belong_to_what_was_measured(folder: Path) -> None:
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "utils.cpython-311.pyc").write_bytes(b"")
    found = lm_eval.sources(settings(folder, "own_choices"))
    assert [path.name for path in found] == ["docs.jsonl", "own_answers.yaml", "own_choices.yaml", "own_texts.yaml"]
    assert lm_eval.sources(support.settings("toxigen")) == []


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


def test_what_is_not_there_is_said(
    monkeypatch: pytest.MonkeyPatch, model: Artifact, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        lm_eval.sources(settings(tmp_path / "none", "own_choices"))
    (folder / "docs.jsonl").unlink()
    with pytest.raises(UserError, match="the harness cannot run them"):
        support.examined(settings(folder, "own_choices"), {}, model, tmp_path / "out")
    bare = tmp_path / "bare"
    shutil.copytree(model.path, bare)
    (bare / "chat_template.jinja").unlink()
    said = settings(folder, "own_choices", prompting="chat")
    with pytest.raises(UserError, match="has no chat template"):
        support.examined(said, {}, replace(model, path=bare), tmp_path / "out")
    served = Artifact(tmp_path, "endpoint", "", "endpoint:there", "2" * 64)
    with pytest.raises(UserError, match="is behind a server"):
        support.examined(settings(folder, "own_choices"), {}, served, tmp_path / "out")
    monkeypatch.setattr("alignment.evals.suites.lm_eval.find_spec", lambda name: None)
    with pytest.raises(UserError, match="lm-evaluation-harness is not installed"):
        support.examined(settings(folder, "own_choices"), {}, model, tmp_path / "out")


@pytest.mark.parametrize("prompting", ["raw", "chat"])
def test_a_model_that_was_trained_on_a_question_is_refused(
    prompting: str, model: Artifact, folder: Path, tmp_path: Path
) -> None:
    trained = replace(model, path=tmp_path / "trained")
    shutil.copytree(model.path, trained.path)
    said = settings(folder, "own_choices", prompting=prompting)

    def learned(text: str) -> None:
        seen.write(trained.path, [prompt_key(messages(("user", text)))], [])

    for question in (f" {DOCS[1]['question'].upper()}", f"Q: {DOCS[2]['question']}\nA:"):
        learned(question)
        with pytest.raises(UserError, match="has been trained on 1 of the 10 prompts"):
            support.examined(said, {}, trained, tmp_path / "out")
    learned("the town")  # one of the choices, which anybody may have said
    support.examined(said, {}, trained, tmp_path / "out")


def test_nothing_that_a_model_wrote_is_executed(model: Artifact, folder: Path, tmp_path: Path) -> None:
    path = folder / "own_answers.yaml"
    path.write_text(path.read_text() + "unsafe_code: true\n")
    with pytest.raises(UserError, match="runs what the model writes as code"):
        support.examined(settings(folder, "own_answers"), {}, model, tmp_path / "out")


def test_a_request_that_the_model_cannot_see_whole_is_refused(model: Artifact, folder: Path, tmp_path: Path) -> None:
    own = yaml.safe_load((folder / "own_answers.yaml").read_text())
    own["generation_kwargs"]["max_gen_toks"] = 100_000
    (folder / "own_answers.yaml").write_text(yaml.safe_dump(own))
    with pytest.raises(UserError, match=r"a request of [\d,]+ tokens, and the model sees") as error:
        support.examined(settings(folder, "own_answers"), {}, model, tmp_path / "out")
    assert error.value.remedy == "Say suite.shots=0 or fewer, or a smaller max_new_tokens in suite.decoding."


def test_long_texts_are_read_in_windows(model: Artifact, folder: Path, tmp_path: Path) -> None:
    from lm_eval.api.instance import Instance

    from alignment.evals.suites.harness import Examinee, until

    (tmp_path / "out").mkdir()
    one = subject.Subject(model, support.ENGINE, support.ENDPOINT, tmp_path / "out")
    tokenizer, limit = one.policy.tokenizer, one.policy.tokens_limit
    text = " ".join(support.LINES[:70])
    ids = tokenizer.encode(text)
    assert len(ids) > limit
    (found,) = Examinee(one, None, 0).loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
    told = logprobs(model, [tokenizer.bos_id, *ids[: limit - 2]])
    first = sum(float(told[n, token]) for n, token in enumerate(ids[: limit - 2]))
    assert found < first < 0, "every token counts once"
    assert found / len(ids) == pytest.approx(first / (limit - 2), rel=0.5)
    assert until("one, two", [", ", "two"]) == "one"
    assert until("one", None) == until("one", "x") == "one"
