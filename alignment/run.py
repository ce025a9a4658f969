"""The door: ``python -m alignment.run stage=… key=value …``.

The only importer of Hydra and OmegaConf. It answers the bare call and ``--help`` before anything
heavy is imported, keeps free text out of Hydra's grammar, composes, and hands plain mappings on.

Hydra chooses among configuration groups (stage, model, engine, tracker, launcher, pipeline, recipe) and parses
plain values. Keys that carry text, paths or references never meet its grammar: they are taken from
the command line as they are and laid over the composed mapping. No interpolation reads the environment.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from itertools import islice, product
from pathlib import Path
from typing import Any

from alignment import console, files, signals
from alignment.cluster.launcher import LauncherSettings
from alignment.command_line import Request, at, lay, read
from alignment.errors import LostError, UserError, nearest
from alignment.plans import together
from alignment.plans.together import SOLO
from alignment.reporting import pages
from alignment.settings import Settings, describe, execution, list_keys, place, raw_keys, reference_keys, text
from alignment.training import faults

PACKAGE = Path(__file__).parent
CONF = next(path for path in (PACKAGE / "_conf", PACKAGE.parent / "conf") if path.is_dir())
RECIPES = next(path for path in (PACKAGE / "_data_recipes", PACKAGE.parent / "data_recipes") if path.is_dir())
GROUPS = ("stage", "model", "engine", "endpoint", "tracker", "launcher", "pipeline", "recipe", "suite")
FROM_FILE = "file_"
"""Begins the name of an option that is a file of the user's."""

MOST_RUNS = 1_000
"""That one command line may stand for."""


