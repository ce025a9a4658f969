"""``stage=rl`` from the command line: what is learned, what is written, who can read it, and what is refused."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import drawing
import numpy as np
import pytest
import reinforcing
import rewarding
import torch
from reinforcing import HELD, LEARNED, numbers, questions, remembered, trained
from safetensors.torch import load_file

from alignment import run
from alignment.artifacts import Artifact
from alignment.errors import UserError
from alignment.gemma import core
from alignment.run import compose
from alignment.settings import describe
from alignment.stages import rl
from alignment.training import fit
from alignment.training.tracking import read_metrics

PLOTS = "plots.html"
MADE = ("estimating.kind=gae", "anchoring.kind=ema", "watching.rewards=[gold:overall]")


class Parts(NamedTuple):
    """What a command line names."""

    model: Path
    data: Path
    judge: Path


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    root = tmp_path_factory.mktemp("parts")
    model = rewarding.policy(root / "model")
    return Parts(model, reinforcing.prompts(root / "prompts"), reinforcing.reward(root / "reward", model).path)


@pytest.fixture(scope="module")
def made(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A policy that nobody changes: PPO with a critic from the reward model, held to a moving anchor."""
    return trained(tmp_path_factory.mktemp("made"), *parts, *MADE)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def vanilla_logits(folder: Path) -> torch.Tensor:
    """As transformers alone reads it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    said = [{"role": "user", "content": "Who lives in house 3?"}]
    ids = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        logits: torch.Tensor = model(**ids).logits
    return logits


# ── what is written ──────────────────────────────────────────────────────────────────────────────


QUICK = {("gae", "ema", "loss"), ("rloo", "fixed", "reward"), ("reinforce", "ema", "reward")}


@pytest.mark.parametrize(
    ("kind", "anchor", "place"),
    [
        pytest.param(*some, marks=() if some in QUICK else pytest.mark.slow)
        for some in itertools.product(("gae", "rloo", "reinforce"), ("fixed", "ema"), ("reward", "loss"))
    ],
)
def test_every_estimator_anchor_and_place_writes_a_policy_that_transformers_reads(
    kind: str, anchor: str, place: str, parts: Parts, tmp_path: Path
) -> None:
    out = trained(
        tmp_path, *parts, f"estimating.kind={kind}", f"anchoring.kind={anchor}", f"anchoring.place={place}"
    ).path
    before, after = vanilla_logits(parts.model), vanilla_logits(out)
    assert before.shape == after.shape
    assert torch.isfinite(after).all()
    assert float((before - after).abs().max()) > 1e-4
    assert core.read_config(out).vocab_size == core.read_config(parts.model).vocab_size
    assert set(weights(out)) == set(weights(parts.model)), "no value head, no adapter"


def test_the_record_says_what_it_is(made: Artifact, parts: Parts) -> None:
    assert made.verify() == []
    assert (made.kind, made.headline) == ("policy", "reward")
    assert made.tokens is not None
    assert made.tokens.schema == "gemma2"
    assert made.parents["policy"].reference == f"dir:{parts.model}"
    assert {"policy", "prompts", "reward.model"} <= made.parents.keys()
    assert {"front.jsonl", "samples.jsonl", "model.safetensors"} <= made.files.keys()
    assert not (made.path / "checkpoints").exists()
    assert not (made.path / "parts").exists()
    assert (made.notes["ended"], made.notes["steps"]) == ("all steps done", 2)
    front = [json.loads(line) for line in (made.path / "front.jsonl").read_text().splitlines()]
    assert [point["step"] for point in front] == [0, 1, 2]
    assert made.metrics["reward"] == front[-1]["reward"]
    assert made.metrics["kl"] == front[-1]["kl"] > 0
    (name,) = front[-1]["others"]
    assert made.metrics[f"held_out/{name}"] == front[-1]["others"][name]
    rows = [row for row in read_metrics(made.path / "metrics.jsonl") if "score/mean" in row]
    assert [row["step"] for row in rows] == [1, 2]


def test_everything_that_is_to_be_watched_is_written(made: Artifact) -> None:
    rows = [row for row in read_metrics(made.path / "metrics.jsonl") if "score/mean" in row]
    watched = {
        "reward/total", "reward/with_kl", "reward/whitened", "reward/unfinished", "reward/length_penalty",
        "kl/anchor", "kl/anchor_k3", "kl/reverse", "kl/beta", "entropy", "length/mean", "length/unfinished",
        "update/clipped", "update/value_clipped", "update/first_ratio", "critic/explained", "advantage/mean",
        "gradient/policy", "gradient/critic", "loss/policy", "loss/critic",
        *(f"tokens_per_second/{phase}" for phase in ("draw", "judge", "read", "learn")),
    }  # fmt: skip
    for row in rows:
        assert watched <= row.keys()
        assert all(row[name] is not None for name in row)
        assert 0 < row["entropy"] < np.log(core.read_config(made.path).vocab_size) + 1


def test_the_kl_may_be_measured_to_the_first_of_several_runs(made: Artifact, parts: Parts, tmp_path: Path) -> None:
    """A run that begins where another has ended: its own start is at 0, the first one's is not."""
    begun = (f"policy=run:{made.path}", f"reward=run:{parts.judge}", "anchoring.kind=fixed", "updating.steps=1")
    rows = {}
    for name, more in (("own", ()), ("first", (f"watching.reference=dir:{parts.model}",))):
        found = trained(tmp_path, parts.model, parts.data, parts.judge, *begun, *more, name=name)
        rows[name] = [json.loads(line) for line in (found.path / "front.jsonl").read_text().splitlines()]
    assert rows["own"][0]["kl"] == pytest.approx(0, abs=1e-6)
    assert rows["first"][0]["kl"] > 1e-3
    assert rows["own"][1]["reward"] == rows["first"][1]["reward"], "nothing else is changed by it"
    last = [json.loads(line) for line in (made.path / "front.jsonl").read_text().splitlines()][-1]
    assert rows["first"][0]["kl"] == pytest.approx(last["kl"], abs=1e-5), "as the first run measured its own end"


