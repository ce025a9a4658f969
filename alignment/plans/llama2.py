"""Llama 2's road (arXiv 2307.09288, §3): demonstrations, then version after version by rejection sampling, then PPO.

Every version draws pairs of answers, which are judged for helpfulness and for safety; both reward models go on from
those of the version before. By them the best answers to the prompts are kept: of this version alone at first, later of
all versions so far (``pool_from``), since Llama 2's third forgot how to rhyme. Every version is fine-tuned from the
same start. From ``ghost_after`` on the dialogues of Ghost Attention and the answers under a pre-prompt join in. The
last version is trained by PPO, which is sampled into the pool once more for a last fine-tuning.
"""

from __future__ import annotations

from typing import Any

from alignment.plans.step import Step
from alignment.plans.step import laid as plainly_laid
from alignment.settings import Settings as StrictSettings
from alignment.settings import identity, reference, text

NEXT = (
    "python -m alignment.run stage=show target=latest:table        gold by version and by skill, and which skill fell",
    "python -m alignment.run stage=chat model=latest:final         talk to the last version",
)


class Recipes(StrictSettings):
    """Mixtures, by a recipe's name or by the path of one; their sources are replaced, in the order told here."""

    helpful: str = text("of the helpfulness reward: pairs judged for helpfulness, pairs judged for safety")
    safe: str = text("of the safety reward: pairs judged for safety, pairs judged for helpfulness")
    rounds: str = text("of a version: the pool, the demonstrations")
    late_rounds: str = text("of a late version: the same, dialogues of Ghost Attention, answers under pre-prompts")


class Settings(StrictSettings):
    """The plan's numbers; null takes the stage's own value, or its preset's."""

    start: str = reference("the model from which every version is fine-tuned")
    demonstrations: str = reference("conversations of the first version, safe answers among them")
    prompts: str = reference("prompts to learn from, helpful and adversarial ones, tagged; the test split measures")
    subjects: str = reference("prompts to which pairs of answers are drawn, to be compared for helpfulness")
    adversarial: str = reference("prompts to which they are drawn to be compared for safety")
    dialogues: str = reference("dialogues for Ghost Attention")
    questions: str = reference("prompts of which the adversarial ones are answered under a pre-prompt")
    helpful_judge: str = reference("who compares answers for helpfulness")
    safety_judge: str = reference("who compares answers for safety, and labels them")
    versions: int = identity("versions by rejection sampling", ge=1, le=20)
    pool_from: int = identity("the first version that learns from the best of all iterations", ge=1)
    ghost_after: int = identity("the version after which Ghost Attention and pre-prompts join in", ge=1)
    pairs: int | None = identity("prompts a version to which pairs are drawn, of each kind at most", ge=1)
    pool: int | None = identity("prompts a version to which the best answer is kept", ge=1)
    samples: int | None = identity("answers to each of them (K)", ge=2)
    drawn: int | None = identity("dialogues and questions for Ghost Attention and pre-prompts, of each at most", ge=1)
    sft_steps: int | None = identity("optimiser steps of every version", ge=1)
    ppo_steps: int | None = identity("batches of PPO", ge=1)
    beta: float | None = identity("weight of PPO's KL divergence (0.01 at 7B and 13B, 0.005 above)", ge=0)
    recipes: Recipes
    preset: str | None = identity("values of the stages that have such a preset, llama2 for real models; null: none")
    seed: int = identity("of the draws", ge=0)
    budget: dict[str, float] = identity("seconds that each step may take on two CPU cores")


PRESETS = ("sft", "reward", "reject", "rl", "ghost", "preprompt")
"""Stages that have one."""


def _laid(name: str, stage: str, numbers: Settings, **said: Any) -> Step:
    """A step with the plan's preset, where its stage has one."""
    preset = numbers.preset if stage in PRESETS else None
    return plainly_laid(name, stage, numbers.budget, preset=preset, **said)


def steps(settings: Settings) -> list[Step]:
    """The versions in order, PPO, the last fine-tuning, and a table of all of them."""
    versions = range(1, settings.versions + 1)
    made = [_tuned(settings, 0, settings.demonstrations)]
    for version in versions:
        made += _version(settings, version)
    last = settings.versions
    made += [
        _ppo(settings),
        *_pooled(settings, last + 1, policy="step:ppo", judges=last),
        _tuned(settings, last + 1, f"step:mixture_{last + 1}", name="final"),
    ]
    models = [*(f"step:v{version}" for version in (0, *versions)), "step:ppo", "step:final"]
    table = _laid(
        "table",
        "evaluate",
        settings,
        models=models,
        prompts=settings.prompts,
        conversations=settings.demonstrations,
        reference="step:v0",
        against="previous",
    )
    return [*made, table]


