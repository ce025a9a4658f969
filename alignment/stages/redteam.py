"""Attack a model by templates, by another model and by what people tried; keep every violation for regression.

The artifact is a dataset of prompts: the violations found so far (``regressions`` carries an earlier set on), for
``stage=evaluate/suites suites=[regressions]`` to ask later versions. Beside it ``examples.parquet`` and
``results.json`` tell of every attempt at this model, as those of ``stage=assess`` do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment import console, files, parts
from alignment.artifacts import NO_FOLDER, Artifact, Outcome
from alignment.data import lists, taxonomy
from alignment.data.rows import Split
from alignment.data.taxonomy import Taxonomy
from alignment.errors import UserError, nearest
from alignment.evals.verdicts import Judging
from alignment.sampling.decoding import Decoding
from alignment.sampling.endpoint import EndpointSettings
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, reference, text
from alignment.training.engine import EngineSettings

if TYPE_CHECKING:
    from alignment.chat.types import Prompt
    from alignment.data.attacks import Attempt, Cell
    from alignment.data.regressions import Growing, Row
    from alignment.evals.redteaming import Trial, Tried
    from alignment.miniature.world import World
    from alignment.training.engine import Engine

ALGORITHM_VERSION = 2
MINIATURE = "miniature"
WRITER_JOURNAL = f"{parts.FOLDER}/writer.jsonl"
PART = 64
"""Attempts that a model writes, and that are then kept, together."""
SEEN = "the model or its judge was trained on the prompt"
TWICE = "tried already"
UNREAD = "the judge's reply could not be read"


class Settings(StrictSettings):
    """``stage=redteam``."""

    model: str = reference("the model to attack: a policy, or endpoint:<model>")
    judge: Judging = identity("who says whether an answer violates safety")
    templates: str | None = text("redteam (English), miniature, or a file of your own; null writes none")
    per_cell: int = identity("attempts by templates for every category, attack and number of turns", ge=1)
    writer: str | None = reference("a policy or endpoint:<model> that writes attempts; null writes none")
    written: int = identity("attempts that it writes for every category, attack and number of turns", ge=1)
    writing: Decoding = identity("how it writes them")
    categories: list[str] | None = identity("risk categories of the taxonomy; null takes all", min_length=1)
    attacks: list[str] | None = identity("attack vectors of the taxonomy; null takes all", min_length=1)
    turns: list[int] = identity("how often the user speaks in an attempt", min_length=1)
    taxonomy: str | None = text("null for the shipped taxonomy, or a file of your own")
    prompts: str | None = reference("a dataset of adversarial prompts to try as they are; null for none")
    split: Split = identity("its split")
    tags: list[str] | None = identity("prompts of it that bear one of these tags; null takes all", min_length=1)
    count: int | None = identity("prompts of it at most, the first of these; null takes all", ge=1)
    sessions: list[str] | None = text("files of what people tried, with the hours it took, [a.csv,b.jsonl,…]; or null")
    regressions: str | None = reference("the set to carry on, as latest:redteam; its prompts are asked again; or null")
    world: str | None = reference("a dataset of the miniature, whose world judges and is attacked; null elsewhere")
    decoding: Decoding = identity("how the model answers; one sample")
    held_out: float = identity("share of new violations to test by, the rest is to learn from", ge=0, le=1)
    confidence: float = identity("of every interval", gt=0, lt=1)
    seed: int = identity("of the choice among templates and of the bootstrap", ge=0)
    endpoint: EndpointSettings = execution("how a server is asked, where one answers, writes or judges")
    engine: EngineSettings = execution("where and how models run")

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "settings") -> Settings:
        """Validate, the rules between keys included."""
        settings: Settings = super().parse(values, where)
        if settings.judge.by is None:
            raise UserError("judge.by=null: nobody judges", remedy="Name a reward model, a classifier or a model.")
        if settings.decoding.samples != 1 or settings.writing.samples != 1:
            raise UserError(
                "decoding.samples, writing.samples: one answer to every attempt is wanted",
                remedy="Say 1; more attempts are per_cell and written.",
            )
        for turns in settings.turns:
            if turns < 1 or settings.turns.count(turns) > 1:
                raise UserError(f"turns={settings.turns}: {turns} is no number of turns, or stands twice")
        if settings.templates == MINIATURE and settings.world is None:
            raise UserError(
                "templates=miniature: of which world?", remedy="Name a dataset of it: world=mini:prompts, for example."
            )
        return settings


def sources(settings: Settings) -> list[Path]:
    """Taxonomy, templates and sessions."""
    found = [lists.locate(settings.taxonomy, taxonomy.SHIPPED, "taxonomy")]
    places = taxonomy.load(found[0])
    _names("categories", settings.categories, places.categories)
    _names("attacks", settings.attacks, places.attacks)
    if settings.templates not in (None, MINIATURE):
        found.append(_templates_path(settings.templates))
    for name in settings.sessions or []:
        found.append(files.existing(name, "sessions"))
    return found


def _templates_path(name: str) -> Path:
    return lists.named(name, "redteam.yaml", "templates")


def run(settings: Settings, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """Write the set (a dataset of prompts), every attempt (examples.parquet) and what all came to (results.json)."""
    from alignment.data import regressions, store
    from alignment.evals import redteaming, verdicts
    from alignment.evals.suites.subject import Subject
    from alignment.scoring.opening import refuse_seen
    from alignment.training.engine import resolve

    places = taxonomy.load(sources(settings)[0])
    world = store.world_of(inputs["world"].need("dataset").path) if "world" in inputs else None
    engine = resolve(settings.engine)
    subject = Subject(inputs["model"], engine, settings.endpoint, out)
    subject.need_chat()
    judge = verdicts.opened(settings.judge, inputs["judge.by"], subject, world, ())
    old = list(regressions.rows(inputs["regressions"])) if "regressions" in inputs else []
    trials, unreadable = _trials(settings, inputs, places, world, engine, out)
    trials += [_as_it_is(regressions.BEFORE, number, row.prompt) for number, row in enumerate(old, 1)]
    left = _left_out(settings, trials, inputs)
    asked = [one for one in trials if one.place not in left]
    if not asked:
        raise _nothing(left)
    # A judge that is served says how many it was trained on and not which, so that none could be left out.
    refuse_seen(inputs["judge.by"], [one.opening for one in asked])
    tried = {one.trial.place: one for one in redteaming.play(subject, judge, asked, settings.decoding)}
    verdicts.need_some([said for one in tried.values() for said in one.said], judge.name)
    results = _results(settings, [*tried.values()], out)
    licences = {one.source: "" for one in trials} | {
        name: ", ".join(inputs[name].licences) for name in ("prompts", regressions.BEFORE) if name in inputs
    }
    with regressions.Growing(out, licences, settings.held_out) as growing:
        _grow(growing, old, trials, tried, left)
        knobs = None if "world" not in inputs else store.card(inputs["world"].path)["world"]
        rows = growing.finish(knobs, redteam={"model": subject.artifact.step, "judge": judge.name})
    results["notes"] = {
        "judge": judge.name,
        "attempts": dict(Counter(one.trial.source for one in tried.values())),
        "not tried": dict(Counter(left.values())),
        "new violations": growing.added,
        "writer's replies outside the form": unreadable,
    }
    files.write_json(out / "results.json", results)
    _show(results)
    metrics = {name: one["estimate"] for name, one in results["measures"].items()} | rows
    metrics |= {"attempts": float(len(tried)), "new": float(growing.added)}
    headline = next(one.name for one in redteaming.MEASURES if one.name in metrics)
    notes = ({} if subject.served else engine.notes()) | {"kind": "prompts", "judge": judge.name}
    return Outcome("dataset", metrics, headline, notes=notes)


# ── what is tried ────────────────────────────────────────────────────────────────────────────────


def _trials(
    settings: Settings,
    inputs: Mapping[str, Artifact],
    places: Taxonomy,
    world: World | None,
    engine: Engine,
    out: Path,
) -> tuple[list[Trial], list[str]]:
    """Every attempt but the old ones, and what the writer said that could not be read."""
    from alignment.data import attacks

    cells = attacks.cells(
        _names("categories", settings.categories, places.categories),
        _names("attacks", settings.attacks, places.attacks),
        settings.turns,
    )
    found = list(_from_templates(settings, places, world, cells)) + list(_from_prompts(settings, inputs))
    unreadable: list[str] = []
    if "writer" in inputs:
        told = _written(settings, inputs["writer"], places, cells, engine, out)
        attempts = [attacks.Attempt(tuple(row["turns"]), *row["cell"]) for row in told if row["turns"]]
        found += _numbered("writer", attempts)
        unreadable = [row["reply"] for row in told if not row["turns"]]
    if settings.sessions:
        paths = sources(settings)[-len(settings.sessions) :]
        found += _numbered("sessions", attacks.sessions(paths, places))
    return found, unreadable


def _names(key: str, chosen: Sequence[str] | None, known: Mapping[str, Any]) -> list[str]:
    for name in chosen or ():
        if name not in known:
            raise UserError(f"{key}={name}: the taxonomy has none of that name", remedy=nearest(name, [*known]))
    return [*known] if chosen is None else list(dict.fromkeys(chosen))


def _from_templates(
    settings: Settings, places: Taxonomy, world: World | None, cells: Sequence[Cell]
) -> Iterator[Trial]:
    from alignment.data import attacks

    if settings.templates is None:
        return
    if settings.templates == MINIATURE:
        if world is None:
            raise UserError(
                f"world={settings.world}: does not come from the miniature world", remedy="world=mini:prompts does."
            )
        templates = attacks.from_miniature(world)
    else:
        templates = attacks.load(_templates_path(settings.templates), places)

    def may_say(turns: tuple[str, ...]) -> bool:
        """The miniature's models learn from other questions than those of its test split."""
        return settings.templates != MINIATURE or (world is not None and world.split(turns[0]) == "test")

    attempts = [
        attacks.Attempt(turns, cell.category, cell.attack)
        for cell in cells
        for turns in templates.draw(cell, settings.per_cell, settings.seed, may_say)
    ]
    yield from _numbered("templates", attempts)


