"""Examine one model on one suite: every example with its measures, and every measure with its interval.

``stage=evaluate models=[…] suites=[…]`` makes one of these for each model and each suite, and puts them beside each
other. ``results.json`` holds ``kind`` and ``made_of`` (the suite's settings, the fingerprints of its inputs and the
digests of its files), ``declared`` (what each measure is), ``measures`` and ``groups`` (``evals/suites/kept.py``);
``examples.parquet`` has a row for every example.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import create_model

from alignment import allocator, files
from alignment.artifacts import Artifact, Outcome
from alignment.evals.suites import suite as suites
from alignment.sampling.endpoint import EndpointSettings
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, identity_values, reference
from alignment.training.engine import EngineSettings

ALGORITHM_VERSION = 4


class Settings(StrictSettings):
    """``stage=assess``."""

    model: str = reference("the model to examine: a policy, a folder of the same layout, or endpoint:<model>")
    suite: Any = identity("what it is examined on: suite=<name>, or a file of your own (suite=./mine.yaml)")
    confidence: float = identity("of every interval", gt=0, lt=1)
    seed: int = identity("of the bootstrap", ge=0)
    endpoint: EndpointSettings = execution("how a server is asked, where the model or a judge is behind one")
    engine: EngineSettings = execution("where and how models run")

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "settings") -> Settings:
        """Validate, the suite by its own kind."""
        settings: Settings = super().parse(values, where)
        return settings.model_copy(update={"suite": suites.parse(settings.suite)})


def described(values: Mapping[str, Any]) -> type[StrictSettings]:
    """The settings with the keys of the suite that was chosen, for ``--help``."""
    own = type(suites.parse(values["suite"]))
    return create_model("Settings", __base__=Settings, suite=(own, identity("what it is examined on")))


def sources(settings: Settings) -> list[Path]:
    """The files that the suite reads."""
    module = suites.load(settings.suite.kind)
    return module.sources(settings.suite) if hasattr(module, "sources") else []


def run(settings: Settings, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """Write the examples (examples.parquet) and what they come to (results.json)."""
    from alignment.evals.suites import kept
    from alignment.evals.suites.subject import Subject
    from alignment.reporting import suites as shown
    from alignment.training.engine import resolve

    engine = resolve(settings.engine)
    subject = Subject(inputs["model"], engine, settings.endpoint, out)
    module = suites.load(settings.suite.kind)
    own = _own(inputs)
    made_of = {
        "settings": identity_values(settings.suite),
        "inputs": {key: one.fingerprint for key, one in own.items()},
        "sources": [files.digest_file(path) for path in sources(settings)],
    }
    with allocator.keeping():
        examined: suites.Examined = module.examine(settings.suite, own, subject)
        count = kept.write(out, examined)
    found = kept.told(kept.Kept.of(examined.measures, out), settings.confidence, settings.seed)
    results = {
        "kind": settings.suite.kind,
        "made_of": made_of,
        "confidence": settings.confidence,
        "declared": [measure._asdict() for measure in examined.measures],
        **found,
        "notes": dict(examined.notes),
    }
    if hasattr(module, "figures"):
        module.figures(settings.suite, own, subject)
    files.write_json(out / kept.RESULTS, results)
    shown.show_one(results)
    metrics = {name: one["estimate"] for name, one in found["measures"].items()}
    notes = ({} if subject.served else engine.notes()) | {"examples": count}
    return Outcome("evaluation", metrics, next(iter(metrics)), notes=notes)


def _own(inputs: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """The suite's inputs, by its own keys."""
    return {key.removeprefix("suite."): one for key, one in inputs.items() if key.startswith("suite.")}
