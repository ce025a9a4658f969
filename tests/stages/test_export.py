"""The export stage: a folder that loads elsewhere, says where it comes from, and is whole or not there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import drawing
import pytest
import torch
import yaml
from gemma import tiny
from release import lineages
from safetensors import safe_open
from safetensors.torch import load_file
from scoring import tiny_reward
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from alignment import artifacts, files
from alignment.artifacts import Artifact, Outcome
from alignment.chat import tokenizers
from alignment.chat.render import prompt_ids, stop_ids
from alignment.chat.train import train
from alignment.chat.types import messages
from alignment.data import seen
from alignment.errors import UserError
from alignment.gemma import core, heads
from alignment.gemma.heads import Scale
from alignment.gemma.presets import TokenIds
from alignment.release import folder, gemma_terms, hub, proof, weights
from alignment.release.proof import Proof
from alignment.sampling.sampler import Sampler
from alignment.scoring.reward_model import RewardScorer
from alignment.stages import export
from alignment.training import policies
from alignment.training.policies import Policy

QUESTION = messages(("user", "what is the answer to question 3?"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy and a reward model, and nothing beside them."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = tokenizers.load(train(tiny_reward.LINES, 400, root / "vocabulary"))
    shape = replace(tiny.SHAPES["gemma2"], context=tiny_reward.CONTEXT)
    model = core.build(shape, tokenizers.padded_vocab(tokenizer.vocab_size), TokenIds(), 0)
    policies.save_policy(Policy(model, tokenizer, "gemma2"), root / "policy")
    tiny_reward.build(root / "reward", "gemma2", Scale(0.5, True, "gemma2"))
    return root


class Lab:
    """A store with a model in it, and the stage."""

    def __init__(self, root: Path, built: Path) -> None:
        self.root, self.store, self._built = root, root / "runs", built
        self.parents: dict[str, tuple[str, Artifact]] = {"data": ("step:rows", lineages.rows(self.store))}

    def model(self, kind: str = "policy", **parents: tuple[str, Artifact]) -> Artifact:
        given = {key.replace("__", "."): parent for key, parent in parents.items()} or self.parents
        one = lineages.made(self.store, "ppo" if kind == "policy" else "helpful", "rl", kind, given)  # type: ignore[arg-type]
        shutil.copytree(self._built / kind, one.path, dirs_exist_ok=True)
        seen.write(one.path, ["ab"], [])
        return artifacts.finish(one)

    def evaluation(self, model: Artifact) -> Artifact:
        other = lineages.made(self.store, "other", "sft", "policy")
        settings = {"split": "test", "count": 1000, "temperature": 1.0, "max_new_tokens": 32}
        parents = {"models.0": ("step:other", other), "models.1": ("step:ppo", model)}
        parents["prompts"] = ("step:prompts", lineages.rows(self.store, "prompts"))
        one = lineages.made(self.store, "versions", "evaluate", "evaluation", parents, settings=settings)
        measures = {
            name: {
                "gold": {"estimate": mean, "low": mean - 0.01, "high": mean + 0.01},
                "kl": dict.fromkeys(("estimate", "low", "high")),
            }
            for name, mean in (("other", 0.111), ("ppo", 0.482))
        }
        files.write_json(one.path / "results.json", {"confidence": 0.95, "models": measures})
        return one

    def run(
        self, model: Artifact, name: str = "export", evaluations: list[Artifact] | None = None, **said: Any
    ) -> Outcome:
        """As the pipeline would run it; ``name`` is the artifact's folder."""
        values = drawing.values("export", model=f"run:{model.path}", engine__device="cpu", **said)
        values = {key: value for key, value in values.items() if key in export.Settings.model_fields}
        inputs = {"model": model}
        if evaluations is not None:
            values["evaluations"] = [f"run:{one.path}" for one in evaluations]
            inputs |= {f"evaluations.{place}": one for place, one in enumerate(evaluations)}
        out = self.out(name)
        out.mkdir(parents=True, exist_ok=True)
        files.remove_temporaries(out)
        return export.run(export.Settings.parse(values), inputs, out)

    def out(self, name: str = "export") -> Path:
        return self.store / "solo" / name

    def release(self, name: str = "export") -> Path:
        return self.out(name) / "release"

    def terms(self) -> str:
        path = self.root / "terms.txt"
        path.write_text(lineages.TERMS)
        return str(path)


