"""Streamed slerp and liti against float64, whatever the layout, the memory and the threads; stops, and what is told."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import merge_models
import pytest
import torch
from merge_models import Weights, contents, done, read, recursion, spherical, write

from alignment import files, parts
from alignment.errors import UserError
from alignment.merging import layout, plan, stream

STEPS = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


# A single number has no direction but forwards and back.
SHAPES = {name: shape for name, shape in merge_models.SHAPES.items() if name not in ("model.one", "model.scalar")}


def drawn(seed: int, dtype: torch.dtype = torch.float32, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> Weights:
    return merge_models.drawn(seed, dtype, shapes)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that every tensor but the smallest has several slices, and every slice several blocks."""
    monkeypatch.setattr(stream, "BLOCK", 16)
    monkeypatch.setattr(stream, "SLICE", 48)


def trained(start: Weights, seed: int, size: float = 0.1) -> Weights:
    """The start and a task vector of about this relative length, in the start's dtype."""
    moved = drawn(seed)
    return {name: (value.double() + size * moved[name].double()).to(value.dtype) for name, value in start.items()}


def family(folder: Path, count: int, dtype: torch.dtype = torch.float32, shards: int = 0) -> tuple[list[Path], Path]:
    start = drawn(100, dtype)
    models = [write(folder / str(seed), trained(start, seed), shards) for seed in range(count)]
    return models, write(folder / "start", start, 2)


def close(found: Weights, wanted: Weights, dtype: torch.dtype) -> None:
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert value.dtype == dtype
        # Half a step of the dtype for the result, some roundings in fp32 of it and of the coefficients on the way.
        bound = wanted[name].abs() * (STEPS[dtype] / 2 + 2.0**-23) + 2e-6
        assert ((value.double() - wanted[name]).abs() <= bound).all(), name


@pytest.mark.parametrize("split", ["layer", "tensor"])
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("dtype", STEPS)
def test_slerp_is_that_of_float64(dtype: torch.dtype, count: int, split: plan.Parts, tmp_path: Path) -> None:
    models, start = family(tmp_path, count, dtype, shards=count - 2)
    weights = [weight / sum(range(1, count + 1)) for weight in range(1, count + 1)]
    spherical(models, start, tmp_path / "out", weights, split)
    close(read(tmp_path / "out"), recursion([read(model) for model in models], read(start), weights, split), dtype)


@pytest.mark.parametrize("dtype", STEPS)
def test_weight_one_gives_that_model_back(dtype: torch.dtype, tmp_path: Path) -> None:
    models, start = family(tmp_path, 2, dtype)
    spherical(models, start, tmp_path / "out", [0.0, 1.0])
    assert contents(tmp_path / "out") == contents(models[1])


def test_a_start_that_is_stored_otherwise(tmp_path: Path) -> None:
    begun = drawn(100, torch.bfloat16)
    wide = {name: value.float() for name, value in begun.items()}
    models = [write(tmp_path / str(seed), trained(wide, seed)) for seed in range(2)]
    start = write(tmp_path / "start", begun)
    spherical(models, start, tmp_path / "out", [0.4, 0.6])
    close(read(tmp_path / "out"), recursion([read(one) for one in models], wide, [0.4, 0.6], "layer"), torch.float32)


def test_layers_and_tensors_differ(tmp_path: Path) -> None:
    models, start = family(tmp_path, 2)
    for split in ("layer", "tensor"):
        spherical(models, start, tmp_path / split, parts=split)
    differing = {
        name
        for name, value in read(tmp_path / "layer").items()
        if not torch.equal(value, read(tmp_path / "tensor")[name])
    }
    assert differing == {"model.layers.0.mlp.up_proj.weight", "model.layers.0.norm.weight"}


