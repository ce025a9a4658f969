"""Ghost Attention measured: how long an instruction of the first turn is obeyed, with and without it, over seeds.

A chat model learns to obey instructions from demonstrations by people who obey for two turns and then forget; some of
them are dialogues of two turns under an instruction, with all kinds of questions that the suites ask, so that it obeys
for two turns itself. From it, for every seed: answers to long dialogues are drawn under an instruction in every turn
(to half of them all answers, to the others the last alone), and dialogues whose last answer obeys are kept with it in
the first turn (``stage=ghost``). ``with`` goes on with these rows, ``without`` with the same dialogues as they were;
both rehearse the demonstrations. Recall by turn measures.
"""

from __future__ import annotations

from typing import Any

from alignment.plans.step import Step, laid
from alignment.settings import Settings as StrictSettings
from alignment.settings import identity, reference

# Turns for which people obey an instruction: the length of the dialogues under one that they demonstrate.
_OBEYED = 2

NEXT = (
    "python -m alignment.run stage=show target=latest:recall           recall by turn, and the difference by turn",
    "attention.html beside each model's examples: open it in a browser what its answers attend to",
)


class Settings(StrictSettings):
    """The plan's numbers."""

    chat: str = reference("the chat model to begin with")
    tokenizer: str = reference("its tokenizer")
    rows: int = identity("long dialogues to learn from", ge=1)
    turns: int = identity("user turns of the longest of them", ge=2)
    samples: int = identity("answers drawn to each turn, of which the first that obeys is kept", ge=1)
    demonstrations: int = identity("demonstrations of all kinds that the chat model learns from", ge=1)
    instructed: int = identity("demonstrations beside them of two turns under an instruction", ge=1)
    chat_steps: int = identity("optimiser steps of the chat model on them", ge=1)
    steps: int = identity("optimiser steps of each arm", ge=1)
    batch: int = identity("rows of each of them", ge=1)
    learning_rate: float = identity("of all of them", gt=0, le=1)
    seeds: list[int] = identity("of each arm", min_length=1)
    suites: list[str] = identity("what the arms are measured on", min_length=1)
    budget: dict[str, float] = identity("seconds that each step may take on two CPU cores")


def steps(settings: Settings) -> list[Step]:
    """What the arms have in common, both with every seed, and the measurement of all."""
    arms = [(name, seed) for name in ("without", "with") for seed in settings.seeds]
    return [
        *_demonstrations(settings),
        _dialogues(settings, "long_dialogues", settings.rows, {"turns": settings.turns}),
        _mixture(settings, "plain_mixture", "step:demonstrations", "step:long_dialogues"),
        _sft(settings, "chat", "step:demonstrations", 0, settings.chat, settings.chat_steps),
        *(step for seed in settings.seeds for step in _seed(settings, seed)),
        laid(
            "recall",
            "evaluate",
            settings.budget,
            preset="suites",
            models=[f"step:{name}_{seed}" for name, seed in arms],
            names=[name for name, _ in arms],
            suites=settings.suites,
        ),
    ]


def _seed(numbers: Settings, seed: int) -> list[Step]:
    """Both arms of one seed."""
    return [
        laid(
            f"ghost_{seed}",
            "ghost",
            numbers.budget,
            policy="step:chat",
            answers="mixed",
            dialogues="step:long_dialogues",
            max_turns=numbers.turns,
            end="last",
            decoding__samples=numbers.samples,
            seed=seed,
        ),
        _mixture(numbers, f"ghost_mixture_{seed}", "step:demonstrations", f"step:ghost_{seed}"),
        _sft(numbers, f"with_{seed}", f"step:ghost_mixture_{seed}", seed, "step:chat", numbers.steps),
        _sft(numbers, f"without_{seed}", "step:plain_mixture", seed, "step:chat", numbers.steps),
    ]


def _demonstrations(numbers: Settings) -> list[Step]:
    """Careful answers of people who obey for two turns: to all that is asked, and in dialogues under an instruction."""
    careful = {"train": {"rows": numbers.demonstrations}}
    instructed = {"turns": _OBEYED, "instructed": True}
    return [
        laid("careful", "data", numbers.budget, recipe="miniature_careful", recipe__sources__0__miniature=careful),
        _dialogues(numbers, "instructed", numbers.instructed, instructed, noise=0.0),
        _mixture(numbers, "demonstrations", "step:careful", "step:instructed"),
    ]


def _dialogues(numbers: Settings, name: str, rows: int, draw: dict[str, Any], **world: float) -> Step:
    """Dialogues of many turns as people demonstrate them."""
    of = {"world": world, "train": {"rows": rows, **draw}, "valid": draw}
    return laid(name, "data", numbers.budget, recipe="miniature_dialogues", recipe__sources__0__miniature=of)


def _mixture(numbers: Settings, name: str, first: str, second: str) -> Step:
    """Conversations of two datasets."""
    return laid(
        name,
        "data",
        numbers.budget,
        recipe="miniature_rehearsed",
        recipe__sources__0__dataset=first,
        recipe__sources__1__dataset=second,
        tokenizer=numbers.tokenizer,
    )


def _sft(numbers: Settings, name: str, data: str, seed: int, weights: str, steps: int) -> Step:
    return laid(
        name,
        "sft",
        numbers.budget,
        model__weights=weights,
        data=data,
        seed=seed,
        optimisation__steps=steps,
        optimisation__batch=numbers.batch,
        optimisation__learning_rate=numbers.learning_rate,
    )
