"""The floors hold: a file imports only from lower floors, or from its own folder without a circle."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "alignment"

FLOORS = (
    (
        *("errors", "settings", "files", "console", "artifacts", "store", "parts", "command_line"),
        *("ranks", "signals", "energy", "allocator"),
    ),
    ("chat", "objectives", "merging.kernels", "merging.front"),
    ("gemma", "data", "miniature", "merging", "cluster"),
    ("sampling", "training", "estimate"),
    ("scoring",),
    ("rl", "distillation", "evals", "reporting", "release"),
    ("stages", "commands"),
    ("run", "pipeline", "plans"),
)
"""Rooms by floor; a file that stands lower than the rest of its room is named with it."""
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
ALLOWED_BESIDE = {("data", "miniature"), ("evals", "reporting")}
"""Rooms of one floor of which the first may use the second."""
FREE = {0, len(FLOORS) - 1}
"""Floors whose files may use each other, as long as there is no circle."""


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "_conf" not in path.parts)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path, *, lazy: bool = True) -> set[str]:
    """Modules of ours that a file imports; without those inside functions where ``lazy`` is False."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if lazy else tree.body
    known = {module_of(file) for file in files()}
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else node.module)
    return {name for name in found if name.split(".")[0] == "alignment" and name != "alignment"}


def room_of(module: str) -> str:
    return module.split(".")[1]


def floor_of(module: str) -> int:
    named = ".".join(module.split(".")[1:3])
    return FLOOR[named if named in FLOOR else room_of(module)]


@pytest.mark.parametrize("path", files(), ids=module_of)
def test_imports_go_down(path: Path) -> None:
    module = module_of(path)
    if module == "alignment":
        return
    room = room_of(module)
    for other in imports_of(path):
        target, floor, other_floor = room_of(other), floor_of(module), floor_of(other)
        allowed = target == room or floor in FREE or (room, target) in ALLOWED_BESIDE
        fits = other_floor < floor or (other_floor == floor and allowed)
        assert fits, f"{module} (floor {floor}) imports {other} (floor {other_floor})"


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(module_of(path)) for path in files() if module_of(path) != "alignment"}
    assert rooms <= FLOOR.keys(), rooms - FLOOR.keys()


def test_stages_and_commands_do_not_import_their_siblings() -> None:
    for room in ("stages", "commands"):
        for path in (PACKAGE / room).glob("*.py"):
            siblings = {name for name in imports_of(path) if room_of(name) == room and name.count(".") > 1}
            assert not siblings, f"{path.name} imports {siblings}"


def test_there_is_no_circle() -> None:
    graph = {module_of(path): imports_of(path, lazy=False) for path in files()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " → ".join((*trail, module))
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def importers_of(package: str) -> set[str]:
    found = set()
    for path in files():
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            if any(name.split(".")[0] == package for name in names):
                found.add(module_of(path))
    return found


def test_hydra_ends_at_the_door() -> None:
    assert importers_of("hydra") | importers_of("omegaconf") == {"alignment.run"}


def test_trl_stays_in_the_training_room() -> None:
    importers = importers_of("trl")
    assert importers, "the adapter exists"
    client = "alignment.sampling.vllm"
    assert {room_of(module) for module in importers - {client}} == {"training"}
    if client in importers:
        # Its client of a server, and no trainer.
        path = next(path for path in files() if module_of(path) == client)
        assert re.findall(r"(?:from|import) (trl[\w.]*)", path.read_text()) == ["trl.generation.vllm_client"]


def test_settings_import_without_torch() -> None:
    """``--help`` must not wait for torch: what holds settings does not import it at the top."""
    import subprocess
    import sys

    code = (
        "import sys; from alignment import pipeline; from alignment.stages import STAGES; "
        "from alignment.commands import COMMANDS; "
        "from alignment.evals.suites import KINDS, suite; "
        "[pipeline.load_stage(name).Settings for name in (*STAGES, *COMMANDS)]; "
        "[suite.load(kind).Settings for kind in KINDS]; "
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'wandb'} & sys.modules.keys(); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
