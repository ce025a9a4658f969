"""Drawing answers: the project's sampler beside transformers' ``generate``, on the same prompts with the same lengths.

    python -m benchmarks.sampling [--shape mini] [--rows 64 256] [--repeats 5] [--threads 2]

The two take turns, so that whatever else the machine does meets both; what counts is the median of the ratios. With
stop ids on, both end an answer at one of them; the sampler's finished rows leave the batch, while ``generate`` carries
them as padding until the last one ends. Then only the answers' own tokens count.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig

from alignment.gemma import core
from alignment.gemma.presets import TokenIds, shape_named
from alignment.sampling.sampler import Sampler

VOCABULARY, PROMPT_TOKENS, NEW_TOKENS = 768, 24, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="mini")
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = core.build(shape_named(arguments.shape), VOCABULARY, TokenIds(), seed=0)
    print(f"{arguments.shape}, fp32, {arguments.threads} threads: {PROMPT_TOKENS} + {NEW_TOKENS} tokens, tokens/s")
    print(f"{'rows':>5} {'stop ids':>9} {'generate':>9} {'sampler':>9} {'ratio':>6}   of each repeat")
    for rows in arguments.rows:
        # A fresh model draws nearly uniformly: with 24 of 768 ids, an answer has about 20 tokens of the 32.
        for stop_ids in ((), tuple(range(100, 124))):
            compare(model, rows, stop_ids, arguments.repeats)


def compare(model: core.CausalLM, rows: int, stop_ids: tuple[int, ...], repeats: int) -> None:
    """Print one line: medians of both rates and of their ratio over interleaved repeats."""
    prompts = torch.randint(124, VOCABULARY, (rows, PROMPT_TOKENS), generator=torch.Generator().manual_seed(rows))
    by_generate, by_sampler = with_generate(model, prompts, stop_ids), with_sampler(model, prompts, stop_ids)
    by_generate(0), by_sampler(0)
    rates = [(rate(by_generate, seed), rate(by_sampler, seed)) for seed in range(1, repeats + 1)]
    ratios = [ours / theirs for theirs, ours in rates]
    theirs, ours = (statistics.median(column) for column in zip(*rates, strict=True))
    figures = f"{rows:>5} {len(stop_ids) or 'none':>9} {theirs:>9.0f} {ours:>9.0f} {statistics.median(ratios):>6.2f}"
    print(f"{figures}   {' '.join(f'{ratio:.2f}' for ratio in ratios)}", flush=True)


def rate(draw: Callable[[int], int], seed: int) -> float:
    begin = time.perf_counter()
    tokens = draw(seed)
    return tokens / (time.perf_counter() - begin)


def with_sampler(model: core.CausalLM, prompts: torch.Tensor, stop_ids: tuple[int, ...]) -> Callable[[int], int]:
    sampler = Sampler(model, stop_ids=stop_ids, pad_id=0)
    listed, names = prompts.tolist(), [str(row) for row in range(len(prompts))]

    def draw(seed: int) -> int:
        answers = sampler.draw(listed, names, max_new_tokens=NEW_TOKENS, seed=seed, batch_rows=len(listed))
        return sum(len(answer.ids) for answer in answers)

    return draw


def with_generate(model: Any, prompts: torch.Tensor, stop_ids: tuple[int, ...]) -> Callable[[int], int]:
    settings = GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=None if stop_ids else NEW_TOKENS,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=0,
    )
    stops = torch.tensor(stop_ids, dtype=torch.long)

    def draw(seed: int) -> int:
        torch.manual_seed(seed)
        with torch.inference_mode():
            ids = model.generate(prompts, attention_mask=torch.ones_like(prompts), generation_config=settings)
        new = ids[:, PROMPT_TOKENS:]
        ended_before = torch.isin(new, stops).long().cumsum(-1) - torch.isin(new, stops).long()
        return int((ended_before == 0).sum())

    return draw


if __name__ == "__main__":
    main()
