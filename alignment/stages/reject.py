"""Rejection sampling: several answers to each prompt, scored, and the best one kept to learn from.

Llama 2 (arXiv 2307.09288, §3.2.3) trains a version on the best of K answers of the one before it. Its first three
versions learned from the last iteration alone and lost skills; later ones learned from the best of all iterations,
which ``pool=all`` does: the rows of earlier artifacts, with their scores, stand for election again.

Answers are compared by the reward's combined score as its rule gives it. Whitening changes no order, and an answer
that never ended loses to any that did, so neither those numbers of the reward nor a price for length are taken here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from alignment import console, files
from alignment.artifacts import Artifact, Outcome
from alignment.chat.types import Messages, Prompt
from alignment.data.rows import Split
from alignment.errors import UserError
from alignment.parts import FOLDER, in_parts
from alignment.sampling.decoding import Decoding
from alignment.sampling.endpoint import EndpointSettings
from alignment.scoring.combine import RewardSettings
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, identity_values, reference
from alignment.training.engine import EngineSettings

if TYPE_CHECKING:
    from alignment.data.candidates import Candidate
    from alignment.data.derive import Place
    from alignment.data.pool import Election, Pooled
    from alignment.evals.best_of import Drawn
    from alignment.scoring.candidates import Drawer
    from alignment.scoring.combine import Reward
    from alignment.scoring.scorer import Scorer
    from alignment.training.engine import Engine

ALGORITHM_VERSION = 1
RESULTS, PLOTS = "results.json", "plots.html"
ANSWERS_A_PART = 1_024
"""Answers that are drawn and scored, and then kept, together."""
MOST = 5.0
"""The highest temperature, as everywhere."""


class Settings(StrictSettings):
    """``stage=reject``."""

    policy: str = reference("the policy that answers", kinds=("policy", "endpoint"))
    prompts: str = reference("a dataset of prompts", kinds=("dataset",))
    reward: RewardSettings
    pool: Literal["last", "all"] = identity("choose among this iteration's answers, or with those of earlier ones")
    earlier: list[str] | None = reference(
        "pool=all: earlier artifacts of this stage, [a,b,…]; what they kept stands for election again, scored anew "
        "where their reward was another; null for none",
        kinds=("dataset",),
    )
    splits: list[Split] = identity("splits of the prompts to take; rows stay in theirs", min_length=1)
    count: int | None = identity("prompts at most in each split, the first; null takes all", ge=1)
    samples: int = identity("answers drawn for every prompt", ge=1)
    temperatures: list[float] = identity("to choose among by the expected score of the best answer", min_length=1)
    tune_prompts: int = identity("prompts on which the temperature is chosen, the first", ge=1)
    top_p: float = identity("the smallest set of tokens with this share of the probability", gt=0, le=1)
    max_new_tokens: int = identity("length of an answer at most", ge=1)
    unfinished: Literal["drop", "keep"] = identity("what becomes of a prompt to which no answer has ended")
    confidence: float = identity("of every interval", gt=0, lt=1)
    seed: int = identity(
        "of the draws, whatever the temperature, and the bootstrap; one of its own per iteration", ge=0
    )
    endpoint: EndpointSettings = execution("how a server is asked, where the policy is behind one")
    engine: EngineSettings = execution("where and how it runs")

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "settings") -> Settings:
        """Validate, the rules between keys included."""
        settings: Settings = super().parse(values, where)
        for temperature in settings.temperatures:
            if not 0 < temperature <= MOST:
                raise UserError(
                    f"temperatures: {temperature:g} is not above 0 and at most {MOST:g}",
                    cause="At 0 all answers to a prompt are the same." if temperature == 0 else "",
                )
        for name, listed in (("temperatures", settings.temperatures), ("splits", settings.splits)):
            if len(set(listed)) < len(listed):
                raise UserError(f"{name}={listed}: names one twice")
        if settings.earlier and settings.pool == "last":
            raise UserError(
                f"pool=last: does not look at earlier={settings.earlier}",
                remedy="Say pool=all to choose among all iterations, or earlier=null.",
            )
        _check_reward(settings.reward)
        return settings


def _check_reward(reward: RewardSettings) -> None:
    """Refuse what would be accepted and not used."""
    unused = {"whiten": "none", "unfinished": None, "length_penalty": 0}
    for name, nothing in unused.items():
        value = getattr(reward, name)
        if value != nothing:
            raise UserError(
                f"reward.{name}={value}: has no part in choosing the best answer",
                cause="Answers are compared by the combined score as the rule gives it; unfinished ones lose anyway.",
                remedy=f"Say reward.{name}={'null' if nothing is None else nothing}.",
            )


class Offered(NamedTuple):
    """A prompt of the dataset, and why it is not asked, if it is not."""

    place: Place
    prompt: Prompt
    left_out: str


def run(settings: Settings, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """Write a dataset of conversations; every prompt and answer with its scores; curves, and a page of figures."""
    from alignment.evals import best_of, pool_gain
    from alignment.reporting import best_of as tables
    from alignment.reporting import best_of_plots
    from alignment.scoring.candidates import Drawer, check_room
    from alignment.scoring.opening import open_respondent
    from alignment.training.engine import resolve

    _check(settings, inputs)
    offered = _offered(settings, inputs["prompts"])
    asked = [one for one in offered if not one.left_out]
    engine, journal = resolve(settings.engine), out / FOLDER / "journal.jsonl"
    respondent = open_respondent(inputs["policy"], engine, settings.endpoint, journal, at="policy")
    prompts = [one.prompt for one in asked]
    check_room(prompts, respondent, settings.max_new_tokens)
    pool = _pool(settings, inputs)
    reward = _open_reward(settings, inputs, engine, [*prompts, *(one.prompt for one in chain(*pool))])
    pool = _comparable(settings, inputs, pool, reward, out)
    drawer = Drawer(respondent, reward, _gold(inputs["prompts"]), len(pool) + 1)
    tuned = asked[: settings.tune_prompts] if len(settings.temperatures) > 1 else []
    answers = settings.samples * (len(asked) + len(tuned) * (len(settings.temperatures) - 1))
    with console.progress("reject", answers, "answers") as progress:
        drawing = Drawing(settings, drawer, progress, out)
        tuning = drawing.tune(tuned)
        temperature = best_of.best_temperature(tuning) if tuning else settings.temperatures[0]
        drawn = drawing.draw_all(asked, len(tuned), temperature)
        seen, election, metrics = _write(settings, inputs, offered, drawn, pool, out)
    stood = [*zip(settings.earlier or [], map(len, pool), strict=True), (respondent.name, len(seen.tags))]
    results = {
        "temperature": temperature,
        "tuning": tuning,
        **best_of.results(seen, election.rows.total(), election.tags, settings.confidence, settings.seed),
        "pool": pool_gain.iterations(stood, election.rows),
        "gain": pool_gain.gain(out, len(pool) + 1, seen.keys, settings.unfinished, settings.confidence, settings.seed),
    }
    files.write_json(out / RESULTS, results)
    files.write_atomic(out / PLOTS, best_of_plots.page(results))
    tables.show(results)
    notes = engine.notes() | {"kind": "conversations", "policy": respondent.name}
    return Outcome("dataset", metrics | best_of.metrics(results), "best", notes=notes)


# ── who stands ───────────────────────────────────────────────────────────────────────────────────


def _check(settings: Settings, inputs: Mapping[str, Artifact]) -> None:
    """Refuse, before anything is opened, what could only end badly."""
    from alignment.data import store

    inputs["policy"].need("policy", "endpoint")
    kind = store.card(inputs["prompts"].need("dataset").path)["kind"]
    if kind != "prompts":
        raise UserError(
            f"prompts={settings.prompts}: holds {kind}",
            cause="A policy answers prompts.",
            remedy="Give a dataset whose recipe has kind: prompts.",
        )
    found: dict[str, str] = {}
    for name, artifact in zip(settings.earlier or [], _earlier(settings, inputs), strict=True):
        if artifact.fingerprint in found:
            raise UserError(f"earlier: {found[artifact.fingerprint]} and {name} are the same artifact")
        found[artifact.fingerprint] = name
        if artifact.settings.get("seed") == settings.seed:
            policy = artifact.parents.get("policy")
            same = policy is not None and policy.fingerprint == inputs["policy"].fingerprint
            console.say(
                f"seed={settings.seed}: {name} was drawn with it, too, "
                + (
                    "by the same policy: the same answers come again"
                    if same
                    else "so answers scatter less than fresh ones"
                )
                + "; an iteration should have a seed of its own",
                style="yellow",
            )


def _earlier(settings: Settings, inputs: Mapping[str, Artifact]) -> list[Artifact]:
    return [inputs[_parent(place)].need("dataset") for place in range(len(settings.earlier or []))]


def _parent(place: int) -> str:
    """What the ledger calls an earlier artifact: its key in the settings."""
    return f"earlier.{place}"


def _offered(settings: Settings, dataset: Artifact) -> list[Offered]:
    """Every prompt of the splits, in order. Raises :class:`UserError` where there is none to ask."""
    from alignment.data import store
    from alignment.data.derive import Place

    offered, turns = list[Offered](), set[Messages]()
    for split in settings.splits:
        taken = 0
        for number, prompt in enumerate(store.stream(dataset.path, split), 1):
            assert isinstance(prompt, Prompt)
            left_out = "the same prompt again" if prompt.messages in turns else ""
            if not left_out and taken == settings.count:
                left_out = "beyond the count"
            if not left_out:
                turns.add(prompt.messages)
                taken += 1
            offered.append(Offered(Place("prompts", split, number, prompt.id), prompt, left_out))
    if not turns:
        raise UserError(
            f"prompts={settings.prompts}: there is no prompt in {', '.join(settings.splits)}",
            remedy="Choose another split, or give this one a share in the recipe's `splits`.",
        )
    return offered


# ── rewards ──────────────────────────────────────────────────────────────────────────────────────


def _open_reward(
    settings: Settings, inputs: Mapping[str, Artifact], engine: Engine, prompts: Sequence[Prompt]
) -> Reward:
    """The reward; the miniature's truth is there only where all prompts, the pool's too, are of one world."""
    from alignment.data import store
    from alignment.scoring.combine import open_reward

    datasets = [inputs["prompts"], *_earlier(settings, inputs)]
    shared = store.shared_world(artifact.path for artifact in datasets)
    world = store.world_of(inputs["prompts"].path) if shared else None
    return open_reward(settings.reward, inputs, engine, prompts, world)


def _gold(prompts: Artifact) -> Scorer | None:
    """The truth about the answers, to be looked at; it decides nothing unless the reward names it."""
    from alignment.data import store
    from alignment.scoring.gold import Gold

    world = store.world_of(prompts.path)
    return None if world is None else Gold(world)


def _reward_digest(settings: Settings, inputs: Mapping[str, Artifact]) -> str:
    """What two artifacts share whose scores can be compared. Truth is read from the prompts' dataset, so it counts."""
    scorers = {key: one for key, one in inputs.items() if key.startswith("reward.")}
    known = [inputs["prompts"].fingerprint for one in scorers.values() if one.kind in ("gold", "check")]
    fingerprints = {key: one.fingerprint for key, one in scorers.items()}
    return files.digest_json({"reward": identity_values(settings.reward), "scorers": fingerprints, "truth": known[:1]})


