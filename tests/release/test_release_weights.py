"""Weights in another precision: values, layout, memory, and a conversion that is killed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from merging import merge_models
from safetensors import safe_open
from safetensors.torch import load_file

from alignment.errors import UserError
from alignment.merging import layout
from alignment.release import weights
from alignment.release.weights import Dtype, Written


def converted(source: Path, out: Path, dtype: Dtype = "bf16", **metadata: str) -> Written:
    (out / "release").mkdir(parents=True, exist_ok=True)
    return weights.convert(layout.read(source), out / "release", out, dtype, metadata, lambda done: None)


@pytest.fixture(params=[0, 3], ids=["one file", "three files"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return merge_models.write(tmp_path / "source", merge_models.drawn(0), request.param)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "release").iterdir())}


def test_rounded_to_nearest(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "BLOCK", 7)
    done = converted(source, tmp_path / "out")
    given, got = merge_models.drawn(0), merge_models.read(tmp_path / "out" / "release")
    assert got.keys() == given.keys()
    for name, value in got.items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, given[name].to(torch.bfloat16)), name
    error = sum(float((value.double() - given[name].double()).square().sum()) for name, value in got.items())
    norm = sum(float(value.double().square().sum()) for value in given.values())
    assert done.rounding == pytest.approx(math.sqrt(error / norm), rel=1e-6)
    assert done.numbers == sum(value.numel() for value in given.values())
    assert done.bytes == 2 * done.numbers


def test_the_layout_is_kept(source: Path, tmp_path: Path) -> None:
    converted(source, tmp_path / "out", modification="so")
    before, after = layout.read(source), layout.read(tmp_path / "out" / "release")
    assert [shard.path.name for shard in after.shards] == [shard.path.name for shard in before.shards]
    assert [*after.entries] == [*before.entries]
    for shard in after.shards:
        assert len(shard.head) % 8 == 0
        with safe_open(shard.path, "pt") as file:
            assert file.metadata() == {"format": "pt", "modification": "so"}


def test_the_same_precision_keeps_every_bit(source: Path, tmp_path: Path) -> None:
    assert converted(source, tmp_path / "out", "fp32").rounding == 0
    for name, value in merge_models.read(tmp_path / "out" / "release").items():
        assert torch.equal(value, merge_models.drawn(0)[name])
    half = merge_models.write(tmp_path / "half", merge_models.drawn(0, torch.bfloat16))
    assert converted(half, tmp_path / "wide", "fp32").rounding == 0


def test_killed_and_started_again(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "BLOCK", 16)
    whole = converted(source, tmp_path / "whole")
    plain, calls = weights._convert, 0
    for death in (1, 5, 20, 25):

        def dies(*given: object, death: int = death) -> tuple[float, float]:
            nonlocal calls
            calls += 1
            if calls == death:
                raise KeyboardInterrupt
            return plain(*given)  # type: ignore[arg-type]

        calls = 0
        monkeypatch.setattr(weights, "_convert", dies)
        with pytest.raises(KeyboardInterrupt):
            converted(source, tmp_path / "killed")
        named = list((tmp_path / "killed" / "release").glob("*.safetensors"))
        for path in named:
            assert path.read_bytes() == (tmp_path / "whole" / "release" / path.name).read_bytes()
    monkeypatch.setattr(weights, "_convert", plain)
    assert converted(source, tmp_path / "killed") == whole
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    (tmp_path / "killed" / "release" / layout.read(source).shards[0].path.name).unlink()
    assert converted(source, tmp_path / "killed") == whole, "a file that was taken away is written again"
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_what_cannot_be_released(tmp_path: Path) -> None:
    broken = merge_models.drawn(0)
    broken["score.weight"][0, 3] = math.nan
    with pytest.raises(UserError, match=r"score\.weight holds a number that is not finite"):
        converted(merge_models.write(tmp_path / "nan", broken), tmp_path / "a")
    large = {"model.norm.weight": torch.tensor([3.4e38])}
    with pytest.raises(UserError, match="not finite in bf16"):
        converted(merge_models.write(tmp_path / "large", large), tmp_path / "b")
    packed = {"model.norm.weight": torch.ones(3, dtype=torch.int8)}
    with pytest.raises(UserError, match="dtype I8"):
        converted(merge_models.write(tmp_path / "packed", packed), tmp_path / "c")
    assert not list(tmp_path.glob("?/release/*.safetensors"))


def test_no_more_than_a_block_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "BLOCK", 100)
    seen = []
    plain = torch.frombuffer
    monkeypatch.setattr(torch, "frombuffer", lambda raw, dtype: seen.append(len(raw)) or plain(raw, dtype=dtype))
    converted(merge_models.write(tmp_path / "source", merge_models.drawn(0)), tmp_path / "out")
    assert max(seen) == 400
    assert load_file(tmp_path / "out" / "release" / layout.SINGLE)["model.embed_tokens.weight"].shape == (37, 11)
