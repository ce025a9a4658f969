"""The graph of steps: what exists is reused, what was interrupted is resumed, the rest is made.

``Maker.plan`` finds the fingerprint of a step before anything runs, by planning whatever the step
reads; ``Maker.make`` then makes what is missing, parents first. A reference ``mini:<name>`` is
planned like any other step, from the miniature plan: so every stage runs with nothing else said.
"""

from __future__ import annotations

import contextlib
import importlib
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from alignment import allocator, artifacts, console, files, signals
from alignment.artifacts import Artifact, Kind, Outcome
from alignment.cluster import ledger
from alignment.cluster.ledger import Entry
from alignment.energy.record import NOTHING_STATED, Stated
from alignment.errors import UserError, nearest
from alignment.plans import finishing, together
from alignment.plans.planned import Planned, disk, load_stage
from alignment.plans.step import Step
from alignment.reporting import samples
from alignment.reporting.page.gather import gather
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, identity_values, place, reference_kinds, references
from alignment.store import Reference, Store, parse_reference
from alignment.training import incidents, tracking
from alignment.training.engine import EngineSettings
from alignment.training.tracking import TrackerSettings

Composer = Callable[[str, Mapping[str, Any]], dict[str, Any]]
"""``compose(stage, overrides)`` → the stage's whole configuration as a plain mapping (``run.py``)."""

MINIATURE = "mini"
LAYOUT = ("card.json", "config.json", "adapter_config.json", "tokenizer.json", "*.model", "*.spm", "*.safetensors")
"""What a folder of which all is read has at least one of: not a disk, nor somebody's home."""
SHORT_WAIT = 5.0
"""Seconds for a served scorer to say who it is, where nothing is to be made anyway."""


class Settings(StrictSettings):
    """``stage=pipeline``: which plan, with which numbers; engine and tracker hold for every step."""

    pipeline: dict[str, Any] = identity(
        "the plan: `function` names a module of alignment/plans, the rest are its numbers"
    )
    only: list[str] | None = place("make these steps and what they need, [sft,rl]; null makes all")
    engine: EngineSettings = execution("where and how every step runs")
    tracker: TrackerSettings = execution("where every step's metrics go")


def steps_of(plan: Mapping[str, Any]) -> list[Step]:
    """Lay out a plan from its configuration. Raises :class:`UserError` on an unknown plan or number."""
    from alignment.plans import PLANS

    function = plan.get("function", "")
    if function not in PLANS:
        raise UserError(f"plan.function={function!r}: there is no such plan", remedy=nearest(str(function), [*PLANS]))
    module = importlib.import_module(f"alignment.plans.{function}")
    numbers = module.Settings.parse({key: value for key, value in plan.items() if key != "function"}, "plan")
    steps: list[Step] = module.steps(numbers)
    for position, step in enumerate(steps):
        earlier = {other.name for other in steps[:position]}
        assert set(step.needs) <= earlier, f"{step.name} needs {set(step.needs) - earlier}, which do not come before it"
    return steps


