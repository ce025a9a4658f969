"""Models that do not belong together are told apart by headers and configs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from merge_models import drawn, write

from alignment.errors import UserError
from alignment.merging import layout, plan
from alignment.merging.layout import Layout


def layout_of(folder: Path, **changes: torch.Tensor | None) -> Layout:
    """A model with some tensors replaced, added, or (None) left out; dots in names written as ``__``."""
    weights: dict[str, Any] = drawn(0) | {name.replace("__", "."): value for name, value in changes.items()}
    return layout.read(write(folder, {name: value for name, value in weights.items() if value is not None}))


def refused(tmp_path: Path, said: str, **changes: torch.Tensor | None) -> None:
    first, second = layout_of(tmp_path / "first"), layout_of(tmp_path / "second", **changes)
    with pytest.raises(UserError, match=said) as caught:
        plan.linear([first, second], None)
    assert str(tmp_path / "first") in str(caught.value)


def test_names(tmp_path: Path) -> None:
    refused(tmp_path / "a", r"second lacks model\.one", model__one=None)
    refused(tmp_path / "b", r"second has a superfluous lm_head\.weight", lm_head__weight=torch.ones(2))


def test_shapes(tmp_path: Path) -> None:
    refused(tmp_path, r"model\.one has the shape \[1, 1\], not \[1\]", model__one=torch.ones(1, 1))


def test_dtypes(tmp_path: Path) -> None:
    refused(tmp_path, r"model\.one is stored as BF16, not F32", model__one=torch.ones(1, dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.float8_e4m3fn])
def test_what_cannot_be_averaged(dtype: torch.dtype, tmp_path: Path) -> None:
    models = [layout_of(tmp_path / name, model__one=torch.ones(1).to(dtype)) for name in "ab"]
    with pytest.raises(UserError, match=r"model\.one is stored as"):
        plan.linear(models, None)


def test_a_model_without_tensors(tmp_path: Path) -> None:
    models = [layout.read(write(tmp_path / name, {})) for name in "ab"]
    with pytest.raises(UserError, match="holds no tensor"):
        plan.linear(models, None)


def test_equal_weights_by_default(tmp_path: Path) -> None:
    models = [layout_of(tmp_path / name) for name in "abc"]
    assert plan.linear(models, None).weights == (1 / 3, 1 / 3, 1 / 3)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([0.5, 0.4], "sum to 0.9"),
        ([1.5, -0.5], "negative"),
        ([float("nan"), 1.0], "negative"),
        ([float("inf"), 0.0], "sum to inf"),
        ([1.0], "1 weights for 2 models"),
        ([], "0 weights for 2 models"),
        ([0.5, 0.50001], "sum to"),
    ],
)
def test_wrong_weights(weights: list[float], said: str, tmp_path: Path) -> None:
    models = [layout_of(tmp_path / name) for name in "ab"]
    with pytest.raises(UserError, match=said):
        plan.linear(models, weights)


def test_an_ancestor_has_the_trunk_and_any_head(tmp_path: Path) -> None:
    model = layout_of(tmp_path / "model")
    other_head = {"score__weight": None, "lm_head__weight": torch.ones(2)}
    plan.check_ancestor(layout_of(tmp_path / "policy", **other_head), model)
    plan.check_ancestor(layout_of(tmp_path / "half", model__one=torch.ones(1).bfloat16()), model)
    for name, changes in (
        ("other", {"model__one": torch.ones(2)}),
        ("less", {"model__one": None}),
        ("more", {"model__two": torch.ones(1)}),
    ):
        with pytest.raises(UserError, match="is not the ancestor"):
            plan.check_ancestor(layout_of(tmp_path / name, **changes), model)


CONFIG = {"hidden_size": 8, "architectures": ["A"], "rope": {"theta": 1.0}, "dtype": "float32", "id2label": {0: "a"}}


@pytest.mark.parametrize(
    ("key", "value"), [("hidden_size", 9), ("architectures", ["B"]), ("rope", {"theta": 2.0}), ("rope", None), ("x", 1)]
)
def test_configs_must_agree_in_what_makes_the_model(key: str, value: Any) -> None:
    other = CONFIG | {key: value}
    for pair in ((CONFIG, other), (other, CONFIG)):
        with pytest.raises(UserError, match=f"second: {key} is"):
            plan.check_configs({Path("first"): pair[0], Path("second"): pair[1]})


def test_configs_may_differ_in_names_and_training() -> None:
    other = CONFIG | {"dtype": "bfloat16", "id2label": {0: "b"}, "transformers_version": "0", "attention_dropout": 0.1}
    plan.check_configs({Path("first"): CONFIG, Path("second"): other | {"x": None}, Path("third"): CONFIG})
