"""Reward models of real comparisons, from the command line: a miniature core that has read books, four files.

What is certain is asserted; the accuracies are printed with their intervals, chance or not, beside that of the longer
answer. Where three seeds were above chance beyond their intervals, that of their mean is asserted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests_support import QUIET, call

from alignment.artifacts import Artifact
from alignment.data import store as data_store
from alignment.gemma import heads
from alignment.store import Store

RECIPES = Path(__file__).parents[1] / "recipes"
SEEDS = 3
AT_ONCE = 2


@dataclass(frozen=True)
class Real:
    """How a file is trained on. Of the answers of ``beyond_chance`` the better one can be told by so small a model."""

    epochs: int
    said: tuple[str, ...]
    beyond_chance: bool


FILES = {
    "hh_rlhf_harmless_test": Real(1, (), True),
    "tulu_human_eval": Real(2, ("margins=large",), True),
    "oasst_en100_pairs": Real(1, ("margins=small",), True),
    "xstest_safety_pairs": Real(3, ("margins=small", "safety_weight=1.0"), True),
}


def made(store: Path, name: str, *arguments: str) -> Artifact:
    done = call(store, *arguments, f"name={name}")
    assert done.returncode == 0, done.stdout + done.stderr
    return Store(store).latest(name)


def data(store: Path, shared_data: Path, recipe: str, *more: str) -> Artifact:
    path = RECIPES / f"{recipe}.yaml"
    return made(store, recipe, "stage=data", f"recipe={path}", f"recipe.root={shared_data}", *more)


@pytest.fixture(scope="module")
def store(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a base model that has read books and articles.

    In the shape of Gemma 1, whose attention takes rows of 1,000 tokens four times as fast on a CPU as a Gemma 2's.
    """
    folder = tmp_path_factory.mktemp("real") / "runs"
    data(folder, shared_data, "pretrain_text")
    made(folder, "pieces", "stage=tokenizer", "data=latest:pretrain_text", "pieces=4096")
    made(
        folder, "core", "stage=pretrain", "shape=mini_gemma1", "data=latest:pretrain_text", "tokenizer=latest:pieces",
        "block=512", "optimisation.batch=8", "optimisation.steps=150", *QUIET,
    )  # fmt: skip
    return folder


def train(store: Path, recipe: str, seed: int) -> Artifact:
    """A reward model that starts from the base model itself, without a chat model between."""
    real = FILES[recipe]
    return made(
        store, f"{recipe}_{seed}", "stage=reward", "model=latest:core", f"data=latest:{recipe}", "centre=null",
        "too_long=shorten", "engine.micro_batch=8", f"seed={seed}", f"head.seed={seed}", *real.said,
        f"optimisation={{batch: 16, epochs: {real.epochs}, learning_rate: 1e-3, checkpoint_steps: 1000}}", *QUIET,
    )  # fmt: skip


def left_out(reward: Artifact) -> Iterator[dict[str, Any]]:
    path = reward.path / "train_left_out.jsonl"
    if path.is_file():
        yield from (row for row in map(json.loads, path.read_text().splitlines()) if not row["kept"])


def check_accounts(dataset: Artifact, reward: Artifact) -> None:
    """Every source row has its line in the ledger, and every training pair was trained on or is listed."""
    card = data_store.card(dataset.path)
    lines = [line for line in data_store.entries(dataset.path) if line.derived_from is None]
    assert len(lines) == sum(source["read"] for source in card["sources"].values())
    assert Counter(line.fate for line in lines) == {fate: count for fate, count in card["fates"].items() if count}
    assert sum(line.copies for line in lines) == dataset.metrics["rows"]
    assert reward.metrics["pairs"] + len(list(left_out(reward))) == dataset.metrics["rows_train"]


def told(interval: Mapping[str, float]) -> str:
    return f"{interval['estimate']:.3f} ({interval['low']:.3f} … {interval['high']:.3f})"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", FILES)
def test_a_reward_model_of_real_comparisons(
    recipe: str, store: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = data(store, shared_data, recipe, "recipe.splits={train: 0.5, valid: 0.0, test: 0.5}")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        rewards = list(pool.map(lambda seed: train(store, recipe, seed), range(SEEDS)))
    for reward in rewards:
        assert reward.verify() == []
        check_accounts(dataset, reward)
    models = ",".join(f"run:{reward.path}" for reward in rewards)
    names = ",".join([recipe] * SEEDS)
    measured = made(
        store, f"measured_{recipe}", "stage=measure", f"models=[{models}]", f"names=[{names}]",
        f"comparisons=[latest:{recipe}]", "split=test", "too_long=leave_out",
    )  # fmt: skip
    results = json.loads((measured.path / "results.json").read_text())
    found = [results["measures"][label][recipe]["accuracy"]["all"]["all"] for label in results["judges"]]
    mean = results["arms"][recipe][recipe]["accuracy"]["all"]
    facts = results["datasets"][recipe]
    with capsys.disabled():
        print(f"\n{recipe}: trained on {rewards[0].metrics['pairs']:.0f} pairs, measured on {found[0]['count']}")
        for seed, interval in enumerate(found):
            print(f"  seed {seed}             {told(interval)}")
        print(f"  mean of the seeds  {told(mean)}\n  the longer answer  {told(facts['longer']['all']['all'])}")
    for interval in (*found, mean):
        assert 0 <= interval["low"] <= interval["estimate"] <= interval["high"] <= 1
        assert interval["count"] + facts["left_out"] == dataset.metrics["rows_test"]
    scale = heads.read_scale(rewards[0].path)
    assert scale is not None
    assert scale.absolute == ("safety_weight=1.0" in FILES[recipe].said)
    if FILES[recipe].beyond_chance:
        assert mean["low"] > 0.5
