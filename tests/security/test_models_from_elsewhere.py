"""A model directory from anybody: nothing in it runs, nothing beside it is read, nothing of it stands for another."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gemma import tiny
from scoring import tiny_classifier
from scoring.tiny_reward import ENGINE

from alignment import artifacts
from alignment.artifacts import Artifact
from alignment.chat.types import messages
from alignment.errors import UserError
from alignment.gemma import core, heads
from alignment.merging import layout
from alignment.scoring.classifier import Classifier

DIALOGUE = messages(("user", "a b"), ("assistant", "good"))


class Evil:
    """A pickle that leaves a mark where it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A sound one."""
    folder = tmp_path / "model"
    core.save(core.build(tiny.GEMMA2, tiny.VOCABULARY, core.TokenIds(), 0), folder, stop_ids=[1])
    return folder


def classifier(folder: Path, **config: Any) -> Path:
    """A sound one, whose config says more."""
    tiny_classifier.build(folder, "bad", "good")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def opened(folder: Path, text: str = "answer") -> Classifier:
    return Classifier.load(artifacts.foreign(folder, f"dir:{folder}"), ENGINE, "good", text)  # type: ignore[arg-type]


def test_pickled_weights_are_not_read(model: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(UserError, match=r"model\.safetensors"):
        core.load(model)
    folder = classifier(tmp_path / "classifier")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(UserError, match="safetensors"):
        opened(folder)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Evil(mark)))
    assert mark.exists(), "the pickle is harmless, and the test too"


def test_code_in_the_directory_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    named = {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Model"}
    folder = classifier(tmp_path / "c", auto_map=named, model_type="of-their-own")
    (folder / "own.py").write_text(f"import os\nos.system('touch {mark}')\nclass Config: pass\nclass Model: pass\n")
    with pytest.raises(UserError, match="cannot be opened"):
        opened(folder)
    known = classifier(tmp_path / "d", auto_map=named)
    (known / "own.py").write_text((folder / "own.py").read_text())
    assert opened(known).score([DIALOGUE]).raw, "transformers' own class of that type is taken"
    assert not mark.exists()


@pytest.mark.parametrize("named", ["somebody/kernel", "kernels-community/flash-attn", "flash_attention_2"])
def test_attention_that_a_config_names_is_not_fetched(tmp_path: Path, named: str) -> None:
    folder = classifier(tmp_path / "c", attn_implementation=named, _attn_implementation=named)
    assert opened(folder).model.config._attn_implementation in ("sdpa", "eager")


def test_an_index_reads_nothing_beside_the_directory(model: Path) -> None:
    shutil.copy(model / "model.safetensors", model.parent / "elsewhere.safetensors")
    (model / "model.safetensors").rename(model / "a.safetensors")
    names = _names(model / "a.safetensors")
    for named in (
        "../elsewhere.safetensors",
        str(model.parent / "elsewhere.safetensors"),
        "sub/../a.safetensors",
        "a.bin",
    ):
        (model / layout.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, named)}))
        for read in (core.load, layout.read):
            with pytest.raises(UserError, match="names "):
                read(model)
    (model / layout.INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "a.safetensors")}))
    with pytest.raises(UserError, match="metadata"):
        core.load(model)
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "a.safetensors")}
    (model / layout.INDEX).write_text(json.dumps(index))
    assert core.load(model)


def _names(path: Path) -> list[str]:
    return [entry.name for entry in layout.read_shard(path).entries]


@pytest.mark.parametrize(
    ("name", "count"), [("num_hidden_layers", 10**9), ("num_hidden_layers", 99_999), ("num_labels", 10**9)]
)
def test_a_config_of_endless_lists_is_refused_at_once(model: Path, tmp_path: Path, name: str, count: int) -> None:
    """transformers makes a list of so many while it reads the config, or builds so many layers."""
    for path in (model / "config.json", classifier(tmp_path / "c") / "config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: count, "layer_types": None}))
    began = time.process_time()
    with pytest.raises(UserError, match=f"{count:,}"):
        core.load(model)
    if count > 10**6:
        with pytest.raises(UserError, match=f"{count:,}"):
            opened(tmp_path / "c")
    assert time.process_time() - began < 5


def test_an_adapter_beside_a_model_is_refused(model: Path, tmp_path: Path) -> None:
    folder = classifier(tmp_path / "c")
    for one in (model, folder):
        (one / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "somebody/else"}')
    with pytest.raises(UserError, match="a model and an adapter"):
        core.load(model)
    with pytest.raises(UserError, match="a model and an adapter"):
        opened(folder)


def test_links_out_of_a_directory_are_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "private.json").write_text("{}")
    (model / "generation_config.json").unlink()
    (model / "generation_config.json").symlink_to("../private.json")
    with pytest.raises(UserError, match="leads out of its folder"):
        artifacts.foreign(model, "dir:model")
    record = Artifact(model, "policy", "sft", "sft", "f" * 64, files={"generation_config.json": "0" * 64})
    with pytest.raises(UserError, match="leads out of its folder"):
        artifacts.contained(record)
    (model / "generation_config.json").unlink()
    (model / "inside.json").symlink_to("config.json")
    assert artifacts.foreign(model, "dir:model").files


def test_the_hubs_own_links_are_followed(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / ("c" * 40), tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/1")
    assert artifacts.foreign(snapshot, "dir:x").files
    (tmp_path / "elsewhere").write_text("{}")
    (snapshot / "other.json").symlink_to("../../../elsewhere")
    with pytest.raises(UserError, match="leads out"):
        artifacts.foreign(snapshot, "dir:x")


def test_a_record_that_names_other_files_uploads_none(tmp_path: Path) -> None:
    from alignment.training.wandb_runs import wandb_artifact

    made = artifacts.finish(Artifact(_with_file(tmp_path / "made"), "policy", "sft", "sft", "f" * 64))
    (tmp_path / "private").write_text("key")
    record = json.loads((made.path / artifacts.RECORD).read_text())
    for name in ("../private", str(tmp_path / "private"), "a/../../private", "\0", "."):
        (made.path / artifacts.RECORD).write_text(json.dumps(record | {"files": {name: "0" * 64}}))
        with pytest.raises(UserError, match="names"):
            artifacts.load(made.path)
    (made.path / "link").symlink_to("../private")
    with pytest.raises(UserError, match="leads out"):
        wandb_artifact(replace(made, files={"link": "0" * 64}), "models")


def _with_file(folder: Path) -> Path:
    folder.mkdir()
    (folder / "weights.bin").write_bytes(b"1")
    return folder


TEMPLATES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{{ messages.__class__.__init__.__globals__ }}",
    "{% for i in range(1000000000) %}x{% endfor %}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{% include '/etc/passwd' %}",
    "{{ raise_exception('no') }}",
    "{{ 1 // 0 }}",
    "{{ messages[99].content }}",
    "{% if %}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_models_template_stays_in_its_sandbox(tmp_path: Path, template: str) -> None:
    folder = classifier(tmp_path / "c")
    (folder / "chat_template.jinja").write_text(template)
    scorer = opened(folder, "dialogue")
    with pytest.raises(UserError, match="chat template does not render"):
        scorer.score([DIALOGUE])


def test_a_template_that_only_renders_is_rendered(tmp_path: Path) -> None:
    folder = classifier(tmp_path / "c")
    (folder / "chat_template.jinja").write_text("{% for turn in messages %}{{ turn.content }} {% endfor %}")
    assert len(opened(folder, "dialogue").score([DIALOGUE]).raw) == 1


def test_a_folder_that_is_no_model_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignment import files, pipeline
    from alignment.store import Store

    (tmp_path / "home" / "letters").mkdir(parents=True)
    (tmp_path / "home" / "letters" / "a.txt").write_text("x")
    read: list[Path] = []
    monkeypatch.setattr(files, "digest_file", lambda path: read.append(path) or "0")
    maker = pipeline.Maker(Store(tmp_path / "runs"), lambda *_: {}, {})
    with pytest.raises(UserError, match="no model and no tokenizer"):
        maker.resolve(f"dir:{tmp_path / 'home'}", {})
    assert not read


def test_a_score_head_is_read_beside_its_index_alone(tmp_path: Path) -> None:
    folder = tmp_path / "reward"
    heads.save_reward(
        heads.with_head(core.build(tiny.GEMMA2, tiny.VOCABULARY, core.TokenIds(), 0), 0),
        folder,
        heads.Scale(0.0, False, "gemma2"),
    )
    shutil.copy(folder / "model.safetensors", tmp_path / "elsewhere.safetensors")
    (folder / layout.INDEX).write_text(
        json.dumps({"metadata": {}, "weight_map": {heads.HEAD: "../elsewhere.safetensors"}})
    )
    with pytest.raises(UserError, match="names"):
        heads.check_head(folder, ours=True)