@pytest.fixture
def proving(built: Path, tmp_path: Path) -> Lab:
    """What is released is loaded and compared, as it is for users."""
    return Lab(tmp_path, built)


@pytest.fixture
def lab(proving: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """For what does not depend on that."""
    monkeypatch.setattr(proof, "prove", lambda *_: Proof(4, 0.0, 0.0, 30, 0.0, 1.0, 4))
    return proving


def card(release: Path) -> tuple[dict[str, Any], str]:
    """Front matter and body."""
    _, front, body = (release / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), body


def greedy(model: Any, ids: list[int]) -> list[int]:
    whole = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=24)
    return whole[0, len(ids) :].tolist()


# ── what comes out ───────────────────────────────────────────────────────────────────────────────


def test_a_policy_loads_elsewhere_and_answers_the_same(proving: Lab) -> None:
    outcome = proving.run(proving.model())
    release = proving.release()
    assert {path.name for path in release.iterdir()} == {
        *("README.md", "SHA256SUMS", "chat_template.jinja", "config.json", "generation_config.json"),
        *("model.safetensors", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
    }
    model, tokenizer = AutoModelForCausalLM.from_pretrained(release), AutoTokenizer.from_pretrained(release)
    assert model.dtype == torch.bfloat16
    assert model.config.use_cache
    ours = tokenizers.load(release)
    assert model.generation_config.eos_token_id == sorted(stop_ids(ours))
    ids = tokenizer.apply_chat_template([{"role": "user", "content": QUESTION[0].content}], add_generation_prompt=True)
    assert ids["input_ids"] == prompt_ids(QUESTION, ours)
    sampler = Sampler(core.load(release), stop_ids=stop_ids(ours), pad_id=ours.pad_id)
    (answer,) = sampler.draw([ids["input_ids"]], ["q"], temperature=0.0, max_new_tokens=24, seed=0)
    assert greedy(model.float(), ids["input_ids"]) == list(answer.ids)
    assert (outcome.kind, outcome.headline) == ("policy", "rounding")
    assert 0 < outcome.metrics["rounding"] < 0.004
    assert outcome.metrics["answers"] == outcome.metrics["prompts"] == 4
    assert outcome.metrics["difference"] < proof.EXACT
    assert 0 < outcome.metrics["moved"] < 0.5


def test_other_stages_find_the_model_in_the_artifact(lab: Lab) -> None:
    model = lab.model()
    outcome = lab.run(model)
    found = Artifact(lab.out(), outcome.kind, "export", "export", "e" * 64, tokens=outcome.tokens)
    policy = policies.open_policy(found, tiny_reward.ENGINE)
    assert policy.tokens == outcome.tokens
    assert seen.read(lab.out()).tolist() == [0xAB]
    digests = files.digest_folder(lab.out())
    assert digests["model.safetensors"] == digests["release/model.safetensors"]
    shutil.move(lab.out(), lab.root / "moved")
    core.load(lab.root / "moved")


def test_a_reward_model(proving: Lab) -> None:
    outcome = proving.run(proving.model("reward"))
    release = proving.release()
    assert not (release / "generation_config.json").exists()
    vanilla, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(release, dtype=torch.float32),
        AutoTokenizer.from_pretrained(release),
    )
    turns = messages(("user", "who?"), ("assistant", "the friend"))
    plain = [{"role": turn.role, "content": turn.content} for turn in turns]
    ids = tokenizer.apply_chat_template(plain, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        score = vanilla(input_ids=ids["input_ids"]).logits[0, 0].item()
    found = Artifact(proving.out(), outcome.kind, "export", "export", "e" * 64, tokens=outcome.tokens)
    ours = RewardScorer.load(found, tiny_reward.ENGINE).score([turns])
    assert ours.raw[0] == pytest.approx(score, abs=1e-3)
    assert ours.reported[0] == pytest.approx(ours.raw[0] - 0.5)
    assert heads.read_scale(release) == Scale(0.5, True, "gemma2")
    front, body = card(release)
    assert front["pipeline_tag"] == "text-classification"
    assert "AutoModelForSequenceClassification" in body
    assert outcome.kind == "reward"


def test_full_precision_keeps_every_bit(proving: Lab) -> None:
    model = proving.model()
    outcome = proving.run(model, dtype="fp32")
    assert (outcome.metrics["rounding"], outcome.metrics["moved"], outcome.metrics["kl"]) == (0, 0, 0)
    given, got = (load_file(path / "model.safetensors") for path in (model.path, proving.release()))
    assert all(torch.equal(got[name], value) for name, value in given.items())
    assert json.loads((proving.release() / "config.json").read_text())["dtype"] == "float32"


def test_checksums(lab: Lab) -> None:
    lab.run(lab.model())
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=lab.release(), capture_output=True, text=True)
    assert (checked.returncode, checked.stdout.count(": OK")) == (0, 8)


