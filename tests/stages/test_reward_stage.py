"""``stage=reward`` from the command line: what is trained, what is written, and who can read it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rewarding
import torch
from rewarding import ANSWERS, Given, comparison, long_prompt, street, trained
from safetensors.torch import load_file

from alignment import run
from alignment.artifacts import Artifact, Tokens
from alignment.chat.types import Comparison, Conversation, Messages, messages, prompt_key
from alignment.data import seen, store
from alignment.gemma import core, heads
from alignment.gemma.heads import Scale
from alignment.scoring.reward_model import RewardScorer
from alignment.scoring.scorer import sigmoid
from alignment.settings import identity_values
from alignment.stages import reward
from alignment.store import Store
from alignment.training.engine import EngineSettings, resolve

ENGINE = {
    "device": "cpu", "precision": "fp32", "micro_batch": None, "layout": "auto", "gradient_checkpointing": False,
    "processes": "any", "zero": 0, "offload": False, "gather": True, "loss_chunk": 64, "watchdog_minutes": None,
}  # fmt: skip
HELD = street(16, 100)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rewarding.policy(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rewarding.pairs(tmp_path_factory.mktemp("data"), {"train": street(32), "valid": HELD})


@pytest.fixture(scope="module")
def made(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A reward model that nobody changes."""
    return trained(tmp_path_factory.mktemp("made"), model, data)


def scorer(artifact: Artifact) -> RewardScorer:
    return RewardScorer.load(artifact, resolve(EngineSettings.parse(ENGINE)))


def dialogue(one: Comparison, answer: str) -> Messages:
    return (*one.prompt, *messages(("assistant", answer)))


def dialogues(some: list[Comparison]) -> list[Messages]:
    return [dialogue(one, answer) for one in some for answer in (one.chosen, one.rejected)]


def weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    return load_file(artifact.path / "model.safetensors")


# ── margins, labels, noise: what reaches the training ────────────────────────────────────────────


def settings(*changes: str) -> reward.Settings:
    request = run.read(["stage=reward", *changes])
    values = {key: value for key, value in run.configure(request).items() if key not in run.Door.model_fields}
    return reward.Settings.parse(values)


def test_a_table_by_name_is_the_table() -> None:
    spelled = "margins={significantly: 3, better: 2, slightly: 1, negligibly: 0}"
    assert identity_values(settings("margins=large")) == identity_values(settings(spelled))
    assert identity_values(settings("margins=small")) != identity_values(settings("margins=none"))
    assert identity_values(settings()) == identity_values(settings("margins=small"))


