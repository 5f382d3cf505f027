"""A headless Chromium, driven over its DevTools protocol: what a person sees and types.

Decides: that it talks to loopback alone, keeps nothing, and what an exception on the page means (the test fails).
Refuses to know: which page it looks at.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import ClientSession, ClientWebSocketResponse

from tests.support.tools import require
from tests.support.waiting import eventually

ANSWER_S = 20.0
_OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage", "--mute-audio"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    *("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--remote-debugging-port=0"),
)


class Browser:
    """One page. Its methods block; `errors` are the page's own complaints."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self._folder = Path(tempfile.mkdtemp(prefix="mb-browser-"))
        self._loop = asyncio.new_event_loop()
        self._number = 0
        self._process = subprocess.Popen(
            [require("chromium"), *_OPTIONS, f"--user-data-dir={self._folder}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._session: ClientSession | None = None
        self._socket: ClientWebSocketResponse | None = None

    def __enter__(self) -> Self:
        try:
            self._loop.run_until_complete(self._connect())
            for domain in ("Page", "Runtime", "Log"):
                self._call(f"{domain}.enable")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        if kind is None:
            assert self.errors == []

    def open(self, address: str) -> None:
        """Go there; the page may still be loading."""
        self._call("Page.navigate", url=address)

    def size(self, width: int, height: int, *, phone: bool = False, dark: bool = False) -> None:
        """How large the window is, and what its owner prefers."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._call("Emulation.setEmulatedMedia", features=features)

    def run(self, script: str) -> Any:
        """The value of an expression on the page."""
        told = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def text(self) -> str:
        """What can be read on the page."""
        return str(self.run("document.body.innerText"))

    def sees(self, *words: str) -> str:
        """Wait until all of these can be read; returns the whole text."""
        return eventually(lambda: text if all(w in (text := self.text()) for w in words) else "", what=repr(words))

    def click(self, words: str, within: str = "main") -> None:
        """Press the button or follow the link of this name, once it is there."""
        script = f"""(() => {{
          const all = [...document.querySelectorAll({json.dumps(within)} + " :is(a, button, summary)")];
          const found = all.find((e) => (e.getAttribute("aria-label") || e.textContent).trim() === {json.dumps(words)});
          if (found) found.click();
          return Boolean(found);
        }})()"""
        eventually(lambda: self.run(script), what=f"a button {words!r}")

    def type(self, selector: str, words: str) -> None:
        """Put words into a field, as if typed there."""
        script = f"""(() => {{
          const field = document.querySelector({json.dumps(selector)});
          if (!field) return false;
          field.focus(); field.value = {json.dumps(words)};
          field.dispatchEvent(new Event("input", {{bubbles: true}}));
          return true;
        }})()"""
        eventually(lambda: self.run(script), what=f"a field {selector}")

    def choose(self, selector: str, file: Path) -> None:
        """Put a file into a field for files, as from the dialog of the system."""
        eventually(lambda: self.run(f"document.querySelector({json.dumps(selector)}) !== null"), what=selector)
        root = self._call("DOM.getDocument")["root"]["nodeId"]
        node = self._call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self._call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def press(self, key: str) -> None:
        """A key, as from the keyboard (`Tab`, `Enter`)."""
        more = {"text": "\r"} if key == "Enter" else {}
        code = {"Tab": 9, "Enter": 13, "Escape": 27}[key]
        self._call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **more)
        self._call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Write what is seen as a PNG file."""
        told = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(told["data"]))

    # inside

    async def _connect(self) -> None:
        file = self._folder / "DevToolsActivePort"
        port = eventually(lambda: file.exists() and file.read_text().split("\n")[0], 30, "Chromium is there")
        self._session = ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            pages = [page for page in await answer.json() if page["type"] == "page"]
        self._socket = await self._session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._loop.run_until_complete(asyncio.wait_for(self._ask(method, parameters), ANSWER_S))

    async def _ask(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        assert self._socket is not None
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            told = await self._socket.receive_json()
            if told.get("id") == self._number:
                assert "error" not in told, (method, told["error"])
                result: dict[str, Any] = told["result"]
                return result
            self._heard(told)

    def _heard(self, told: dict[str, Any]) -> None:
        match told.get("method"):
            case "Runtime.exceptionThrown":
                self.errors.append(json.dumps(told["params"]["exceptionDetails"])[:2000])
            case "Log.entryAdded" if told["params"]["entry"]["source"] == "security":
                self.errors.append(told["params"]["entry"]["text"])

    def _end(self) -> None:
        async def close() -> None:
            if self._socket is not None:
                await self._socket.close()
            if self._session is not None:
                await self._session.close()

        with contextlib.suppress(Exception):
            self._loop.run_until_complete(close())
        self._loop.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