# ── the pool ─────────────────────────────────────────────────────────────────────────────────────


def _pool(settings: Settings, inputs: Mapping[str, Artifact]) -> list[list[Pooled]]:
    """The rows of each earlier artifact; its place in the list, from 1, is the number of its iteration."""
    from alignment.data.pool import pooled

    earlier = _earlier(settings, inputs)
    return [pooled(artifact.path, _parent(place), place + 1) for place, artifact in enumerate(earlier)]


def _comparable(
    settings: Settings, inputs: Mapping[str, Artifact], pool: list[list[Pooled]], reward: Reward, out: Path
) -> list[list[Pooled]]:
    """The pool with scores of our reward. Those of an artifact with the same reward are taken as they are.

    Where it was another, what that reward kept is scored by ours: Llama 2's top-performing samples of all iterations.
    """
    from alignment.data import store
    from alignment.data.candidates import Candidate
    from alignment.scoring.candidates import score_anew

    def work(some: Sequence[Pooled]) -> list[dict[str, Any]]:
        return list(map(asdict, score_anew(reward, [one.prompt for one in some], [one.candidate for one in some])))

    found = []
    for place, (artifact, some) in enumerate(zip(_earlier(settings, inputs), pool, strict=True)):
        if store.card(artifact.path)["reward"] == _reward_digest(settings, inputs):
            found.append(some)
            continue
        with console.progress(f"reject: {artifact.step} anew", len(some), "answers") as progress:

            def done(count: int, before: bool, progress: console.Progress = progress) -> None:
                progress.begin_at(progress.done + count) if before else progress.advance(count)

            rows = in_parts(out, f"anew-{place}", some, ANSWERS_A_PART, work, done)
            found.append([one._replace(candidate=Candidate(**row)) for one, row in zip(some, rows, strict=True)])
    return found


