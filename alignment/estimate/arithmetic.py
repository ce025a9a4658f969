"""Parameters of a model, and what one layer of it keeps for its backward pass, in bytes.

The counting of activations is that of Korthikanti et al. (arXiv 2205.05198, §4.1), applied to the modules that are
trained here, transformers' Gemma: every tensor that autograd saves is counted once, in the dtype that it has. Against
their GPT, a Gemma has four norms (Gemma 1: two), which save their input and the normalised copy in fp32; a gated MLP,
which saves four tensors of the feed-forward width; fewer key and value heads; and, in Gemma 2 without a fused kernel, a
tanh over all attention logits. ``tests/estimate`` holds :func:`layer` to the tensors that autograd really saves.

In sums: N tokens of a forward pass, D width, F feed-forward width, H query heads, K key/value heads, E head dimension,
V vocabulary, R rank of an adapter, T tokens of a line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from alignment.gemma.presets import Shape, parameter_counts

Attention = Literal["eager", "sdpa", "flex_attention"]

FP32 = 4


class Arithmetic(NamedTuple):
    """Bytes of a number where it stands: in weights, in the residual stream, in what matrices take and give."""

    weights: int
    residual: int
    products: int

    @property
    def casts(self) -> bool:
        """Autocast: weights and residual are wider than the products, and are copied for them."""
        return self.weights != self.products


ARITHMETIC: dict[str, Arithmetic] = {
    "fp32": Arithmetic(4, 4, 4),
    "autocast": Arithmetic(4, 4, 2),
}


@dataclass(frozen=True, slots=True)
class Model:
    """A trunk with what is trained of it: everything (``rank`` None), or an adapter on every projection.

    ``score``: a scalar head stands in the place of the vocabulary, and is trained in either case.
    """

    shape: Shape
    vocabulary: int
    rank: int | None = None
    score: bool = False

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, which is the head too and counts once."""
        return self.vocabulary * self.shape.width

    @property
    def held(self) -> int:
        """All parameters. PEFT keeps a scalar head twice, as it was and as it is trained."""
        heads = 0 if not self.score else self.shape.width * (1 if self.rank is None else 2)
        return parameter_counts(self.shape, self.vocabulary).total + heads + self.adapter

    @property
    def trained(self) -> int:
        """Those with gradients."""
        return self.held if self.rank is None else self.adapter + (self.shape.width if self.score else 0)

    @property
    def matrices(self) -> int:
        """Parameters of all layers' projections, which is all but embedding and norms."""
        return self.shape.layers * sum(wide * high for wide, high in projections(self.shape))

    @property
    def adapter(self) -> int:
        """Parameters of the two factors of every projection's adapter."""
        return self.shape.layers * (self.rank or 0) * sum(wide + high for wide, high in projections(self.shape))


def projections(shape: Shape) -> list[tuple[int, int]]:
    """Inputs and outputs of a layer's matrices: query, key, value, output, gate, up, down."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    width, inner = shape.width, shape.feedforward
    attention = [(width, queries), (width, keys), (width, keys), (queries, width)]
    return [*attention, (width, inner), (width, inner), (inner, width)]


class Layer(NamedTuple):
    """Bytes of one layer: saved by its two blocks, and what their backward passes need on top at the most."""

    attention: float
    mlp: float
    attention_backward: float
    mlp_backward: float

    @property
    def saved(self) -> float:
        """What stays from the forward pass to the backward pass."""
        return self.attention + self.mlp

    @property
    def peak(self) -> float:
        """The most in its backward pass; what the MLP has saved is gone when the attention's turn comes."""
        return max(self.saved + self.mlp_backward, self.attention + self.attention_backward)


def layer(
    model: Model, how: Arithmetic, attention: Attention, *, lines: int, tokens: int, trees: bool = False
) -> Layer:
    """Of a forward pass over ``lines`` x ``tokens``; ``trees``: with a mask of its own for every line.

    A norm takes 4 bytes of its input and, where its weight is trained, 4 of the normalised copy; behind a block the
    input is what the block's matrix gave, widened. The matrices that read one norm share its output, unless autocast
    copies it for each: three times for query, key and value, twice for gate and up. Output and down projection save
    their inputs, gate · up saves both factors, and GELU what it was given.
    """
    shape, p = model.shape, how.products
    N, D, F = lines * tokens, shape.width, shape.feedforward
    full = model.rank is None
    norms = 2 if shape.family == "gemma2" else 1
    norm = norms * N * (D * (2 * FP32 if full else FP32) + FP32)
    copies = (3, 2) if how.casts else (1, 1)
    saved, transient = _attention(shape, how, attention, lines, tokens, trees)
    block = norm + copies[0] * p * N * D + saved + p * N * shape.heads * shape.head_dim
    mlp = norm + copies[1] * p * N * D + 4 * p * N * F
    return Layer(
        block + _adapter(model, N, p, slice(0, 4)),
        mlp + _adapter(model, N, p, slice(4, 7)),
        transient,
        3 * p * N * F + 3 * FP32 * N * D,
    )


def _attention(
    shape: Shape, how: Arithmetic, kind: Attention, lines: int, tokens: int, trees: bool
) -> tuple[float, float]:
    """(saved, needed on top in the backward pass) between the projections.

    ``eager``: queries, and keys and values repeated for every query head; of all H·T² logits the tanh (Gemma 2), the
    softmax in fp32, and its copy for the product under bf16. Its backward pass has gradients of the softmax and of the
    logits at the same time. Fused kernels save what they read, what they give, and a number for each head and token,
    and compute the rest again; what ``sdpa`` gives is what the output projection saves.
    """
    p, N = how.products, lines * tokens
    queries, keys = N * shape.heads * shape.head_dim, N * shape.kv_heads * shape.head_dim
    if kind == "eager":
        logits = lines * shape.heads * tokens * tokens
        tanh = p if shape.attention_cap is not None else 0
        softmax = FP32 + (p if p != FP32 else 0)
        return 3 * p * queries + logits * (tanh + softmax), 2 * FP32 * logits + p * queries
    numbers = FP32 * N * shape.heads
    if kind == "flex_attention":
        return p * (2 * queries + 2 * keys) + numbers, 2 * p * (queries + keys)
    if trees:
        # With a mask of its own, PyTorch's kernel wants a key and a value for every query head.
        keys, numbers = queries, numbers + p * lines * tokens * tokens
    return p * (queries + 2 * keys) + numbers, 2 * p * (queries + keys)


def _adapter(model: Model, tokens: int, p: int, some: slice) -> float:
    """What the adapters of some projections save beside their inputs: the product with the first factor."""
    return (model.rank or 0) * p * tokens * len(projections(model.shape)[some])