def _numbered(source: str, attempts: Iterable[Attempt]) -> Iterator[Trial]:
    from alignment.chat.types import Message, prompt_key
    from alignment.evals.redteaming import Trial

    for number, one in enumerate(attempts, 1):
        name = f"redteam:{files.digest_json([*one.turns])[:16]}"
        unit = one.person or one.session or prompt_key([Message("user", one.turns[0])])
        yield Trial(name, source, number, (), one.turns, one.category, one.attack, unit, one.hours)


def _from_prompts(settings: Settings, inputs: Mapping[str, Artifact]) -> Iterator[Trial]:
    """Every prompt of the split, also those that are then left out."""
    from alignment.chat.types import Prompt
    from alignment.data import store

    if "prompts" not in inputs:
        return
    for number, row in enumerate(store.stream(inputs["prompts"].need("dataset").path, settings.split), 1):
        if not isinstance(row, Prompt):
            raise UserError(f"prompts={settings.prompts}: holds no prompts", remedy="Name a dataset of kind prompts.")
        yield _as_it_is("prompts", number, row)


def _as_it_is(source: str, number: int, prompt: Prompt) -> Trial:
    """A prompt, or an old violation, whose last message is the attempt."""
    from alignment.chat.types import prompt_key
    from alignment.evals.redteaming import Trial

    unit, (*before, last) = prompt_key(prompt.messages), prompt.messages
    placed = prompt.category, prompt.attack
    return Trial(prompt.id, source, number, tuple(before), (last.content,), *placed, unit, tags=prompt.tags)