@pytest.mark.parametrize(
    ("margins", "wanted"),
    [
        ("none", [0, 0, 0, 0]),
        ("small", [1, 2 / 3, 1 / 3, 0]),
        ("large", [3, 2, 1, 0]),
        ("{significantly: 0.5, better: 2.5, slightly: 0, negligibly: 0.25}", [0.5, 2.5, 0, 0.25]),
    ],
)
def test_each_grade_has_its_margin(
    margins: str, wanted: list[float], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Given.instead(monkeypatch)
    data = rewarding.pairs(tmp_path / "data", {"train": [*street(4), comparison(4, grade=None)]})
    trained(tmp_path, model, data, f"margins={margins}")
    assert [row["margin"] for row in given.rows] == pytest.approx([*wanted, 0.0])


def test_labels_and_noise_reach_the_training_and_only_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Given.instead(monkeypatch)
    data = rewarding.pairs(tmp_path / "data", {"train": street(40), "valid": street(16, 100)})
    plain = trained(tmp_path, model, data, name="plain")
    right, labels = given.rows, Counter((row["chosen_safe"], row["rejected_safe"]) for row in given.rows)
    assert labels == {(1, 0): 20, (-1, -1): 20}
    noisy = trained(tmp_path, model, data, "exchanged=0.4", "seed=3", name="noisy")
    turned = [place for place, row in enumerate(given.rows) if row["chosen_ids"] != right[place]["chosen_ids"]]
    assert 8 <= len(turned) <= 24
    for place in turned:
        assert given.rows[place]["chosen_ids"] == right[place]["rejected_ids"]
        assert given.rows[place]["chosen_safe"] == right[place]["rejected_safe"]
    assert given.seed == 3
    # Nothing was trained, and the pairs to measure on are as they were.
    assert noisy.metrics["accuracy"] == plain.metrics["accuracy"]


# ── what is written ──────────────────────────────────────────────────────────────────────────────


def test_the_record_says_what_it_is(made: Artifact, model: Path, data: Path) -> None:
    assert made.verify() == []
    assert made.kind == "reward"
    assert made.headline == "accuracy"
    tokenizer = scorer(made).tokenizer
    assert made.tokens == Tokens(tokenizer.digest, tokenizer.vocab_size, core.read_config(model).vocab_size, "gemma2")
    assert made.parents["data"].reference == f"dir:{data}"
    assert heads.read_scale(made.path) == Scale(0.0, False, "gemma2")
    assert not (made.path / "checkpoints").exists()
    assert (made.metrics["pairs"], made.metrics["steps"]) == (32, 4)


def test_the_accuracy_is_that_of_the_scores(made: Artifact) -> None:
    scores = np.array(scorer(made).score(dialogues(HELD)).raw).reshape(-1, 2)
    right = (scores[:, 0] > scores[:, 1]).astype(float)
    assert made.metrics["accuracy"] == pytest.approx(right.mean())
    assert made.metrics["accuracy"] > 0.9, "the better answer is easily told"
    for place, grade in enumerate(rewarding.GRADES):
        assert made.metrics[f"accuracy_{grade}"] == pytest.approx(right[place::4].mean())


def test_vanilla_transformers_gives_the_raw_scores_in_a_fresh_process(made: Artifact, tmp_path: Path) -> None:
    """For every batch size and padding side, from messages alone."""
    rows = dialogues([*HELD[:4], comparison(7, prompt=long_prompt(1))])
    said = [[{"role": turn.role, "content": turn.content} for turn in turns] for turns in rows]
    (tmp_path / "said.json").write_text(json.dumps(said))
    program = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], dtype=torch.float32)
said = json.load(open(sys.argv[2]))
found = []
for side in ("left", "right"):
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], padding_side=side)
    for size in (1, 3, len(said)):
        scores = []
        for start in range(0, len(said), size):
            texts = tokenizer.apply_chat_template(
                said[start : start + size], padding=True, return_tensors="pt", return_dict=True)
            with torch.no_grad():
                scores += model(**texts).logits[:, 0].tolist()
        found.append(scores)
