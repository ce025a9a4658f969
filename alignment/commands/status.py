"""Show how steps fare: finished, running and for how long yet, queued and why, failed and where to look."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from alignment import console
from alignment.artifacts import Artifact
from alignment.cluster import state
from alignment.cluster.state import Fare, State
from alignment.errors import UserError, nearest
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, place
from alignment.store import Store

if TYPE_CHECKING:
    from rich.console import Group

COLOURS: dict[State, str] = {
    "finished": "green",
    "running": "cyan",
    "queued": "",
    "waiting": "dim",
    "stopped": "yellow",
    "failed": "red",
}


class Settings(StrictSettings):
    """``stage=status``."""

    pipeline: str | None = place("the pipeline; null takes all with something unfinished, or else the latest one")
    watch: bool | None = execution("look again until nothing is under way; null does so on a terminal")
    every: float = execution("seconds between two looks", ge=1)


def run(settings: Settings, inputs: dict[str, Artifact], store: Store) -> None:
    """Print the tables, once or again and again."""
    known = state.pipelines(store.root)
    if not known:
        raise UserError(f"{store.root}: no pipeline was ever run or submitted here", remedy="store=<folder> names it.")
    if settings.pipeline is not None and settings.pipeline not in known:
        raise UserError(
            f"pipeline={settings.pipeline}: there is none in {store.root}", remedy=nearest(settings.pipeline, known)
        )
    look = partial(_look, store.root, known if settings.pipeline is None else [settings.pipeline])
    if not (console.is_live() if settings.watch is None else settings.watch):
        console.console().print(_page(look()))
        return
    from rich.live import Live

    with contextlib.suppress(KeyboardInterrupt), Live(console=console.console(), auto_refresh=False) as live:
        for seen in state.watch(look, settings.every):
            live.update(_page(seen), refresh=True)


def _look(store: Path, names: Sequence[str]) -> list[Fare]:
    """The steps of these pipelines; of several, those that have something unfinished, or else the last."""
    seen = [state.fares(store, name, _why) for name in names]
    open_ones = [fares for fares in seen if any(one.state != "finished" for one in fares)]
    return [one for fares in open_ones or seen[-1:] for one in fares]


def _why(folder: Path) -> str:
    """What a step that stopped has last left word of."""
    from alignment.training import incidents

    told = incidents.told(folder).get("incidents", [])
    return str(told[-1]["why"]) if told else ""


def _page(fares: Sequence[Fare]) -> Group:
    """A table for each pipeline, below a line that counts."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Text | Table] = []
    for name in dict.fromkeys(one.folder.parent.name for one in fares):
        mine = [one for one in fares if one.folder.parent.name == name]
        counted = Counter(one.state for one in mine)
        line = ", ".join(f"{counted[each]} {each}" for each in COLOURS if counted[each])
        parts.append(Text.assemble((f"pipeline={name}", "bold"), f"  {line}"))
        sheet = Table(header_style="dim", box=None, pad_edge=False)
        for column in ("step", "state", "", "job", "starts"):
            sheet.add_column(column, overflow="fold", no_wrap=column in ("state", "job"))
        for one in mine:
            starts = str(one.restarts + 1) if one.restarts else ""
            sheet.add_row(Text(one.step), Text(one.state, COLOURS[one.state]), Text(one.told), one.job, starts)
        parts += [sheet, *(Text(f"  {one.step}: see {one.log}", "yellow") for one in mine if _is_telling(one))]
        parts.append(Text())
    return Group(*parts)


def _is_telling(one: Fare) -> bool:
    """Whether a step's log is worth a look."""
    return one.state in ("failed", "stopped") and one.log != "" and Path(one.log).is_file()
