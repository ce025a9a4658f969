"""Model directories from anybody: headers, indices, configs, adapters, tokenizers. Sound, or refused in words."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import fuzzing
import hostile
from fuzzing import told
from hypothesis import strategies as st

PREFIX = 8
NAMES = (
    "../outside/kept",
    "/etc/passwd",
    "model.safetensors",
    "b.safetensors",
    "..",
    "",
    "sub/model.safetensors",
    "\0",
    "link.safetensors",
)


@cache
def tiny_model() -> dict[str, bytes]:
    """The files of a Gemma 2 of some thousand numbers, with a reward's head."""
    import tempfile

    from gemma import tiny

    from alignment.gemma import core, heads

    with tempfile.TemporaryDirectory() as folder:
        reward = heads.with_head(core.build(tiny.GEMMA2, tiny.VOCABULARY, core.TokenIds(), 0), 0)
        heads.save_reward(reward, folder, heads.Scale(0.5, False, "gemma2"))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def parts_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    """A safetensors file as its header and its numbers."""
    length = int.from_bytes(content[:PREFIX], "little")
    return json.loads(content[PREFIX : PREFIX + length]), content[PREFIX + length :]


def joined(header: Any, numbers: bytes, longer: int = 0) -> bytes:
    """The file again; ``longer`` is what its first eight bytes add to the truth."""
    text = (header if isinstance(header, str) else hostile.plain(header)).encode(errors="surrogatepass")
    return (len(text) + longer & (2**64 - 1)).to_bytes(PREFIX, "little") + text + numbers


@st.composite
def weights(draw: st.DrawFn, sound: bytes) -> bytes:
    """A safetensors file with a header that is not the truth, or cut off."""
    if draw(st.booleans()):
        return draw(hostile.damaged(sound))
    header, numbers = parts_of(sound)
    some = dict(list(header.items())[: draw(st.integers(1, 4))]) if draw(st.booleans()) else header
    header = draw(st.one_of(hostile.changed(some), hostile.texts()))
    return joined(
        header,
        numbers[: draw(st.sampled_from([len(numbers), 8, 0]))],
        draw(st.sampled_from([0, 0, 0, 1, -1, 2**40, 2**63])),
    )


@st.composite
def models(draw: st.DrawFn) -> dict[str, bytes]:
    """The files of a model directory, one or two of them wrong."""
    found = dict(tiny_model())
    for name in sorted(
        draw(st.sets(st.sampled_from(["config", "weights", "index", "adapter"]), min_size=1, max_size=2))
    ):
        if name == "config":
            config = draw(hostile.changed(json.loads(found["config.json"])))
            found["config.json"] = draw(
                st.one_of(
                    st.just(hostile.plain(config).encode(errors="surrogatepass")), hostile.damaged(found["config.json"])
                )
            )
        elif name == "weights":
            found["model.safetensors"] = draw(weights(tiny_model()["model.safetensors"]))
        elif name == "index":
            header, _ = parts_of(tiny_model()["model.safetensors"])
            files = st.sampled_from(NAMES)
            placed = {one: draw(files) for one in list(header)[: draw(st.integers(0, 3))]}
            index = draw(
                hostile.changed(
                    {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(header, "model.safetensors") | placed}
                )
            )
            found["model.safetensors.index.json"] = hostile.plain(index).encode(errors="surrogatepass")
            if draw(st.booleans()):
                found["b.safetensors"] = found.pop("model.safetensors", b"")
        else:
            found["adapter_config.json"] = b'{"peft_type": "LORA", "base_model_name_or_path": "../outside"}'
    return found


def laid_out(folder: Path, files: dict[str, bytes]) -> Path:
    model = folder / "model"
    model.mkdir()
    for name, content in files.items():
        (model / name).write_bytes(content)
    (model / "link.safetensors").symlink_to("../../outside/kept")
    return model


def models_are_looked_at_or_refused(folder: Path, files: dict[str, bytes]) -> None:
    from alignment.gemma import core, heads
    from alignment.merging import layout
    from alignment.scoring import classifier

    path = laid_out(folder, files)
    found = told(lambda: layout.read(path))
    if found is not None:
        assert all(shard.path.parent == path for shard in found.shards)
    for look in (heads.is_reward, heads.read_scale, classifier.is_classifier, classifier._check):
        told(lambda look=look: look(path))
    config = told(lambda: core.read_config(path))
    if config is not None:
        told(lambda: core.shape_of(config))
        told(lambda: core.check_tensors(path, heads.REWARD_MODELS[config.model_type], config))
        told(lambda: heads.check_head(path, ours=True))


test_models, test_models_thoroughly = fuzzing.both(
    models_are_looked_at_or_refused, quick=30, thorough=1500, files=models()
)


def models_are_loaded_or_refused(folder: Path, files: dict[str, bytes]) -> None:
    from alignment.gemma import heads

    path = laid_out(folder, files)
    told(lambda: heads.load_reward(path, ours=True))


