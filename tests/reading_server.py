"""What vLLM's server answers to a prompt of token ids with ``prompt_logprobs``, from a model in memory."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any

import torch
from torch import nn

from alignment.chat.tokenizers import Tokenizer

Complete = Callable[[dict[str, Any]], dict[str, Any]]


def completed(told: Any, prompt_tokens: int) -> dict[str, Any]:
    """A completion of one token, with what is told of its prompt."""
    return {
        "object": "text_completion",
        "model": "local",
        "choices": [{"index": 0, "text": "x", "finish_reason": "length", "prompt_logprobs": told}],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": 1, "total_tokens": prompt_tokens + 1},
    }


def reading(model: nn.Module, tokenizer: Tokenizer) -> Complete:
    """Null for the first token, and for each other one the likeliest ids and its own, which may be one more."""
    one_at_a_time = Lock()

    def spelled(index: int) -> str:
        control = index in tokenizer.control_ids
        return tokenizer.spelling(index) if control else tokenizer.decode([index])

    @torch.no_grad()
    def complete(body: dict[str, Any]) -> dict[str, Any]:
        ids, k = body["prompt"], body["prompt_logprobs"]
        with one_at_a_time:
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, :-1]
        told: list[Any] = [None]
        for token, logprobs in zip(ids[1:], logits.float().log_softmax(-1), strict=True):
            order = logprobs.argsort(descending=True).tolist()
            entries = {
                str(index): {"logprob": logprobs[index].item(), "rank": rank, "decoded_token": spelled(index)}
                for rank, index in enumerate(order, 1)
                if rank <= k or index == token
            }
            # vLLM puts the token itself first, whatever its rank.
            told.append({str(token): entries[str(token)], **entries})
        return completed(told, len(ids))

    return complete
