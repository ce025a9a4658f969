"""WARP (arXiv 2406.16768, algorithm 1): runs under moving anchors, merged by slerp, drawn back, and on from there.

An iteration trains M policies from one start, each under an anchor that follows it; they differ in the order of their
prompts. Slerp merges them, and the next iteration starts a part η of the way from its own start to the merged one
(LITI). At the end a sweep of η from the very first start to what was merged last gives the front to choose from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from alignment.plans.step import Step, laid
from alignment.settings import Settings as StrictSettings
from alignment.settings import identity, reference

NEXT = (
    "python -m alignment.run stage=show target=latest:front          fronts, and which line is above which",
    "python -m alignment.run stage=show target=latest:evaluated      every run and merge: gold, proxy and KL",
    "python -m alignment.run stage=chat model=latest:warp_2          talk to what the second iteration came to",
)
START = "sft"
"""What the policy that everything starts from is called in evaluations and lines."""
MOVING, FIXED = "moving anchor, looks", "fixed anchor, looks"
"""Lines of runs."""


@dataclass(frozen=True)
class Loop:
    """The shape of a WARP, and what its steps are called.

    With prefix ``warp``, for iteration i and run m, each from 1: ``warp_i_run_m``; ``warp_i_slerp`` and
    ``warp_i_linear``, the runs merged; ``warp_i``, the LITI point, from which iteration i + 1 starts; and
    ``warp_i_eta_0.5``, a point of the sweep from ``policy`` (η = 0) to ``warp_i_slerp`` (η = 1), which only the last
    iteration has unless ``every``. In the first one the point at ``eta`` is ``warp_1``.
    """

    prefix: str
    policy: str
    """A reference to the start."""
    iterations: int
    runs: int
    eta: float
    etas: Sequence[float]
    """Of the sweep, rising; 0 and 1 among them if the line is to have its ends."""
    every: bool

    def start(self, iteration: int) -> str:
        """What an iteration starts from."""
        return self.policy if iteration == 1 else f"step:{self.prefix}_{iteration - 1}"

    def of_runs(self, iteration: int) -> list[str]:
        """The iteration's runs."""
        return [f"step:{self.prefix}_{iteration}_run_{number}" for number in range(1, self.runs + 1)]

    def swept(self) -> list[int]:
        """The iterations that have a sweep."""
        return list(range(1 if self.every else self.iterations, self.iterations + 1))

    def sweep(self, iteration: int) -> dict[float, str]:
        """The model at every η between the start of all and the iteration's slerp."""
        name = f"step:{self.prefix}_{iteration}"
        known = {0.0: self.policy, 1.0: f"{name}_slerp"} | ({self.eta: name} if iteration == 1 else {})
        return {eta: known.get(eta, f"{name}_eta_{eta:g}") for eta in self.etas}

    def models(self) -> list[str]:
        """Everything that is made, the start before it, each once."""
        found = [self.policy]
        for iteration in range(1, self.iterations + 1):
            name = f"step:{self.prefix}_{iteration}"
            found += [*self.of_runs(iteration), f"{name}_linear", f"{name}_slerp", name]
        found += [model for iteration in self.swept() for model in self.sweep(iteration).values()]
        return list(dict.fromkeys(found))

    def name(self, model: str) -> str:
        """What a model is called in evaluations, whatever the prefix: ``sft``, ``warp_1_slerp``."""
        return START if model == self.policy else model.removeprefix("step:").replace(self.prefix, "warp", 1)

    def lines(self) -> list[dict[str, Any]]:
        """The sweeps, for ``stage=front``."""
        return [
            {
                "name": f"iteration {iteration}",
                "kind": "sweep",
                "models": [self.name(model) for model in self.sweep(iteration).values()],
                "etas": [float(eta) for eta in self.etas],
            }
            for iteration in self.swept()
        ]

    def claims(self) -> list[dict[str, Any]]:
        """That slerp scores no less than linear, and no less than the better run, for ``stage=front``."""
        return [
            {"model": f"warp_{iteration}_slerp", "than": than}
            for iteration in range(1, self.iterations + 1)
            for than in ([f"warp_{iteration}_linear"], [self.name(run) for run in self.of_runs(iteration)])
        ]


