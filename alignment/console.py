"""What a person sees while something runs: one console, progress with rate and ETA, tables.

On a terminal a bar moves; in CI or in a log file a line appears now and then instead. Only the
main process speaks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from alignment import signals

if TYPE_CHECKING:
    from rich.console import Console

SECONDS_BETWEEN_LINES = 10.0
CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


def is_main_process() -> bool:
    """Whether this is rank 0 (or the only process)."""
    return os.environ.get("RANK", "0") == "0"


@cache
def console() -> Console:
    """The console that everything is printed on (standard output; silent on other ranks)."""
    width = None if os.environ.get("COLUMNS") or os.isatty(1) else 120
    return make(highlight=False, quiet=not is_main_process(), width=width)


def make(**options: Any) -> Console:
    """A console that prints text and never obeys it: models, data and servers may write control characters."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class Deaf(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else segment._replace(text=segment.text.translate(CONTROLS))

    return Deaf(**options)


def plain(text: object) -> str:
    """Text for a line with markup that is not to be read as markup itself: a path, a name."""
    from rich.markup import escape

    return escape(str(text))


def is_live() -> bool:
    """Whether bars may move: a terminal, and not CI."""
    return console().is_terminal and not os.environ.get("CI")


def say(text: str = "", style: str | None = None) -> None:
    """Print one line; ``text`` may hold rich markup only where a ``style`` is not given."""
    console().print(text, style=style, markup=style is None, soft_wrap=True)


def duration(seconds: float) -> str:
    """``75.2`` → ``1 min 15 s``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    right: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> None:
    """Print a table; the columns named in ``right`` are aligned to the right, those in ``whole`` never broken.

    Cells are taken as they are: no markup is read in them.
    """
    from rich.table import Table
    from rich.text import Text

    if title:
        # Not rich's own title, which is wrapped to the width of the columns.
        console().print(title, style="bold", markup=False)
    headed = any(columns)
    sheet = Table(show_header=headed, header_style="dim", box=None, pad_edge=False)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in right else "left"
        sheet.add_column(column, justify=justify, overflow="fold", no_wrap=column in whole)
    for row in rows:
        sheet.add_row(*(Text(str(cell)) for cell in row))
    console().print(sheet)


class Progress:
    """A count on its way to ``total``. ``unit`` names what is counted; ``note`` is shown beside it."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done, self.note = 0, ""
        self._began, self._start, self._spoken = time.monotonic(), 0, time.monotonic()
        self._bar: Any = None

    def begin_at(self, done: int) -> None:
        """Start from ``done`` (a resumed run); the rate counts only what is done from here on."""
        self.done = self._start = done
        self._show()

    def advance(self, by: int = 1, note: str = "") -> None:
        """Count ``by`` more."""
        self.done += by
        self.note = note or self.note
        self._show()

    def line(self) -> str:
        """``sft  120/400 steps  12.3 steps/s  23 s left  loss 1.23``."""
        passed = max(time.monotonic() - self._began, 1e-9)
        rate = (self.done - self._start) / passed
        left = f"{duration((self.total - self.done) / rate)} left" if rate and self.done < self.total else ""
        parts = [self.title, f"{self.done:,}/{self.total:,} {self.unit}", f"{rate:,.1f} {self.unit}/s", left, self.note]
        return "  ".join(part for part in parts if part)

    def _show(self) -> None:
        signals.beat(self.done, self.total, self.unit)
        if self._bar is not None:
            bar, task = self._bar
            bar.update(task, completed=self.done, note=self.note, rate=self._rate())
        elif not is_live() and time.monotonic() - self._spoken > SECONDS_BETWEEN_LINES:
            self._spoken = time.monotonic()
            say(f"  {self.line()}", style="dim")

    def _rate(self) -> str:
        passed = max(time.monotonic() - self._began, 1e-9)
        return f"{(self.done - self._start) / passed:,.1f} {self.unit}/s"


@contextmanager
def progress(title: str, total: int, unit: str) -> Iterator[Progress]:
    """Show ``title`` on its way to ``total`` while the body runs."""
    tracked = Progress(title, total, unit)
    if not is_live():
        yield tracked
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("  {task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
    )
    with Bar(*columns, console=console(), transient=True) as bar:
        tracked._bar = (bar, bar.add_task(title, total=total, note="", rate=""))
        yield tracked
