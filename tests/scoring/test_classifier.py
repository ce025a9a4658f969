"""Classifiers in Hugging Face's layout as scorers, on a tiny one whose arithmetic can be redone by hand."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_classifier
import torch
from tiny_classifier import SHAPE, WINDOW, saved
from transformers import (
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from alignment.artifacts import foreign
from alignment.chat.types import Messages, messages
from alignment.errors import UserError
from alignment.scoring.classifier import Classifier, Part, is_classifier
from alignment.training.engine import Engine, EngineSettings

ENGINE = Engine(
    "cpu",
    False,
    False,
    1,
    EngineSettings(
        device="cpu",
        precision="fp32",
        micro_batch=None,
        layout="auto",
        gradient_checkpointing=False,
        zero=0,
        processes="any",
        offload=False,
        gather=True,
        loss_chunk=64,
        watchdog_minutes=None,
    ),
)
Build = Callable[..., Path]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """A tiny BERT with these labels: ``build("safe", "toxic")``."""

    return partial(tiny_classifier.build, tmp_path / "tiny")


def load(folder: Path, label: str | None = None, text: Part = "answer") -> Classifier:
    return Classifier.load(foreign(folder, f"dir:{folder}"), ENGINE, label, text)


def said(answer: str, question: str = "a b") -> Messages:
    return messages(("user", question), ("assistant", answer))


def logits_of(folder: Path, *texts: str) -> list[float]:
    """The model's logits for one text or pair, by itself, as the library gives them."""
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    with torch.no_grad():
        return model(**tokenizer(*texts, return_tensors="pt")).logits[0].tolist()


def test_labels_that_exclude_each_other_give_the_logit_of_the_probability(build: Build) -> None:
    folder = build("safe", "mild", "toxic")
    scores = load(folder, "toxic").score([said("bad c")])
    probability = torch.tensor(logits_of(folder, "bad c")).softmax(0)[2].item()
    assert scores.reported == pytest.approx([probability], abs=1e-6)
    assert scores.raw == pytest.approx([math.log(probability / (1 - probability))], abs=1e-5)


def test_independent_labels_give_their_own_logit(build: Build) -> None:
    folder = build("toxic", "threat", problem="multi_label_classification")
    scores = load(folder, "threat").score([said("bad c")])
    (_, logit) = logits_of(folder, "bad c")
    assert scores.raw == pytest.approx([logit], abs=1e-5)
    assert scores.reported == pytest.approx([1 / (1 + math.exp(-logit))], abs=1e-6)
    assert scores.probability == scores.reported


def test_a_reward_model_needs_no_label_and_gives_its_reward(build: Build) -> None:
    folder = build("reward")
    scorer = load(folder, None, "dialogue")
    assert scorer.name == "tiny"
    assert scorer.score([said("good", "a c")]).raw == pytest.approx(logits_of(folder, "a c", "good"), abs=1e-5)


@pytest.mark.parametrize(
    ("labels", "problem", "absolute"),
    [
        (("safe", "toxic"), None, True),
        (("toxic",), "multi_label_classification", True),
        (("reward",), None, False),
        (("reward",), "regression", False),
    ],
)
def test_a_single_logit_that_was_not_trained_as_a_probability_is_none(
    build: Build, labels: tuple[str, ...], problem: str | None, absolute: bool
) -> None:
    assert load(build(*labels, problem=problem), labels[-1]).absolute is absolute


def test_an_answer_is_judged_without_its_prompt_and_a_dialogue_with_it(build: Build) -> None:
    folder = build("reward")
    alone, both = load(folder), load(folder, None, "dialogue")
    pair = [said("good", "a"), said("good", "bad d")]
    assert len(set(alone.score(pair).raw)) == 1
    assert len(set(both.score(pair).raw)) == 2
    turns = messages(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "good"))
    assert both.score([turns]).raw == pytest.approx(logits_of(folder, "a\n\nb\n\nc", "good"), abs=1e-5)


def test_scores_do_not_depend_on_the_batch_or_its_order(build: Build) -> None:
    scorer = load(build("safe", "toxic"), "toxic")
    rows = [said(" ".join(["a", "bad", "c", "good"][: n % 4 + 1] * (n % 3 + 1))) for n in range(24)] + [said("")]
    together = scorer.score(rows)
    assert [scorer.score([row]).raw[0] for row in rows] == pytest.approx(together.raw, abs=1e-5)
    assert scorer.score(rows[::-1]).raw == pytest.approx(together.raw[::-1], abs=1e-5)
    assert scorer.score(rows) == together