class Door(Settings):
    """Keys that every stage takes, and no stage sees."""

    store: str = place("the folder that holds all artifacts")
    name: str | None = text("what the artifact's folder is called; null takes the stage's name")
    force: bool = execution("make it again although it exists")
    dry_run: bool = execution("say what would be reused or made, how long and how large, and make nothing")
    debug: bool = execution("show the traceback of an error")
    launcher: LauncherSettings = execution("who runs it: this process, or Slurm")
    grid: float = execution("kg CO₂eq for each kWh of the electricity (docs/energy.md)", ge=0)
    watts: float | None = execution(
        "the power of a device that does not tell what it uses, a GPU or a machine's processors; null for unknown", gt=0
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: exits with 0, with 2 on a :class:`UserError`, with 130 when interrupted.

    ``stage=gate`` says no with 1. Asked to stop by a scheduler (USR1, TERM) it ends with 85, where a device or another
    process is gone with 86, and the same command goes on.
    """
    signals.listen()
    code = together.enter(door, sys.argv[1:] if arguments is None else list(arguments))
    signals.ignore()
    sys.exit(code)


def door(arguments: list[str]) -> int:
    """Run one command line and return the exit code."""
    debug = "debug=true" in arguments
    try:
        request = read(arguments)
        if request.stage is None:
            from alignment.commands import COMMANDS
            from alignment.stages import STAGES

            pages.list_stages(STAGES, options("pipeline"), COMMANDS)
        elif request.help:
            _explain(request)
        elif request.show_config:
            _print_config(request)
        else:
            requests = _sweep(request) if request.multirun else [request]
            # All are looked at before the first one runs.
            return max([_run(*checked) for checked in [_checked(single) for single in requests]])
        return 0
    except Exception as error:
        told = error if isinstance(error, UserError) else _told(error)
        # A job has to come back from what is nobody's mistake, however closely it is watched.
        if told is None or (debug and not isinstance(told, LostError)):
            raise
        pages.complain(told)
        return told.code
    except signals.Preempted as stop:
        console.say(f"\n{stop}. The same command goes on from there.", style="yellow")
        return signals.REQUEUE
    except KeyboardInterrupt:
        console.say("\nInterrupted. The same command goes on from the last whole checkpoint.", style="yellow")
        return 130


def _told(error: Exception) -> UserError | None:
    """An error of the machine in our words; None for one of ours."""
    lost = faults.lost(error)
    if lost is not None:
        return lost
    return files.disk_error(error) if isinstance(error, OSError) else files.full_disk(error)


# ── composing ────────────────────────────────────────────────────────────────────────────────────


def settings_class(stage: str) -> type[Settings]:
    """The settings of ``sft`` or of its preset ``sft/llama2``."""
    from alignment import pipeline

    name = stage.partition("/")[0]
    return pipeline.Settings if name == "pipeline" else pipeline.load_stage(name).Settings


def compose(stage: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a stage under a plan's overrides (nested or dotted; groups by their option's name)."""
    groups = {key: value for key, value in overrides.items() if key in GROUPS and _is_option(value)}
    values = _choose(stage, groups)
    for key, value in overrides.items():
        if key not in groups:
            lay(values, key, value)
    return {key: value for key, value in values.items() if key not in Door.model_fields}


def _is_option(value: Any) -> bool:
    return isinstance(value, str) and ":" not in value


def _choose(stage: str, groups: Mapping[str, str]) -> dict[str, Any]:
    """Let Hydra compose a stage with a choice of groups. Raises :class:`UserError` with what there is."""
    _check_option("stage", stage)
    for group, option in groups.items():
        if group == "recipe" or (group == "suite" and _is_file(option)):
            groups = {**groups, group: _register(group, option)}
        else:
            _check_option(group, option)
    if "recipe" not in groups and "recipe" in settings_class(stage).model_fields:
        # Which one is taken where nobody chooses stands in the stage's YAML.
        for option in options("recipe"):
            _register("recipe", option)
    return deepcopy(_composed(stage, tuple(sorted(groups.items()))))


@cache
def _composed(stage: str, groups: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """What Hydra makes of it, once in a process: a plan of thirty steps composes few stages, and Hydra is slow."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    OmegaConf.clear_resolver("oc.env")
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            chosen = [f"{group}={option}" for group, option in groups]
            composed = hydra_compose("config", overrides=[f"stage={stage}", *chosen])
            values = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"stage={stage}: {str(error).splitlines()[0]}") from None
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def options(group: str) -> list[str]:
    """The options of a configuration group, presets of a stage included (``sft/llama2``)."""
    if group == "recipe":
        return sorted(path.stem for path in RECIPES.glob("*.yaml"))
    return sorted(path.relative_to(CONF / group).with_suffix("").as_posix() for path in (CONF / group).rglob("*.yaml"))


def _check_option(group: str, option: str) -> None:
    if option not in options(group):
        raise UserError(f"{group}={option}: there is no such {group}", remedy=nearest(option, options(group)))


@cache
def _register(group: str, option: str) -> str:
    """Make a recipe of ``data_recipes/``, or a recipe or suite of the user's, an option by a name Hydra can spell."""
    from hydra.core.config_store import ConfigStore

    from alignment.data import recipe

    if _is_file(option):
        name, path = FROM_FILE + "".join(c if c.isalnum() else "_" for c in option), files.typed(option).resolve()
    else:
        _check_option(group, option)
        name, path = option, RECIPES / f"{option}.yaml"
    values = recipe.read_yaml(path, group)
    if group == "recipe":
        values = {**values, "root": str(recipe.root_of(values, path))}
    ConfigStore.instance().store(name=name, group=group, node=values)
    return name


def _is_file(option: str) -> bool:
    return option.endswith((".yaml", ".yml"))


def configure(request: Request) -> dict[str, Any]:
    """The whole configuration of a request, as a plain mapping. Raises :class:`UserError` on an unknown key."""
    assert request.stage is not None
    _check_option("stage", request.stage)
    model = settings_class(request.stage)
    known = [info.key for part in (Door, model) for info in describe(part)]
    raw, lists = raw_keys(Door) | raw_keys(model), list_keys(model)
    groups, values = {}, []
    for key, value in request.overrides:
        if key == "model" and "model.weights" in known and ":" in value:
            # A reference in the place of a preset: those weights, whatever their shape.
            values += [("model.weights", value), ("model.shape", None)]
        elif key == "reward" and "reward.model" in known and ":" in value:
            values.append(("reward.model", value))
        elif key in GROUPS and not _is_raw(key, raw) and any(name.partition(".")[0] == key for name in known):
            groups[key] = value
        elif not any(key == name or name.startswith(f"{key}.") or key.startswith(f"{name}.") for name in known):
            deeper = [name for name in known if name.rpartition(".")[2] == key]
            remedy = f"Did you mean {deeper[0]}?" if deeper else _instead(key, known)
            raise UserError(f"{key}: stage={request.stage} has no such key", remedy=remedy)
        else:
            values.append((key, _text_value(value, key in lists) if _is_raw(key, raw) else _parse_value(key, value)))
    composed = _choose(request.stage, groups)
    for key, parsed in values:
        lay(composed, key, parsed)
    return composed


def _instead(key: str, known: list[str]) -> str:
    """What to say in the place of a key that a stage does not have."""
    if key in GROUPS:
        return f"Leave {key}= out: this stage has nothing that it would choose."
    return nearest(key, [*known, *({name.partition(".")[0] for name in known} & {*GROUPS})])


def _is_raw(key: str, raw: set[str]) -> bool:
    return key in raw or any(key.startswith(f"{name}.") for name in raw)


def _text_value(value: str, several: bool) -> Any:
    """Text as typed; ``null`` for nothing; ``[a,b]``, or one value alone, where the key takes several."""
    if value == "null":
        return None
    if value.startswith("[") and value.endswith("]") and several:
        return [part.strip() for part in value[1:-1].split(",") if part.strip()]
    return [value] if several else value


def _parse_value(key: str, value: str) -> Any:
    """A plain value by Hydra's grammar: numbers, booleans, null, lists, mappings."""
    parsed = _parse_override(key, value)
    if parsed.is_sweep_override():
        raise UserError(f"{key}={value}: several values", remedy="Add -m to run the stage once for each.")
    return _plain(parsed.value())


def _parse_override(key: str, value: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(f"{key}={value}")
    except (HydraException, RecursionError, ValueError):  # the last for more digits than Python reads
        raise UserError(f"{key}={value}: the value cannot be read", remedy="Quote text: '" + key + '="…"\'.') from None


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _sweep(request: Request) -> list[Request]:
    """``-m``: one request for every combination of values that are separated by commas (or ``range(…)``).

    References are swept like numbers; free text never is, whatever commas it has.
    """
    assert request.stage is not None
    stages = request.stage.split(",")
    model = settings_class(stages[0])
    raw, swept = raw_keys(Door) | raw_keys(model), reference_keys(model)
    choices = []
    for key, value in request.overrides:
        if key in swept or (key in GROUPS and not _is_raw(key, raw)):
            choices.append([(key, part.strip()) for part in value.split(",")])
        else:
            choices.append([(key, value)] if _is_raw(key, raw) else [(key, part) for part in _sweep_values(key, value)])
    runs = len(stages) * math.prod(map(len, choices))
    if runs > MOST_RUNS:
        raise UserError(f"-m: {runs:,} runs, or more", remedy=f"At most {MOST_RUNS:,} are made by one command.")
    return [Request(stage=stage, overrides=list(chosen)) for stage in stages for chosen in product(*choices)]


def _sweep_values(key: str, value: str) -> list[str]:
    """What Hydra's grammar makes of ``1,2``, ``range(0,3)`` or ``choice(a,b)``; a plain value is one choice."""
    parsed = _parse_override(key, value)
    if not parsed.is_sweep_override():
        return [value]
    return [str(part) for part in islice(parsed.sweep_string_iterator(), MOST_RUNS + 1)]


# ── running ──────────────────────────────────────────────────────────────────────────────────────


def _checked(request: Request) -> tuple[Request, Door, dict[str, Any]]:
    """A request, its keys of every stage, and the stage's own. Raises :class:`UserError` where either do not fit."""
    assert request.stage is not None
    values = configure(request)
    entrance = Door.parse({key: values.pop(key) for key in Door.model_fields if key in values}, "command line")
    settings_class(request.stage).parse(values, f"stage={request.stage.partition('/')[0]}")
    return request, entrance, values


def _run(request: Request, entrance: Door, values: dict[str, Any]) -> int:
    """Make what is asked for, and return the exit code."""
    from alignment import pipeline
    from alignment.commands import COMMANDS
    from alignment.energy.record import Stated
    from alignment.plans import launch
    from alignment.plans.planned import describe_plan
    from alignment.plans.step import Step
    from alignment.store import Store

    assert request.stage is not None
    name = request.stage.partition("/")[0]
    store = Store(files.typed(entrance.store))
    shared: dict[str, Any] = {key: values[key] for key in ("engine", "tracker") if key in values}
    stated = Stated(entrance.watts, entrance.grid)
    maker = pipeline.Maker(store, compose, shared, patient=not entrance.dry_run, stated=stated)
    if name in COMMANDS:
        launch.refuse_command(entrance.launcher, name)
        module = pipeline.load_stage(name)
        settings = module.Settings.parse(values, f"stage={name}")
        inputs = maker.inputs_of(settings)
        signals.restore()
        return module.run(settings, inputs, store) or 0
    if name == "pipeline":
        settings = pipeline.Settings.parse(values, "stage=pipeline")
        title = request.value("pipeline", "mini")
        planned = pipeline.wanted(maker, title, settings.pipeline, settings.only)
    else:
        planned = [maker.plan_composed(SOLO, Step(entrance.name or name, name, values), values)]
    launch.check(entrance.launcher, planned)
    if launch.wanted(entrance.launcher, planned, force=entrance.force):
        launch.submit(planned, entrance.launcher, request, store.root, force=entrance.force, dry_run=entrance.dry_run)
    elif entrance.dry_run:
        describe_plan(planned)
    elif name == "pipeline":
        pipeline.run(maker, title, settings, planned, force=entrance.force)
    else:
        pipeline.run_one(maker, planned[0], entrance.name, force=entrance.force)
    return 0


# ── what is printed ──────────────────────────────────────────────────────────────────────────────


def _explain(request: Request) -> None:
    """``stage=sft --help``: every key with its value, type, bound and meaning."""
    from alignment import pipeline

    assert request.stage is not None
    values = configure(request)
    name = request.stage.partition("/")[0]
    module = pipeline if name == "pipeline" else pipeline.load_stage(name)
    own = module.described(values) if hasattr(module, "described") else settings_class(request.stage)
    chosen = [group for group in GROUPS[1:] if isinstance(values.get(group), dict)]
    pages.explain(
        request.stage,
        (module.__doc__ or "").strip().splitlines()[0],
        presets=[option for option in options("stage") if option.startswith(f"{name}/")],
        groups={group: options(group) for group in chosen},
        sections={"keys of this stage": own, "keys of every stage": Door},
        value_of=lambda key: at(values, key),
    )


def _print_config(request: Request) -> None:
    import yaml

    # Plain YAML and not OmegaConf's: free text may look like an interpolation.
    values = configure(request)
    print(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), end="")


if __name__ == "__main__":
    main()