def warp_steps(
    prefix: str,
    *,
    policy: str,
    prompts: str,
    reward: Mapping[str, Any],
    iterations: int,
    runs: int,
    steps: int | Sequence[int],
    eta: float,
    budget: Mapping[str, float],
    etas: Sequence[float] = (),
    every: bool = False,
    beta: float | None = None,
    rate: float | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
    preset: str | None = None,
    **learning: Any,
) -> list[Step]:
    """Every run and every merge as a step of its own, named as :class:`Loop` says; the plan evaluates them itself.

    With prefix ``warp``: ``warp_1_run_1``, ``warp_1_run_2``, …, ``warp_1_linear``, ``warp_1_slerp``, ``warp_1`` (LITI),
    ``warp_2_run_1``, …, and where there are ``etas`` the sweep, ``warp_2_eta_0.1``, … ``steps`` are the batches of a
    run, by iteration if several (the last holds for all further ones). ``reward`` and ``learning`` are settings of
    stage=rl (``reward__model``, ``watching__rewards``, …) over its ``preset``; what is None stays as there. Runs take
    the seeds from ``seed`` on, one after the other.
    """
    loop = Loop(prefix, policy, iterations, runs, eta, etas, every)
    made: list[Step] = []
    for iteration in range(1, iterations + 1):
        start, name = loop.start(iteration), f"{prefix}_{iteration}"
        members = loop.of_runs(iteration)
        made += [
            laid(
                run.removeprefix("step:"),
                "rl",
                budget,
                preset=preset,
                policy=start,
                prompts=prompts,
                anchoring__kind="ema",
                anchoring__rate=rate,
                anchoring__beta=beta,
                updating__steps=batches(steps, iteration),
                updating__learning_rate=learning_rate,
                seed=seed + (iteration - 1) * runs + place,
                watching__reference=None if iteration == 1 else policy,
                **reward,
                **learning,
            )
            for place, run in enumerate(members)
        ]
        made += [
            laid(f"{name}_linear", "merge", budget, models=members, method="linear", init=start),
            laid(f"{name}_slerp", "merge", budget, models=members, method="slerp", groups="layer", init=start),
            _drawn_back(name, f"{name}_slerp", start, eta, budget),
        ]
    for iteration in loop.swept():
        there = {f"step:{step.name}" for step in made} | {policy}
        made += [
            _drawn_back(model.removeprefix("step:"), f"{prefix}_{iteration}_slerp", policy, part, budget)
            for part, model in loop.sweep(iteration).items()
            if model not in there
        ]
    return made


def batches(steps: int | Sequence[int], iteration: int) -> int:
    """Of a run of this iteration."""
    return steps if isinstance(steps, int) else steps[min(iteration, len(steps)) - 1]


def _drawn_back(name: str, merged: str, start: str, eta: float, budget: Mapping[str, float]) -> Step:
    """A part η of the way from a start to what was merged."""
    return laid(name, "merge", budget, models=[f"step:{merged}"], method="liti", eta=eta, init=start)


# ── the plan ─────────────────────────────────────────────────────────────────────────────────────


class Settings(StrictSettings):
    """The plan's numbers; what is null is the stage's own, or its preset's."""

    policy: str = reference("the policy that everything starts from")
    prompts: str = reference("prompts to learn from; the test split measures")
    conversations: str = reference("conversations whose perplexity is measured beside")
    reward: str = reference("what an answer is worth: the proxy")
    watch: list[str] | None = reference("scorers that look on at every run, [a,b,…]")
    preset: Literal["warp"] | None = identity("take a run's numbers from stage=rl/warp, WARP's; null: stage=rl")
    iterations: int = identity("iterations (I)", ge=1)
    runs: int = identity("runs of each (M)", ge=2)
    steps: list[int] = identity("batches of a run, by iteration; the last holds for all further ones", min_length=1)
    eta: float = identity("how far an iteration's start moves towards what was merged (η)", gt=0, le=1)
    etas: list[float] = identity("η of the sweep, rising from 0, the start, to 1, the slerp", min_length=3)
    swept: Literal["last", "every"] = identity("which iterations get a sweep; every tells whether they improve")
    beta: float | None = identity("weight of the KL divergence", ge=0)
    rate: float | None = identity("how fast the anchor follows (μ)", gt=0, le=1)
    learning_rate: float | None = identity("of every run", gt=0, le=1)
    kl_bound: float | None = identity(
        "KL to the policy beyond which a run ends, nats an answer, whatever the iteration", gt=0
    )
    fixed: bool = identity("beside it a run under a fixed anchor, with the batches of all iterations")
    seed: int = identity("of the first run; each further one has the next", ge=0)
    count: int = identity("prompts to measure by", ge=1)
    budget: dict[str, float] = identity("seconds that each step may take on two CPU cores")


