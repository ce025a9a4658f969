"""A headless browser that pages are opened in, driven over its debugging protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
STARTING = 120.0


class Browser:
    """One tab. ``told`` holds what went wrong or outside in it: exceptions, console messages, requests."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, loop: asyncio.AbstractEventLoop) -> None:
        self._socket, self._loop, self._number = socket, loop, 0
        self.told: list[tuple[str, str]] = []

    def call(self, method: str, **said: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        return self._loop.run_until_complete(self._call(method, said))

    def open(self, page: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a page and wait until it has loaded and its scripts have run."""
        self.told.clear()
        theme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=theme)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=page.as_uri())
        self.wait("document.readyState === 'complete' && location.href.startsWith('file:')")

    def wait(self, condition: str, seconds: float = 120.0) -> None:
        """Until a condition holds in the page."""
        ends = time.monotonic() + seconds
        while not self.value(condition):
            assert time.monotonic() < ends, f"{condition} does not come true; {self.told}"
            time.sleep(0.02)

    def value(self, expression: str) -> Any:
        """What an expression is in the page, as JSON holds it."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def picture(self, path: Path) -> None:
        """The whole page as a PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    async def _call(self, method: str, said: Mapping[str, Any]) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": dict(said)})
        while True:
            message = json.loads((await asyncio.wait_for(self._socket.receive(), 120)).data)
            if message.get("id") == self._number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self._hear(message)

    def _hear(self, message: Mapping[str, Any]) -> None:
        method, said = message["method"], message["params"]
        if method == "Runtime.exceptionThrown":
            self.told.append(("exception", json.dumps(said["exceptionDetails"])[:600]))
        elif method == "Runtime.consoleAPICalled":
            self.told.append((said["type"], json.dumps(said["args"])[:600]))
        elif method == "Log.entryAdded":
            self.told.append((said["entry"]["level"], said["entry"]["text"]))
        elif method == "Network.requestWillBeSent" and not said["request"]["url"].startswith(("data:", "blob:")):
            self.told.append(("request", said["request"]["url"]))
        elif method == "Page.javascriptDialogOpening":
            self.told.append(("dialog", said["message"]))

    @property
    def wrong(self) -> list[tuple[str, str]]:
        """Everything but the page's own file."""
        self.value("1")
        return [one for one in self.told if not (one[0] == "request" and one[1].startswith("file:"))]


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser with a profile in ``folder``; the test is skipped where there is none on this machine."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no browser here: Chromium would open the page")
    quiet = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage")
    own = (f"--user-data-dir={folder}", "--remote-debugging-port=0", "--disable-background-networking", "about:blank")
    process = subprocess.Popen([program, *quiet, *own], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    loop = asyncio.new_event_loop()
    session: aiohttp.ClientSession | None = None
    try:
        port = _port(folder, process)
        session, socket = loop.run_until_complete(_connect(port))
        tab = Browser(socket, loop)
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.call(f"{domain}.enable")
        yield tab
    finally:
        if session is not None:
            loop.run_until_complete(session.close())
        process.terminate()
        process.wait(20)
        loop.close()


def _port(folder: Path, process: subprocess.Popen[bytes]) -> int:
    told, ends = folder / "DevToolsActivePort", time.monotonic() + STARTING
    while not (told.is_file() and told.read_text().count("\n")):
        assert process.poll() is None, "the browser has ended"
        assert time.monotonic() < ends, "the browser does not start"
        time.sleep(0.05)
    return int(told.read_text().splitlines()[0])


async def _connect(port: int) -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
    session = aiohttp.ClientSession()
    async with session.get(f"http://127.0.0.1:{port}/json") as answer:
        tabs = await answer.json()
    url = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
    return session, await session.ws_connect(url, max_msg_size=0)