# ── the card ─────────────────────────────────────────────────────────────────────────────────────


def test_the_card(lab: Lab) -> None:
    source = {"name": "talk", "licence": "CC-BY-NC-4.0", "dataset": None, "hub": {"repository": "lab/talk"}}
    data = lineages.made(lab.store, "talk", "data", "dataset", settings={"recipe": {"sources": [source]}})
    base = lineages.made(lab.store, "base", "pretrain", "policy")
    model = lab.model(data=("step:talk", data), policy=("step:base", base))
    lab.evaluation(model)
    lab.run(model, title="House model", licence="cc-by-nc-4.0")
    front, body = card(lab.release())
    assert front["license"] == "cc-by-nc-4.0"
    assert front["datasets"] == ["lab/talk"]
    assert (front["library_name"], front["pipeline_tag"]) == ("transformers", "text-generation")
    assert {"gemma2", "rlhf"} <= set(front["tags"])
    assert "base_model" not in front
    assert body.lstrip().startswith("# House model")
    for words in (
        "**Non-commercial.**",
        "Its weights: ppo ← base. It was trained from nothing; no part of it descends from Gemma.",
        "| talk | a source | talk | **CC-BY-NC-4.0** (non-commercial) |",
        "| 3 | ppo | rl |",
        "data *talk*, policy *base*",
        "prompts, split test, at most 1,000 rows, temperature 1, at most 32 tokens.",
        "| gold | 0.482 | 0.472 … 0.492 |",
        "safety has not been measured",
    ):
        assert words in body, words
    assert "0.111" not in body, "that is the other model's"
    assert "| kl |" not in body, "it could not be measured"


