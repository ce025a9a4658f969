"""Adapters are merged as what they do, W + s · BA, against PEFT's own multiplication; strangers are refused."""

from __future__ import annotations

import json
from pathlib import Path

import merge_models
import pytest
import torch
from safetensors.torch import save_file

from alignment import artifacts
from alignment.artifacts import Artifact, Parent
from alignment.errors import UserError
from alignment.merging import adapters, layout, members

RANK, ALPHA = 2, 6.0
MATRIX = "model.layers.0.mlp.up_proj.weight"


def trunk(folder: Path, dtype: torch.dtype = torch.float32, shards: int = 0) -> Path:
    return merge_models.write(folder, merge_models.drawn(0, dtype), shards)


def factors(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(RANK, 11, generator=generator), torch.randn(13, RANK, generator=generator)


def adapter(folder: Path, seed: int, **changes: object) -> Path:
    folder.mkdir(parents=True)
    down, up = factors(seed)
    name = f"base_model.model.{MATRIX.removesuffix('.weight')}"
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, folder / adapters.WEIGHTS)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", "base_model_name_or_path": "trunk"}
    (folder / adapters.CONFIG).write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shards", [0, 3])
def test_the_whole_model(dtype: torch.dtype, shards: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "ROWS", 30)
    begun = layout.read(trunk(tmp_path / "trunk", dtype, shards))
    one = adapters.read(adapter(tmp_path / "a", 1))
    assert adapters.is_adapter(one.directory)
    assert not adapters.is_adapter(begun.directory)
    promised = adapters.layout_over(one, begun, tmp_path / "whole")
    adapters.write(one, begun, promised)
    assert layout.read(tmp_path / "whole") == promised
    found, wanted = merge_models.read(tmp_path / "whole"), merge_models.read(begun.directory)
    down, up = factors(1)
    for name, value in found.items():
        assert value.dtype == torch.float32
        product = (ALPHA / RANK) * up.double() @ down.double() if name == MATRIX else 0
        torch.testing.assert_close(value.double(), wanted[name].double() + product, rtol=1e-6, atol=1e-6)
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["dtype"] == "float32"
    if shards:
        told = json.loads((tmp_path / "whole" / layout.INDEX).read_text())
        assert told["metadata"]["total_size"] == sum(4 * value.numel() for value in found.values())


def test_adapters_are_merged_by_what_they_do(tmp_path: Path) -> None:
    """The mean of the factors is another matrix (TRAPS)."""
    begun = trunk(tmp_path / "trunk")
    wholes = []
    for seed in (1, 2):
        one = adapters.read(adapter(tmp_path / f"a{seed}", seed))
        promised = adapters.layout_over(one, layout.read(begun), tmp_path / f"whole{seed}")
        adapters.write(one, layout.read(begun), promised)
        wholes.append(promised.directory)
    merge_models.merge(wholes, tmp_path / "out")
    moved = merge_models.read(tmp_path / "out")[MATRIX] - merge_models.read(begun)[MATRIX]
    products = [(ALPHA / RANK) * up @ down for down, up in (factors(1), factors(2))]
    torch.testing.assert_close(moved, (products[0] + products[1]) / 2, rtol=1e-4, atol=1e-5)
    mixed = (ALPHA / RANK) * (factors(1)[1] + factors(2)[1]) @ (factors(1)[0] + factors(2)[0]) / 4
    assert float((mixed - moved).norm() / moved.norm()) > 0.3


def test_rank_stabilised_scale(tmp_path: Path) -> None:
    assert adapters.read(adapter(tmp_path / "a", 1, use_rslora=True)).scale == pytest.approx(ALPHA / 2**0.5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("modules_to_save", ["score"]),
        ("peft_type", "IA3"),
        ("rank_pattern", {"q": 4}),
    ],
)
def test_more_than_low_rank_factors(key: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=key):
        adapters.read(adapter(tmp_path / "a", 1, **{key: value}))


def test_a_trunk_without_its_matrices(tmp_path: Path) -> None:
    other = merge_models.write(tmp_path / "other", {MATRIX: torch.ones(13, 12)})
    with pytest.raises(UserError, match="was not trained on") as caught:
        adapters.layout_over(adapters.read(adapter(tmp_path / "a", 1)), layout.read(other), tmp_path / "whole")
    assert "[13, 11]" in caught.value.cause


# ── whose trunk it is ────────────────────────────────────────────────────────────────────────────