def test_a_long_answer_has_the_score_of_its_worst_piece(build: Build) -> None:
    folder = build("reward")
    words = ["a", "b", "c", "d"] * 8 + ["bad"] * 3 + ["good", "c"] * 6
    # 14 words beside [CLS] and [SEP]; each piece begins 14 − 3 words after the one before.
    pieces = [" ".join(words[start : start + 14]) for start in range(0, len(words) - 3, 11)]
    assert len(pieces) > 3
    expected = [logits_of(folder, piece)[0] for piece in pieces]
    assert expected.index(max(expected)) > 0, "the first piece alone would do"
    assert load(folder).score([said(" ".join(words)), said("a")]).raw[0] == pytest.approx(max(expected), abs=1e-5)


def test_an_answer_that_just_fits_is_one_piece(build: Build) -> None:
    folder = build("reward")
    text = " ".join(["a", "bad"] * 7)
    assert load(folder).score([said(text)]).raw == pytest.approx(logits_of(folder, text), abs=1e-5)


def test_a_dialogue_that_is_longer_than_the_window_is_refused(build: Build) -> None:
    folder = build("reward")
    scorer = load(folder, None, "dialogue")
    # [CLS] a b [SEP] … [SEP] leaves 11 words for the answer.
    text = " ".join((["a", "c", "bad", "good"] * 3)[:11])
    assert scorer.score([said(text)]).raw == pytest.approx(logits_of(folder, "a b", text), abs=1e-5)
    told = r"tiny: dialogue 1 has 17 tokens, and the model reads 16 at once\n(.*\n)*.*classifier.text=answer"
    with pytest.raises(UserError, match=told):
        scorer.score([said("a"), said(f"{text} d")])
    with pytest.raises(UserError, match="dialogue 0 has 17 tokens"):
        scorer.score([said("a", "a b c d a b c d a b c d a")])


def test_robertas_positions_begin_after_the_padding_id(tmp_path: Path) -> None:
    config = RobertaConfig(**SHAPE, max_position_embeddings=WINDOW + 2, num_labels=1, pad_token_id=1)
    folder = saved(RobertaForSequenceClassification(config), tmp_path / "roberta")
    assert len(load(folder).score([said("a " * 14), said("a " * 40)]).raw) == 2


def test_a_chat_template_of_its_own_renders_the_dialogue(build: Build) -> None:
    folder = build("reward")
    template = (
        "{% for turn in messages %}{{ turn.role[0] if turn.role[0] == 'a' else 'b' }} {{ turn.content }} {% endfor %}"
    )
    (folder / "chat_template.jinja").write_text(template)
    scorer = load(folder, None, "dialogue")
    ids = BertTokenizerFast.from_pretrained(folder)("b c d a good ", add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        expected = BertForSequenceClassification.from_pretrained(folder).eval()(ids["input_ids"]).logits[0].tolist()
    assert scorer.score([said("good", "c d")]).raw == pytest.approx(expected, abs=1e-5)
    with pytest.raises(UserError, match="dialogue 0 has 18 tokens"):
        scorer.score([said("a " * 16, "")])


def test_the_label_that_counts_has_to_be_named(build: Build) -> None:
    folder = build("safe", "toxic")
    with pytest.raises(UserError, match=r"has 2 labels.*\n.*safe, toxic"):
        load(folder)
    with pytest.raises(UserError, match=r"no label 'toxi'.*\n.*Did you mean 'toxic'"):
        load(folder, "toxi")
    assert load(folder, "toxic").name == "tiny:toxic"


def change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def lose_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickle_weights(folder: Path) -> None:
    model = BertForSequenceClassification.from_pretrained(folder)
    lose_weights(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def lose_head(folder: Path) -> None:
    trunk = BertModel.from_pretrained(folder)
    lose_weights(folder)
    trunk.save_pretrained(folder)
    change(folder, architectures=["BertForSequenceClassification"])


def remote_code(folder: Path) -> None:
    change(folder, model_type="mine", auto_map={"AutoConfig": "code.Mine"})
    (folder / "code.py").write_text("raise SystemExit('remote code was run')")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: change(folder, architectures=["BertForMaskedLM"]), r"is no classifier\n.*BertForMaskedLM"),
        (lambda folder: change(folder, architectures=None), r"is no classifier\n.*no architecture"),
        (lambda folder: (folder / "config.json").unlink(), "is no model directory"),
        (lose_weights, "the classifier cannot be opened"),
        (pickle_weights, "the classifier cannot be opened"),
        (lose_head, "weights are missing: classifier.bias"),
        (remote_code, "the classifier cannot be opened"),
    ],
)
def test_what_is_no_whole_classifier_is_refused(build: Build, spoil: Callable[[Path], Any], told: str) -> None:
    folder = build("reward")
    spoil(folder)
    with pytest.raises(UserError, match=told):
        load(folder)


def test_a_classifier_is_known_by_its_config(build: Build, tmp_path: Path) -> None:
    folder = build("reward")
    assert is_classifier(folder)
    change(folder, architectures=["Gemma2ForCausalLM"])
    assert not is_classifier(folder)
    shutil.rmtree(folder)
    assert not is_classifier(folder)
