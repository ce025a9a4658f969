"""A run that waits for a server ends soon after it is told to, and pays for no answer twice."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from threading import Event

import drawing
import pytest
from local_server import LocalServer
from tests_support import call, command

from alignment import signals
from alignment.chat.types import Prompt, messages

KEPT = 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_silent_server_holds_up_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    prompts = {"train": [Prompt(messages(("user", f"Question {n}?")), f"p{n}") for n in range(8)]}
    drawing.dataset(tmp_path / "prompts", "prompts", prompts)  # type: ignore[arg-type]
    store, end = tmp_path / "runs", Event()
    line = ("stage=teach", "teacher=endpoint:local", f"prompts=dir:{tmp_path / 'prompts'}", "splits=[train]")
    line += ("endpoint.concurrency=2",)
    with LocalServer() as server:
        server.name_it(monkeypatch)
        # After some answers none comes.
        server.faults.extend([None] * KEPT)
        server.always = lambda handler: end.wait() and None
        running = subprocess.Popen(
            command(store, *line), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ}
        )
        try:
            while (len(server.requests) < KEPT + 2 or journalled(store) < KEPT) and running.poll() is None:
                time.sleep(0.05)
            began = time.monotonic()
            running.send_signal(signal.SIGTERM)
            said = running.communicate(timeout=60)[0]
        finally:
            running.kill()
            end.set()
        assert running.returncode == signals.REQUEUE, said
        assert time.monotonic() - began < 15, said
        assert f"SIGTERM: stopped with {8 - KEPT} answers of endpoint:local to come" in " ".join(said.split())
        assert journalled(store) == KEPT
        server.always, before = None, len(server.requests)
        done = call(store, *line)
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(server.requests) - before == 8 - KEPT


def journalled(store: Path) -> int:
    """Answers that are kept."""
    return sum(len(path.read_text().splitlines()) for path in store.rglob("journal*.jsonl"))
