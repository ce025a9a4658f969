"""How much the answers of a dialogue attend to the instruction at its beginning (Llama 2, arXiv 2307.09288, fig. 10).

As there the maximum over the whole network counts, all layers and heads: layers with a window cannot see back that
far, and the mean over heads that do other things would show nothing. Attention is that of the position from which a
token of an answer was drawn, the one before it. Attention is eager, and each layer's weights are reduced before the
next layer's are there.

Axes: H heads, T tokens of the dialogue, Q positions from which answers were drawn, I tokens of the instruction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from alignment.chat.render import HEADERS, render
from alignment.chat.tokenizers import Tokenizer
from alignment.chat.types import Messages
from alignment.gemma import core
from alignment.training.policies import Policy


def attended(policy: Policy, turns: Messages, instruction: str) -> dict[str, Any]:
    """Attention to ``instruction``, which begins the first of ``turns``; they end with an answer.

    ``pieces``: the instruction's tokens. ``share``: by turn, of every token of the answer, the largest share of its
    attention that one head of one layer spends on the whole instruction. ``pieces_by_turn``: by turn and piece, the
    largest weight that a token of the answer gives to it in any head.
    """
    rendered = render(turns, policy.tokenizer, policy.schema)
    begin, end = span(rendered.ids, instruction, policy.tokenizer)
    answers = list(runs(rendered.mask))
    positions = [place - 1 for first, last in answers for place in range(first, last)]
    share_Q, weight_QI = _read(policy, rendered.ids, positions, begin, end)
    lengths = [last - first for first, last in answers]
    return {
        "pieces": [policy.tokenizer.piece(index) for index in rendered.ids[begin:end]],
        "share": [[round(one, 6) for one in of.tolist()] for of in share_Q.split(lengths)],
        "pieces_by_turn": [[round(one, 6) for one in of.amax(0).tolist()] for of in weight_QI.split(lengths)],
    }


def span(ids: Sequence[int], instruction: str, tokenizer: Tokenizer) -> tuple[int, int]:
    """Where the instruction's tokens stand in a rendered dialogue: at the beginning of the first user message.

    Text behind it may join its last piece; that piece is then left out.
    """
    begin = 2 + len(tokenizer.encode(HEADERS["user"]))  # behind <bos> and <start_of_turn>
    end = begin
    for wanted, there in zip(tokenizer.encode(instruction), ids[begin:], strict=False):
        if wanted != there:
            break
        end += 1
    assert end > begin, "the dialogue begins with the instruction"
    return begin, end


def runs(mask: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Where runs of true begin, and where they end."""
    begin = None
    for place, one in enumerate([*mask, False]):
        if one and begin is None:
            begin = place
        elif not one and begin is not None:
            yield begin, place
            begin = None


def _read(policy: Policy, ids: Sequence[int], positions: Sequence[int], begin: int, end: int) -> tuple[Tensor, Tensor]:
    """``share_Q`` and ``weight_QI``, the maxima over layers and heads."""
    share_Q, weight_QI = torch.zeros(len(positions)), torch.zeros(len(positions), end - begin)

    def reduce(module: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, None]:
        weight_HQI = output[1][0, :, positions, begin:end].float().cpu()
        torch.maximum(share_Q, weight_HQI.sum(-1).amax(0), out=share_Q)
        torch.maximum(weight_QI, weight_HQI.amax(0), out=weight_QI)
        return output[0], None

    layers = [cast(nn.Module, layer.self_attn) for layer in core.trunk(policy.model).layers]
    with torch.inference_mode(), eager(policy):
        hooks = [layer.register_forward_hook(reduce) for layer in layers]
        try:
            core.hidden_states(policy.model, torch.tensor([list(ids)], device=next(policy.model.parameters()).device))
        finally:
            for hook in hooks:
                hook.remove()
    return share_Q, weight_QI


@contextmanager
def eager(policy: Policy) -> Iterator[None]:
    """Attention that has weights to show, while the body runs."""
    model = core.causal_lm(policy.model)
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
