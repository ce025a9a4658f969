"""The release as a stranger loads it, with transformers alone, against the model as we run it.

Two things are shown apart. That the folder *is* the model: both programs compute its weights in fp32 and must agree to
``EXACT``. And what rounding did: our program computes the release and the trained weights, and their distance must stay
below ``ROUNDED``. One model is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignment.artifacts import Artifact
from alignment.chat.render import answer_ids, prompt_ids, stop_ids
from alignment.chat.types import Message, Messages, messages
from alignment.errors import UserError
from alignment.gemma import core, heads
from alignment.release.weights import Dtype
from alignment.sampling.sampler import Sampler
from alignment.scoring.reward_model import RewardScorer
from alignment.training import policies
from alignment.training.engine import Engine

PROMPTS: tuple[Messages, ...] = (
    messages(("user", "Hello! Who are you?")),
    messages(("user", "What is 7 + 5?")),
    messages(("system", "Answer in one sentence."), ("user", "Why is the sky blue?")),
    messages(("user", "Name a colour."), ("assistant", "Blue."), ("user", "And another one?")),
)
ANSWERS = ("I am glad to help.", "12", "Because air scatters blue light more than red.", "")
LENGTH = 32
"""Tokens of an answer at most."""
EXACT = 1e-3
"""Greatest difference between two programs' logits, or scores, of the same weights in fp32."""
ROUNDED: dict[Dtype, tuple[float, float]] = {"bf16": (0.05, 0.25), "fp32": (1e-6, 1e-6)}
"""By dtype: the greatest mean KL in nats per token, and the greatest difference of a score."""


@dataclass(frozen=True)
class Proof:
    """``difference`` is the greatest of logits or scores between the two programs, ``moved`` to the trained weights.

    For policies ``kl`` is the mean of KL(trained ‖ released) in nats per token of the answers, ``same`` the share of
    these tokens that the trained weights find likeliest too, and ``answers`` how many answers were equal to the letter.
    """

    prompts: int
    difference: float
    moved: float
    tokens: int | None = None
    kl: float | None = None
    same: float | None = None
    answers: int | None = None


def prove(model: Artifact, release: Path, dtype: Dtype, engine: Engine) -> Proof:
    """Load and compare. Raises :class:`UserError` where the folder does not give what the model gives."""
    plain = replace(engine, bf16=False)
    proof = _reward(model, release, plain) if heads.is_reward(model.path) else _policy(model, release, plain)
    if not proof.difference <= EXACT:
        raise UserError(
            f"{release.name}: transformers computes something else from it than we do",
            cause=f"Their numbers differ by up to {proof.difference:.2g}; {EXACT:g} is what arithmetic explains.",
            remedy="Nothing was released. Try other versions of transformers and torch, or another device.",
        )
    most = ROUNDED[dtype][proof.kl is None]
    moved = proof.moved if proof.kl is None else proof.kl
    if not moved <= most:
        raise UserError(
            f"dtype={dtype}: rounding changes the model by {moved:.2g}",
            cause=f"That is more than {most:g} {'of a score' if proof.kl is None else 'nats per token'}.",
            remedy="Release it in fp32: dtype=fp32.",
        )
    return proof


# ── policies ─────────────────────────────────────────────────────────────────────────────────────


def _policy(model: Artifact, release: Path, engine: Engine) -> Proof:
    tokenizer, _ = policies.vocabulary_of(model, shape=None, schema="auto")
    prompts = _ids(release, [prompt_ids(turns, tokenizer) for turns in PROMPTS], PROMPTS, generate=True)
    answers, theirs = _vanilla_policy(release, prompts, engine.device)
    sequences = [(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True) if answer]
    released, said = _our_policy(release, prompts, sequences, tokenizer.pad_id, stop_ids(tokenizer), engine.device)
    trained, _ = _our_policy(model.path, [], sequences, tokenizer.pad_id, stop_ids(tokenizer), engine.device)
    chosen = [logits_TV.argmax(-1) for logits_TV in released]
    # A token that transformers chose must be our likeliest one too, but for what arithmetic explains.
    behind = [
        float((logits_TV.max(-1).values - logits_TV.gather(-1, torch.tensor(answer)[:, None])[:, 0]).max())
        for logits_TV, (_, answer) in zip(released, sequences, strict=True)
    ]
    distances = [
        torch.nn.functional.kl_div(ours.log_softmax(-1), base.log_softmax(-1), log_target=True, reduction="none").sum(
            -1
        )
        for ours, base in zip(released, trained, strict=True)
    ]
    agreed = [one == base.argmax(-1) for one, base in zip(chosen, trained, strict=True)]
    return Proof(
        prompts=len(prompts),
        difference=max(_apart(released, theirs), *behind),
        moved=_apart(released, trained),
        tokens=sum(map(len, answers)),
        kl=max(0.0, float(torch.cat(distances).double().mean())),
        same=float(torch.cat(agreed).double().mean()),
        answers=sum(answer == ours for answer, ours in zip(answers, said, strict=True)),
    )


