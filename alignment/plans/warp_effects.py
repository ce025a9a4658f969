"""What WARP's parts do in a world whose truth is known: anchors, slerp, LITI, iterations, over several seeds, paired.

On the chat model and the reward models of ``rl_effects``: for every seed a WARP with all its merges and sweeps, one run
under a fixed anchor with the batches of all iterations, and rl_effects' RLOO under fixed anchors and a moving one.
Everything is measured on the same prompts, by the reward that was learned from and by gold.
"""

from __future__ import annotations

from typing import Any

from alignment.plans import rl_effects
from alignment.plans.step import Step, laid
from alignment.plans.warp import START, Loop, batches, warp_steps
from alignment.settings import identity

NEXT = (
    "python -m alignment.run stage=show target=latest:front          what is above what, by proxy and by gold",
    "plots.html in that folder, in a browser                         the fronts, at equal KL, along η",
)
BY_BETA, LONG = "fixed anchors by β", "fixed anchor, all batches"
"""Lines of evaluated models beside the sweeps."""
POLICY = "step:chat"


class Settings(rl_effects.Settings):
    """The plan's numbers: those of rl_effects, and WARP's."""

    iterations: int = identity("iterations of WARP (I)", ge=2)
    runs: int = identity("runs of each (M)", ge=2)
    steps: list[int] = identity("batches of a run, by iteration; the last holds for all further ones", min_length=1)
    eta: float = identity("how far an iteration's start moves towards what was merged (η)", gt=0, lt=1)
    etas: list[float] = identity("η of every iteration's sweep, rising from 0 to 1", min_length=3)
    beta: float = identity("weight of the KL divergence, in WARP and under its fixed anchor", ge=0)
    rate: float = identity("how fast WARP's anchors follow (μ)", gt=0, le=1)
    warp_learning_rate: float = identity("of WARP's runs and of that under its fixed anchor", gt=0, le=1)


def steps(settings: Settings) -> list[Step]:
    """The models that all begin with, every seed's arms and their measurement, and the fronts over all seeds."""
    return [
        *rl_effects.chat_steps(settings),
        *(step for seed in settings.seeds for step in _seed(settings, seed)),
        _front(settings),
    ]


def _loop(numbers: Settings, seed: int) -> Loop:
    return Loop(f"s{seed}_warp", POLICY, numbers.iterations, numbers.runs, numbers.eta, numbers.etas, every=True)


def _anchored(numbers: Settings, seed: int) -> dict[str, str]:
    """The arms under fixed anchors and the moving one, by what they are called in evaluations."""
    names = [*(f"rloo_{beta:g}" for beta in numbers.betas), f"ema_{numbers.ema_beta:g}"]
    return {name: f"step:{name}_{seed}" for name in names} | {"warp_fixed": f"step:s{seed}_warp_fixed"}


def _seed(numbers: Settings, seed: int) -> list[Step]:
    """A reward model, all arms under it, and their measurement."""
    loop, anchored = _loop(numbers, seed), _anchored(numbers, seed)
    rule: dict[str, Any] = {
        "reward__model": f"step:reward_{seed}",
        "estimating__kind": "rloo",
        "watching__rewards": ["gold:overall"],
    }
    models = [*loop.models(), *anchored.values()]
    return [
        rl_effects.reward_step(numbers, seed),
        *rl_effects.anchored_steps(numbers, seed),
        *warp_steps(
            loop.prefix,
            policy=POLICY,
            prompts=numbers.prompts,
            reward=rule,
            iterations=loop.iterations,
            runs=loop.runs,
            steps=numbers.steps,
            eta=loop.eta,
            budget=numbers.budget,
            etas=loop.etas,
            every=True,
            beta=numbers.beta,
            rate=numbers.rate,
            learning_rate=numbers.warp_learning_rate,
            seed=100 * seed,
        ),
        laid(
            f"s{seed}_warp_fixed",
            "rl",
            numbers.budget,
            policy=POLICY,
            prompts=numbers.prompts,
            anchoring__kind="fixed",
            anchoring__beta=numbers.beta,
            updating__steps=sum(batches(numbers.steps, one + 1) for one in range(loop.iterations)),
            updating__learning_rate=numbers.warp_learning_rate,
            seed=100 * seed,
            **rule,
        ),
        laid(
            f"evaluated_{seed}",
            "evaluate",
            numbers.budget,
            models=models,
            names=[*map(loop.name, loop.models()), *anchored],
            prompts=numbers.prompts,
            conversations=numbers.conversations,
            rewards=[f"step:reward_{seed}"],
            reference=POLICY,
            count=numbers.count,
        ),
    ]


def _front(numbers: Settings) -> Step:
    """The claims of the paper, each as a difference between seeds' pairs."""
    loop = _loop(numbers, numbers.seeds[0])
    moving, fixed = f"moving anchor, β {numbers.ema_beta:g}", f"fixed anchor, β {numbers.ema_beta:g}"
    moving_short, fixed_long = f"WARP's first run, β {numbers.beta:g}", f"fixed anchor, β {numbers.beta:g}, all batches"
    looks = {
        moving: f"ema_{numbers.ema_beta:g}_{{seed}}",
        fixed: f"rloo_{numbers.ema_beta:g}_{{seed}}",
        moving_short: "s{seed}_warp_1_run_1",
        fixed_long: "s{seed}_warp_fixed",
    }
    runs = [(name, f"step:{step.format(seed=seed)}") for name, step in looks.items() for seed in numbers.seeds]
    by_beta = [START, *(f"rloo_{beta:g}" for beta in sorted(numbers.betas, reverse=True))]
    last = f"iteration {loop.iterations}"
    return laid(
        "front",
        "front",
        numbers.budget,
        runs=[run for _, run in runs],
        run_names=[name for name, _ in runs],
        evaluations=[f"step:evaluated_{seed}" for seed in numbers.seeds],
        lines=[
            *loop.lines(),
            {"name": BY_BETA, "kind": "points", "models": by_beta, "etas": None},
            {"name": LONG, "kind": "points", "models": [START, "warp_fixed"], "etas": None},
        ],
        pairs=[[moving, fixed], [moving_short, fixed_long], [last, BY_BETA], [last, LONG]],
        claims=loop.claims(),
        iterations=[line["name"] for line in loop.lines()],
    )