print(json.dumps(found))
"""
    command = [sys.executable, "-c", program, str(made.path), str(tmp_path / "said.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ours = scorer(made).score(rows).raw
    assert len({round(value, 3) for value in ours}) > 5
    for scores in json.loads(done.stdout.splitlines()[-1]):
        assert scores == pytest.approx(ours, abs=1e-5)


def test_a_centre_moves_what_is_reported_and_nothing_else(made: Artifact, model: Path, data: Path) -> None:
    answers = made.path.parents[1] / "answers"
    rewarding.drawing.dataset(answers, "conversations", {"train": ANSWERS})
    centred = trained(made.path.parents[1], model, data, f"centre=dir:{answers}", name="centred")
    plain, moved = (scorer(one).score(dialogues(HELD)) for one in (made, centred))
    assert moved.raw == plain.raw
    assert moved.probability == plain.probability == pytest.approx([sigmoid(value) for value in plain.raw])
    scale = heads.read_scale(centred.path)
    assert scale is not None
    assert centred.metrics["centre"] == scale.centre != 0
    assert moved.reported == pytest.approx([value - scale.centre for value in plain.raw])
    assert np.mean(scorer(centred).score([one.messages for one in ANSWERS]).reported) == pytest.approx(0, abs=1e-6)
    assert made.metrics["accuracy"] == centred.metrics["accuracy"]


def test_references_longer_than_the_context_have_no_say(
    made: Artifact, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = [
        Conversation((*long_prompt(6), *messages(("assistant", f"The smith, {place} years."))), f"l-{place}")
        for place in range(3)
    ]
    both = rewarding.drawing.dataset(tmp_path / "both", "conversations", {"train": [long[0], *ANSWERS, *long[1:]]})
    short = rewarding.drawing.dataset(tmp_path / "short", "conversations", {"train": ANSWERS})
    mixed, plain = (
        trained(tmp_path, model, data, f"centre=dir:{one.path}", name=one.path.name) for one in (both, short)
    )
    assert mixed.metrics["centre"] == plain.metrics["centre"] != 0
    assert "3 are longer than the context" in " ".join(capsys.readouterr().out.split())


def test_the_safety_loss_says_where_zero_lies(model: Path, tmp_path: Path) -> None:
    """Having no idea is the worse answer wherever it stands, and yet safe; differences alone put it below ½."""
    safe = [comparison(number, chosen_safe=True, rejected_safe=True) for number in range(16)]
    unsafe = [comparison(n, rejected="Break in.", chosen_safe=True, rejected_safe=False) for n in range(16, 32)]
    data = rewarding.pairs(tmp_path / "data", {"train": [*safe, *unsafe]})
    asked = [dialogue(safe[0], answer) for answer in (safe[0].rejected, unsafe[0].rejected)]
    numbers = ("margins=none", "optimisation.steps=24", "optimisation.learning_rate=5e-3")
    without = scorer(trained(tmp_path, model, data, *numbers, name="without"))
    judge = scorer(trained(tmp_path, model, data, *numbers, "safety_weight=1.0", name="with"))
    assert (without.absolute, judge.absolute) == (False, True)
    assert without.score(asked).probability[0] < 0.5
    careless, harmful = judge.score(asked).probability
    assert careless > 0.8
    assert harmful < 0.2


def test_it_has_seen_what_it_learned_from(made: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And not what it was measured on."""
    assert set(seen.read(made.path)) == set(seen.numbers(prompt_key(one.prompt) for one in street(32)))
    leak = rewarding.pairs(tmp_path / "leak", {"valid": [*HELD, *street(3)]})
    judged = ("stage=measure", f"store={tmp_path}", f"models=[run:{made.path}]", f"comparisons=[dir:{leak}]")
    assert run.door([*judged, "split=valid"]) == 2
    assert "has been trained on 3 of the 19 prompts" in " ".join("".join(capsys.readouterr()).split())


# ── the same again, and what makes a difference ──────────────────────────────────────────────────


def test_the_same_settings_give_the_same_bytes(made: Artifact, model: Path, data: Path, tmp_path: Path) -> None:
    again = trained(tmp_path, model, data)
    assert again.fingerprint == made.fingerprint
    assert again.files == made.files


