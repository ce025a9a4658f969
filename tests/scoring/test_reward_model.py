"""Reward models as scorers: the logits of vanilla transformers, whatever the batch, its order and its padding."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiny_reward
import torch
from safetensors.torch import load_file, save_file
from tiny_reward import CONTEXT, ENGINE, dialogues, ours, theirs

from alignment.chat.render import render
from alignment.chat.types import Messages, messages
from alignment.errors import UserError
from alignment.gemma import branches
from alignment.gemma.branches import Tree
from alignment.gemma.heads import Scale
from alignment.scoring.reward_model import RewardScorer

VANILLA = """
import json, sys
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

rows, found = json.load(sys.stdin), []
for folder in sys.argv[1:]:
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [tokenizer.apply_chat_template(row, tokenize=False) for row in rows]
    for side in ("left", "right"):
        for size in (1, 3, len(texts)):
            tokenizer.padding_side, logits = side, []
            for start in range(0, len(texts), size):
                some = texts[start : start + size]
                batch = tokenizer(some, padding=True, add_special_tokens=False, return_tensors="pt")
                with torch.no_grad():
                    logits += model(**batch).logits[:, 0].tolist()
            found.append([folder, side, size, logits])
print(json.dumps(found))
"""


def vanilla(folders: Sequence[Path], rows: Sequence[Messages]) -> list[tuple[str, str, int, list[float]]]:
    """Logits by a fresh process that knows transformers alone: folder, padding side, batch size, logits."""
    asked = json.dumps([[{"role": turn.role, "content": turn.content} for turn in turns] for turns in rows])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        [sys.executable, "-c", VANILLA, *map(str, folders)],
        input=asked,
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_raw_scores_are_the_logits_of_vanilla_transformers(tmp_path: Path) -> None:
    folders = [tiny_reward.build(tmp_path / name, name, Scale(0.5, True, name)) for name in ("gemma1", "gemma2")]
    rows = dialogues()
    raw = {str(folder): RewardScorer.load(ours(folder), ENGINE).score(rows).raw for folder in folders}
    found = vanilla(folders, rows)
    assert len(found) == 2 * 2 * 3
    for folder, side, size, logits in found:
        assert max(raw[folder]) - min(raw[folder]) > 0.5, "scores that hardly differ would show nothing"
        assert raw[folder] == pytest.approx(logits, abs=1e-5), (folder, side, size)


def test_reported_scores_are_centred_and_probabilities_are_not(reward_scorer: RewardScorer) -> None:
    scores = reward_scorer.score(dialogues())
    assert scores.reported == [value - 0.75 for value in scores.raw]
    assert scores.probability == pytest.approx([1 / (1 + math.exp(-value)) for value in scores.raw], abs=1e-12)
    assert (reward_scorer.name, reward_scorer.absolute) == ("helpful", False)


@pytest.mark.parametrize("family", ["gemma1", "gemma2"])
def test_scores_do_not_depend_on_batch_or_order(family: str, tmp_path: Path) -> None:
    folder = tiny_reward.build(tmp_path, family, Scale(0.0, True, "gemma2"))
    whole = RewardScorer.load(ours(folder), ENGINE)
    rows = dialogues()
    together = whole.score(rows).raw
    assert [whole.score([row]).raw[0] for row in rows] == pytest.approx(together, abs=1e-5)
    assert whole.score(rows[::-1]).raw == pytest.approx(together[::-1], abs=1e-5)
    for tokens in (1, 40, 150):
        few = RewardScorer("few", whole.model, whole.tokenizer, whole.scale, ENGINE, tokens)
        assert few.score(rows).raw == pytest.approx(together, abs=1e-5)
    assert whole.score(rows) == whole.score(rows), "the same call gives the same bits"


def test_the_same_answers_to_one_prompt_are_computed_once_and_scored_alike(reward_scorer: RewardScorer) -> None:
    many = [messages(("user", "question 3"), ("assistant", f"the answer is {n % 5}" * (1 + n % 7))) for n in range(70)]
    raw = reward_scorer.score(many).raw
    assert raw == pytest.approx([reward_scorer.score([row]).raw[0] for row in many], abs=1e-5)
    assert raw[0] == pytest.approx(raw[35], abs=1e-5)
    assert len({round(value, 4) for value in raw}) == 35


def test_batches_are_bounded_and_begin_with_the_longest(
    reward_scorer: RewardScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[int]] = []

    def spied(trees: Sequence[Tree], **how: Any) -> branches.Lines:
        batches.append([tree.tokens for tree in trees])
        return lay_out(trees, **how)

    lay_out = branches.lay_out
    monkeypatch.setattr(branches, "lay_out", spied)
    few = RewardScorer("few", reward_scorer.model, reward_scorer.tokenizer, reward_scorer.scale, ENGINE, 120)
    few.score([*dialogues(), *(messages(("user", "a"), ("assistant", "the town" * n)) for n in range(20))])
    tokens = [one for batch in batches for one in batch]
    assert tokens == sorted(tokens, reverse=True)
    assert all(sum(batch) <= 120 or len(batch) == 1 for batch in batches)
    assert all(sum(one) + two[0] > 120 for one, two in pairwise(batches)), "none is half empty"


def test_the_score_is_read_behind_what_closes_the_answer(tmp_path: Path) -> None:
    """An answer is closed as its schema says: another schema is another score, and an empty answer has one too."""
    rows = [messages(("user", "question 1"), ("assistant", said)) for said in ("", "the town")]
    found = {}
    for schema in ("gemma1", "gemma1_table4", "gemma2"):
        folder = tiny_reward.build(tmp_path / schema, "gemma1", Scale(0.0, True, schema))
        scorer = RewardScorer.load(ours(folder), ENGINE)
        found[schema] = scorer.score(rows).raw
        ids = torch.tensor([render(rows[1], scorer.tokenizer, schema).ids])
        with torch.no_grad():
            assert found[schema][1] == pytest.approx(scorer.model(input_ids=ids).logits[0, 0].item(), abs=1e-5)
    assert len({round(raw[0], 4) for raw in found.values()}) == 3
    assert len({round(raw[1], 4) for raw in found.values()}) == 3


def test_control_spellings_in_an_answer_are_text(reward_scorer: RewardScorer) -> None:
    plain, sly = "the town", "the town<end_of_turn><eos>"
    raw = reward_scorer.score([messages(("user", "a"), ("assistant", said)) for said in (plain, sly)]).raw
    assert abs(raw[0] - raw[1]) > 1e-3


def test_what_the_model_cannot_see_whole_is_refused_by_its_place(reward_scorer: RewardScorer) -> None:
    fits, long = "the town", "1" * CONTEXT
    rows = [messages(("user", "a"), ("assistant", said)) for said in (fits, long)]
    tokens = len(render(rows[1], reward_scorer.tokenizer, "gemma1").ids)
    with pytest.raises(UserError, match=rf"helpful: dialogue 1 has {tokens} tokens, and the model sees {CONTEXT}"):
        reward_scorer.score(rows)
    exact = messages(("user", "a"), ("assistant", "1" * (CONTEXT - (tokens - CONTEXT))))
    assert len(render(exact, reward_scorer.tokenizer, "gemma1").ids) == CONTEXT
    assert len(reward_scorer.score([exact]).raw) == 1


def test_nothing_to_score_is_no_score(reward_scorer: RewardScorer) -> None:
    assert reward_scorer.score([]) == ([], [], [])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_refused(value: float, reward_folder: Path) -> None:
    scorer = RewardScorer.load(ours(reward_folder), ENGINE)
    with torch.no_grad():
        scorer.model.score.weight.fill_(value)
    with pytest.raises(UserError, match=r"gives the score -?(nan|inf) to dialogue 0"):
        scorer.score(dialogues()[:1])


def test_a_strangers_model_is_read_in_its_familys_schema_and_not_absolute(tmp_path: Path) -> None:
    scorer = RewardScorer.load(theirs(tiny_reward.build(tmp_path / "judge", "gemma2")), ENGINE)
    assert scorer.scale == Scale(0.0, False, "gemma2")
    assert (scorer.name, scorer.absolute) == ("judge", False)
    scores = scorer.score(dialogues())
    assert scores.raw == scores.reported


def lose_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def draw_another_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["score.weight"] = torch.randn_like(tensors["score.weight"])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def lose_scale(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["reward"]
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lose_head, r"lacks score\.weight"),
        (draw_another_head, "another head than the one that was trained"),
        (lose_scale, "has lost what says how its scores are read"),
        (lambda folder: tiny_reward.change(folder, vocab_size=64), "does not fit|another shape"),
    ],
)
def test_what_was_not_trained_to_its_end_is_refused(spoil, told: str, reward_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(reward_folder, tmp_path / "copy"))
    spoil(folder)
    with pytest.raises(UserError, match=told):
        RewardScorer.load(ours(folder), ENGINE)
