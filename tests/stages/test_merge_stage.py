"""The merge stage: who may be merged with whom, what the merged model is, and what is said of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import drawing
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from scoring import tiny_reward
from transformers import AutoModelForSequenceClassification

from alignment import artifacts
from alignment.artifacts import Artifact, Outcome, Parent, Tokens
from alignment.chat.types import Conversation, messages
from alignment.data import seen
from alignment.errors import UserError
from alignment.gemma import core, heads
from alignment.gemma.heads import Scale
from alignment.merging import stream
from alignment.scoring.reward_model import RewardScorer
from alignment.stages import merge

TOKENS = Tokens("d" * 64, 400, 448, "gemma2")
ANCESTOR = Parent("step:chat", "c" * 64, "/gone/chat")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two reward models, `one` and `two`, and the policies `talk` and `chat` with the same trunks."""
    root = tmp_path_factory.mktemp("models")
    for seed, (name, policy) in enumerate((("one", "talk"), ("two", "chat"))):
        tiny_reward.build(root / name, "gemma2", Scale(0.5 + seed, True, "gemma2"), seed)
        seen.write(root / name, [f"{seed:x}", "ff"], [])
        shutil.copytree(root / name, root / policy)
        weights = load_file(root / name / "model.safetensors")
        del weights["score.weight"]
        save_file(weights, root / policy / "model.safetensors", {"format": "pt"})
        change_config(root / policy, architectures=["Gemma2ForCausalLM"], reward=None)
    return root


@pytest.fixture
def models(built: Path, tmp_path: Path) -> Path:
    """A copy of them, to change."""
    return Path(shutil.copytree(built, tmp_path / "models"))


def change_config(folder: Path, **values: Any) -> None:
    """None takes a key away."""
    config = json.loads((folder / "config.json").read_text()) | values
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def values(**changes: Any) -> dict[str, Any]:
    """The stage's settings, but for some."""
    found = drawing.values("merge", **changes)
    return {key: value for key, value in found.items() if key in merge.Settings.model_fields}


def ours(path: Path, **changes: Any) -> Artifact:
    """As a stage leaves it, trained from one chat model."""
    kind = "policy" if path.name in ("talk", "chat") else "reward"
    made = Artifact(path, kind, "reward", path.name, path.name, {"model.weights": ANCESTOR}, tokens=TOKENS)  # type: ignore[arg-type]
    return replace(made, **changes)


def theirs(path: Path) -> Artifact:
    return artifacts.foreign(path, f"dir:{path.name}")


def merged(out: Path, given: list[Artifact], extra: dict[str, Artifact] | None = None, **changes: Any) -> Outcome:
    out.mkdir(exist_ok=True)
    extra = extra or {}
    said = values(models=[f"run:{one.path}" for one in given], engine__device="cpu", **changes)
    settings = merge.Settings.parse(said | {name: f"run:{one.path}" for name, one in extra.items()})
    return merge.run(settings, {f"models.{place}": one for place, one in enumerate(given)} | extra, out)


