"""A real Chromium, driven over a pipe with its DevTools protocol: no driver, no port, and it ends when we do."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import functools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

INSTALL = Path(__file__).parents[2] / "scripts" / "apt"
SECONDS = 60.0
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-breakpad",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


@functools.cache
def chromium() -> str:
    """Where Chromium is, installed if that is possible; skips the test if not."""
    if shutil.which("chromium") is None:
        subprocess.run([INSTALL, "chromium", "fonts-dejavu-core"], check=False, timeout=900)
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("no chromium: install Debian's package of that name")
    return found


class Browser:
    """One process; its pages share nothing, as each has a context of its own."""

    def __init__(self, folder: Path) -> None:
        ours, theirs = _high_pipe(), _high_pipe()
        self._send, self._receive = theirs[1], ours[0]
        command = [chromium(), *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
        redirected = f'exec "$@" 3<&{theirs[0]} 4>&{ours[1]}'
        with (folder / "chromium.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", redirected, "chromium", *command],
                pass_fds=(theirs[0], ours[1]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"HOME": str(folder), "TMPDIR": str(folder)},
            )
        os.close(theirs[0])
        os.close(ours[1])
        self._left = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def close(self) -> None:
        with contextlib.suppress(OSError, TimeoutError, EOFError):
            self.call("Browser.close")
        os.close(self._send)
        os.close(self._receive)
        try:
            self._process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def page(self, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Page(self, session, width, height, dark)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + SECONDS
        while True:
            answer = self._message(until)
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])
            self.events.append(answer)

    def wait(self, session: str, method: str, since: int) -> dict[str, Any]:
        """The first event of this kind after the first ``since`` events."""
        until = time.monotonic() + SECONDS
        while True:
            for event in self.events[since:]:
                if event.get("sessionId") == session and event["method"] == method:
                    return event
            self.events.append(self._message(until))

    def _message(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._left:
            if not select.select([self._receive], [], [], max(until - time.monotonic(), 0))[0]:
                raise TimeoutError("Chromium did not answer")
            data = os.read(self._receive, 1 << 20)
            if not data:
                raise EOFError("Chromium is gone")
            self._left += data
        message, _, self._left = self._left.partition(b"\0")
        return dict(json.loads(message))


class Page:
    """A tab."""

    def __init__(self, browser: Browser, session: str, width: int, height: int, dark: bool) -> None:
        self._browser = browser
        self._session = session
        for domain in ("Page", "Network", "Runtime", "Log", "Audits", "Accessibility"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def goto(self, url: str) -> None:
        since = len(self._browser.events)
        assert "errorText" not in self.call("Page.navigate", url=url)
        self._browser.wait(self._session, "Page.loadEventFired", since)

    def evaluate(self, script: str) -> Any:
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def text(self, selector: str = "body") -> str:
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    def fill(self, selector: str, text: str) -> None:
        """Put text into a field, as if it were typed over what is there."""
        self.evaluate(f"{{const f = document.querySelector({json.dumps(selector)}); f.focus(); f.select()}}")
        self.call("Input.insertText", text=text)

    def click(self, selector: str, loads: bool = True) -> None:
        """Click in the middle of an element, and wait for the page that follows."""
        place = self.evaluate(
            f"(() => {{const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
            " const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]})()"
        )
        since = len(self._browser.events)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)
        if loads:
            self._browser.wait(self._session, "Page.loadEventFired", since)

    def wait_for(self, text: str) -> None:
        """Until the page, or one that it turns into by itself, has this text."""
        until = time.monotonic() + SECONDS
        while text not in self.evaluate("document.body ? document.body.innerText : ''"):
            assert time.monotonic() < until, self.text()
            time.sleep(0.1)

    def screenshot(self, file: Path) -> None:
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    def nodes(self) -> list[tuple[str, str]]:
        """Role and name of everything that a screen reader finds."""
        tree = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if not node.get("ignored")
        ]

    def complaints(self) -> list[Any]:
        """Errors in the console, exceptions, and what the content security policy or an audit had to refuse."""
        found = []
        for event in self._events():
            parameters = event["params"]
            match event["method"]:
                case "Log.entryAdded" if parameters["entry"]["level"] in ("error", "warning"):
                    found.append(parameters["entry"])
                case "Runtime.exceptionThrown" | "Runtime.consoleAPICalled" | "Audits.issueAdded":
                    found.append(parameters)
        return found

    def requested(self) -> list[str]:
        """The addresses of everything that was asked for, in order."""
        return [
            event["params"]["request"]["url"]
            for event in self._events()
            if event["method"] == "Network.requestWillBeSent"
        ]

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        return int(self.evaluate("document.documentElement.scrollWidth - window.innerWidth"))

    def _events(self) -> Iterator[dict[str, Any]]:
        return (event for event in self._browser.events if event.get("sessionId") == self._session)


def _high_pipe() -> tuple[int, int]:
    """Descriptors beyond 9, so that none of them is in the way of 3 and 4 in the child."""
    low = os.pipe()
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10) for descriptor in low]
    for descriptor in low:
        os.close(descriptor)
    return high[0], high[1]