def test_the_code_of_the_card_runs(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kind in (("a", "policy"), ("b", "reward")):
        lab.run(lab.model(kind), name)
        monkeypatch.chdir(lab.release(name))
        code = re.search(r"```python\n(.*?)```", card(lab.release(name))[1], re.DOTALL)
        assert code is not None
        exec(code[1].replace("max_new_tokens=256", "max_new_tokens=4"), {})


def test_nothing_of_this_machine_is_told(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "abcdefghijk")
    stranger = lineages.foreign(lab.root / "gemma-tuned")
    lab.run(lab.model(model__weights=(stranger.step, stranger)), terms=lab.terms())
    for path in lab.release().iterdir():
        content = path.read_bytes()
        assert str(lab.root).encode() not in content, path.name
        assert str(Path.cwd()).encode() not in content, path.name
    with pytest.raises(UserError, match="holds the value of SOME_API_KEY"):
        lab.run(lab.model("reward"), "b", licence="Ours alone\n\nabcdefghijk")
    assert not lab.release("b").exists()


def test_evaluations_that_are_named(lab: Lab) -> None:
    model = lab.model()
    told = lab.evaluation(model)
    lab.run(model, "none", evaluations=[])
    assert "No evaluation of this model is recorded" in card(lab.release("none"))[1]
    lab.run(model, "one", evaluations=[told])
    assert "| gold | 0.482 |" in card(lab.release("one"))[1]
    with pytest.raises(UserError, match="measured nothing of this model"):
        lab.run(lab.model("reward"), "other", evaluations=[told])


# ── Gemma ────────────────────────────────────────────────────────────────────────────────────────


def test_a_descendant_of_gemma(lab: Lab) -> None:
    base = Artifact(lab.root / "none", "foreign", "", "hf:google/gemma-2-2b@main", "c" * 40)
    model = lab.model(policy=("hf:google/gemma-2-2b@main", base), data=lab.parents["data"])
    with pytest.raises(UserError, match="copy of the Gemma Terms of Use"):
        lab.run(model)
    assert not list(lab.out().iterdir()), "before anything is written"
    lab.run(model, terms=lab.terms())
    release = lab.release()
    assert (release / "GEMMA_TERMS_OF_USE.txt").read_text() == lineages.TERMS
    sentence = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
    notice = (release / "NOTICE").read_text()
    assert notice.splitlines()[0] == sentence
    assert "hf:google/gemma-2-2b" in notice
    front, body = card(release)
    assert (front["license"], front["base_model"]) == ("gemma", "google/gemma-2-2b")
    for text in (body, (release / "LICENSE").read_text()):
        assert sentence in text
        assert "enforceable provision" in text
        assert gemma_terms.POLICY_URL in text
    statement = json.loads((release / "config.json").read_text())["modification"]
    assert statement.startswith("MODIFIED")
    assert statement in body
    assert statement in notice
    with safe_open(release / "model.safetensors", "pt") as file:
        assert file.metadata()["modification"] == statement
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer_config.json"):
        assert statement in (release / name).read_text(), name
        assert f"- {name}\n" in notice
    assert "- tokenizer.json (" in notice
    model_, tokenizer = AutoModelForCausalLM.from_pretrained(release), AutoTokenizer.from_pretrained(release)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": QUESTION[0].content}], add_generation_prompt=True)
    assert ids["input_ids"] == prompt_ids(QUESTION, tokenizers.load(release)), "the statement is no part of a prompt"
    assert model_.generation_config.eos_token_id


def test_ours_is_under_no_terms_of_gemma(lab: Lab) -> None:
    outcome = lab.run(lab.model())
    assert not {"NOTICE", "LICENSE", "GEMMA_TERMS_OF_USE.txt"} & {path.name for path in lab.release().iterdir()}
    assert "MODIFIED" not in (lab.release() / "config.json").read_text()
    assert (outcome.notes["licence"], outcome.notes["descends_from_gemma"]) == ("mit", False)


def test_a_foreign_model_itself(proving: Lab, built: Path) -> None:
    shutil.copytree(built / "policy", proving.root / "stranger")
    stranger = artifacts.foreign(proving.root / "stranger", f"dir:{proving.root}/stranger")
    values = drawing.values("export", model=stranger.step, engine__device="cpu", origins=[f"{stranger.step}=mit"])
    values = {key: value for key, value in values.items() if key in export.Settings.model_fields}
    proving.out().mkdir(parents=True)
    outcome = export.run(export.Settings.parse(values), {"model": stranger}, proving.out())
    assert outcome.tokens is not None
    assert (outcome.kind, outcome.tokens.schema, outcome.notes["licence"]) == ("policy", "gemma2", "mit")
    values["origins"] = []
    with pytest.raises(UserError, match="copy of the Gemma Terms of Use"):
        export.run(export.Settings.parse(values), {"model": stranger}, proving.out())


# ── licences ─────────────────────────────────────────────────────────────────────────────────────


def test_an_unknown_licence_stops_it(lab: Lab) -> None:
    model = lab.model(data=("step:x", lineages.rows(lab.store, "x", "unknown")))
    with pytest.raises(UserError, match="no licence is known of x_source"):
        lab.run(model, licence="mit")
    assert not list(lab.out().iterdir())
    lab.run(model, licence="mit", allow_unknown=True)
    body = card(lab.release())[1]
    assert "**Unknown licences.**" in body
    assert "| x_source | a source | x | **unknown** |" in body


def test_a_parent_that_is_gone_stops_it(lab: Lab) -> None:
    base = lineages.made(lab.store, "base", "pretrain", "policy")
    model = lab.model(policy=("step:base", base))
    shutil.rmtree(base.path)
    with pytest.raises(UserError, match=r"no licence is known of step:base \(\w{8}\), policy of ppo: it is no longer"):
        lab.run(model, licence="mit")
    lab.run(model, licence="mit", allow_unknown=True)
    assert "Whether it descends from Gemma is not known" in card(lab.release())[1]


# ── killed, changed, refused ─────────────────────────────────────────────────────────────────────


def test_killed_anywhere_it_goes_on_to_the_same_bytes(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "BLOCK", 5000)
    model = lab.model()
    lab.evaluation(model)
    first = lab.run(model, "whole")
    places: list[tuple[object, str]] = [
        (weights, "_convert"),
        (folder, "write_tokenizer"),
        (folder, "write_config"),
        (proof, "prove"),
        (folder, "write_sums"),
        (files, "sync_tree"),
        (export.os, "replace"),
        (export, "_link"),
        (seen, "write"),
    ]
    for owner, name in places:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, _dying(getattr(owner, name)))
            with pytest.raises(KeyboardInterrupt):
                lab.run(model, "killed")
        assert not lab.release("killed").exists() or folder.is_whole(lab.release("killed")), name
    assert lab.run(model, "killed").metrics == first.metrics
    assert files.digest_folder(lab.release("killed")) == files.digest_folder(lab.release("whole"))


