"""Who answers and who judges, from what a reference named."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from alignment.artifacts import Artifact
from alignment.errors import UserError
from alignment.scoring.scorer import Scorer
from alignment.settings import Settings, identity, text

if TYPE_CHECKING:
    from alignment.miniature.world import World
    from alignment.sampling.decoding import Respondent
    from alignment.sampling.endpoint import EndpointSettings
    from alignment.training.engine import Engine


def open_respondent(
    artifact: Artifact, engine: Engine, endpoint: EndpointSettings, journal: Path | None = None
) -> Respondent:
    """A policy of ours or of the same layout, or a model behind a server, asked as ``endpoint`` says.

    ``journal`` is where a server's answers are kept, so that none is paid for twice.
    """
    if artifact.kind == "endpoint":
        from alignment.sampling.endpoint import Endpoint

        return Endpoint.from_environment(artifact.step.removeprefix("endpoint:"), journal, endpoint)
    from alignment.sampling.model_respondent import ModelRespondent
    from alignment.training.policies import open_policy

    policy = open_policy(artifact, engine)
    return ModelRespondent(artifact.step or artifact.path.name, policy.model, policy.tokenizer)


class ClassifierReading(Settings):
    """How a classifier from elsewhere is read, where it is a judge."""

    label: str | None = text("the label whose probability counts; null takes the only one")
    text: Literal["answer", "dialogue"] = identity("what it is given: the answer alone, or with its prompt")


def speaks(artifact: Artifact) -> bool:
    """Whether a judge answers in words rather than with a score."""
    from alignment.scoring.classifier import is_classifier

    return artifact.kind in ("policy", "endpoint") or (artifact.kind == "foreign" and not is_classifier(artifact.path))


def open_scorer(
    artifact: Artifact,
    engine: Engine,
    world: World | None,
    *,
    label: str | None = None,
    text: Literal["answer", "dialogue"] = "answer",
) -> Scorer:
    """The miniature's truth (``world`` says which), a reward model here or served elsewhere, or a classifier.

    ``label`` is the class whose score counts, for a classifier with several; ``text`` is what it is given.
    Raises :class:`UserError` for the truth of rows that are not from the miniature world.
    """
    if artifact.kind == "gold":
        from alignment.scoring.gold import Gold

        if world is None:
            raise UserError(
                f"{artifact.step}: the rows do not come from the miniature world",
                cause="Only there the truth about every answer is known.",
                remedy="Name a reward model or a classifier.",
            )
        return Gold(world, artifact.step.removeprefix("gold:"))  # type: ignore[arg-type]
    if artifact.kind == "remote":
        from alignment.scoring.remote import Remote

        return Remote(artifact.step.removeprefix("remote:"))
    from alignment.gemma.heads import is_reward

    if artifact.kind == "reward" or is_reward(artifact.path):
        from alignment.scoring.reward_model import RewardScorer

        return RewardScorer.load(artifact, engine)
    from alignment.scoring.classifier import Classifier

    return Classifier.load(artifact, engine, label, text)
