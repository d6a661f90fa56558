"""A headless browser for tests: Chromium, driven by its DevTools protocol over a WebSocket.

``find_browser`` looks for Chromium or Chrome on the PATH. On Debian and Ubuntu it installs Chromium if the process is
root. Without a browser the tests fail with the command that installs one.
"""

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from websockets.sync.client import ClientConnection, connect

from tests.waiting import PATIENCE, POLL_S, wait_until

NAMES: Final = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
INSTALL: Final = (
    ("apt-get", "update", "-qq"),
    ("apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"),
)
START_S: Final = 30.0
REPLY_S: Final = 30.0
# A container has neither a sandbox for root nor a large /dev/shm. The other flags stop background traffic and dialogs.
FLAGS: Final = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--metrics-recording-only",
    "--no-first-run",
    "--hide-scrollbars",
    "--mute-audio",
    "--remote-debugging-port=0",
)
# Key -> code and virtual key code of the DevTools protocol
KEYS: Final = {
    "/": ("Slash", 191),
    "Tab": ("Tab", 9),
    "Enter": ("Enter", 13),
    "Escape": ("Escape", 27),
    " ": ("Space", 32),
    "PageUp": ("PageUp", 33),
    "PageDown": ("PageDown", 34),
    "End": ("End", 35),
    "Home": ("Home", 36),
    "ArrowLeft": ("ArrowLeft", 37),
    "ArrowUp": ("ArrowUp", 38),
    "ArrowRight": ("ArrowRight", 39),
    "ArrowDown": ("ArrowDown", 40),
}
_TEXT_OF: Final = {"Enter": "\r", " ": " ", "/": "/"}


class NoBrowser(AssertionError):
    """No browser was found, and none could be installed."""


def find_browser() -> str:
    """The program of a Chromium or Chrome.

    Raises:
        NoBrowser: names the command that installs one.
    """
    found, trouble = _on_path(), ""
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in INSTALL:
            done = subprocess.run(
                command, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, capture_output=True, timeout=240
            )
            if done.returncode:
                trouble = f"; this failed here: {done.stderr.decode(errors='replace').strip()[-500:]}"
                break
        found = _on_path()
    if found is None:
        commands = " && ".join(" ".join(command) for command in INSTALL)
        raise NoBrowser(
            f"the tests of the page need a browser, and none of {', '.join(NAMES)} is on the PATH. "
            f"Install Debian's Chromium as root: {commands}{trouble}"
        )
    return found


def _on_path() -> str | None:
    return next((found for found in map(shutil.which, NAMES) if found is not None), None)