def a_run(folder: Path, base: Artifact, seed: int) -> Artifact:
    """A run that trained an adapter; what is named is the adapter in it."""
    path = adapter(folder / "adapter", seed)
    link = Parent(f"run:{base.path}", base.fingerprint, str(base.path))
    artifacts.finish(Artifact(folder, "policy", "sft", folder.name, folder.name, parents={"model.weights": link}))
    return artifacts.foreign(path, f"dir:{path}")


def a_trunk(folder: Path, fingerprint: str) -> Artifact:
    trunk(folder)
    return artifacts.finish(Artifact(folder, "policy", "sft", folder.name, fingerprint))


def test_the_trunk_is_known_by_the_run(tmp_path: Path) -> None:
    base, other = a_trunk(tmp_path / "base", "b" * 64), a_trunk(tmp_path / "other", "c" * 64)
    one, two = a_run(tmp_path / "one", base, 1), a_run(tmp_path / "two", base, 2)
    stranger = a_run(tmp_path / "three", other, 3)
    found = members.trunk_of([one, two], None)
    assert found is not None
    assert found.path == base.path
    assert members.trunk_of([base, other], None) is None, "whole models have none"
    for models, init in (([one, stranger], None), ([one], other), ([stranger, one], None)):
        with pytest.raises(UserError, match="is an adapter on another trunk") as caught:
            members.trunk_of(models, init)
        assert "bbbbbbbbbbbb" in caught.value.cause
    member = members.member(one, base, tmp_path / "out", 0)
    assert (member.home, member.layout.directory.parent.name) == (base, "parts")


def test_a_lone_adapter_needs_its_trunk_named(tmp_path: Path) -> None:
    path = adapter(tmp_path / "lone", 1)
    lone, base = artifacts.foreign(path, f"dir:{path}"), a_trunk(tmp_path / "base", "b" * 64)
    with pytest.raises(UserError, match="is an adapter, and its trunk is not there"):
        members.trunk_of([lone], None)
    assert members.trunk_of([lone], base) == base


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"r": 5}, "rank 5"),
        ({"r": 0}, "cannot be read"),
        ({"lora_alpha": None}, "cannot be read"),
    ],
)
def test_a_config_that_its_factors_do_not_bear_out(changes: dict[str, object], word: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=word):
        adapters.read(adapter(tmp_path / "a", 1, **changes))


def test_a_damaged_adapter(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", 1)
    whole = (folder / adapters.WEIGHTS).read_bytes()
    (folder / adapters.WEIGHTS).write_bytes(whole[:-4])
    with pytest.raises(UserError, match="damaged"):
        adapters.read(folder)
    (folder / adapters.WEIGHTS).unlink()
    with pytest.raises(UserError, match="missing"):
        adapters.read(folder)
    (folder / adapters.CONFIG).write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        adapters.read(folder)


def test_factors_that_are_not_finite_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", 1)
    down, up = factors(1)
    up[3, 1] = float("nan")
    name = f"base_model.model.{MATRIX.removesuffix('.weight')}"
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, folder / adapters.WEIGHTS)
    begun = trunk(tmp_path / "trunk")
    start, lone = (artifacts.Artifact(path, "foreign", "", path.name, path.name) for path in (begun, folder))
    member = members.member(lone, start, tmp_path / "out", 0)
    with pytest.raises(UserError, match=r"lora_B.* not finite"):
        members.multiply_out([member])
    assert not (tmp_path / "out").exists()


def test_lone_adapters_that_name_different_trunks(tmp_path: Path) -> None:
    begun = trunk(tmp_path / "trunk")
    init = artifacts.Artifact(begun, "foreign", "", "trunk", "trunk")
    lone = [
        artifacts.Artifact(
            adapter(tmp_path / name, 1, base_model_name_or_path=f"org/{name}"), "foreign", "", name, name
        )
        for name in ("a", "b")
    ]
    assert members.trunk_of(lone[:1], init) is init
    with pytest.raises(UserError, match="another trunk"):
        members.trunk_of(lone, init)


def test_an_adapters_own_run_tells_what_it_was_trained_on(tmp_path: Path) -> None:
    begun = trunk(tmp_path / "trunk")
    init = artifacts.Artifact(begun, "foreign", "", "trunk", "trunk")
    one = artifacts.Artifact(adapter(tmp_path / "run" / "adapter", 1), "foreign", "", "a", "a")
    assert tmp_path / "run" in members.trained(members.member(one, init, tmp_path / "out", 0))