def test_it_has_seen_the_train_prompts_and_not_those_it_was_measured_on(made: Artifact, parts: Parts) -> None:
    """And what its reward model has seen, which it may have learned by heart through it."""
    assert remembered(made.path) == numbers(LEARNED) | remembered(parts.judge)
    assert not remembered(made.path) & numbers(HELD)


@pytest.mark.slow
def test_what_a_policy_had_seen_is_remembered_and_of_new_prompts_the_first(
    made: Artifact, parts: Parts, tmp_path: Path
) -> None:
    more = drawing.dataset(tmp_path / "more", "prompts", {"train": questions(5, 200), "valid": HELD}, miniature=True)
    on = trained(tmp_path, parts.model, more.path, parts.judge, f"policy=run:{made.path}", "count=3")
    assert remembered(on.path) == numbers(questions(3, 200)) | remembered(made.path)


@pytest.mark.slow
def test_the_same_settings_give_the_same_bytes(made: Artifact, parts: Parts, tmp_path: Path) -> None:
    again = trained(tmp_path, *parts, *MADE)
    assert again.fingerprint == made.fingerprint
    # The plots show times, and so do the metrics, which are none of the files of a record.
    assert {**again.files, PLOTS: ""} == {**made.files, PLOTS: ""}
    other = trained(tmp_path, *parts, *MADE, "seed=1", name="other")
    assert other.files["model.safetensors"] != made.files["model.safetensors"]


@pytest.mark.slow
def test_where_it_runs_changes_nothing_that_counts(made: Artifact, parts: Parts, tmp_path: Path) -> None:
    cut = trained(tmp_path, *parts, *MADE, "engine.micro_batch=2", "updating.checkpoint_steps=7")
    assert cut.fingerprint == made.fingerprint
    ours, theirs = weights(made.path), weights(cut.path)
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 2e-4