# ── drawing ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Drawing:
    """Draws in parts, which are whole or not there."""

    settings: Settings
    drawer: Drawer
    progress: console.Progress
    out: Path

    def tune(self, tuned: Sequence[Offered]) -> list[dict[str, Any]]:
        """The curves of every temperature; none without prompts."""
        from alignment.evals import best_of

        if not tuned:
            return []
        found = {temperature: best_of.Drawn() for temperature in self.settings.temperatures}
        for temperature, drawn in found.items():
            for one, candidates in zip(tuned, self._draw(tuned, temperature, self._folder(temperature)), strict=True):
                drawn.add(one.prompt, candidates)
        return best_of.tune(found, self.settings.confidence, self.settings.seed)

    def draw_all(self, asked: Sequence[Offered], tuned: int, temperature: float) -> Iterator[list[Candidate]]:
        """The answers to every prompt. Those on which the temperature was chosen, the first, are there already."""
        yield from self._draw(asked[:tuned], temperature, self._folder(temperature), again=True)
        yield from self._draw(asked[tuned:], temperature, "answers")

    def _folder(self, temperature: float) -> str:
        return f"answers-{self.settings.temperatures.index(temperature)}"

    def _draw(
        self, asked: Sequence[Offered], temperature: float, folder: str, *, again: bool = False
    ) -> Iterator[list[Candidate]]:
        """The candidates of each prompt; those that are read ``again`` were counted before."""
        from alignment.data.candidates import Candidate

        samples, finished = self.settings.samples, self.progress.done
        numbers = {name: getattr(self.settings, name) for name in ("samples", "top_p", "max_new_tokens", "seed")}
        decoding = Decoding(temperature=temperature, **numbers)

        def work(some: Sequence[Offered]) -> list[dict[str, Any]]:
            before = self.progress.done
            drawn = self.drawer.draw(
                [one.prompt for one in some],
                decoding,
                lambda count: self.progress.advance(before + count - self.progress.done),
            )
            return [{"candidates": list(map(asdict, candidates))} for candidates in drawn]

        def done(prompts: int, before: bool) -> None:
            nonlocal finished
            finished += prompts * samples
            self.progress.begin_at(finished) if before else self.progress.advance(finished - self.progress.done)

        size = max(1, ANSWERS_A_PART // samples)
        for row in in_parts(self.out, folder, asked, size, work, None if again else done):
            yield [Candidate(**candidate) for candidate in row["candidates"]]


# ── what becomes of prompts and earlier rows ─────────────────────────────────────────────────────


def _write(
    settings: Settings,
    inputs: Mapping[str, Artifact],
    offered: Sequence[Offered],
    drawn: Iterator[list[Candidate]],
    pool: Sequence[Sequence[Pooled]],
    out: Path,
) -> tuple[Drawn, Election, dict[str, float]]:
    """Write the dataset and the tables of candidates: what was drawn, who was chosen, and the dataset's metrics."""
    from alignment.data import candidates
    from alignment.data.derive import Derivation
    from alignment.data.pool import Election
    from alignment.evals.best_of import Drawn

    seen = Drawn()
    parents = {"prompts": inputs["prompts"]}
    parents |= {_parent(place): artifact for place, artifact in enumerate(_earlier(settings, inputs))}
    with (
        candidates.Writer(out) as tables,
        Derivation(out, "conversations", made_by="reject", parents=parents) as derivation,
    ):
        election = Election(derivation, tables, chain(*pool), settings.unfinished)
        for one in offered:
            if one.left_out:
                election.leave_out(one.place, one.left_out)
                continue
            some = next(drawn)
            seen.add(one.prompt, some)
            election.elect(one.place, one.prompt, some)
        election.elect_rest()
        metrics = derivation.finish(reward=_reward_digest(settings, inputs))
    return seen, election, metrics
