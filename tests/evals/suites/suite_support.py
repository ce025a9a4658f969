"""A tiny policy of our own, the suites as they come, and who examines one on the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import yaml
from gemma import tiny
from scoring.tiny_reward import ENGINE
from stages import drawing

from alignment import run
from alignment.artifacts import Artifact
from alignment.chat import template, tokenizers
from alignment.chat.train import train
from alignment.chat.types import Messages
from alignment.data import recipe as recipes
from alignment.data.build import build
from alignment.evals.suites import kept, suite
from alignment.evals.suites.subject import Subject
from alignment.evals.suites.suite import Examined, Suite
from alignment.gemma import core
from alignment.gemma.presets import TokenIds
from alignment.sampling.decoding import Decoding, Reply
from alignment.sampling.endpoint import EndpointSettings
from alignment.training.policies import tokens_of

CONTEXT = 640
OWN_RECIPES = Path(__file__).parents[2] / "recipes"
LINES = [f"the answer to question {number} is {number % 7}, said the friend of the town" for number in range(200)]
ENDPOINT: EndpointSettings = EndpointSettings.parse(
    yaml.safe_load((drawing.CONF / "endpoint" / "patient.yaml").read_text())
)


def policy(folder: Path, lines: Iterable[str] = LINES, seed: int = 0) -> Artifact:
    """A Gemma 2 with weights far from their initial values, as an artifact."""
    tokenizer = tokenizers.load(train([*lines], 400, folder))
    shape = replace(tiny.SHAPES["gemma2"], context=CONTEXT)
    model = core.build(shape, tokenizers.padded_vocab(tokenizer.vocab_size), TokenIds(), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    template.write(folder, tokenizer, "gemma2")
    core.save(model, folder, stop_ids=(tokenizer.eos_id, tokenizer.end_of_turn_id))
    return Artifact(folder, "policy", "sft", folder.name, f"{seed}" * 64, tokens=tokens_of(model, tokenizer, "gemma2"))


def real(name: str, shared: Path, out: Path) -> Artifact:
    """The dataset of a recipe in tests/recipes, from the folder of real data."""
    return built(recipes.load(OWN_RECIPES / f"{name}.yaml").rooted(shared), OWN_RECIPES, out)


def ready(name: str, folder: Path, file: str, out: Path) -> Artifact:
    """The dataset of a recipe that comes with the program, from a file of the layout of its repository."""
    values = recipes.read_yaml(run.RECIPES / f"{name}.yaml")
    (source,) = values["sources"]
    del source["hub"]
    source["files"] = {"paths": [file], "reader": file.rpartition(".")[2]}
    return built(recipes.Recipe.parse(values), folder, out)


def built(recipe: recipes.Recipe, base: Path, out: Path) -> Artifact:
    """The dataset that a recipe gives."""
    build(recipe, out, base=base)
    return Artifact(out, "dataset", "data", out.name, "0" * 64)


def settings(name: str, **changes: Any) -> Any:
    """A suite as conf/suite has it, but for some of its values."""
    return suite.parse(run.compose("assess", {"suite": name})["suite"] | changes)


def examined(said: Suite, inputs: dict[str, Artifact], model: Artifact, out: Path) -> Examined:
    """What a suite finds of a model."""
    out.mkdir(exist_ok=True)
    found: Examined = suite.load(said.kind).examine(said, inputs, Subject(model, ENGINE, ENDPOINT, out))
    return found


def rows(found: Examined, out: Path) -> list[dict[str, Any]]:
    """The examples as they are written, without what does not apply."""
    kept.write(out, found)
    table = pq.read_table(out / kept.EXAMPLES).to_pylist()
    return [{name: value for name, value in row.items() if value is not None} for row in table]


def estimates(found: Examined, out: Path) -> dict[str, Any]:
    """What the examples come to: estimates of the whole, and ``groups`` of estimates."""
    kept.write(out, found)
    told = kept.told(kept.Kept.of(found.measures, out), 0.95, 0)

    def plain(measures: dict[str, Any]) -> dict[str, float]:
        return {name: one["estimate"] for name, one in measures.items()}

    groups = {group: {label: plain(of) for label, of in labels.items()} for group, labels in told["groups"].items()}
    return plain(told["measures"]) | {"groups": groups}


class ByTemperature(drawing.Speaker):
    """Answers by a function of the prompt, its key and the temperature."""

    def __init__(self, say: Callable[[Messages, str, float], str]) -> None:
        super().__init__(lambda turns, key: "")
        self._say = say

    def reply(
        self, prompts: Sequence[Messages], keys: Sequence[str], decoding: Decoding, on_progress: Any = None
    ) -> list[list[Reply]]:
        self.answer = lambda turns, key: self._say(turns, key, decoding.temperature)
        return super().reply(prompts, keys, decoding, on_progress)
