"""Shapes of the Gemma family as plain data: the reports' five, and miniature ones. Importable without torch.

Numbers are those of the Gemma 1 report (arXiv 2403.08295, Table 1) and the Gemma 2 report (arXiv 2408.00118,
Table 1); ``parameter_counts`` reproduces their parameter tables exactly, with the vocabulary of 256,128 printed there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from alignment.errors import UserError, nearest

Family = Literal["gemma1", "gemma2"]

REPORTED_VOCABULARY = 256_128
"""The padded vocabulary with which the reports count embeddings. Released tokenizers and configs have 256,000."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers that make a Gemma.

    ``feedforward`` is the width of one of the two gated matrices (the reports print both together), ``query_scale``
    the s in q · s^-½, ``window`` the number of keys that a local layer sees. A Gemma 1 has no window and no caps.
    """

    family: Family
    width: int
    layers: int
    feedforward: int
    heads: int
    kv_heads: int
    head_dim: int
    query_scale: int
    context: int
    window: int | None = None
    attention_cap: float | None = None
    final_cap: float | None = None

    def __post_init__(self) -> None:
        assert self.heads % self.kv_heads == 0, "every key/value head serves the same number of query heads"
        assert (self.window is None) == (self.family == "gemma1"), "Gemma 2 has local layers, Gemma 1 has none"
        assert self.family == "gemma2" or self.query_scale == self.head_dim, "Gemma 1 scales by the head dimension"


class TokenIds(NamedTuple):
    """The ids that a model's config names. Gemma's own by default; a tokenizer's are read from the tokenizer."""

    pad: int = 0
    eos: int = 1
    bos: int = 2


class ParameterCounts(NamedTuple):
    """``embedding`` counts the tied table once; ``non_embedding`` is everything else, norms included."""

    embedding: int
    non_embedding: int

    @property
    def total(self) -> int:
        return self.embedding + self.non_embedding


def _gemma1(width: int, layers: int, feedforward: int, heads: int, kv_heads: int, head_dim: int, context: int) -> Shape:
    return Shape("gemma1", width, layers, feedforward, heads, kv_heads, head_dim, head_dim, context)


def _gemma2(
    width: int,
    layers: int,
    feedforward: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    query_scale: int,
    context: int,
    window: int,
) -> Shape:
    return Shape(
        "gemma2", width, layers, feedforward, heads, kv_heads, head_dim, query_scale, context, window, 50.0, 30.0
    )


SHAPES: dict[str, Shape] = {
    "gemma1_2b": _gemma1(2048, 18, 16384, 8, 1, 256, context=8192),
    "gemma1_7b": _gemma1(3072, 28, 24576, 16, 16, 256, context=8192),
    "gemma2_2b": _gemma2(2304, 26, 9216, 8, 4, 256, query_scale=256, context=8192, window=4096),
    "gemma2_9b": _gemma2(3584, 42, 14336, 16, 8, 256, query_scale=256, context=8192, window=4096),
    # The 27B alone scales queries by width / heads instead of the head dimension.
    "gemma2_27b": _gemma2(4608, 46, 36864, 32, 16, 128, query_scale=144, context=8192, window=4096),
    "mini_tiny": _gemma2(32, 4, 128, 2, 1, 16, query_scale=16, context=2048, window=64),
    "mini_slim": _gemma2(48, 4, 192, 4, 2, 16, query_scale=16, context=2048, window=64),
    "mini_small": _gemma2(64, 4, 256, 4, 2, 16, query_scale=16, context=2048, window=64),
    "mini": _gemma2(128, 4, 512, 4, 2, 32, query_scale=32, context=2048, window=64),
    "mini_large": _gemma2(256, 4, 1024, 8, 4, 32, query_scale=32, context=2048, window=64),
    "mini_gemma1": _gemma1(128, 4, 512, 4, 1, 32, context=2048),
}


def shape_named(name: str) -> Shape:
    """The shape of that name. Raises :class:`UserError` that lists what there is."""
    if name not in SHAPES:
        raise UserError(
            f"There is no model shape {name!r}.",
            cause="A shape is one of the reports' models or one of the miniatures.",
            remedy=nearest(name, list(SHAPES)),
        )
    return SHAPES[name]


def parameter_counts(shape: Shape, vocab: int) -> ParameterCounts:
    """Parameters of a shape with ``vocab`` (padded) pieces; embeddings are tied, nothing has a bias."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = shape.width * (2 * queries + 2 * keys)
    norms = (4 if shape.family == "gemma2" else 2) * shape.width
    layer = attention + 3 * shape.width * shape.feedforward + norms
    return ParameterCounts(vocab * shape.width, shape.layers * layer + shape.width)