@pytest.mark.parametrize("critic", ["critic.init=reward", "critic.init=policy"])
def test_a_critic_begins_where_it_is_told_to(
    critic: str, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reward's trunk and head, or the policy's trunk and a head that says 0."""
    from alignment.rl import loop

    found: dict[str, Any] = {}

    def look(_: Any, learner: Any, __: Any) -> Any:
        found.update({name: one.detach().clone() for name, one in learner.roles.critic.state_dict().items()})
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "resume", look)
    command = reinforcing.arguments(tmp_path, *parts, "estimating.kind=gae", critic)
    assert run.door(command) == 130
    source = weights(parts.judge if "reward" in critic else parts.model)
    assert all(torch.equal(found[name], one) for name, one in source.items())
    assert bool(found["score.weight"].any()) == ("reward" in critic)


def test_an_adapter_is_trained_and_merged(parts: Parts, tmp_path: Path) -> None:
    out = trained(
        tmp_path, *parts, "adapter={kind: lora, rank: 4, alpha: 8}", "estimating.kind=gae", "anchoring.kind=ema"
    ).path
    before, after = weights(parts.model), weights(out)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.rsplit(".", 2)[-2].endswith("_proj")}
    assert torch.isfinite(vanilla_logits(out)).all()


def test_the_best_policy_is_the_one_that_is_written(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the closing numbers are its own."""
    from alignment.rl.held_out import HeldOut

    measure = HeldOut.measure
    rewards = {0: 0.0, 1: 5.0, 2: 1.0}

    def scripted(self: HeldOut, model: Any, step: int, out: Path) -> Any:
        point, rows = measure(self, model, step, out)
        return replace(point, reward=rewards[step]), rows

    monkeypatch.setattr(HeldOut, "measure", scripted)
    best = trained(tmp_path, *parts, "watching.keep=best", name="best")
    short = trained(tmp_path, *parts, "updating.steps=1", "updating.schedule=constant", name="short")
    assert best.metrics["reward"] == 5.0
    ours, theirs = weights(best.path), weights(short.path)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def judge_by(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer has the same score."""
    from alignment.scoring import combine

    monkeypatch.setattr(combine, "open_scorer", lambda *_, **__: drawing.Judge(lambda _: value))


def test_equal_scores_are_counted_and_go_on(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge_by(0.5, monkeypatch)
    out = trained(tmp_path, *parts, "anchoring.beta=0").path
    for row in read_metrics(out / "metrics.jsonl"):
        assert row.get("reward/constant", 1.0) == 1.0
        assert row.get("advantage/idle", 1.0) == 1.0
        assert None not in row.values()
    before, after = weights(parts.model), weights(out)
    assert all(torch.equal(before[name], after[name]) for name in before)


# ── what is refused ──────────────────────────────────────────────────────────────────────────────

Refused = Callable[..., str]


@pytest.fixture
def refused(parts: Parts, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Refused:
    """Run the stage, and give what it said in one line."""

    def ask(*more: str, model: Path | None = None, data: Path | None = None) -> str:
        given = (model or parts.model, data or parts.data, parts.judge)
        assert run.door(reinforcing.arguments(tmp_path / "runs", *given, *more)) == 2
        said = " ".join("".join(capfd.readouterr()).split())
        assert "Traceback" not in said
        assert not list((tmp_path / "runs").rglob("artifact.json"))
        return said

    return ask


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ("drawing.samples=1", "rloo compares an answer with the others"),
        ("updating.batch=9", "updating.batch=9"),
        ("updating.batch=12 updating.minibatch=8", "updating.batch=12"),
        ("drawing.samples=0", "drawing.samples=0"),
        ("anchoring.beta=-1", "anchoring.beta=-1"),
        ("anchoring.beta=11", "anchoring.beta=11"),
        ("drawing.temperature=0", "drawing.temperature=0"),
        ("estimating.kind=ppo", "'gae', 'rloo' or 'reinforce'"),
        ("estimating.kind=ema", "'gae', 'rloo' or 'reinforce'"),
        ("anchoring.kind=ema anchoring.rate=0", "anchoring.rate=0"),
        ("reward.rule=llama2", "reward.safety"),
        ("reward.rule=weighted", "reward.others"),
        ("roles=shared", "adapter.kind=lora"),
        ("adapter.kind=qlora", "adapter.kind=qlora"),
        ("beta=0.1", "anchoring.beta"),
        ("updating.checkpoint_steps=0", "updating.checkpoint_steps=0"),
        ("estimating.kind=gae critic.init=reward reward=gold:overall", "no reward model with weights here"),
        ("anchoring.weights=latest:nobody", "latest:nobody"),
        ("half_trunk=true", "half_trunk=true"),
        ("estimating.kind=rloo critic.weights=latest:nobody", "nothing begins with them"),
        ("watching.guard_drop=0.5", "there is no guard"),
        ("drawing.stop=false reward.unfinished=-1.0", "reward.unfinished=null"),
        ("watching.guard=gold:manners", "gold:manners"),
        ("drawing.max_new_tokens=90", "drawing.max_new_tokens=90"),
    ],
)
def test_numbers_and_references_that_mean_nothing(changes: str, told: str, refused: Refused) -> None:
    assert told in refused(*changes.split(" "))


def test_an_adapter_with_dropout_would_not_be_the_policy_that_drew(refused: Refused) -> None:
    assert "adapter.dropout=0.1" in refused("adapter={kind: lora, rank: 4, alpha: 8, dropout: 0.1}")


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_prompt_longer_than_the_window(split: str, tmp_path: Path, refused: Refused) -> None:
    long = replace(questions(1, 77)[0], messages=rewarding.long_prompt(4))
    rows = {"train": LEARNED, "valid": HELD[:3]}
    data = drawing.dataset(tmp_path / "data", "prompts", {**rows, split: [*rows[split][:2], long]}, miniature=True)  # type: ignore[dict-item]
    said = refused(data=data.path)
    assert "q-77" in said
    assert "96" in said


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ({"train": LEARNED}, "no prompt in its split valid"),
        ({"valid": HELD}, "no prompt in its split train"),
        ({"train": [], "valid": HELD}, "no prompt in its split train"),
        ({}, "no prompt in its split train"),
    ],
)
def test_a_dataset_without_prompts(rows: Any, told: str, tmp_path: Path, refused: Refused) -> None:
    assert told in refused(data=drawing.dataset(tmp_path / "data", "prompts", rows, miniature=True).path)


def test_a_dataset_of_something_else(tmp_path: Path, refused: Refused) -> None:
    data = rewarding.pairs(tmp_path / "pairs", {"train": rewarding.street(4), "valid": rewarding.street(2, 50)})
    assert "holds no prompts" in refused(data=data)
    assert "is not a dataset" in refused(data=rewarding.policy(tmp_path / "other"))


def test_a_reward_of_another_vocabulary_is_no_critic(parts: Parts, tmp_path: Path, refused: Refused) -> None:
    other = reinforcing.reward(tmp_path / "other", rewarding.policy(tmp_path / "other", 460)).path
    said = refused(f"reward=run:{other}", "estimating.kind=gae")
    assert "has another tokenizer than the policy" in said
    assert "reward.model" in said
    said = refused("estimating.kind=gae", f"critic.weights=run:{other}")
    assert "critic.weights" in said
    assert "has another tokenizer" in said


@pytest.mark.slow
@pytest.mark.parametrize("critic", ["reward", "policy"])
def test_a_reward_of_another_vocabulary_may_judge(critic: str, parts: Parts, tmp_path: Path) -> None:
    """It reads messages, not ids."""
    other = reinforcing.reward(tmp_path / "other", rewarding.policy(tmp_path / "other", 460)).path
    named = f"critic.weights=run:{parts.judge}" if critic == "reward" else "critic.init=policy"
    out = trained(tmp_path, *parts, f"reward=run:{other}", "estimating.kind=gae", named)
    assert np.isfinite(out.metrics["reward"])


def test_an_anchor_of_another_schema(tmp_path: Path, refused: Refused) -> None:
    other = rewarding.policy(tmp_path / "gemma1", shape=reinforcing.GEMMA1, schema="gemma1")
    said = refused(f"anchoring.weights=dir:{other}")
    assert "anchoring.weights" in said
    assert "has another chat schema than the policy (gemma1, the policy's is gemma2)" in said


def test_a_reference_of_another_vocabulary(tmp_path: Path, refused: Refused) -> None:
    other = rewarding.policy(tmp_path / "other", 460)
    assert "watching.reference: " in (said := refused(f"watching.reference=dir:{other}"))
    assert "another tokenizer than the policy" in said


def test_an_anchor_of_another_vocabulary(tmp_path: Path, refused: Refused) -> None:
    other = rewarding.policy(tmp_path / "other", 460)
    assert "has another tokenizer than the policy" in refused(f"anchoring.weights=dir:{other}")


def test_a_minibatch_that_does_not_divide_among_processes() -> None:
    """Two groups of two answers a step among two processes are one each; a minibatch of one group is none."""
    values = compose("rl", {"updating.batch": 4, "updating.minibatch": 2, "drawing.samples": 2})
    settings = rl.Settings.parse(values, "stage=rl")
    fit.check_groups(settings.updating, 2, 1)
    with pytest.raises(UserError, match=r"updating\.minibatch=2: does not divide among 2 processes"):
        fit.check_groups(settings.updating, 2, 2)


def test_an_anchor_of_another_shape_cannot_follow_the_policy(tmp_path: Path, refused: Refused) -> None:
    other = rewarding.policy(tmp_path / "wide", shape=replace(rewarding.SHAPE, width=48))
    assert "anchoring.weights" in refused("anchoring.kind=ema", f"anchoring.weights=dir:{other}")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_no_numbers(value: float, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    judge_by(value, monkeypatch)
    said = refused()
    assert f"gives the score {value}" in said
    assert "A reward has to be a finite number" in said


# ── help ─────────────────────────────────────────────────────────────────────────────────────────


def test_help_lists_every_key_with_a_meaning(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run.door(["stage=rl", "--help"]) == 0
    said = "".join("".join(capfd.readouterr()).split())
    keys = list(describe(rl.Settings))
    assert len(keys) > 70
    for key in keys:
        assert key.key in said, key.key
        assert len(key.doc) > 3, key.key
        assert "".join(key.doc.split())[:8] in said, f"{key.key}: {key.doc}"


@pytest.mark.parametrize("preset", ["rl", "rl/llama2", "rl/gemma2", "rl/warp"])
def test_presets_are_whole(preset: str) -> None:
    """Every value is there, and they go together."""
    configured = run.configure(run.read([f"stage={preset}"]))
    values = {key: value for key, value in configured.items() if key not in run.Door.model_fields}
    assert rl.Settings.parse(values).updating.per_step >= 1
