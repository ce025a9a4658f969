"""Two tiny Gemmas whose every number is different, and whose caps and windows bite."""

from __future__ import annotations

import torch

from alignment.gemma import core
from alignment.gemma.presets import Shape, TokenIds

VOCABULARY = 48
# heads x head_dim differs from the width, and the query scale from the head dimension.
GEMMA1 = Shape("gemma1", 24, 3, 40, 4, 1, head_dim=8, query_scale=8, context=64)
GEMMA2 = Shape(
    "gemma2", 24, 4, 40, 4, 2, head_dim=8, query_scale=5, context=64, window=5, attention_cap=3.0, final_cap=2.0
)
SHAPES = {"gemma1": GEMMA1, "gemma2": GEMMA2}


def model(shape: Shape, seed: int = 0) -> core.CausalLM:
    """A model with weights far from their initial values, norms included."""
    built = core.build(shape, VOCABULARY, TokenIds(), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return built


def ids(rows: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(seed))
