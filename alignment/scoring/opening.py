"""Who answers and who judges, from what a reference named."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from alignment.artifacts import NO_FOLDER, Artifact, named
from alignment.errors import UserError
from alignment.scoring.scorer import Scorer
from alignment.settings import Settings, identity, text

if TYPE_CHECKING:
    from alignment.chat.types import Prompt
    from alignment.data.grades import Bounds
    from alignment.miniature.world import World
    from alignment.sampling.decoding import Respondent
    from alignment.sampling.endpoint import EndpointSettings
    from alignment.scoring.pairwise import ByScore
    from alignment.scoring.remote import Remote
    from alignment.training.engine import Engine

SAFE_ABOVE = 0.5
"""The probability above which an answer is safe, where nobody says another."""


def open_respondent(
    artifact: Artifact, engine: Engine, endpoint: EndpointSettings, journal: Path | None = None, *, at: str = "model"
) -> Respondent:
    """A policy of ours or of the same layout, or a model behind a server, asked as ``endpoint`` says.

    ``journal`` is where a server's answers are kept, so that none is paid for twice; ``at`` is the key that names it.
    Raises :class:`UserError` for a model without a chat format (:func:`need_chat`).
    """
    need_chat(artifact, at)
    if artifact.kind == "endpoint":
        from alignment.sampling.endpoint import Endpoint

        return Endpoint.from_environment(artifact.step.removeprefix("endpoint:"), journal, endpoint)
    from alignment.sampling.model_respondent import ModelRespondent
    from alignment.training.policies import open_policy

    policy = open_policy(artifact, engine)
    return ModelRespondent(artifact.step or artifact.path.name, policy.model, policy.tokenizer)


def need_chat(artifact: Artifact, at: str = "model", otherwise: str = "name a model that was tuned to chat") -> None:
    """Raise :class:`UserError` for a model that lies here and has no chat format; ``at`` is the key that names it."""
    from alignment.chat.template import has_chat_template

    if artifact.kind != "endpoint" and not has_chat_template(artifact.path):
        raise UserError(
            f"{at}={artifact.step or artifact.path}: has no chat template",
            cause="Base models have no chat format, and it is asked in one.",
            remedy=f"Put the model's chat_template.jinja into that folder, or {otherwise}.",
        )


class ClassifierReading(Settings):
    """How a classifier from elsewhere is read, where it is a judge; one that is served, as its server was told."""

    label: str | None = text("the label whose probability counts; null takes the only one")
    text: Literal["answer", "dialogue"] = identity("what it is given: the answer alone, or with its prompt")


def check_aspect(judge: str | None, aspect: str) -> None:
    """Raise :class:`UserError` where the miniature's truth or people are named for another aspect than is compared."""
    who, _, judged = (judge or "").partition(":")
    if who not in ("gold", "raters"):
        return
    if judged not in ("overall", "helpfulness", "safety"):
        raise UserError(f"judge={judge}: there is no such truth", remedy="overall, helpfulness or safety.")
    if judged != aspect:
        raise UserError(
            f"judge={judge}: judges another aspect than aspect={aspect}",
            remedy=f"Say aspect={judged}, or judge={who}:{aspect}.",
        )


def speaks(artifact: Artifact) -> bool:
    """Whether a judge answers in words rather than with a score."""
    from alignment.scoring.classifier import is_classifier

    return artifact.kind in ("policy", "endpoint") or (artifact.kind == "foreign" and not is_classifier(artifact.path))


def open_scorer(
    artifact: Artifact,
    engine: Engine,
    world: World | None,
    *,
    label: str | None,
    text: Literal["answer", "dialogue"],
    prompts: Sequence[Prompt] | None = None,
) -> Scorer:
    """The miniature's truth (``world`` says which), a check, a reward model here or served elsewhere, or a classifier.

    ``label`` is the class whose score counts, for a classifier with several; ``text`` is what it is given. A check
    reads what is right from the references of ``prompts``. Raises :class:`UserError` for the truth of rows that are
    not from the miniature world, and for a check where prompts or their references are missing.
    """
    if artifact.kind in ("gold", "raters"):
        from alignment.scoring.gold import Gold, Raters

        if world is None:
            raise UserError(
                f"{artifact.step}: the rows do not come from the miniature world",
                cause="Only there the truth about every answer is known.",
                remedy="Name a reward model or a classifier.",
            )
        kind, _, aspect = artifact.step.partition(":")
        judge: type[Gold] | type[Raters] = Gold if kind == "gold" else Raters
        return judge(world, aspect)  # type: ignore[arg-type]
    if artifact.kind == "check":
        from alignment.scoring.checkable import Checkable

        if prompts is None:
            raise UserError(
                f"{artifact.step}: there are no prompts here whose references could be read",
                cause="A program finds an answer right by the reference that a recipe gave its prompt.",
                remedy="Name a reward model or a classifier.",
            )
        return Checkable(artifact.step.removeprefix("check:"), prompts)
    if artifact.kind == "remote":
        return _open_remote(artifact)
    from alignment.gemma.heads import is_reward

    if artifact.kind == "reward" or is_reward(artifact.path):
        from alignment.scoring.reward_model import RewardScorer

        return RewardScorer.load(artifact, engine)
    from alignment.scoring.classifier import Classifier

    return Classifier.load(artifact, engine, label, text)


def open_by_score(
    artifact: Artifact,
    engine: Engine,
    world: World | None,
    reading: ClassifierReading,
    bounds: Bounds,
    *,
    aspect: str,
    safe_above: float | Literal["auto"] | None,
) -> ByScore:
    """A scorer that judges pairs by its scores, as :func:`open_scorer` opens it.

    Safety labels come from the scorer itself where safety is compared, and from the truth where the miniature judges.
    Raises :class:`UserError` where ``safe_above="auto"`` meets a judge that knows only differences.
    """
    from alignment.scoring.pairwise import ByScore
    from alignment.scoring.scorer import threshold

    def opened(one: Artifact) -> Scorer:
        return open_scorer(one, engine, world, label=reading.label, text=reading.text)

    scorer = opened(artifact)
    safety = scorer if aspect == "safety" else None
    if artifact.kind in ("gold", "raters") and safety is None:
        safety = opened(named("gold", "safety"))
    above = None
    if safety is not None and safe_above is not None:
        above = threshold(safety, None if safe_above == "auto" else safe_above, SAFE_ABOVE)
    return ByScore(scorer, bounds, safety=safety, safe_above=above)


def refuse_seen(judge: Artifact, keys: Iterable[str]) -> None:
    """Raise :class:`UserError` where a judge, here or served, was trained on any of the prompts with these keys."""
    if judge.kind == "remote":
        _open_remote(judge).refuse_seen(keys)
    elif judge.kind not in NO_FOLDER:
        from alignment.data import seen

        seen.refuse_overlap(judge.path, keys)


def _open_remote(artifact: Artifact) -> Remote:
    """What is served, if it still is what it was when its reference was resolved."""
    from alignment.scoring.remote import Remote

    remote = Remote(artifact.step.removeprefix("remote:"))
    if named("remote", "", remote.fingerprint).fingerprint != artifact.fingerprint:
        raise UserError(
            f"{artifact.step}: another model is served now than when this was planned",
            cause=f"Now it is {remote.name} ({remote.fingerprint[:12]}).",
            remedy="Start again, so that the result is recorded as that of the model that gives it.",
        )
    return remote
