"""What listens: on this machine alone unless told otherwise, with a token, within bounds of size, queue and time."""

from __future__ import annotations

import hmac
import ipaddress
import socket
import time
from pathlib import Path

import pytest
import yaml
from scoring.running import Numbers, Running, row

from alignment import run
from alignment.commands import serve
from alignment.errors import UserError
from alignment.scoring import service
from alignment.scoring.remote import LONGEST_REPLY, TOKEN, Remote
from alignment.training import lifelines

TOKEN_VALUE = "a-token-of-a-test-1b2c3d"
SHIPPED = yaml.safe_load((Path(__file__).parents[2] / "conf" / "stage" / "serve.yaml").read_text())


def test_the_shipped_address_is_this_machine_alone() -> None:
    assert ipaddress.ip_address(SHIPPED["host"]).is_loopback
    assert serve._is_loopback(SHIPPED["host"])
    assert not serve._is_loopback("0.0.0.0")
    assert not serve._is_loopback("::")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "node7", "localhost.example.org"])
def test_other_machines_are_let_in_with_a_token_alone(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["stage=serve", f"store={tmp_path}", "target=latest:none", f"host={host}"]
    monkeypatch.delenv(TOKEN, raising=False)
    assert run.door(line) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"host={host}: other machines could reach it, and {TOKEN} is not set" in said
    assert f"export {TOKEN}=…" in said
    # With one, what is wrong is something else; and without one this machine may still ask.
    for at, token in ((host, TOKEN_VALUE), ("127.0.0.1", None)):
        if token:
            monkeypatch.setenv(TOKEN, token)
        else:
            monkeypatch.delenv(TOKEN)
        assert run.door([*line, f"host={at}"]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "latest:none" in said
        assert "other machines" not in said
        assert TOKEN_VALUE not in said


def test_everything_but_its_health_asks_for_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    with Running(Numbers(), token=TOKEN_VALUE) as running:
        assert running.ask("/health")[0] == 200
        body = {"dialogues": [row("1")]}
        for headers in (
            {},
            {"Authorization": "Bearer x"},
            {"Authorization": TOKEN_VALUE},
            {"Authorization": f"Bearer {TOKEN_VALUE} "[:-2]},
        ):
            for path, sent in (("/score", body), ("/about", None), ("/seen", {"keys": []}), ("/nowhere", None)):
                status, told, _ = running.ask(path, sent, **headers)
                assert status == 401, path
                assert TOKEN_VALUE not in str(told)
        assert not running.scorer.calls
        assert running.ask("/score", body, Authorization=f"Bearer {TOKEN_VALUE}")[0] == 200
        monkeypatch.setenv(TOKEN, "another-token-of-a-test")
        with pytest.raises(UserError, match="Set ALIGNMENT_SERVE_TOKEN") as told_user:
            Remote(running.address, attempts=1)
        assert "another-token" not in str(told_user.value)


def test_size_queue_and_time_are_bounded() -> None:
    with Running(Numbers(), room=4, most_bytes=2**12, timeout=1.0) as running:
        assert running.ask("/score", b" " * 2**13)[0] == 413
        assert running.ask("/score", {"dialogues": [row("1")] * 5})[0] == 413
        began = time.monotonic()
        with socket.create_connection(running.address.split(":")) as trickle:
            # A body that is promised and does not come.
            trickle.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            trickle.settimeout(30)
            assert b" 503 " in trickle.recv(4096).split(b"\r\n")[0]
        assert time.monotonic() - began < 20


def test_a_server_that_answers_without_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    def flood(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            try:
                while True:
                    connection.sendall(b" " * 2**16)
            except OSError:
                pass

    monkeypatch.setattr("alignment.scoring.remote.LONGEST_REPLY", 2**20)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=flood, args=(listener,), daemon=True).start()
        with pytest.raises(UserError, match="longer than"):
            Remote(f"127.0.0.1:{listener.getsockname()[1]}", attempts=1, timeout=10)
    assert LONGEST_REPLY >= 2**20


@pytest.mark.parametrize(
    ("address", "listens"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "127.0.0.1"),
        # Another address of this machine, as that of one of its networks is.
        ("127.0.0.2", "127.0.0.2"),
        # A name may be known for another address here than elsewhere, and an address may lead here without being here.
        ("some-name", None),
        ("203.0.113.7", None),
    ],
)
def test_rank_0_listens_where_the_others_look_for_it_alone(address: str, listens: str | None) -> None:
    def seal(content: bytes) -> bytes:
        return hmac.digest(b"key", content, "sha256")

    lines = lifelines.Lifelines(address, 2, seal)
    assert ipaddress.ip_address(lines._server.getsockname()[0]).is_unspecified == (listens is None)
    with lifelines.hold(listens or "127.0.0.1", lines.port, 1, seal, 5):
        assert lines.complete(5)
    if listens in ("127.0.0.1", "127.0.0.2"):
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.3", lines.port), timeout=5)


def test_what_serves_compares_tokens_in_constant_time() -> None:
    import inspect

    assert "hmac.compare_digest" in inspect.getsource(service.Service._check_token)
