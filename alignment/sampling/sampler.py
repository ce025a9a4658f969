"""The one way in which answers are drawn.

An answer depends on the model, its prompt, the settings and (seed, prompt id, sample), and on nothing else: not on the
size of the batch, the order of the prompts or the rows beside it. Rows that have finished leave the batch.

Two models may speak with one voice (:class:`Beside`): each token is drawn from a mixture of what both would say.

Axes: B rows of one batch, P positions of an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from alignment.errors import UserError
from alignment.gemma import decode
from alignment.gemma.core import causal_lm
from alignment.sampling.choice import choose, together
from alignment.sampling.noise import streams, uniforms

Progress = Callable[[int, int], None]
"""Called with (answers finished, answers in all)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What was drawn for ``prompts[prompt]``. ``ids`` end with the stop id if one was drawn (``finished``).

    ``logprobs`` are in nats, one for each id, over the whole vocabulary at the temperature drawn (at 1 when greedy),
    before top-p cut anything off; those of the mixture where two models spoke.
    """

    prompt: int
    sample: int
    ids: list[int]
    logprobs: list[float]
    finished: bool


class Beside(NamedTuple):
    """Another model with a say in every token: p̃ = share · its probability + (1 − share) · the first model's.

    (Teacher-mixed sampling; MiniLLM, arXiv 2306.08543, eq. 5.)
    """

    model: nn.Module
    share: float


class _Job(NamedTuple):
    prompt: int
    sample: int


class Sampler:
    """Draws answers from a Gemma, which may carry adapters. The weights are read at each :meth:`draw`."""

    def __init__(self, model: nn.Module, *, stop_ids: Sequence[int], pad_id: int, beside: Beside | None = None) -> None:
        self.model, self.beside = model, beside
        self.stop_ids = tuple(stop_ids)
        self.pad_id = pad_id
        self._models = [model] if beside is None else [model, beside.model]

    def draw(
        self,
        prompts: Sequence[Sequence[int]],
        prompt_ids: Sequence[str],
        *,
        samples: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int,
        seed: int,
        batch_rows: int = 256,
        on_progress: Progress | None = None,
    ) -> list[Answer]:
        """``samples`` answers to each prompt, ordered by prompt and sample.

        Prompts with the same id share their noise. Raises :class:`UserError` for settings out of bounds and for
        prompts that leave less than ``max_new_tokens`` of the model's context.
        """
        _check_settings(samples, temperature, top_p, max_new_tokens, batch_rows)
        assert temperature > 0 or self.beside is None, "a mixture is drawn from, not maximised"
        self.need_room(prompts, prompt_ids, max_new_tokens)
        if not prompts:
            return []
        # Alike in length, the rows of a batch need little padding; the longest come first and show at once what fits.
        by_length = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        jobs = [_Job(index, sample) for index in by_length for sample in range(samples)]
        answers: list[Answer] = []
        with torch.inference_mode(), ExitStack() as evaluating:
            for model in self._models:
                evaluating.enter_context(_evaluating(model))
            context = len(prompts[by_length[0]]) + max_new_tokens
            weights = [decode.weights(model, context=context) for model in self._models]
            for begin in range(0, len(jobs), batch_rows):
                batch = jobs[begin : begin + batch_rows]
                keys = streams(seed, [prompt_ids[job.prompt] for job in batch], [job.sample for job in batch])
                noise_BP = torch.from_numpy(uniforms(keys, max_new_tokens)).to(weights[0].head_VD.device)
                answers += self._draw_batch(weights, prompts, batch, noise_BP, temperature, top_p)
                if on_progress is not None:
                    on_progress(len(answers), len(jobs))
        return sorted(answers, key=lambda answer: (answer.prompt, answer.sample))

    def _draw_batch(
        self,
        weights: Sequence[decode.Weights],
        prompts: Sequence[Sequence[int]],
        batch: Sequence[_Job],
        noise_BP: Tensor,
        temperature: float,
        top_p: float,
    ) -> list[Answer]:
        device, positions = noise_BP.device, noise_BP.shape[1]
        ids_BP = torch.zeros(noise_BP.shape, dtype=torch.long, device=device)
        logprobs_BP = torch.zeros(noise_BP.shape, device=device)
        length_B = torch.full((len(batch),), positions, device=device)
        finished_B = torch.zeros(len(batch), dtype=torch.bool, device=device)
        stops = torch.tensor(self.stop_ids, dtype=torch.long, device=device)

        # `job_B[row]` says whose answer a row writes: rows change places when others leave.
        job_B = torch.arange(len(batch), device=device)
        runs = [(prompt, len(list(run))) for prompt, run in groupby(job.prompt for job in batch)]
        read, copies = [prompts[prompt] for prompt, _ in runs], [copies for _, copies in runs]
        begun = [decode.prefill(one, read, copies, positions, self.pad_id) for one in weights]
        states, hidden = [state for state, _ in begun], [hidden_BD for _, hidden_BD in begun]
        for position in range(positions):
            logits_BV, at = self._said(weights, hidden, temperature)
            drawn_B, drawn_logprobs_B = choose(logits_BV, noise_BP[job_B, position], temperature=at, top_p=top_p)
            ids_BP[job_B, position] = drawn_B
            logprobs_BP[job_B, position] = drawn_logprobs_B
            ended_B = (drawn_B[:, None] == stops).any(-1)
            if ended_B.any():
                finished_B[job_B[ended_B]] = True
                length_B[job_B[ended_B]] = position + 1
                # Which row takes whose place depends on nothing but which rows have ended.
                order, *_ = [state.drop(ended_B) for state in states]
                job_B, drawn_B = job_B[order], drawn_B[order]
            if position + 1 == positions or states[0].rows == 0:
                break
            hidden = [decode.step(one, state, drawn_B) for one, state in zip(weights, states, strict=True)]

        return [
            Answer(*job, ids[:length], logprobs[:length], finished)
            for job, ids, logprobs, length, finished in zip(
                batch, ids_BP.tolist(), logprobs_BP.tolist(), length_B.tolist(), finished_B.tolist(), strict=True
            )
        ]

    def _said(
        self, weights: Sequence[decode.Weights], hidden: Sequence[Tensor], temperature: float
    ) -> tuple[Tensor, float]:
        """``logits_BV`` to choose from, and the temperature at which."""
        logits = [decode.logits(one, hidden_BD) for one, hidden_BD in zip(weights, hidden, strict=True)]
        if self.beside is None:
            return logits[0], temperature
        return together(logits[0], logits[1], self.beside.share, temperature), 1.0

    def need_room(self, prompts: Sequence[Sequence[int]], prompt_ids: Sequence[str], max_new_tokens: int) -> None:
        """Raise :class:`UserError` for an empty prompt, and for one that leaves no room for an answer."""
        assert len(prompts) == len(prompt_ids), "every prompt has an id"
        context = min(causal_lm(model).config.max_position_embeddings for model in self._models)
        for name, prompt in zip(prompt_ids, prompts, strict=True):
            if not prompt:
                raise UserError(f"Prompt {name!r} is empty.", remedy="Give it at least the <bos> token.")
            if len(prompt) + max_new_tokens > context:
                raise UserError(
                    f"Prompt {name!r} of {len(prompt)} tokens leaves no room for {max_new_tokens} more.",
                    cause=f"The model's context is {context} tokens.",
                    remedy=f"Shorten the prompt or set max_new_tokens to at most {max(0, context - len(prompt))}.",
                )


def _check_settings(samples: int, temperature: float, top_p: float, max_new_tokens: int, batch_rows: int) -> None:
    for name, value in (("samples", samples), ("max_new_tokens", max_new_tokens), ("batch_rows", batch_rows)):
        if value < 1:
            raise UserError(f"{name}={value}: at least 1 is needed.")
    if not 0 <= temperature < float("inf"):
        raise UserError(
            f"temperature={temperature} is out of bounds.", remedy="Choose 0 (greedy) or a positive number."
        )
    if not 0 < top_p <= 1:
        raise UserError(f"top_p={top_p} is out of bounds.", remedy="Choose a number in (0, 1]; 1 keeps every token.")


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off (an adapter's, above all) while answers are drawn; the mode is given back afterwards."""
    training = {name: module.training for name, module in model.named_modules()}
    model.eval()
    try:
        yield
    finally:
        for name, module in model.named_modules():
            module.training = training[name]