def test_it_is_no_average_and_not_slerp_of_whole_weights(tmp_path: Path) -> None:
    """Small task vectors at right angles: whole weights have a cosine of 0.9999, which others take for 1 (TRAPS)."""
    start = {"model.norm.weight": torch.ones(2000)}
    first, second = torch.zeros(2000), torch.zeros(2000)
    first[:1000], second[1000:] = 1e-2, 1e-2
    models = [
        write(tmp_path / str(place), {"model.norm.weight": start["model.norm.weight"] + moved})
        for place, moved in enumerate((first, second))
    ]
    merged = spherical(models, write(tmp_path / "start", start), tmp_path / "out")
    moved = read(tmp_path / "out")["model.norm.weight"] - 1
    assert moved.tolist() == pytest.approx([math.sqrt(0.5) * 1e-2] * 2000, rel=1e-4)
    assert merged.geometry is not None
    assert merged.geometry.whole.angles == {"0,1": pytest.approx(90)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_and_memory_change_nothing(dtype: torch.dtype, tmp_path: Path) -> None:
    models, start = family(tmp_path, 3, dtype, shards=3)
    outcomes = []
    for threads, memory in ((1, 1 << 20), (2, 1 << 20), (5, 1 << 20), (2, 1500), (3, 4000)):
        out = tmp_path / f"{threads}-{memory}"
        merged = spherical(models, start, out, threads=threads, memory=memory)
        outcomes.append((contents(out), json.dumps(merged.record())))
    assert all(outcome == outcomes[0] for outcome in outcomes[1:])


class Stop(BaseException):
    """As if the process were killed."""


@pytest.mark.parametrize("threads", [1, 2])
def test_a_stopped_slerp_goes_on_to_the_same_bytes(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers have tensors in several files, so what was sealed must say what it measured."""
    models, start = family(tmp_path, 2, shards=4)
    wanted = json.dumps(spherical(models, start, tmp_path / "undisturbed").record())
    original, befores = stream._read, set()
    for calls in range(0, 190, 17):
        out, done_ = tmp_path / f"out{calls}", [0]

        def counted(*arguments: object, done_: list[int] = done_, calls: int = calls) -> None:
            if done_[0] == calls:
                raise Stop
            done_[0] += 1
            original(*arguments)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(stream, "_read", counted)
            try:
                spherical(models, start, out, threads=threads)
            except Stop:
                assert not contents(out), "nothing has its final name"
        files.remove_temporaries(out)
        merged = spherical(models, start, out, threads=threads)
        assert contents(out) == contents(tmp_path / "undisturbed")
        assert json.dumps(merged.record()) == wanted
        befores.add(merged.before)
    # How much was sealed when it stopped is, with several threads, a matter of timing.
    assert len(befores) > (2 if threads == 1 else 1)


def test_what_was_measured_without_the_start_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models, start = family(tmp_path, 2, shards=2)
    layouts, out = [layout.read(model) for model in models], tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("alignment.merging.checkpoint.carry", lambda first, out: (_ for _ in ()).throw(Stop))
        with pytest.raises(Stop):
            done(plan.linear(layouts, None), out)
    merged = done(plan.linear(layouts, None, layout.read(start)), out)
    done(plan.linear(layouts, None, layout.read(start)), tmp_path / "fresh")
    assert merged.geometry is not None
    assert merged.geometry.whole.task_norms[0] == pytest.approx(0.1 * length(drawn(0)), rel=1e-4)
    assert contents(out) == contents(tmp_path / "fresh")


# ── liti, and averages with a start ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", STEPS)
@pytest.mark.parametrize("eta", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_part_of_the_way(eta: float, dtype: torch.dtype, tmp_path: Path) -> None:
    (model,), start = family(tmp_path, 1, dtype)
    done(plan.liti(layout.read(model), layout.read(start), eta, "layer"), tmp_path / "out")
    begun, ended = read(start), read(model)
    wanted = {name: begun[name].double() * (1 - eta) + ended[name].double() * eta for name in SHAPES}
    close(read(tmp_path / "out"), wanted, dtype)
    for end, weights in ((0.0, begun), (1.0, ended)):
        if eta == end:
            assert all(torch.equal(value, weights[name]) for name, value in read(tmp_path / "out").items())


def test_liti_needs_every_tensor_of_the_start(tmp_path: Path) -> None:
    model = write(tmp_path / "model", drawn(0))
    begun = {name: value for name, value in drawn(1).items() if name != "score.weight"}
    with pytest.raises(UserError, match=r"start lacks score\.weight"):
        plan.liti(layout.read(model), layout.read(write(tmp_path / "start", begun)), 0.5, "layer")


def test_a_start_in_another_dtype(tmp_path: Path) -> None:
    start = drawn(100, torch.bfloat16)
    wide = {name: value.float() for name, value in start.items()}
    models = [write(tmp_path / str(seed), trained(wide, seed)) for seed in range(2)]
    merged = spherical(models, write(tmp_path / "start", start), tmp_path / "out")
    close(
        read(tmp_path / "out"), recursion([read(model) for model in models], wide, [0.5, 0.5], "layer"), torch.float32
    )
    assert merged.rounding is None, "training began at the very numbers of the start"


def test_a_head_that_the_start_lacks_is_averaged(tmp_path: Path) -> None:
    models, _ = family(tmp_path, 2)
    begun = {name: value for name, value in drawn(100).items() if name != "score.weight"}
    merged = spherical(models, write(tmp_path / "policy", begun), tmp_path / "out", [0.25, 0.75])
    heads = [read(model)["score.weight"] for model in models]
    torch.testing.assert_close(read(tmp_path / "out")["score.weight"], heads[0] * 0.25 + heads[1] * 0.75)
    assert merged.geometry is not None
    assert "score" not in merged.geometry.groups
    assert "score" in merged.layers


def test_an_average_does_not_depend_on_whether_the_start_is_there(tmp_path: Path) -> None:
    models, start = family(tmp_path, 3)
    layouts = [layout.read(model) for model in models]
    for name, begun in (("without", None), ("with", layout.read(start))):
        merged = done(plan.linear(layouts, [0.5, 0.3, 0.2], begun), tmp_path / name)
        assert (merged.geometry is None) == (begun is None)
    assert contents(tmp_path / "with") == contents(tmp_path / "without")


# ── what is told ─────────────────────────────────────────────────────────────────────────────────


def length(weights: Weights, *names: str) -> float:
    return float(torch.cat([weights[name].double().flatten() for name in names or weights]).norm())


def test_lengths_and_angles(tmp_path: Path) -> None:
    models, start = family(tmp_path, 3)
    begun, ended = read(start), [read(model) for model in models]
    merged = spherical(models, start, tmp_path / "out")
    result = read(tmp_path / "out")
    assert merged.geometry is not None
    assert [*merged.geometry.groups] == [
        "embed_tokens",
        "layers.0",
        "layers.2",
        "layers.10",
        "nothing",
        "score",
    ]

    def minus(one: Weights, other: Weights) -> Weights:
        return {name: one[name].double() - other[name].double() for name in one}

    tasks = [minus(one, begun) for one in ended]
    for told, names in (
        (merged.geometry.whole, [*SHAPES]),
        (merged.geometry.groups["layers.0"], ["model.layers.0.mlp.up_proj.weight", "model.layers.0.norm.weight"]),
    ):
        assert told.start_norm == pytest.approx(length(begun, *names), rel=1e-5)
        assert told.task_norms == pytest.approx([length(task, *names) for task in tasks], rel=1e-5)
        assert told.result_norm == pytest.approx(length(minus(result, begun), *names), rel=1e-5)
        for key, angle in told.angles.items():
            one, other = (tasks[int(place)] for place in key.split(","))
            product = sum(float((one[name] * other[name]).sum()) for name in names)
            assert angle == pytest.approx(
                math.degrees(math.acos(product / length(one, *names) / length(other, *names))), abs=1e-2
            )
        assert [*told.angles] == ["0,1", "0,2", "1,2"]
    assert merged.geometry.whole.coefficients is None, "each group has its own"
    assert merged.whole.norm == pytest.approx(length(result), rel=1e-5)
    distances = [length(minus(one, result)) for one in ended]
    assert merged.whole.distances == pytest.approx(distances, rel=1e-4)


@pytest.mark.parametrize(("dtype", "size"), [(torch.bfloat16, 0.1), (torch.float16, 0.1), (torch.bfloat16, 0.02)])
def test_rounding_is_estimated(dtype: torch.dtype, size: float, tmp_path: Path) -> None:
    """‖what storing changed‖ / ‖task vector‖, to a tenth or so: it depends on where in their binades numbers lie."""
    shapes = {"model.norm.weight": (40_000,)}
    start = {name: value.to(dtype) for name, value in drawn(9, shapes=shapes).items()}
    wide = [
        {name: value.double() + (size + 0.1 * seed) * drawn(seed, shapes=shapes)[name] for name, value in start.items()}
        for seed in range(2)
    ]
    models = [
        write(tmp_path / str(seed), {name: value.to(dtype) for name, value in model.items()})
        for seed, model in enumerate(wide)
    ]
    merged = spherical(models, write(tmp_path / "start", start), tmp_path / "out")
    (name,) = shapes
    stored = read(models[0])[name].double()
    wanted = float((stored - wide[0][name]).norm() / (stored - start[name].double()).norm())
    assert merged.rounding is not None
    assert merged.rounding.of == 0, "whose task vector is the shorter"
    assert merged.rounding.share == pytest.approx(wanted, rel=0.12)


# ── bad input ────────────────────────────────────────────────────────────────────────────────────


def test_identical_policies_come_out_as_they_are(tmp_path: Path) -> None:
    start = drawn(100)
    models = [write(tmp_path / name, trained(start, 0)) for name in "ab"]
    merged = spherical(models, write(tmp_path / "start", start), tmp_path / "out")
    torch.testing.assert_close(read(tmp_path / "out"), read(models[0]), rtol=1e-6, atol=1e-7)
    assert merged.geometry is not None
    assert merged.geometry.whole.angles["0,1"] == pytest.approx(0, abs=0.1)


def test_a_policy_that_has_not_moved_counts_as_in_an_average(tmp_path: Path) -> None:
    models, start = family(tmp_path, 1)
    merged = spherical([*models, write(tmp_path / "same", drawn(100))], start, tmp_path / "out")
    wanted = {name: (read(models[0])[name].double() + drawn(100)[name].double()) / 2 for name in SHAPES}
    close(read(tmp_path / "out"), wanted, torch.float32)
    assert merged.geometry is not None
    assert merged.geometry.whole.angles == {"0,1": None}
    assert merged.straight == len(merged.geometry.groups)


@pytest.mark.parametrize("threads", [1, 3])
def test_opposite_policies_are_refused(threads: int, tmp_path: Path) -> None:
    start = drawn(100)
    there = trained(start, 0)
    back = {name: value.clone() for name, value in trained(start, 1).items()}
    name = "model.layers.2.norm.weight"
    back[name] = 2 * start[name] - there[name]
    models = [write(tmp_path / "there", there, 3), write(tmp_path / "back", back, 3)]
    with pytest.raises(UserError, match=r"back has moved from the start against .*there in layers\.2") as caught:
        spherical(models, write(tmp_path / "start", start), tmp_path / "out", threads=threads)
    assert "linear" in caught.value.remedy
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("broken", ["start", "0", "1"])
def test_numbers_that_are_none(broken: str, threads: int, tmp_path: Path) -> None:
    models, start = family(tmp_path, 2)
    path = tmp_path / broken / next(iter(sorted(one.name for one in (tmp_path / broken).glob("*.safetensors"))))
    weights = read(tmp_path / broken)
    weights["model.layers.2.norm.weight"][7] = float("nan")
    for file in (tmp_path / broken).iterdir():
        file.unlink()
    (tmp_path / broken).rmdir()
    write(tmp_path / broken, weights)
    with pytest.raises(UserError, match=rf"{broken}/model\.safetensors: .*norm\.weight holds nan \(number 7\)"):
        spherical(models, start, tmp_path / "out", threads=threads)
    assert path.parent.is_dir()
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_result_too_large_for_its_dtype(tmp_path: Path) -> None:
    start = {"model.norm.weight": torch.zeros(20, dtype=torch.float16)}
    first, second = (torch.full((20,), 6e4, dtype=torch.float16) for _ in range(2))
    second[:9] = -6e4
    models = [write(tmp_path / str(place), {"model.norm.weight": one}) for place, one in enumerate((first, second))]
    with pytest.raises(UserError, match=r"model\.norm\.weight becomes too large for F16 \(number 9\)"):
        spherical(models, write(tmp_path / "start", start), tmp_path / "out")


def test_large_numbers_have_angles_too(tmp_path: Path) -> None:
    start = {"t": torch.zeros(40)}
    first, second = torch.zeros(40), torch.zeros(40)
    first[:20], second[20:] = 1e25, 1e25
    models = [write(tmp_path / str(place), {"t": one}) for place, one in enumerate((first, second))]
    spherical(models, write(tmp_path / "start", start), tmp_path / "out")
    assert read(tmp_path / "out")["t"].tolist() == pytest.approx([math.sqrt(0.5) * 1e25] * 40, rel=1e-6)


def test_a_start_of_another_shape(tmp_path: Path) -> None:
    models, _ = family(tmp_path, 2)
    other = write(tmp_path / "other", drawn(0) | {"model.layers.2.norm.weight": torch.ones(2)})
    with pytest.raises(UserError, match="is not the ancestor"):
        spherical(models, other, tmp_path / "out")


def test_a_forecast_counts_what_is_read_and_written(tmp_path: Path) -> None:
    models, start = family(tmp_path, 2)
    layouts = [layout.read(model) for model in models]
    told = plan.forecast(plan.slerp(layouts, None, layout.read(start), "layer"), 2)
    sizes = [sum(file.stat().st_size for file in one.glob("*.safetensors")) for one in (*models, start)]
    assert (told.read, told.written) == (sum(sizes), sizes[0])
    assert told.seconds == pytest.approx((sum(sizes) + sizes[0]) / plan.PACE / 2)
    assert parts.FOLDER not in {path.name for path in tmp_path.iterdir()}
