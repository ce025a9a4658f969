"""The numbers of distillation. Importable without torch."""

from __future__ import annotations

from typing import Literal

from alignment.settings import Settings, execution, identity, reference


class Student(Settings):
    """Who learns."""

    weights: str | None = reference("the weights to start from; null starts from scratch", kinds=("policy",))
    shape: str | None = identity("its shape, by preset: that of a fresh student, or what the weights must have")
    tokenizer: str | None = reference("the tokenizer of a fresh student; null takes the teacher's")
    chat_schema: Literal["auto", "gemma1", "gemma1_table4", "gemma2"] = identity(
        "how conversations become tokens; auto is the weights' own, or their family's"
    )
    attention: Literal["auto", "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3"] = execution(
        "attention kernel of student and teacher; auto chooses by model and device, and a wrong choice is refused"
    )


class Divergence(Settings):
    """What is minimised, at every token that carries loss."""

    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = identity(
        "KL(teacher‖student), KL(student‖teacher), or the generalised Jensen–Shannon divergence between them"
    )
    beta: float | None = identity("jsd: 0 is the forward KL, 1 the reverse; null for the others", ge=0, le=1)
    temperature: float = identity("divides the logits of both; the divergence is multiplied by its square", gt=0, le=20)
    nll_weight: float = identity("w: (1 − w) · divergence + w · NLL at given tokens; drawn ones have none", ge=0, le=1)


class Drawing(Settings):
    """Answers that the student draws while it learns."""

    share: float = identity("λ, the chance of a step to learn from them; on_policy", ge=0, le=1)
    temperature: float = identity("at which they are drawn", gt=0, le=5)
    max_new_tokens: int = identity("their length at most", ge=1)


class MiniLLM(Settings):
    """MiniLLM's policy gradient (arXiv 2306.08543)."""

    teacher_share: float = identity("α: answers are drawn from α · teacher + (1 − α) · student", ge=0, lt=1)
    rollouts: int = identity("answers that are drawn at once; a multiple of the batch", ge=1)
    epochs: int = identity("times that they are gone through", ge=1)
    clip: float = identity("ε: how far a token's ratio may move and still gain", gt=0, lt=1)
    length_normalised: bool = identity("divide what the later tokens are worth by their number")
    single_step: bool = identity("the divergence at a token exactly, by the whole vocabulary; false by its sample")