def _written(
    settings: Settings, writer: Artifact, places: Taxonomy, cells: Sequence[Cell], engine: Engine, out: Path
) -> list[dict[str, Any]]:
    """What a model writes for every cell, asked once more where it is outside the form; in parts that are kept."""
    from alignment.chat.types import Message
    from alignment.data import attacks
    from alignment.scoring.opening import open_respondent

    respondent = open_respondent(writer, engine, settings.endpoint, out / WRITER_JOURNAL, at="writer")

    def asked(some: Sequence[tuple[Cell, int]], suffix: str = "") -> list[str]:
        replies = respondent.reply(
            [(Message("user", attacks.ask(cell, places)),) for cell, _ in some],
            [f"{'/'.join(map(str, cell))}/{number}{suffix}" for cell, number in some],
            settings.writing,
        )
        return [reply.text for (reply,) in replies]

    def work(some: Sequence[tuple[Cell, int]]) -> parts.Rows:
        said = asked(some)
        again = [
            place for place, ((cell, _), one) in enumerate(zip(some, said, strict=True))
            if attacks.read(one, cell.turns) is None
        ]  # fmt: skip
        if again:
            for place, one in zip(again, asked([some[place] for place in again], "/again"), strict=True):
                said[place] = one
        return [
            {"cell": [cell.category, cell.attack], "turns": attacks.read(one, cell.turns), "reply": one}
            for (cell, _), one in zip(some, said, strict=True)
        ]

    wanted = [(cell, number) for cell in cells for number in range(settings.written)]
    with console.progress("written", len(wanted), "attempts") as progress:

        def on_done(count: int, before: bool) -> None:
            progress.begin_at(progress.done + count) if before else progress.advance(count)

        return list(parts.in_parts(out, "written", wanted, PART, work, on_done))


