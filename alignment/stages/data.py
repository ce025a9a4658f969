"""Read sources by a recipe into rows, splits and a ledger of what happened to every row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment import console
from alignment.artifacts import Artifact, Outcome
from alignment.data.recipe import Recipe, local_files
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, reference, text
from alignment.training.engine import EngineSettings

if TYPE_CHECKING:
    from alignment.data.build import Surroundings
    from alignment.data.prepare import Scores

ALGORITHM_VERSION = 3


class Settings(StrictSettings):
    """``stage=data``. ``recipe=<name>`` takes one of data_recipes/, ``recipe=<file>.yaml`` one of your own."""

    recipe: Recipe = identity("the recipe")
    tokenizer: str | None = reference("whose tokens the card and a mixture by tokens count; null counts none")
    terms: str | None = text("a YAML of terms that the card counts (pronouns, demographic axes); null takes ours")
    workers: int = execution("processes that filter; more than one pays from some 20,000 rows on", ge=1, le=256)
    engine: EngineSettings = execution("where and how scorers run")

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "settings") -> Settings:
        """Validate, the recipe's own rules between its keys included."""
        settings: Settings = super().parse(values, where)
        Recipe.parse(values["recipe"], "recipe")
        return settings


def sources(settings: Settings) -> list[Path]:
    """The files that the recipe reads, and the list of terms."""
    from alignment.data import lists

    return [*local_files(settings.recipe, Path.cwd()), lists.locate(settings.terms, "demographics.yaml", "terms")]


def commits(settings: Settings) -> dict[str, str]:
    """The commits that the recipe's repositories are at, so that another one is another dataset."""
    compared = [one for use in settings.recipe.filters or [] for one in use.against or []]
    repositories = [source.hub for source in [*settings.recipe.sources, *compared] if source.hub]
    if not repositories:
        return {}
    from alignment.data import hub

    return {f"{place} {one.repository}": hub.commit(one) for place, one in enumerate(repositories)}


def run(settings: Settings, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """Write a table per split, the ledger and the card."""
    from alignment.data import build

    with console.progress("data", 0, "rows") as progress:

        def seen(what: str, rows: int, expected: int | None) -> None:
            progress.total = max(expected or 0, rows)
            progress.done = 0
            progress.advance(rows, what)

        card = build.build(settings.recipe, out, surroundings=_surroundings(settings, inputs), progress=seen)
    console.say(card.told(), style="")
    return Outcome("dataset", card.metrics(), "rows", licences=card.licences, notes={"kind": card.kind})


def _surroundings(settings: Settings, inputs: Mapping[str, Artifact]) -> Surroundings:
    """Everything the recipe refers to, opened: datasets, scorers, tokenizer, terms."""
    from alignment.data import lists
    from alignment.data.build import Surroundings
    from alignment.data.filters.detector import detector
    from alignment.data.statistics import load_terms

    datasets = {
        place: inputs[f"recipe.sources.{place}.dataset"].need("dataset").path
        for place, source in enumerate(settings.recipe.sources)
        if source.dataset is not None
    }
    scorers = {
        place: _scores(settings, inputs[f"recipe.filters.{place}.scorer"], use.label, datasets)
        for place, use in enumerate(settings.recipe.filters or [])
        if use.scorer is not None
    }
    tokenizer = inputs["tokenizer"].path if "tokenizer" in inputs else None
    terms = load_terms(lists.locate(settings.terms, "demographics.yaml", "terms"))
    return Surroundings(Path.cwd(), datasets, scorers, tokenizer, terms, detector(), settings.workers)


def _scores(settings: Settings, artifact: Artifact, label: str | None, datasets: Mapping[int, Path]) -> Scores:
    """A scorer's probabilities. The miniature's truth is known where all sources come from one world."""
    from alignment.chat.types import Messages
    from alignment.data.build import common_world
    from alignment.miniature.world import World
    from alignment.scoring.opening import open_scorer
    from alignment.training.engine import resolve

    knobs = common_world(settings.recipe, datasets)
    world = None if knobs is None else World(**knobs)
    scorer = open_scorer(artifact, resolve(settings.engine), world, label=label, text="answer")

    def probabilities(dialogues: Sequence[Messages]) -> Sequence[float]:
        return scorer.score(dialogues).probability

    return probabilities