def _version(numbers: Settings, version: int) -> list[Step]:
    """Comparisons of the version before, reward models that go on with them, the pool, and the fine-tuning."""
    before = f"step:v{version - 1}"
    made = [
        *_compared(numbers, "helpfulness", version, numbers.subjects, numbers.helpful_judge),
        *_compared(numbers, "safety", version, numbers.adversarial, numbers.safety_judge),
        _mixture(numbers, "helpful", version),
        _mixture(numbers, "safe", version),
        _reward(numbers, "helpful", version),
        _reward(numbers, "safe", version, safety_weight=1.0),
    ]
    if version == numbers.ghost_after + 1:
        made += _drawn(numbers, before)
    made += _pooled(numbers, version, policy=before, judges=version)
    return [*made, _tuned(numbers, version, f"step:mixture_{version}")]


def _compared(numbers: Settings, aspect: str, version: int, prompts: str, judge: str) -> list[Step]:
    """Two answers of the version before to each prompt, and which is better: by helpfulness, or to adversarial ones."""
    before = f"step:v{version - 1}"
    pairs = _laid(
        f"{aspect}_pairs_{version}",
        "pairs",
        numbers,
        models=[before, before],
        prompts=prompts,
        count=numbers.pairs,
        seed=numbers.seed + version,
    )
    label = _laid(f"{aspect}_{version}", "label", numbers, pairs=f"step:{pairs.name}", judge=judge, aspect=aspect)
    return [pairs, label]


def _mixture(numbers: Settings, kind: str, version: int) -> Step:
    """Llama 2's mixtures: as much of the others for helpfulness, nine to one for safety."""
    own, other = ("helpfulness", "safety") if kind == "helpful" else ("safety", "helpfulness")
    recipe = numbers.recipes.helpful if kind == "helpful" else numbers.recipes.safe
    return _laid(
        f"{kind}_mixture_{version}",
        "data",
        numbers,
        recipe=recipe,
        recipe__sources__0__dataset=f"step:{own}_{version}",
        recipe__sources__1__dataset=f"step:{other}_{version}",
    )


def _reward(numbers: Settings, kind: str, version: int, **said: Any) -> Step:
    start = "step:v0" if version == 1 else f"step:{kind}_{version - 1}"
    return _laid(
        f"{kind}_{version}",
        "reward",
        numbers,
        model__weights=start,
        data=f"step:{kind}_mixture_{version}",
        centre=numbers.demonstrations,
        seed=numbers.seed,
        **said,
    )


def _drawn(numbers: Settings, policy: str) -> list[Step]:
    """Dialogues under lasting instructions and safe answers, drawn once, from the version that has learned enough."""
    return [
        _laid(
            "ghost",
            "ghost",
            numbers,
            policy=policy,
            dialogues=numbers.dialogues,
            count=numbers.drawn,
        ),
        _laid(
            "preprompt",
            "preprompt",
            numbers,
            policy=policy,
            prompts=numbers.questions,
            count=numbers.drawn,
        ),
    ]


def _rule(judges: int) -> dict[str, Any]:
    """Llama 2's combination of the two reward models of a version."""
    return {
        "reward__rule": "llama2",
        "reward__model": f"step:helpful_{judges}",
        "reward__safety": f"step:safe_{judges}",
    }


def _pooled(numbers: Settings, version: int, *, policy: str, judges: int) -> list[Step]:
    """The best answers of ``policy``, or of all iterations so far, and what is learned beside them."""
    everything = version >= numbers.pool_from
    pool = _laid(
        f"pool_{version}",
        "reject",
        numbers,
        policy=policy,
        prompts=numbers.prompts,
        pool="all" if everything else "last",
        earlier=[f"step:pool_{one}" for one in range(1, version)] or None if everything else None,
        count=numbers.pool,
        samples=numbers.samples,
        seed=numbers.seed + version,
        **_rule(judges),
    )
    late = version > numbers.ghost_after and numbers.versions > numbers.ghost_after
    sources = [f"step:pool_{version}", numbers.demonstrations, *(["step:ghost", "step:preprompt"] if late else [])]
    mixture = _laid(
        f"mixture_{version}",
        "data",
        numbers,
        recipe=numbers.recipes.late_rounds if late else numbers.recipes.rounds,
        **{f"recipe__sources__{place}__dataset": source for place, source in enumerate(sources)},
    )
    return [pool, mixture]


def _tuned(numbers: Settings, version: int, data: str, name: str | None = None) -> Step:
    """A version: the start, fine-tuned on what the version before has found."""
    # A preset's epochs give way to steps.
    steps = None if numbers.sft_steps is None else {"steps": numbers.sft_steps, "epochs": None}
    return _laid(name or f"v{version}", "sft", numbers, model__weights=numbers.start, data=data, optimisation=steps)


def _ppo(numbers: Settings) -> Step:
    return _laid(
        "ppo",
        "rl",
        numbers,
        policy=f"step:v{numbers.versions}",
        prompts=numbers.prompts,
        estimating__kind="gae",
        estimating__whiten_advantages=True,
        drawing__samples=1,
        anchoring__beta=numbers.beta,
        updating__steps=numbers.ppo_steps,
        seed=numbers.seed,
        **_rule(numbers.versions),
    )