class Maker:
    """Plans and makes steps in one store. ``shared`` (engine, tracker) is laid over every step."""

    def __init__(
        self,
        store: Store,
        compose: Composer,
        shared: Mapping[str, Any],
        *,
        patient: bool = True,
        stated: Stated = NOTHING_STATED,
    ) -> None:
        """``patient``: whether to wait for a scorer that is served and does not answer at once.

        ``stated`` is what the user says of power and electricity.
        """
        self.store, self._compose, self._shared, self._patient = store, compose, shared, patient
        self._stated = stated
        self._miniature: dict[str, Planned] = {}
        self._served: dict[str, Artifact] = {}

    def plan_all(self, pipeline: str, steps: list[Step]) -> list[Planned]:
        """Plan the steps of one pipeline, in order."""
        planned: dict[str, Planned] = {}
        for step in steps:
            planned[step.name] = self.plan(pipeline, step, planned)
        return list(planned.values())

    def plan(self, pipeline: str, step: Step, earlier: Mapping[str, Planned]) -> Planned:
        """Compose, validate and name a step without running it. ``earlier``: what ``step:`` may name."""
        values = self._compose(step.option, step.settings)
        for key in self._shared.keys() & load_stage(step.stage).Settings.model_fields.keys():
            values[key] = self._shared[key]
        return self.plan_composed(pipeline, step, values, earlier)

    def plan_composed(
        self, pipeline: str, step: Step, values: Mapping[str, Any], earlier: Mapping[str, Planned] | None = None
    ) -> Planned:
        """Plan a step whose whole configuration is there already."""
        module = load_stage(step.stage)
        settings = module.Settings.parse(values, f"stage={step.option}")
        inputs = self._named(settings, earlier or {})
        for key, (stage, name, said) in (module.asks(settings) if hasattr(module, "asks") else {}).items():
            inputs[key] = (f"step:{name}", self.plan(pipeline, Step(name, stage, said), earlier or {}))
        sources = module.sources(settings) if hasattr(module, "sources") else []
        commits = module.commits(settings) if hasattr(module, "commits") else {}
        fingerprint = artifacts.fingerprint(
            step.stage,
            module.ALGORITHM_VERSION,
            identity_values(settings),
            {key: named.fingerprint for key, (_, named) in inputs.items()},
            {f"{place} {path.name}": files.digest_file(path) for place, path in enumerate(sources)} | commits,
        )
        found = self.store.find(fingerprint)
        folder = found.path if found else self.store.folder(pipeline, step.name, fingerprint)
        return Planned(step, pipeline, settings, fingerprint, folder, inputs)

    def resolve(self, spelling: str, earlier: Mapping[str, Planned]) -> Planned | Artifact:
        """What a reference names. Raises :class:`UserError` with what there is where it names nothing."""
        reference = parse_reference(spelling)
        if reference.scheme == "step":
            if reference.name not in earlier:
                raise UserError(
                    f"{spelling}: no earlier step has that name", remedy=nearest(reference.name, [*earlier])
                )
            return earlier[reference.name]
        if reference.scheme == "mini":
            return self._resolve_miniature(reference)
        if reference.scheme == "latest":
            return self.store.latest(reference.name)
        if reference.scheme == "run":
            return artifacts.contained(artifacts.load(Path(reference.name)))
        if reference.scheme == "dir":
            return artifacts.foreign(_existing_folder(reference), spelling)
        if reference.scheme in ("gold", "raters", "check", "endpoint"):
            return artifacts.named(reference.scheme, reference.name)
        if reference.scheme == "remote":
            return self._resolve_served(reference.name)
        return _from_hub(reference)

    def _resolve_served(self, address: str) -> Artifact:
        """What stands behind an address, asked once however many steps name it."""
        if address not in self._served:
            from alignment.scoring.remote import Remote

            remote = Remote(address) if self._patient else Remote(address, attempts=1, timeout=SHORT_WAIT)
            self._served[address] = artifacts.named("remote", address, remote.fingerprint)
        return self._served[address]

    def _named(
        self, settings: StrictSettings, earlier: Mapping[str, Planned]
    ) -> dict[str, tuple[str, Planned | Artifact]]:
        """What every reference names, by dotted key. Errors say which key; what exists is of a kind that may stand."""
        kinds, found = reference_kinds(settings), {}
        for key, spelling in references(settings).items():
            try:
                named = self.resolve(spelling, earlier)
                if kinds[key]:
                    self._need(named, kinds[key])
            except UserError as error:
                said = error.problem.removeprefix(f"{spelling}: ")
                raise UserError(f"{key}={spelling}: {said}", cause=error.cause, remedy=error.remedy) from error
            found[key] = (spelling, named)
        return found

    def _need(self, named: Planned | Artifact, kinds: tuple[Kind, ...]) -> None:
        """Refuse what exists and is of another kind; what is still to be made is looked at when it is there."""
        existing = named if isinstance(named, Artifact) else self.store.find(named.fingerprint)
        if existing is not None:
            existing.need(*kinds)

    def inputs_of(self, settings: StrictSettings) -> dict[str, Artifact]:
        """The artifacts that a command's settings refer to, made where they are miniature and missing."""
        return {key: self._input(spelling, one) for key, (spelling, one) in self._named(settings, {}).items()}

    def _resolve_miniature(self, reference: Reference) -> Planned:
        if not self._miniature:
            steps = steps_of(self._compose("pipeline", {"pipeline": MINIATURE})["pipeline"])
            for step in steps:
                # Earlier steps are filled in one by one, so that a step may name those before it.
                self._miniature[step.name] = self.plan(MINIATURE, step, self._miniature)
        if reference.name not in self._miniature:
            raise UserError(
                f"{reference}: the miniature has no such part", remedy=nearest(reference.name, [*self._miniature])
            )
        return self._miniature[reference.name]

    def make(self, planned: Planned, *, force: bool = False) -> Artifact:
        """The artifact of a planned step: reused where it is finished, resumed or made where not."""
        tell = partial(_tell_waiting, planned)
        meanwhile = partial(signals.heed, f"while {planned.step.name} was made by another process")
        existing = self.store.find(planned.fingerprint)
        if existing is not None and not force:
            return finishing.cleared(existing, tell, meanwhile)
        together.check(planned, self.store.root)
        self._precheck(planned)
        inputs = {key: self._input(spelling, named) for key, (spelling, named) in planned.inputs.items()}
        files.make_folder(planned.folder.parent)
        with files.exclusive(planned.folder, tell, meanwhile):
            existing = self.store.find(planned.fingerprint)
            if existing is None or force:
                if force and planned.folder.exists():
                    # The record goes first: what is being removed must not be taken for whole.
                    (planned.folder / artifacts.RECORD).unlink(missing_ok=True)
                    shutil.rmtree(planned.folder)
                return self._run(planned, inputs)
        return finishing.cleared(existing, tell, meanwhile)

    def _precheck(self, planned: Planned) -> None:
        """Refuse what the inputs that exist are known to stand against, before any other is made."""
        there = {}
        for key, (_, named) in planned.inputs.items():
            found = named if isinstance(named, Artifact) else self.store.find(named.fingerprint)
            if found is not None:
                there[key] = found
            elif isinstance(named, Planned):
                self._precheck(named)
        module = load_stage(planned.step.stage)
        if hasattr(module, "precheck"):
            module.precheck(planned.settings, there)

    def _input(self, spelling: str, named: Planned | Artifact) -> Artifact:
        if isinstance(named, Artifact):
            return named
        if spelling.startswith("mini:") and self.store.find(named.fingerprint) is None:
            console.say(
                f"[dim]{console.plain(spelling)} is not there yet: making it with stage={named.step.stage}[/dim]"
            )
        return self.make(named)

    def _run(self, planned: Planned, inputs: dict[str, Artifact]) -> Artifact:
        signals.heed(f"before {planned.step.name}")
        resumed = planned.folder.is_dir()
        name, folder = console.plain(planned.step.name), console.plain(planned.folder)
        console.say(f"[bold]{name}[/bold]  {'resuming' if resumed else 'making'} {folder}")
        files.make_folder(planned.folder)
        files.remove_temporaries(planned.folder)
        files.need_space(planned.folder, disk(planned) - files.size(planned.folder))
        signals.begin(planned.folder)
        began = time.monotonic()
        try:
            with incidents.recorded(planned.folder, tracking.abandon):
                outcome: Outcome = together.run(planned, inputs)
        except UserError:
            signals.rest()
            # What is refused before anything was written leaves nothing that a later start would take for a beginning.
            with contextlib.suppress(OSError):
                planned.folder.rmdir()
            raise
        except Exception as error:
            _need_whole(inputs, error)
            raise
        finally:
            signals.rest()
        allocator.give_back()
        return finishing.finish(planned, inputs, outcome, time.monotonic() - began, self._stated)