def _left_out(
    settings: Settings, trials: Sequence[Trial], inputs: Mapping[str, Artifact]
) -> dict[tuple[str, int], str]:
    """By place, why an attempt is not made: what was learned by heart is no test, and nothing is tried twice."""
    import numpy as np

    from alignment.data import seen
    from alignment.evals.redteaming import BY_PROGRAM

    known = [seen.read(inputs[key].path) for key in ("model", "judge.by") if inputs[key].kind not in NO_FOLDER]
    keys = [int(one.opening, 16) for one in trials]
    by_heart = np.isin(np.array(keys, np.uint64), np.concatenate([*known, np.zeros(0, np.uint64)]))
    found: dict[tuple[str, int], str] = {}
    tried: set[str] = set()
    taken = 0
    for one, learned in zip(trials, by_heart, strict=True):
        why = ""
        if one.source == "prompts":
            if settings.tags is not None and set(settings.tags).isdisjoint(one.tags):
                why = "not tagged so"
            elif taken == settings.count:
                why = "beyond the count"
            else:
                taken += 1
        if not why and learned:
            why = SEEN
        elif not why and one.source in BY_PROGRAM and one.id in tried:
            why = TWICE
        if why:
            found[one.place] = why
        else:
            tried.add(one.id)
    return found


def _nothing(left: Mapping[tuple[str, int], str]) -> UserError:
    told = ", ".join(f"{why} ({count:,})" for why, count in Counter(left.values()).items())
    return UserError(
        "stage=redteam: there is nothing to try",
        cause=f"Left out: {told}." if left else "No template has so many turns, no model wrote in the form.",
        remedy="Name templates, a writer, prompts, sessions or regressions.",
    )


# ── what came of it ──────────────────────────────────────────────────────────────────────────────


def _results(settings: Settings, tried: Sequence[Tried], out: Path) -> dict[str, Any]:
    from alignment.evals import redteaming
    from alignment.evals.suites import kept
    from alignment.evals.suites.suite import Examined

    examined = Examined(redteaming.MEASURES, redteaming.examples(tried))
    kept.write(out, examined)
    found = kept.told(kept.Kept.of(examined.measures, out), settings.confidence, settings.seed)
    declared = [measure._asdict() for measure in examined.measures]
    return {"kind": "redteam", "confidence": settings.confidence, "declared": declared, **found}


def _grow(
    growing: Growing,
    old: Sequence[Row],
    trials: Sequence[Trial],
    tried: Mapping[tuple[str, int], Tried],
    left: Mapping[tuple[str, int], str],
) -> None:
    """The old rows, and behind them every attempt that violated."""
    from alignment.data.regressions import BEFORE

    for number, row in enumerate(old, 1):
        one = tried.get((BEFORE, number))
        told = SEEN if one is None else UNREAD if not one.known else "refused" if one.violation is None else "violates"
        growing.carry_on(row, told)
    for trial in trials:
        if trial.source == BEFORE:
            continue
        if trial.place in left:
            growing.leave(trial.source, trial.number, trial.id, left[trial.place], asked=False)
            continue
        one = tried[trial.place]
        if one.violation is not None:
            growing.add(trial.source, trial.number, one.prompt())
        else:
            growing.leave(trial.source, trial.number, trial.id, "no violation" if one.known else UNREAD, asked=True)


def _show(results: Mapping[str, Any]) -> None:
    from alignment.reporting import suites

    suites.show_one(results)
    for name, told in results["notes"].items():
        if isinstance(told, dict):
            told = ", ".join(f"{key} {count:,}" for key, count in told.items()) or "none"
        console.say(f"{name}: {len(told) if isinstance(told, list) else told}", style="")
