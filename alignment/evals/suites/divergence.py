"""How far a model has moved from a reference on its own answers, and how well it predicts held-out rows.

KL(model ‖ reference) of an answer is that over the whole vocabulary, summed over its tokens, at the temperature at
which the model drew it (``gemma/divergence.py``); by the token it is Σ over answers / Σ of their tokens. Perplexity is
the exponential of Σ −log p / tokens over the answers of conversations, or over text (``evals/held_out_rows.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from alignment.artifacts import Artifact
from alignment.chat.types import Prompt, prompt_key
from alignment.errors import UserError
from alignment.evals.suites.subject import Subject
from alignment.evals.suites.suite import Examined, Example, Measure, Suite
from alignment.sampling.decoding import Decoding
from alignment.settings import identity, reference

if TYPE_CHECKING:
    from alignment.evals.held_out_rows import Dataset
    from alignment.training.policies import Policy

KL = (
    Measure("kl", "lower", "KL divergence to the reference, in nats an answer"),
    Measure("kl_token", "lower", "KL divergence to the reference, in nats a token", per="tokens"),
    Measure("tokens", None, "tokens of an answer"),
    Measure("finished", "higher", "share of the answers that ended of their own accord", most=1),
)
PERPLEXITY = (
    Measure("perplexity", "lower", "exp of the mean −log p of a held-out token", per="held_out", exponential=True),
    Measure("nll", "lower", "mean −log p of a held-out token, in nats", per="held_out"),
    Measure("held_out", None, "tokens of a held-out row"),
)


class Settings(Suite):
    """A reference with prompts to answer, held-out rows, or both."""

    prompts: str | None = reference("a dataset of prompts to answer for the KL; null skips it", kinds=("dataset",))
    count: int | None = identity("prompts at most, the first of the split; null takes all", ge=1)
    decoding: Decoding = identity("how they are answered: above temperature 0 and with top_p=1")
    data: list[str] = reference("datasets for the perplexity, text or conversations; [] skips it", kinds=("dataset",))
    reference: str | None = reference("the policy to which the KL is measured; null skips it", kinds=("policy",))
    rows: int = identity("held-out rows of each at most, the first of the split", ge=1)
    block: int = identity("text: tokens a row at most; longer documents become several rows", ge=16)
    too_long: Literal["refuse", "leave_out"] = identity("what becomes of a conversation longer than the context")
    split: Literal["valid", "test"] = identity("the split of all datasets; no model may have seen its prompts")

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "suite") -> Settings:
        """Validate, the rules between keys included."""
        settings: Settings = super().parse(values, where)
        if (settings.reference is None) != (settings.prompts is None):
            missing = "reference" if settings.reference is None else "prompts"
            raise UserError(f"{where}.{missing}=null: a KL needs a reference and prompts", remedy="Name both or none.")
        if settings.reference is None and not settings.data:
            raise UserError(f"{where}: there is nothing to measure", remedy="Name a reference with prompts, or data.")
        if settings.reference is not None and (settings.decoding.temperature == 0 or settings.decoding.top_p < 1):
            raise UserError(
                f"{where}.decoding: temperature={settings.decoding.temperature:g} top_p={settings.decoding.top_p:g}",
                cause="A KL is the mean over the model's own distribution, which greedy or cut draws are not.",
                remedy="Draw above temperature 0 and with top_p=1.",
            )
        return settings


def examine(settings: Settings, inputs: dict[str, Artifact], subject: Subject) -> Examined:
    """Answer the prompts, read the held-out rows.

    Raises :class:`UserError` for a reference of another tokenizer, and for rows or prompts that the model has seen.
    """
    subject.need_here()
    prompts = _prompts(settings, inputs, subject) if "prompts" in inputs else []
    datasets = _datasets(settings, inputs, subject)
    measures = (*(KL if prompts else ()), *(PERPLEXITY if datasets else ()))
    notes = {"held_out_rows": {name: len(one.rows.names) for name, one in datasets.items()}}
    examples = chain(_perplexity(datasets, subject), _kl(prompts, settings, inputs, subject))
    return Examined(measures, examples, notes)


# ── KL ───────────────────────────────────────────────────────────────────────────────────────────


def _prompts(settings: Settings, inputs: Mapping[str, Artifact], subject: Subject) -> list[Prompt]:
    from alignment.training.policies import need_same_tokens

    otherwise = "suite.reference=null suite.prompts=null"
    need_same_tokens(subject.artifact, inputs["reference"], "suite.reference", otherwise)
    return subject.prompts(inputs["prompts"], settings.split, settings.count)


def _kl(
    prompts: Sequence[Prompt], settings: Settings, inputs: Mapping[str, Artifact], subject: Subject
) -> Iterator[Example]:
    from alignment.training.policies import open_policy

    if not prompts:
        return
    subject.need_room([one.messages for one in prompts], [one.id for one in prompts], settings.decoding)
    against = open_policy(inputs["reference"], subject.engine)
    drawn = subject.in_parts("kl", prompts, lambda some: _drawn(some, settings.decoding, subject, against))
    for prompt, row in zip(prompts, drawn, strict=True):
        count = len(row["kl"])
        total = sum(row["kl"])
        values = {
            "kl": total / count,
            "kl_token": total / count,
            "tokens": sum(row["tokens"]) / count,
            "finished": sum(row["finished"]) / count,
        }
        shown = {"prompt": [[turn.role, turn.content] for turn in prompt.messages], "answers": row["answers"]}
        yield Example(prompt.id, prompt_key(prompt.messages), values, shown=shown)


def _drawn(some: Sequence[Prompt], decoding: Decoding, subject: Subject, against: Policy) -> list[dict[str, Any]]:
    """Answers to some prompts, and the KL divergence of each."""
    from alignment.chat.render import prompt_ids
    from alignment.gemma.divergence import sequence_kl

    policy = subject.policy
    replies = subject.respondent.reply([one.messages for one in some], [one.id for one in some], decoding)
    asked = [ids for one in some for ids in [prompt_ids(one.messages, policy.tokenizer)] * decoding.samples]
    said = [reply.ids or () for samples in replies for reply in samples]
    kl = sequence_kl(policy.model, against.model, asked, said, subject.engine.device, decoding.temperature)
    rows = []
    for place, samples in enumerate(replies):
        begin = place * decoding.samples
        rows.append(
            {
                "kl": kl[begin : begin + decoding.samples].tolist(),
                "tokens": [reply.tokens for reply in samples],
                "finished": [reply.finished for reply in samples],
                "answers": [reply.text for reply in samples],
            }
        )
    return rows


# ── perplexity ───────────────────────────────────────────────────────────────────────────────────


def _datasets(settings: Settings, inputs: Mapping[str, Artifact], subject: Subject) -> dict[str, Dataset]:
    """The held-out rows of every dataset, by name."""
    from alignment.evals import held_out_rows
    from alignment.evals.names import names_of

    sources = [inputs[f"data.{place}"].need("dataset") for place in range(len(settings.data))]
    names = names_of(sources)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"suite.data: {twice} is there twice", remedy="Name every dataset once.")
    common = held_out_rows.common(
        {subject.artifact.step or str(subject.artifact.path): subject.artifact}, settings.block
    )
    return {
        name: held_out_rows.read(
            source.path,
            settings.split,
            common,
            [subject.artifact],
            count=settings.rows,
            too_long=settings.too_long,
            left_out=subject.out / f"left_out_{name}",
        )
        for name, source in zip(names, sources, strict=True)
    }


def _perplexity(datasets: Mapping[str, Dataset], subject: Subject) -> Iterator[Example]:
    for name, one in datasets.items():
        rows = [one.tokens.row(place) for place in range(len(one.tokens))]
        read = subject.likelihoods(f"perplexity of {name}", [(ids.tolist(), mask.tolist()) for ids, mask in rows])
        for row, document, loss in zip(one.rows.names, one.rows.documents, read, strict=True):
            values = {"perplexity": loss.nll, "nll": loss.nll, "held_out": float(loss.tokens)}
            yield Example(f"{name}:{row}", str(document), values, {"data": name}, {"row": row})