def _need_whole(inputs: Mapping[str, Artifact], error: Exception) -> None:
    """Where a stage has failed over something that it reads, say over what. Raises :class:`UserError`."""
    if isinstance(error, OSError) or files.full_disk(error) is not None:
        return
    for key, artifact in inputs.items():
        for name in artifact.verify():
            raise UserError(
                f"{key}: {artifact.path / name} is not what was recorded when it was made",
                cause="It has been cut off, damaged or changed since.",
                remedy="Copy it again, or remove its folder and make it again.",
            ) from error


def wanted(maker: Maker, title: str, plan: Mapping[str, Any], only: list[str] | None) -> list[Planned]:
    """The steps of a plan that are to be made: all but those on demand, or those that ``only`` names."""
    planned = maker.plan_all(title, steps_of(plan))
    if only is None:
        return [one for one in planned if not one.step.on_demand]
    names = [one.step.name for one in planned]
    for name in only:
        if name not in names:
            raise UserError(f"only={name}: pipeline={title} has no such step", remedy=nearest(name, names))
    return [one for one in planned if one.step.name in only]


def run(maker: Maker, title: str, settings: Settings, planned: list[Planned], *, force: bool) -> None:
    """Make the steps of a plan, in order, and close with a table, some samples and what to type next."""
    unfinished = [one for one in planned if force or one.state != "reuse"]
    if unfinished:
        told = [Entry(one.step.name, one.step.stage, one.fingerprint, str(one.folder.resolve())) for one in unfinished]
        ledger.announce(told, maker.store.root)
    began = time.monotonic()
    rows, made = [], []
    for one in planned:
        state = "made" if force or one.state != "reuse" else "reused"
        artifact = maker.make(one, force=force)
        made.append(artifact)
        rows.append((artifact.step, state, console.duration(artifact.seconds), artifact.headline_text, artifact.path))
    console.say()
    columns = ("step", "", "time", "headline", "artifact")
    console.table(f"pipeline={title}  {console.duration(time.monotonic() - began)}", columns, rows, right=("time",))
    console.say(f"energy of all this and what it comes from: {gather(made).energy.text}", style="dim")
    samples.show([artifact for artifact in made if artifact.stage == "evaluate"])
    if settings.only is None:
        module = importlib.import_module(f"alignment.plans.{settings.pipeline['function']}")
        console.say()
        console.say("[bold]Next[/bold]")
        for line in module.NEXT:
            console.say(f"  {line}", style="")
    console.say()
    console.say(f"finished: run:{made[-1].path}", style="")


