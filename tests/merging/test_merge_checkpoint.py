"""Streamed averages against float64, whatever the layout, the memory and the threads; stops, and bad numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from merge_models import SHAPES, average, contents, drawn, merge, read, write
from safetensors import safe_open

from alignment import files, parts
from alignment.errors import UserError
from alignment.merging import checkpoint, layout, plan, stream

DTYPES = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
"""By dtype, the distance of two numbers next to each other, relative to them."""


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that every tensor but the smallest has several slices, and every slice several blocks."""
    monkeypatch.setattr(stream, "BLOCK", 16)
    monkeypatch.setattr(stream, "SLICE", 48)


@pytest.mark.parametrize("shards", [0, 1, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_average_is_that_of_float64(dtype: torch.dtype, shards: int, tmp_path: Path) -> None:
    models = [drawn(seed, dtype) for seed in range(3)]
    # The others lie in other files than the first.
    directories = [write(tmp_path / str(seed), model, (shards, 0, 2)[seed]) for seed, model in enumerate(models)]
    merged = merge(directories, tmp_path / "out", [0.5, 0.3, 0.2])
    found, wanted = read(tmp_path / "out"), average(models, [0.5, 0.3, 0.2])
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert value.dtype == dtype
        assert value.shape == wanted[name].shape
        size = average([{name: model[name].abs()} for model in models], [0.5, 0.3, 0.2])[name]
        # Half a step of the dtype for the result (2⁻²⁵ where fp16 is subnormal), three roundings in fp32 on the way.
        assert ((value.double() - wanted[name]).abs() <= size * (DTYPES[dtype] / 2 + 3 * 2.0**-24) + 2.0**-25).all(), (
            name
        )
    assert (merged.tensors, merged.numbers) == (len(SHAPES), sum(value.numel() for value in wanted.values()))


def test_the_layout_is_the_first_models(tmp_path: Path) -> None:
    directories = [write(tmp_path / "a", drawn(0), 3), write(tmp_path / "b", drawn(1))]
    (directories[0] / "tokenizer.json").write_text("tokenizer")
    (directories[0] / "artifact.json").write_text("{}")
    merge(directories, tmp_path / "out")
    wanted, found = contents(directories[0]), contents(tmp_path / "out")
    assert found.keys() == wanted.keys() - {"artifact.json"}
    for name in ("config.json", "tokenizer.json", layout.INDEX):
        assert found[name] == wanted[name]
    for shard in layout.read(directories[0]).shards:
        assert found[shard.path.name].startswith(shard.head)
        assert len(found[shard.path.name]) == shard.size
    merge(directories[::-1], tmp_path / "single")
    assert (tmp_path / "single" / layout.SINGLE).is_file()
    with safe_open(tmp_path / "single" / layout.SINGLE, framework="pt") as tensors:
        assert tensors.metadata() == {"format": "pt"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_one_gives_the_model_back(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = drawn(0, dtype)
    weights["model.one"][0] = -0.0
    directories = [write(tmp_path / "a", weights), write(tmp_path / "b", drawn(1, dtype))]
    for order, given_ in ((directories, [1.0, 0.0]), (directories[::-1], [0.0, 1.0])):
        out = tmp_path / f"out{given_[0]}"
        merge(order, out, given_)
        assert (out / layout.SINGLE).read_bytes() == (directories[0] / layout.SINGLE).read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_and_memory_change_nothing(dtype: torch.dtype, tmp_path: Path) -> None:
    directories = [write(tmp_path / str(seed), drawn(seed, dtype), 2) for seed in range(3)]
    outcomes = []
    for threads, memory in ((1, 1 << 20), (2, 1 << 20), (5, 1 << 20), (2, 1500)):
        out = tmp_path / f"{threads}-{memory}"
        merged = merge(directories, out, threads=threads, memory=memory)
        outcomes.append((contents(out), json.dumps(merged.record())))
    division = stream.room(plan.linear([layout.read(one) for one in directories], None), 1500, 2)
    assert division.slice < stream.SLICE, "the last one had to do with less"
    assert all(outcome == outcomes[0] for outcome in outcomes[1:])


def test_slices_may_come_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Many blocks of very different size, whose plain sum would depend on the order.
    models = [{"t": drawn(seed, shapes={"t": (700,)})["t"] * 10.0 ** torch.arange(700).div(100)} for seed in range(2)]
    directories = [write(tmp_path / str(seed), model) for seed, model in enumerate(models)]
    merge(directories, tmp_path / "there")
    slices = stream._Work._all
    monkeypatch.setattr(stream._Work, "_all", lambda work, targets: reversed([*slices(work, targets)]))
    merge(directories, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tmp_path / "there")
    sums = [tmp_path / out / parts.FOLDER / "merge" / f"{layout.SINGLE}{stream.SUMS}" for out in ("there", "back")]
    assert sums[0].read_bytes() == sums[1].read_bytes()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 150), min_size=1, max_size=4),
    shards=st.integers(0, 3),
    threads=st.integers(1, 3),
    memory=st.integers(900, 6000),
)
def test_any_sizes(
    sizes: list[int], shards: int, threads: int, memory: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("sizes")
    shapes = {f"t{place}": (size,) for place, size in enumerate(sizes)}
    models = [drawn(seed, shapes=shapes) for seed in range(2)]
    directories = [write(folder / str(seed), model, min(shards, len(sizes))) for seed, model in enumerate(models)]
    merge(directories, folder / "out", threads=threads, memory=memory)
    found = read(folder / "out")
    assert all(torch.equal(found[name], (models[0][name] / 2 + models[1][name] / 2)) for name in shapes)


def test_how_far_apart_they_are(tmp_path: Path) -> None:
    models = [drawn(seed) for seed in range(3)]
    directories = [write(tmp_path / str(seed), model, 2) for seed, model in enumerate(models)]
    weights = [0.5, 0.25, 0.25]
    merged = merge(directories, tmp_path / "out", weights)
    mean = average(models, weights)
    layers = {
        "embed_tokens": ["model.embed_tokens.weight"],
        "layers.0": ["model.layers.0.mlp.up_proj.weight", "model.layers.0.norm.weight"],
        "layers.2": ["model.layers.2.norm.weight"],
        "layers.10": ["model.layers.10.norm.weight"],
        "nothing": ["model.nothing"],
        "one": ["model.one"],
        "scalar": ["model.scalar"],
        "score": ["score.weight"],
    }
    assert [*merged.layers] == [*layers]

    def flat(weights: dict[str, torch.Tensor], names: list[str]) -> torch.Tensor:
        return torch.cat([weights[name].double().flatten() for name in names])

    for layer, names in [*layers.items(), ("whole", [*SHAPES])]:
        found = merged.whole if layer == "whole" else merged.layers[layer]
        assert found.norm == pytest.approx(float(flat(mean, names).norm()), rel=1e-5)
        wanted = [float((flat(model, names) - flat(mean, names)).norm()) for model in models]
        assert found.distances == pytest.approx(wanted, rel=1e-5)
    square = sum(distance**2 for distance in merged.whole.distances) / 3
    assert merged.spread == pytest.approx(square**0.5 / merged.whole.norm)


# ── stops ────────────────────────────────────────────────────────────────────────────────────────


class Stop(BaseException):
    """As if the process were killed."""


def stop_after(monkeypatch: pytest.MonkeyPatch, name: str, calls: int) -> None:
    """Let so many calls of a function of ``stream`` through, and no more."""
    original, done = getattr(stream, name), [0]

    def counted(*arguments: object) -> object:
        if done[0] == calls:
            raise Stop
        done[0] += 1
        return original(*arguments)

    monkeypatch.setattr(stream, name, counted)


def test_it_goes_on_after_the_last_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directories = [write(tmp_path / str(seed), drawn(seed), 4) for seed in range(2)]
    wanted = json.dumps(merge(directories, tmp_path / "undisturbed").record())
    total = sum(path.stat().st_size for path in directories[0].glob("*.safetensors"))
    befores = set()
    for calls in range(0, 22, 3):
        out = tmp_path / f"out{calls}"
        with monkeypatch.context() as patch:
            stop_after(patch, "_write", calls)
            with pytest.raises(Stop):
                merge(directories, out)
        assert not contents(out), "nothing has its final name"
        files.remove_temporaries(out)
        kept = {path.name: path.stat().st_mtime_ns for path in (out / parts.FOLDER / "merge").glob("*.safetensors")}
        merged = merge(directories, out)
        assert merged.before == sum((out / name).stat().st_size for name in kept)
        assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept, "what was whole is not written again"
        assert contents(out) == contents(tmp_path / "undisturbed")
        assert json.dumps(merged.record()) == wanted
        befores.add(merged.before)
    assert len(befores) > 2
    assert max(befores) < total


def test_a_stop_while_files_are_put_in_their_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directories = [write(tmp_path / str(seed), drawn(seed), 4) for seed in range(2)]
    merge(directories, tmp_path / "undisturbed")

    def stop(first: Path, out: Path) -> None:
        raise Stop

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "carry", stop)
        with pytest.raises(Stop):
            merge(directories, out)
    (out / "model-00003-of-00004.safetensors").rename(out / parts.FOLDER / "merge" / "model-00003-of-00004.safetensors")
    monkeypatch.setattr(stream, "_read", None)
    merge(directories, out)
    assert contents(out) == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("gone", [False, True])
def test_a_file_that_was_put_in_its_place_and_is_not_whole(
    gone: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directories = [write(tmp_path / str(seed), drawn(seed), 4) for seed in range(2)]
    merge(directories, tmp_path / "undisturbed")
    merge(directories, tmp_path / "out")
    path = tmp_path / "out" / "model-00002-of-00004.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    if gone:
        path.unlink()
    assert merge(directories, tmp_path / "out").before > 0
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")
    said = " ".join(capsys.readouterr().out.split())
    assert f"{path.name} is made again: it is {'gone' if gone else 'cut off'}" in said


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("weights", [[0.5, 0.5], [1.0, 0.0]])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_numbers_that_are_none(value: str, weights: list[float], threads: int, tmp_path: Path) -> None:
    broken = drawn(1)
    broken["model.layers.2.norm.weight"][7] = float(value)
    directories = [write(tmp_path / "whole", drawn(0), 4), write(tmp_path / "broken", broken, 4)]
    out = tmp_path / "out"
    with pytest.raises(UserError, match=rf"model\.layers\.2\.norm\.weight holds {value} \(number 7\)") as caught:
        merge(directories, out, weights, threads=threads)
    assert str(directories[1] / "model-00001-of-00004.safetensors") in str(caught.value)
    assert not contents(out)
    assert not list(out.rglob("*.safetensors*"))


def test_the_place_of_a_number_is_its_tensors(tmp_path: Path) -> None:
    broken = drawn(0, torch.bfloat16)
    broken["model.embed_tokens.weight"].view(-1)[123] = float("nan")
    directories = [write(tmp_path / "broken", broken), write(tmp_path / "whole", drawn(1, torch.bfloat16))]
    with pytest.raises(UserError, match=r"holds nan \(number 123\)"):
        merge(directories, tmp_path / "out")


def test_large_numbers_are_numbers(tmp_path: Path) -> None:
    models = [{"t": torch.full((40,), value)} for value in (1e25, 3e25)]
    merged = merge([write(tmp_path / str(seed), model) for seed, model in enumerate(models)], tmp_path / "out")
    assert read(tmp_path / "out")["t"].tolist() == [torch.tensor(2e25).item()] * 40
    assert merged.spread == pytest.approx(0.5, rel=1e-5)


def test_too_little_memory_and_what_was_done_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directories = [write(tmp_path / str(seed), drawn(seed), 4) for seed in range(2)]
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_after(patch, "_write", 20)
        with pytest.raises(Stop):
            merge(directories, out)
    before = sorted(out.rglob("*.safetensors"))
    assert before
    with pytest.raises(UserError, match="memory_mib") as caught:
        merge(directories, out, memory=400)
    assert "at least 1" in caught.value.remedy
    assert sorted(out.rglob("*.safetensors")) == before


def test_too_little_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directories = [write(tmp_path / str(seed), drawn(seed)) for seed in range(2)]
    asked = []

    def need(folder: Path, wanted: int) -> None:
        asked.append(wanted)
        raise UserError("full")

    monkeypatch.setattr(files, "need_space", need)
    with pytest.raises(UserError, match="full"):
        merge(directories, tmp_path / "out")
    assert asked == [(directories[0] / layout.SINGLE).stat().st_size]
    assert not list((tmp_path / "out").rglob("*.safetensors*"))


def test_a_file_that_changes_on_the_way(tmp_path: Path) -> None:
    directories = [write(tmp_path / str(seed), drawn(seed)) for seed in range(2)]
    settled = plan.linear([layout.read(directory) for directory in directories], None)
    os.truncate(directories[1] / layout.SINGLE, 900)
    with pytest.raises(UserError, match=r"1/model\.safetensors has become shorter"):
        checkpoint.merge(settled, tmp_path / "out", memory=1 << 20, threads=1, on_progress=lambda done: None)


# ── memory ───────────────────────────────────────────────────────────────────────────────────────

CHILD = """
import sys
from pathlib import Path
import torch
from merge_models import merge
torch.dot(torch.ones(9), torch.ones(9))
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024
for turn in range(3):
    # Compiling takes some memory, whatever is merged.
    merge([Path(name).with_name(Path(name).name + "_small") for name in sys.argv[2:]], Path(sys.argv[1] + str(turn)))
before = peak()
merge([Path(name) for name in sys.argv[2:]], Path(sys.argv[1]), memory=16 << 20, threads=2)
print(peak() - before)
"""


def test_memory_is_bounded_whatever_the_size(tmp_path: Path) -> None:
    directories = []
    for seed in range(2):
        weights = {"large": torch.full((40 << 20,), float(seed)), "small": torch.ones(3)}
        directories.append(write(tmp_path / str(seed), weights))
        write(tmp_path / f"{seed}_small", {"small": torch.ones(3)})
    del weights
    arguments = [sys.executable, "-c", CHILD, str(tmp_path / "out"), *map(str, directories)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / layout.SINGLE).stat().st_size > 160 << 20
    # 16 MiB of buffers, and a little for threads and lists; the models have 320, and slices of full size would need 30.
    assert 8 < float(done.stdout) < 24, "8: something was measured"