def steps(settings: Settings) -> list[Step]:
    """The loop, a fixed anchor beside it, the measurement of everything, and the fronts."""
    loop = Loop(
        "warp",
        settings.policy,
        settings.iterations,
        settings.runs,
        settings.eta,
        settings.etas,
        every=settings.swept == "every",
    )
    said: dict[str, Any] = {
        "reward__model": settings.reward,
        "watching__rewards": settings.watch,
        "watching__kl_bound": settings.kl_bound,
    }
    made = warp_steps(
        loop.prefix,
        policy=loop.policy,
        prompts=settings.prompts,
        reward=said,
        iterations=loop.iterations,
        runs=loop.runs,
        steps=settings.steps,
        eta=loop.eta,
        budget=settings.budget,
        etas=loop.etas,
        every=loop.every,
        beta=settings.beta,
        rate=settings.rate,
        learning_rate=settings.learning_rate,
        seed=settings.seed,
        preset=settings.preset,
    )
    if settings.fixed:
        made.append(_fixed(settings, said))
    return [*made, *_measured(settings, loop)]


def _fixed(numbers: Settings, said: Mapping[str, Any]) -> Step:
    """One run under a fixed anchor, as long as all iterations together."""
    return laid(
        "warp_fixed",
        "rl",
        numbers.budget,
        preset=numbers.preset,
        policy=numbers.policy,
        prompts=numbers.prompts,
        anchoring__kind="fixed",
        anchoring__beta=numbers.beta,
        updating__steps=sum(batches(numbers.steps, one + 1) for one in range(numbers.iterations)),
        updating__learning_rate=numbers.learning_rate,
        seed=numbers.seed,
        **said,
    )


def _measured(numbers: Settings, loop: Loop) -> list[Step]:
    """Every model on the same prompts, and the fronts."""
    models = [*loop.models(), *(["step:warp_fixed"] if numbers.fixed else [])]
    lines, looks = loop.lines(), [(MOVING, run) for run in loop.of_runs(1)]
    for later in range(2, loop.iterations + 1):
        looks += [(f"{MOVING} of iteration {later}", run) for run in loop.of_runs(later)]
    pairs: list[list[str]] = []
    if numbers.fixed:
        lines.append({"name": "fixed anchor", "kind": "points", "models": [START, "warp_fixed"], "etas": None})
        looks.append((FIXED, "step:warp_fixed"))
        pairs = [[MOVING, FIXED], [f"iteration {loop.iterations}", "fixed anchor"]]
    return [
        laid(
            "evaluated",
            "evaluate",
            numbers.budget,
            models=models,
            names=[loop.name(model) for model in models],
            prompts=numbers.prompts,
            conversations=numbers.conversations,
            rewards=[numbers.reward],
            reference=numbers.policy,
            count=numbers.count,
        ),
        laid(
            "front",
            "front",
            numbers.budget,
            runs=[run for _, run in looks],
            run_names=[name for name, _ in looks],
            evaluations=["step:evaluated"],
            lines=lines,
            pairs=pairs,
            claims=loop.claims(),
            iterations=[line["name"] for line in loop.lines()] if len(loop.swept()) > 1 else None,
            kl_bound=numbers.kl_bound,
            seed=numbers.seed,
        ),
    ]
