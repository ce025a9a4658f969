"""What Weights & Biases was told: an offline run's file read back, and a server that keeps what `wandb sync` sends."""

from __future__ import annotations

import gzip
import json
import os
import re
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HEADER, BLOCK, CHUNK = 7, 32_768, 7
"""The file: ``:W&B``, a magic number and a version; then LevelDB's log, whose blocks hold chunks of records."""
FIRST, LAST, WHOLE = 2, 4, 1


@dataclass
class Told:
    """One run, in the order of its file."""

    run: Any
    history: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: list[Any] = field(default_factory=list)
    exited: bool = False

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of numbers, without what W&B adds to them."""
        return [row for row in self._plain if not any(isinstance(value, dict) for value in row.values())]

    @property
    def media(self) -> list[dict[str, Any]]:
        """Rows that hold a table, a figure or a page."""
        return [row for row in self._plain if any(isinstance(value, dict) for value in row.values())]

    @property
    def _plain(self) -> list[dict[str, Any]]:
        return [{key: value for key, value in row.items() if not key.startswith("_")} for row in self.history]

    def given(self) -> dict[str, Any]:
        """What the run made, by name; W&B's own artifacts of tables left out."""
        return {one.name: one for one in self.artifacts if not one.use_after_commit and one.type != "run_table"}

    def taken(self) -> dict[str, Any]:
        """What the run read, by name."""
        return {one.name: one for one in self.artifacts if one.use_after_commit}


def closed(path: Path, seconds: float = 20.0) -> Told:
    """The same once the run has ended: W&B's own process writes the file, and a little later."""
    until = time.monotonic() + seconds
    while not (told := read(path)).exited:
        assert time.monotonic() < until, f"{path} does not end"
        time.sleep(0.05)
    return told


def record_files(folder: Path) -> list[Path]:
    """The offline runs below a stage's folder."""
    return sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))


def read(path: Path) -> Told:
    """Everything that an offline run's file tells; a chunk that a kill cut short ends it."""
    from wandb.proto import wandb_internal_pb2

    told = Told(None)
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            told.run = record.run
            told.config |= {one.key: json.loads(one.value_json) for one in record.run.config.update}
        elif kind == "history":
            told.history.append({})
            _set(told.history[-1], record.history.item)
        elif kind == "summary":
            _set(told.summary, record.summary.update)
        elif kind == "artifact":
            told.artifacts.append(record.artifact)
        elif kind == "exit":
            told.exited = True
    return told


def _set(values: dict[str, Any], items: Any) -> None:
    """Put items, whose keys may be paths, into nested values."""
    for item in items:
        *path, last = item.nested_key or [item.key]
        inner = values
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = json.loads(item.value_json)


def _records(data: bytes) -> Iterator[bytes]:
    assert data[:4] == b":W&B"
    place, begun = HEADER, b""
    while place + CHUNK <= len(data):
        left = BLOCK - place % BLOCK
        if left < CHUNK:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        chunk = data[place + CHUNK : place + CHUNK + length]
        if kind == 0 or len(chunk) < length:
            return
        place += CHUNK + length
        begun = chunk if kind in (WHOLE, FIRST) else begun + chunk
        if kind in (WHOLE, LAST):
            yield begun


