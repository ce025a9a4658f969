"""Running command lines from tests, as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

QUIET = ("tracker=off",)


def command(store: Path, *arguments: str) -> list[str]:
    """A command line with its own store."""
    return [sys.executable, "-m", "alignment.run", f"store={store}", *arguments]


def call(store: Path, *arguments: str, seconds: float = 600) -> subprocess.CompletedProcess[str]:
    """Run a command line to its end."""
    environment = {**os.environ, "CI": "true", "COLUMNS": "160"}
    line = command(store, *arguments)
    return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=seconds)