def _vanilla_policy(release: Path, prompts: Sequence[list[int]], device: str) -> tuple[list[list[int]], list[Tensor]]:
    """Greedy answers without what stops them being cut, and the logits of their tokens, by transformers alone."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        release, dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False
    )
    model.to(device)
    answers, logits = [], []
    for prompt in prompts:
        ids_1T = torch.tensor([prompt], device=device)
        whole_1T = model.generate(
            ids_1T, attention_mask=torch.ones_like(ids_1T), do_sample=False, max_new_tokens=LENGTH
        )
        answers.append(whole_1T[0, len(prompt) :].tolist())
        logits += _answer_logits(model, [(prompt, answers[-1])], device)
    _drop(model)
    return answers, logits


def _our_policy(
    folder: Path,
    prompts: Sequence[list[int]],
    sequences: Sequence[tuple[list[int], list[int]]],
    pad_id: int,
    stops: Sequence[int],
    device: str,
) -> tuple[list[Tensor], list[list[int]]]:
    """The logits of the same answers, and our own greedy answers to ``prompts``."""
    model = core.load(folder, device=device)
    logits = _answer_logits(model, sequences, device)
    sampler = Sampler(model, stop_ids=tuple(stops), pad_id=pad_id)
    names = [str(place) for place in range(len(prompts))]
    drawn = sampler.draw(prompts, names, temperature=0.0, max_new_tokens=LENGTH, seed=0) if prompts else []
    _drop(model)
    return logits, [list(answer.ids) for answer in drawn]


def _answer_logits(model: nn.Module, sequences: Sequence[tuple[list[int], list[int]]], device: str) -> list[Tensor]:
    """``logits_TV`` in fp32 for every token of every answer."""
    found = []
    with torch.inference_mode():
        for prompt, answer in sequences:
            ids_1T = torch.tensor([prompt + answer], device=device)
            found.append(model(input_ids=ids_1T, use_cache=False).logits[0, len(prompt) - 1 : -1].float().cpu())
    return found


# ── reward models ────────────────────────────────────────────────────────────────────────────────


def _reward(model: Artifact, release: Path, engine: Engine) -> Proof:
    dialogues = [(*turns, Message("assistant", answer)) for turns, answer in zip(PROMPTS, ANSWERS, strict=True)]
    ours = _scores(replace(model, path=release), dialogues, engine)
    trained = _scores(model, dialogues, engine)
    scale, tokenizer = heads.read_scale(release), policies.vocabulary_of(model, shape=None, schema="auto")
    schema = tokenizer[1] if scale is None else scale.schema
    wanted = [
        prompt_ids(turns[:-1], tokenizer[0]) + answer_ids(turns[-1].content, tokenizer[0], schema)
        for turns in dialogues
    ]
    theirs = _vanilla_scores(release, _ids(release, wanted, dialogues, generate=False), engine.device)
    return Proof(len(dialogues), _apart([ours], [theirs]), _apart([ours], [trained]))


def _scores(model: Artifact, dialogues: Sequence[Messages], engine: Engine) -> Tensor:
    scorer = RewardScorer.load(model, engine)
    scores = torch.tensor(scorer.score(dialogues).raw)
    _drop(scorer.model)
    return scores


def _vanilla_scores(release: Path, sequences: Sequence[list[int]], device: str) -> Tensor:
    from transformers import AutoModelForSequenceClassification

    model: Any = AutoModelForSequenceClassification.from_pretrained(
        release, dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False
    )
    model.to(device)
    with torch.inference_mode():
        scores = [float(model(input_ids=torch.tensor([ids], device=device)).logits[0, 0]) for ids in sequences]
    _drop(model)
    return torch.tensor(scores)


# ── both ─────────────────────────────────────────────────────────────────────────────────────────


def _ids(release: Path, wanted: list[list[int]], dialogues: Sequence[Messages], *, generate: bool) -> list[list[int]]:
    """The ids that transformers makes of the turns with the folder's template; they must be ours."""
    from transformers import AutoTokenizer

    stranger = AutoTokenizer.from_pretrained(release, local_files_only=True, trust_remote_code=False)
    for turns, ours in zip(dialogues, wanted, strict=True):
        plain = [{"role": turn.role, "content": turn.content} for turn in turns]
        theirs = stranger.apply_chat_template(plain, add_generation_prompt=generate, return_dict=False)
        if theirs != ours:
            raise UserError(
                f"{release.name}: its chat template gives other ids than training used",
                cause=f"For {turns[-1].content!r}: {theirs} instead of {ours}.",
                remedy="Nothing was released. Try another version of transformers.",
            )
    return wanted


def _apart(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """The greatest difference; not a number counts as infinitely far."""
    distances = [(one - other).abs().nan_to_num(nan=torch.inf) for one, other in zip(some, others, strict=True)]
    return max(float(distance.max()) for distance in distances)


def _drop(model: nn.Module) -> None:
    """Free a model's memory before the next one is read."""
    model.to(device="meta")