def refused(
    said: str, out: Path, given: list[Artifact], extra: dict[str, Artifact] | None = None, **changes: Any
) -> UserError:
    """What is said, before anything was written or a weight was read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "_read", None)
        with pytest.raises(UserError, match=said) as caught:
            merged(out, given, extra, **changes)
    assert not out.exists() or not list(out.iterdir())
    return caught.value


# ── what comes out ───────────────────────────────────────────────────────────────────────────────


def test_reward_models(built: Path, tmp_path: Path) -> None:
    given = [ours(built / name) for name in ("one", "two")]
    outcome = merged(tmp_path / "out", given, weights=[0.25, 0.75])
    assert (outcome.kind, outcome.tokens, outcome.headline) == ("reward", TOKENS, "spread")
    model, scale = heads.load_reward(tmp_path / "out")
    assert scale == Scale(0.0, True, "gemma2"), "the centres are not averaged"
    members = [load_file(built / name / "model.safetensors") for name in ("one", "two")]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, members[0][name] * 0.25 + members[1][name] * 0.75)
    vanilla = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(vanilla(ids).logits, model(ids).logits)
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"}
    names |= {"chat_template.jinja", "seen.npy", "merge.json", "plots.html"}
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_file()} == names
    assert seen.read(tmp_path / "out").tolist() == [0, 1, 0xFF]


def test_what_is_said_of_it(built: Path, tmp_path: Path) -> None:
    outcome = merged(tmp_path / "out", [ours(built / name) for name in ("one", "two")])
    told = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert told["method"] == "linear"
    assert [(one["model"], one["weight"]) for one in told["models"]] == [("one", 0.5), ("two", 0.5)]
    assert told["ancestor"] == {"fingerprint": ANCESTOR.fingerprint, "name": "chat"}
    assert [*told["layers"]] == ["embed_tokens", *(f"layers.{layer}" for layer in range(4)), "norm", "score"]
    members = [load_file(built / name / "model.safetensors")["score.weight"] for name in ("one", "two")]
    apart = float((members[0] - members[1]).norm()) / 2
    assert told["layers"]["score"]["distances"] == pytest.approx([apart, apart])
    numbers = sum(value.numel() for value in load_file(built / "one" / "model.safetensors").values())
    assert (told["numbers"], outcome.metrics["numbers"]) == (numbers, float(numbers))
    assert told["bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert told["spread"] == outcome.metrics["spread"] > 0
    assert outcome.notes["ancestor"] == "chat"
    again = merged(tmp_path / "again", [ours(built / name) for name in ("one", "two")], threads=2, memory_mib=8)
    assert drawing.contents(tmp_path / "again") == drawing.contents(tmp_path / "out")
    assert again.metrics["spread"] == outcome.metrics["spread"]


def test_the_centre_is_measured(built: Path, tmp_path: Path) -> None:
    rows = [Conversation(messages(("user", f"Who is {n}?"), ("assistant", "the friend " * n)), f"c{n}") for n in (1, 2)]
    conversations = drawing.dataset(tmp_path / "rows", "conversations", {"train": rows})
    given = [ours(built / name) for name in ("one", "two")]
    outcome = merged(tmp_path / "out", given, {"centre": conversations})
    scores = RewardScorer.load(ours(tmp_path / "out"), tiny_reward.ENGINE).score([row.messages for row in rows])
    assert sum(scores.reported) == pytest.approx(0, abs=1e-4)
    assert outcome.metrics["centre"] == pytest.approx(sum(scores.raw) / 2, abs=1e-4)
    assert abs(outcome.metrics["centre"]) > 1e-3


def test_scores_are_absolute_where_all_are(models: Path, tmp_path: Path) -> None:
    heads.write_scale(models / "two", Scale(0.0, False, "gemma2"))
    merged(tmp_path / "out", [ours(models / name) for name in ("one", "two")])
    scale = heads.read_scale(tmp_path / "out")
    assert scale is not None
    assert not scale.absolute


def test_policies(built: Path, tmp_path: Path) -> None:
    outcome = merged(tmp_path / "out", [ours(built / name) for name in ("talk", "chat")])
    assert (outcome.kind, "centre" in outcome.metrics) == ("policy", False)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == json.loads((built / "talk" / "config.json").read_text())
    model = core.load(tmp_path / "out")
    member = [core.load(built / name).model.norm.weight for name in ("talk", "chat")]
    torch.testing.assert_close(model.model.norm.weight, (member[0] + member[1]) / 2)


def test_foreign_directories(models: Path, tmp_path: Path) -> None:
    change_config(models / "two", reward=None)
    given = [theirs(models / "one"), theirs(models / "two")]
    error = refused("no common ancestor", tmp_path / "refused", given)
    assert "init=" in error.remedy
    outcome = merged(tmp_path / "out", given, {"init": theirs(models / "talk")})
    assert outcome.kind == "reward"
    assert outcome.tokens is not None
    assert (outcome.tokens.schema, outcome.tokens.padded) == ("gemma2", core.read_config(models / "one").vocab_size)
    assert heads.read_scale(tmp_path / "out") == Scale(0.0, False, "gemma2"), "one has no scale"
    _, scale = heads.load_reward(tmp_path / "out")
    assert scale is not None


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


def test_settings() -> None:
    for changes, said in (
        ({"models": []}, "models"),
        ({"models": ["mini:sft"]}, "linear with 1 model"),
        ({"method": "liti", "eta": 0.3}, "liti with 2 models"),
        ({"method": "liti", "models": ["mini:sft"]}, "needs eta"),
        ({"method": "liti", "models": ["mini:sft"], "eta": 1.1}, "eta"),
        ({"method": "ema"}, "needs rate"),
        ({"method": "ema", "rate": 0.0}, "rate"),
        (
            {"method": "ema", "rate": 0.5, "weights": [0.5, 0.5]},
            "method=ema has no weights; it is for linear and slerp",
        ),
        ({"method": "slerp", "eta": 0.3}, "method=slerp has no eta; it is for liti"),
        ({"weights": [0.5, 0.6]}, "sum to 1.1"),
        ({"weights": [1.0]}, "1 weights for 2 models"),
        ({"weights": [1.5, -0.5]}, "negative"),
        ({"method": "slurp"}, "method"),
        ({"memory_mib": 1}, "memory_mib"),
    ):
        with pytest.raises(UserError, match=said):
            merge.Settings.parse(values(**changes))


def test_the_same_model_twice(built: Path, tmp_path: Path) -> None:
    one, two = ours(built / "one"), ours(built / "two")
    refused("are the same model", tmp_path / "out", [one, two, one], weights=[0.4, 0.3, 0.3])
    refused("are the same model", tmp_path / "out", [theirs(built / "one"), theirs(built / "one")])


def test_other_kinds(built: Path, tmp_path: Path) -> None:
    one, chat = ours(built / "one"), ours(built / "chat")
    error = refused("one is a reward model and .*chat is none", tmp_path / "out", [chat, one])
    assert "policies with policies" in error.remedy
    refused("one is a reward model", tmp_path / "out", [one, theirs(built / "chat")])
    refused("of kind dataset", tmp_path / "out", [one, ours(built / "two", kind="dataset")])
    refused("no scores to centre", tmp_path / "out", [chat, ours(built / "talk")], {"centre": one})


def test_other_vocabularies(built: Path, models: Path, tmp_path: Path) -> None:
    one = ours(built / "one")
    other = ours(built / "two", tokens=replace(TOKENS, digest="e" * 64))
    refused("two has another tokenizer than .*one", tmp_path / "out", [one, other])
    other = ours(built / "two", tokens=replace(TOKENS, schema="gemma1"))
    refused("two has another chat schema", tmp_path / "out", [one, other])
    path = models / "two" / "tokenizer.json"
    spec = json.loads(path.read_text())
    vocabulary = spec["model"]["vocab"]
    vocabulary["e"], vocabulary["r"] = vocabulary["r"], vocabulary["e"]
    path.write_text(json.dumps(spec))
    given = [theirs(models / "one"), theirs(models / "two")]
    refused("two has another tokenizer", tmp_path / "out", given, {"init": theirs(models / "chat")})


def test_no_common_ancestor(built: Path, tmp_path: Path) -> None:
    other = {"model.weights": Parent("step:other", "0" * 64, str(built))}
    refused("no common ancestor", tmp_path / "out", [ours(built / "one"), ours(built / "two", parents=other)])


def test_a_wrong_ancestor(models: Path, tmp_path: Path) -> None:
    change_weights(models / "chat", lambda weights: weights.update({"model.norm.weight": torch.ones(5)}))
    given = [theirs(models / "one"), theirs(models / "two")]
    refused(
        r"chat is not the ancestor.*model\.norm\.weight", tmp_path / "out", given, {"init": theirs(models / "chat")}
    )


def test_other_models(models: Path, tmp_path: Path) -> None:
    given = [ours(models / "one"), ours(models / "two")]
    change_config(models / "two", sliding_window=7)
    refused("two: sliding_window is 7, not 5", tmp_path / "out", given)
    change_config(models / "two", sliding_window=5, transformers_version="0.0", attention_dropout=0.5)
    change_weights(models / "two", lambda weights: weights.pop("score.weight"))
    refused(r"two lacks score\.weight", tmp_path / "out", given)
    change_weights(models / "one", lambda weights: weights.pop("score.weight"))
    refused(r"one lacks score\.weight", tmp_path / "out", given)


def test_a_tied_head_is_not_merged(models: Path, tmp_path: Path) -> None:
    for name in ("talk", "chat"):
        change_weights(models / name, lambda weights: weights.update({"lm_head.weight": torch.ones(2, 2)}))
    given = [ours(models / "talk"), ours(models / "chat")]
    refused(r"talk has a superfluous lm_head\.weight", tmp_path / "out", given)


def test_a_classifier_is_no_reward_model(models: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        change_config(models / name, id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1})
        change_weights(models / name, lambda weights: weights.update({"score.weight": torch.ones(2, 24)}))
    refused("one has 2 labels", tmp_path / "out", [ours(models / "one"), ours(models / "two")])


def test_a_damaged_file(models: Path, tmp_path: Path) -> None:
    path = models / "two" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    refused(r"two/model\.safetensors is damaged", tmp_path / "out", [ours(models / "one"), ours(models / "two")])


def test_a_number_that_is_none(models: Path, tmp_path: Path) -> None:
    change_weights(models / "two", lambda weights: weights["model.norm.weight"].__setitem__(3, float("nan")))
    with pytest.raises(UserError, match=r"two/model\.safetensors: model\.norm\.weight holds nan \(number 3\)"):
        merged(tmp_path / "out", [ours(models / "one"), ours(models / "two")])
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_the_disk_it_needs(built: Path) -> None:
    size = (built / "one" / "model.safetensors").stat().st_size
    settings = merge.Settings.parse(values())
    for folders in ({"models.1": built / "one"}, {"models.0": built / "one", "init": built}):
        assert merge.disk_needed_from(settings, folders) == size + 64 * 2**20
    assert merge.disk_needed_from(settings, {"init": built / "one"}) == 64 * 2**20


def test_a_member_whose_head_was_replaced_is_refused(models: Path, tmp_path: Path) -> None:
    """Averaged, a head that was never trained would get a new digest, and pass for trained."""
    change_weights(models / "two", lambda weights: weights["score.weight"].normal_())
    for given in (ours, theirs):
        known = {"init": given(models / "chat")}
        with pytest.raises(UserError, match="another head than the one that was trained"):
            merged(tmp_path / "out", [given(models / "one"), given(models / "two")], known)
    known = {"init": ours(models / "chat")}
    change_config(models / "two", reward=None)
    with pytest.raises(UserError, match="has lost what says how its scores are read"):
        merged(tmp_path / "out", [ours(models / "one"), ours(models / "two")])
    assert not (tmp_path / "out" / "model.safetensors").exists()


# ── what was learned since the start ─────────────────────────────────────────────────────────────


def told_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "merge.json").read_text())


def policies(models: Path) -> tuple[list[Artifact], Artifact]:
    """Two policies and the one they were trained from."""
    shutil.copytree(models / "chat", models / "start")
    change_weights(models / "start", lambda weights: [value.add_(0.01) for value in weights.values()])
    start = ours(models / "start", kind="policy", parents={}, fingerprint="5" * 64)
    artifacts.finish(start)
    link = {"policy": Parent("step:start", start.fingerprint, str(start.path))}
    return [ours(models / name, parents=link) for name in ("talk", "chat")], start


def test_slerp_finds_its_start_by_lineage(models: Path, tmp_path: Path) -> None:
    given, start = policies(models)
    merged(tmp_path / "found", given, method="slerp")
    merged(tmp_path / "named", given, {"init": start}, method="slerp")
    assert drawing.contents(tmp_path / "found") == drawing.contents(tmp_path / "named")
    told = told_of(tmp_path / "found")
    assert (told["method"], told["groups"], told["rounding"]) == ("slerp", "layer", None)
    assert "λ_m" in told["order"]
    assert [*told["geometry"]["groups"]] == ["embed_tokens", *(f"layers.{layer}" for layer in range(4)), "norm"]
    group = told["geometry"]["groups"]["layers.1"]
    assert group.keys() == {"start_norm", "task_norms", "angles", "result_norm", "coefficients"}
    angle = np.deg2rad(group["angles"]["0,1"])
    assert group["coefficients"] == pytest.approx([np.sin(angle / 2) / np.sin(angle)] * 2)
    name = "model.layers.1.mlp.up_proj.weight"
    first, second, begun = (
        load_file(path / "model.safetensors")[name] for path in (*(one.path for one in given), start.path)
    )
    wanted = begun + group["coefficients"][0] * (first - begun) + group["coefficients"][1] * (second - begun)
    torch.testing.assert_close(load_file(tmp_path / "found" / "model.safetensors")[name], wanted)
    page = (tmp_path / "found" / "plots.html").read_text()
    assert "Angles between task vectors" in page
    assert r"talk \u2220 chat" in page


def test_slerp_needs_the_weights_of_the_start(built: Path, tmp_path: Path) -> None:
    given = [ours(built / name) for name in ("talk", "chat")]
    error = refused("method=slerp needs the weights of chat", tmp_path / "out", given, method="slerp")
    assert "init=" in error.remedy
    merged(tmp_path / "linear", given)
    assert told_of(tmp_path / "linear")["geometry"] is None


def test_part_of_the_way(models: Path, tmp_path: Path) -> None:
    (model, _), start = policies(models)
    outcome = merged(tmp_path / "out", [model], method="liti", eta=0.25)
    told = told_of(tmp_path / "out")
    assert (told["method"], told["eta"], outcome.notes["ancestor"]) == ("liti", 0.25, "start")
    moved = told["geometry"]["whole"]
    assert moved["result_norm"] == pytest.approx(0.25 * moved["task_norms"][0])
    names = [
        load_file(path / "model.safetensors")["model.norm.weight"]
        for path in (tmp_path / "out", model.path, start.path)
    ]
    torch.testing.assert_close(names[0], names[2] + 0.25 * (names[1] - names[2]))


def test_a_moving_average_in_order(models: Path, tmp_path: Path) -> None:
    given, start = policies(models)
    merged(tmp_path / "out", [start, *given], method="ema", rate=0.5)
    told = told_of(tmp_path / "out")
    assert [one["weight"] for one in told["models"]] == [0.25, 0.25, 0.5]
    assert (told["method"], told["rate"]) == ("ema", 0.5)
    assert told["geometry"]["whole"]["angles"]["0,1"] is None, "the start has not moved"


def test_rounding_is_said_aloud(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, start = policies(models)
    for path in (one.path for one in (*given, start)):
        weights = {name: value.bfloat16() for name, value in load_file(path / "model.safetensors").items()}
        save_file(weights, path / "model.safetensors", {"format": "pt"})
    change_weights(
        models / "talk",
        lambda weights: weights.update(
            {name: value * 1.01 for name, value in load_file(start.path / "model.safetensors").items()}
        ),
    )
    merged(tmp_path / "out", given, method="slerp")
    told = told_of(tmp_path / "out")["rounding"]
    # Rounding in bf16 is about 0.0015 of a number: a sixth of a task vector that is a hundredth of it.
    assert told["of"] == "talk"
    assert told["share"] == pytest.approx(0.15, rel=0.2)
    assert "rounding of its file" in " ".join(capsys.readouterr().out.split())


def test_the_presets_are_settings() -> None:
    for preset in ("slerp", "liti", "ema"):
        changes = yaml.safe_load((drawing.CONF / "stage" / "merge" / f"{preset}.yaml").read_text())
        del changes["defaults"]
        assert merge.Settings.parse(values(**changes)).method == preset


def test_a_start_with_another_vocabulary(models: Path, tmp_path: Path) -> None:
    given, start = policies(models)
    other = replace(start, tokens=replace(TOKENS, digest="e" * 64))
    refused("start has another tokenizer", tmp_path / "out", given, {"init": other}, method="slerp")
    base = replace(start, tokens=replace(TOKENS, schema="plain"))
    merged(tmp_path / "base", given, {"init": base}, method="slerp")