class Server:
    """Answers W&B's programs as far as they ask, and keeps what they send."""

    def __init__(self) -> None:
        self.history: dict[str, dict[int, dict[str, Any]]] = {}
        """By run, then by line: a line that is sent again takes the place of the one before, as on the real one."""
        self.runs: dict[str, dict[str, Any]] = {}
        self.made: dict[str, dict[str, Any]] = {}
        """Artifacts by id, as they were created."""
        self.edges: set[tuple[str, str, str]] = set()
        """(run, used or made, name and digest of the artifact)"""
        self.committed: set[str] = set()
        self.uploads: dict[str, bytes] = {}
        self.address = ""
        self._lock = threading.Lock()

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        handler = getattr(self, f"_on_{found[1]}", None) if found else None
        with self._lock:
            return handler(variables.get("input") or variables) if handler else {}

    def stream(self, path: str, body: dict[str, Any]) -> None:
        run = path.split("/")[-2]
        part = body.get("files", {}).get("wandb-history.jsonl")
        with self._lock:
            if part:
                lines = self.history.setdefault(run, {})
                lines.update({part["offset"] + n: json.loads(line) for n, line in enumerate(part["content"])})

    def rows(self, run: str) -> list[dict[str, Any]]:
        lines = self.history[run]
        assert sorted(lines) == list(range(len(lines)))
        return [{key: value for key, value in lines[n].items() if key[0] != "_"} for n in sorted(lines)]

    def _on_Viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}

    def _on_ArtifactType(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"project": None}

    def _on_UpsertBucket(self, values: dict[str, Any]) -> dict[str, Any]:
        name = values["name"]
        known = self.runs.setdefault(name, {})
        known |= {key: value for key, value in values.items() if value is not None}
        bucket = {"id": name, "name": name, "displayName": name, "sweepName": None, "historyLineCount": 0}
        project = {"id": "p", "name": values.get("project"), "entity": {"id": "e", "name": "me"}}
        return {"upsertBucket": {"bucket": bucket | {"project": project}, "inserted": True}}

    def _on_CreateArtifact(self, values: dict[str, Any]) -> dict[str, Any]:
        name, digest = values["artifactCollectionName"], values["digest"]
        same = (
            key for key, one in self.made.items() if (one["artifactCollectionName"], one["digest"]) == (name, digest)
        )
        key = next(same, f"a{len(self.made)}")
        state = "COMMITTED" if key in self.committed else "PENDING"
        self.made.setdefault(key, values)
        if values.get("runName"):
            self.edges.add((values["runName"], "made", f"{name}:{digest}"))
        sequence = {"id": name, "name": name, "latestArtifact": None}
        return {"createArtifact": {"artifact": {"id": key, "state": state, "artifactSequence": sequence}}}

    def _on_CreateArtifactManifest(self, values: dict[str, Any]) -> dict[str, Any]:
        key = values["artifactID"]
        return {"createArtifactManifest": {"artifactManifest": {"id": key, "file": self._file(f"manifest/{key}")}}}

    def _on_CreateArtifactFiles(self, values: dict[str, Any]) -> dict[str, Any]:
        nodes = []
        for one in values["artifactFiles"]:
            where = f"artifact/{one['artifactID']}/{one['name']}"
            node = self._file(where) | {"name": one["name"], "storagePath": where, "uploadMultipartUrls": None}
            nodes.append({"node": node | {"artifact": {"id": one["artifactID"]}}})
        return {"createArtifactFiles": {"files": {"edges": nodes}}}

    def _on_CommitArtifact(self, values: dict[str, Any]) -> dict[str, Any]:
        key = values["artifactID"]
        self.committed.add(key)
        return {"commitArtifact": {"artifact": {"id": key, "digest": self.made[key]["digest"]}}}

    def _on_UseArtifact(self, values: dict[str, Any]) -> dict[str, Any]:
        made = self.made[values["artifactID"]]
        self.edges.add((values["runName"], "used", f"{made['artifactCollectionName']}:{made['digest']}"))
        return {"useArtifact": {"artifact": {"id": values["artifactID"], "digest": made["digest"]}}}

    def _on_CreateRunFiles(self, values: dict[str, Any]) -> dict[str, Any]:
        run = values["run"]
        told = [{"name": name, "uploadUrl": self._url(f"run/{run}/{name}")} for name in values["files"]]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": told}}

    def _url(self, where: str) -> str:
        return f"{self.address}/upload/{where}"

    def _file(self, where: str) -> dict[str, Any]:
        return {"id": where, "name": where, "displayName": where, "uploadUrl": self._url(where), "uploadHeaders": []}


@contextmanager
def serving() -> Iterator[Server]:
    """A server at an address of this machine's own."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            return

        def _send(self, value: Any) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while length := int(self.rfile.readline(), 16):
                    body += self.rfile.read(length)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

        def do_GET(self) -> None:
            self._send({})

        def do_PUT(self) -> None:
            server.uploads[self.path.removeprefix("/upload/")] = self._body()
            self._send({})

        def do_POST(self) -> None:
            body = self._body()
            if self.path.endswith("/graphql"):
                asked = json.loads(body)
                self._send({"data": server.answer(asked["query"], asked.get("variables") or {})})
                return
            if self.path.endswith("/file_stream"):
                server.stream(self.path, json.loads(body))
            self._send({})

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.address = f"http://127.0.0.1:{http.server_port}"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


def sync(server: Server, *folders: Path) -> None:
    """``wandb sync`` of offline runs to the server."""
    environment = os.environ | {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": "0" * 40}
    environment.pop("WANDB_SERVICE", None)
    called = [sys.executable, "-m", "wandb", "sync", *map(str, folders)]
    done = subprocess.run(called, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