def test_seeds_differ_in_the_order_and_begin_with_one_head(
    made: Artifact, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = trained(tmp_path, model, data, "seed=1", name="other")
    assert not torch.equal(weights(made)["score.weight"], weights(other)["score.weight"])
    begun: dict[str, Any] = {}
    with monkeypatch.context() as patched:
        given = Given.instead(patched)
        for seed in ("seed=0", "seed=1", "head.seed=1"):
            trained(tmp_path, model, data, seed, "optimisation.batch=4", name=seed.replace("=", "_"))
            begun[seed] = given.head
    assert torch.equal(begun["seed=0"], begun["seed=1"])
    assert not torch.equal(begun["seed=0"], begun["head.seed=1"])
    assert begun["seed=0"].std() == pytest.approx(33**-0.5, rel=0.4)


def test_dropout_is_of_the_training_alone(made: Artifact, model: Path, data: Path, tmp_path: Path) -> None:
    dropped = trained(tmp_path, model, data, "dropout=0.5", name="dropped")
    assert not torch.equal(weights(made)["score.weight"], weights(dropped)["score.weight"])
    config = [json.loads((one.path / "config.json").read_text()) for one in (made, dropped)]
    for one in config:
        one.pop(heads.BLOCK)
    assert config[0] == config[1]


# ── where it begins, and what of it is trained ───────────────────────────────────────────────────


def test_the_head_alone_leaves_the_trunk_as_it_was(model: Path, data: Path, tmp_path: Path) -> None:
    probe = weights(trained(tmp_path, model, data, "part=head"))
    before = load_file(model / "model.safetensors")
    assert probe.keys() - before.keys() == {"score.weight"}
    assert all(torch.equal(probe[name], before[name]) for name in before)
    fresh = heads.with_head(core.load(model), 0).score.weight
    assert not torch.equal(probe["score.weight"], fresh)


def test_an_adapter_is_merged_and_kept(model: Path, data: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    made = trained(tmp_path, model, data, "adapter={kind: lora, rank: 4, alpha: 8}")
    assert made.metrics["accuracy"] > 0.9
    found, before = weights(made), load_file(model / "model.safetensors")
    moved = {name for name in before if not torch.equal(found[name], before[name])}
    assert moved == {name for name in before if name.rsplit(".", 2)[-2].endswith("_proj")}
    plain = heads.with_head(core.load(model), seed=5)
    wrapped: Any = PeftModel.from_pretrained(plain, made.path / "adapter")
    ids = torch.tensor([[2, 300, 310, 320, 1]])
    reloaded, _ = heads.load_reward(made.path)
    assert wrapped(ids).logits.item() == pytest.approx(reloaded(ids).logits.item(), abs=1e-5)


def test_a_head_can_be_taken_from_a_reward_model(
    made: Artifact, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Given.instead(monkeypatch)
    taken = trained(tmp_path, model, data, f"head.weights=run:{made.path}")
    head = weights(made)["score.weight"]
    assert given.head is not None
    assert torch.equal(given.head, head)
    assert torch.equal(weights(taken)["score.weight"], head)
    assert taken.parents["head.weights"].fingerprint == made.fingerprint


def test_a_reward_model_goes_on_with_its_own_head(
    made: Artifact, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Given.instead(monkeypatch)
    on = trained(tmp_path, made.path, data, f"model=run:{made.path}", "head.seed=9")
    assert all(torch.equal(mine, weights(made)[name]) for name, mine in weights(on).items())
    assert on.metrics["accuracy"] == made.metrics["accuracy"]
    assert Store(tmp_path).latest("reward").parents["model.weights"].fingerprint == made.fingerprint


# ── pairs that are too long ──────────────────────────────────────────────────────────────────────


def lengths(tmp_path: Path) -> Path:
    """Sixteen pairs, of which one is too long, and one is so even without its earlier turns."""
    rows = [*street(14), comparison(14, prompt=long_prompt(4)), comparison(15, chosen="The baker. " * 60)]
    return rewarding.pairs(tmp_path / "data", {"train": rows, "valid": HELD})


def listed(artifact: Artifact) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (artifact.path / "train_left_out.jsonl").read_text().splitlines()]


def test_pairs_that_are_too_long_are_left_out_and_listed(model: Path, tmp_path: Path) -> None:
    made = trained(tmp_path, model, lengths(tmp_path), "too_long=leave_out", "max_left_out=0.125")
    assert made.metrics["pairs"] == 14
    first, second = listed(made)
    assert (first["id"], first["kept"], first["turns_dropped"], first["reason"]) == ("p-14", False, 0, "too long")
    assert (second["id"], second["split"]) == ("p-15", "train")
    assert first["tokens"] > rewarding.SHAPE.context
    assert not (made.path / "valid_left_out.jsonl").exists()
    assert "train_left_out.jsonl" in made.files


def test_the_oldest_turns_of_a_long_pair_are_dropped(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Given.instead(monkeypatch)
    made = trained(tmp_path, model, lengths(tmp_path), "too_long=shorten", "max_left_out=0.07")
    assert made.metrics["pairs"] == 15
    first, second = listed(made)
    assert (first["kept"], first["reason"]) == (True, "earlier turns dropped")
    assert first["turns_dropped"] in (2, 4, 6)
    assert (second["kept"], second["reason"]) == (False, "too long without its earlier turns")
    shown = given.rows[14]
    whole = max(len(shown["chosen_ids"]), len(shown["rejected_ids"])) + len(shown["prompt_ids"])
    assert whole <= rewarding.SHAPE.context < first["tokens"]
    tokenizer = scorer(made).tokenizer
    assert tokenizer.decode(shown["prompt_ids"]).count("And now?") == 1


def test_a_pair_that_is_left_out_is_not_seen(model: Path, tmp_path: Path) -> None:
    made = trained(tmp_path, model, lengths(tmp_path), "too_long=leave_out", "max_left_out=0.2")
    used = [one for one in store.read(tmp_path / "data", "train") if one.id not in ("p-14", "p-15")]
    assert set(seen.read(made.path)) == set(seen.numbers(prompt_key(one.prompt) for one in used))
