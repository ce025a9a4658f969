"""What the door prints: the list of stages, a stage's keys, an error. Quick to import."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alignment import console
from alignment.errors import UserError
from alignment.settings import Settings, describe

LONGEST_VALUE = 40


def list_stages(stages: Mapping[str, str], pipelines: Sequence[str], commands: Mapping[str, str]) -> None:
    """The bare call: stages, pipelines and commands, a line each."""
    lines = [
        "Post-training of Gemma-shaped language models.",
        "",
        "  python -m alignment.run stage=<stage> [key=value …]",
    ]
    groups = (
        ("Stages (each writes one artifact)", stages),
        ("Pipelines", {"pipeline": "run a whole plan: " + ", ".join(pipelines)}),
        ("Commands (they write none)", commands),
    )
    for title, entries in groups:
        lines += ["", title] + [f"  {name:<11}{line}" for name, line in entries.items()]
    lines += [
        "",
        "stage=<stage> --help explains every key; dry_run=true says what would happen; --cfg job prints the settings.",
        "Start here: python -m alignment.run stage=pipeline pipeline=mini",
    ]
    print("\n".join(lines))


def explain(
    stage: str,
    line: str,
    *,
    presets: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    sections: Mapping[str, type[Settings]],
    value_of: Callable[[str], Any],
) -> None:
    """``--help`` of a stage: its presets and groups, then every key with value, type, bound and meaning."""
    console.say(f"[bold]stage={stage}[/bold]  {line}")
    if presets:
        console.say("presets: " + ", ".join(f"stage={preset}" for preset in presets))
    for group, options in groups.items():
        console.say(f"{group}=… one of {', '.join(options)}" + (" or a file.yaml" if group == "recipe" else ""))
    for title, model in sections.items():
        rows = []
        for info in describe(model):
            mark = "○" if info.role == "execution" else ""
            kind = f"{info.type}{', ' if info.bounds else ''}{info.bounds}"
            rows.append((info.key, mark, _brief(value_of(info.key)), kind, info.doc))
        console.say()
        console.table(title, ("key", "", "value", "type and bound", "meaning"), rows, whole=("key",))
    console.say("\n○ changes only how or where the result is computed, never what it is", style="dim")


def complain(error: UserError) -> None:
    """An error on standard error: what was refused, why, and what to do."""
    from rich.text import Text

    printed = Text(error.problem, style="bold red")
    for part, style in ((error.cause, ""), (error.remedy, "green")):
        if part:
            printed.append(f"\n  {part}", style=style)
    console.make(stderr=True, highlight=False, soft_wrap=True).print(printed)


def _brief(value: Any) -> str:
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return shown if len(shown) <= LONGEST_VALUE else shown[: LONGEST_VALUE - 3] + "…"
