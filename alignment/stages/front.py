"""KL–reward fronts of runs, merges and sweeps: what dominates, what is above at equal KL, with intervals over seeds.

Reads runs of stage=rl (a line of its looks for each) and evaluations (lines of models, as ``lines`` says). The two were
measured on different prompts and are not compared with each other. ``fronts.json`` holds, lines and points by name:

* ``lines``: ``kind``, ``seeds`` and ``points``, each with ``label``, ``kl``, ``scores``, bounds ``low`` and ``high``
  (``kl`` and every score; null where nothing tells them), ``seeds`` (each seed's own value by measure), ``model`` (the
  fingerprint of the first seed's), ``eta``, ``step``;
* by score: ``pareto`` (``[line, place]``), ``hypervolume`` (by line, against ``worst``), ``hypervolume_differences``
  and ``matched`` (by ``a - b``; the latter at several KLs), ``curvature`` (by line with η: ``bulge``,
  ``second_differences``, ``shape`` of score and KL), ``claims``;
* ``rules``: the look at which each line passes ``kl_bound``, and how many ``iterations`` improve on the one before.

What has an interval is ``estimate``, ``low``, ``high`` and ``seeds``; ``intervals`` says over what.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignment import console, files
from alignment.artifacts import Artifact, Outcome
from alignment.errors import UserError, nearest
from alignment.settings import Settings as StrictSettings
from alignment.settings import identity, reference, text

if TYPE_CHECKING:
    from alignment.evals.fronts import Cloud, Numbers

ALGORITHM_VERSION = 1
RESULTS, PLOTS = "fronts.json", "plots.html"
MINIATURE = "mini:versions"
SHOWN = ("proxy", "gold")


class Line(StrictSettings):
    """Evaluated models that belong together."""

    name: str = identity("what the line is called")
    kind: Literal["sweep", "points"] = identity("sweep: (1 − η) start + η end, over η; points: anything else")
    models: list[str] = identity(
        "names in the evaluations, in the order of the line; of an arm, the arm's", min_length=1
    )
    etas: list[float] | None = identity("sweep: the η of each, rising; points: null")


class Claim(StrictSettings):
    """A model that is said to score no less than others."""

    model: str = identity("its name in the evaluations")
    than: list[str] = identity("the others; it is compared with the best of them", min_length=1)


class Settings(StrictSettings):
    """``stage=front``."""

    runs: list[str] | None = reference("runs of stage=rl from one start, [a,b,…]; null has none")
    run_names: list[str] | None = text(
        "a name for each of them, [a,b,…]; those of one name are seeds of one line; null takes the steps' names"
    )
    evaluations: list[str] | None = reference(
        "evaluations with a KL, on the same prompts, [a,b,…], each a seed (or several, by its arms); null has none, "
        "or the miniature's where no runs are named either"
    )
    proxy: list[str] | None = text(
        "each evaluation's measure of the reward that was learned from, [reward_a,b,…]; null: the only one it has"
    )
    lines: list[Line] | None = identity("lines of evaluated models; null is one, of all models by rising KL")
    pairs: list[list[str]] | None = identity("lines to compare, [[a,b],…]: a less b; null compares all of one origin")
    claims: list[Claim] = identity("models to compare by themselves")
    iterations: list[str] | None = identity("lines of which each is to improve on the one before; null has none")
    scores: list[str] | None = identity("to measure fronts by; null takes proxy and gold, where they are")
    kls: list[float] | None = identity("KLs at which lines are compared; null takes five that both reach")
    kl_bound: float | None = identity("KL beyond which a run would end, nats an answer; null: none", gt=0)
    worst_kl: float | None = identity(
        "KL of the hypervolume's reference point; null takes the largest of any point. Its score is the least", gt=0
    )
    confidence: float = identity("of every interval", gt=0, lt=1)
    seed: int = identity("of the bootstrap over prompts, where there is one seed", ge=0)

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "settings") -> Settings:
        """Validate, the rules between keys included."""
        if values.get("runs") is None and values.get("evaluations") is None:
            values = {**values, "evaluations": [MINIATURE]}
        settings: Settings = super().parse(values, where)
        _check(settings)
        return settings


def _check(settings: Settings) -> None:
    if not settings.runs and not settings.evaluations:
        raise UserError("runs, evaluations: there is nothing to measure", remedy="Name runs, evaluations, or both.")
    for key, names, of in (("run_names", settings.run_names, "runs"), ("proxy", settings.proxy, "evaluations")):
        wanted = len(getattr(settings, of) or [])
        if names is not None and len(names) != wanted:
            raise UserError(f"{key}: {len(names)} names for {wanted} {of}", remedy="Give one for each.")
    if settings.evaluations and settings.lines == []:
        raise UserError("lines=[]: the evaluations would not be looked at", remedy="Say lines=null, or name lines.")
    if not settings.evaluations and (settings.lines or settings.claims):
        raise UserError("lines, claims: there are no evaluations", remedy="Name some, or say lines=null claims=[].")
    lines = settings.lines or []
    names = [line.name for line in lines] + list(dict.fromkeys(settings.run_names or []))
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"lines: {twice} is there twice", remedy="Give every line a name of its own.")
    for line in lines:
        _check_etas(line)
    for pair in settings.pairs or []:
        if len(pair) != 2:
            raise UserError(f"pairs: {pair} names {len(pair)} lines", remedy="Name two for each comparison.")


def _check_etas(line: Line) -> None:
    if line.kind == "points":
        if line.etas is not None:
            raise UserError(f"lines: {line.name} is kind=points and has etas", remedy="Say kind=sweep, or etas=null.")
        return
    etas = line.etas or []
    if len(etas) != len(line.models) or any(a >= b for a, b in pairwise(etas)):
        raise UserError(
            f"lines: {line.name} has {len(line.models)} models and etas={line.etas}",
            remedy="A sweep has one η for each model, and they rise.",
        )


def run(settings: Settings, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """Write everything measured (fronts.json) and its figures (plots.html), and print the tables."""
    from alignment.reporting import front_plots, front_tables

    clouds = _clouds(settings, inputs)
    told = _told(clouds, settings)
    files.write_json(out / RESULTS, told)
    files.write_atomic(out / PLOTS, front_plots.page(told))
    front_tables.show(told)
    console.say(f"  {out / PLOTS} shows the fronts", style="dim")
    metrics = {
        f"{line}/hypervolume_{score}": one["estimate"]
        for score, lines in told["hypervolume"].items()
        for line, one in lines.items()
    }
    notes = {"intervals": told["intervals"], "lines": list(told["lines"])}
    return Outcome("evaluation", metrics, next(iter(metrics)), notes=notes)


def _clouds(settings: Settings, inputs: Mapping[str, Artifact]) -> dict[str, Cloud]:
    """What can be compared, by origin."""
    from alignment.evals import front_points, fronts
    from alignment.evals.names import names_of

    clouds: dict[str, Cloud] = {}
    if settings.runs:
        runs = [inputs[f"runs.{place}"].need("policy") for place in range(len(settings.runs))]
        clouds["runs"] = front_points.of_runs(runs, settings.run_names or names_of(runs))
    if settings.evaluations:
        some = [inputs[f"evaluations.{place}"].need("evaluation") for place in range(len(settings.evaluations))]
        wanted = [front_points.Wanted(one.name, one.kind, one.models, one.etas) for one in settings.lines or []]
        claims = [fronts.Claim(one.model, tuple(one.than)) for one in settings.claims]
        clouds["evaluations"] = front_points.of_evaluations(
            some, settings.proxy, wanted or [front_points.everything(some)], claims
        )
    names = [line.name for cloud in clouds.values() for line in cloud.lines]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(
            f"{twice}: two lines have this name",
            remedy="Name lines of runs with run_names=, of evaluations with lines=.",
        )
    for name in [*(name for pair in settings.pairs or [] for name in pair), *(settings.iterations or [])]:
        if name not in names:
            raise UserError(f"{name}: there is no such line", remedy=nearest(name, names))
    for a, b in [*(settings.pairs or []), *pairwise(settings.iterations or [])]:
        if not any({a, b} <= {line.name for line in cloud.lines} for cloud in clouds.values()):
            raise UserError(
                f"{a} and {b} were measured on different prompts",
                cause="Runs look at their own held-out prompts, evaluations at theirs.",
                remedy="Evaluate the runs' policies together with the others.",
            )
    return clouds


def _numbers(cloud: Cloud, settings: Settings, scores: Sequence[str]) -> Numbers:
    """What is asked of a cloud."""
    import numpy as np

    from alignment.evals.fronts import KL, Claim, Numbers

    names = [line.name for line in cloud.lines]
    pairs = list(combinations(names, 2)) if settings.pairs is None else [(a, b) for a, b in settings.pairs]
    later = [(b, a) for a, b in pairwise(settings.iterations or [])]
    pairs = [*dict.fromkeys((a, b) for a, b in pairs if (b, a) not in later and (a, b) not in later), *later]
    worst_kl = settings.worst_kl or float(np.nanmax(cloud.means[KL]))
    worst = {score: float(np.nanmin(cloud.means[score])) for score in scores}
    claims = [Claim(one.model, tuple(one.than)) for one in settings.claims]
    kls = None if settings.kls is None else [*dict.fromkeys(settings.kls)]
    return Numbers(pairs, claims, kls, (worst_kl, worst), settings.confidence, settings.seed)


def _told(clouds: Mapping[str, Cloud], settings: Settings) -> dict[str, Any]:
    """What fronts.json holds."""
    from alignment.evals import fronts

    scores = _scores(clouds, settings)
    told: dict[str, Any] = {
        "confidence": settings.confidence,
        "scores": scores,
        "intervals": {origin: _over(cloud) for origin, cloud in clouds.items()},
        "worst": {},
        "lines": {},
        "pareto": {score: [] for score in scores},
        **{key: {score: {} for score in scores} for key in fronts.BY_LINE},
        "claims": {score: [] for score in scores},
    }
    for origin, cloud in clouds.items():
        here = [score for score in scores if score in cloud.scores]
        numbers = _numbers(cloud, settings, here)
        told["worst"][origin] = {"kl": numbers.worst[0], "scores": numbers.worst[1]}
        told["lines"] |= fronts.lines(cloud, numbers)
        for score in here:
            told["pareto"][score] += fronts.pareto(told["lines"], [line.name for line in cloud.lines], score)
            found = fronts.measured(cloud, score, numbers)
            for key in fronts.BY_LINE:
                told[key][score] |= found[key]
            told["claims"][score] += found["claims"]
    return told | {"rules": fronts.rules(told, settings.kl_bound, settings.iterations or [])}


def _scores(clouds: Mapping[str, Cloud], settings: Settings) -> list[str]:
    known = list(dict.fromkeys(score for cloud in clouds.values() for score in cloud.scores))
    wanted = [score for score in SHOWN if score in known] if settings.scores is None else settings.scores
    unknown = next((score for score in wanted if score not in known), None)
    if unknown is not None or not wanted:
        raise UserError(
            f"scores={settings.scores}: {unknown or 'neither proxy nor gold'} was not measured",
            remedy=f"There are {', '.join(known)}.",
        )
    return wanted


def _over(cloud: Cloud) -> str:
    """What the intervals are of."""
    seeds = len(next(iter(cloud.means.values())))
    if seeds > 1:
        return f"Student's, over {seeds} seeds"
    return "bootstrap over prompts, of one seed" if cloud.answers else "none: one seed, and no answers by prompt"