test_loading, test_loading_thoroughly = fuzzing.both(
    models_are_loaded_or_refused, quick=10, thorough=300, files=models()
)

ADAPTER = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "bias": "none",
    "base_model_name_or_path": "x",
    "init_lora_weights": True,
}


@st.composite
def adapters(draw: st.DrawFn) -> dict[str, bytes]:
    """An adapter of one matrix."""
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_{}.weight"
    header = {
        name.format("A"): {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        name.format("B"): {"dtype": "F32", "shape": [4, 2], "data_offsets": [24, 56]},
    }
    config = hostile.plain(draw(hostile.changed(ADAPTER))).encode(errors="surrogatepass")
    content = joined(header, bytes(56))
    return {
        "adapter_config.json": config,
        "adapter_model.safetensors": draw(st.one_of(st.just(content), weights(content))),
    }


def adapters_are_read_or_refused(folder: Path, files: dict[str, bytes]) -> None:
    from alignment.merging import adapters as reading

    path = laid_out(folder, files)
    found = told(lambda: reading.read(path))
    if found is not None:
        told(lambda: reading.need_finite(found))


test_adapters, test_adapters_thoroughly = fuzzing.both(
    adapters_are_read_or_refused, quick=40, thorough=700, files=adapters()
)


@cache
def tiny_tokenizer() -> dict[str, bytes]:
    """Some hundred pieces, as a directory."""
    import tempfile

    from alignment.chat.train import train

    with tempfile.TemporaryDirectory() as folder:
        train([f"the answer to question {number} is {number % 7}" for number in range(60)], 400, Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@st.composite
def tokenizers(draw: st.DrawFn) -> dict[str, bytes]:
    """A tokenizer's files, one or two of them wrong."""
    found = dict(tiny_tokenizer())
    for name in draw(st.sets(st.sampled_from(sorted(found)), min_size=1, max_size=2)):
        if name.endswith(".json") and draw(st.booleans()):
            tree = json.loads(found[name])
            for pieces in ("vocab", "merges"):
                # Of these any part is as good as any other.
                if isinstance(tree.get("model"), dict) and draw(st.booleans()):
                    tree["model"][pieces] = draw(hostile.values())
            found[name] = hostile.plain(draw(hostile.changed(tree))).encode(errors="surrogatepass")
        elif draw(st.booleans()):
            del found[name]
        else:
            found[name] = draw(hostile.damaged(found[name]))
    return found


def tokenizers_are_read_or_refused(folder: Path, files: dict[str, bytes]) -> None:
    from alignment.chat import tokenizers as reading

    path = laid_out(folder, files)
    found = told(lambda: reading.load(path))
    if found is not None:
        assert found.vocab_size > 0


test_tokenizers, test_tokenizers_thoroughly = fuzzing.both(
    tokenizers_are_read_or_refused, quick=10, thorough=400, files=tokenizers()
)


@st.composite
def stored_logits(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """The index of a teacher's log-probabilities, and a shard."""
    header = {
        "__metadata__": {"rows": '[["a", "0123456789abcdef"]]'},
        "offsets": {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]},
        "tokens": {"dtype": "U16", "shape": [1], "data_offsets": [16, 18]},
        "ids": {"dtype": "U16", "shape": [1, 2], "data_offsets": [18, 22]},
        "logprobs": {"dtype": "F16", "shape": [1, 2], "data_offsets": [22, 26]},
        "tail": {"dtype": "F16", "shape": [1], "data_offsets": [26, 28]},
        "drawn": {"dtype": "U16", "shape": [1, 3], "data_offsets": [28, 34]},
        "entropy": {"dtype": "F16", "shape": [1], "data_offsets": [34, 36]},
    }
    sound = joined(header, (0).to_bytes(8, "little") + (1).to_bytes(8, "little") + bytes(20))
    import hashlib

    shard = draw(st.one_of(st.just(sound), weights(sound)))
    index = {"version": 3, "name": "t", "tokenizer": "t", "schema": "gemma2", "vocabulary": 9, "k": 2, "drawn": 3}
    index |= {"temperature": 1.0, "block": None}
    index |= {
        "shards": [
            {
                "file": draw(st.sampled_from(["00000.safetensors", "../../outside/kept"])),
                "sha256": hashlib.sha256(shard).hexdigest(),
            }
        ]
    }
    return hostile.plain(draw(hostile.changed(index))).encode(errors="surrogatepass"), shard


def stored_logits_are_read_or_refused(folder: Path, stored: tuple[bytes, bytes]) -> None:
    from alignment.data import topk

    (folder / topk.FOLDER).mkdir()
    (folder / topk.FOLDER / topk.INDEX).write_bytes(stored[0])
    (folder / topk.FOLDER / "00000.safetensors").write_bytes(stored[1])
    found = told(lambda: topk.Store.open(folder))
    if found is not None:
        for name in found:
            told(lambda name=name: found.row(name))


test_stored_logits, test_stored_logits_thoroughly = fuzzing.both(
    stored_logits_are_read_or_refused, quick=30, thorough=500, stored=stored_logits()
)