class Browser:
    """A running browser; leaving the context ends it and removes its profile."""

    def __init__(self, width: int = 1_280, height: int = 900) -> None:
        self._profile = Path(tempfile.mkdtemp(prefix="streamgru-browser-"))
        log = (self._profile / "log").open("wb")
        self._process = subprocess.Popen(
            [
                find_browser(),
                *FLAGS,
                f"--window-size={width},{height}",
                f"--user-data-dir={self._profile}",
                "about:blank",
            ],
            stdout=log,
            stderr=log,
            start_new_session=True,  # its helpers end with it
        )
        log.close()
        try:
            # No pings: their answers wait behind events that nobody reads between two calls.
            self._connection = connect(
                self._address(), max_size=None, open_timeout=START_S, close_timeout=1, ping_interval=None
            )
        except BaseException:
            self._end()
            raise
        self._calls = 0
        self._tabs: dict[str, Tab] = {}

    def _address(self) -> str:
        """The WebSocket of the browser, which writes port and path into its profile."""
        note = self._profile / "DevToolsActivePort"
        deadline = time.monotonic() + START_S
        while True:
            lines = note.read_text().split() if note.exists() else []
            if len(lines) == 2:
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (self._profile / "log").read_text(errors="replace")[-2_000:]
                raise NoBrowser(f"the browser did not start within {START_S:g} s:\n{said}")
            time.sleep(POLL_S)

    def call(self, method: str, session: str | None = None, **arguments: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol; events that arrive before its result go to their tab."""
        self._calls += 1
        number = self._calls
        message: dict[str, Any] = {"id": number, "method": method, "params": arguments}
        if session is not None:
            message["sessionId"] = session
        self._connection.send(json.dumps(message))
        while True:
            reply = json.loads(self._connection.recv(timeout=REPLY_S))
            if reply.get("id") == number:
                if "error" in reply:
                    raise AssertionError(f"{method}: {reply['error']['message']}")
                result: dict[str, Any] = reply["result"]
                return result
            tab = self._tabs.get(reply.get("sessionId", ""))
            if tab is not None and "method" in reply:
                tab.take(reply["method"], reply["params"])

    def open(self, address: str, width: int = 1_280, height: int = 900, *, phone: bool = False) -> "Tab":
        """A new tab with a window of this size; ``phone`` adds touch and a phone's pixel density."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = self._tabs[session] = Tab(self, session, context)
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.call(f"{domain}.enable")
        tab.resize(width, height, phone=phone)
        tab.go(address)
        return tab

    def __enter__(self) -> "Browser":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        connection: ClientConnection | None = getattr(self, "_connection", None)
        if connection is not None:
            connection.close()
        shutil.rmtree(self._profile, ignore_errors=True)


class Tab:
    """A tab with a profile of its own; ``problems`` has the errors and security violations that it reported."""

    def __init__(self, browser: Browser, session: str, context: str) -> None:
        self._browser = browser
        self._session = session
        self._context = context
        self.problems: list[str] = []
        self.requests: list[str] = []

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **arguments)

    def take(self, event: str, values: dict[str, Any]) -> None:
        """Note an event of the protocol."""
        if event == "Runtime.exceptionThrown":
            details = values["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description") or details["text"])
        elif event == "Runtime.consoleAPICalled" and values["type"] in ("error", "assert"):
            self.problems.append(" ".join(str(value.get("value", value)) for value in values["args"]))
        elif event == "Log.entryAdded" and values["entry"]["level"] == "error":
            self.problems.append(
                f"{values['entry']['source']}: {values['entry']['text']} {values['entry'].get('url', '')}"
            )
        elif event == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])

    def go(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def resize(self, width: int, height: int, *, phone: bool = False, density: float = 0) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=density or (2 if phone else 1),
            mobile=phone,
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)

    def prefer(self, **features: str) -> None:
        """Set media features: ``prefer(color_scheme="dark", reduced_motion="reduce")``."""
        chosen = [{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=chosen)

    def cut(self, *, offline: bool) -> None:
        """Cut the tab off from every server, or connect it again."""
        self.call(
            "Network.emulateNetworkConditions", offline=offline, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            raise AssertionError(f"{script}: {details.get('exception', {}).get('description') or details['text']}")
        return result["result"].get("value")

    def wait_for(self, script: str, timeout_s: float = 10.0, *, patience: float = PATIENCE) -> Any:
        """The first true value of an expression, true for an element; otherwise the test fails with the page's text."""
        error = ""

        def look() -> Any:
            nonlocal error
            try:
                return self.evaluate(f"(found => found instanceof Node ? true : found)({script})")
            except AssertionError as failed:  # a document that is only just loading
                error = str(failed)
                return None

        try:
            return wait_until(look, timeout_s, script, patience=patience)
        except AssertionError as failed:
            text = self.evaluate("document.body?.innerText.slice(0, 1500) ?? ''")
            raise AssertionError(f"{failed} {error}\nproblems: {self.problems}\nthe page says:\n{text}") from None

    def wait_for_text(self, selector: str, accept: Callable[[str], bool], timeout_s: float = 10.0) -> str:
        """The text of an element, once ``accept`` takes it."""
        wait_until(lambda: accept(self.text(selector)), timeout_s, f"{selector} says {self.text(selector)!r}")
        return self.text(selector)

    def text(self, selector: str) -> str:
        """The text of the first element that matches; empty without a match."""
        found: str = self.evaluate(f"document.querySelector({json.dumps(selector)})?.textContent ?? ''")
        return found

    def press(self, key: str, *, shift: bool = False) -> None:
        code, number = KEYS[key]
        text = {"text": _TEXT_OF[key]} if key in _TEXT_OF else {}
        common = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Save a picture of the window, or of the whole page."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def close(self) -> None:
        self._browser.call("Target.disposeBrowserContext", browserContextId=self._context)
