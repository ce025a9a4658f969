"""The parameter counts of the reports, exactly, from the formula and from the modules."""

from __future__ import annotations

import subprocess
import sys

import pytest

from alignment.errors import UserError
from alignment.gemma import core
from alignment.gemma.presets import REPORTED_VOCABULARY, SHAPES, TokenIds, parameter_counts, shape_named

# Gemma 1 report, Table 2; Gemma 2 report, Table 2.
REPORTED = {
    "gemma1_2b": (524_550_144, 1_981_884_416),
    "gemma1_7b": (786_825_216, 7_751_248_896),
    "gemma2_2b": (590_118_912, 2_024_517_888),
    "gemma2_9b": (917_962_752, 8_324_201_984),
    "gemma2_27b": (1_180_237_824, 26_047_480_320),
}


@pytest.mark.parametrize("name", REPORTED)
def test_counts_are_those_of_the_reports(name):
    assert parameter_counts(SHAPES[name], REPORTED_VOCABULARY) == REPORTED[name]
    model = core.build(SHAPES[name], REPORTED_VOCABULARY, TokenIds(), seed=0, device="meta")
    embedding = model.model.embed_tokens.weight.numel()
    assert (embedding, sum(p.numel() for p in model.parameters()) - embedding) == REPORTED[name]


MILLIONS = {"mini_tiny": 0.087, "mini_slim": 0.185, "mini_small": 0.3, "mini": 1.08, "mini_large": 4.1}


@pytest.mark.parametrize(("name", "millions"), MILLIONS.items())
def test_miniature_sizes(name, millions):
    assert parameter_counts(SHAPES[name], 768).total == pytest.approx(millions * 1e6, rel=0.02)
    assert (SHAPES[name].window, SHAPES[name].context) == (64, 2048)


@pytest.mark.parametrize("name", SHAPES)
def test_the_config_says_what_the_shape_says(name):
    assert core.shape_of(core.config(SHAPES[name], 768, TokenIds())) == SHAPES[name]


def test_an_unknown_name_is_told_what_there_is():
    with pytest.raises(UserError, match=r"(?s)gemma_2b.*Did you mean 'gemma[12]_2b'.*mini_large"):
        shape_named("gemma_2b")


def test_shapes_import_without_torch():
    code = "import sys, alignment.gemma.presets; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