def _dying(function: Callable[..., Any]) -> Callable[..., Any]:
    """Interrupted when it has done its work for the first time: the last moment at which nothing has come of it."""

    def call(*given: Any, **named: Any) -> Any:
        function(*given, **named)
        raise KeyboardInterrupt

    return call


def test_a_later_evaluation_does_not_change_a_resumed_card(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lab.model()
    with monkeypatch.context() as patch:
        patch.setattr(proof, "prove", _dying(proof.prove))
        with pytest.raises(KeyboardInterrupt):
            lab.run(model)
    lab.evaluation(model)
    lab.run(model)
    assert "No evaluation of this model" in card(lab.release())[1]
    lab.run(model, "anew")
    assert "| gold | 0.482 |" in card(lab.release("anew"))[1]


def test_a_release_that_was_touched_is_written_again(lab: Lab) -> None:
    model = lab.model()
    lab.run(model)
    before = files.digest_folder(lab.release())
    (lab.release() / "config.json").write_text("{}")
    (lab.release() / "more.txt").write_text("")
    lab.run(model)
    assert files.digest_folder(lab.release()) == before


def test_a_folder_that_is_not_the_model_is_no_release(proving: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    model = proving.model()
    plain = weights._convert

    def spoilt(entry: Any, start: int, numbers: int, dtype: Any, source: Any, target: Any) -> tuple[float, float]:
        place = target.tell()
        sums = plain(entry, start, numbers, dtype, source, target)
        if "embed_tokens" in entry.name:
            target.seek(place)
            target.write(torch.randn(numbers).bfloat16().view(torch.uint8).numpy().data)
        return sums

    monkeypatch.setattr(weights, "_convert", spoilt)
    with pytest.raises(UserError, match="rounding changes the model"):
        proving.run(model)
    assert not proving.release().exists()


def test_a_program_that_computes_something_else(proving: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = proof._vanilla_policy

    def other(*given: Any) -> Any:
        answers, logits = plain(*given)
        return answers, [one + 0.01 for one in logits]

    monkeypatch.setattr(proof, "_vanilla_policy", other)
    with pytest.raises(UserError, match="computes something else"):
        proving.run(proving.model())
    assert not proving.release().exists()


def test_a_template_that_gives_other_ids(proving: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "write_config", _spoiling_template(folder.write_config))
    with pytest.raises(UserError, match="chat template gives other ids"):
        proving.run(proving.model())


def _spoiling_template(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(model: Artifact, dtype: Any, out: Path) -> None:
        function(model, dtype, out)
        template = out / "chat_template.jinja"
        template.write_text(template.read_text().replace("model", "modal"))

    return call


# ── the hub ──────────────────────────────────────────────────────────────────────────────────────


def test_it_is_uploaded_on_request_only(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(hub, "check", lambda name, *, private: asked.append(("check", name, private)))

    def push(release: Path, name: str, *, private: bool, message: str) -> str:
        asked.append(("push", name, private, message, folder.is_whole(release)))
        return "https://hub/commit/1"

    monkeypatch.setattr(hub, "push", push)
    model = lab.model()
    lab.run(model)
    assert asked == []
    outcome = lab.run(model, "pushed", push="lab/ppo")
    assert asked == [("check", "lab/ppo", True), ("push", "lab/ppo", True, "ppo, bf16", True)]
    assert outcome.notes["pushed"] == "https://hub/commit/1"


def test_the_record_tells_nothing_of_the_hub_before_it_is_asked(lab: Lab) -> None:
    with pytest.raises(UserError, match=r"nobody is logged in|cannot be reached"):
        lab.run(lab.model(), push="lab/ppo")
    assert not list(lab.out().iterdir())


# ── settings ─────────────────────────────────────────────────────────────────────────────────────


def test_the_terms_are_part_of_what_it_is(lab: Lab) -> None:
    values = {key: one for key, one in drawing.values("export").items() if key in export.Settings.model_fields}
    assert export.sources(export.Settings.parse(values)) == []
    assert export.sources(export.Settings.parse(values | {"terms": lab.terms()})) == [Path(lab.terms())]
    with pytest.raises(UserError, match="does not say the licence"):
        export.Settings.parse(values | {"origins": ["dir:/x"]})
