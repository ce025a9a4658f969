"""Recipes from anybody: read, validated and planned, or refused in words; nothing is read beside their folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fuzzing
import hostile
import yaml
from hypothesis import strategies as st

from alignment import run
from alignment.command_line import Request
from alignment.data import recipe
from alignment.stages import data

SHIPPED = [yaml.safe_load(path.read_text()) for path in sorted(run.RECIPES.glob("*.yaml"))]
FILES: dict[str, Any] = {
    "kind": "conversations",
    "sources": [
        {
            "name": "s",
            "licence": "MIT",
            "format": "prompt_completion",
            "columns": {"prompt": "q", "completion": "a"},
            "files": {"paths": ["rows.jsonl"], "reader": "jsonl"},
            "expected_rows": 1,
        }
    ],
    "splits": {"train": 0.5, "valid": 0.25, "test": 0.25},
    "seed": 0,
    "max_dropped": 0.5,
    "filters": [{"filter": "length", "action": "drop", "options": {"most": 100}}],
    "root": None,
}
PATHS = (
    "../outside/kept",
    "rows.jsonl",
    "*.jsonl",
    "link.jsonl",
    "l*.jsonl",
    "/etc/passwd",
    "a/../rows.jsonl",
    "~/x",
    ".",
)
PLACES = ("..", "/", ".", "sub", "../outside", "~", "sub/..", "\0")


def written(tree: Any) -> str:
    """As YAML; what it cannot spell as JSON, which YAML reads too."""
    try:
        return yaml.safe_dump(tree, allow_unicode=True, sort_keys=False)
    except (yaml.YAMLError, ValueError):
        return hostile.plain(tree)


@st.composite
def trees(draw: st.DrawFn) -> str:
    """Recipes with something wrong in them, and texts that are none."""
    what = draw(st.sampled_from(["files", "files", "files", "shipped", "text", "lines"]))
    if what == "text":
        return draw(hostile.texts(60))
    tree = draw(hostile.changed(FILES if what != "shipped" else draw(st.sampled_from(SHIPPED))))
    if what == "files" and isinstance(tree, dict) and draw(st.booleans()):
        tree["root"] = draw(st.sampled_from(PLACES))
    if what == "files" and tree == FILES:
        tree["sources"][0]["files"]["paths"] = draw(st.lists(st.sampled_from(PATHS), min_size=1, max_size=2))
    text = written(tree)
    if what == "lines":
        lines = text.splitlines(keepends=True)
        place = draw(st.integers(0, len(lines)))
        lines.insert(
            place,
            draw(st.sampled_from(["a: &x [*x]\n", "? [1]\n", "  b: 2020-13-99\n", "\t\n", "!!set {a}\n", "<<: *y\n"])),
        )
        text = "".join(lines)
    return text


def laid_out(folder: Path, text: str) -> Path:
    """A recipe in a folder with one file, one link out of it and a folder below."""
    (folder / "rows.jsonl").write_text('{"q": "a", "a": "b"}\n')
    (folder / "link.jsonl").symlink_to("../outside/kept")
    (folder / "sub").mkdir()
    path = folder / "recipe.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    return path


def recipes_are_planned_or_refused(folder: Path, text: str) -> None:
    path = laid_out(folder, text)

    def planned() -> list[Path]:
        values = recipe.read_yaml(path)
        found = recipe.Recipe.parse({**values, "root": str(recipe.root_of(values, path))}, str(path))
        assert len(found.digest) == 64
        return recipe.local_files(found, Path.cwd())

    assert all(file.resolve().is_relative_to(folder) for file in fuzzing.told(planned) or [])


test_recipes, test_recipes_thoroughly = fuzzing.both(
    recipes_are_planned_or_refused, quick=60, thorough=2000, text=trees()
)


def recipes_come_through_the_door_or_are_refused(folder: Path, text: str) -> None:
    path = laid_out(folder, text)

    def planned() -> list[Path]:
        _, _, values = run._checked(Request(stage="data", overrides=[("recipe", str(path))]))
        return data.sources(data.Settings.parse(values, "stage=data"))[:-1]

    assert all(file.resolve().is_relative_to(folder) for file in fuzzing.told(planned) or [])


test_recipes_at_the_door, test_recipes_at_the_door_thoroughly = fuzzing.both(
    recipes_come_through_the_door_or_are_refused, quick=8, thorough=300, text=trees()
)


def lists_are_read_or_refused(folder: Path, text: str) -> None:
    from alignment.data import lists

    path = folder / "list.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    assert isinstance(fuzzing.told(lambda: lists.read(path)), dict | None)


test_lists, test_lists_thoroughly = fuzzing.both(
    lists_are_read_or_refused,
    quick=50,
    thorough=1000,
    text=st.one_of(trees(), st.text(alphabet="ab:-[]{}&*!|>'\"%@#?,~ \n\t0.e+", max_size=30)),
)
