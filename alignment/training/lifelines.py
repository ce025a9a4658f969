"""A connection from every process to rank 0 that closes when the process ends, in whatever way it ends.

Kernels tell, and not the program: a process that computes for an hour is not taken for one that is gone, and one that
was killed is noticed at once. Of a machine that was lost nothing is heard, for which connections are probed.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
import threading
import time
from collections.abc import Callable

from alignment.errors import UserError

PROBES = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}
"""Seconds of silence before the first probe, and between two; and unanswered ones after which a machine is gone."""
DIGITS = 8
"""Of a rank, as a process says it first."""
HELLO = 10.0
"""Seconds in which one who has connected has to say who it is."""

LOOPBACK = ("localhost", "127.0.0.1")

Seal = Callable[[bytes], bytes]
"""Signs with what only the processes of a run know."""


class Lifelines:
    """Those of the other processes, at rank 0. ``port`` is where they connect; ``gone`` the first that has ended.

    ``address`` is the one by which they know this machine, and the only one at which it listens where that is a number.
    """

    def __init__(self, address: str, world: int, seal: Seal) -> None:
        self._seal, self._joined = seal, threading.Semaphore(0)
        self._others = world - 1
        self.gone: int | None = None
        self._server = _at("127.0.0.1" if address in LOOPBACK else address, world) or _everywhere(world)
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, name="lifelines", daemon=True).start()

    def complete(self, patience: float) -> bool:
        """Whether all others have connected within so many seconds."""
        until = time.monotonic() + patience
        return all(self._joined.acquire(timeout=max(0.0, until - time.monotonic())) for _ in range(self._others))

    def _accept(self) -> None:
        while True:
            connection, _ = self._server.accept()
            threading.Thread(target=self._watch, args=(connection,), daemon=True).start()

    def _watch(self, connection: socket.socket) -> None:
        with connection:
            rank = self._asked(connection)
            if rank is None:
                return
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in PROBES.items():
                if hasattr(socket, name):
                    connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
            self._joined.release()
            _until_closed(connection)
            if self.gone is None:
                self.gone = rank

    def _asked(self, connection: socket.socket) -> int | None:
        """Who has connected; None for anybody who is no process of this run."""
        connection.settimeout(HELLO)
        said, size = b"", DIGITS + len(self._seal(b""))
        try:
            while len(said) < size:
                more = connection.recv(size - len(said))
                if not more:
                    return None
                said += more
        except OSError:
            return None
        connection.settimeout(None)
        rank, sealed = said[:DIGITS], said[DIGITS:]
        return int(rank) if hmac.compare_digest(sealed, self._seal(rank)) else None


def _at(address: str, world: int) -> socket.socket | None:
    """Listening at one address of this machine; None for a name, which others may know for another address than this
    machine itself does, and for an address that leads here and is not its own, as behind a router.
    """
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
        return socket.create_server((address, 0), family=family, backlog=world)
    except (ValueError, OSError):
        return None


def _everywhere(world: int) -> socket.socket:
    """Listening at every address of this machine."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", 0), family=family, dualstack_ipv6=both, backlog=world)


def hold(address: str, port: int, rank: int, seal: Seal, patience: float) -> socket.socket:
    """This process's own connection to rank 0, to be held until its end. Raises :class:`UserError` without one."""
    said = f"{rank:0{DIGITS}}".encode()
    try:
        connection = socket.create_connection((address, port), timeout=patience)
        connection.sendall(said + seal(said))
    except OSError as error:
        raise UserError(
            f"process {rank} does not reach process 0 at {address}:{port}",
            cause=str(error),
            remedy="Nodes of a run have to reach each other at every port above 1024, as NCCL and gloo need too.",
        ) from None
    connection.settimeout(None)
    return connection


def _until_closed(connection: socket.socket) -> None:
    try:
        while connection.recv(64):
            pass
    except OSError:
        return
