"""Secrets in the environment of a test, and the search for them in all that was written."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from local_server import LocalServer

SECRETS = {
    "WANDB_API_KEY": "0b1c2d3e4f5a69788796a5b4c3d2e1f00f1e2d3c",
    "HF_TOKEN": "hf_PlantedPlantedPlantedPlanted0123456",
    "OPENAI_API_KEY": "sk-planted-0a1b2c3d4e5f60718293a4b5c6d7",
    "ALIGNMENT_SERVE_TOKEN": "served-planted-5f4e3d2c1b0a",
    "ALIGNMENT_TEAM_KEY": "team-planted-99887766554433221100",
    "MY_DATABASE_PASSWORD": "planted/pass+word=0123",
}
PROXY_PASSWORD = "planted-proxy-pass-4242"


def spellings(secret: str) -> list[bytes]:
    """A secret as it may stand in a file: plain, in a URL, in JSON, in Base64."""
    plain = [secret, quote(secret, safe=""), json.dumps(secret)[1:-1], base64.b64encode(secret.encode()).decode()]
    return [one.encode() for one in dict.fromkeys(plain)]


def leaks(folder: Path, *texts: str) -> list[str]:
    """Where a secret stands: in files, in their names, in what links name, in texts."""
    found = []
    everything = [(str(path), str(path).encode() + path.read_bytes()) for path in folder.rglob("*") if path.is_file()]
    everything += [("printed", text.encode(errors="surrogatepass")) for text in texts]
    for name, secret in {**SECRETS, "HTTPS_PROXY": PROXY_PASSWORD}.items():
        # A block of W&B's file may end within a secret: half of it is enough to be found.
        halves = [part for one in spellings(secret) for part in (one, one[: len(one) // 2 + 4])]
        found += [f"{name} in {where}" for where, data in everything if any(part in data for part in halves)]
    return sorted(set(found))


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    """The secrets in the environment, a home of one's own, and a server that answers endpoints."""
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    monkeypatch.setenv("HTTPS_PROXY", f"http://somebody:{PROXY_PASSWORD}@127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "home" / "wandb"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "home" / "cache"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("CI", "true")
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    with LocalServer() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        yield server