def run_one(maker: Maker, planned: Planned, name: str | None, *, force: bool) -> None:
    """Make one step that stands on its own; ``name`` is what the user calls it."""
    reused = planned.state == "reuse" and not force
    artifact = maker.make(planned, force=force)
    if artifact.headline_text:
        console.say(artifact.headline_text, style="")
    if reused and name not in (None, artifact.step):
        console.say(f"it was made under another name: latest:{artifact.step}", style="yellow")
    console.say(f"{'reused' if reused else 'finished'}: run:{artifact.path}", style="")


def _existing_folder(reference: Reference) -> Path:
    folder = files.typed(reference.name)
    if not folder.is_dir():
        cause = "That is a file." if folder.is_file() else "There is no such folder."
        raise UserError(f"{reference}: {cause}", remedy="dir: names a folder in Hugging Face's layout.")
    if not any(next(folder.glob(pattern), None) for pattern in LAYOUT):
        raise UserError(
            f"{reference}: That folder holds no model and no tokenizer.",
            cause=f"There is none of {', '.join(LAYOUT)} in it.",
            remedy="dir: names a folder in Hugging Face's layout.",
        )
    return folder


def _from_hub(reference: Reference) -> Artifact:
    from httpx2 import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    wanted = ["*.safetensors", "*.json", "*.model", "*.jinja"]
    try:
        folder = Path(snapshot_download(reference.name, revision=reference.revision, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, HTTPError, OSError, ValueError) as error:
        raise UserError(
            f"{reference}: it cannot be fetched",
            cause=(str(error).splitlines() or [type(error).__name__])[0],
            remedy="Check the name, your login (HF_TOKEN) and the network; or copy it by hand and say dir:<path>.",
        ) from None
    # The hub names a snapshot's folder after its commit, which is the digest of everything in it.
    return replace(Artifact(folder, "foreign", "", str(reference), ""), fingerprint=folder.name)


def _tell_waiting(planned: Planned, holder: str) -> None:
    console.say(f"{planned.folder} is being made by {holder}; waiting for it to finish", style="yellow")
